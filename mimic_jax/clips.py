"""Which frames of a clip make an item of a batch: SSL-FER's sampling (arXiv 2210.03853, its published code), as functions of uniform numbers. NumPy alone."""

import math
from typing import NamedTuple

import numpy as np

SECOND = 3.0  # seconds between the anchors of a clip at least
OFFSETS = 5  # how many distances a positive may have
WEIGHTS = {'falling': (5, 4, 3, 2, 1), 'uniform': (1, 1, 1, 1, 1), 'rising': (1, 2, 3, 4, 5)}
UNIFORMS = 7  # numbers that an item takes


class Frames(NamedTuple):
  """What an item holds of its clip: an anchor and its positive, and the like of a second anchor far from the first.

  Attributes:
    fps: frames per second.
    time: whether a positive is another frame, some way off; else it is the anchor's own.
    second: whether there is a second anchor: the pictures of an item are 4, else 2.
    weights: key of WEIGHTS, of a positive's distances from the nearest on.
    fixed: whether a clip's frames are drawn once, not anew each epoch.
    swap: probability that a positive is shown with the outline of another clip's face.
  """

  fps: float
  time: bool = True
  second: bool = True
  weights: str = 'falling'
  fixed: bool = False
  swap: float = 0.0

  @property
  def pictures(self) -> int:
    """The frames of an item."""
    return 4 if self.second else 2

  @property
  def offsets(self) -> tuple[int, ...]:
    """The distances in frames that a positive may have: ⌊k + √(fps · 1 s)⌋, k = 0 … 4."""
    return tuple(math.floor(k + math.sqrt(self.fps)) for k in range(OFFSETS))

  @property
  def gap(self) -> int:
    """The least distance of the second anchor in frames."""
    return math.floor(SECOND * self.fps)

  @property
  def least(self) -> int:
    """The frames of the shortest clip that can be used: one side of any frame must have room for every positive."""
    return max(1, self.gap + 1 if self.second else 0, 2 * self.offsets[-1] if self.time else 0)


def draw(frames: Frames, length: int, u: np.ndarray) -> list[int]:
  """Draws the frames of an item.

  The anchor is uniform over those that have a frame for the second anchor. Of two sides that have room either is as likely.

  Args:
    frames: what to draw.
    length: of the clip, `frames.least` at the least.
    u: float [UNIFORMS] in [0, 1).

  Returns:
    The places in the clip, 0..length − 1, of (anchor, positive), and of the second pair where there is one.
  """
  anchors, gap = np.arange(length), frames.gap
  if frames.second:
    anchors = anchors[(anchors >= gap) | (anchors + gap < length)]
  first = int(anchors[int(u[0] * len(anchors))])
  found = [first, _positive(frames, length, first, *u[1:3])]
  if frames.second:
    sides = [range(0, first - gap + 1), range(first + gap, length)]
    room = [side for side in sides if side]
    side = room[int(u[3] * len(room))]
    second = side[int(u[4] * len(side))]
    found += [second, _positive(frames, length, second, *u[5:7])]
  return found


def _positive(frames: Frames, length: int, anchor: int, which: float, side: float) -> int:
  if not frames.time:
    return anchor
  shares = np.cumsum(WEIGHTS[frames.weights])
  offset = frames.offsets[int(np.searchsorted(shares, which * shares[-1], side='right'))]
  room = [k for k in (anchor - offset, anchor + offset) if 0 <= k < length]
  return room[int(side * len(room))]

"""Which picture comes when, other than in shuffled order."""

import dataclasses

import numpy as np

from mimic_jax import clips
from mimic_jax.clips import Frames
from mimic_jax.data import source as sources
from mimic_jax.data.source import Source
from mimic_jax.runtime.errors import UserError

SAMPLERS = ('shuffle', 'balanced')
_DRAWS = 0x64726177  # second half of the Philox key: what the numbers are for
_FRAMES = 0x6672616D
_SWAPS = 0x73776170


@dataclasses.dataclass(frozen=True)
class Balanced:
  """Draws every class equally often, with replacement: a picture's weight is 1 / its class's count.

  An epoch has as many draws as the source has pictures. Draw k of an epoch is a function of (seed, epoch, k) alone, by
  counter, so that any process may begin anywhere.

  Attributes:
    pictures: int64 [n], the labelled pictures, class after class.
    starts, counts: int64 [K'], where each class that has pictures begins in `pictures`, and how many it has.
    epoch_draws: N.
    seed: 0..2³² − 1.
  """

  pictures: np.ndarray
  starts: np.ndarray
  counts: np.ndarray
  epoch_draws: int
  seed: int

  def __call__(self, position: int, k: int) -> np.ndarray:
    """Returns int64 [3] (epoch, index, k) of the run's draw number `position` ≥ 0, which is draw k of its epoch."""
    epoch = position // self.epoch_draws
    generator = np.random.Generator(np.random.Philox(key=[self.seed, _DRAWS], counter=[0, 0, k, epoch]))
    which, place = generator.random(2)
    c = int(which * len(self.counts))
    index = self.pictures[self.starts[c] + int(place * self.counts[c])]
    return np.array([epoch, index, k], np.int64)


def balanced(source: Source, seed: int) -> Balanced:
  """Returns the balanced order of a source's pictures.

  A distribution counts as its likeliest class, of several the first. Classes without pictures are left out, and so are
  pictures without a label (−1).

  Raises:
    UserError: where no picture has a label.
  """
  n = len(source)
  classes = sources.dominant(source.label(i) for i in range(n if source.class_names else 0))
  order = np.argsort(classes, kind='stable')
  order = order[classes[order] >= 0]
  if not order.size:
    raise UserError(
      f"data.sampler is 'balanced', but none of the {n} pictures has a label; expected 'shuffle', or a source with "
      'classes'
    )
  _, starts, counts = np.unique(classes[order], return_index=True, return_counts=True)
  return Balanced(order, starts, counts, n, seed)


@dataclasses.dataclass(frozen=True)
class Clips:
  """Draws the frames of clips, each clip once an epoch; what of a clip is a function of (seed, epoch, clip) alone, by counter.

  Attributes:
    pictures: int64 [n], the frames of those clips that are long enough, clip after clip, each in its order.
    starts, counts: int64 [C], where each clip begins in `pictures`, and how many frames it has.
    left_out: clips that are too short.
    frames: which of them an item has.
    seed: 0..2³² − 1.
  """

  pictures: np.ndarray
  starts: np.ndarray
  counts: np.ndarray
  left_out: int
  frames: Frames
  seed: int

  def __len__(self) -> int:
    return len(self.starts)

  def __call__(self, position: int, clip: int) -> np.ndarray:
    """Returns int64 [G, 3] (epoch, index, place) of the run's item number `position` ≥ 0, which is of that clip.

    Where faces are swapped, [G, 4]: the last is the frame of another clip whose outline a positive gets, −1 for none.
    """
    epoch = position // len(self)
    u = self._uniforms(_FRAMES, clip, 0 if self.frames.fixed else epoch, clips.UNIFORMS)
    chosen = clips.draw(self.frames, int(self.counts[clip]), u)
    first, G = self.starts[clip], self.frames.pictures
    rows = [(epoch, self.pictures[first + k], clip * G + g) for g, k in enumerate(chosen)]
    if not self.frames.swap:
      return np.array(rows, np.int64)
    which, place, *each = self._uniforms(_SWAPS, clip, epoch, 2 + G // 2)
    other = -1
    if len(self) > 1:  # one for both positives
      another = int(which * (len(self) - 1))
      another += another >= clip
      other = self.pictures[self.starts[another] + int(place * self.counts[another])]
    swapped = [g % 2 == 1 and each[g // 2] < self.frames.swap for g in range(G)]
    return np.array([(*row, other if yes else -1) for row, yes in zip(rows, swapped)], np.int64)

  def _uniforms(self, what: int, clip: int, epoch: int, n: int) -> np.ndarray:
    """Returns float64 [n] in [0, 1) by counter, for one purpose."""
    return np.random.Generator(np.random.Philox(key=[self.seed, what], counter=[0, 0, clip, epoch])).random(n)


def clips_of(source: Source, frames: Frames, seed: int) -> Clips:
  """Returns the clips of a source of groups, in the order of their first frames.

  Raises:
    UserError: where no clip is long enough.
  """
  found, seen = [], np.zeros(len(source), bool)
  for i in range(len(source)):
    if not seen[i]:
      found.append(np.asarray(source.group(i), np.int64))
      seen[found[-1]] = True
  long = [clip for clip in found if len(clip) >= frames.least]
  if not long:
    longest = max(map(len, found), default=0)
    raise UserError(
      f'{source.record()["source"]} has {len(found)} clips, the longest of {longest} frames; expected one of at least '
      f'{frames.least} at {frames.fps:.4g} frames per second'
    )
  counts = np.array([len(clip) for clip in long], np.int64)
  return Clips(np.concatenate(long), np.cumsum(counts) - counts, counts, len(found) - len(long), frames, seed)

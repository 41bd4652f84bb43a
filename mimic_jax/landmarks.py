"""The 68 points of a face (iBUG 300-W): which is where, and how they go along with crops and flips. For NumPy and JAX alike, without JAX.

A point is (x, y) in pixels, counted from the left and the upper edge of its picture: the middle of the first pixel is (.5, .5).
"""

from typing import Any

import numpy as np

POINTS = 68
TARGET = 'landmarks'  # what a source that has them offers, float32 [n, 68, 2], NaN where no face was found
FILE = 'landmarks.npz'  # beside pictures: 'id' str [n], 'landmarks' float32 [n, 68, 2], 'maker' str []

# Left and right are the picture's. Each runs from left to right but for the lower lids and lips, which run back.
JAW = slice(0, 17)
NOSE = slice(27, 36)
# left corner, two of the upper lid, right corner, two of the lower
LEFT_EYE, RIGHT_EYE = slice(36, 42), slice(42, 48)
EYES = slice(36, 48)
# the lips' outer edge (12 points) from the left corner over the upper lip, then the inner one (8)
MOUTH = slice(48, 68)
INNER = slice(17, 68)  # all but the outline


def _back(first: int, last: int) -> list[int]:
  return list(range(last, first - 1, -1))


# MIRROR[k] is the point of a face that stands where its k stands in the mirror.
MIRROR = np.array(
  [
    *_back(0, 16),
    *_back(17, 26),
    *range(27, 31),
    *_back(31, 35),
    *_back(42, 45), 47, 46,
    *_back(36, 39), 41, 40,
    *_back(48, 54), *_back(55, 59),
    *_back(60, 64), *_back(65, 67),
  ]
)  # fmt: skip


def cropped(points: Any, boxes: Any, size: float) -> Any:
  """Returns where points lie in a crop that was resized.

  Args:
    points: float [..., P, 2] in pixels of the picture.
    boxes: [..., 4] top, left, height, width in the same, of the crop.
    size: side of the result in pixels.

  Returns:
    float [..., P, 2] in pixels of the result; outside of 0..size where the crop left them out.
  """
  corner = boxes[..., None, 1::-1]  # left, top
  return (points - corner) * (size / boxes[..., None, :1:-1])


def mirrored(points: Any, width: float) -> Any:
  """Returns the points [..., 68, 2] of the mirrored picture, left and right exchanged."""
  lead = (1,) * (points.ndim - 1)
  turn, shift = (np.array(v, np.float32).reshape(*lead, 2) for v in ((-1, 1), (width, 0)))
  return points[..., MIRROR, :] * turn + shift

"""The inner face of one picture in the outline of another, by the 68 points of both: SSL-FER's FaceSwap (arXiv 2210.03853). NumPy, SciPy and Pillow."""

import numpy as np
import scipy.ndimage
import scipy.spatial
from PIL import Image

from mimic_jax import landmarks
from mimic_jax.data.faces import alignment

# a hull about each: eyes and brows, nose and mouth
PARTS = ((landmarks.EYES, slice(17, 27)), (landmarks.NOSE, landmarks.MOUTH))
BLUR = 0.6  # side of the Gaussian's window, in distances of the pupils
# grey level of a blurred picture up to which there is nothing to divide by, and what is added there
DARK = 1.0
LIFT = 128.0


def moved(points: np.ndarray, transform: np.ndarray) -> np.ndarray:
  """Returns points float [P, 2] under a transform [2, 3]."""
  return points @ transform[:, :2].T + transform[:, 2]


def mask(size: tuple[int, int], *faces: np.ndarray) -> np.ndarray:
  """Returns which pixels have their middle in the hulls of PARTS of any of some faces, bool [H, W].

  Args:
    size: (H, W).
    faces: points [68, 2] each.

  Raises:
    scipy.spatial.QhullError: where the points of a part lie in a line.
  """
  inside = np.zeros(size, bool)
  for face in faces:
    for part in PARTS:
      points = np.concatenate([face[k] for k in part]).astype(np.float64)
      low = np.clip(np.floor(points.min(axis=0)), 0, size[::-1]).astype(int)
      high = np.clip(np.ceil(points.max(axis=0)), low, size[::-1]).astype(int)
      x, y = (np.arange(a, b) + 0.5 for a, b in zip(low, high))
      here = np.ones((len(y), len(x)), bool)
      for across, down, offset in scipy.spatial.ConvexHull(points).equations:  # a side each: at most 0 within
        here &= across * x[None] + down * y[:, None] + offset <= 0
      inside[low[1] : high[1], low[0] : high[0]] |= here
  return inside


def blurred(image: np.ndarray, window: int) -> np.ndarray:
  """Returns float32 [H, W, 3] under a Gaussian of an odd number of pixels each way, its sigma OpenCV's for that; edges mirrored."""
  sigma = 0.3 * ((window - 1) * 0.5 - 1) + 0.8
  kernel = np.exp(-0.5 * ((np.arange(window) - window // 2) / sigma) ** 2)
  for axis in (0, 1):
    image = scipy.ndimage.correlate1d(image, kernel / kernel.sum(), axis=axis, mode='mirror')
  return image


def swap(
  outer: np.ndarray, outer_points: np.ndarray, inner: np.ndarray, inner_points: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
  """Puts the brows, eyes, nose and mouth of one face into another one.

  Args:
    outer: uint8 [H, W, 3], which keeps its outline.
    inner: uint8 [h, w, 3], which gives the rest.
    outer_points, inner_points: float32 [68, 2] of them; NaN where no face was found.

  Returns:
    uint8 [H, W, 3], and the points of the face there is now, float32 [68, 2]; None where a face is missing or its points lie in a line.
  """
  if not np.isfinite(outer_points).all() or not np.isfinite(inner_points).all():
    return None
  size = outer.shape[:2]
  try:
    transform = alignment.similarity(inner_points[landmarks.INNER], outer_points[landmarks.INNER])
    there = moved(inner_points, transform)
    inside = mask(size, outer_points, there)
  except (ValueError, scipy.spatial.QhullError):
    return None
  if abs(np.linalg.det(transform[:, :2])) < 1e-6:
    return None
  back = np.linalg.inv(np.concatenate([transform, [[0, 0, 1]]]))[:2]
  warped = Image.fromarray(inner).transform(
    size[::-1], Image.Transform.AFFINE, back.ravel().tolist(), Image.Resampling.BILINEAR
  )
  pixels, base = np.asarray(warped, np.float32), outer.astype(np.float32)
  pupils = [outer_points[k].mean(axis=0) for k in (landmarks.LEFT_EYE, landmarks.RIGHT_EYE)]
  window = int(BLUR * np.linalg.norm(pupils[1] - pupils[0])) | 1
  ours, theirs = blurred(pixels, window), blurred(base, window)
  ours = np.where(ours <= DARK, ours + LIFT, ours)
  corrected = np.clip(np.rint(pixels * theirs / ours), 0, 255).astype(np.uint8)
  points = np.concatenate([outer_points[landmarks.JAW], there[landmarks.INNER]]).astype(np.float32)
  return np.where(inside[..., None], corrected, outer), points

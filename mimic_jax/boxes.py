"""Where a random crop lies: for pictures cropped on the device (JAX) and on the host (NumPy, without JAX) alike."""

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

ATTEMPTS = 10  # torchvision's RandomResizedCrop gives up after as many boxes that don't fit


def crop_boxes(
  xp: ModuleType, u: Any, height: Any, width: Any, scale: Sequence[float], ratio: Sequence[float]
) -> Any:
  """Draws crop boxes by the rule of torchvision's RandomResizedCrop.

  Up to ten attempts: area = U(scale)·H·W, log aspect = U(log ratio), sides rounded half to even; the first box that fits
  into the picture is put at a uniform place. Where none fits: the central crop of the whole picture, its aspect clamped
  to `ratio`. All arithmetic is float32, with NumPy as with JAX, so that host and device draw the same boxes.

  Args:
    xp: numpy or jax.numpy.
    u: [..., 10, 4] uniform numbers in [0, 1): area, log aspect, top, left of each attempt.
    height: of the pictures in pixels, int or an int array that broadcasts to [...].
    width: likewise.
    scale: least and largest share of the picture's area.
    ratio: least and largest width to height.

  Returns:
    int32 [..., 4]: top, left, height, width in pixels, inside the picture.
  """
  u = xp.asarray(u, dtype=xp.float32)
  lead = u.shape[:-2]
  height = xp.broadcast_to(xp.asarray(height, dtype=xp.int32), lead)
  width = xp.broadcast_to(xp.asarray(width, dtype=xp.int32), lead)
  full_h, full_w = height.astype(xp.float32), width.astype(xp.float32)

  share = scale[0] + u[..., 0] * (scale[1] - scale[0])
  log_least, log_largest = math.log(ratio[0]), math.log(ratio[1])
  aspect = xp.exp(log_least + u[..., 1] * (log_largest - log_least))
  area = share * (full_h * full_w)[..., None]
  w = xp.round(xp.sqrt(area * aspect)).astype(xp.int32)
  h = xp.round(xp.sqrt(area / aspect)).astype(xp.int32)
  fits = (w > 0) & (w <= width[..., None]) & (h > 0) & (h <= height[..., None])

  first = xp.argmax(fits, axis=-1)[..., None]
  h, w, u_top, u_left = (xp.take_along_axis(v, first, axis=-1)[..., 0] for v in (h, w, u[..., 2], u[..., 3]))
  # u < 1, but its product with the number of places may round up to that number.
  top = xp.minimum((u_top * (height - h + 1).astype(xp.float32)).astype(xp.int32), height - h)
  left = xp.minimum((u_left * (width - w + 1).astype(xp.float32)).astype(xp.int32), width - w)

  clamped_h = xp.where(full_w < full_h * ratio[0], xp.round(full_w / ratio[0]), full_h).astype(xp.int32)
  clamped_w = xp.where(full_w > full_h * ratio[1], xp.round(full_h * ratio[1]), full_w).astype(xp.int32)
  clamped = ((height - clamped_h) // 2, (width - clamped_w) // 2, clamped_h, clamped_w)
  any_fits = fits.any(axis=-1)
  boxes = [xp.where(any_fits, a, b) for a, b in zip((top, left, h, w), clamped)]
  return xp.stack(boxes, axis=-1).astype(xp.int32)

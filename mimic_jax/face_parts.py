"""What is done to the parts of a face by its 68 points, on the device: a part covered, eyes and mouth cut out. Pure functions.

Pictures are float32 [N, S, S, 3] of 0..255, points float32 [N, 68, 2] in their pixels (landmarks.py), NaN where no face was found.
"""

import jax
import jax.numpy as jnp

from mimic_jax import landmarks
from mimic_jax.augment import EXACT

COVERED = (landmarks.MOUTH, landmarks.LEFT_EYE, landmarks.RIGHT_EYE)  # one of them is
# of the crop's side: SSL-FER's 10 pixels about a part (arXiv 2210.03853) of frames of 224, cropped to 7/8
MARGIN = 10 / 196
CUT = (landmarks.EYES, landmarks.MOUTH)


def _edges(points: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the least and the largest x, y of points [N, P, 2], [N, 2] each."""
  return points.min(axis=1), points.max(axis=1)


def cover(x: jax.Array, points: jax.Array, part: jax.Array) -> jax.Array:
  """Covers a part of each face by an ellipse of the picture's mean colour, MARGIN larger than the part all round.

  Args:
    x: pictures.
    points: of the faces; a picture without stays as it is.
    part: int [N], which of COVERED.
  """
  S = x.shape[1]
  edges = jnp.stack([jnp.stack(_edges(points[:, k]), axis=1) for k in COVERED], axis=1)  # [N, 3, 2, 2]
  low, high = jnp.moveaxis(jnp.take_along_axis(edges, part[:, None, None, None], axis=1)[:, 0], 1, 0)
  middle, radius = (low + high) / 2, (high - low) / 2 + MARGIN * S
  place = jnp.arange(S, dtype=jnp.float32)[None] + 0.5
  across, down = (((place - middle[:, k, None]) / radius[:, k, None]) ** 2 for k in (0, 1))
  inside = across[:, None, :] + down[:, :, None] <= 1.0  # never where it is NaN
  return jnp.where(inside[..., None], x.mean(axis=(1, 2), keepdims=True), x)


def random_cover(key: jax.Array, x: jax.Array, points: jax.Array, probability: float) -> jax.Array:
  """Covers one part of each face, drawn for each, with a probability."""
  part_key, some_key = jax.random.split(key)
  part = jax.random.randint(part_key, x.shape[:1], 0, len(COVERED))
  some = jax.random.bernoulli(some_key, probability, x.shape[:1])
  return jnp.where(some[:, None, None, None], cover(x, points, part), x)


def cut(x: jax.Array, points: jax.Array, part: slice, size: int) -> jax.Array:
  """Cuts a part out, the smallest box of whole pixels about its points, padded with black to a square and resized.

  Args:
    x: pictures.
    points: of the faces; of a picture without, eyes are looked for in the upper half and a mouth in the lower one.
    part: of CUT.
    size: side of the result in pixels.

  Returns:
    float32 [N, size, size, 3], 0..255; bilinear, antialiased.
  """
  S = x.shape[1]
  half = (0, S // 2) if part == landmarks.EYES else (S // 2, S)
  usual = jnp.array([[0, half[0]], [S, half[1]]], jnp.float32)
  low, high = _edges(points[:, part])
  unknown = ~jnp.isfinite(low + high).all(axis=1, keepdims=True)
  low, high = (jnp.where(unknown, usual[k][None], v) for k, v in enumerate((low, high)))
  low = jnp.clip(jnp.floor(low), 0, S - 1)  # at least one pixel of the picture
  high = jnp.clip(jnp.ceil(high), low + 1, S)
  side = (high - low).max(axis=1)
  start = low - jnp.floor((side[:, None] - (high - low)) / 2)
  columns, rows = (_weights(start[:, k], side, low[:, k], high[:, k], S, size) for k in (0, 1))
  x = jnp.einsum('noh,nhwc->nowc', rows, x, precision=EXACT)
  return jnp.einsum('now,nhwc->nhoc', columns, x, precision=EXACT)


def _weights(
  start: jax.Array, side: jax.Array, low: jax.Array, high: jax.Array, full: int, size: int
) -> jax.Array:
  """Returns float32 [N, size, full]: how much each pixel gives to each output of a span [start, start + side) of which only [low, high) shows."""
  start, side, low, high = (v[:, None, None] for v in (start, side, low, high))
  # the span may begin before the picture and end behind it
  pixel = jnp.arange(-full, 2 * full, dtype=jnp.float32)[None, None]
  step = side / size
  centre = start + (jnp.arange(size, dtype=jnp.float32)[None, :, None] + 0.5) * step
  w = jnp.maximum(0.0, 1.0 - jnp.abs((pixel + 0.5 - centre) / jnp.maximum(step, 1.0)))
  w = jnp.where((pixel >= start) & (pixel < start + side), w, 0.0)
  w = jnp.where((pixel >= low) & (pixel < high), w, 0.0) / w.sum(axis=-1, keepdims=True)
  return w[..., full : 2 * full]

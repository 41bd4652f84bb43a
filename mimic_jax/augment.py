"""Random crops, resampling, flips, erasing and normalisation of pixels: pure functions, the same arithmetic for host and device.

P §IV-B takes the augmentation of SimMIM: torchvision's RandomResizedCrop and a horizontal flip. Randomness comes in as
uniform numbers or as a key for the whole (global) batch, so that nothing here depends on how a batch is sharded.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mimic_jax import randaugment
from mimic_jax.boxes import ATTEMPTS, crop_boxes
from mimic_jax.runtime import errors

EXACT = jax.lax.Precision.HIGHEST  # else a TPU resamples in bfloat16, half a grey level off


def _triangle(x: jax.Array) -> jax.Array:
  return jnp.maximum(0.0, 1.0 - jnp.abs(x))


def _cubic(x: jax.Array) -> jax.Array:
  """Keys' cubic with a = −0.5, the one PIL calls bicubic (torch's has a = −0.75)."""
  a, x = -0.5, jnp.abs(x)
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = a * (((x - 5) * x + 8) * x - 4)
  return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


KERNELS: dict[str, Callable[[jax.Array], jax.Array]] = {'bilinear': _triangle, 'bicubic': _cubic}

CHOICES = {'augment.interpolation': tuple(KERNELS)}
RANGES = {'augment.flip': (0, 1), 'augment.erasing': (0, 1), **randaugment.RANGES}

# Of an erased box: share of the picture's area, and width to height (timm's; arXiv 1708.04896 has 0.4 for the first).
ERASED_SCALE = (0.02, 1 / 3)
ERASED_RATIO = (0.3, 1 / 0.3)


def _weights(start: jax.Array, length: jax.Array, full: int, size: int, interpolation: str) -> jax.Array:
  """Returns float32 [..., size, full]: how much each of `full` pixels gives to each output pixel of a crop.

  The kernel is as wide as an output pixel when shrinking (antialiasing), and one input pixel wide when enlarging. Pixels
  outside the crop give nothing, as if it had been cut out first.

  Args:
    start: int [...], first pixel of the crop.
    length: int [...], number of pixels of the crop, > 0.
    full: pixels along this axis of the whole picture.
    size: output pixels.
    interpolation: a key of KERNELS.
  """
  kernel = KERNELS[errors.one_of('augment.interpolation', interpolation, KERNELS)]
  lead = start.shape
  start = start.astype(jnp.float32)[..., None, None]
  length = length.astype(jnp.float32)[..., None, None]
  pixel = jnp.arange(full, dtype=jnp.float32).reshape((1,) * len(lead) + (1, full)) - start
  output = jnp.arange(size, dtype=jnp.float32).reshape((1,) * len(lead) + (size, 1))
  step = length / size
  centre = (output + 0.5) * step
  w = kernel((pixel + 0.5 - centre) / jnp.maximum(step, 1.0))
  w = jnp.where((pixel >= 0) & (pixel < length), w, 0.0)
  return w / w.sum(axis=-1, keepdims=True)


def _resample_views(images: jax.Array, boxes: jax.Array, size: int, interpolation: str) -> jax.Array:
  """Cuts several boxes out of each picture: [B, H, W, C], int [B, V, 4] → float32 [B, V, size, size, C]."""
  B, H, W, C = images.shape
  V = boxes.shape[1]
  rows = _weights(boxes[..., 0], boxes[..., 2], H, size, interpolation)  # [B, V, S, H]
  columns = _weights(boxes[..., 1], boxes[..., 3], W, size, interpolation)  # [B, V, S, W]
  # Rows first, all views in one product: the pictures are read once and not copied for each view.
  x = images.astype(jnp.float32).reshape(B, H, W * C)
  x = jnp.matmul(rows.reshape(B, V * size, H), x, precision=EXACT).reshape(B, V, size, W, C)
  return jnp.einsum('bvow,bvhwc->bvhoc', columns, x, precision=EXACT)


def resample(images: jax.Array, boxes: jax.Array, size: int, interpolation: str) -> jax.Array:
  """Cuts one box out of each picture and resizes it as PIL's `crop(box).resize((size, size))` does.

  Args:
    images: uint8 or float [B, H, W, C], 0..255.
    boxes: int [B, 4]: top, left, height, width in pixels, inside the pictures.
    size: side of the result in pixels (static).
    interpolation: 'bilinear' or 'bicubic' (static), antialiased. Bicubic may leave 0..255 a little, where PIL clips.

  Returns:
    float32 [B, size, size, C]. Exactly the pictures where the box is whole and `size` its side.

  Raises:
    errors.UserError: on another interpolation.
  """
  return _resample_views(images, boxes[:, None, :], size, interpolation)[:, 0]


def resize(images: jax.Array, size: int, interpolation: str) -> jax.Array:
  """Resizes whole pictures, without keeping their aspect: what evaluation does.

  Args:
    images: uint8 or float [B, H, W, C], 0..255.
    size: side of the result in pixels (static).
    interpolation: 'bilinear' or 'bicubic' (static), antialiased.

  Returns:
    float32 [B, size, size, C].

  Raises:
    errors.UserError: on another interpolation.
  """
  H, W = images.shape[1:3]
  rows = _weights(jnp.asarray(0), jnp.asarray(H), H, size, interpolation)
  columns = _weights(jnp.asarray(0), jnp.asarray(W), W, size, interpolation)
  x = images.astype(jnp.float32)
  if size != H:
    x = jnp.einsum('oh,bhwc->bowc', rows, x, precision=EXACT)
  if size != W:
    x = jnp.einsum('ow,bhwc->bhoc', columns, x, precision=EXACT)
  return x


def random_resized_crop(
  key: jax.Array,
  images: jax.Array,
  views: int,
  size: int,
  scale: Sequence[float],
  ratio: Sequence[float],
  interpolation: str,
) -> jax.Array:
  """Cuts `views` random boxes out of each picture (P §III-B: two views of each of B images) and resizes them.

  Args:
    key: of the whole batch; the draw of a picture depends on its place in the batch, not on how the batch is sharded.
    images: uint8 or float [B, H, W, C], 0..255.
    views: crops of each picture (static).
    size: side of the crops in pixels (static).
    scale: least and largest share of the picture's area.
    ratio: least and largest width to height.
    interpolation: 'bilinear' or 'bicubic' (static), antialiased.

  Returns:
    float32 [B, views, size, size, C], 0..255 (bicubic may leave the range a little).

  Raises:
    errors.UserError: on another interpolation.
  """
  B, H, W, _ = images.shape
  u = jax.random.uniform(key, (B, views, ATTEMPTS, 4))
  return _resample_views(images, crop_boxes(jnp, u, H, W, scale, ratio), size, interpolation)


def random_flip(key: jax.Array, x: jax.Array, probability: float) -> jax.Array:
  """Mirrors each view left to right with a probability, independently; x is [B, V, H, W, C], any dtype, kept."""
  flip = jax.random.bernoulli(key, probability, x.shape[:2])
  return jnp.where(flip[:, :, None, None, None], x[:, :, :, ::-1], x)


def random_erase(key: jax.Array, x: jax.Array, probability: float) -> jax.Array:
  """Puts noise into a random box of each view with a probability: random erasing (arXiv 1708.04896), `pixel` mode of timm.

  Args:
    key: of the whole batch.
    x: float [B, V, H, W, C], normalised: the noise is standard normal, each value its own.
    probability: of a view.

  Returns:
    Likewise.
  """
  box_key, noise_key, which_key = jax.random.split(key, 3)
  B, V, H, W, _ = x.shape
  u = jax.random.uniform(box_key, (B, V, ATTEMPTS, 4))
  box = crop_boxes(jnp, u, H, W, ERASED_SCALE, ERASED_RATIO)
  top, left, height, width = (box[..., k, None] for k in range(4))
  rows, columns = jnp.arange(H)[None, None] - top, jnp.arange(W)[None, None] - left
  inside = ((rows >= 0) & (rows < height))[..., :, None] & ((columns >= 0) & (columns < width))[..., None, :]
  erased = inside & jax.random.bernoulli(which_key, probability, (B, V, 1, 1))
  return jnp.where(erased[..., None], jax.random.normal(noise_key, x.shape, x.dtype), x)


def normalise(x: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
  """Returns (x / 255 − mean) / std as float32 for pixels [..., C] of 0..255; mean and std, of length C, are of 0..1."""
  lead = (1,) * (x.ndim - 1)
  mean = jnp.asarray(mean, jnp.float32).reshape((*lead, -1))
  std = jnp.asarray(std, jnp.float32).reshape((*lead, -1))
  return (x.astype(jnp.float32) / 255.0 - mean) / std


def training_views(
  key: jax.Array,
  images: jax.Array,
  *,
  views: int,
  size: int,
  scale: Sequence[float],
  ratio: Sequence[float],
  interpolation: str,
  flip: float,
  mean: Sequence[float],
  std: Sequence[float],
  rand_ops: int = 0,
  rand_magnitude: float = 9.0,
  rand_std: float = 0.5,
  erasing: float = 0.0,
) -> jax.Array:
  """Random resized crops, flips, RandAugment, normalisation and erasing of a batch, in this order.

  Args:
    key: of this step.
    images: uint8 [B, H, W, C]; or [B, V, S, S, C] when the host has cropped already (pictures of varying size).
    views: crops per image, V.
    size: side of a crop, S.
    scale: bounds of the crop's share of the area.
    ratio: bounds of its width to height.
    interpolation: 'bilinear' or 'bicubic'.
    flip: probability of a horizontal flip.
    mean: per channel, of pixels in 0..1.
    std: likewise.
    rand_ops: RandAugment's operations on each view (randaugment.py); 0 = none.
    rand_magnitude: theirs.
    rand_std: standard deviation of that.
    erasing: probability that a view gets a box of noise.

  Returns:
    float32 [B, V, S, S, C].
  """
  crop_key, flip_key = jax.random.split(key)
  # those above don't change with what is on
  rand_key, erase_key = jax.random.split(jax.random.fold_in(key, 2))
  if images.ndim == 4:
    images = random_resized_crop(crop_key, images, views, size, scale, ratio, interpolation)
  x = random_flip(flip_key, images.astype(jnp.float32), flip)
  if rand_ops:
    fill = [round(255 * m) for m in mean]
    x = randaugment.random_augment(
      rand_key,
      x,
      count=rand_ops,
      magnitude=rand_magnitude,
      std=rand_std,
      interpolation=interpolation,
      fill=fill,
    )
  x = normalise(x, mean, std)
  return random_erase(erase_key, x, erasing) if erasing else x


def evaluation_view(
  images: jax.Array, size: int, interpolation: str, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
  """Plain resize and normalisation: uint8 [B, H, W, C] → float32 [B, size, size, C]."""
  return normalise(resize(images, size, interpolation), mean, std)


def to_uint8(x: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
  """Undoes `normalise` for looking: float [..., C] → uint8 [..., C], on the host."""
  pixels = np.asarray(x, np.float32) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
  return np.clip(np.rint(pixels * 255.0), 0, 255).astype(np.uint8)

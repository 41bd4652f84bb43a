"""Random colour: jitter, greyscale, blur, solarising; pure functions on float32 pictures [N, H, W, 3] of 0..255.

The arithmetic is torchvision's for tensors (github.com/pytorch/vision, transforms/_functional_tensor.py), not rounded to whole grey levels in
between. Randomness comes in as a key for the whole (global) batch; each picture has draws of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mimic_jax import augment
from mimic_jax.augment import EXACT
from mimic_jax.runtime import sharding
from mimic_jax.runtime.errors import UserError

GREY = (0.2989, 0.587, 0.114)  # of red, green and blue (torchvision; ITU-R BT.601)
BLUR_AT = 224  # pixels of the side for which `random_blur` takes its sigmas


def check(a: Mapping[str, Any], **probabilities: int) -> None:
  """Raises UserError for values of `augment.jitter`, `augment.blur_sigma` and some probabilities that can't be meant.

  Args:
    a: the section `augment`.
    probabilities: names of fields that hold so many.
  """
  inf = float('inf')
  counts = {'jitter': (4, inf), 'blur_sigma': (2, inf), **{k: (n, 1) for k, n in probabilities.items()}}
  for name, (count, high) in counts.items():
    if len(a[name]) != count or not all(0 <= v <= high for v in a[name]):
      bounds = 'at least 0' if high == inf else f'0 to {high:g}'
      raise UserError(f'augment.{name} is {tuple(a[name])}; expected {count} numbers of {bounds}')
  if a['jitter'][3] > 0.5:
    raise UserError(
      f'augment.jitter is {tuple(a["jitter"])}; expected at most 0.5 of a turn for the hue, its last'
    )
  if not 0 < a['blur_sigma'][0] <= a['blur_sigma'][1]:
    raise UserError(
      f'augment.blur_sigma is {tuple(a["blur_sigma"])}; expected (low, high) with 0 < low ≤ high'
    )


def _each(value: jax.Array | float) -> jax.Array:
  """Returns a number, or one per picture [N], as float32 that broadcasts against [N, H, W, 3]."""
  return jnp.asarray(value, jnp.float32).reshape(-1, 1, 1, 1)


def _blend(x: jax.Array, other: jax.Array, factor: jax.Array | float) -> jax.Array:
  """Returns factor · x + (1 − factor) · other, cut to 0..255: 1 is x, 0 the other, above 1 away from it."""
  f = _each(factor)
  return jnp.clip(f * x + (1.0 - f) * other, 0.0, 255.0)


def grey(x: jax.Array) -> jax.Array:
  """Returns the brightness of pixels [..., 3] as [..., 1]."""
  r, g, b = (x[..., c : c + 1] * share for c, share in enumerate(GREY))
  return r + g + b


def grayscale(x: jax.Array) -> jax.Array:
  """Returns pictures [N, H, W, 3] without colour, all three channels alike."""
  return jnp.broadcast_to(grey(x), x.shape)


def adjust_brightness(x: jax.Array, factor: jax.Array | float) -> jax.Array:
  """Blends pictures [N, H, W, 3] with black; the factor, a number or float [N], is 0 for black and 1 for the picture itself."""
  return _blend(x, jnp.zeros(()), factor)


def adjust_contrast(x: jax.Array, factor: jax.Array | float) -> jax.Array:
  """Blends pictures [N, H, W, 3] with the mean of their own grey; factor as in `adjust_brightness`."""
  return _blend(x, grey(x).mean(axis=(1, 2, 3), keepdims=True), factor)


def adjust_saturation(x: jax.Array, factor: jax.Array | float) -> jax.Array:
  """Blends pictures [N, H, W, 3] with their greyscale; factor as in `adjust_brightness`."""
  return _blend(x, grey(x), factor)


def adjust_hue(x: jax.Array, shift: jax.Array | float) -> jax.Array:
  """Turns the hue of pictures [N, H, W, 3] by a shift, a number or float [N] of −.5..0.5 of a turn, in HSV space."""
  r, g, b = x[..., 0], x[..., 1], x[..., 2]
  value = jnp.maximum(jnp.maximum(r, g), b)
  chroma = value - jnp.minimum(jnp.minimum(r, g), b)
  safe = jnp.where(chroma > 0, chroma, 1.0)
  sixth = jnp.where(
    value == r, (g - b) / safe, jnp.where(value == g, 2.0 + (b - r) / safe, 4.0 + (r - g) / safe)
  )
  sixth = sixth + 6.0 * _each(shift)[..., 0]
  # each channel is the value less as much of the chroma as its place on the circle of six is far from where it is whole
  places = [jnp.mod(sixth + start, 6.0) for start in (5.0, 3.0, 1.0)]
  channels = [value - chroma * jnp.clip(jnp.minimum(k, 4.0 - k), 0.0, 1.0) for k in places]
  return jnp.stack(channels, axis=-1)


def gaussian_blur(x: jax.Array, sigma: jax.Array | float) -> jax.Array:
  """Blurs pictures [N, H, W, 3] with a Gaussian, of which what lies outside the picture is left out (the rest adds up to 1).

  Args:
    x: float32, any range.
    sigma: standard deviation in pixels, > 0, a number or float [N].
  """

  def weights(side: int) -> jax.Array:  # [N or 1, side, side]
    place = jnp.arange(side, dtype=jnp.float32)
    distance = (place[:, None] - place[None, :])[None] / _each(sigma)[..., 0]
    w = jnp.exp(-0.5 * distance * distance)
    return w / w.sum(axis=-1, keepdims=True)

  N, H, W, _ = x.shape
  rows, columns = (jnp.broadcast_to(weights(side), (N, side, side)) for side in (H, W))
  x = jnp.matmul(rows, x.reshape(N, H, -1), precision=EXACT).reshape(x.shape)
  return jnp.einsum('now,nhwc->nhoc', columns, x, precision=EXACT)


def blur3(x: jax.Array, sigma: jax.Array | float) -> jax.Array:
  """Blurs pictures [N, H, W, 3] with a Gaussian of three pixels each way, mirrored at the edges (torchvision's, kernel_size = 3).

  Args:
    x: float32, any range.
    sigma: standard deviation in pixels, > 0, a number or float [N].
  """
  side = jnp.exp(-0.5 / _each(sigma) ** 2)
  for axis in (1, 2):
    n = x.shape[axis]
    padded = jnp.pad(x, [(1, 1) if k == axis else (0, 0) for k in range(4)], mode='reflect')
    before, after = (jax.lax.slice_in_dim(padded, k, k + n, axis=axis) for k in (0, 2))
    x = (x + side * (before + after)) / (1.0 + 2.0 * side)
  return x


def solarise(x: jax.Array, threshold: jax.Array | float = 128.0) -> jax.Array:
  """Inverts the values of pictures [N, H, W, 3] from a threshold on, a number or float [N] of 0..255."""
  return jnp.where(x >= _each(threshold), 255.0 - x, x)


JITTERS: tuple[Callable[[jax.Array, jax.Array], jax.Array], ...] = (
  adjust_brightness,
  adjust_contrast,
  adjust_saturation,
  adjust_hue,
)


def jitter(x: jax.Array, order: jax.Array, factors: jax.Array) -> jax.Array:
  """Applies the four of JITTERS one after another.

  Args:
    x: float32 [N, H, W, 3], 0..255.
    order: int [4], a permutation of 0..3: which of them is first, second, …
    factors: float32 [4, N], of each of JITTERS in its own place.
  """

  def one(x: jax.Array, which: jax.Array) -> tuple[jax.Array, None]:
    return sharding.along_batch(jax.lax.switch(which, JITTERS, x, factors[which])), None

  return jax.lax.scan(one, x, order)[0]


def _some(key: jax.Array, x: jax.Array, changed: jax.Array, probability: float) -> jax.Array:
  """Returns each picture changed with a probability, else as it was."""
  return jnp.where(_each(jax.random.bernoulli(key, probability, x.shape[:1])) > 0, changed, x)


def random_jitter(key: jax.Array, x: jax.Array, probability: float, strengths: Sequence[float]) -> jax.Array:
  """Jitters each picture with a probability (torchvision's ColorJitter inside its RandomApply).

  Args:
    key: of the whole batch. It also draws the order of the four changes: one for all pictures of a call, where torchvision draws
      one for each; a picture alone is distributed as there.
    x: float32 [N, H, W, 3], 0..255.
    probability: of a picture.
    strengths: of brightness, contrast, saturation (the factor is uniform in [max(0, 1 − s), 1 + s]) and hue (in [−s, s]).
  """
  order_key, factor_key, some_key = jax.random.split(key, 3)
  s = jnp.asarray(strengths, jnp.float32)[:, None]
  low, high = jnp.maximum(1.0 - s, 0.0).at[3].set(-s[3]), (1.0 + s).at[3].set(s[3])
  factors = low + (high - low) * jax.random.uniform(factor_key, (4, x.shape[0]))
  jittered = jitter(x, jax.random.permutation(order_key, 4), factors)
  return _some(some_key, x, jittered, probability)


def random_grayscale(key: jax.Array, x: jax.Array, probability: float) -> jax.Array:
  """Takes the colour out of each picture [N, H, W, 3] with a probability."""
  return _some(key, x, grayscale(x), probability)


def random_blur(key: jax.Array, x: jax.Array, probability: float, sigma: Sequence[float]) -> jax.Array:
  """Blurs each picture [N, H, W, 3] with a probability, its sigma uniform between two bounds.

  The bounds are pixels of a picture 224 wide, as SimCLR and MoCo v3 give them; a picture of another width is blurred by as much of its
  width: at 32 pixels 2 become .29, which changes next to nothing (SimCLR leaves the blur out there).
  """
  sigma_key, some_key = jax.random.split(key)
  low, high = (s * x.shape[2] / BLUR_AT for s in sigma)
  drawn = jax.random.uniform(sigma_key, x.shape[:1], minval=low, maxval=high)
  return _some(some_key, x, gaussian_blur(x, drawn), probability)


def random_blur3(key: jax.Array, x: jax.Array, probability: float, sigma: Sequence[float]) -> jax.Array:
  """Blurs each picture [N, H, W, 3] over three pixels with a probability, its sigma uniform between two bounds in pixels."""
  sigma_key, some_key = jax.random.split(key)
  drawn = jax.random.uniform(sigma_key, x.shape[:1], minval=sigma[0], maxval=sigma[1])
  return _some(some_key, x, blur3(x, drawn), probability)


def random_solarise(key: jax.Array, x: jax.Array, probability: float) -> jax.Array:
  """Solarises each picture [N, H, W, 3], from 128 on, with a probability."""
  return _some(key, x, solarise(x), probability)


def random_views(
  key: jax.Array,
  images: jax.Array,
  size: int,
  a: Mapping[str, Any],
  blur: Sequence[float],
  solarise: Sequence[float],
) -> jax.Array:
  """Returns V views of each picture as SimCLR and MoCo v3 contrast them: crops in other colours, flipped; float32 [B, V, S, S, 3], normalised.

  Args:
    key: of the whole batch.
    images: uint8 [B, H, W, 3]; or [B, V, S, S, 3], cropped already.
    size: of a view, S.
    a: the section `augment`.
    blur, solarise: probabilities in each of the views.
  """
  crop_key, flip_key, *keys = jax.random.split(key, 2 + len(blur))
  if images.ndim == 4:
    how = (a['scale'], a['ratio'], a['interpolation'])
    images = augment.random_resized_crop(crop_key, images, len(blur), size, *how)
  views = []
  for v, view_key in enumerate(keys):
    jitter_key, grey_key, blur_key, solarise_key = jax.random.split(view_key, 4)
    x = images[:, v].astype(jnp.float32)
    x = random_jitter(jitter_key, x, a['jitter_probability'], a['jitter'])
    x = random_grayscale(grey_key, x, a['grayscale'])
    x = random_blur(blur_key, x, blur[v], a['blur_sigma'])
    views.append(random_solarise(solarise_key, x, solarise[v]))
  flipped = augment.random_flip(flip_key, jnp.stack(views, axis=1), a['flip'])
  return augment.normalise(flipped, a['mean'], a['std'])

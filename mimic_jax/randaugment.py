"""RandAugment (arXiv 1909.13719) of a batch on the device, as timm's `rand-m9-mstd0.5-inc1` has it; grey levels as Pillow computes them.

Each picture passes through `count` operations, one after the other, each drawn anew from all fifteen and left out half of the
time. Under vmap every branch of a choice is computed for every picture, so there is no branch for each operation, but one for each
of three kinds: a table of grey levels, a blend with another picture, a map of the coordinates.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

# timm's list: by table to 'solarise_add', blends to 'sharpness', then those that resample
OPERATIONS = (
  'auto_contrast',
  'equalise',
  'invert',
  'posterise',
  'solarise',
  'solarise_add',
  'saturation',
  'contrast',
  'brightness',
  'sharpness',
  'rotate',
  'shear_x',
  'shear_y',
  'translate_x',
  'translate_y',
)
NONE = len(OPERATIONS)  # the number of no operation
APPLIED = 0.5  # probability that an operation that was drawn is applied (timm)
MOST = 10.0  # magnitude at which an operation is at its strongest

RANGES = {'augment.rand_ops': (0, 16), 'augment.rand_magnitude': (0, MOST), 'augment.rand_std': (0, MOST)}

# What the strongest of each is.
DEGREES = 30.0
SHEAR = 0.3
SHIFT = 0.45  # of the side
ENHANCE = 0.9  # factors 0.1 and 1.9
ADDED = 110  # grey levels, to those below 128


def _is(operation: jax.Array, *names: str) -> jax.Array:
  """Returns whether an operation's number is that of one of these names."""
  return jnp.isin(operation, jnp.array([OPERATIONS.index(name) for name in names]))


def draw(
  key: jax.Array, shape: Sequence[int], magnitude: float, std: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Draws operations.

  Args:
    key: of the whole batch.
    shape: of what is returned.
    magnitude: mean of the normal distribution that magnitudes are of, clipped to 0..10.
    std: its standard deviation.

  Returns:
    int32, the operation by its place in OPERATIONS or NONE; float32, its strength, 0..1; bool, whether in the other direction,
    where it has two.
  """
  which, applied, strength, direction = jax.random.split(key, 4)
  operation = jax.random.randint(which, shape, 0, len(OPERATIONS))
  operation = jnp.where(jax.random.bernoulli(applied, APPLIED, shape), operation, NONE)
  level = jnp.clip(magnitude + std * jax.random.normal(strength, shape), 0.0, MOST) / MOST
  return operation, level, jax.random.bernoulli(direction, 0.5, shape)


def _coordinates(operation: jax.Array, amount: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
  """Returns where each pixel of a geometric operation's result is taken from, float32 [size, size] down and across.

  In pixels of the source, whose first has its centre at 0.5. `amount` is signed, −1..1.
  """
  turn = jnp.where(_is(operation, 'rotate'), -jnp.deg2rad(DEGREES) * amount, 0.0)
  along = jnp.where(_is(operation, 'shear_x'), SHEAR * amount, 0.0)
  down = jnp.where(_is(operation, 'shear_y'), SHEAR * amount, 0.0)
  right = jnp.where(_is(operation, 'translate_x'), SHIFT * size * amount, 0.0)
  below = jnp.where(_is(operation, 'translate_y'), SHIFT * size * amount, 0.0)
  at = jnp.arange(size) + 0.5
  # a rotation is about the centre, a shear along the first row or column
  y, x, c = at[:, None], at[None, :], size / 2
  cos, sin = jnp.cos(turn), jnp.sin(turn)
  return (
    c + cos * (y - c) - sin * (x - c) + down * x + below,
    c + cos * (x - c) + sin * (y - c) + along * y + right,
  )


def _taps(distance: jax.Array, interpolation: str) -> dict[int, jax.Array]:
  """Returns the weights of the pixels around a place, by their offset from the one before it, as Pillow's transform has them.

  Args:
    distance: float [...], 0..1, from that pixel's centre.
    interpolation: 'bilinear' or 'bicubic', which is the cubic with a = −1 here (−0.5 where Pillow resizes).
  """
  d = distance
  if interpolation == 'bilinear':
    return {0: 1 - d, 1: d}
  d2, d3 = d * d, d * d * d
  return {-1: -d + 2 * d2 - d3, 0: 1 - 2 * d2 + d3, 1: d + d2 - d3, 2: d3 - d2}


def _warped(x: jax.Array, yx: tuple[jax.Array, jax.Array], interpolation: str, fill: jax.Array) -> jax.Array:
  """Resamples a picture [S, S, 3] at the coordinates; `fill` [3] where they are outside."""
  size = x.shape[0]
  inside = jnp.stack([(v >= 0) & (v < size) for v in yx]).all(0)
  before = [jnp.floor(v - 0.5) for v in yx]
  rows, columns = (_taps(v - 0.5 - b, interpolation) for v, b in zip(yx, before))
  before = [b.astype(jnp.int32) for b in before]
  total = jnp.zeros_like(x)
  for i, row in rows.items():
    for j, column in columns.items():
      taken = x[jnp.clip(before[0] + i, 0, size - 1), jnp.clip(before[1] + j, 0, size - 1)]
      total += (row * column)[..., None] * taken
  # Weights add up to 1 but for float32's rounding, which is to cost no level where all is of one tone.
  total = jnp.floor(jnp.clip(total + 1e-3, 0, 255))
  return jnp.where(inside[..., None], total, fill.reshape(1, 1, 3))


def _table(x: jax.Array, operation: jax.Array, level: jax.Array) -> jax.Array:
  """Returns what becomes of each grey level, float32 [256, 3], in a picture [S, S, 3]."""
  grey = jnp.arange(256)[:, None]
  same = jnp.broadcast_to(grey, (256, 3))
  flat = x.astype(jnp.int32).reshape(-1, 3)
  low, high = flat.min(0, keepdims=True), flat.max(0, keepdims=True)
  stretched = jnp.clip((grey - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
  counts = jax.vmap(lambda channel: jnp.bincount(channel, length=256), 1, 1)(flat)
  step = (flat.shape[0] - jnp.take_along_axis(counts, high, 0)) // 255
  below = jnp.cumsum(counts, 0) - counts
  equal = jnp.clip((step // 2 + below) // jnp.maximum(step, 1), 0, 255)
  bits = 4 - jnp.floor(4 * level).astype(jnp.int32)
  threshold = 256 - jnp.floor(256 * level).astype(jnp.int32)
  added = jnp.floor(ADDED * level).astype(jnp.int32)
  tables = {
    'auto_contrast': jnp.where(high > low, stretched, same),
    'equalise': jnp.where(step > 0, equal, same),
    'invert': 255 - same,
    'posterise': same >> (8 - bits) << (8 - bits),
    'solarise': jnp.where(same < threshold, same, 255 - same),
    'solarise_add': jnp.where(same < 128, same + added, same),
  }
  return jnp.select([_is(operation, name) for name in tables], list(tables.values()), same).astype(x.dtype)


def _grey(x: jax.Array) -> jax.Array:
  """Returns the luma of a picture [S, S, 3] as Pillow's mode L has it, float32 [S, S, 1]."""
  luma = x.astype(jnp.int32) @ jnp.array([19595, 38470, 7471])
  return ((luma + 2**15) >> 16).astype(x.dtype)[..., None]


def _smooth(x: jax.Array) -> jax.Array:
  """Returns Pillow's ImageFilter.SMOOTH of a picture [S, S, 3]: 3 × 3, the middle counts five times; its edge stays."""
  rows = x[:-2] + x[1:-1] + x[2:]
  total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * x[1:-1, 1:-1]
  return x.at[1:-1, 1:-1].set(jnp.floor(total / 13 + 0.5))


def _blended(x: jax.Array, operation: jax.Array, amount: jax.Array) -> jax.Array:
  """Saturation, contrast, brightness or sharpness by a factor of 1 + 0.9 · `amount`, or the picture [S, S, 3] itself."""
  grey = _grey(x)
  others = {
    'saturation': grey,
    'contrast': jnp.floor(grey.mean() + 0.5),
    'brightness': jnp.zeros((), x.dtype),
    'sharpness': _smooth(x),
  }
  kinds = [_is(operation, name) for name in others]
  other = jnp.select(kinds, [jnp.broadcast_to(v, x.shape) for v in others.values()], x)
  return jnp.floor(jnp.clip(other + (1 + ENHANCE * amount) * (x - other), 0, 255))


def apply(
  x: jax.Array,
  operation: jax.Array,
  level: jax.Array,
  other_way: jax.Array,
  interpolation: str,
  fill: jax.Array,
) -> jax.Array:
  """Returns a picture after one operation.

  Args:
    x: float32 [S, S, 3], whole numbers of 0..255.
    operation: int32 [], its place in OPERATIONS, or NONE.
    level: float32 [], strength, 0..1.
    other_way: bool [], to the left or up, clockwise, or darker, greyer and so on.
    interpolation: 'bilinear' or 'bicubic', of those that resample.
    fill: float32 [3], what comes in from outside.

  Returns:
    Likewise; within a grey level of Pillow's, which rounds down as this does.
  """
  amount = jnp.where(other_way, -level, level)
  # Each from what came in, not one after the other: XLA would compute the first anew wherever the next reads it.
  warped = _warped(x, _coordinates(operation, amount, x.shape[0]), interpolation, fill)
  levels = x.astype(jnp.int32).reshape(-1, 3)
  looked_up = jnp.take_along_axis(_table(x, operation, level), levels, axis=0).reshape(x.shape)
  by_table = operation < OPERATIONS.index('saturation')
  geometric = (operation >= OPERATIONS.index('rotate')) & (operation < NONE)
  return jnp.select([by_table, geometric], [looked_up, warped], _blended(x, operation, amount))


def random_augment(
  key: jax.Array,
  x: jax.Array,
  *,
  count: int,
  magnitude: float,
  std: float,
  interpolation: str,
  fill: Sequence[float],
) -> jax.Array:
  """Puts each view of each picture through `count` random operations.

  Args:
    key: of the whole batch; what a picture gets depends on its place in the batch, not on how the batch is sharded.
    x: float [B, V, S, S, 3], 0..255; rounded to whole grey levels first.
    count: operations (static).
    magnitude: see `draw`.
    std: likewise.
    interpolation: 'bilinear' or 'bicubic' (static).
    fill: grey levels of the three channels, which is what comes in from outside.

  Returns:
    float32 [B, V, S, S, 3], whole numbers of 0..255.
  """
  x = jnp.clip(jnp.round(x.astype(jnp.float32)), 0, 255)
  colour = jnp.asarray(fill, jnp.float32)

  def one(x: jax.Array, operation: jax.Array, level: jax.Array, other_way: jax.Array) -> jax.Array:
    return apply(x, operation, level, other_way, interpolation, colour)

  every = jax.vmap(jax.vmap(one))
  return jax.lax.scan(
    lambda x, key: (every(x, *draw(key, x.shape[:2], magnitude, std)), None), x, jax.random.split(key, count)
  )[0]

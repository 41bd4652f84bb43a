"""What HMTL's tasks make of pictures (arXiv 2105.06421): puzzles of tiles, and holes. Pure functions; N = g² tiles, row by row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mimic_jax.models import vit

PERMUTATIONS = ('all', 'far')
HOLES = ('square', 'tiles')
FAR = 100  # permutations of the fixed list
FAR_SEED = 0


@functools.cache
def far_permutations(tiles: int) -> np.ndarray:
  """Returns FAR permutations of `tiles` (of four all 24), int32 [≤ FAR, N], far apart in Hamming distance.

  Each next one is, of 20,000 drawn, that whose least distance to those chosen is the largest, as jigsaw papers choose theirs; always the same list.
  """
  rng = np.random.default_rng([FAR_SEED, tiles])
  pool = np.unique(rng.permuted(np.tile(np.arange(tiles), (20_000, 1)), axis=1), axis=0)
  chosen = [pool[0]]
  least = np.full(len(pool), tiles + 1)
  while len(chosen) < min(FAR, len(pool)):
    least = np.minimum(least, (pool != chosen[-1]).sum(axis=1))
    chosen.append(pool[int(np.argmax(least))])
  return np.array(chosen, np.int32)


def orders(key: jax.Array, count: int, tiles: int, kind: str) -> jax.Array:
  """Draws which tile stands at each place of `count` pictures, int32 [count, N]: uniform over all N! ('all') or over `far_permutations`."""
  if kind == 'all':
    return jnp.argsort(jax.random.uniform(key, (count, tiles)), axis=1).astype(jnp.int32)
  table = far_permutations(tiles)
  return jnp.asarray(table)[jax.random.randint(key, (count,), 0, len(table))]


def puzzled(images: jax.Array, order: jax.Array, offsets: jax.Array | None = None, gap: int = 0) -> jax.Array:
  """Puts tile order[b, k] of picture b at place k, row by row.

  Args:
    images: [B, S, S, 3]; S a multiple of g.
    order: int [B, g²].
    offsets: int [B, g², 2], 0..gap: where in each tile, before it is moved, a square `gap` pixels narrower lies that is kept; the rest of the tile
      is filled by mirroring it. None: tiles as they are.
    gap: pixels, at most half a tile.

  Returns:
    [B, S, S, 3].
  """
  g = round(order.shape[1] ** 0.5)
  side = images.shape[1] // g
  tiles = vit.patchify(images, side)
  if offsets is not None:
    square = tiles.reshape(*tiles.shape[:2], side, side, -1)
    rows, columns = (_mirrored(offsets[..., axis], side, side - gap) for axis in (0, 1))
    square = jnp.take_along_axis(square, rows[:, :, :, None, None], axis=2)
    square = jnp.take_along_axis(square, columns[:, :, None, :, None], axis=3)
    tiles = square.reshape(tiles.shape)
  return vit.unpatchify(vit.gather_tokens(tiles, order), side, (g, g))


def _mirrored(offset: jax.Array, side: int, kept: int) -> jax.Array:
  """Returns where each of `side` pixels is taken from, int [B, N, side]: from offset … offset + kept − 1, mirrored at both ends."""
  place = jnp.arange(side)[None, None] - offset[..., None]
  place = jnp.where(place < 0, -1 - place, place)
  return offset[..., None] + jnp.where(place >= kept, 2 * kept - 1 - place, place)


def holes(key: jax.Array, count: int, size: int, kind: str, g: int) -> jax.Array:
  """Draws what is removed of each picture, bool [count, S, S]: a square of a quarter of the side at a uniform place, or each of g² tiles with probability ½."""
  if kind == 'tiles':
    gone = jax.random.bernoulli(key, 0.5, (count, g, g))
    return jnp.repeat(jnp.repeat(gone, size // g, axis=1), size // g, axis=2)
  side = size // 4
  first = jax.random.randint(key, (count, 2, 1), 0, size - side + 1)
  along = jnp.arange(size)[None, None] - first
  inside = (along >= 0) & (along < side)
  return inside[:, 0, :, None] & inside[:, 1, None, :]

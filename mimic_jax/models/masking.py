"""Which patches of an image are removed, as MAE draws it (arXiv 2111.06377; method.md §1). B images, L patches, K kept."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

EVALUATION_SEED = 0  # of the masks in evaluation, which are the same in every run


class Masks(NamedTuple):
  """keep: int [B, K], the kept patches; restore: int [B, L], each patch's rank; mask: bool [B, L], True = removed."""

  keep: jax.Array
  restore: jax.Array
  mask: jax.Array


def kept_patches(L: int, ratio: float) -> int:
  """Returns how many of L patches stay when the share `ratio` is removed: int(L·(1 − ratio)), as MAE rounds."""
  return int(L * (1 - ratio))


def masks_from_noise(noise: jax.Array, ratio: float) -> Masks:
  """Keeps the patches with the least noise, in its order: argsort of noise [B, L] (method.md §1)."""
  kept = kept_patches(noise.shape[1], ratio)
  order = jnp.argsort(noise, axis=1)
  restore = jnp.argsort(order, axis=1)
  return Masks(order[:, :kept], restore, restore >= kept)


def mask_ids(key: jax.Array, B: int, L: int, ratio: float) -> Masks:
  """Draws which patches of each of B images are removed, uniformly, from one key for the whole (global) batch."""
  return masks_from_noise(jax.random.uniform(key, (B, L)), ratio)


def fixed_masks(index: jax.Array, L: int, ratio: float) -> Masks:
  """Returns the masks of an evaluation: a row depends on its picture's index [B] in the source alone, whatever the batch."""
  key = jax.random.key(EVALUATION_SEED)
  noise = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (L,)))(index)
  return masks_from_noise(noise, ratio)

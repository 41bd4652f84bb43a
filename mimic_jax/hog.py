"""Histograms of oriented gradients (Dalal and Triggs 2005), as LocalMIM predicts them (arXiv 2303.05251 §4.1; method.md §3).

Each colour by itself: Sobel gradients, orientation without sign in hard bins, the magnitudes averaged over cells, each cell's
histogram scaled to length 1. Neither the mean nor the contrast of a picture changes them. All in float32.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# the least length that a histogram is divided by (PyTorch's normalize); one of zeros stays zero
EPSILON = 1e-12


def gradients(images: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns Sobel's gradients along rows (downwards) and along columns (to the right), float32 [B, H, W, C] each.

  The picture is mirrored about its border pixels, so that there is no gradient across the border.
  """
  x = jnp.pad(images.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), mode='reflect')
  # differences first: where two pixels are equal the gradient is exactly 0, which is an edge between bins
  down, right = x[:, 2:] - x[:, :-2], x[:, :, 2:] - x[:, :, :-2]
  return (
    down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:],
    right[:, :-2] + 2 * right[:, 1:-1] + right[:, 2:],
  )


def hog(images: jax.Array, cells: Sequence[int], bins: int) -> list[jax.Array]:
  """Returns the histograms of pictures over cells of several sizes.

  Args:
    images: [B, H, W, C]; any offset and scale of a colour.
    cells: sides in pixels, each dividing H and W and a multiple of the smallest.
    bins: of orientation: bin k holds atan2(right, down) mod π from k·π/bins to below (k + 1)·π/bins; bin 0 begins at a gradient
      straight down.

  Returns:
    For each size float32 [B, H/c, W/c, C, bins], of length 1 along the last axis, or 0 where the cell is flat.
  """
  down, right = gradients(images)
  # a gradient and its opposite fall into one bin whatever the rounding: half of them are turned about first
  angle = jnp.arctan2(jnp.abs(right), jnp.where(right == 0, jnp.abs(down), jnp.sign(right) * down))
  k = jnp.minimum(jnp.floor(angle * (bins / np.pi)).astype(jnp.int32), bins - 1)
  binned = jax.nn.one_hot(k, bins) * jnp.sqrt(down * down + right * right)[..., None]
  finest = min(cells)
  means = _pool(binned, finest)  # a larger cell's mean is that of the smaller cells in it
  return [_unit(_pool(means, c // finest)) for c in cells]


def _pool(x: jax.Array, side: int) -> jax.Array:
  """Returns the means of x [B, H, W, …] over squares of `side`."""
  B, H, W = x.shape[:3]
  return x.reshape(B, H // side, side, W // side, side, *x.shape[3:]).mean(axis=(2, 4))


def _unit(x: jax.Array) -> jax.Array:
  return x / jnp.maximum(jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True)), EPSILON)


def glyphs(histograms: jax.Array, side: int) -> jax.Array:
  """Draws histograms as pictures: in each cell a stroke for each bin, along the edge that its gradient crosses.

  Args:
    histograms: float [B, h, w, C, bins].
    side: of a cell's picture, in pixels.

  Returns:
    float32 [B, h·side, w·side, C] of 0 to 1: at each pixel the strongest stroke.
  """
  B, h, w, C, bins = histograms.shape
  angle = (np.arange(bins) + 0.5) * np.pi / bins
  row, column = np.mgrid[:side, :side] - (side - 1) / 2
  across = row[..., None] * np.cos(angle) + column[..., None] * np.sin(angle)  # pixels from the stroke
  strokes = jnp.asarray(np.clip(1.0 - np.abs(across), 0.0, 1.0), jnp.float32)[None, None, :, None, :, None]
  drawn = jnp.clip(histograms.astype(jnp.float32), 0.0, 1.0)[:, :, None, :, None] * strokes
  return drawn.max(axis=-1).reshape(B, h * side, w * side, C)

"""Histograms of oriented gradients against float64 NumPy from the definition, scikit-image where the options meet, and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimic_jax import hog

CELLS, BINS = (8, 2, 4), 9
histograms = jax.jit(hog.hog, static_argnums=(1, 2))
SOBEL = np.array([[-1, -2, -1], [0, 0, 0], [1, 2, 1]])  # along rows


def pictures(rng, *shape):
  """Whole numbers of few levels: their gradients are exact, and none but those on it is near an edge between bins."""
  return rng.integers(0, 32, shape).astype(np.float32)


def by_definition(image, cell):
  """Returns [H/c, W/c, C, bins] of one picture, float64, pixel by pixel."""
  H, W, C = image.shape
  x = np.pad(image.astype(np.float64), ((1, 1), (1, 1), (0, 0)), mode='reflect')
  found = np.zeros((H // cell, W // cell, C, BINS))
  for i, j, c in np.ndindex(H, W, C):
    window = x[i : i + 3, j : j + 3, c]
    down, right = (SOBEL * window).sum(), (SOBEL.T * window).sum()
    k = int(np.floor(np.arctan2(right, down) % np.pi / np.pi * BINS)) % BINS
    found[i // cell, j // cell, c, k] += np.hypot(down, right) / cell**2
  return found / np.maximum(np.sqrt((found**2).sum(-1, keepdims=True)), 1e-12)


def test_histograms_are_those_of_the_definition(rng):
  images = pictures(rng, 2, 16, 24, 3)
  for cell, found in zip(CELLS, histograms(images, CELLS, BINS), strict=True):
    assert found.dtype == jnp.float32
    expected = np.stack([by_definition(image, cell) for image in images])
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_histograms_are_scikit_images_of_pictures_whose_sobel_gradients_are_its_differences(rng):
  """Rows plus columns: Sobel's gradient is four times the central difference, which scikit-image has. Its bins begin at a gradient
  to the right, so that it is given the transposed picture."""
  skimage = pytest.importorskip('skimage.feature')
  images = pictures(rng, 1, 16, 1, 3) + pictures(rng, 1, 1, 16, 3)
  for cell, found in zip(CELLS, histograms(images, CELLS, BINS), strict=True):
    for c in range(3):
      theirs = skimage.hog(
        images[0, :, :, c].T.astype(np.float64),
        orientations=BINS,
        pixels_per_cell=(cell, cell),
        cells_per_block=(1, 1),
        block_norm='L2',
        feature_vector=False,
      )
      np.testing.assert_allclose(found[0, :, :, c], theirs[:, :, 0, 0].transpose(1, 0, 2), atol=2e-6)


def test_histograms_are_those_of_localmims_layer_in_pytorch(rng):
  torch = pytest.importorskip('torch')
  images = pictures(rng, 2, 16, 16, 3)
  down = torch.from_numpy(-SOBEL.astype(np.float64))  # correlated with the negative, as published
  filters = torch.stack([down.T, down])[:, None]
  x = torch.from_numpy(images).double().permute(3, 0, 1, 2)[:, :, None]
  for cell, found in zip(CELLS, histograms(images, CELLS, BINS), strict=True):
    for c in range(3):
      padded = torch.nn.functional.pad(x[c], (1, 1, 1, 1), mode='reflect')
      g = torch.nn.functional.conv2d(padded, filters)
      k = (torch.atan2(g[:, :1], g[:, 1:]) / torch.pi * BINS).floor().long() % BINS
      binned = torch.zeros(2, BINS, 16, 16, dtype=torch.float64).scatter_(1, k, g.norm(dim=1, keepdim=True))
      pooled = torch.nn.functional.avg_pool2d(binned, cell)
      expected = torch.nn.functional.normalize(pooled, dim=1).permute(0, 2, 3, 1)
      np.testing.assert_allclose(found[:, :, :, c], expected.numpy(), atol=5e-6)


def test_offset_contrast_and_sign_change_nothing_and_a_flat_cell_is_zero(rng):
  images = pictures(rng, 1, 16, 16, 3)
  images[:, :, 8:] = images[:, :, 8:9].repeat(
    8, axis=2
  )  # no gradient to the right: the edge between two bins
  images[:, :8, 8:] = 7.0
  coarse, fine, _ = histograms(images, CELLS, BINS)
  np.testing.assert_array_equal(fine[:, :3, 5:], 0.0)
  np.testing.assert_allclose(jnp.linalg.norm(coarse[:, 1:], axis=-1), 1.0, atol=1e-6)
  np.testing.assert_array_equal(fine[:, 5:, 5:, :, 1:], 0.0)
  np.testing.assert_array_equal(histograms(31.0 - images, CELLS, BINS)[0], coarse)
  contrast = np.asarray([2.0, 0.5, 4.0], np.float32)
  np.testing.assert_allclose(histograms(images * contrast + 64.0, CELLS, BINS)[0], coarse, atol=1e-6)


def test_a_glyph_is_a_stroke_along_the_edge():
  ramp = np.broadcast_to(np.arange(15, dtype=np.float32)[None, None, :, None], (1, 15, 15, 1))
  (found,) = hog.hog(ramp, (5,), BINS)
  picture = np.asarray(hog.glyphs(found, 5))
  assert picture.shape == (1, 15, 15, 1)
  np.testing.assert_allclose(picture[0, :, :, 0], np.tile([0, 0, 1, 0, 0], (15, 3)), atol=1e-6)
  turned = hog.glyphs(hog.hog(ramp.swapaxes(1, 2), (5,), 1)[0], 5)  # one bin: its middle is a quarter turn
  np.testing.assert_allclose(turned[0], picture[0], atol=1e-6)

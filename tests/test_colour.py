"""Colour against PIL, colorsys and SciPy, and how often and how far the random ones go."""

import colorsys
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from PIL import Image, ImageEnhance, ImageOps

from mimic_jax import colour


@pytest.fixture
def pixels(rng):
  """Five pictures of whole grey levels, with greys, black, white and saturated colours among them."""
  x = rng.integers(0, 256, (5, 9, 12, 3))
  x[0, :4] = x[0, :4, :, :1]
  x[1, 0, :4] = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 255]]
  return x.astype(np.float32)


def each(x, change):
  """float64 [N, H, W, 3] of what `change` makes of each PIL picture."""
  return np.stack([np.asarray(change(Image.fromarray(i.astype(np.uint8)))) for i in x]).astype(np.float64)


@pytest.mark.parametrize(
  ('ours', 'theirs'),
  [
    (colour.adjust_brightness, ImageEnhance.Brightness),
    (colour.adjust_contrast, ImageEnhance.Contrast),
    (colour.adjust_saturation, ImageEnhance.Color),
  ],
)
def test_enhancements_are_pils_but_for_its_rounding(ours, theirs, pixels, rng):
  factors = rng.uniform(0, 1.9, 5).astype(np.float32)
  expected = np.concatenate(
    [each(x[None], lambda i, f=f: theirs(i).enhance(f)) for x, f in zip(pixels, factors, strict=True)]
  )
  # PIL rounds the grey (and its mean) that it blends with, and cuts off the result's fraction
  assert np.abs(np.asarray(jax.jit(ours)(pixels, factors)) - expected).max() < 2.1
  np.testing.assert_allclose(ours(pixels, 1.0), pixels, atol=1e-4)
  assert np.abs(np.asarray(ours(pixels, 0.4)) - each(pixels, lambda i: theirs(i).enhance(0.4))).max() < 2.1


def test_greyscale_and_solarising_are_pils(pixels, rng):
  grey = each(pixels, lambda i: i.convert('L').convert('RGB'))
  assert np.abs(np.asarray(colour.grayscale(pixels)) - grey).max() < 0.6
  np.testing.assert_array_equal(colour.solarise(pixels), each(pixels, ImageOps.solarize))
  thresholds = rng.integers(0, 256, 5)
  for x, t, got in zip(pixels, thresholds, colour.solarise(pixels, thresholds), strict=True):
    np.testing.assert_array_equal(got, each(x[None], lambda i, t=t: ImageOps.solarize(i, int(t)))[0])


def hue_by_colorsys(x, shift):
  out = np.empty(x.shape)
  for place in np.ndindex(x.shape[:-1]):
    h, s, v = colorsys.rgb_to_hsv(*(x[place] / 255.0).astype(np.float64))
    out[place] = colorsys.hsv_to_rgb((h + shift[place[0]]) % 1.0, s, v)
  return out * 255


def test_hue_is_that_of_colorsys(pixels, rng):
  shift = rng.uniform(-0.5, 0.5, 5).astype(np.float32)
  np.testing.assert_allclose(
    jax.jit(colour.adjust_hue)(pixels, shift), hue_by_colorsys(pixels, shift), atol=1e-3
  )
  np.testing.assert_allclose(colour.adjust_hue(pixels, 0.0), pixels, atol=1e-3)


def test_blur_is_a_gaussian_of_what_lies_inside(pixels, rng):
  sigma = rng.uniform(0.1, 2.0, 5).astype(np.float32)
  got = jax.jit(colour.gaussian_blur)(pixels, sigma)
  for x, s, y in zip(pixels.astype(np.float64), sigma, got, strict=True):
    over = {'sigma': (s, s, 0), 'mode': 'constant', 'truncate': 200 / s}
    expected = scipy.ndimage.gaussian_filter(x, **over) / scipy.ndimage.gaussian_filter(
      np.ones_like(x), **over
    )
    np.testing.assert_allclose(y, expected, atol=1e-3)


def test_jitter_applies_its_changes_in_the_order_given(pixels, rng):
  factors = np.concatenate([rng.uniform(0.6, 1.4, (3, 5)), rng.uniform(-0.1, 0.1, (1, 5))]).astype(np.float32)
  run, found = jax.jit(colour.jitter), []
  for order in itertools.permutations(range(4)):
    expected = pixels
    for which in order:
      expected = colour.JITTERS[which](expected, factors[which])
    found.append(np.asarray(run(pixels, jnp.asarray(order), factors)))
    np.testing.assert_allclose(found[-1], expected, atol=2e-3)
  assert np.abs(found[0] - found[-1]).max() > 1


def test_random_changes_come_as_often_and_go_as_far_as_asked(rng):
  key, n = jax.random.key(int(rng.integers(2**31))), 4000
  x = jnp.asarray(rng.uniform(60, 120, (1, 4, 4, 3)), jnp.float32)
  x = jnp.broadcast_to(x, (n, *x.shape[1:]))

  def share(y):
    return float(np.mean(np.abs(np.asarray(y) - np.asarray(x)).max(axis=(1, 2, 3)) > 1e-3))

  error = 5 * (0.25 / n) ** 0.5
  assert share(colour.random_grayscale(key, x, 0.2)) == pytest.approx(0.2, abs=error)
  assert share(colour.random_solarise(key, 255 - x, 0.7)) == pytest.approx(0.3, abs=error)  # not turned back
  assert share(colour.random_solarise(key, x, 1.0)) == 0
  assert share(colour.random_blur(key, x, 0.1, (40, 100))) == pytest.approx(0.1, abs=error)
  assert share(colour.random_jitter(key, x, 0.8, (0.4, 0.4, 0.2, 0.1))) == pytest.approx(0.8, abs=error)
  assert share(colour.random_jitter(key, x, 1.0, (0, 0, 0, 0))) == 0
  assert share(colour.random_jitter(key, x, 0.0, (1, 1, 1, 0.5))) == 0

  factor = np.asarray(colour.random_jitter(key, x, 1.0, (0.4, 0, 0, 0)))[:, 0, 0, 0] / float(x[0, 0, 0, 0])
  assert scipy.stats.kstest(factor, scipy.stats.uniform(0.6, 0.8).cdf).pvalue > 1e-4
  red = jnp.broadcast_to(jnp.asarray([200.0, 50.0, 50.0]), x.shape)
  turned = np.asarray(colour.random_jitter(key, red, 1.0, (0, 0, 0, 0.1)))[:, 0, 0] / 255
  turns = [(colorsys.rgb_to_hsv(*rgb)[0] + 0.5) % 1 - 0.5 for rgb in turned.astype(float)]
  assert scipy.stats.kstest(turns, scipy.stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-4


def test_blur_takes_as_much_of_the_width_whatever_it_is(rng):
  key = jax.random.key(int(rng.integers(2**31)))
  for side in (32, 96):
    x = jnp.zeros((64, 1, side, 3)).at[:, :, side // 2].set(1.0)
    y = np.asarray(colour.random_blur(key, x, 1.0, (10.0, 20.0)), np.float64)[:, 0, :, 0]
    spread = np.sqrt((y * (np.arange(side) - side // 2) ** 2).sum(1) / y.sum(1)) / side * 224
    assert 9.9 < spread.min() < 12
    assert 18 < spread.max() < 20.1


def test_three_pixels_are_blurred_as_scipy_does_with_mirrored_edges(pixels, rng):
  sigmas = rng.uniform(0.3, 2, 5).astype(np.float32)
  got = np.asarray(colour.blur3(pixels, sigmas))
  for x, sigma, y in zip(pixels.astype(np.float64), sigmas, got):
    kernel = np.exp(-0.5 * (np.arange(-1, 2) / float(sigma)) ** 2)
    for axis in (0, 1):
      x = scipy.ndimage.correlate1d(x, kernel / kernel.sum(), axis=axis, mode='mirror')
    np.testing.assert_allclose(y, x, atol=1e-3)
  some = np.asarray(colour.random_blur3(jax.random.key(1), np.tile(pixels, (40, 1, 1, 1)), 0.5, (0.5, 2.0)))
  changed = (some != np.tile(pixels, (40, 1, 1, 1))).any(axis=(1, 2, 3)).mean()
  assert 0.3 < changed < 0.7

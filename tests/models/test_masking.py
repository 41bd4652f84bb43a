"""Which patches are removed: MAE's number of them, in the noise's order, each equally often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimic_jax.models import masking


@pytest.mark.parametrize(
  ('L', 'ratio', 'kept'), [(196, 0.75, 49), (16, 0.75, 4), (36, 0.6, 14), (100, 0.9, 9)]
)
def test_masks_keep_exactly_maes_number_of_patches_and_restore_them(rng, L, ratio, kept):
  assert kept == int(L * (1 - ratio))
  masks = jax.jit(masking.mask_ids, static_argnums=(1, 2, 3))(
    jax.random.key(int(rng.integers(2**31))), 6, L, ratio
  )
  keep, restore, mask = (np.asarray(a) for a in masks)
  assert keep.shape == (6, kept)
  assert restore.shape == mask.shape == (6, L)
  for b in range(6):
    assert sorted(restore[b]) == list(range(L))
    assert set(keep[b]) == set(np.flatnonzero(~mask[b]))
    np.testing.assert_array_equal(restore[b][keep[b]], np.arange(kept))
  assert not np.array_equal(keep[0], keep[1])


def test_masks_follow_the_noise_in_its_order(rng):
  noise = rng.uniform(size=(3, 16)).astype(np.float32)
  masks = masking.masks_from_noise(jnp.asarray(noise), 0.75)
  order = np.argsort(noise, axis=1)
  np.testing.assert_array_equal(masks.keep, order[:, :4])
  np.testing.assert_array_equal(masks.restore, np.argsort(order, axis=1))


def test_every_patch_is_removed_equally_often(rng):
  draws = 4096
  mask = np.asarray(
    masking.mask_ids(jax.random.key(int(rng.integers(2**31))), draws, 16, 0.75).mask, np.float64
  )
  assert np.abs(mask.mean(axis=0) - 0.75).max() < 5 * np.sqrt(0.75 * 0.25 / draws)
  pairs = (mask.T @ mask / draws)[~np.eye(16, dtype=bool)]
  expected = 12 / 16 * 11 / 15
  assert np.abs(pairs - expected).max() < 5 * np.sqrt(expected * (1 - expected) / draws)


def test_the_masks_of_an_evaluation_depend_on_a_pictures_index_alone(rng):
  index = rng.integers(0, 10_000, 6)
  masks, other = (masking.fixed_masks(jnp.asarray(i), 16, 0.75) for i in (index, index[::-1].copy()))
  np.testing.assert_array_equal(masks.mask, other.mask[::-1])
  np.testing.assert_array_equal(masks.keep, other.keep[::-1])

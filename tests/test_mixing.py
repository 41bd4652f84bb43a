"""Mixup, CutMix and their partners against NumPy, by what they must do to pixels, labels and pairs of crops."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mimic_jax import losses, mixing
from mimic_jax.runtime.errors import UserError

DEFAULTS = {
  'probability': 1.0,
  'switch_probability': 0.5,
  'mixup_alpha': 2.0,
  'cutmix_alpha': 2.0,
  'partner': 'shift',
  'coefficient': 'batch',
  'box': 'batch',
  'cutmix_label': 'area',
}


def new_key(rng):
  return jax.random.key(rng.integers(2**31))


@functools.cache
def compiled(**options):
  return jax.jit(functools.partial(mixing.mix, **{**DEFAULTS, **options}))


def mix(key, x, y, **options):
  return compiled(**options)(key, jnp.asarray(x), jnp.asarray(y))


def batch(rng, B=6, V=2, side=16, classes=5):
  """Pixels that all differ, so that where each came from can be told."""
  x = rng.permutation(B * V * side * side * 3).reshape(B, V, side, side, 3).astype(np.float32)
  return x / x.size, np.eye(classes, dtype=np.float32)[rng.integers(classes, size=B)]


def crops_of(partner):
  """For every sample the unordered pair of crops that it mixes, by brute force; a crop is (image, view)."""
  partner = np.asarray(partner)
  return {
    (i, v): frozenset([(i, v), tuple(partner[i, v].tolist())]) for i, v in np.ndindex(partner.shape[:2])
  }


@pytest.mark.parametrize('B', [2, 3, 7, 8])
def test_shift_moves_every_image_alike_and_leaves_none(rng, B):
  shifts = set()
  draw = jax.jit(lambda key: mixing.partners(key, B, 2, 'shift'))
  for key in jax.random.split(new_key(rng), 20 * B):
    partner = np.asarray(draw(key))
    np.testing.assert_array_equal(partner[:, :, 1], np.tile([0, 1], (B, 1)))
    np.testing.assert_array_equal(partner[:, 0, 0], partner[:, 1, 0])
    (shift,) = set(((partner[:, 0, 0] - np.arange(B)) % B).tolist())
    shifts.add(shift)
  assert shifts == set(range(1, B))


@pytest.mark.parametrize('V', [1, 2, 3])
def test_flip_is_timms_over_the_views_one_after_the_other(V):
  B = 5
  order = [(i, v) for v in range(V) for i in range(B)]  # the concatenation of the views
  partner = np.asarray(mixing.partners(jax.random.key(0), B, V, 'flip'))
  for j, (i, v) in enumerate(order):
    assert tuple(partner[i, v]) == order[len(order) - 1 - j]


def test_permutation_is_one_for_all_views(rng):
  partner = np.asarray(mixing.partners(new_key(rng), 30, 2, 'permutation'))
  np.testing.assert_array_equal(partner[:, 0, 0], partner[:, 1, 0])
  np.testing.assert_array_equal(partner[:, :, 1], np.tile([0, 1], (30, 1)))
  assert sorted(partner[:, 0, 0]) == list(range(30))
  assert (partner[:, 0, 0] != np.arange(30)).any()


def test_random_permutes_all_crops(rng):
  partner = np.asarray(mixing.partners(new_key(rng), 30, 2, 'random'))
  assert sorted(map(tuple, partner.reshape(-1, 2).tolist())) == [(i, v) for i in range(30) for v in range(2)]
  assert (partner[:, 0, 1] == 1).any()
  assert (partner[:, 0, 0] != partner[:, 1, 0]).any()


@pytest.mark.parametrize('kind', mixing.PARTNERS)
@pytest.mark.parametrize(('B', 'V'), [(8, 2), (5, 2), (4, 1), (2, 2), (3, 3), (1, 2), (1, 1)])
def test_same_crop_pairs_agree_with_comparing_all_sets(rng, kind, B, V):
  for key in jax.random.split(new_key(rng), 8):
    partner = mixing.partners(key, B, V, kind)
    count = collections.Counter(crops_of(partner).values())
    expected = np.mean([count[pair] > 1 for pair in crops_of(partner).values()])
    np.testing.assert_allclose(mixing.same_crop_pairs(partner), expected, rtol=1e-6)


def test_same_crop_pairs_of_any_map_agree_with_comparing_all_sets(rng):
  for _ in range(20):
    partner = np.stack([rng.integers(4, size=(4, 2)), rng.integers(2, size=(4, 2))], axis=-1)
    count = collections.Counter(crops_of(partner).values())
    expected = np.mean([count[pair] > 1 for pair in crops_of(partner).values()])
    np.testing.assert_allclose(mixing.same_crop_pairs(jnp.asarray(partner)), expected, rtol=1e-6)


def test_flip_twins_every_sample_and_shift_only_at_half_the_batch(rng):
  assert mixing.same_crop_pairs(mixing.partners(jax.random.key(0), 64, 2, 'flip')) == 1
  keys = jax.random.split(new_key(rng), 60)
  for B in (6, 7):
    partner = jax.vmap(lambda key, B=B: mixing.partners(key, B, 2, 'shift'))(keys)
    np.testing.assert_array_equal(jax.vmap(mixing.same_crop_pairs)(partner), 2 * partner[:, 0, 0, 0] == B)


@pytest.mark.parametrize(
  ('partner', 'coefficient'), [*((kind, 'batch') for kind in mixing.PARTNERS), ('shift', 'sample')]
)
def test_mixup_is_the_weighted_sum_of_pixels_and_labels(rng, partner, coefficient):
  x, y = batch(rng)
  got = mix(new_key(rng), x, y, switch_probability=0.0, partner=partner, coefficient=coefficient)
  assert not got.is_cutmix
  lam = np.asarray(got.coefficient, np.float64)
  assert (lam > 0).all()
  assert (lam < 1).all()
  assert len(np.unique(lam)) == (1 if coefficient == 'batch' else 12)
  for i, v in np.ndindex(6, 2):
    j, w = got.partner[i, v]
    np.testing.assert_allclose(
      got.x[i, v], lam[i, v] * x[i, v] + (1 - lam[i, v]) * x[j, w], rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(got.y[i, v], lam[i, v] * y[i] + (1 - lam[i, v]) * y[j], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ('partner', 'coefficient', 'box', 'label'),
  [
    ('shift', 'batch', 'batch', 'area'),
    ('flip', 'batch', 'batch', 'raw'),
    ('permutation', 'sample', 'batch', 'area'),
    ('random', 'batch', 'sample', 'area'),
    ('shift', 'sample', 'sample', 'raw'),
    ('flip', 'sample', 'sample', 'area'),
  ],
)
def test_cutmix_pastes_one_box_of_the_partner_and_labels_by_its_area(rng, partner, coefficient, box, label):
  x, y = batch(rng)
  for key in jax.random.split(new_key(rng), 3):
    got = mix(
      key, x, y, switch_probability=1.0, partner=partner, coefficient=coefficient, box=box, cutmix_label=label
    )
    assert got.is_cutmix
    pasted = []
    for i, v in np.ndindex(6, 2):
      j, w = (int(n) for n in got.partner[i, v])
      lam = float(got.coefficient[i, v])
      np.testing.assert_allclose(got.y[i, v], lam * y[i] + (1 - lam) * y[j], rtol=1e-5, atol=1e-6)
      if (j, w) == (i, v):
        continue
      changed = (np.asarray(got.x[i, v]) != x[i, v]).any(axis=-1)
      rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
      np.testing.assert_array_equal(np.asarray(got.x[i, v])[changed], x[j, w][changed])
      assert changed.sum() == len(rows) * len(columns)  # a full rectangle
      assert len(rows) == 0 or (np.ptp(rows) + 1, np.ptp(columns) + 1) == (len(rows), len(columns))
      if label == 'area':
        np.testing.assert_allclose(lam, 1 - changed.mean(), rtol=1e-6)
      else:
        assert changed.mean() <= 1 - lam + 1e-6  # rounding and clipping only ever make the box smaller
      pasted.append(changed)
    if coefficient == box == 'batch':
      assert all((p == pasted[0]).all() for p in pasted)


@pytest.mark.parametrize(
  ('coefficient', 'box'), [('batch', 'batch'), ('sample', 'batch'), ('batch', 'sample')]
)
def test_only_per_sample_options_vary_within_the_batch(rng, coefficient, box):
  x, y = batch(rng, B=16)
  vary = False
  for key in jax.random.split(new_key(rng), 10):
    got = mix(key, x, y, switch_probability=1.0, coefficient=coefficient, box=box)
    changed = (np.asarray(got.x) != x).any(axis=-1)
    vary |= (changed != changed[:1, :1]).any() and len(np.unique(got.coefficient)) > 1
  assert vary == (coefficient != box)


def test_cutmix_boxes_have_the_sides_and_the_clipping_of_the_paper(rng):
  lam = rng.random(500).astype(np.float32)
  centre = rng.random((500, 2), dtype=np.float32)
  boxes = np.asarray(mixing.cutmix_box(jnp.asarray(centre), jnp.asarray(lam), 48, 60))
  for (down, across), l, got in zip(centre.astype(np.float64), lam.astype(np.float64), boxes):
    # Sides and centre before they are rounded down to whole pixels: the box may be up to two pixels smaller.
    height, width = 48 * np.sqrt(1 - l), 60 * np.sqrt(1 - l)
    y, x = down * 48, across * 60
    whole = [y - height / 2, x - width / 2, y + height / 2, x + width / 2]
    ideal = np.clip(whole, 0, [48, 60, 48, 60])
    assert np.abs(got - ideal).max() <= 2
    assert (got >= 0).all()
    assert (got <= [48, 60, 48, 60]).all()
    assert got[2] - got[0] <= height
    assert got[3] - got[1] <= width


def test_cutmix_boxes_at_the_ends():
  at = jnp.array([[0.5, 0.5], [0.5, 0.5], [0.0, 0.0], [1.0, 1.0]])
  boxes = mixing.cutmix_box(at, jnp.array([1.0, 0.0, 0.75, 0.75]), 8, 8)
  np.testing.assert_array_equal(boxes, [[4, 4, 4, 4], [0, 0, 8, 8], [0, 0, 2, 2], [5, 5, 8, 8]])


def test_a_batch_that_is_not_mixed_comes_back_as_it_was(rng):
  x, y = batch(rng)
  own = np.stack(np.mgrid[:6, :2], axis=-1)
  never = [mix(new_key(rng), x, y, probability=0.0)]
  sometimes = [mix(key, x, y, probability=0.5) for key in jax.random.split(new_key(rng), 30)]
  sometimes = [got for got in sometimes if (np.asarray(got.partner) == own).all()]
  assert 3 <= len(sometimes) <= 27
  for got in never + sometimes:
    np.testing.assert_array_equal(got.x, x)
    np.testing.assert_array_equal(got.y, np.repeat(y[:, None], 2, axis=1))
    np.testing.assert_array_equal(got.coefficient, np.ones((6, 2)))
    np.testing.assert_array_equal(got.partner, own)
    assert not got.is_cutmix
    assert got.same_crop_pairs == 0
  assert jax.tree.map(lambda a: (a.shape, a.dtype), never[0]) == jax.tree.map(
    lambda a: (a.shape, a.dtype), sometimes[0]
  )


def test_probabilities_and_coefficients_have_their_distributions(rng):
  x, y = jnp.zeros((2, 1, 64, 64, 1)), jnp.eye(2)

  def draw(**options):
    keys = jax.random.split(new_key(rng), 4000)
    got = jax.jit(jax.vmap(lambda k: mixing.mix(k, x, y, **{**DEFAULTS, **options})[2:5]))(keys)
    return np.asarray(got[0][:, 0, 0], np.float64), np.asarray(got[2])

  lam, is_cutmix = draw(
    probability=0.7, switch_probability=0.3, cutmix_label='raw', mixup_alpha=0.5, cutmix_alpha=8.0
  )
  np.testing.assert_allclose((lam != 1).mean(), 0.7, atol=0.04)
  np.testing.assert_allclose(is_cutmix.mean(), 0.7 * 0.3, atol=0.04)
  mixup = lam[(lam != 1) & ~is_cutmix]
  np.testing.assert_allclose(mixup.mean(), 0.5, atol=0.04)
  np.testing.assert_allclose(mixup.var(), 1 / (4 * (2 * 0.5 + 1)), rtol=0.1)  # of Beta(α, α)
  np.testing.assert_allclose(lam[is_cutmix].var(), 1 / (4 * (2 * 8.0 + 1)), rtol=0.25)
  lam, _ = draw(switch_probability=0.0)
  np.testing.assert_allclose(lam.var(), 1 / 20, rtol=0.15)


def test_with_the_defaults_both_views_share_their_label_and_every_anchor_has_a_positive(rng):
  x, y = batch(rng, B=16, side=8, classes=16)
  contrast = jax.jit(losses.contrastive_loss)
  for key in jax.random.split(new_key(rng), 20):
    got = mix(key, x, y)
    np.testing.assert_array_equal(got.y[:, 0], got.y[:, 1])
    label, z = got.y.reshape(32, 16), jnp.ones((32, 1))
    _, stats = contrast(z, label, z, label, jnp.eye(32, dtype=bool))
    assert stats['anchors_without_positive'] == 0


@pytest.mark.parametrize(('kind', 'V'), [('shift', 2), ('flip', 2), ('permutation', 1), ('random', 1)])
def test_one_image_alone_does_not_crash(rng, kind, V):
  x, y = batch(rng, B=1, V=V)
  got = mix(new_key(rng), x, y, partner=kind)
  np.testing.assert_allclose(got.y, np.repeat(y[:, None], V, axis=1), rtol=1e-6)
  if kind == 'shift':
    np.testing.assert_allclose(got.x, x, rtol=1e-5)


def test_soft_labels_stay_distributions_and_the_pixels_their_dtype(rng):
  x, _ = batch(rng)
  y = rng.dirichlet(np.ones(5), 6).astype(np.float32)
  got = mix(new_key(rng), jnp.asarray(x, jnp.bfloat16), y)
  assert got.x.dtype == jnp.bfloat16
  assert got.y.dtype == jnp.float32
  np.testing.assert_allclose(got.y.sum(-1), 1, rtol=1e-5)


def test_mixing_does_not_depend_on_sharding(rng):
  x, y = batch(rng, B=16)
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec('data'))
  key = new_key(rng)
  whole = mix(key, x, y, coefficient='sample', box='sample')
  parts = mix(key, jax.device_put(x, rows), jax.device_put(y, rows), coefficient='sample', box='sample')
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), parts, whole)


@pytest.mark.parametrize(
  ('field', 'value'),
  [('partner', 'shft'), ('coefficient', 'image'), ('box', 'batches'), ('cutmix_label', 'areas')],
)
def test_unknown_options_are_one_line_errors(rng, field, value):
  x, y = batch(rng)
  with pytest.raises(UserError, match=f"mix.{field} is '{value}'.*expected one of"):
    mix(new_key(rng), x, y, **{field: value})


def test_an_alpha_that_will_be_drawn_from_must_be_above_0(rng):
  x, y = batch(rng)
  with pytest.raises(UserError, match=r'mix.mixup_alpha is 0\.0; expected a number above 0'):
    mix(new_key(rng), x, y, mixup_alpha=0.0)
  with pytest.raises(UserError, match=r'mix.cutmix_alpha is -1\.0'):
    mix(new_key(rng), x, y, cutmix_alpha=-1.0)
  got = mix(new_key(rng), x, y, mixup_alpha=0.0, switch_probability=1.0)
  assert jnp.isfinite(got.x).all()
  assert jnp.isfinite(got.y).all()


RAF_DB = np.array([1290, 281, 717, 4772, 1982, 705, 2524])  # training pictures per class


def positive_twins(rng, kind):
  """Share of anchors that have among their positives a sample of the very same two crops, with Mixup and B = 64."""

  def one(key):
    label_key, mix_key = jax.random.split(key)
    y = jax.nn.one_hot(jax.random.choice(label_key, 7, (64,), p=jnp.asarray(RAF_DB / RAF_DB.sum())), 7)
    options = {**DEFAULTS, 'switch_probability': 0.0, 'partner': kind}
    mixed = mixing.mix(mix_key, jnp.zeros((64, 2, 2, 2, 1)), y, **options)
    return mixed.y, mixed.partner

  labels, taken = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(rng.integers(2**31)), 3000))
  labels, taken = np.asarray(labels, np.float64), np.asarray(taken)
  j, w = taken[..., 0], taken[..., 1]
  batches = np.arange(3000)[:, None, None]
  twin = (taken[batches, j, w] == np.stack(np.mgrid[:64, :2], axis=-1)).all(-1)
  near = 0.5 * np.abs(labels - labels[batches, j, w]).sum(-1) <= 0.5 + 1e-6
  return (twin & near).mean()


def test_flips_twins_are_mostly_positives_and_shifts_are_rare(rng):
  # method.md: 76 % against 1.1 %. By hand, Mixup: Σp² + (1 − Σp²)·P(¼ ≤ λ ≤ ¾) = .238 + .762·.6875 = .762, and for the
  # shift a 63rd of it, .0121.
  assert 0.72 < positive_twins(rng, 'flip') < 0.80
  assert 0.003 < positive_twins(rng, 'shift') < 0.025

"""The fine-tuning objective: what it hands to the one contrastive function under each option, against NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimic_jax import mixing
from mimic_jax.models import rollout
from mimic_jax.objectives import mimic
from mimic_jax.report.drawing import overlay
from mimic_jax.runtime.errors import UserError
from tests import small

CLASSES = ('a', 'b', 'c')
B, V, K = 6, 2, 3


def make(**changes):
  return mimic.Objective(small.mimic_stage(**{'drop_path': 0.0, **changes}), small.model_section(), CLASSES)


def batch_of(rng, soft: bool = False) -> dict[str, jax.Array]:
  label = rng.dirichlet(np.ones(K), B) if soft else np.eye(K)[rng.integers(0, K, B)]
  images = rng.normal(size=(B, V, 16, 16, 3))
  return {'image': jnp.asarray(images, jnp.float32), 'label': jnp.asarray(label, jnp.float32)}


def supcon(az, ay, cz, cy, own, tau=0.07, t=0.5) -> float:
  """Eqs. 6 and 11 as loops, float64: labels [n, K], positives where half the L1 distance is at most t."""
  total = 0.0
  for i in range(len(az)):
    others = [a for a in range(len(cz)) if not own[i, a]]
    s = np.array([az[i] @ cz[a] / tau for a in others])
    log_denominator = s.max() + np.log(np.exp(s - s.max()).sum())
    positive = [k for k, a in enumerate(others) if 0.5 * np.abs(ay[i] - cy[a]).sum() <= t + 1e-6]
    if positive:
      total -= np.mean([s[k] - log_denominator for k in positive])
  return total / len(az)


def cross_entropy(logits, y) -> float:
  shifted = logits - logits.max(1, keepdims=True)
  return float(np.mean([-(q * (r - np.log(np.exp(r).sum()))).sum() for r, q in zip(shifted, y)]))


def expected(objective, model, batch, key) -> tuple[float, float]:
  """Returns (cross-entropy, contrast) from the model's own features, with everything else done again in NumPy."""
  mix_key, _, _ = jax.random.split(key, 3)
  stage = objective.stage
  mixed = mixing.mix(mix_key, batch['image'], batch['label'], **stage['mix'])

  def rows(x):
    return np.asarray(x).reshape(B * V, *np.shape(x)[2:])

  def run(x):
    r = model.features(jnp.asarray(rows(x)))
    z = np.asarray(model.projection(r), np.float64) if objective.weight else None
    z = None if z is None else z / np.linalg.norm(z, axis=1, keepdims=True)
    return np.asarray(model.classifier(r), np.float64), z

  mixed_logits, mixed_z = run(mixed.x)
  clean_logits, clean_z = run(batch['image'])
  mixed_y = rows(mixed.y).astype(np.float64)
  clean_y = np.repeat(np.asarray(batch['label'], np.float64), V, axis=0)
  share = stage['ce']['smoothing']  # of the cross-entropy's labels, not of the contrast's
  on_mixed, on_clean = (
    cross_entropy(logits, (1 - share) * y + share / K)
    for logits, y in ((mixed_logits, mixed_y), (clean_logits, clean_y))
  )
  ce = {'mixed': on_mixed, 'clean': on_clean, 'both': (on_mixed + on_clean) / 2}[stage['ce']['on']]
  if not objective.weight:
    return ce, 0.0
  c = stage['contrast']
  ids = np.eye(B)[np.repeat(np.arange(B), V)]
  labels = {
    'mixed': (mixed_y, clean_y),
    'class': (clean_y, clean_y),
    'instance': (ids, ids),
    'dominant': (np.eye(K)[mixed_y.argmax(1)], np.eye(K)[clean_y.argmax(1)]),
  }[c['labels']]
  az, ay = (mixed_z, labels[0]) if c['anchors'] == 'mixed' else (clean_z, labels[1])
  cz, cy, own = mixed_z, labels[0], np.eye(B * V, dtype=bool)
  if c['candidates'] == 'all':
    cz, cy, own = (
      np.concatenate([cz, clean_z]),
      np.concatenate([cy, labels[1]]),
      np.concatenate([own, own], axis=1),
    )
  return ce, supcon(az, ay, cz, cy, own)


@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize(
  'changes',
  [
    *(m for m in mimic.METHODS.values() if m.get('views') != 1),
    {'contrast.anchors': 'clean'},
    {'contrast.candidates': 'all'},
    {'contrast.candidates': 'all', 'contrast.anchors': 'clean', 'ce.on': 'both'},
    {'ce.on': 'clean'},
    {'contrast.labels': 'dominant', 'contrast.candidates': 'all'},
    {'mix.partner': 'flip', 'mix.coefficient': 'sample'},
    {'ce.smoothing': 0.3, 'ce.on': 'both'},
  ],
  ids=str,
)
def test_the_loss_is_cross_entropy_plus_weighted_contrast_of_the_right_samples(changes, soft, rng):
  objective = make(**changes)
  model = objective.init(jax.random.key(int(rng.integers(2**31))))
  batch, key = batch_of(rng, soft), jax.random.key(int(rng.integers(2**31)))
  loss, parts = objective.loss(model, batch, key, jnp.int32(0), 10)
  ce, contrast = expected(objective, model, batch, key)
  np.testing.assert_allclose(parts['ce'], ce, rtol=1e-5)
  np.testing.assert_allclose(parts.get('contrast', 0.0), contrast, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(loss, ce + objective.weight * contrast, rtol=1e-4)


def test_plain_cross_entropy_on_one_view_has_no_projection(rng):
  objective = make(**mimic.METHODS['ce'])
  model = objective.init(jax.random.key(0))
  assert model.projection is None
  batch = batch_of(rng)
  batch['image'] = batch['image'][:, :1]
  loss, parts = objective.loss(model, batch, jax.random.key(1), jnp.int32(0), 10)
  logits = np.asarray(model.classifier(model.features(batch['image'][:, 0])), np.float64)
  np.testing.assert_allclose(loss, cross_entropy(logits, np.asarray(batch['label'])), rtol=1e-5)
  assert 'contrast' not in parts


def test_the_position_table_is_trained_and_the_pool_decides_on_the_norm(rng):
  gap, cls = make(), make(**{'head.pool': 'cls'})
  assert gap.trainable(('encoder', 'pos_embed'))
  images = jnp.asarray(rng.normal(size=(2, 16, 16, 3)), jnp.float32)
  for objective, wants_norm in ((gap, False), (cls, True)):
    model = objective.init(jax.random.key(0))
    before = model.features(images)
    model.encoder.norm.scale[...] = 3.0 * model.encoder.norm.scale[...]
    assert bool(jnp.allclose(before, model.features(images))) is not wants_norm


def test_evaluation_leaves_padding_out_of_the_sums(rng):
  objective = make()
  model = objective.init(jax.random.key(0))
  batch = {
    'image': jnp.asarray(rng.integers(0, 255, (4, 16, 16, 3)), jnp.uint8),
    'label': jnp.asarray([0, 1, 2, -1]),
    'mask': jnp.asarray([True, True, False, False]),
  }
  found = objective.evaluate(model, batch)
  logits = np.asarray(found['outputs']['logits'], np.float64)
  assert int(found['sums']['loss'][1]) == 2
  np.testing.assert_allclose(
    found['sums']['loss'][0], 2 * cross_entropy(logits[:2], np.eye(3)[:2]), rtol=1e-5
  )


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'views': 1, 'contrast.labels': 'instance'}, 'views is 1; expected 2'),
    ({'batch_images': 1}, 'batch_images is 1; expected at least 2'),
    (
      {'contrast.weight': 0.0, 'contrast.temperature': 0.1},
      r'temperature is 0.1, and contrast.weight 0.0; expected 0.07',
    ),
    (
      {'contrast.positives': 'soft', 'contrast.threshold': 0.25},
      "threshold is 0.25, and contrast.positives 'soft'",
    ),
    ({'mix.probability': 0.0, 'mix.partner': 'flip'}, "mix.partner is 'flip', and mix.probability 0.0"),
    ({'mix.probability': 0.0, 'ce.on': 'clean'}, "ce.on is 'clean', and mix.probability 0.0"),
    (
      {'mix.switch_probability': 0.0, 'mix.box': 'sample'},
      "mix.box is 'sample', and mix.switch_probability 0.0",
    ),
    (
      {'mix.switch_probability': 1.0, 'mix.mixup_alpha': 1.0},
      'mixup_alpha is 1.0, and mix.switch_probability 1.0',
    ),
  ],
)
def test_settings_that_can_not_work_are_refused(changes, words):
  with pytest.raises(UserError, match=words):
    make(**changes)


def test_pictures_without_labels_are_refused():
  with pytest.raises(UserError, match='needs labels'):
    mimic.Objective(small.mimic_stage(), small.model_section(), ())


def shown(rng, n=8):
  """Returns an evaluation batch of n pictures, the last of which is padding."""
  return {
    'image': jnp.asarray(rng.integers(0, 255, (n, 16, 16, 3)), jnp.uint8),
    'label': jnp.asarray([*rng.integers(0, K, n - 1), -1]),
    'mask': jnp.arange(n) < n - 1,
  }


def test_what_is_drawn_is_mixed_and_says_its_labels(rng):
  objective = make(**{'mix.probability': 0.1})
  drawings = objective.draw(objective.init(jax.random.key(0)), shown(rng), jax.random.key(0))
  assert list(drawings) == ['attention', 'mixed']
  drawing = drawings['mixed']
  assert drawing.images.shape == (6, 4, 16, 16, 3)
  assert not np.array_equal(drawing.images[:, :2], drawing.images[:, 2:])
  assert all(cell.split()[1] in CLASSES for row in drawing.cells for cell in row[2:])


@pytest.mark.parametrize('pool', ['gap', 'cls'])
def test_attention_is_drawn_beside_each_picture_with_its_class_and_the_answer(rng, pool):
  objective = make(**{'head.pool': pool, 'mix.probability': 0.0})
  model = objective.init(jax.random.key(1))
  model.classifier.fc.kernel[...] = jnp.asarray(rng.normal(size=(16, K)), jnp.float32)
  batch = shown(rng)
  (drawing,) = objective.draw(model, batch, jax.random.key(0)).values()
  assert drawing.images.shape == (4, 4, 16, 16, 3)  # 7 pictures with their maps, and a place left over
  assert drawing.columns == ('picture', 'attention', 'picture', 'attention')
  pairs = drawing.images.reshape(8, 2, 16, 16, 3)
  np.testing.assert_array_equal(pairs[:7, 0], batch['image'][:7])
  assert (pairs[7] == 255).all()
  logits = np.asarray(jax.jit(objective.evaluate)(model, batch)['outputs']['logits'], np.float64)
  chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  cells = [cell for row in drawing.cells for cell in row]
  assert cells[14:] == ['', '']
  for i in range(7):
    assert cells[2 * i] == CLASSES[int(batch['label'][i])]
    arrow, answer, chance = cells[2 * i + 1].split()
    assert (arrow, answer) == ('→', CLASSES[logits[i].argmax()])
    assert float(chance) == pytest.approx(chances[i].max(), abs=0.006)
  a = objective.stage['augment']
  normed = (np.asarray(batch['image'][:7]) / 255.0 - a['mean']) / a['std']
  heat = jax.jit(rollout.attention_rollout, static_argnames='pool')(
    model.encoder, jnp.asarray(normed, jnp.float32), pool=pool
  )
  want = overlay(np.asarray(batch['image'][:7]), np.asarray(heat))
  # Heat that differs in its last bit may take the next of the map's 256 colours: up to 4 levels away.
  np.testing.assert_allclose(pairs[:7, 1].astype(int), want, atol=4)


def test_what_an_evaluation_shows_holds_nothing_drawn_at_random(rng):
  objective = make()
  model, batch = objective.init(jax.random.key(0)), shown(rng)
  first, again = (objective.look(model, batch) for _ in range(2))
  assert list(first) == ['attention']
  np.testing.assert_array_equal(first['attention'].images, again['attention'].images)
  assert objective.look(model, {**batch, 'mask': jnp.zeros(8, bool)}) == {}

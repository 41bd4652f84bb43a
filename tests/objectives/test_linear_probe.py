"""The linear probe: the optimum that scikit-learn finds, NumPy's BatchNorm, an encoder that nothing changes."""

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mimic_jax import config as config_lib
from mimic_jax import models, objectives
from mimic_jax.objectives import mimic
from mimic_jax.runtime import checkpoint, sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import step as step_lib
from tests import small

N, STEPS, L2 = 32, 300, 0.05
CLASSES = ('a', 'b', 'c')
STILL = {'augment.scale': (1.0, 1.0), 'augment.ratio': (1.0, 1.0), 'augment.flip': 0.0}
MODELS = {
  'cls': {},
  'gap': {},
  'resnet': {'preset': 'resnet18', 'image_size': 32, 'patch_size': 0, 'dim': 0, 'depth': 0, 'heads': 0},
}


def made(model, pool, **changes):
  stage = small.probe_stage(batch_images=N, **{'head.pool': pool, 'steps': STEPS, **changes})
  objective = objectives.make(stage, small.model_section(**MODELS[model]), CLASSES, 'objective')
  return step_lib.make_program(stage, objective, N, sharding.make_mesh(devices=jax.devices()[:1]))


def batch_of(rng, size):
  return {
    'image': rng.integers(0, 256, (N, size, size, 3), np.uint8),
    'label': rng.integers(0, 3, N).astype(np.int32),
    'index': np.arange(N, dtype=np.int32),
  }


def paths(objective):
  _, params, rest = models.split(objective.init(jax.random.key(0)), objective.trainable)
  return {**checkpoint.flatten(params), **checkpoint.flatten(rest)}


@pytest.mark.parametrize('pool', ['cls', 'gap'])
def test_it_ends_at_the_optimum_of_logistic_regression_on_normalised_features(pool, rng):
  program = made(pool, pool, **STILL, **{'optim.lr': 0.05, 'optim.weight_decay': L2})
  batch, state = batch_of(rng, 16), program.init(jax.random.key(int(rng.integers(2**31))))
  for _ in range(STEPS):
    state, said = program.step(state, batch, jax.random.key(0))
  objective = program.objective
  model = models.merge(program.template, state['params'], state['rest'])
  features = np.asarray(mimic.Model.features(model, objective._seen(batch['image'])), np.float64)
  mean, variance = features.mean(0), features.var(0)
  x = (features - mean) / np.sqrt(variance + 1e-6)
  # of the mean loss + L2 / 2 · |kernel|²; scikit-learn sums the loss
  want = LogisticRegression(C=1 / (L2 * N), tol=1e-10, max_iter=10_000).fit(x, batch['label'])
  fc = state['params']['classifier']['fc']
  np.testing.assert_allclose(fc['kernel'], want.coef_.T, atol=2e-3)
  bias = np.asarray(fc['bias'])
  np.testing.assert_allclose(bias - bias.mean(), want.intercept_ - want.intercept_.mean(), atol=2e-3)
  chances = want.predict_proba(x)
  assert float(said['ce']) == pytest.approx(-np.log(chances[np.arange(N), batch['label']]).mean(), abs=1e-3)
  # BatchNorm without factors: a tenth of each batch's statistics into the running ones, which evaluation takes
  running = state['rest']['classifier']['norm']
  np.testing.assert_allclose(running['mean'], mean * (1 - 0.9**STEPS), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(running['var'], 0.9**STEPS + variance * (1 - 0.9**STEPS), rtol=1e-4)
  seen = objective.answers(model, objective._seen(batch['image']))
  np.testing.assert_allclose(seen['features'], x, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(('model', 'pool'), [('cls', 'cls'), ('resnet', 'gap')])
def test_steps_leave_the_encoder_and_its_statistics_bit_for_bit(model, pool, rng):
  program = made(model, pool)
  state = program.init(jax.random.key(0))
  first = checkpoint.flatten(jax.device_get(state))
  batch = batch_of(rng, program.objective.config.image_size)
  for _ in range(2):
    state, _ = program.step(state, batch, jax.random.key(1))
  changed = {
    name.split('/', 1)[1]
    for name, array in checkpoint.flatten(jax.device_get(state)).items()
    if name.startswith(('params', 'rest')) and array.tobytes() != first[name].tobytes()
  }
  assert changed == {
    'classifier/fc/kernel',
    'classifier/fc/bias',
    'classifier/norm/mean',
    'classifier/norm/var',
  }


def test_it_takes_the_encoder_of_first_weights_and_starts_what_is_its_own_anew():
  objective = made('cls', 'cls').objective
  named = {name: objective.initial(tuple(name.split('/'))) for name in paths(objective)}
  assert {name: word for name, word in named.items() if 'encoder' not in name} == dict.fromkeys(
    ('classifier/fc/kernel', 'classifier/fc/bias', 'classifier/norm/mean', 'classifier/norm/var'), 'fresh'
  )
  assert {word for name, word in named.items() if 'encoder' in name} == {'needed'}


@pytest.mark.parametrize(
  ('field', 'value', 'expected'),
  [('drop_path', 0.1, '0'), ('optim.layer_decay', 0.65, '1'), ('batch_images', 1, 'at least 2')],
)
def test_what_has_no_effect_on_a_frozen_encoder_is_refused(field, value, expected):
  config = small.run_config(probe=small.probe_stage(**{field: value}))
  with pytest.raises(UserError, match=rf'config\.probe\.{field} is {value}; expected {expected}$'):
    config_lib.check(config)

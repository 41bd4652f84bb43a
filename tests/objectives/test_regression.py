"""Regression: losses against PyTorch, scores against loops and SciPy, intervals against resampling by hand, mirrored angles, what is refused."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from mimic_jax import losses, main, metrics, models, objectives, uncertainty
from mimic_jax.objectives import regression
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import evaluation
from tests import small


def objective(**fields):
  stage = small.regression_stage(drop_path=0.0)
  stage.update_from_flattened_dict(fields)
  return regression.Objective(stage, small.model_section(), ())


def holed(rng, n=40, targets=3, share=0.3):
  """Returns answers and targets [n, T] that have to do with each other, some targets NaN."""
  y = rng.normal(size=(n, targets)) * rng.uniform(0.2, 3, targets) + rng.normal(size=targets)
  x = 0.6 * y + rng.normal(size=y.shape)
  y[rng.random(y.shape) < share] = np.nan
  y[0], y[1] = 1.0, -1.0
  return x.astype(np.float32), y.astype(np.float32)


def ccc(x, y):
  """float64, from the definition."""
  n, mx, my = len(x), sum(x) / len(x), sum(y) / len(y)
  sxy = sum((a - mx) * (b - my) for a, b in zip(x, y)) / n
  sx, sy = (sum((a - m) ** 2 for a in v) / n for v, m in ((x, mx), (y, my)))
  return 2 * sxy / (sx + sy + (mx - my) ** 2)


@pytest.mark.parametrize('kind', losses.REGRESSIONS)
def test_loss_and_gradient_are_pytorchs_over_what_is_known(kind, rng):
  torch = pytest.importorskip('torch')
  x, y = holed(rng)
  if kind == 'binary':
    y = np.where(np.isnan(y), y, (y > 0).astype(np.float32))
  value, gradient = jax.value_and_grad(lambda x: losses.regression(kind, x, y).sum())(jnp.asarray(x))
  t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
  want = 0.0
  for k in range(x.shape[1]):
    rows = np.flatnonzero(np.isfinite(y[:, k]))
    a, b = t[rows, k], torch.tensor(y[rows, k], dtype=torch.float64)
    if kind == 'ccc':
      cov = ((a - a.mean()) * (b - b.mean())).mean()
      spread = a.var(correction=0) + b.var(correction=0) + (a.mean() - b.mean()) ** 2
      want = want + 1 - 2 * cov / spread
    else:
      f = torch.nn.functional
      how = {'mse': f.mse_loss, 'mae': f.l1_loss, 'binary': f.binary_cross_entropy_with_logits}[kind]
      want = want + how(a, b, reduction='sum') / len(x)
  want.backward()
  assert float(value) == pytest.approx(want.item(), rel=1e-5)
  np.testing.assert_allclose(gradient, t.grad, rtol=1e-4, atol=1e-6)


def test_a_target_that_hardly_a_picture_has_is_no_nan():
  x, y = jnp.ones((4, 2)), jnp.array([[np.nan, np.nan], [np.nan, 1.0], [np.nan, np.nan], [np.nan, np.nan]])
  for kind in losses.REGRESSIONS:
    value, gradient = jax.value_and_grad(lambda x, kind=kind: losses.regression(kind, x, y).sum())(x)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def outputs_of(x, y, kind='predicted'):
  found = {}
  for k in range(x.shape[1]):
    found |= {f'{kind}_t{k}': x[:, k], f'true_t{k}': y[:, k]}
  return found


def test_scores_are_those_of_loops_and_of_scipy(rng):
  x, y = holed(rng)
  y[::7] = np.where(np.isnan(y[::7]), np.nan, 0.0)
  found = metrics.of_targets(outputs_of(x, y))
  for k in range(x.shape[1]):
    rows = np.flatnonzero(np.isfinite(y[:, k]))
    a, b = x[rows, k].astype(np.float64), y[rows, k].astype(np.float64)
    want = {
      'ccc': ccc(a, b),
      'rmse': np.sqrt(np.mean((a - b) ** 2)),
      'mae': np.mean(np.abs(a - b)),
      'pearson': scipy.stats.pearsonr(a, b).statistic,
      'sign_agreement': np.mean([np.sign(p) == np.sign(q) for p, q in zip(a, b)]),
      'count': len(rows),
    }
    assert {n: found[f'{n}_t{k}'] for n in want} == pytest.approx(want, rel=1e-9)


def test_scores_of_attributes_are_scikit_learns(rng):
  sklearn_metrics = pytest.importorskip('sklearn.metrics')
  chance = rng.random((50, 1)).astype(np.float32)
  truth = (rng.random((50, 1)) < 0.3).astype(np.float32)
  truth[:2, 0], truth[5] = (0, 1), np.nan
  found = metrics.of_targets(outputs_of(chance, truth, 'chance'))
  rows = np.isfinite(truth[:, 0])
  pair = truth[rows, 0] > 0.5, chance[rows, 0] > 0.5
  assert found['binary_accuracy_t0'] == pytest.approx(sklearn_metrics.accuracy_score(*pair))
  assert found['balanced_accuracy_t0'] == pytest.approx(sklearn_metrics.balanced_accuracy_score(*pair))
  assert found['count_t0'] == rows.sum() == 49


@pytest.mark.parametrize('clustered', [False, True])
def test_intervals_are_those_of_resampling_by_hand(clustered, rng):
  x, y = holed(rng, n=60, targets=1)
  clusters = rng.integers(0, 12, 60) if clustered else None
  found = uncertainty.of_targets(outputs_of(x, y), clusters, samples=4000, seed=int(rng.integers(1000)))
  rows = np.flatnonzero(np.isfinite(y[:, 0]))
  units = [[i] for i in rows]
  if clustered:
    units = [[i for i in rows if clusters[i] == c] for c in np.unique(clusters[rows])]
  drawn = []
  for _ in range(1500):
    picked = np.concatenate([units[k] for k in rng.integers(len(units), size=len(units))]).astype(int)
    drawn.append(ccc(x[picked, 0].astype(float), y[picked, 0].astype(float)))
  low, high = np.quantile(drawn, (0.025, 0.975))
  got = found['ccc_t0']
  assert got['value'] == pytest.approx(ccc(x[rows, 0].astype(float), y[rows, 0].astype(float)))
  # ends of 1,500 resamples: some 4 of their standard errors
  assert (got['low'], got['high']) == pytest.approx((low, high), abs=0.3 * (high - low))
  assert found['method']['units'] == len(units)
  assert found['method']['over'] == ('identities' if clustered else 'pictures')


def test_a_target_that_one_person_alone_has_gets_no_interval_and_ends_nothing(rng):
  ids = [f'{chr(65 + k // 2)}nn_Lee_{k:04}.jpg' for k in range(48)]
  x, y = rng.normal(size=(2, 48, 1))
  y[2:] = np.nan
  measured = evaluation.Measured({}, np.arange(48), outputs_of(x, y), {})
  evaluation.add_intervals(measured, evaluation.Split('valid', types.SimpleNamespace(id=ids.__getitem__)), ())
  assert measured.metrics == {
    'why_no_intervals': 'all 2 pictures are of one identity; expected at least two to draw from'
  }


def test_what_turns_round_in_the_mirror_goes_along_with_the_picture(rng):
  plain = {'augment.scale': (1.0, 1.0), 'augment.ratio': (1.0, 1.0), 'regression.targets': 'yaw,pitch'}
  found = objective(**plain, **{'augment.flip': 0.5})
  image = rng.integers(0, 256, (32, 16, 16, 3), np.uint8)
  batch = {'image': jnp.asarray(image), 'yaw': jnp.arange(1.0, 33), 'pitch': jnp.arange(1.0, 33)}
  seen = found.augment(batch, jax.random.key(int(rng.integers(2**31))))
  straight = np.asarray(found._seen(image))
  mirrored = 0
  for i in range(32):
    flipped = float(seen['targets'][i, 0]) < 0
    mirrored += flipped
    want = straight[i, :, ::-1] if flipped else straight[i]
    np.testing.assert_allclose(seen['image'][i, 0], want, atol=1e-4)
    assert abs(float(seen['targets'][i, 0])) == float(seen['targets'][i, 1]) == i + 1
  assert 4 < mirrored < 28  # 16, and four standard deviations


def test_a_batch_is_evaluated_without_its_padding_and_without_what_is_unknown(rng):
  for kind in losses.REGRESSIONS:
    found = objective(**{'regression.loss': kind})
    model = found.init(jax.random.key(0))
    batch = {
      'image': rng.integers(0, 256, (6, 16, 16, 3), np.uint8),
      'valence': (rng.random(6) < 0.5).astype(np.float32),
      'arousal': np.array([0, 1, np.nan, 1, 0, 1], np.float32),
      'mask': np.arange(6) < 4,
    }
    said = found.evaluate(model, batch)
    z = np.asarray(found._outputs(model, model.features(found._seen(batch['image']))), np.float64)
    rows = [[0, 1, 2, 3], [0, 1, 3]]
    each = []
    for k, name in enumerate(('valence', 'arousal')):
      a, b = z[rows[k], k], batch[name][rows[k]].astype(np.float64)
      each.append({
        'ccc': [1 - ccc(a, b)],
        'mse': (a - b) ** 2,
        'mae': abs(a - b),
        'binary': -b * np.log(1 / (1 + np.exp(-a))) - (1 - b) * np.log(1 - 1 / (1 + np.exp(-a))),
      }[kind])  # fmt: skip
    want = np.concatenate(each)
    if kind == 'ccc':
      kept = {k: np.asarray(v)[:4] for k, v in said['outputs'].items()}
      assert found.figures(kept)['loss'] == pytest.approx(want.mean(), rel=1e-3)
    else:
      total, count = said['sums']['loss']
      assert (float(total), int(count)) == (pytest.approx(want.sum(), rel=1e-4), 7)


def test_what_leaves_as_a_program_is_named_by_the_targets(rng):
  for kind in ('mae', 'binary'):
    found = objective(**{'regression.loss': kind, 'regression.targets': 'glasses,beard'})
    said = found.answers(
      found.init(jax.random.key(0)), jnp.asarray(rng.normal(size=(2, 16, 16, 3)), jnp.float32)
    )
    assert {k: v.shape for k, v in said.items()} == {'glasses': (2,), 'beard': (2,), 'features': (2, 16)}
    assert kind == 'mae' or all(0 < v < 1 for v in (*said['glasses'], *said['beard']))


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'regression.targets': ''}, r"regression\.targets is ''; expected names of targets"),
    ({'regression.targets': 'yaw,yaw'}, r"regression\.targets is 'yaw,yaw'; .* each once"),
    ({'regression.loss': 'binary', 'regression.scale': 2.0}, r'regression\.scale is 2, .*no effect'),
    ({'regression.targets': 'roll', 'augment.rand_ops': 2}, r"rand_ops is 2, which turns .*'roll'"),
    ({'batch_images': 1}, r'batch_images is 1; expected at least 2'),
  ],
)
def test_a_wrong_section_is_refused_in_one_line(fields, expected):
  with pytest.raises(UserError, match=expected) as caught:
    objective(**fields)
  assert '\n' not in str(caught.value)


def test_in_parts_is_another_concordance_and_the_same_squared_error():
  assert objective().pairs
  assert not objective(**{'regression.loss': 'mse'}).pairs


@pytest.mark.processes
def test_a_run_is_measured_reported_evaluated_and_exported(tmp_path, capsys):
  file = tmp_path / 'config.py'
  file.write_text(
    'from tests import small\ndef get_config():\n  return small.run_config(only=small.regression_stage(**{"eval.size": 64}))\n'
  )
  run = tmp_path / 'run'
  main.main(['--config', str(file), '--workdir', str(run)])
  found = json.loads((run / 'only' / 'result.json').read_text())['metrics']['valid']
  said = np.load(run / 'only' / 'predictions.npz')
  a, b = (said[f'{k}_valence'].astype(np.float64) for k in ('predicted', 'true'))
  assert found['ccc_valence'] == pytest.approx(ccc(a, b))
  ends = found['intervals']['ccc_valence']
  assert ends['low'] <= found['ccc_valence'] <= ends['high']
  assert 'CCC' in (run / 'report.html').read_text()
  assert f'CCC {found["ccc_valence"]:.3f}, RMSE ' in ''.join(capsys.readouterr())
  main.main(['evaluate', '--checkpoint', str(run), '--data.size=32'])
  assert 'ccc valence' in capsys.readouterr().out
  lacks = "--data.source is 'synthetic_images', which offers nothing beside the label; objective 'regression' needs 'valence'"
  with pytest.raises(UserError, match=lacks):
    main.main(['evaluate', '--checkpoint', str(run), '--data.source=synthetic_images'])
  main.main(['export', '--checkpoint', str(run), '--format', 'stablehlo', '--out', str(tmp_path / 'out')])
  program = jax.export.deserialize(bytearray((tmp_path / 'out' / 'model.stablehlo').read_bytes()))
  assert {'valence', 'arousal'} <= program.call(np.zeros((2, 16, 16, 3), np.float32)).keys()
  with pytest.raises(UserError, match='has no classifier'):
    main.main(['predict', '--checkpoint', str(run), str(run / 'only' / 'pictures' / 'answers.png')])


def test_the_encoder_is_handed_on_and_its_last_layer_with_init_head():
  for head in (False, True):
    found = objective(init_head=head)
    _, params, _ = models.split(nnx.eval_shape(found.init, jax.random.key(0)), found.trainable)
    said = {found.initial((name, 'kernel')) for name in params if name == 'regressor'}
    assert said == {'needed' if head else 'fresh'}
  assert objectives.find('regression').labelled is False

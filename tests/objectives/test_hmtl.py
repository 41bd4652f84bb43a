"""HMTL: puzzles and what is removed against NumPy, N heads against a loop, painter and perceptual distance against PyTorch; the head that leaves."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from ml_collections import FrozenConfigDict

from mimic_jax import main, weights
from mimic_jax.models import decoder
from mimic_jax.objectives import hmtl, mimic, regression
from mimic_jax.runtime import checkpoint, sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import loop, results, start, trained
from mimic_jax.training import stage as stage_lib
from mimic_jax.training import step as step_lib
from tests import peers, small

CLASSES = ('a', 'b', 'c')
RESNET = {'preset': 'resnet18', 'image_size': 32, 'patch_size': 0, 'dim': 64, 'depth': 0, 'heads': 0}


def objective(model=None, **fields):
  stage = small.hmtl_stage(drop_path=0.0)
  stage.update_from_flattened_dict(fields)
  if stage.hmtl.task == 'inpaint' and not model:
    stage.hmtl.update(decoder_dim=16, decoder_depth=1, decoder_heads=2)
  return hmtl.Objective(stage, small.model_section(**(model or {})), CLASSES)


def compiled(function, network, *args):
  """Returns function(network, *args), compiled; nothing of the network is a constant of it."""
  graphdef, state = nnx.split(network)
  return jax.jit(lambda state, *args: function(nnx.merge(graphdef, state), *args))(state, *args)


def photos(rng, count=6, size=16):
  return jnp.asarray(rng.normal(size=(count, size, size, 3)), jnp.float32)


# ---- puzzles


def test_n_heads_are_those_of_a_loop(rng):
  found = objective(model={'image_size': 24, 'patch_size': 8}, **{'hmtl.grid': 3})
  model = found.init(jax.random.key(int(rng.integers(2**31))))
  features, order = (
    rng.normal(size=(6, 16)).astype(np.float32),
    np.stack([rng.permutation(9) for _ in range(6)]),
  )
  loss, said = found._placed(model, jnp.asarray(features), jnp.asarray(order))
  kernel, bias = (np.asarray(getattr(model.places, n)[...], np.float64) for n in ('kernel', 'bias'))
  total, right = 0.0, 0
  for k in range(9):  # the head of place k
    z = features @ kernel[:, 9 * k : 9 * k + 9] + bias[9 * k : 9 * k + 9]
    for b in range(6):
      total += np.log(np.exp(z[b]).sum()) - z[b, order[b, k]]
      right += z[b].argmax() == order[b, k]
  assert float(loss) == pytest.approx(total / 54, rel=1e-5)
  assert float(said['tiles_placed']) == pytest.approx(right / 54)


# ---- in-painting


def test_a_painter_is_pytorchs_transposed_convolutions_with_batch_statistics(rng):
  torch = pytest.importorskip('torch')
  painter = decoder.Painter(6, (8, 5), 'float32', nnx.Rngs(int(rng.integers(1000))))
  x = rng.normal(size=(4, 3, 5, 6)).astype(np.float32)
  y = torch.from_numpy(x.transpose(0, 3, 1, 2)).double()
  for up, norm in zip(painter.up, painter.norms, strict=True):
    scale = rng.uniform(0.5, 1.5, norm.scale[...].shape)
    norm.scale[...] = jnp.asarray(scale, jnp.float32)
    kernel = torch.from_numpy(np.asarray(up.kernel[...], np.float64).transpose(2, 3, 0, 1))
    y = torch.nn.functional.conv_transpose2d(y, kernel, stride=2, padding=1)
    y = torch.relu(torch.nn.functional.batch_norm(y, None, None, torch.from_numpy(scale), training=True))
  kernel = torch.from_numpy(np.asarray(painter.out.kernel[...], np.float64).transpose(3, 2, 0, 1))
  want = torch.nn.functional.conv2d(y, kernel, padding=1).numpy().transpose(0, 2, 3, 1)
  got = painter(jnp.asarray(x), running=False)
  assert got.shape == (4, 12, 20, 3)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('model', [{}, RESNET], ids=['vit', 'resnet'])
def test_the_error_is_that_of_what_was_removed_picture_by_picture(model, rng):
  found = objective(model, **{'hmtl.task': 'inpaint'})
  size = found.config.image_size
  x = photos(rng, 5, size)
  gone = rng.random((5, size, size)) < 0.3
  gone[2] = False

  def of(network, x, gone):
    _, places = found._encoded(network, x, None)
    loss, _ = found._painted(network, places, x, gone, running=True)
    return loss, found._painting(network, places, running=True)

  loss, painting = compiled(of, jax.jit(found.init)(jax.random.key(0)), x, gone)
  painting, x = np.asarray(painting, np.float64), np.asarray(x)
  each = [np.abs(painting[b] - x[b])[gone[b]].mean() if gone[b].any() else 0.0 for b in range(5)]
  assert float(loss) == pytest.approx(np.mean(each), rel=1e-5)


@pytest.mark.processes
def test_the_perceptual_distance_is_pytorchs_on_the_same_weights(rng, tmp_path):
  torch = pytest.importorskip('torch')
  net = peers.torch_resnet(torch, (2, 2, 2, 2), False, False)
  path = tmp_path / 'resnet18.pth'
  torch.save(net.state_dict(), path)
  found = objective(RESNET, **{'hmtl.task': 'inpaint', 'hmtl.perceptual': str(path)})
  frozen = step_lib.read_frozen(found, 'config.only', sharding.make_mesh())
  model = frozen.attached(jax.jit(found.init)(jax.random.key(0)), frozen.arrays)
  a, b = (rng.normal(size=(3, 32, 32, 3)).astype(np.float32) for _ in range(2))
  distance = lambda network, a, b: jax.value_and_grad(network.distance)(a, b)  # noqa: E731
  value, gradient = compiled(distance, model.perceptual, a, b)
  net = net.double().eval()

  def depths(x):
    x = torch.max_pool2d(torch.relu(net.bn1(net.conv1(x))), 3, 2, 1)
    for n in range(1, 5):
      x = getattr(net, f'layer{n}')(x)
      yield torch.nn.functional.normalize(x, dim=1)

  mine, theirs = (torch.from_numpy(v.transpose(0, 3, 1, 2)).double() for v in (a, b))
  mine.requires_grad_(True)
  want = sum(((p - q.detach()) ** 2).sum(1).mean() for p, q in zip(depths(mine), depths(theirs))) / 4
  want.backward()
  assert float(value) == pytest.approx(want.item(), rel=1e-4)
  there = mine.grad.numpy().transpose(0, 2, 3, 1)
  np.testing.assert_allclose(gradient, there, atol=2e-3 * np.abs(there).max())

  config = FrozenConfigDict(small.run_config(only=small.inpaint_stage(**{'hmtl.perceptual': str(path)})))
  stage = stage_lib.Stage(config, 'only', epath.Path(tmp_path), sharding.make_mesh(devices=jax.devices()[:1]))
  batch = sharding.to_devices(next(stage.batches(0)), stage.mesh)
  state, measured = stage.program.step(stage.program.init(jax.random.key(0)), batch, jax.random.key(1))
  parts = sum(float(measured[name]) for name in ('supervised', 'painted', 'perceptual'))
  assert float(measured['loss']) == pytest.approx(parts, rel=1e-5)
  assert 0 < float(measured['perceptual']) < 4
  assert 'perceptual' not in state['params']


def test_a_vit_compares_too_at_four_depths_without_its_class_token(rng):
  found = objective(
    RESNET, **{'hmtl.task': 'inpaint', 'hmtl.perceptual': 'w', 'hmtl.perceptual_preset': 'vit_ti16'}
  )
  network = jax.jit(found.frozen()['perceptual'].init)(jax.random.key(0))
  x = photos(rng, 2, 32)
  of = lambda n, x: (n(x), n.encoder(x, norm=False)[:, 1:], n.distance(x, x), n.distance(x, -x))  # noqa: E731
  depths, tokens, same, other = compiled(of, network, x)
  assert [d.shape for d in depths] == [(2, 4, 192)] * 4
  want = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
  np.testing.assert_allclose(depths[-1], want, atol=1e-2)
  assert float(same) == 0 < float(other)


# ---- the two together


@pytest.mark.parametrize('model', [{}, {'pool': 'cls'}, RESNET], ids=['gap', 'cls', 'resnet'])
def test_features_of_the_loss_are_those_that_are_measured(model, rng):
  pool = {'head.pool': model['pool']} if 'pool' in model else {}
  found = objective({k: v for k, v in model.items() if k != 'pool'}, **pool)
  network, x = jax.jit(found.init)(jax.random.key(0)), photos(rng, 4, found.config.image_size)
  mine, measured = compiled(lambda n, x: (found._encoded(n, x, None)[0], n.features(x)), network, x)
  np.testing.assert_allclose(mine, measured, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('task', ['puzzle', 'inpaint'])
@pytest.mark.parametrize('on', hmtl.SUPERVISED_ON)
def test_the_loss_is_the_heads_on_what_it_is_to_see_plus_w_times_the_tasks(task, on, rng):
  found = objective(**{'hmtl.task': task, 'hmtl.supervised_on': on, 'hmtl.weight': 0.3})
  model, x = jax.jit(found.init)(jax.random.key(0)), photos(rng)
  model.classifier.fc.kernel[...] = jnp.asarray(rng.normal(size=(16, 3)), jnp.float32)
  y = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 6)]
  key = jax.random.key(int(rng.integers(2**31)))

  def of(model, x, y):
    loss, said = found.loss(model, {'image': x[:, None], 'label': y}, key, 0, 10)
    seen, made = found._made(jax.random.split(key, 3)[2], x)
    if task == 'puzzle':
      beside, _ = found._placed(model, model.features(seen), made)
    else:
      beside, _ = found._painted(model, found._encoded(model, seen, None)[1], x, made, running=True)
    return loss, said['supervised'], beside, [model.classifier(model.features(v)) for v in (x, seen)]

  loss, supervised, beside, logits = compiled(of, model, x, y)
  of_head = [np.mean(np.log(np.exp(z).sum(1)) - (z * y).sum(1)) for z in np.asarray(logits, np.float64)]
  want = {'plain': of_head[0], 'puzzled': of_head[1], 'both': np.mean(of_head)}[on]
  assert float(supervised) == pytest.approx(want, rel=1e-4)
  assert float(loss) == pytest.approx(want + 0.3 * float(beside), rel=1e-4)


def test_without_a_task_it_is_the_plain_objective(rng):
  found = objective(**{'hmtl.task': 'none'})
  plain = mimic.Plain(found.stage, small.model_section(), CLASSES)
  model, key = found.init(jax.random.key(0)), jax.random.key(int(rng.integers(2**31)))
  batch = {'image': photos(rng)[:, None], 'label': jnp.eye(3)[jnp.asarray(rng.integers(0, 3, 6))]}
  assert float(found.loss(model, batch, key, 0, 10)[0]) == float(plain.loss(model, batch, key, 0, 10)[0])


@pytest.mark.parametrize('targets', ['', 'yaw,roll'])
def test_what_is_measured_and_leaves_is_the_head_alone(targets, rng):
  fields = {'regression.targets': targets, **({'regression.loss': 'mae'} if targets else {})}
  found = objective(**fields)
  kind = regression.Objective if targets else mimic.Plain
  alone = kind(found.stage, small.model_section(), CLASSES)
  model = found.init(jax.random.key(0))
  assert (found.labelled, found.class_names) == (not targets, () if targets else CLASSES)
  image = rng.integers(0, 256, (4, 16, 16, 3), np.uint8)
  batch = {'image': image, 'label': rng.integers(0, 3, 4), 'mask': np.ones(4, bool)}
  batch |= {name: rng.normal(size=4).astype(np.float32) for name in found.targets}
  mine, theirs = found.evaluate(model, batch), alone.evaluate(model, batch)
  del model.places
  for name, value in alone.answers(model, alone._seen(image)).items():
    np.testing.assert_array_equal(found.answers(model, found.head._seen(image))[name], value)
  for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_array_equal(a, b)


def test_pose_with_puzzles_has_both_losses(rng):
  found = objective(**{'regression.targets': 'yaw,roll', 'regression.loss': 'mae', 'regression.scale': 30.0})
  batch = {'image': rng.integers(0, 256, (6, 16, 16, 3), np.uint8), 'yaw': jnp.ones(6), 'roll': jnp.ones(6)}
  seen = found.augment(batch, jax.random.key(0))
  loss, said = found.loss(found.init(jax.random.key(0)), seen, jax.random.key(1), 0, 10)
  assert float(loss) == pytest.approx(float(said['supervised'] + said['puzzle']), rel=1e-6)
  assert {'mae_loss_yaw', 'mae_loss_roll', 'tiles_placed'} <= said.keys()


@pytest.mark.parametrize(
  ('task', 'titles'), [('puzzle', ('picture', 'puzzle')), ('inpaint', ('picture', 'with a hole', 'painting'))]
)
def test_the_report_shows_the_task(task, titles, rng):
  found = objective(**{'hmtl.task': task})
  batch = {
    'image': rng.integers(0, 256, (3, 16, 16, 3), np.uint8),
    'label': np.zeros(3, int),
    'mask': np.ones(3, bool),
  }
  drawn = found.draw(found.init(jax.random.key(0)), batch, jax.random.key(0))
  assert drawn['task'].columns == titles
  assert drawn['task'].images.shape == (3, len(titles), 16, 16, 3)
  assert 'attention' in drawn


def test_a_run_does_not_go_on_with_another_frozen_network(monkeypatch, tmp_path):
  def begun(more: float) -> int:
    def read(objective, field, mesh):
      networks = step_lib.fresh_frozen(objective, mesh)
      add = lambda x: x + more if step_lib.is_weight(x) else x  # noqa: E731
      return networks._replace(arrays=jax.tree.map(add, networks.arrays))

    monkeypatch.setattr(step_lib, 'read_frozen', read)
    config = FrozenConfigDict(small.run_config(only=small.inpaint_stage(**{'hmtl.perceptual': 'w'})))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    stage = stage_lib.Stage(config, 'only', epath.Path(tmp_path), mesh)
    stage.prepare()
    with checkpoint.opened(stage.folder, 1) as checkpoints:
      step, state, meta = loop._begin(stage, checkpoints, start.Clock())
      checkpoints.save(1, state, meta)
    return step

  assert [begun(0.0), begun(0.0)] == [0, 1]
  with pytest.raises(UserError, match=r"config\.only\.hmtl\.perceptual 'w' no longer holds the network"):
    begun(1.0)


def test_one_process_of_several_draws_with_networks_on_its_own_devices(monkeypatch, tmp_path):
  fresh = lambda objective, field, mesh: step_lib.fresh_frozen(objective, mesh)  # noqa: E731
  monkeypatch.setattr(step_lib, 'read_frozen', fresh)
  # as of a mesh whose second device is another process's
  monkeypatch.setattr(sharding, 'local', lambda tree, mesh: jax.device_put(tree, jax.devices()[0]))
  config = FrozenConfigDict(small.run_config(only=small.inpaint_stage(**{'hmtl.perceptual': 'w'})))
  stage = stage_lib.Stage(config, 'only', epath.Path(tmp_path), sharding.make_mesh(devices=jax.devices()[:2]))
  stage.prepare()
  drawn = []
  monkeypatch.setattr(stage.objective, 'draw', lambda model, batch, key: drawn.append(model) or {})
  results._draw(stage, stage.program.init(jax.random.key(0)))
  state = nnx.state(drawn[0])
  assert 'perceptual' in state
  assert {d for x in jax.tree.leaves(state) for d in x.sharding.device_set} == {jax.devices()[0]}


@pytest.mark.parametrize(
  ('model', 'fields', 'expected'),
  [
    ({}, {'hmtl.grid': 3}, r'hmtl\.grid is 3; expected a divisor of model\.image_size, 16 pixels'),
    ({}, {'hmtl.grid': 4}, r'tiles of 4 pixels are no whole patches of 8, .*hmtl\.allow_seams=True'),
    ({}, {'hmtl.gap': 5}, r'hmtl\.gap is 5; expected at most 4, half a tile'),
    (RESNET, {'hmtl.allow_seams': True}, r'hmtl\.allow_seams is True; expected False, its default'),
    ({}, {'hmtl.hole': 'tiles'}, r"hmtl\.hole is 'tiles'; expected 'square'"),
    ({}, {'hmtl.task': 'none', 'hmtl.weight': 0.3}, r'hmtl\.weight is 0\.3; expected 1\.0'),
    ({}, {'hmtl.task': 'inpaint', 'hmtl.gap': 1}, r'hmtl\.gap is 1; expected 0'),
    ({**RESNET, 'image_size': 40}, {'hmtl.task': 'inpaint'}, r'image_size is 40; expected a multiple of 16'),
    (RESNET, {'hmtl.task': 'inpaint', 'hmtl.decoder_dim': 12}, r'decoder_dim is 12; expected a positive multiple of 8'),
    ({}, {'regression.scale': 2.0}, r'regression\.scale is 2\.0; expected 1\.0'),
    ({}, {'regression.targets': 'yaw', 'mix.probability': 0.5}, r'mix\.probability is 0\.5; expected 0\.0'),
  ],
)  # fmt: skip
def test_what_can_not_be_is_refused_in_one_line(model, fields, expected):
  with pytest.raises(UserError, match=expected) as caught:
    objective(model, **fields)
  assert '\n' not in str(caught.value)


def test_seams_may_be_allowed():
  assert objective(**{'hmtl.grid': 4, 'hmtl.allow_seams': True}).task == 'puzzle'


@pytest.mark.processes
@pytest.mark.parametrize('stage', ['hmtl_stage', 'inpaint_stage'])
def test_a_run_is_reported_and_leaves_without_the_tasks_branch(stage, tmp_path):
  file = tmp_path / 'config.py'
  file.write_text(
    f'from tests import small\ndef get_config():\n  return small.run_config(only=small.{stage}(steps=2))\n'
  )
  run, out = tmp_path / 'run', tmp_path / 'out'
  main.main(['--config', str(file), '--workdir', str(run)])
  found = json.loads((run / 'only' / 'result.json').read_text())['metrics']['valid']
  assert {'accuracy', 'loss'} <= found.keys()
  assert 'The task beside' in (run / 'report.html').read_text()
  main.main(['export', '--checkpoint', str(run), '--format', 'hf', '--out', str(out)])
  mine, left = weights.read(str(run), 'x').tensors, weights.read(str(out), 'x').tensors
  branch = {name for name in mine if name.split('/')[0] in ('places', 'painter')}
  assert branch
  assert not branch & left.keys()
  for name in ('classifier/fc/kernel', 'encoder/patch_embed/kernel', 'fc_norm/scale'):
    np.testing.assert_array_equal(left[name], mine[name], err_msg=name)
  assert trained.locate(str(run), 'x')[1] == 2


def test_a_stage_that_classifies_is_found_among_several(tmp_path):
  for name, classifier in (('one', ''), ('two', 'classifier/fc')):
    folder = tmp_path / name / 'checkpoints'
    meta = {'stage': name, 'config': {name: {'objective': 'hmtl'}}, 'reading': {'classifier': classifier}}
    with checkpoint.opened(epath.Path(tmp_path / name), 1) as checkpoints:
      checkpoints.save(1, {'step': jnp.zeros((), jnp.int32)}, meta)
      checkpoints.confirm()
    assert folder.exists()
  assert trained.locate(str(tmp_path), 'x') == (epath.Path(tmp_path / 'two' / 'checkpoints'), 1)

"""AMCL's contrast: a step of z and a step of the encoder against a PyTorch loop, what neither may touch, where the masks are from, what is refused."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from ml_collections import FrozenConfigDict

from mimic_jax import models
from mimic_jax.models import dcgan, heads, resnet
from mimic_jax.objectives import amcl
from mimic_jax.runtime import checkpoint, errors, sharding
from mimic_jax.training import stage as stage_lib
from mimic_jax.training import step as step_lib
from mimic_jax.training import trained
from tests import small
from tests.objectives.test_amcl_masks import torch_players

B, S, D, DIM, WIDTH = 5, 16, 7, 6, 3
TAU, ETA = 0.5, 3.0


def objective(model=None, **fields):
  stage = small.amcl_stage(**{'amcl.masks': 'there', 'amcl.dim': DIM, 'amcl.masks_width': WIDTH, **fields})
  return amcl.Objective(stage, model or small.model_section(), ())


class Flat(nnx.Module):
  """An encoder that PyTorch has in two lines: tanh of a normed product."""

  def __init__(self, rngs):
    self.fc = nnx.Linear(3 * S * S, D, use_bias=False, rngs=rngs)
    self.norm = resnet.batch_norm(D, 'float32', rngs)

  def features(self, images, *, key=None, pool=''):
    x = self.fc(images.reshape(len(images), -1))
    return jnp.tanh(self.norm(x, use_running_average=key is None))


class Whole(nnx.Module):
  """What the loss sees of a model, with random weights large enough that masks differ."""

  def __init__(self, rngs, table=0):
    self.encoder, self.projector = Flat(rngs), heads.ProjectionHead('dense', D, DIM, rngs)
    self.generator = dcgan.Generator(WIDTH, rngs)
    if table:
      self.latents = nnx.Variable(jax.random.normal(rngs.params(), (table, dcgan.LATENT)))


def made(rng, table=0):
  template, params, rest = models.split(Whole(nnx.Rngs(0), table), lambda path: path[0] != 'generator')
  for tree in (params, rest):
    flat = checkpoint.flatten(tree)
    for name, x in flat.items():
      if name.endswith(('kernel', 'bias')):
        flat[name] = x + jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32)
    tree.update(checkpoint.nest(flat))
  return template, params, rest


def nt_xent_of_the_page(torch, rows):
  """Rows 2b and 2b + 1 are of a picture; the mean of −log s_ip / Σ_{a ≠ i} s_ia over all."""
  s = torch.exp(rows @ rows.T / TAU)
  total = 0.0
  for i in range(len(rows)):
    total -= torch.log(s[i, i ^ 1] / (s[i].sum() - s[i, i]))
  return total / len(rows)


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'masked': 'both', 'shell': False, 'steps': 2},
    {'edges': 'hard', 'share': (0.7, 0.8)},
    {'latents': 'table', 'table': 9, 'share': (0.1, 0.2), 'share_weight': 5.0},
  ],
  ids=['first', 'both', 'hard', 'table'],
)
def test_a_step_of_the_masks_and_one_of_the_encoder_are_those_of_a_pytorch_loop(fields, rng):
  torch = pytest.importorskip('torch')
  f = {'eta': ETA, 'temperature': TAU, **fields}
  learner = objective(**{f'amcl.{k}': v for k, v in f.items()}, **{'batch_images': B})
  f = learner.stage.amcl
  template, params, rest = made(rng, f.table if f.latents == 'table' else 0)
  views = rng.normal(size=(B, 2, S, S, 3)).astype(np.float32)
  key = jax.random.key(int(rng.integers(2**31)))

  def loss(params):
    model = models.merge(template, params, rest)
    value, said = learner.loss(model, {'image': jnp.asarray(views)}, key, jnp.asarray(0), 10)
    return value, (said, models.rest_of(template, model))

  (value, (said, after)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

  double = lambda x: torch.tensor(np.asarray(x, np.float64))  # noqa: E731
  flat = {
    k: np.asarray(v, np.float64)
    for k, v in {**checkpoint.flatten(rest), **checkpoint.flatten(params)}.items()
  }
  for k in range(4):  # torch_players wants a critic, too, which plays no part
    flat |= {
      f'critic/layers/{k}/kernel': np.zeros((4, 4, 1 if not k else 2, 2)),
      'critic/last/kernel': np.zeros((4, 4, 2, 1)),
    }
    flat |= {f'critic/norms/{k}/{n}': np.ones(2) for n in ('scale', 'bias')}
  generator = torch_players(torch, flat)[0].eval()
  theta = {k: double(v).requires_grad_() for k, v in flat.items() if k.startswith(('encoder', 'projector'))}

  def rows_of(z):
    m = generator(z[:, :, None, None])
    m = torch.nn.functional.interpolate(m, (S, S), mode='bilinear', antialias=True)
    if f.edges == 'hard':
      m = m + ((m > 0.5).double() - m).detach()
    x = double(views).permute(0, 1, 4, 2, 3)
    x = torch.stack([x[:, 0] * m, x[:, 1] * m if f.masked == 'both' else x[:, 1]], dim=1)
    x = x.permute(0, 1, 3, 4, 2).reshape(2 * B, -1)
    h = x @ theta['encoder/fc/kernel']
    mean, spread = h.mean(0), h.var(0, unbiased=False) + 1e-5
    h = (h - mean) / spread.sqrt() * theta['encoder/norm/scale'] + theta['encoder/norm/bias']
    h = torch.tanh(h)
    h = torch.relu(h @ theta['projector/fc1/kernel'] + theta['projector/fc1/bias'])
    h = h @ theta['projector/fc2/kernel'] + theta['projector/fc2/bias']
    return h / h.norm(dim=1, keepdim=True), m[:, 0], mean

  z_key = jax.random.split(key)[1]
  if f.latents == 'table':
    place = np.asarray(jax.random.permutation(z_key, f.table)[:B])
    start = np.asarray(rest['latents'])[place]
  else:
    start = jax.random.normal(z_key, (B, dcgan.LATENT))
  z, before = double(start), None
  for _ in range(f.steps):
    z.requires_grad_()
    rows, m, _ = rows_of(z)
    contrast = nt_xent_of_the_page(torch, rows)
    before = contrast.item() if before is None else before
    hidden = (1 - m).mean((1, 2))
    low, high = f.share
    penalty = (torch.relu(low - hidden) + torch.relu(hidden - high)).mean()
    (rise,) = torch.autograd.grad(contrast - f.share_weight * penalty, z)
    rise = 2 * B * rise  # of the sum over rows
    z = (z + f.eta * rise).detach()
  if f.shell:
    z = z / z.norm(dim=1, keepdim=True) * dcgan.LATENT**0.5
  rows, m, mean = rows_of(z)
  expected = nt_xent_of_the_page(torch, rows)
  expected.backward()

  assert float(value) == pytest.approx(expected.item(), rel=1e-5)
  assert float(said['before']) == pytest.approx(before, rel=1e-5)
  assert float(said['risen']) == pytest.approx(expected.item() - before, abs=1e-5)
  assert f.eta * float(rise.abs().max()) > 1e-2  # with hard edges no pixel need change for it
  assert float(said['hidden']) == pytest.approx(1 - m.mean().item(), rel=1e-5)
  for name, gradient in checkpoint.flatten(gradients).items():
    want = theta[name].grad.numpy()
    np.testing.assert_allclose(gradient, want, rtol=1e-4, atol=1e-5 * np.abs(want).max(), err_msg=name)
  # of the statistics of three passes, those of the encoder step
  np.testing.assert_allclose(
    after['encoder']['norm']['mean'], 0.1 * mean.detach().numpy(), rtol=1e-4, atol=1e-5
  )
  if f.latents == 'table':
    kept = np.asarray(rest['latents']).copy()
    kept[place] = z.numpy()
    np.testing.assert_allclose(after['latents'], kept, rtol=1e-5, atol=1e-5)
    assert np.abs(kept[place] - start).max() > 1e-3


def stage_of(tmp_path, model=None, **fields):
  config = small.run_config(only=small.amcl_stage(**{'batch_images': 8, **fields}))
  config.model.update(model or {})
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  return stage_lib.Stage(FrozenConfigDict(config), 'only', epath.Path(tmp_path), mesh)


@pytest.mark.processes
def test_the_latent_step_leaves_the_encoder_and_the_encoder_step_the_latents_to_the_bit(tmp_path):
  table = {'amcl.latents': 'table', 'amcl.table': 16, 'optim.weight_decay': 0.0}

  def stepped(lr):
    stage = stage_of(tmp_path, **table, **{'optim.lr': lr})
    state = stage.program.init(jax.random.key(0))
    begun = jax.device_get({k: checkpoint.flatten(state[k]) for k in ('params', 'rest')})
    batch = sharding.to_devices(next(stage.batches(0)), stage.mesh)
    state, measured = stage.program.step(state, batch, jax.random.key(1))
    assert np.isfinite(float(measured['loss']))
    ended = jax.device_get({k: checkpoint.flatten(state[k]) for k in ('params', 'rest')})
    return begun, ended

  (begun, still), (_, moved) = stepped(0.0), stepped(0.1)
  changed = np.abs(still['rest']['latents'] - begun['rest']['latents']).max(axis=1) > 0
  assert changed.sum() == 8  # those of the batch
  for name, x in still['params'].items():
    assert x.tobytes() == begun['params'][name].tobytes(), name
  assert moved['rest']['latents'].tobytes() == still['rest']['latents'].tobytes()
  assert any(x.tobytes() != still['params'][k].tobytes() for k, x in moved['params'].items())


def test_the_generator_is_that_of_an_earlier_stage_of_the_run(tmp_path):
  config = FrozenConfigDict(
    small.run_config(masks=small.amcl_masks_stage(), pretrain=small.amcl_stage(**{'amcl.masks': 'masks'}))
  )
  mesh = sharding.make_mesh()
  stage = stage_lib.Stage(config, 'pretrain', epath.Path(tmp_path), mesh)  # before the other one has run
  with pytest.raises(
    errors.UserError, match=r"config\.pretrain\.amcl\.masks is '.*masks', which does not exist"
  ):
    stage.prepare()
  written = checkpoint.read_arrays(
    *checkpoint.find(epath.Path(small.generator(str(tmp_path / 'masks')))), ('params', 'rest')
  )
  stage.prepare()
  held = stage.program.frozen.arrays['generator']
  params, rest = (checkpoint.flatten(tree) for tree in jax.device_get(held))
  for name, x in {**params, **rest}.items():
    (array,) = (written[k] for k in (f'params/generator/{name}', f'rest/generator/{name}') if k in written)
    np.testing.assert_array_equal(x, array, err_msg=name)
  # whoever reads the stage's checkpoint needs no generator
  state = stage.program.init(jax.random.key(0))
  meta = {'stage': 'pretrain', 'config': config.to_dict(), 'reading': stage.reading()}
  with checkpoint.opened(stage.folder) as checkpoints:
    checkpoints.save(1, {k: state[k] for k in ('params', 'rest')}, meta)
  shutil.rmtree(tmp_path / 'masks')
  assert trained.load(str(tmp_path / 'pretrain'), mesh).frozen.arrays == {}
  fresh = step_lib.fresh_frozen(stage.objective, mesh).arrays['generator']
  assert jax.tree.structure(fresh) == jax.tree.structure(held)


def test_without_masks_it_is_simclr_and_needs_no_generator(rng):
  torch = pytest.importorskip('torch')
  learner = objective(
    **{
      'amcl.masked': 'none',
      'amcl.masks': '',
      'amcl.masks_width': 64,
      'amcl.eta': 0.1,
      'amcl.temperature': TAU,
    }
  )
  assert learner.frozen() == {}
  template, *trees = made(rng)
  views = jnp.asarray(rng.normal(size=(B, 2, S, S, 3)), jnp.float32)
  key = jax.random.key(0)

  def of(function):
    return jax.jit(lambda *given: function(models.merge(template, *trees), *given))

  value, said = of(lambda model, x: learner.loss(model, {'image': x}, key, None, 1))(views)
  rows = of(lambda model, x: amcl.project(model.encoder, model.projector, x, key))(views.reshape(-1, S, S, 3))
  rows = np.asarray(rows, np.float64)
  assert float(value) == pytest.approx(nt_xent_of_the_page(torch, torch.tensor(rows)).item(), rel=1e-5)
  nearest = np.argmax(rows @ rows.T - 9 * np.eye(2 * B), axis=1)
  assert float(said['positives_found']) == pytest.approx(np.mean(nearest == np.arange(2 * B) ^ 1))
  # a split's loss is of the same rows whatever pads the batch
  image = jnp.asarray(rng.integers(0, 256, (B, 20, 24, 3), np.uint8))
  batch = {'image': image, 'index': jnp.arange(B), 'mask': jnp.arange(B) < B - 1}
  evaluate = of(lambda model, batch: learner.evaluate(model, batch)['sums']['loss'])
  np.testing.assert_allclose(evaluate(batch), evaluate({k: v[:-1] for k, v in batch.items()}), rtol=1e-5)


def test_what_a_mask_pays_is_how_far_its_share_is_beyond_the_bounds():
  shares = np.array([0.0, 0.05, 0.3, 0.6, 0.9])
  masks = np.ones((5, 10, 10))
  for mask, share in zip(masks, shares):
    mask.reshape(-1)[: round(100 * share)] = 0
  expected = np.mean([0.1, 0.05, 0.0, 0.0, 0.3])
  assert float(amcl.share_penalty(jnp.asarray(masks), (0.1, 0.6))) == pytest.approx(expected, abs=1e-6)


def test_the_report_shows_views_of_which_the_first_are_masked(rng):
  learner = objective(**{'augment.scale': (1.0, 1.0), 'augment.jitter_probability': 0.0, 'augment.blur': 0.0})
  model = models.merge(*made(rng))
  white = np.full((3, S, S, 3), 255, np.uint8)
  drawn = learner.draw(model, {'image': white}, jax.random.key(0))['views'].images
  assert drawn.shape == (3, 2, S, S, 3)
  assert (drawn[:, 1] == 255).all()
  assert (drawn[:, 0] < 250).any()


@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    ({'amcl.masks': ''}, 'amcl.masks is empty'),
    ({'amcl.masked': 'none'}, "amcl.masks is 'there', and amcl.masked 'none'"),
    ({'amcl.table': 99}, "amcl.table is 99, and amcl.latents 'fresh'"),
    ({'amcl.steps': 0}, 'amcl.eta is 1.25, and amcl.steps 0'),
    ({'amcl.share_weight': 0.0, 'amcl.share': (0.2, 0.3)}, 'amcl.share is (0.2, 0.3), and amcl.share_weight 0.0'),
    ({'amcl.share': (0.6, 0.1)}, 'amcl.share is (0.6, 0.1)'),
    ({'amcl.latents': 'table', 'amcl.table': 3}, 'amcl.table is 3; expected at least 16'),
    ({'batch_images': 1}, 'batch_images is 1'),
    ({'augment.jitter': (0.8,)}, 'augment.jitter is'),
    ({'augment.blur_sigma': (2.0, 0.1)}, 'augment.blur_sigma is'),
  ],
)  # fmt: skip
def test_what_has_no_effect_or_no_meaning_is_refused(fields, said):
  with pytest.raises(errors.UserError) as e:
    objective(**fields)
  assert said in str(e.value)
  assert '\n' not in str(e.value)

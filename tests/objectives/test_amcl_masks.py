"""AMCL's masks: both networks and a step of both players against PyTorch from the formulas, what is drawn of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimic_jax import models
from mimic_jax.models import dcgan
from mimic_jax.objectives import amcl_masks
from mimic_jax.runtime import checkpoint
from tests import small

B, WIDTH = 6, 3


def objective(**fields):
  return amcl_masks.Objective(
    small.amcl_masks_stage(**{'gan.width': WIDTH, **fields}), small.model_section(), ()
  )


def shaken(learner, rng):
  """Returns a model's template and its two trees with weights large enough that masks and judgements differ."""
  template, params, rest = models.split(learner.init(jax.random.key(0)), learner.trainable)
  spread = lambda x: jnp.asarray(x + rng.normal(0, 0.2, x.shape), jnp.float32)  # noqa: E731
  return template, jax.tree.map(spread, params), rest


def torch_players(torch, flat):
  """Returns DCGAN's two networks in PyTorch with our weights, float64."""
  nn = torch.nn

  def norm(name):
    made = nn.BatchNorm2d(len(flat[f'{name}/scale']))
    made.weight.data, made.bias.data = (torch.tensor(flat[f'{name}/{k}']) for k in ('scale', 'bias'))
    return made

  def kernel(made, name, axes):
    made.weight.data = torch.tensor(flat[f'{name}/kernel'].transpose(axes).copy())
    return made

  def up(name, stride, padding):  # [k, k, in, out] → [in, out, k, k]
    i, o = flat[f'{name}/kernel'].shape[2:]
    return kernel(nn.ConvTranspose2d(i, o, 4, stride, padding, bias=False), name, (2, 3, 0, 1))

  def down(name, stride, padding):
    i, o = flat[f'{name}/kernel'].shape[2:]
    return kernel(nn.Conv2d(i, o, 4, stride, padding, bias=False), name, (3, 2, 0, 1))

  generator = [up('generator/first', 1, 0)]
  for k in range(4):
    generator += [norm(f'generator/norms/{k}'), nn.ReLU(), up(f'generator/layers/{k}', 2, 1)]
  generator[-1].bias = nn.Parameter(torch.tensor(flat['generator/bias']))
  critic = [down('critic/layers/0', 2, 1), nn.LeakyReLU(0.2)]
  for k in range(1, 4):
    critic += [down(f'critic/layers/{k}', 2, 1), norm(f'critic/norms/{k - 1}'), nn.LeakyReLU(0.2)]
  critic += [down('critic/last', 1, 0)]
  return tuple(nn.Sequential(*layers).double() for layers in ([*generator, nn.Sigmoid()], critic))


def gradients_of(torch, players):
  """Returns the gradient of each parameter by our names and in our order of axes."""
  found = {'generator/bias': players[0][-2].bias.grad.numpy()}
  for who, player in zip(('generator', 'critic'), players):
    norms = layers = 0
    for module in player:
      if isinstance(module, torch.nn.BatchNorm2d):
        found[f'{who}/norms/{norms}/scale'], found[f'{who}/norms/{norms}/bias'] = (
          module.weight.grad.numpy(), module.bias.grad.numpy(),
        )  # fmt: skip
        norms += 1
      elif hasattr(module, 'weight'):
        axes = (2, 3, 0, 1) if who == 'generator' else (2, 3, 1, 0)
        name = f'layers/{layers - (who == "generator")}'
        if (who, layers) == ('generator', 0):
          name = 'first'
        if (who, layers) == ('critic', 4):
          name = 'last'
        found[f'{who}/{name}/kernel'] = module.weight.grad.numpy().transpose(axes)
        layers += 1
  return found


@pytest.mark.parametrize('form', amcl_masks.GENERATOR_LOSSES)
def test_a_step_of_both_players_is_that_of_a_pytorch_loop(form, rng):
  torch = pytest.importorskip('torch')
  learner = objective(**{'gan.generator_loss': form})
  template, params, rest = shaken(learner, rng)
  real = rng.uniform(size=(B, 64, 64)).astype(np.float32)
  key = jax.random.key(int(rng.integers(2**31)))

  def loss(params):
    model = models.merge(template, params, rest)
    value, said = learner.loss(model, {'image': jnp.asarray(real)}, key, jnp.asarray(0), 10)
    return value, (said, models.rest_of(template, model))

  (_, (said, after)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

  flat = {k: np.asarray(v, np.float64) for k, v in checkpoint.flatten(params).items()}
  players = generator, critic = torch_players(torch, flat)
  log = torch.nn.functional.logsigmoid
  z = torch.tensor(np.asarray(jax.random.normal(key, (B, dcgan.LATENT)), np.float64))[:, :, None, None]
  fake = generator(z)
  judged = critic(fake)
  of_generator = -log(judged).mean() if form == 'non_saturating' else log(-judged).mean()
  of_generator.backward()
  critic.zero_grad()  # what the generator's loss says of the critic is not used
  for module in critic:  # nor does it change the critic's statistics
    if isinstance(module, torch.nn.BatchNorm2d):
      module.reset_running_stats()
  drawn = critic(torch.tensor(real, dtype=torch.float64)[:, None])
  made = critic(fake.detach())
  of_critic = -log(drawn).mean() - log(-made).mean()
  of_critic.backward()

  assert float(said['critic']) == pytest.approx(of_critic.item(), rel=1e-5)
  assert float(said['generator']) == pytest.approx(of_generator.item(), rel=1e-5)
  assert float(said['real_right']) == pytest.approx((drawn > 0).double().mean().item())
  assert float(said['fake_right']) == pytest.approx((made <= 0).double().mean().item())
  assert float(said['hidden']) == pytest.approx(1 - fake.mean().item(), rel=1e-5)
  expected = gradients_of(torch, players)
  assert expected.keys() == checkpoint.flatten(gradients).keys()
  largest = {
    who: max(np.abs(g).max() for k, g in expected.items() if k.startswith(who)) for who in ('gen', 'cri')
  }
  for name, gradient in checkpoint.flatten(gradients).items():
    np.testing.assert_allclose(
      gradient, expected[name], atol=1e-5 * largest[name[:3]], rtol=1e-4, err_msg=name
    )
  statistics = checkpoint.flatten(after)
  for who, player in zip(('generator', 'critic'), players):
    norms = [m for m in player if isinstance(m, torch.nn.BatchNorm2d)]
    for k, module in enumerate(norms):
      np.testing.assert_allclose(
        statistics[f'{who}/norms/{k}/mean'], module.running_mean, rtol=1e-4, atol=1e-5
      )


@pytest.mark.parametrize('player', ['generator', 'critic'])
def test_networks_with_running_statistics_are_pytorch_s(player, rng):
  torch = pytest.importorskip('torch')
  template, params, rest = shaken(objective(), rng)
  flat = {k: np.asarray(v, np.float64) for k, v in checkpoint.flatten(params).items()}
  there = dict(zip(('generator', 'critic'), torch_players(torch, flat)))[player].eval()
  x = rng.normal(size=(B, dcgan.LATENT) if player == 'generator' else (B, 64, 64)).astype(np.float32)
  got = getattr(models.merge(template, params, rest), player)(jnp.asarray(x), running=True)
  wide = x[:, :, None, None] if player == 'generator' else x[:, None]
  with torch.no_grad():
    expected = there(torch.tensor(wide, dtype=torch.float64)).numpy().squeeze()
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_a_generator_begins_with_masks_that_hide_little(rng):
  graph, state = nnx.split(dcgan.Generator(2, nnx.Rngs(int(rng.integers(2**31)))))
  z = jnp.asarray(rng.normal(size=(B, dcgan.LATENT)), jnp.float32)
  masks = jax.jit(lambda state: nnx.merge(graph, state)(z, running=False))(state)
  assert 0.1 < float(1 - masks.mean()) < 0.2  # 1 - sigmoid(2) = .12


def test_the_maps_have_the_channels_of_the_page():
  model = nnx.eval_shape(lambda: amcl_masks.Model(64, nnx.Rngs(0)))
  shapes = [k.kernel.shape for k in (model.generator.first, *model.generator.layers)]
  assert shapes == [(4, 4, 128, 512), (4, 4, 512, 256), (4, 4, 256, 128), (4, 4, 128, 64), (4, 4, 64, 1)]
  mirror = [k.kernel.shape for k in (*model.critic.layers, model.critic.last)]
  assert [(c, d) for *_, c, d in mirror[::-1]] == [(512, 1), (256, 512), (128, 256), (64, 128), (1, 64)]


def test_masks_are_read_as_shares_of_white_whole_and_mirrored_half_of_the_time(rng):
  drawn = rng.integers(0, 2, (64, 64, 64, 1), np.uint8).repeat(3, axis=-1) * 255
  got = np.asarray(
    objective().augment({'image': jnp.asarray(drawn)}, jax.random.key(int(rng.integers(99))))['image']
  )
  plain = drawn[..., 0] / 255
  same = np.abs(got - plain).max(axis=(1, 2)) < 1e-5
  turned = np.abs(got - plain[:, :, ::-1]).max(axis=(1, 2)) < 1e-5
  assert (same | turned).all()
  assert 12 < same.sum() < 52


def test_the_report_shows_a_sheet_of_masks_and_a_split_has_both_players_figures(rng):
  learner = objective()
  model = models.merge(*shaken(learner, rng))
  sheet = learner.look(model, {})['masks'].images
  assert sheet.shape == (4, 8, 64, 64, 3)
  assert np.ptp(sheet.reshape(32, -1), axis=0).mean() > 10  # masks of other latent variables differ
  np.testing.assert_array_equal(sheet, learner.look(model, {})['masks'].images)
  image = jnp.asarray(rng.integers(0, 256, (B, 48, 40, 3), np.uint8))
  mask = jnp.arange(B) < B - 2
  batch = {'image': image, 'index': jnp.arange(B), 'mask': mask}
  padded = learner.evaluate(model, batch)['sums']
  whole = learner.evaluate(model, {k: v[: B - 2] for k, v in batch.items()})['sums']
  for name, (total, count) in padded.items():
    assert count == B - 2
    np.testing.assert_allclose(total, whole[name][0], rtol=1e-4)
  score = learner.answers(model, image / 255.0)['score']
  assert float(padded['real_right'][0]) == np.sum(np.asarray(score)[: B - 2] > 0)

"""The ResNet encoder against PyTorch and loops, over several devices, from published names, and where it can not be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util
from ml_collections import FrozenConfigDict
from safetensors.numpy import save_file

from mimic_jax import models, objectives, weights
from mimic_jax.models import resnet
from mimic_jax.runtime import checkpoint, sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.weights import facts
from tests import peers, small


def section(**fields):
  fields = {
    'preset': 'resnet18',
    'dim': 0,
    'depth': 0,
    'heads': 0,
    'patch_size': 0,
    'image_size': 32,
    **fields,
  }
  return small.model_section(**fields)


@pytest.mark.parametrize(('preset', 'stem'), [('resnet18', '3x3'), ('resnet18', '7x7'), ('resnet50', '7x7')])
def test_published_weights_give_pytorchs_features(rng, tmp_path, preset, stem):
  torch = pytest.importorskip('torch')
  torch.manual_seed(int(rng.integers(2**31)))
  net = peers.torch_resnet(torch, *resnet.PRESETS[preset], stem == '3x3')
  state = {k: v.numpy() for k, v in net.state_dict().items() if v.ndim}
  save_file(state, tmp_path / 'w.safetensors')
  config = models.encoder_config(section(preset=preset, stem=stem, image_size=64))
  template, params, rest = models.split(nnx.eval_shape(lambda: config.create(nnx.Rngs(0))), lambda path: True)
  read = weights.read(str(tmp_path / 'w.safetensors'), 'init')
  assert read.kind == 'ResNet (torchvision, timm)'
  target = {f'encoder/{k}': v for t in (params, rest) for k, v in checkpoint.flatten(t).items()}
  fitted, account = weights.fit(read, target, lambda path: 'needed', 'init')
  assert account['unused'] == ['fc.bias', 'fc.weight']
  np.testing.assert_array_equal(read.tensors['classifier/fc/kernel'], state['fc.weight'].T)
  given = {k.removeprefix('encoder/'): v for k, v in fitted.items()}
  params, rest = (checkpoint.nest({k: given[k] for k in checkpoint.flatten(t)}) for t in (params, rest))
  x = rng.normal(size=(8, 64, 64, 3)).astype(np.float32)
  pictures = torch.from_numpy(x.transpose(0, 3, 1, 2))

  @jax.jit
  def features(params, rest, key):
    model = models.merge(template, params, rest)
    return model.features(x, key=key), models.rest_of(template, model)

  with torch.no_grad():
    want = net.eval()(pictures).numpy()
  np.testing.assert_allclose(features(params, rest, None)[0], want, rtol=1e-3, atol=1e-4 * np.abs(want).max())
  with torch.no_grad():
    want = net.train()(pictures).numpy()
  got, after = features(params, rest, jax.random.key(0))
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-3 * np.abs(want).max())
  np.testing.assert_allclose(after['bn1']['mean'], net.bn1.running_mean.numpy(), rtol=1e-3, atol=1e-4)
  n = 8 * (64 * 64 if stem == '3x3' else 32 * 32)  # ours is the biased variance
  before, unbiased = state['bn1.running_var'], net.bn1.running_var.numpy()
  biased = 0.9 * before + (unbiased - 0.9 * before) * (n - 1) / n
  np.testing.assert_allclose(after['bn1']['var'], biased, rtol=1e-3)


def test_batch_statistics_are_those_of_the_whole_batch_over_several_devices(rng):
  config = resnet.Config(32, (1, 1, 1, 1), False, '3x3', 'float32')
  template, params, rest = models.split(config.create(nnx.Rngs(0)), lambda path: True)
  x = rng.normal(size=(8, 32, 32, 3)).astype(np.float32) * np.arange(1, 9).reshape(8, 1, 1, 1)

  @jax.jit
  def run(x):
    model = models.merge(template, params, rest)
    return model.features(x, key=jax.random.key(0)), models.rest_of(template, model)['bn1']

  one, spread = run(x), run(jax.device_put(x, sharding.over_batch(sharding.make_mesh())))
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(spread), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_sizes_and_layers_are_the_published_ones():
  counts = {'resnet18': 11_176_512, 'resnet50': 23_508_032}
  for preset, want in counts.items():
    config = models.encoder_config(section(preset=preset, image_size=224))
    assert config.stem == '7x7'
    assert small.parameter_count(config.create) == want
  config = models.encoder_config(section(image_size=48))
  assert (config.stem, config.dim, config.layers) == ('3x3', 512, 5)
  ids = [config.layer_id((name, '0', 'conv1', 'kernel')) for name in ('conv1', 'bn1', 'layer1', 'layer4')]
  assert ids == [0, 0, 1, 4]


def test_a_narrow_one_is_the_same_with_its_share_of_the_width_and_says_so_in_its_weights():
  for preset, dim in (('resnet18', 64), ('resnet50', 256)):
    config = models.encoder_config(section(preset=preset, dim=dim))
    encoder = config.create(nnx.Rngs(0))
    widths = [getattr(encoder, f'layer{n}')[0].conv1.kernel.shape[-1] for n in (1, 2, 3, 4)]
    assert (config.dim, widths) == (dim, [8, 16, 32, 64])
    assert encoder.features(jnp.zeros((2, 48, 48, 3))).shape == (2, dim)
    state = nnx.to_pure_dict(nnx.state({'encoder': encoder}))
    tensors = {'/'.join(map(str, k)): v for k, v in traverse_util.flatten_dict(state).items()}
    found = facts.of_checkpoint(tensors, {'config': {'model': {'layer_norm_eps': 1e-6}}})
    assert facts.sizes(found) == {'dim': dim, 'stem': '3x3'}
    assert found['preset'] == preset


@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    ({'patch_size': 8}, 'model.patch_size is 8, and a resnet18 has none; expected 0'),
    ({'registers': 4}, 'model.registers is 4, and a resnet18 has none; expected 0'),
    ({'layer_scale': 1.0}, 'model.layer_scale is 1.0, and a resnet18 has none; expected 0'),
    ({'heads': 2}, 'model.heads is 2, and a resnet18 has none'),
    ({'image_size': 16}, 'model.image_size is 16; expected at least 32'),
    ({'stem': '5x5'}, "model.stem is '5x5'"),
    ({'dim': 100}, 'model.dim is 100; expected a multiple of 8 for a resnet18, or 0, its 512'),
  ],
)
def test_fields_that_mean_nothing_to_it_are_refused(fields, said):
  with pytest.raises(UserError, match=said):
    models.encoder_config(section(**fields))


def test_what_it_can_not_do_is_one_line():
  with pytest.raises(UserError, match=r"config.model.preset is 'resnet18'; expected a ViT"):
    objectives.make(small.mae_stage(), section(), (), 'objective')
  stage = FrozenConfigDict(small.mimic_stage(**{'drop_path': 0.0, 'head.pool': 'cls'}))
  with pytest.raises(UserError, match=r"head.pool is 'cls', and a resnet18 has no class token; expected gap"):
    objectives.make(stage, section(), ('a', 'b'), 'objective')


@pytest.mark.parametrize(
  ('extra', 'message'),
  [('layer1.2.conv1.weight', r"'layer1.2.conv1.weight', a block that the model has not"), ('layer1.0.se.fc1.weight', r"it has 'layer1.0.se.fc1.weight'")],
)  # fmt: skip
def test_a_deeper_or_another_resnet_is_refused(extra, message, tmp_path):
  torch = pytest.importorskip('torch')
  net = peers.torch_resnet(torch, (2, 2, 2, 2), False, False)
  state = {k: v.numpy() for k, v in net.state_dict().items() if v.ndim}
  shape = state['layer1.1.conv1.weight'].shape
  save_file({**state, extra: np.zeros(shape, np.float32)}, tmp_path / 'w.safetensors')
  objective = objectives.make(
    small.mimic_stage(drop_path=0.0), section(image_size=64, stem='7x7'), ('a', 'b'), 'x'
  )
  _, params, rest = models.split(nnx.eval_shape(objective.init, jax.random.key(0)), objective.trainable)
  target = {**checkpoint.flatten(params), **checkpoint.flatten(rest)}
  with pytest.raises(UserError, match=message):
    weights.fit(weights.read(str(tmp_path / 'w.safetensors'), 'init'), target, objective.initial, 'init')

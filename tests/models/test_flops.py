"""The analytic count of operations: against published counts, and against XLA's count of the step that is compiled."""

import jax
import jax.numpy as jnp
import pytest

from mimic_jax import objectives
from mimic_jax.models import resnet, vit
from mimic_jax.runtime import sharding
from mimic_jax.training import step as step_lib
from tests import small


@pytest.mark.parametrize(
  ('config', 'multiply_adds'),
  [
    (vit.Config(), 17.5e9),  # DeiT (arXiv 2012.12877, table 5 and timm): ViT-B/16 at 224
    (vit.Config(dim=1024, depth=24, heads=16), 61.6e9),  # timm: ViT-L/16
    (resnet.Config(224, *resnet.PRESETS['resnet50'], '7x7', 'float32'), 4.09e9),  # torchvision
    (resnet.Config(224, *resnet.PRESETS['resnet18'], '7x7', 'float32'), 1.81e9),
  ],
)
def test_the_count_is_the_published_one(config, multiply_adds):
  assert config.flops() == pytest.approx(2 * multiply_adds, rel=0.01)


def test_mae_at_224_takes_what_the_kept_patches_and_the_decoder_take():
  """By hand: 49 patches and the class token through ViT-B, 197 tokens through 8 blocks of 512."""
  config = small.model_section(preset='vit_b16', image_size=224, patch_size=0, dim=0, depth=0, heads=0)
  found = objectives.make(objectives.defaults('masked_autoencoding'), config, (), 'objective')
  encoder = 49 * 768 * 768 + 12 * (50 * 12 * 768**2 + 2 * 50**2 * 768)
  decoder = 50 * 768 * 512 + 8 * (197 * 12 * 512**2 + 2 * 197**2 * 512) + 196 * 512 * 768
  assert found.flops_per_image() == 3 * 2 * (encoder + decoder)


WIDE = {'image_size': 64, 'patch_size': 8, 'dim': 256, 'depth': 2, 'heads': 4}
RESNET = {'preset': 'resnet18', 'image_size': 32, 'patch_size': 0, 'dim': 0, 'depth': 0, 'heads': 0}


def _of_windows(conv, x):
  k, stride = conv.kernel.shape[0], conv.stride
  h, w = (-(-n // stride) for n in x.shape[1:3])
  x = jnp.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
  shifted = [
    x[:, i : i + stride * (h - 1) + 1 : stride, j : j + stride * (w - 1) + 1 : stride]
    for i in range(k)
    for j in range(k)
  ]
  return jnp.concatenate(shifted, axis=-1) @ conv.kernel[...].reshape(-1, conv.kernel.shape[-1])


@pytest.mark.parametrize(
  ('stage', 'changes', 'model'),
  [
    (small.mae_stage, {'mae.decoder_dim': 128, 'mae.decoder_heads': 4}, WIDE),
    (
      small.local_mim_stage,
      {'local_mim.decoder_dim': 128, 'local_mim.decoder_heads': 4},
      {**WIDE, 'depth': 4},
    ),
    (small.moco_stage, {'moco.dim': 64, 'moco.hidden': 256}, WIDE),
    (small.ssl_fer_stage, {'ssl_fer.dim': 64}, WIDE),
    (small.amcl_masks_stage, {'gan.width': 32}, WIDE),
    (small.amcl_stage, {'amcl.dim': 64, 'amcl.steps': 2}, WIDE),
    (small.mimic_stage, {'drop_path': 0.0}, {**WIDE, 'registers': 16}),
    (small.mimic_stage, {'drop_path': 0.0, 'contrast.candidates': 'all', 'ce.on': 'both'}, WIDE),
    (small.mimic_stage, {'drop_path': 0.0, 'contrast.weight': 0.0, 'mix.probability': 0.0}, RESNET),
    (small.scn_stage, {'drop_path': 0.0}, WIDE),
    (small.regression_stage, {'drop_path': 0.0}, WIDE),
    (small.hmtl_stage, {'drop_path': 0.0}, WIDE),
    (
      small.inpaint_stage,
      {'drop_path': 0.0, 'hmtl.decoder_dim': 128, 'hmtl.decoder_heads': 4, 'hmtl.supervised_on': 'puzzled'},
      WIDE,
    ),
    (small.hmtl_stage, {'drop_path': 0.0, 'hmtl.task': 'inpaint', 'hmtl.perceptual': 'w'}, RESNET),
    # forward alone: nothing of the encoder is differentiated; wider, as what is no product weighs more there
    (small.probe_stage, {}, {**WIDE, 'dim': 512}),
    (small.probe_stage, {'head.pool': 'gap'}, RESNET),
  ],
  ids=[
    'mae',
    'local_mim',
    'moco',
    'ssl_fer',
    'amcl_masks',
    'amcl',
    'mimic',
    'mimic_with_clean',
    'resnet',
    'scn',
    'regression',
    'hmtl',
    'hmtl_inpaint',
    'hmtl_inpaint_resnet',
    'probe',
    'resnet_probe',
  ],
)
def test_xla_counts_the_same_within_4_percent(monkeypatch, stage, changes, model):
  """XLA counts what is not a product, too, and not the gradient of the pixels. Blocks are unrolled, as it counts
  a loop's body once, and nothing is computed twice. Convolutions are products of windows, as it leaves out what meets the padding."""
  monkeypatch.setattr(resnet.Conv, '__call__', _of_windows)
  stage = stage(**changes)
  model = small.model_section(**model, scan=False, attention='xla', remat='none')
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  objective = objectives.make(stage, model, tuple('abcdefg'), 'objective')
  program = step_lib.make_program(stage, objective, 64, mesh)
  batch = step_lib.batch_shapes(objective, stage.batch_images, mesh)
  key = jax.eval_shape(lambda: jax.random.key(0))
  lowered = jax.jit(program.gradients).lower(program.abstract, batch, key, program.frozen.arrays)
  done = stage.batch_images * objective.pictures * objective.flops_per_image()
  assert done == pytest.approx(lowered.cost_analysis()['flops'], rel=0.04)

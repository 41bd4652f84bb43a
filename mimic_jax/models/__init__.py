"""Models: the ViT encoder, MAE's decoder, heads; and what turns them into plain dicts of arrays and back."""

from collections.abc import Mapping
from typing import Any

import jax

from mimic_jax.models import resnet, vit
from mimic_jax.models.state import Template, merge, rest_of, split
from mimic_jax.runtime import errors

__all__ = [
  'EncoderConfig',
  'Template',
  'check_dim',
  'encoder_config',
  'largest_divisor',
  'merge',
  'rest_of',
  'split',
]

DTYPES = ('bfloat16', 'float32')

# What an encoder is: image_size, dim, layers and layer_id(path) for layer decay, decays(path, ndim, tokens) for weight decay, flops(),
# create(rngs) → the module, whose features(images, key=…, pool=…) are float32 [B, dim].
EncoderConfig = vit.Config | resnet.Config

INIT = 'init'  # the sizes of the first weights (training/sizes.py); all of them then stand in the config

CHOICES = {
  'model.preset': (*vit.PRESETS, *resnet.PRESETS, INIT),
  'model.stem': resnet.STEMS,
  'model.pos_embed': vit.POS_EMBEDS,
  'model.dtype': DTYPES,
  'model.attention': vit.ATTENTIONS,
  'model.remat': ('auto', *vit.REMATS),
}
RANGES = {
  'model.image_size': (0, float('inf')),
  'model.layer_norm_eps': (1e-15, 1e-2),
  'model.registers': (0, 1024),
  'model.layer_scale': (0, 100),
}


def encoder_config(model: Mapping[str, Any], drop_path: float = 0.0) -> EncoderConfig:
  """Resolves a config's model section: the preset's sizes, overridden by the fields that are not 0.

  Args:
    model: the fields of defaults.encoder().
    drop_path: of the last block, in [0, 1).

  Raises:
    UserError: a value is unknown or the sizes do not fit each other.
  """
  preset = errors.one_of('model.preset', model['preset'], CHOICES['model.preset'])
  if preset in resnet.PRESETS:
    return _resnet_config(model, preset, drop_path)
  names = ('patch_size', 'dim', 'depth', 'heads')
  usual = vit.PRESETS.get(preset, (0, 0, 0, 0))
  sizes = {name: model[name] or default for name, default in zip(names, usual, strict=True)}
  sizes['image_size'] = model['image_size']
  for name, value in sizes.items():
    if value < 1:
      raise errors.UserError(f'model.{name} is {value}; expected a positive number')
  if sizes['image_size'] % sizes['patch_size']:
    raise errors.UserError(
      f'model.image_size is {sizes["image_size"]}; expected a multiple of the patch size {sizes["patch_size"]}'
    )
  check_dim('model.dim', sizes['dim'], 'heads', sizes['heads'])
  if int(sizes['dim'] * model['mlp_ratio']) < 1:
    raise errors.UserError(
      f'model.mlp_ratio is {model["mlp_ratio"]}; expected a positive number, such as 4.0'
    )
  if not 0.0 <= drop_path < 1.0:
    raise errors.UserError(f'drop_path is {drop_path}; expected a rate from 0 to below 1')
  if model['attention'] == 'cudnn' and (jax.default_backend() != 'gpu' or model['dtype'] != 'bfloat16'):
    raise errors.UserError(
      f"model.attention is 'cudnn' with model.dtype {model['dtype']} on {jax.default_backend()}; expected bfloat16 on a "
      "GPU, or 'xla'"
    )
  remat = errors.one_of('model.remat', model['remat'], CHOICES['model.remat'])
  if remat == 'auto':  # a loop writes all that it keeps; of unrolled blocks the compiler keeps what suits it
    remat = 'dots' if model['scan'] else 'none'
  return vit.Config(
    **sizes,
    mlp_ratio=model['mlp_ratio'],
    pos_embed=errors.one_of('model.pos_embed', model['pos_embed'], vit.POS_EMBEDS),
    dtype=errors.one_of('model.dtype', model['dtype'], DTYPES),
    scan=model['scan'],
    remat=remat,
    attention=errors.one_of('model.attention', model['attention'], vit.ATTENTIONS),
    drop_path=drop_path,
    layer_norm_eps=model['layer_norm_eps'],
    registers=model['registers'],
    layer_scale=model['layer_scale'],
  )


def _resnet_config(model: Mapping[str, Any], preset: str, drop_path: float) -> resnet.Config:
  for name, value in {
    **{k: model[k] for k in ('patch_size', 'depth', 'heads', 'remat', 'registers', 'layer_scale')},
    'drop_path': drop_path,
  }.items():
    if value not in (0, 'none', 'auto'):
      field = name if name == 'drop_path' else f'model.{name}'
      expected = 'none' if name == 'remat' else '0'
      raise errors.UserError(f'{field} is {value}, and a {preset} has none; expected {expected}')
  size = model['image_size']
  if size < 32:
    raise errors.UserError(f'model.image_size is {size}; expected at least 32 for a {preset}')
  stem = errors.one_of('model.stem', model['stem'], resnet.STEMS)
  if stem == 'auto':
    stem = '3x3' if size < resnet.SMALL else '7x7'
  config = resnet.Config(
    size, *resnet.PRESETS[preset], stem, errors.one_of('model.dtype', model['dtype'], DTYPES)
  )
  parts = config.dim // resnet.WIDTH
  if model['dim'] < 0 or model['dim'] % parts:
    raise errors.UserError(
      f'model.dim is {model["dim"]}; expected a multiple of {parts} for a {preset}, or 0, its {config.dim}'
    )
  return config._replace(width=model['dim'] // parts or resnet.WIDTH)


def largest_divisor(n: int, most: int) -> int:
  """Returns the largest divisor of n up to `most`: a number of heads, where no file says it."""
  return next((k for k in range(most, 1, -1) if n % k == 0), 1)


def check_dim(field: str, dim: int, heads_name: str, heads: int) -> None:
  """Raises a UserError unless `dim` splits evenly over the heads and into the four parts of the sin-cos table."""
  if dim < 1 or heads < 1 or dim % heads:
    raise errors.UserError(f'{field} is {dim}; expected a positive multiple of {heads_name}, {heads}')
  if dim % 4:
    raise errors.UserError(f'{field} is {dim}; expected a multiple of 4 (sin and cos of row and column)')

"""What can be said of weights besides their numbers: architecture, sizes, classes, where they disagree with our defaults."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mimic_jax.models import vit
from mimic_jax.weights.files import Contents

FROM_PRESET = 'as the preset; the file does not say'
FROM_CONFIG = 'its config.json says so'
# MoCo v3's ViT-S has twice the heads of everybody else's; its heads are 32 wide there
MOCO_HEADS = {384: 12, 768: 12, 1024: 16}


def is_square(shape: tuple[int, ...]) -> bool:
  """Returns whether [1, N, D] is the shape of a position table of a class token and a square of patches."""
  if len(shape) != 3 or shape[0] != 1 or shape[1] < 2:
    return False
  return round((shape[1] - 1) ** 0.5) ** 2 == shape[1] - 1


def class_names(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> tuple[str, ...] | None:
  """Returns the classifier's class names out of a config.json; None when there are none, or only numbers."""
  kernel, names = tensors.get('classifier/fc/kernel'), config.get('id2label')
  if kernel is None or not isinstance(names, Mapping) or len(names) != kernel.shape[-1]:
    return None
  ordered = [names.get(str(k)) for k in range(len(names))]
  if None in ordered or all(re.fullmatch(r'LABEL_\d+', str(n)) for n in ordered):
    return None
  return tuple(str(n) for n in ordered)


def _shapes(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns what the shapes say."""
  found: dict[str, Any] = {}
  shape = {name: array.shape for name, array in tensors.items()}
  if (blocks := shape.get('encoder/blocks/mlp/fc1/kernel')) and len(blocks) == 3:
    found['depth'], found['dim'], found['mlp_hidden'] = blocks
  elif token := shape.get('encoder/cls_token'):
    found['dim'] = token[-1]
  if patch := shape.get('encoder/patch_embed/kernel'):
    found['patch_size'] = round((patch[0] / 3) ** 0.5)
  positions = tensors.get('encoder/pos_embed')
  if positions is not None and is_square(positions.shape):
    found['grid'] = round((positions.shape[1] - 1) ** 0.5)
    found['image_size'] = found['grid'] * found.get('patch_size', 0)
    found['pos_embed'] = _positions(positions, found['grid'])
  if kernel := shape.get('classifier/fc/kernel'):
    found['classes'] = kernel[-1]
  if (blocks := shape.get('decoder/blocks/mlp/fc1/kernel')) and len(blocks) == 3:
    found['decoder_depth'], found['decoder_dim'] = blocks[:2]
  found['parameters'] = sum(array.size for array in tensors.values())
  return found


def _positions(positions: np.ndarray, grid: int) -> str:
  """Returns which of the fixed tables it is, 'learned' when none."""
  for kind in vit.POS_EMBEDS if positions.shape[-1] % 4 == 0 else ():
    if np.allclose(positions[0], vit.sincos_2d(positions.shape[-1], grid, grid, kind), atol=1e-3):
      return kind
  return 'learned'


def _preset(found: Mapping[str, Any]) -> str:
  sizes = tuple(found.get(k) for k in ('patch_size', 'dim', 'depth'))
  return next((name for name, preset in vit.PRESETS.items() if preset[:3] == sizes), '')


def of_file(tensors: Mapping[str, np.ndarray], contents: Contents, kind: str) -> dict[str, Any]:
  """Returns what is known of a published file; what is not known is left out.

  Args:
    tensors: under our names.
    contents: of the file.
    kind: of the file, in words.
  """
  found = {'container': contents.container, **_shapes(tensors)}
  found['preset'] = _preset(found)
  config, args = contents.config, contents.args
  if 'num_attention_heads' in config:
    found['heads'], found['heads_from'] = int(config['num_attention_heads']), FROM_CONFIG
  elif kind == 'MoCo v3' and found.get('dim') in MOCO_HEADS:
    found['heads'], found['heads_from'] = MOCO_HEADS[found['dim']], "MoCo v3's ViTs have so many"
  elif found['preset']:
    found['heads'], found['heads_from'] = vit.PRESETS[found['preset']][3], FROM_PRESET
  if 'layer_norm_eps' in config:
    found['layer_norm_eps'] = float(config['layer_norm_eps'])
  for ours, theirs in (('mean', 'image_mean'), ('std', 'image_std')):
    if theirs in config:
      found[ours] = tuple(float(v) for v in config[theirs])
  for source in (config, args):
    if 'norm_pix_loss' in source:
      found['norm_pix'] = bool(source['norm_pix_loss'])
  if 'model' in args:
    found['trained_as'] = str(args['model'])
  found['dtypes'] = sorted(set(contents.dtypes.values()))
  found['place'] = contents.place
  return found


def of_checkpoint(tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what is known of a checkpoint of ours."""
  found = {'container': 'orbax', **_shapes(tensors), 'dtypes': ['float32'], 'place': ''}
  found['preset'] = _preset(found)
  model = meta['config'].get('model', {})
  preset = vit.PRESETS.get(model.get('preset'), (0, 0, 0, 0))
  heads = model.get('heads') or preset[3]
  if heads:
    found['heads'], found['heads_from'] = heads, "its run's config says so"
  return found


def architecture(found: Mapping[str, Any]) -> str:
  """Returns the architecture in words: 'vit_l16: dim 1024, depth 24, …'."""
  parts = [f'{k} {found[k]}' for k in ('dim', 'depth', 'heads', 'patch_size', 'image_size') if found.get(k)]
  return (f'{found["preset"]}: ' if found.get('preset') else '') + (', '.join(parts) or 'of no known size')

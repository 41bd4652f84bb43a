"""What can be said of weights besides their numbers: architecture, sizes, classes, where they disagree with our defaults."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mimic_jax.models import resnet, vit
from mimic_jax.weights.files import Contents, shown

FROM_PRESET = 'as all of its width and depth; the file does not say'
FROM_CONFIG = 'its config.json says so'
# MoCo v3's ViT-S has twice the heads of everybody else's; its heads are 32 wide there
MOCO_HEADS = {384: 12, 768: 12, 1024: 16}
DINOV2_HEADS = {384: 6, 768: 12, 1024: 16}

RESAMPLE = {'bilinear': 2, 'bicubic': 3}  # as PIL, and so Hugging Face, numbers them
EXTRAS = ('registers', 'layer_scale')  # what a ViT may have beyond its sizes


def is_square(shape: tuple[int, ...]) -> bool:
  """Returns whether [1, N, D] is the shape of a position table of a class token and a square of patches."""
  if len(shape) != 3 or shape[0] != 1 or shape[1] < 2:
    return False
  return round((shape[1] - 1) ** 0.5) ** 2 == shape[1] - 1


def class_names(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> tuple[str, ...] | None:
  """Returns the classifier's class names out of a config.json; None when there are none, or only numbers."""
  kernel, names = tensors.get('classifier/fc/kernel'), config.get('id2label', config.get('label_names'))
  if isinstance(names, list):  # timm's
    names = {str(k): name for k, name in enumerate(names)}
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
  if registers := shape.get('encoder/register_tokens'):
    found['registers'] = registers[1]
  if 'encoder/blocks/ls1' in shape:
    found['layer_scale'] = 1.0  # what a fresh one would begin with hardly matters
  if stem := shape.get('encoder/conv1/kernel'):
    found['preset'], found['stem'] = _resnet(shape), f'{stem[0]}x{stem[0]}'
    if stem[-1] != resnet.WIDTH:
      found['dim'] = stem[-1] * resnet.STAGES[-1] * (4 if 'encoder/layer1/0/conv3/kernel' in shape else 1)
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


def _resnet(names: Mapping[str, Any]) -> str:
  """Returns the preset of a ResNet by the names of its tensors, '' for none."""
  blocks = {m[0] for name in names if (m := re.match(r'encoder/layer(\d)/\d+/', name))}
  counts = tuple(sum(b.startswith(f'encoder/layer{n}/') for b in blocks) for n in (1, 2, 3, 4))
  bottleneck = 'encoder/layer1/0/conv3/kernel' in names
  return next((name for name, preset in resnet.PRESETS.items() if preset == (counts, bottleneck)), '')


def _preset(found: Mapping[str, Any]) -> str:
  sizes = tuple(found.get(k) for k in ('patch_size', 'dim', 'depth'))
  return next((name for name, preset in vit.PRESETS.items() if preset[:3] == sizes), found.get('preset', ''))


def _usual_heads(found: Mapping[str, Any]) -> int:
  """Returns the heads of the presets of this width and depth, whatever their patches; 0 where there are none."""
  sizes = tuple(found.get(k) for k in ('dim', 'depth'))
  return next((preset[3] for preset in vit.PRESETS.values() if preset[1:3] == sizes), 0)


def _number(value: Any) -> float | None:
  """Returns a finite number, None for anything else."""
  if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
    return None
  return float(value)


def _positive(value: Any) -> float | None:
  number = _number(value)
  return number if number is not None and number > 0 else None


def _count(value: Any) -> int | None:
  return value if isinstance(value, int) and _positive(value) else None


def _colours(value: Any) -> tuple[float, ...] | None:
  numbers = [_number(v) for v in value] if isinstance(value, list) else []
  return tuple(numbers) if len(numbers) == 3 and None not in numbers else None


def _truth(value: Any) -> bool | None:
  return value if isinstance(value, bool) else None


def _none(value: Any) -> bool | None:
  return None if value else False


def _one(value: Any) -> float | None:
  return 1.0 if value == 1 else None


def _filter(value: Any) -> str | None:
  """Returns a filter of ours by its name or PIL's number."""
  return next((name for name, number in RESAMPLE.items() if value in (name, number)), None)


def _pool(value: Any) -> str | None:
  """Returns timm's word for what a classifier reads as ours, where there is one."""
  return {'token': 'cls', 'avg': 'gap'}.get(value, value) if isinstance(value, str) else None


# what is used of a model folder's config files: their name -> ours, its parser (None = odd), what is expected
Parser = Callable[[Any], Any]
CONFIG_FIELDS: dict[str, tuple[str, Parser, str]] = {
  'num_attention_heads': ('heads', _count, 'a whole number above 0'),
  'layer_norm_eps': ('layer_norm_eps', _positive, 'a number above 0'),
  'image_mean': ('mean', _colours, 'a list of three numbers'),
  'image_std': ('std', _colours, 'a list of three numbers'),
  'resample': ('interpolation', _filter, 'a filter of PIL, 2 (bilinear) or 3 (bicubic)'),
  'norm_pix_loss': ('norm_pix', _truth, 'true or false'),
  'do_center_crop': ('cropped', _none, 'false: pictures are resized whole here'),
  # timm's
  'num_heads': ('heads', _count, 'a whole number above 0'),
  'global_pool': ('pool', _pool, 'a word, such as token or avg'),
  'mean': ('mean', _colours, 'a list of three numbers'),
  'std': ('std', _colours, 'a list of three numbers'),
  'interpolation': ('interpolation', _filter, 'bilinear or bicubic'),
  'crop_pct': ('crop_pct', _one, '1: pictures are resized whole here'),
}


def _stated(contents: Contents) -> dict[str, Any]:
  """Returns what the config files say under our names; 'ignored' has a sentence for each value that can't be meant."""
  found: dict[str, Any] = {}
  ignored = []
  for theirs, (ours, parser, expected) in CONFIG_FIELDS.items():
    if theirs not in contents.config:
      continue
    value = parser(contents.config[theirs])
    if value is None:
      at = f'{contents.said_in[theirs]}: {theirs}'
      ignored.append(f'{at} is {shown(contents.config[theirs])}, which is ignored; expected {expected}')
    else:
      found[ours] = value
  return {**found, 'ignored': tuple(ignored)} if ignored else found


def of_file(tensors: Mapping[str, np.ndarray], contents: Contents, kind: str) -> dict[str, Any]:
  """Returns what is known of a published file; what is not known is left out.

  Args:
    tensors: under our names.
    contents: of the file.
    kind: of the file, in words.
  """
  found = {'container': contents.container, **_shapes(tensors)}
  found['preset'] = _preset(found)
  found |= _stated(contents)
  if found.get('pool') == 'gap' and 'encoder/norm/scale' in tensors and 'fc_norm/scale' not in tensors:
    found['pool'] = 'gap of tokens after the final norm'
  args = contents.args
  if 'heads' in found:
    found['heads_from'] = FROM_CONFIG
  elif kind == 'MoCo v3' and found.get('dim') in MOCO_HEADS:
    found['heads'], found['heads_from'] = MOCO_HEADS[found['dim']], "MoCo v3's ViTs have so many"
  elif kind == 'DINOv2' and found.get('dim') in DINOV2_HEADS:
    found['heads'], found['heads_from'] = DINOV2_HEADS[found['dim']], "DINOv2's ViTs have so many"
  elif heads := _usual_heads(found):
    found['heads'], found['heads_from'] = heads, FROM_PRESET
  if (norm_pix := _truth(args.get('norm_pix_loss'))) is not None:
    found['norm_pix'] = norm_pix
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
  if found.get('patch_size') and 'layer_norm_eps' in model:  # a ResNet has neither
    found['layer_norm_eps'] = model['layer_norm_eps']
  reading = meta.get('reading', {})
  if 'image_size' in reading:
    found.setdefault('image_size', reading['image_size'])  # no shape of a ResNet says it
  return found | {k: tuple(reading[k]) for k in ('mean', 'std') if k in reading}


def sizes(found: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what is known of the fields of config.model that make a model of the file's sizes."""
  names = ('image_size', 'patch_size', 'dim', 'depth', 'heads', *EXTRAS, 'stem', 'layer_norm_eps')
  known = {k: found[k] for k in names if found.get(k)}
  if hidden := found.get('mlp_hidden'):
    ratio = hidden / found['dim']
    known['mlp_ratio'] = ratio if int(found['dim'] * ratio) == hidden else math.nextafter(ratio, math.inf)
  return known


def flags(found: Mapping[str, Any]) -> str:
  """Returns the flags that make a model of the file's sizes, to be copied."""
  usual = {'mlp_ratio': 4.0, 'layer_norm_eps': vit.EPSILON}
  known = {k: v for k, v in sizes(found).items() if v != usual.get(k)}
  if preset := found.get('preset'):
    known = {'preset': preset, **known}  # both, since a config may state some of a preset's sizes itself
  return ' '.join(f'--config.model.{k}={v}' for k, v in known.items()) or 'config.model must say so'


def architecture(found: Mapping[str, Any]) -> str:
  """Returns the architecture in words: 'vit_l16: dim 1024, depth 24, …'."""
  parts = [
    f'{k} {found[k]}'
    for k in ('dim', 'depth', 'heads', 'patch_size', 'image_size', *EXTRAS, 'stem')
    if found.get(k)
  ]
  return (f'{found["preset"]}: ' if found.get('preset') else '') + (', '.join(parts) or 'of no known size')

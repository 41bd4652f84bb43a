"""Writes a model as others load it: transformers, timm, MAE's own repository. layouts.py has the names, this the configs.

What is written is read again by `weights.read`, bit by bit but for what a form has no place for (docs/weights.md).
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath
from safetensors.numpy import save_file

from mimic_jax import models
from mimic_jax.models import resnet, vit
from mimic_jax.runtime import files as files_lib
from mimic_jax.runtime.errors import UserError
from mimic_jax.weights import files, layouts
from mimic_jax.weights.facts import RESAMPLE

CONFIG, PROCESSOR = files.CONFIG_FILES


@dataclasses.dataclass(frozen=True)
class Model:
  """What leaves.

  Attributes:
    tensors: our name -> float32.
    config: of the encoder.
    class_names: of the classifier; () where there is none.
    facts: of the objective (objectives/base.py): pool, decoder_heads, norm_pix, mask_ratio.
    pixels: how pictures are read: interpolation, mean and std of 0..1.
  """

  tensors: Mapping[str, np.ndarray]
  config: models.EncoderConfig
  class_names: tuple[str, ...]
  facts: Mapping[str, Any]
  pixels: Mapping[str, Any]

  @property
  def pool(self) -> str:
    """'gap' or 'cls' of a classifier, '' where there is none."""
    return self.facts.get('pool', '') if self.class_names else ''

  @property
  def decoder(self) -> bool:
    """Whether there is MAE's decoder."""
    return 'decoder/embed/kernel' in self.tensors


def check(form: str, m: Model, field: str) -> None:
  """Raises UserError, naming the field and the forms that serve, where a form has no place for a model.

  Args:
    form: 'hf', 'timm', 'mae', or another, which takes any model.
    m: what is to be written.
    field: the flag that holds the form, for the error.
  """
  problem = _problem(form, m)
  if problem:
    serve = [f for f in (*WRITERS, 'onnx', 'stablehlo') if not _problem(f, m)]
    raise UserError(f"{field} is '{form}', which has no {problem}; expected one of {', '.join(serve)}")


def _problem(form: str, m: Model) -> str:
  """Returns what a form lacks for a model, '' for nothing."""
  c = m.config
  if form not in WRITERS:
    return ''
  if m.class_names and not (m.pool and 'classifier/fc/kernel' in m.tensors):
    return "form of this objective's classifier"
  if isinstance(c, resnet.Config):
    if form != 'timm':
      return 'ResNet'
    if c.width != resnet.WIDTH:
      return f'ResNet of {c.dim} features (model.dim)'
    return '' if c.stem == '7x7' else 'ResNet with a stem of 3 × 3 (model.stem)'
  if c.registers:
    return "form of register tokens beside a class token's position"
  if c.layer_scale and form == 'mae':
    return 'layer scale'
  if c.layer_scale and form == 'hf' and m.pool != 'gap':
    return 'layer scale without global pooling'
  if form in ('timm', 'mae') and c.layer_norm_eps != vit.EPSILON:
    return f'layer_norm_eps of {c.layer_norm_eps:g}, it has {vit.EPSILON:g}'
  return ''


def write(form: str, m: Model, folder: epath.Path) -> list[str]:
  """Writes a model into a folder that is there: its tensors and what says what they are.

  Args:
    form: one of WRITERS.
    m: what to write.
    folder: on this machine.

  Returns:
    Our names of the tensors that the form has no place for.

  Raises:
    UserError: for a .pth without PyTorch.
  """
  unused = ['encoder/norm/'] if m.pool == 'gap' else []  # global pooling does without it
  unused += ['decoder/'] if form == 'timm' else []
  kept = {name: a for name, a in m.tensors.items() if not name.startswith(tuple(unused))}
  layout = WRITERS[form](m, kept, folder)
  return [name for name in m.tensors if name not in kept or name not in layout.names]


def _hugging_face(m: Model, tensors: Mapping[str, np.ndarray], folder: epath.Path) -> layouts.Layout:
  c = m.config
  form, kind = 'vit', 'ViTModel'
  more: dict[str, Any] = {}
  if m.pool == 'gap':
    form, kind = 'beit', 'BeitForImageClassification'
    more = {
      'use_absolute_position_embeddings': True,
      'use_mean_pooling': True,
      'layer_scale_init_value': c.layer_scale,
      'drop_path_rate': 0.0,
    }
  elif m.pool:
    kind = 'ViTForImageClassification'
  elif m.decoder:
    kind = 'ViTMAEForPreTraining'
    depth, dim, hidden = tensors['decoder/blocks/mlp/fc1/kernel'].shape
    more = {
      'decoder_hidden_size': dim,
      'decoder_num_hidden_layers': depth,
      'decoder_num_attention_heads': m.facts['decoder_heads'],
      'decoder_intermediate_size': hidden,
      'mask_ratio': m.facts['mask_ratio'],
    }
  config = {
    'architectures': [kind],
    'model_type': 'vit_mae' if m.decoder else form,
    'image_size': c.image_size,
    'patch_size': c.patch_size,
    'hidden_size': c.dim,
    'num_hidden_layers': c.depth,
    'intermediate_size': int(c.dim * c.mlp_ratio),
    **_stated(m),
    **more,
  }
  layout = layouts.layout_of(form, tensors)
  _save(tensors, layout, folder)
  files_lib.write_json(folder / CONFIG, config)
  files_lib.write_json(folder / PROCESSOR, _processor(m))
  return layout


def _stated(m: Model) -> dict[str, Any]:
  """Returns what Hugging Face's config says that no tensor shows."""
  config = {'num_attention_heads': m.config.heads, 'layer_norm_eps': m.config.layer_norm_eps}
  if m.decoder:
    config['norm_pix_loss'] = m.facts['norm_pix']
  if m.class_names:
    config['id2label'] = {str(k): name for k, name in enumerate(m.class_names)}
    config['label2id'] = {name: k for k, name in enumerate(m.class_names)}
  return config


def _processor(m: Model) -> dict[str, Any]:
  """Returns Hugging Face's preprocessing that is an evaluation's: the whole picture resized, whatever its aspect."""
  side = m.config.image_size
  return {
    'image_processor_type': 'ViTImageProcessor',
    'do_convert_rgb': True,
    'do_resize': True,
    'size': {'height': side, 'width': side},
    'resample': RESAMPLE[m.pixels['interpolation']],
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': list(m.pixels['mean']),
    'image_std': list(m.pixels['std']),
  }


def _timm(m: Model, tensors: Mapping[str, np.ndarray], folder: epath.Path) -> layouts.Layout:
  c = m.config
  arguments: dict[str, Any] = {}
  pool = 'avg' if m.pool == 'gap' else 'token'
  if isinstance(c, resnet.Config):
    form, ends = 'resnet', ('conv1', 'fc')
    name = next(k for k, (blocks, bottleneck) in resnet.PRESETS.items() if (blocks, bottleneck) == c[1:3])
  else:
    form, name, ends = 'timm', 'vit_base_patch16_224', ('patch_embed.proj', 'head')
    arguments = {
      'img_size': c.image_size,
      'patch_size': c.patch_size,
      'embed_dim': c.dim,
      'depth': c.depth,
      'num_heads': c.heads,
      'mlp_ratio': c.mlp_ratio,
      'global_pool': pool,
      **({'init_values': c.layer_scale} if c.layer_scale else {}),
    }
  config = {
    'architecture': name,
    'num_classes': len(m.class_names),
    'num_features': c.dim,
    'global_pool': pool if form == 'timm' else 'avg',
    **({'label_names': list(m.class_names)} if m.class_names else {}),
    'model_args': arguments,
    'pretrained_cfg': {
      'input_size': [3, c.image_size, c.image_size],
      'fixed_input_size': form == 'timm',
      'interpolation': m.pixels['interpolation'],
      'crop_pct': 1.0,
      'crop_mode': 'squash',  # the whole picture, whatever its aspect
      'mean': list(m.pixels['mean']),
      'std': list(m.pixels['std']),
      'num_classes': len(m.class_names),
      'first_conv': ends[0],
      'classifier': ends[1],
    },
  }
  layout = layouts.layout_of(form, tensors)
  _save(tensors, layout, folder)
  files_lib.write_json(folder / CONFIG, config)
  return layout


def _mae(m: Model, tensors: Mapping[str, np.ndarray], folder: epath.Path) -> layouts.Layout:
  layout = layouts.layout_of('timm', tensors)
  files.write_pytorch(os.fspath(folder / 'model.pth'), layouts.spread(tensors, layout))
  files_lib.write_json(folder / CONFIG, _stated(m))
  files_lib.write_json(folder / PROCESSOR, _processor(m))
  return layout


def _save(tensors: Mapping[str, np.ndarray], layout: layouts.Layout, folder: epath.Path) -> None:
  save_file(layouts.spread(tensors, layout), folder / files.MODEL_FILES[0], {'format': 'pt'})


# the forms of weights: each writes its files into a folder and returns the layout of the tensors
WRITERS: dict[str, Callable[[Model, Mapping[str, np.ndarray], epath.Path], layouts.Layout]] = {
  'hf': _hugging_face,
  'timm': _timm,
  'mae': _mae,
}

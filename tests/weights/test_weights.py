"""Published weights against PyTorch and a tensor-by-tensor reading of the same files; what is wrong with a file is one line."""

import argparse
import ast
import datetime
import json
import os
import re
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from flax import nnx
from ml_collections import FrozenConfigDict
from safetensors.numpy import load_file, save_file

from mimic_jax import defaults, losses, models, objectives, weights
from mimic_jax.commands import weights as command
from mimic_jax.models import masking, vit
from mimic_jax.objectives import mimic
from mimic_jax.runtime import checkpoint, sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import stage as stage_lib
from mimic_jax.training import step, trained
from mimic_jax.weights import files, layouts
from tests import small

# of the weights in these tests: 16 patches of 8 × 8, 2 blocks
DIM, DEPTH, HEADS, PATCH, GRID, HIDDEN = 24, 2, 3, 8, 4, 96
DECODER = {'dim': 16, 'depth': 1, 'hidden': 64}
NAMES = ('surprise', 'fear', 'disgust')


# ---- weights in the originals' own formats


def pair(rng, name, *shape, norm=False):
  """A layer's weight and bias; of a norm the weights are about one."""
  return {
    f'{name}.weight': (norm + rng.normal(0, 0.15, shape)).astype(np.float32),
    f'{name}.bias': rng.normal(0, 0.15, shape[:1]).astype(np.float32),
  }


def normal(rng, *shape):
  return rng.normal(0, 0.15, shape).astype(np.float32)


def timm_blocks(rng, root, dim, depth, hidden):
  state = {}
  for i in range(depth):
    state |= pair(rng, f'{root}{i}.norm1', dim, norm=True)
    state |= pair(rng, f'{root}{i}.attn.qkv', 3 * dim, dim)
    state |= pair(rng, f'{root}{i}.attn.proj', dim, dim)
    state |= pair(rng, f'{root}{i}.norm2', dim, norm=True)
    state |= pair(rng, f'{root}{i}.mlp.fc1', hidden, dim)
    state |= pair(rng, f'{root}{i}.mlp.fc2', dim, hidden)
  return state


def timm_encoder(rng, *, dim=DIM, depth=DEPTH, patch=PATCH, grid=GRID, norm='norm'):
  """An encoder as MAE and timm name it; `norm` is what its last norm is called, '' for none."""
  return {
    'cls_token': normal(rng, 1, 1, dim),
    'pos_embed': normal(rng, 1, 1 + grid**2, dim),
    **pair(rng, 'patch_embed.proj', dim, 3, patch, patch),
    **timm_blocks(rng, 'blocks.', dim, depth, 4 * dim),
    **(pair(rng, norm, dim, norm=True) if norm else {}),
  }


def mae_decoder(rng, *, dim=DIM, patch=PATCH, grid=GRID):
  d = DECODER
  return {
    'mask_token': normal(rng, 1, 1, d['dim']),
    'decoder_pos_embed': normal(rng, 1, 1 + grid**2, d['dim']),
    **pair(rng, 'decoder_embed', d['dim'], dim),
    **timm_blocks(rng, 'decoder_blocks.', d['dim'], d['depth'], d['hidden']),
    **pair(rng, 'decoder_norm', d['dim'], norm=True),
    **pair(rng, 'decoder_pred', 3 * patch * patch, d['dim']),
  }


def hugging_face(state, prefix='vit.', spelling='published'):
  """The same weights as transformers writes them: fused qkv split into three, other names.

  spelling: 'published' (the released files), 'file' (what transformers 5 writes) or 'memory' (what it holds).
  """
  block = {
    'norm1': 'layernorm_before',
    'attn.proj': 'attention.output.dense',
    'norm2': 'layernorm_after',
    'mlp.fc1': 'intermediate.dense',
    'mlp.fc2': 'output.dense',
  }
  heads = [f'attention.attention.{x}' for x in ('query', 'key', 'value')]
  if spelling == 'memory':
    block |= {'attn.proj': 'attention.o_proj', 'mlp.fc1': 'mlp.fc1', 'mlp.fc2': 'mlp.fc2'}
    heads = [f'attention.{x}_proj' for x in 'qkv']
  roots = {
    'blocks.': f'{prefix}layers.' if spelling == 'memory' else f'{prefix}encoder.layer.',
    'decoder_blocks.': 'decoder.decoder_encoder.layer.' if spelling == 'file' else 'decoder.decoder_layers.',
  }
  single = {
    'cls_token': f'{prefix}embeddings.cls_token',
    'pos_embed': f'{prefix}embeddings.position_embeddings',
    'patch_embed.proj': f'{prefix}embeddings.patch_embeddings.projection',
    'norm': f'{prefix}layernorm',
    'head': 'classifier',
  }
  found = {}
  for name, array in state.items():
    inside = re.fullmatch(r'(blocks\.|decoder_blocks\.)(\d+)\.(.*)\.(weight|bias)', name)
    if inside:
      root, number, part, end = inside.groups()
      if part == 'attn.qkv':
        for x, third in zip(heads, np.split(array, 3)):
          found[f'{roots[root]}{number}.{x}.{end}'] = np.ascontiguousarray(third)
      else:
        found[f'{roots[root]}{number}.{block[part]}.{end}'] = array
      continue
    layer, _, end = name.rpartition('.')
    if name in single:
      found[single[name]] = array
    elif layer in single:
      found[f'{single[layer]}.{end}'] = array
    else:
      found[f'decoder.{name}'] = array
  return found


def local_mim(rng, depth=DEPTH):
  """LocalMIM: a norm behind each tapped block, a decoder for each, the Sobel filters of its targets."""
  state = timm_encoder(rng, depth=depth, norm='')
  heads = (
    {'0': (8, 4, 2, 2), '1': (4,), '3': (4, 2, 2, 2), '4': (27, 2, 1, 1)},
    {'0': (8, 4, 2, 2), '1': (27, 4, 1, 1)},
    {'0': (27, 8, 1, 1)},
    {'1': (27, 8, 1, 1)},
  )
  for k in range(4):
    state |= pair(rng, f'norm.{k}', DIM, norm=True)
    state |= pair(rng, f'decoder.{k}.embed', 8, DIM)
    state[f'decoder.{k}.mask_token'] = normal(rng, 1, 1, 8)
    state[f'decoder.{k}.pos_embed'] = normal(rng, 1, 1 + GRID**2, 8)
    state |= timm_blocks(rng, f'decoder.{k}.blocks.', 8, 1, 32)
    state |= pair(rng, f'decoder.{k}.norm', 8, norm=True)
    for n, shape in heads[k].items():
      state[f'decoder.{k}.pred.{n}.weight'] = normal(rng, *shape)
      outputs = shape[1] if shape[-1] == 2 else shape[0]
      state[f'decoder.{k}.pred.{n}.bias'] = normal(rng, outputs)
    state[f'hog_enc.{k}.conv.weight'] = normal(rng, 2, 1, 3, 3)
  return state


def moco(rng):
  """MoCo v3: the encoder twice, projectors with BatchNorm in place of heads, a predictor, all under DataParallel's name."""
  state = {}
  for which in ('base_encoder', 'momentum_encoder'):
    state |= {f'module.{which}.{k}': v for k, v in timm_encoder(rng).items()}
    state[f'module.{which}.head.0.weight'] = normal(rng, 8, DIM)
    state |= pair(rng, f'module.{which}.head.1', 8, norm=True)
    state[f'module.{which}.head.1.running_var'] = np.ones(8, np.float32)
    state[f'module.{which}.head.1.num_batches_tracked'] = np.asarray(7, np.int64)
  state['module.predictor.0.weight'] = normal(rng, 8, 8)
  return state


def files_of(rng):
  """What is recognised: name -> (tensors, key in a PyTorch file, what stands beside it, its kind)."""
  encoder, decoder = timm_encoder(rng), mae_decoder(rng)
  head, fc_norm = pair(rng, 'head', 3, DIM), pair(rng, 'fc_norm', DIM, norm=True)
  tuned = {**timm_encoder(rng, norm=''), **fc_norm, **head}
  args = {
    'args': argparse.Namespace(model='mae_vit_base_patch16', norm_pix_loss=True, device='cuda'),
    'epoch': 799,
  }
  whole = {**encoder, **decoder}
  return {
    'mae': (encoder, 'model', {}, 'MAE pre-training, encoder alone'),
    'mae_full': (whole, 'model', {}, 'MAE pre-training, with decoder'),
    'mae_tuned': (tuned, 'model', {}, 'MAE fine-tuning'),
    'mae_own': (whole, 'model', args, 'MAE training checkpoint'),
    'mae_own_tuned': (tuned, 'model', args, 'fine-tuning checkpoint (MAE, DeiT)'),
    'deit': ({**encoder, **head}, 'model', {}, 'DeiT'),
    'timm': ({**encoder, **head}, '', {}, 'timm ViT'),
    'timm_gap': (tuned, '', {}, 'timm ViT'),
    'local_mim': (local_mim(rng), 'model', {}, 'LocalMIM'),
    'moco': (moco(rng), 'state_dict', {'epoch': 300}, 'MoCo v3'),
    'hf_vit': (hugging_face({**encoder, **head}), '', {}, 'Hugging Face ViT'),
    'hf_bare': (hugging_face(encoder, prefix=''), '', {}, 'Hugging Face ViT'),
    **{
      f'hf_mae_{spelling}': (hugging_face(whole, spelling=spelling), '', {}, 'Hugging Face ViTMAE')
      for spelling in ('published', 'file', 'memory')
    },
  }


KINDS = sorted(files_of(np.random.default_rng(0)))


def save_pth(path, state, place='model', beside=(), legacy=False):
  torch = pytest.importorskip('torch')
  tensors = {k: torch.from_numpy(np.array(v)) for k, v in state.items()}
  content = {place: tensors, **dict(beside)} if place else tensors
  torch.save(content, path, _use_new_zipfile_serialization=not legacy)
  return str(path)


def save_safetensors(path, state):
  save_file(state, path)
  return str(path)


# ---- our side


def model_section(**changes):
  sizes = {'image_size': PATCH * GRID, 'patch_size': PATCH, 'dim': DIM, 'depth': DEPTH, 'heads': HEADS}
  return small.model_section(**{**sizes, **changes})


def mae_objective(model=None, **fields):
  stage = objectives.defaults('masked_autoencoding')
  sizes = {'decoder_dim': DECODER['dim'], 'decoder_depth': DECODER['depth'], 'decoder_heads': 2}
  stage.mae.update({**sizes, **fields})
  return objectives.make(stage, model or model_section(), (), 'objective')


def mimic_objective(model=None, names=NAMES, **fields):
  stage = objectives.defaults('mimic')
  stage.update_from_flattened_dict({'head.projection_dim': 8, **fields})
  return objectives.make(stage, model or model_section(), names, 'objective')


def shapes(objective):
  template, params, rest = models.split(
    nnx.eval_shape(objective.init, jax.random.key(0)), objective.trainable
  )
  return template, {**checkpoint.flatten(params), **checkpoint.flatten(rest)}


def fit(path_or_weights, objective):
  """Reads and fits; the arrays loaded, and the account."""
  read = path_or_weights
  if not isinstance(read, weights.Weights):
    read = weights.read(read, 'config.init')
  _, params, rest = models.split(nnx.eval_shape(objective.init, jax.random.key(0)), objective.trainable)
  return step.fit(read, objective, params, rest, 'config.init')


def start(path, objective):
  """Returns an objective's model with the weights of a file in it, and the account."""
  arrays, account = fit(path, objective)
  template, params, rest = models.split(objective.init(jax.random.key(0)), objective.trainable)
  trees = [
    checkpoint.nest({k: jnp.asarray(arrays.get(k, v)) for k, v in checkpoint.flatten(tree).items()})
    for tree in (params, rest)
  ]
  return models.merge(template, *trees), account


def relative(actual, expected):
  expected = np.asarray(expected, np.float64)
  return np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max()


# ---- numbers, against PyTorch


@pytest.fixture
def transformers(monkeypatch):
  pytest.importorskip('torch')
  # transformers imports torchvision where there is one, which ViT needs not and which may be of another torch
  monkeypatch.setitem(sys.modules, 'torchvision', None)
  return pytest.importorskip('transformers', minversion='5.0')


def vit_config(**fields):
  return {
    'image_size': PATCH * GRID,
    'patch_size': PATCH,
    'hidden_size': DIM,
    'num_hidden_layers': DEPTH,
    'num_attention_heads': HEADS,
    'intermediate_size': HIDDEN,
    'layer_norm_eps': 1e-6,
    **fields,
  }


def randomise(torch, rng, model):
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      centre = 1.0 if 'norm' in name and name.endswith('weight') else 0.0
      parameter.copy_(torch.from_numpy(rng.normal(centre, 0.15, parameter.shape).astype(np.float32)))


@pytest.mark.parametrize('spelling', ['published', 'file', 'memory'])
def test_mae_loss_and_features_equal_transformers_vitmae_in_every_spelling(
  rng, transformers, tmp_path, spelling
):
  import torch

  config = vit_config(
    decoder_hidden_size=DECODER['dim'],
    decoder_num_hidden_layers=DECODER['depth'],
    decoder_num_attention_heads=2,
    decoder_intermediate_size=DECODER['hidden'],
    mask_ratio=0.75,
    norm_pix_loss=True,
  )
  reference = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**config))
  randomise(torch, rng, reference)
  if spelling == 'file':
    reference.save_pretrained(tmp_path)  # what transformers itself writes
    path = str(tmp_path)
  else:
    state = {k: v.numpy() for k, v in reference.state_dict().items()}
    if spelling == 'published':
      for new, old in (
        ('vit.layers', 'vit.encoder.layer'),
        ('attention.q_proj', 'attention.attention.query'),
        ('attention.k_proj', 'attention.attention.key'),
        ('attention.v_proj', 'attention.attention.value'),
        ('attention.o_proj', 'attention.output.dense'),
        ('mlp.fc1', 'intermediate.dense'),
        ('mlp.fc2', 'output.dense'),
      ):
        state = {k.replace(new, old): v for k, v in state.items()}
    path = save_safetensors(tmp_path / 'x', state)
  objective = mae_objective()
  model, account = start(path, objective)
  assert account['fresh'] == account['unused'] == account['notes'] == []

  reference = reference.double()
  images = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
  noise = rng.uniform(size=(3, GRID**2)).astype(np.float32)
  with torch.no_grad():
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2)).double()
    found = reference(pixels, noise=torch.from_numpy(noise))
    features = reference.vit(pixels, noise=torch.from_numpy(noise)).last_hidden_state.numpy()
  masks = masking.masks_from_noise(jnp.asarray(noise), 0.75)
  pred = model(jnp.asarray(images), masks)
  loss = losses.masked_mse(pred, objective.target(jnp.asarray(images)), masks.mask)
  assert relative(loss, found.loss.item()) <= 1e-5
  assert relative(pred, found.logits.numpy()) <= 1e-5
  assert relative(model.encoder(jnp.asarray(images), keep=masks.keep), features) <= 1e-5


def test_logits_equal_transformers_vit_for_image_classification(rng, transformers, tmp_path):
  import torch

  labels = {'id2label': dict(enumerate(NAMES)), 'label2id': {n: i for i, n in enumerate(NAMES)}}
  reference = transformers.ViTForImageClassification(transformers.ViTConfig(**vit_config(**labels)))
  randomise(torch, rng, reference)
  reference.save_pretrained(tmp_path, max_shard_size='20KB')
  assert (tmp_path / 'model.safetensors.index.json').exists()
  read = weights.read(str(tmp_path), 'x')
  assert read.class_names == NAMES
  order = ('disgust', 'surprise', 'fear')
  objective = mimic_objective(names=order, init_head=True, **{'head.pool': 'cls'})
  model, _ = start(str(tmp_path), objective)
  images = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
  with torch.no_grad():
    logits = reference.double()(torch.from_numpy(images.transpose(0, 3, 1, 2)).double()).logits.numpy()
  found = model.classifier(model.features(jnp.asarray(images)))
  np.testing.assert_allclose(found, logits[:, [NAMES.index(n) for n in order]], atol=1e-5)


def dinov2(transformers, rng, registers, **changes):
  """A DINOv2 of transformers with random weights."""
  import torch

  kind = 'Dinov2WithRegisters' if registers else 'Dinov2'
  config = {**vit_config(), 'mlp_ratio': HIDDEN // DIM, **changes}
  config |= {'num_register_tokens': registers} if registers else {}
  reference = getattr(transformers, f'{kind}Model')(getattr(transformers, f'{kind}Config')(**config)).eval()
  randomise(torch, rng, reference)
  with torch.no_grad():
    for name, parameter in reference.named_parameters():
      if 'lambda1' in name:
        parameter.add_(0.7)
  return reference


def as_published_by_dinov2(reference):
  """The state dict under the names of facebookresearch/dinov2."""
  state = {k: v.numpy() for k, v in reference.state_dict().items()}
  for i in range(DEPTH):
    for kind in ('weight', 'bias'):
      at = f'encoder.layer.{i}.attention.'
      state[f'{at}qkv.{kind}'] = np.concatenate([state.pop(f'{at}{x}_proj.{kind}') for x in 'qkv'])
  for old, new in (
    ('embeddings.patch_embeddings.projection', 'patch_embed.proj'),
    ('embeddings.position_embeddings', 'pos_embed'),
    ('embeddings.', ''),
    ('encoder.layer', 'blocks'),
    ('attention.o_proj', 'attn.proj'),
    ('attention.qkv', 'attn.qkv'),
    ('layer_scale1.lambda1', 'ls1.gamma'),
    ('layer_scale2.lambda1', 'ls2.gamma'),
    ('layernorm.', 'norm.'),
  ):
    state = {k.replace(old, new): v for k, v in state.items()}
  return state


# found by use, 28
@pytest.mark.parametrize('spelling', ['file', 'memory', 'original', 'original.pth'])
@pytest.mark.parametrize(('registers', 'grid'), [(0, GRID), (4, GRID), (1, GRID), (0, 7), (4, 3), (0, 3)])
def test_features_equal_transformers_dinov2_in_every_spelling(
  rng, transformers, tmp_path, spelling, registers, grid
):
  import torch

  reference = dinov2(transformers, rng, registers)
  state = {k: v.numpy() for k, v in reference.state_dict().items()}
  if spelling == 'file':
    reference.save_pretrained(tmp_path)
    path = str(tmp_path)
  elif spelling == 'memory':
    path = save_safetensors(tmp_path / 'x', state)
  elif spelling == 'original':
    path = save_safetensors(tmp_path / 'x', as_published_by_dinov2(reference))
  else:
    path = save_pth(tmp_path / 'x', as_published_by_dinov2(reference), place='')
  model_fields = model_section(image_size=PATCH * grid, registers=registers, layer_scale=1.0)
  model, account = start(path, mimic_objective(model_fields, **{'head.pool': 'cls'}))
  assert [name.rsplit('.', 1)[-1] for name in account['unused']] == ['mask_token']
  assert not [name for name in account['fresh'] if name.startswith('encoder')]
  assert not account['notes']
  images = rng.normal(size=(3, PATCH * grid, PATCH * grid, 3)).astype(np.float32)
  with torch.no_grad():
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2)).double()
    expected = reference.double()(pixels).last_hidden_state.numpy()
  expected = np.delete(expected, range(1, 1 + registers), axis=1)
  encoder = model.encoder
  assert relative(encoder(jnp.asarray(images)), expected) <= 1e-5
  cls = encoder.features(jnp.asarray(images), pool='cls')
  assert relative(cls, expected[:, 0]) <= 1e-5
  raw = encoder(jnp.asarray(images), norm=False)
  assert relative(encoder.features(jnp.asarray(images)), raw[:, 1:].mean(axis=1)) <= 1e-5


@pytest.mark.parametrize(
  ('registers', 'fields', 'lacks'),
  [
    (0, {}, "it has '{}blocks.*.ls1.gamma', which the model has not"),
    (4, {}, "it has '{}register_tokens', which the model has not"),
    (4, {'layer_scale': 1.0}, "it has '{}register_tokens', which the model has not"),
    (4, {'registers': 4}, "it has '{}blocks.*.ls1.gamma', which the model has not"),
    (
      4,
      {'registers': 2, 'layer_scale': 1.0},
      "'{}register_tokens' has shape (1, 4, 24); expected (1, 2, 24)",
    ),
    (
      0,
      {'registers': 1, 'layer_scale': 1.0},
      "has no '{}register_tokens'; expected it for our encoder/register_tokens",
    ),
  ],
)
def test_layer_scale_and_registers_are_never_left_out_and_the_flags_that_fit_are_said(
  rng, transformers, tmp_path, capsys, registers, fields, lacks
):
  state = as_published_by_dinov2(dinov2(transformers, rng, registers))
  path = save_safetensors(tmp_path / 'w', state)
  with pytest.raises(UserError, match=re.escape(lacks.format(''))) as e:
    fit(path, mimic_objective(model_section(**fields)))
  assert '\n' not in str(e.value)
  flags = f'--config.model.registers={registers} ' * bool(registers) + '--config.model.layer_scale=1.0'
  if 'has no' not in lacks:
    assert f'--config.model.depth={DEPTH} {flags} makes a model of its sizes' in str(e.value)
  command.main(['inspect', path])
  told = ' '.join(capsys.readouterr().out.split())
  assert 'what DINOv2' in told
  assert ('registers 4, ' * bool(registers) + 'layer_scale 1.0') in told
  assert 'can not' not in told
  assert 'not used 1: mask_token' in told


@pytest.mark.parametrize('name', ['mlp.w12.weight', 'mlp.weights_in.bias'])
def test_the_largest_dinov2_is_refused_by_name(rng, transformers, tmp_path, name):
  reference = dinov2(transformers, rng, 0)
  state = {k: v.numpy() for k, v in reference.state_dict().items()}
  root = 'encoder.layer.'
  if 'w12' in name:
    state, root = as_published_by_dinov2(reference), 'blocks.'
  save_safetensors(tmp_path / 'w', {**state, f'{root}1.{name}': np.zeros(3, np.float32)})
  refused(
    tmp_path / 'w',
    rf"another architecture: it has '{root}1.{name}', as DINOv2's largest, whose MLPs are SwiGLU",
  )


def torch_vit(torch, state, images, pool):
  """A ViT of MAE's fine-tuning in plain PyTorch, float64: features and logits."""
  t = {k: torch.from_numpy(v).double() for k, v in state.items()}
  norm = lambda x, name: torch.nn.functional.layer_norm(  # noqa: E731
    x, (DIM,), t[f'{name}.weight'], t[f'{name}.bias'], 1e-6
  )
  linear = lambda x, name: x @ t[f'{name}.weight'].T + t[f'{name}.bias']  # noqa: E731
  x = torch.from_numpy(images.transpose(0, 3, 1, 2)).double()
  x = torch.nn.functional.conv2d(x, t['patch_embed.proj.weight'], t['patch_embed.proj.bias'], stride=PATCH)
  x = x.flatten(2).transpose(1, 2)
  x = torch.cat([t['cls_token'].expand(len(x), -1, -1), x], dim=1) + t['pos_embed']
  B, N, _ = x.shape
  for i in range(DEPTH):
    qkv = linear(norm(x, f'blocks.{i}.norm1'), f'blocks.{i}.attn.qkv')
    q, k, v = qkv.reshape(B, N, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
    a = torch.softmax(q @ k.transpose(-1, -2) * (DIM // HEADS) ** -0.5, dim=-1) @ v
    x = x + linear(a.transpose(1, 2).reshape(B, N, DIM), f'blocks.{i}.attn.proj')
    hidden = torch.nn.functional.gelu(linear(norm(x, f'blocks.{i}.norm2'), f'blocks.{i}.mlp.fc1'))
    x = x + linear(hidden, f'blocks.{i}.mlp.fc2')
  features = norm(x[:, 1:].mean(dim=1), 'fc_norm') if pool == 'gap' else norm(x, 'norm')[:, 0]
  return features.numpy(), linear(features, 'head').numpy()


@pytest.mark.parametrize('pool', ['gap', 'cls'])
@pytest.mark.parametrize('legacy', [False, True])
def test_pooled_features_and_logits_of_a_pth_equal_a_vit_in_pytorch(rng, tmp_path, pool, legacy):
  torch = pytest.importorskip('torch')
  state = {**timm_encoder(rng, norm='' if pool == 'gap' else 'norm'), **pair(rng, 'head', 3, DIM)}
  if pool == 'gap':
    state |= pair(rng, 'fc_norm', DIM, norm=True)
  path = save_pth(tmp_path / 'w', state, legacy=legacy)
  model, account = start(path, mimic_objective(init_head=True, **{'head.pool': pool}))
  assert not account['unused']
  images = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
  features, logits = torch_vit(torch, state, images, pool)
  found = model.features(jnp.asarray(images))
  np.testing.assert_allclose(found, features, atol=1e-4)
  np.testing.assert_allclose(model.classifier(found), logits, atol=1e-4)


def test_positions_are_resized_as_pytorchs_bicubic_does_it(rng, tmp_path):
  torch = pytest.importorskip('torch')
  state = timm_encoder(rng)
  path = save_safetensors(tmp_path / 'x', state)
  arrays, account = fit(path, mimic_objective(model_section(image_size=6 * PATCH)))
  square = torch.from_numpy(state['pos_embed'][:, 1:]).reshape(1, GRID, GRID, DIM).permute(0, 3, 1, 2)
  resized = torch.nn.functional.interpolate(square, size=(6, 6), mode='bicubic', align_corners=False)
  expected = resized.permute(0, 2, 3, 1).reshape(1, 36, DIM).numpy()
  np.testing.assert_allclose(arrays['encoder/pos_embed'][:, 1:], expected, atol=1e-5)
  np.testing.assert_array_equal(arrays['encoder/pos_embed'][:, :1], state['pos_embed'][:, :1])
  assert account['resized'] == ['pos_embed']
  assert 'pos_embed' not in account['loaded']


# ---- every layout


def plain(state, kind):
  """A hand-written reading: our name -> array, from the tensors of one of `files_of`."""
  if kind == 'moco':
    state = {k.removeprefix('module.base_encoder.'): v for k, v in state.items()}
  if kind == 'local_mim':
    state = {k.replace('norm.3.', 'norm.') if k.startswith('norm.3.') else k: v for k, v in state.items()}
  get = state.__getitem__
  found = {
    'encoder/cls_token': get('cls_token'),
    'encoder/pos_embed': get('pos_embed'),
    'encoder/patch_embed/bias': get('patch_embed.proj.bias'),
  }
  kernel = np.zeros((PATCH, PATCH, 3, DIM), np.float32)
  for d, c, y, x in np.ndindex(DIM, 3, PATCH, PATCH):
    kernel[y, x, c, d] = get('patch_embed.proj.weight')[d, c, y, x]
  found['encoder/patch_embed/kernel'] = kernel.reshape(-1, DIM)
  parts = {
    'norm1': 'scale',
    'attn/qkv': 'kernel',
    'attn/proj': 'kernel',
    'norm2': 'scale',
    'mlp/fc1': 'kernel',
    'mlp/fc2': 'kernel',
  }
  for ours, theirs, depth in (('encoder', 'blocks', DEPTH), ('decoder', 'decoder_blocks', DECODER['depth'])):
    if f'{theirs}.0.norm1.bias' not in state:
      continue
    for part, end in parts.items():
      name = part.replace('/', '.')
      found[f'{ours}/blocks/{part}/{end}'] = np.stack(
        [get(f'{theirs}.{i}.{name}.weight').T for i in range(depth)]
      )
      found[f'{ours}/blocks/{part}/bias'] = np.stack([get(f'{theirs}.{i}.{name}.bias') for i in range(depth)])
  layers = {
    'encoder/norm': 'norm',
    'fc_norm': 'fc_norm',
    'classifier/fc': 'head',
    'decoder/embed': 'decoder_embed',
  }
  for ours, theirs in {**layers, 'decoder/norm': 'decoder_norm', 'decoder/pred': 'decoder_pred'}.items():
    if f'{theirs}.weight' in state:
      end = 'scale' if 'norm' in ours else 'kernel'
      found[f'{ours}/{end}'], found[f'{ours}/bias'] = get(f'{theirs}.weight').T, get(f'{theirs}.bias')
  for ours, theirs in (('mask_token', 'mask_token'), ('pos_embed', 'decoder_pos_embed')):
    if theirs in state:
      found[f'decoder/{ours}'] = get(theirs)
  return found | (plain_decoders(get, parts) if kind == 'local_mim' else {})


def plain_decoders(get, parts):
  """LocalMIM's norms and decoders; a transposed convolution as a product for each of four places."""
  found = {}
  for k in range(4):
    if k < 3:
      found[f'norms/{k}/scale'], found[f'norms/{k}/bias'] = get(f'norm.{k}.weight'), get(f'norm.{k}.bias')
    ours, theirs = f'decoders/{k}', f'decoder.{k}'
    found |= {f'{ours}/{x}': get(f'{theirs}.{x}') for x in ('mask_token', 'pos_embed')}
    for part, end in {'embed': 'kernel', 'norm': 'scale'}.items():
      found[f'{ours}/{part}/{end}'] = get(f'{theirs}.{part}.weight').T
      found[f'{ours}/{part}/bias'] = get(f'{theirs}.{part}.bias')
    for part, end in parts.items():
      name = f'{theirs}.blocks.0.{part.replace("/", ".")}'
      found[f'{ours}/blocks/{part}/{end}'] = get(f'{name}.weight').T[None]
      found[f'{ours}/blocks/{part}/bias'] = get(f'{name}.bias')[None]
    heads = ({'up/0': 0, 'norms/0': 1, 'up/1': 3, 'out': 4}, {'up/0': 0, 'out': 1}, {'out': 0}, {'out': 1})
    for part, n in heads[k].items():
      name, weight = f'{ours}/pred/{part}', get(f'{theirs}.pred.{n}.weight')
      found[f'{name}/bias'] = get(f'{theirs}.pred.{n}.bias')
      if part == 'norms/0':
        found[f'{name}/scale'] = weight
      elif part == 'out':
        found[f'{name}/kernel'] = weight[:, :, 0, 0].T
      else:
        four = [weight[:, :, y, x] for y, x in np.ndindex(2, 2)]
        found[f'{name}/kernel'] = np.concatenate(four, axis=1)
  return found


def fused(state):
  """Turns a Hugging Face file of `hugging_face` back to MAE's names, by trying all of them."""
  names = [
    *timm_encoder(np.random.default_rng(0)),
    *mae_decoder(np.random.default_rng(0)),
    'head.weight',
    'head.bias',
  ]
  marks = {n: np.full((3,), i, np.float32) for i, n in enumerate(names)}
  for prefix in ('vit.', ''):
    for spelling in ('published', 'file', 'memory'):
      there = hugging_face(marks, prefix, spelling)
      if set(state) <= set(there):
        found = {}
        for theirs in state:
          found.setdefault(names[int(there[theirs].flat[0])], []).append(state[theirs])
        return {k: np.concatenate(v) if len(v) == 3 else v[0] for k, v in found.items()}
  raise AssertionError('no spelling has these names')


@pytest.mark.parametrize('container', ['safetensors', 'pth'])
@pytest.mark.parametrize('kind', KINDS)
def test_every_layout_gives_the_tensors_of_a_reading_by_hand(rng, tmp_path, kind, container):
  state, place, beside, called = files_of(rng)[kind]
  if container == 'pth':
    path = save_pth(tmp_path / 'weights', state, place, beside)
  else:
    path = save_safetensors(tmp_path / 'weights', state)
  read = weights.read(path, 'config.init')
  if container == 'pth' or not place:  # what stands beside the tensors tells some apart
    assert read.kind == called
  expected = plain(fused(state) if kind.startswith('hf') else state, kind)
  assert read.tensors.keys() == expected.keys()
  for name, array in expected.items():
    assert read.tensors[name].dtype == np.float32
    np.testing.assert_array_equal(read.tensors[name], array, err_msg=name)
  facts = {k: read.facts[k] for k in ('dim', 'depth', 'patch_size', 'image_size')}
  assert facts == {'dim': DIM, 'depth': DEPTH, 'patch_size': PATCH, 'image_size': PATCH * GRID}
  if container == 'pth' and beside.get('args'):
    assert (read.facts['trained_as'], read.facts['norm_pix']) == ('mae_vit_base_patch16', True)


# fine-tuned with global pooling, which has its norm behind it
WITHOUT_NORM = ('mae_tuned', 'mae_own_tuned', 'timm_gap')


def covers(entry, name):
  return re.fullmatch(re.escape(entry).replace(r'\*', r'\d+'), name) is not None


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('use', ['pretrain', 'finetune'])
def test_every_tensor_of_file_and_model_is_in_the_account_once(rng, tmp_path, kind, use):
  state, *_ = files_of(rng)[kind]
  path = save_safetensors(tmp_path / 'weights', state)
  objective = mae_objective() if use == 'pretrain' else mimic_objective()
  if use == 'pretrain' and kind in WITHOUT_NORM:
    refused(path, "has no 'norm.bias'", objective)
    return
  arrays, account = fit(path, objective)
  entries = [e for key in ('loaded', 'resized', 'unused') for e in account[key]]
  for name in state:
    assert sum(covers(e, name) for e in entries) == 1, name
  for entry in entries:
    assert any(covers(entry, name) for name in state), entry
  _, target = shapes(objective)
  assert sorted([*arrays, *account['fresh']]) == sorted(target)
  assert not set(arrays) & set(account['fresh'])


def test_localmims_pre_training_goes_on_from_its_file_and_begins_decoders_anew_from_maes(rng, tmp_path):
  stage = objectives.defaults('local_mim')
  stage.local_mim.update({'decoder_dim': 8, 'decoder_heads': 2})
  objective = objectives.make(stage, model_section(depth=4), (), 'objective')
  path = save_safetensors(tmp_path / 'local', local_mim(rng, depth=4))
  arrays, account = fit(path, objective)
  assert (account['fresh'], account['notes']) == ([], [])
  assert account['unused'] == ['hog_enc.*.conv.weight']
  assert set(arrays) == set(shapes(objective)[1])
  ((title, section),) = type(objective).uses({}, weights.read(path, 'config.init').tensors)
  assert (title, section.local_mim.decoder_dim, section.local_mim.decoder_depth) == (
    'LocalMIM pre-training',
    8,
    1,
  )
  assert (section.local_mim.decoder_heads, section.local_mim.bins) == (8, 9)
  mae = timm_encoder(rng, depth=4) | mae_decoder(rng)
  _, account = fit(save_safetensors(tmp_path / 'mae', mae), objective)
  assert {name.split('/')[0] for name in account['fresh']} == {'norms', 'decoders'}


def test_a_vit_b_file_has_the_published_number_of_parameters_and_fits(tmp_path):
  def zeros(*shape):
    return np.broadcast_to(np.zeros((), np.float32), shape)

  class Zeros:
    """Draws nothing: a ViT-B of random numbers would take long."""

    def normal(self, centre, spread, shape):
      return zeros(*shape)

  patch, dim, depth, _ = vit.PRESETS['vit_b16']
  encoder = timm_encoder(Zeros(), dim=dim, depth=depth, patch=patch, grid=14)
  assert len(encoder) == 150
  layout = layouts.detect(encoder, 'model', False)
  tensors, broken, used = layouts.collect(encoder, layout)
  assert not broken
  assert used == set(encoder)
  assert sum(a.size for a in tensors.values()) == 85_798_656  # method.md §1
  model = defaults.encoder()
  model.dtype = 'float32'
  _, target = shapes(mae_objective(model))
  assert {k: a.shape for k, a in tensors.items()} == {
    k: leaf.shape for k, leaf in target.items() if k.startswith('encoder/')
  }


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16, np.float64])
def test_half_precision_and_double_become_float32(rng, tmp_path, dtype):
  state = {k: v.astype(dtype) for k, v in timm_encoder(rng).items()}
  read = weights.read(save_safetensors(tmp_path / 'x', state), 'x')
  assert read.facts['dtypes'] == [np.dtype(dtype).name]
  for name, array in plain({k: v.astype(np.float32) for k, v in state.items()}, '').items():
    assert read.tensors[name].dtype == np.float32
    np.testing.assert_array_equal(read.tensors[name], array)


@pytest.mark.parametrize('name', ['float16', 'bfloat16'])
def test_half_precision_in_a_pth_becomes_float32(rng, tmp_path, name):
  torch = pytest.importorskip('torch')
  state = {k: torch.from_numpy(v).to(getattr(torch, name)) for k, v in timm_encoder(rng).items()}
  torch.save({'model': state}, tmp_path / 'x')
  read = weights.read(str(tmp_path / 'x'), 'x')
  assert read.facts['dtypes'] == [name]
  np.testing.assert_array_equal(read.tensors['encoder/cls_token'], state['cls_token'].float().numpy())


def test_the_format_is_told_by_content_and_safetensors_need_no_torch(rng, tmp_path, monkeypatch):
  state = timm_encoder(rng)
  path = save_safetensors(tmp_path / 'mae_pretrain_vit_base.pth', state)
  monkeypatch.setitem(sys.modules, 'torch', None)
  assert weights.read(path, 'x').facts['container'] == 'safetensors'


def test_without_torch_a_pth_asks_for_it_by_name(rng, tmp_path, monkeypatch):
  (tmp_path / 'zip').write_bytes(b'PK\x03\x04' + bytes(60))
  (tmp_path / 'pickle').write_bytes(b'\x80\x02' + bytes(60))
  monkeypatch.setitem(sys.modules, 'torch', None)
  for name in ('zip', 'pickle'):
    with pytest.raises(
      UserError, match=r'config.init: .*PyTorch is not installed; expected `pip install torch`'
    ):
      weights.read(str(tmp_path / name), 'config.init')


def test_a_pth_is_read_without_pytorch_in_this_process(rng, tmp_path):
  torch = pytest.importorskip('torch')
  state = timm_encoder(rng)
  args = argparse.Namespace(norm_pix_loss=True, model='mae_vit', device=torch.device('cpu'), drop=None)
  path = save_pth(tmp_path / 'w', state, beside={'args': args})
  code = (
    'import sys\n'
    'from mimic_jax import weights\n'
    f'read = weights.read({path!r}, "x")\n'
    'assert "torch" not in sys.modules\n'
    'assert read.facts["norm_pix"] is True\n'
    'print(repr(read.tensors["encoder/cls_token"].tobytes()))'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, '')
  assert ast.literal_eval(done.stdout) == state['cls_token'].tobytes()


def test_a_pytorch_that_ends_as_it_reads_is_one_line(rng, tmp_path, monkeypatch):
  path = save_pth(tmp_path / 'w', timm_encoder(rng))
  (tmp_path / 'killed.py').write_text(
    'import os\nprint("\\x80", end="", flush=True)\nos.kill(os.getpid(), 9)'
  )
  monkeypatch.setattr(files.pytorch, '__file__', str(tmp_path / 'killed.py'))
  refused(path, r'PyTorch ended with code -9 as it read this file')


def test_distributed_and_compiled_models_saved_as_themselves_are_read(rng, tmp_path):
  state = timm_encoder(rng)
  for prefix in ('module.', '_orig_mod.', 'module._orig_mod.'):
    path = save_safetensors(tmp_path / 'x', {prefix + k: v for k, v in state.items()})
    read = weights.read(path, 'x')
    np.testing.assert_array_equal(read.tensors['encoder/cls_token'], state['cls_token'])
    assert read.spelled('encoder/cls_token') == (f'{prefix}cls_token',)


def test_a_model_folder_prefers_safetensors_and_refuses_two_models(rng, tmp_path):
  state = timm_encoder(rng)
  save_safetensors(tmp_path / 'model.safetensors', state)
  (tmp_path / 'pytorch_model.bin').write_bytes(b'broken')
  (tmp_path / 'preprocessor_config.json').write_text('{"image_mean": [0.5, 0.5, 0.5]}')
  read = weights.read(str(tmp_path), 'x')
  assert read.facts['mean'] == (0.5, 0.5, 0.5)
  np.testing.assert_array_equal(read.tensors['encoder/cls_token'], state['cls_token'])
  (tmp_path / 'model.safetensors').rename(tmp_path / 'a.safetensors')
  save_safetensors(tmp_path / 'b.safetensors', state)
  with pytest.raises(UserError, match=r'several weight files; expected one of a.safetensors, b.safetensors'):
    weights.read(str(tmp_path), 'x')


def test_weights_in_an_object_store_are_read_once(rng, store):
  bucket = store.folder / 'bucket'
  (bucket / 'model').mkdir(parents=True)
  state = timm_encoder(rng)
  halves = dict(list(state.items())[::2]), dict(list(state.items())[1::2])
  for k, half in enumerate(halves):
    save_safetensors(bucket / 'model' / f'{k}.safetensors', half)
  listed = {name: f'{k}.safetensors' for k, half in enumerate(halves) for name in half}
  (bucket / 'model' / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': listed}))
  (bucket / 'model' / 'preprocessor_config.json').write_text('{"image_mean": [0.5, 0.5, 0.5]}')
  (bucket / 'model' / 'tf_model.h5').write_bytes(b'not ours')
  save_safetensors(bucket / 'one', state)
  for name, fails in (('model', [ConnectionError('reset')] * 2), ('one', [])):
    store.failures = fails
    read = weights.read(f'gs://bucket/{name}', 'config.init')
    here = weights.read(str(bucket / name), 'x')
    assert read.origin == f'gs://bucket/{name}'
    assert (
      read.facts['mean' if name == 'model' else 'dim'] == here.facts['mean' if name == 'model' else 'dim']
    )
    assert read.tensors.keys() == here.tensors.keys()
    for tensor in here.tensors:
      np.testing.assert_array_equal(read.tensors[tensor], here.tensors[tensor])
    asked = {file for file, _ in store.said('read')}
    assert 'bucket/model/tf_model.h5' not in asked
    weights.read(f'gs://bucket/{name}', 'config.init')
    assert store.read() == 0
  with pytest.raises(
    UserError, match=r"^config.init is 'gs://bucket/no', which does not exist; expected a run's"
  ):
    weights.read('gs://bucket/no', 'config.init')
  store.failures = [PermissionError('not yours')]
  with pytest.raises(
    UserError, match=r"^config.init is 'gs://bucket/one', which can't be read \(PermissionError: not"
  ):
    weights.read('gs://bucket/one', 'config.init')


# ---- what is wrong with a file


def refused(path, match, objective=None):
  with pytest.raises(UserError, match=match) as e:
    fit(str(path), objective or mimic_objective())
  assert '\n' not in str(e.value)
  assert 'config.init' in str(e.value)
  return str(e.value)


def test_a_pth_that_holds_code_does_not_run_it(tmp_path):
  torch = pytest.importorskip('torch')
  trace = tmp_path / 'trace'

  class Code:
    def __reduce__(self):
      return os.system, (f'touch {trace}',)

  for legacy in (False, True):
    content = {'model': {'cls_token': torch.zeros(1, 1, 4)}, 'args': Code()}
    torch.save(content, tmp_path / 'w', _use_new_zipfile_serialization=not legacy)
    refused(tmp_path / 'w', r"holds more than weights, 'posix.system', which was not run")
    assert not trace.exists()
  torch.load(tmp_path / 'w', weights_only=False)
  assert trace.exists()  # so the file would have


def test_a_class_that_is_not_namespace_is_refused_by_name(tmp_path):
  torch = pytest.importorskip('torch')
  beside = {'args': datetime.timedelta(1)}
  torch.save({'model': {'cls_token': torch.zeros(1, 1, 4)}, **beside}, tmp_path / 'w')
  message = refused(
    tmp_path / 'w', r"holds more than weights, 'datetime.timedelta', which was not run or made"
  )
  assert "torch.save(torch.load('FILE', weights_only=False)['model'], 'NEW')" in message
  torch.save({'model': {'cls_token': torch.zeros(1, 1, 4)}, 'best': np.zeros(3)}, tmp_path / 'w')
  refused(tmp_path / 'w', r"'numpy\.\w+\.multiarray\._reconstruct. \(a NumPy array\), which was not run")


@pytest.mark.parametrize('number', [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True)])
def test_numpys_numbers_may_stand_beside_the_weights(rng, tmp_path, number):
  torch = pytest.importorskip('torch')
  model = {k: torch.from_numpy(v) for k, v in timm_encoder(rng).items()}
  torch.save({'model': model, 'best': number, 'metrics': {'acc': [number]}}, tmp_path / 'w')
  assert 'encoder/cls_token' in weights.read(str(tmp_path / 'w'), 'config.init').tensors


def test_dinos_teacher_is_read_of_student_and_teacher(rng, tmp_path):
  torch = pytest.importorskip('torch')
  student, teacher = (
    {f'backbone.{k}': torch.from_numpy(v) for k, v in timm_encoder(rng).items()} for _ in range(2)
  )
  teacher['head.last_layer.weight_g'] = torch.ones(5, 1)
  torch.save(
    {'student': {f'module.{k}': v for k, v in student.items()}, 'teacher': teacher, 'epoch': 3},
    tmp_path / 'w',
  )
  found = weights.read(str(tmp_path / 'w'), 'config.init')
  assert found.kind == 'DINO, a moving average of the weights'
  assert found.unused == ["['student']", 'head.last_layer.weight_g']
  model, _ = start(str(tmp_path / 'w'), mimic_objective(**{'head.pool': 'cls'}))
  images = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
  state = {k.removeprefix('backbone.'): v.numpy() for k, v in teacher.items()} | pair(rng, 'head', 3, DIM)
  features, _ = torch_vit(torch, state, images, 'cls')
  np.testing.assert_allclose(model.features(jnp.asarray(images)), features, atol=1e-4)


@pytest.mark.parametrize('key', ['model_ema', 'ema'])
def test_a_moving_average_is_taken_where_it_is_the_only_state_and_called_one(rng, tmp_path, key, capsys):
  torch = pytest.importorskip('torch')
  state, other = timm_encoder(rng), timm_encoder(rng)
  beside = {'epoch': 3, 'optimizer': {'state': {0: {'exp_avg': torch.zeros(4)}}}, 'rng': torch.zeros(9)}
  path = save_pth(tmp_path / 'w', state, key, beside)
  read = weights.read(path, 'x')
  np.testing.assert_array_equal(read.tensors['encoder/cls_token'], state['cls_token'])
  assert read.kind == 'timm ViT, a moving average of the weights'
  command.main(['inspect', path])
  assert f"a moving average of the weights (PyTorch, under ['{key}'])" in capsys.readouterr().out
  tensors = {k: torch.from_numpy(v) for k, v in state.items()}
  read = weights.read(save_pth(tmp_path / 'both', other, beside={key: tensors}), 'x')
  np.testing.assert_array_equal(read.tensors['encoder/cls_token'], other['cls_token'])
  assert 'average' not in read.kind
  save_pth(tmp_path / 'two', state, key, {'teacher': tensors})
  refused(tmp_path / 'two', rf"holds the states '{key}', 'teacher'; expected one")


def test_a_zip_file_with_a_damaged_directory_is_refused_in_one_line(rng, tmp_path):
  pytest.importorskip('torch')
  path = tmp_path / 'w'
  save_pth(path, timm_encoder(rng))
  whole = bytearray(path.read_bytes())
  at = whole.rindex(b'PK\x01\x02')  # of the last file in the directory
  whole[at : at + 4] = b'XXXX'
  path.write_bytes(whole)
  refused(path, r'is truncated, damaged or no PyTorch file \(BadZipFile')


def test_tensors_without_values_are_refused_by_name(rng, tmp_path):
  torch = pytest.importorskip('torch')
  state = {k: torch.from_numpy(v) for k, v in timm_encoder(rng).items()}
  state['pos_embed'] = state['pos_embed'].to('meta')
  torch.save({'model': state}, tmp_path / 'w')
  refused(tmp_path / 'w', r"'pos_embed' has a shape and no values .*meta device\); expected a dense tensor")


@pytest.mark.parametrize('naming', ['timm', 'hf'])
@pytest.mark.parametrize(
  ('shape', 'told'),
  [
    ((1, 16, 16), r' \(1 channels\)'),
    ((4, 8, 8), r' \(4 channels\)'),
    ((3, 8, 16), ''),
    ((3, 0, 0), ''),
    ((192,), ''),
  ],
)
def test_patches_that_are_not_square_and_of_three_colours_are_refused_by_name(
  rng, tmp_path, naming, shape, told
):
  state = {**timm_encoder(rng), 'patch_embed.proj.weight': normal(rng, DIM, *shape)}
  name = 'patch_embed.proj.weight'
  if naming == 'hf':
    state, name = hugging_face(state), 'vit.embeddings.patch_embeddings.projection.weight'
  save_safetensors(tmp_path / 'w', state)
  refused(
    tmp_path / 'w',
    rf"another architecture: '{name}' has shape {re.escape(str((DIM, *shape)))}{told}; expected \[D, 3, p, p\]",
  )


@pytest.mark.parametrize('format', ['safetensors', 'zip', 'pickle'])
@pytest.mark.parametrize('share', [0.6, 0.999])
def test_a_truncated_file_is_refused_in_one_line(rng, tmp_path, format, share):
  path = tmp_path / 'w'
  if format == 'safetensors':
    save_safetensors(path, timm_encoder(rng))
  else:
    save_pth(path, timm_encoder(rng), legacy=format == 'pickle')
  assert weights.read(str(path), 'x').tensors
  whole = path.read_bytes()
  path.write_bytes(whole[: int(share * len(whole))])
  refused(path, r'truncated')


@pytest.mark.parametrize(
  ('content', 'match'),
  [
    (b'', 'is empty'),
    (b'hello', 'no weights; expected'),
    (b'\x89PNG\r\n\x1a\n' + bytes(40), 'no weights; expected'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:00', 'pointer of Git LFS'),
    (b'\n<!DOCTYPE html><html>', 'a web page'),
    (struct.pack('<Q', 10) + b'{"a":1}   ', 'truncated or damaged'),
  ],
)
def test_what_is_no_weight_file_is_refused_in_one_line(tmp_path, content, match):
  (tmp_path / 'w.pth').write_bytes(content)
  refused(tmp_path / 'w.pth', match)


def test_a_zip_file_of_another_kind_is_refused(rng, tmp_path):
  pytest.importorskip('torch')
  np.savez(tmp_path / 'w.npz', **timm_encoder(rng))
  refused(tmp_path / 'w.npz', r"a zip file without PyTorch's data.pkl")


def test_pytorch_files_that_hold_no_state_are_refused(tmp_path):
  torch = pytest.importorskip('torch')
  torch.save([torch.zeros(2)], tmp_path / 'list')
  refused(tmp_path / 'list', r'holds a list; expected a state dict')
  torch.save({'epoch': 3, 'lr': 0.1}, tmp_path / 'numbers')
  refused(tmp_path / 'numbers', r"holds 'epoch', 'lr'; expected a state dict")


def test_weights_of_something_else_are_refused_with_some_of_their_names(tmp_path):
  save_safetensors(tmp_path / 'w', {'conv1.weight': np.zeros((2, 2), np.float32)})
  refused(tmp_path / 'w', r"has 'conv1.weight'; expected the names of a ViT")


@pytest.mark.parametrize(
  'extra', ['dist_token', 'blocks.0.gamma_1', 'blocks.1.attn.q_norm.weight', 'norm_pre.weight', 'reg_token']
)
def test_a_vit_of_another_kind_is_refused_by_what_it_has_beyond_ours(rng, tmp_path, extra):
  state = {**timm_encoder(rng), extra: np.zeros((1, 1, DIM), np.float32)}
  save_safetensors(tmp_path / 'w', state)
  refused(tmp_path / 'w', rf"another architecture: it has '{re.escape(extra)}'")


@pytest.mark.parametrize('kind', ['CLIPModel', 'CLIPVisionModel', 'BeitModel', 'CLIPVisionModel in memory'])
def test_what_transformers_writes_of_clip_and_beit_is_refused_by_name(transformers, tmp_path, kind):
  import torch

  sizes = {
    'image_size': 16,
    'patch_size': 8,
    'hidden_size': 8,
    'num_hidden_layers': 1,
    'num_attention_heads': 2,
  }
  name = kind.split()[0]
  if 'CLIP' in name:
    config = transformers.CLIPVisionConfig(**sizes, intermediate_size=16)
    if name == 'CLIPModel':
      text = transformers.CLIPTextConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
      config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=config.to_dict())
  else:
    config = transformers.BeitConfig(**sizes, intermediate_size=16, use_relative_position_bias=True)
  with torch.no_grad():
    reference = getattr(transformers, name)(config)
  if kind == name:
    reference.save_pretrained(tmp_path)
  else:
    save_safetensors(
      tmp_path / 'model.safetensors', {k: v.numpy() for k, v in reference.state_dict().items()}
    )
  refused(tmp_path, f', as {"CLIP" if "CLIP" in kind else "BEiT"}.* has it; expected')


@pytest.mark.parametrize(
  ('who', 'names'),
  [
    ('CLIP', ['visual.class_embedding', 'visual.conv1.weight', 'visual.transformer.resblocks.0.attn.in_proj_weight']),
    ("CLIP's ResNet", ['visual.conv1.weight', 'visual.bn1.weight', 'visual.layer1.0.conv1.weight', 'visual.attnpool.c_proj.bias']),
    ("timm's CLIP", ['cls_token', 'pos_embed', 'norm_pre.weight', 'blocks.0.norm1.weight']),
    ('BEiT', ['cls_token', 'blocks.0.norm1.weight', 'blocks.0.gamma_1', 'blocks.0.attn.relative_position_bias_table']),
    ("timm's ResNet-C or -D", ['conv1.0.weight', 'bn1.weight', 'layer1.0.conv1.weight', 'layer4.0.bn2.weight']),
  ],
)  # fmt: skip
def test_other_image_encoders_are_refused_by_name_though_some_of_their_names_are_ours(tmp_path, who, names):
  save_safetensors(tmp_path / 'w', {name: np.zeros((1, 2), np.float32) for name in names})
  refused(tmp_path / 'w', f', as {who} has it; expected')


def test_position_tables_that_are_not_square_are_refused(rng, tmp_path):
  state = {**timm_encoder(rng), 'pos_embed': normal(rng, 1, GRID**2, DIM)}  # no row of the class token
  save_safetensors(tmp_path / 'w', state)
  refused(tmp_path / 'w', r"'pos_embed' has shape \(1, 16, 24\); expected \[1, 1 \+ side · side, D\]")


def test_a_file_of_several_encoders_is_refused(rng, tmp_path):
  state = {f'{which}.{k}': v for which in ('student', 'teacher') for k, v in timm_encoder(rng).items()}
  save_safetensors(tmp_path / 'w', state)
  refused(tmp_path / 'w', r"holds several encoders, under 'student.', 'teacher.'; expected one")


@pytest.mark.parametrize(
  'name',
  ['cls_token', 'pos_embed', 'patch_embed.proj.weight', 'blocks.1.attn.qkv.bias', 'blocks.0.norm1.weight'],
)
@pytest.mark.parametrize('naming', ['timm', 'hf'])
def test_a_missing_tensor_is_named_as_the_file_would_spell_it(rng, tmp_path, name, naming):
  state = timm_encoder(rng)
  lacking = {k: v for k, v in state.items() if k != name}
  if naming == 'hf':
    there, lacking = set(hugging_face(state)), hugging_face(lacking)
    names = sorted(there - set(lacking))
  else:
    names = [name]
  save_safetensors(tmp_path / 'w', lacking)
  message = refused(tmp_path / 'w', r'has no')
  assert any(f"'{n}'" in message for n in names)


def test_a_tensor_that_is_missing_in_every_block_is_named_in_both_spellings(rng, tmp_path):
  state = {k: v for k, v in timm_encoder(rng).items() if not k.endswith('attn.qkv.bias')}
  save_safetensors(tmp_path / 'w', state)
  refused(
    tmp_path / 'w',
    r"has no 'blocks.\*.attn.qkv.bias'; expected it for our encoder/blocks/attn/qkv/bias, \[2, 72\]",
  )


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('naming', ['timm', 'hf'])
def test_a_value_that_is_not_finite_names_its_tensor(rng, tmp_path, value, naming):
  state = timm_encoder(rng)
  state['blocks.1.attn.qkv.weight'][DIM + 3, 5] = value  # of the keys
  name = 'blocks.1.attn.qkv.weight'
  if naming == 'hf':
    state, name = hugging_face(state), 'vit.encoder.layer.1.attention.attention.key.weight'
  save_safetensors(tmp_path / 'w', state)
  refused(tmp_path / 'w', rf"'{re.escape(name)}' has values that are not finite")


def test_a_value_that_is_not_finite_in_what_is_not_taken_does_no_harm(rng, tmp_path):
  state = {**timm_encoder(rng), **mae_decoder(rng)}
  state['decoder_pred.weight'][0, 0] = np.nan
  save_safetensors(tmp_path / 'w', state)
  assert fit(str(tmp_path / 'w'), mimic_objective())[1]['loaded']
  refused(tmp_path / 'w', r"'decoder_pred.weight' has values", mae_objective())


def test_another_architecture_is_refused_with_both_shapes_and_what_the_file_is(tmp_path):
  preset = 'vit_ti16'
  patch, dim, depth, _ = vit.PRESETS[preset]
  # only the shapes are of this size: a tensor of zeros costs nothing to make
  rng = np.random.default_rng(0)
  state = timm_encoder(rng, dim=dim, depth=depth, patch=patch, grid=2)
  save_safetensors(tmp_path / 'w', state)
  message = refused(
    tmp_path / 'w',
    r"another architecture, .*: 'blocks.\*.attn.proj.bias' has shape \(12, 192\); expected \(2, 24\)",
  )
  assert 'vit_ti16: dim 192, depth 12, heads 3, patch_size 16' in message


def test_another_patch_size_is_refused(rng, tmp_path):
  save_safetensors(tmp_path / 'w', timm_encoder(rng, patch=4))
  message = refused(
    tmp_path / 'w',
    r"another architecture, .*: 'patch_embed.proj.weight' has shape \(48, 24\); expected \(192, 24\)",
  )
  assert 'patch_size 4' in message


def test_another_number_of_heads_is_refused_where_the_file_says_it(rng, tmp_path):
  save_safetensors(tmp_path / 'model.safetensors', hugging_face(timm_encoder(rng)))
  (tmp_path / 'config.json').write_text(json.dumps({'num_attention_heads': 6}))
  refused(tmp_path, r'has 6 attention heads \(its config.json says so\); expected the 3 of config.model')
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(UserError, match=r'config.json is no JSON'):
    weights.read(str(tmp_path), 'config.init')


ODD_CONFIG = [
  ('num_attention_heads', [None, 'x', '6', 6.5, True, 0, -3, [6], float('nan')], 'a whole number above 0'),
  ('layer_norm_eps', [None, 'x', '1e-12', False, 0, -1.0, {}, float('inf'), 10**400], 'a number above 0'),
  (
    'image_mean',
    [None, 0.5, 'abc', [0.5], [0.5, 0.5, None], [0.5, 0.5, '0.5'], {}],
    'a list of three numbers',
  ),
  ('image_std', [None, 0.5, [True] * 3, [0.5] * 4], 'a list of three numbers'),
  ('norm_pix_loss', [None, 'false', 1], 'true or false'),
]


@pytest.mark.parametrize(
  ('key', 'value', 'expected'),
  [(key, v, e) for key, values, e in ODD_CONFIG for v in values],
  ids=lambda v: repr(v)[:20],
)
def test_a_value_of_a_config_that_can_not_be_meant_is_ignored_with_a_note(
  rng, tmp_path, capsys, key, value, expected
):
  save_safetensors(tmp_path / 'model.safetensors', hugging_face(timm_encoder(rng)))
  file = tmp_path / ('preprocessor_config.json' if key.startswith('image') else 'config.json')
  file.write_text(json.dumps({key: value}))
  account = fit(str(tmp_path), mimic_objective())[1]
  (note,) = account['notes']
  assert re.match(rf'{re.escape(str(file))}: {key} is \S.*, which is ignored; expected {expected}$', note)
  assert len(note) < len(str(file)) + 140
  assert not {'heads', 'layer_norm_eps', 'mean', 'std', 'norm_pix'} & set(
    weights.read(str(tmp_path), 'x').facts
  )
  command.main(['inspect', str(tmp_path)])
  told = ' '.join(capsys.readouterr().out.split())
  assert told.count('which is ignored') == 1


def test_what_a_config_says_is_kept_in_its_own_type(rng, tmp_path):
  save_safetensors(tmp_path / 'model.safetensors', hugging_face(timm_encoder(rng)))
  said = {'num_attention_heads': 3, 'layer_norm_eps': 1, 'image_mean': [0, 0.5, 1], 'norm_pix_loss': False}
  (tmp_path / 'config.json').write_text(json.dumps(said))
  found = weights.read(str(tmp_path), 'x').facts
  assert (found['heads'], found['layer_norm_eps'], found['mean']) == (3, 1.0, (0.0, 0.5, 1.0))
  assert found['norm_pix'] is False
  assert 'ignored' not in found


def test_moco_v3s_small_vit_has_twelve_heads_though_no_tensor_shows_it(rng, tmp_path):
  state = {f'module.base_encoder.{k}': v for k, v in timm_encoder(rng, dim=384, depth=1).items()}
  save_safetensors(tmp_path / 'w', state)
  sizes = {'dim': 384, 'depth': 1}
  six = mimic_objective(model_section(**sizes, heads=6))
  refused(
    tmp_path / 'w',
    r"has 12 attention heads \(MoCo v3's ViTs have so many\); expected the 6 of config.model",
    six,
  )
  assert fit(str(tmp_path / 'w'), mimic_objective(model_section(**sizes, heads=12)))[1]['notes'] == []


def test_other_heads_than_a_presets_are_noted_where_the_file_is_silent(rng, tmp_path):
  patch, dim, depth, _ = vit.PRESETS['vit_ti16']
  path = save_safetensors(tmp_path / 'w', timm_encoder(rng, dim=dim, depth=depth, patch=patch, grid=2))
  sizes = {'dim': dim, 'depth': depth, 'patch_size': patch, 'image_size': 2 * patch}
  assert fit(path, mimic_objective(model_section(**sizes, heads=3)))[1]['notes'] == []
  notes = fit(path, mimic_objective(model_section(**sizes, heads=6)))[1]['notes']
  assert notes == ['vit_ti16 has 3 attention heads, config.model 6; no tensor shows which is right']


def test_an_optimiser_beside_the_model_is_listed_and_never_read(rng, tmp_path):
  torch = pytest.importorskip('torch')
  state = timm_encoder(rng)
  optimiser = {'state': {0: {'exp_avg': torch.zeros(4)}}, 'param_groups': [{'lr': 0.1}]}
  path = save_pth(
    tmp_path / 'w', state, beside={'optimizer': optimiser, 'epoch': 3, 'scaler': {'scale': 1.0}}
  )
  assert weights.read(path, 'x').unused == ["['optimizer']"]


def test_blocks_of_different_sizes_are_refused(rng, tmp_path):
  state = timm_encoder(rng)
  state['blocks.1.mlp.fc1.bias'] = state['blocks.1.mlp.fc1.bias'][:-1]
  save_safetensors(tmp_path / 'w', state)
  refused(
    tmp_path / 'w', r"'blocks.1.mlp.fc1.bias' of shape \(95,\) and 'blocks.0.mlp.fc1.bias' of shape \(96,\)"
  )


def test_an_index_that_lists_what_is_not_there_is_refused(rng, tmp_path):
  state = timm_encoder(rng)
  save_safetensors(tmp_path / 'a.safetensors', state)
  index = tmp_path / 'model.safetensors.index.json'
  index.write_text(
    json.dumps({'weight_map': {**dict.fromkeys(state, 'a.safetensors'), 'x': 'b.safetensors'}})
  )
  with pytest.raises(UserError, match=r'b.safetensors does not exist; model.safetensors.index.json lists it'):
    weights.read(str(tmp_path), 'x')
  index.write_text(
    json.dumps({'weight_map': {**dict.fromkeys(state, 'a.safetensors'), 'x': 'a.safetensors'}})
  )
  with pytest.raises(UserError, match=r"a.safetensors has no 'x', which model.safetensors.index.json lists"):
    weights.read(str(tmp_path), 'x')


@pytest.mark.parametrize(
  ('index', 'match'),
  [
    ([1], r"is a JSON list; expected an object with a 'weight_map'"),
    ('x', r"is a JSON str; expected an object with a 'weight_map'"),
    ({}, r"has no 'weight_map'; expected an index of weight files"),
    (
      {'weight_map': ['a.safetensors']},
      r"'weight_map' is a JSON list; expected an object, tensor name: file",
    ),
    (
      {'weight_map': {'x': None}},
      r"'weight_map' has null for 'x'; expected the name of a file in this folder",
    ),
    ({'weight_map': {'x': ['a']}}, r"'weight_map' has \[\"a\"\] for 'x'; expected the name of a file"),
    ({'weight_map': {'x': 3}}, r"'weight_map' has 3 for 'x'; expected the name of a file"),
    (
      {'weight_map': {'x': '../a.safetensors'}},
      r'has "../a.safetensors" for \'x\'; expected the name of a file',
    ),
    ({'weight_map': {'x': '..'}}, r'has ".." for \'x\'; expected the name of a file'),
    ({'weight_map': {'x': ''}}, r'has "" for \'x\'; expected the name of a file'),
    ({'weight_map': {'x': '/etc/passwd'}}, r'has "/etc/passwd" for \'x\'; expected the name of a file'),
    ({'weight_map': {'x': r'..\a'}}, r'for \'x\'; expected the name of a file'),
    ({'weight_map': {'x': 'folder'}}, r'folder is a folder; model.safetensors.index.json lists it'),
  ],
)
def test_an_index_that_is_none_or_leads_out_of_its_folder_is_refused(rng, tmp_path, index, match):
  here = tmp_path / 'model'
  (here / 'folder').mkdir(parents=True)
  save_safetensors(tmp_path / 'a.safetensors', {'x': np.zeros(2, np.float32)})
  (here / 'model.safetensors.index.json').write_text(json.dumps(index))
  with pytest.raises(UserError, match=match) as e:
    weights.read(str(here), 'x')
  assert '\n' not in str(e.value)
  assert 'model.safetensors.index.json' in str(e.value)


# ---- heads and decoders


def test_a_decoder_of_another_size_starts_anew_whole_and_is_accounted_for(rng, tmp_path):
  save_safetensors(tmp_path / 'w', {**timm_encoder(rng), **mae_decoder(rng)})
  arrays, account = fit(str(tmp_path / 'w'), mae_objective(decoder_dim=32))
  assert not any(name.startswith('decoder/') for name in arrays)
  assert 'decoder/mask_token' in account['fresh']
  assert {'mask_token', 'decoder_blocks.*.attn.qkv.weight', 'decoder_pred.bias'} <= set(account['unused'])
  assert re.match(r'decoder starts anew: .* has shape \(1, 16\); expected \(1, 32\)', account['notes'][0])


def test_a_broken_decoder_starts_anew_and_a_whole_one_is_taken(rng, tmp_path):
  state = {**timm_encoder(rng), **mae_decoder(rng)}
  save_safetensors(tmp_path / 'w', state)
  arrays, _ = fit(str(tmp_path / 'w'), mae_objective())
  np.testing.assert_array_equal(arrays['decoder/pred/kernel'], state['decoder_pred.weight'].T)
  del state['decoder_blocks.0.mlp.fc1.bias']
  save_safetensors(tmp_path / 'w', state)
  arrays, account = fit(str(tmp_path / 'w'), mae_objective())
  assert not any(name.startswith('decoder/') for name in arrays)
  assert "has no 'decoder_blocks.*.mlp.fc1.bias'" in account['notes'][0]


def test_fine_tuned_weights_without_the_encoders_norm_serve_global_pooling_alone(rng, tmp_path):
  state = {**timm_encoder(rng, norm=''), **pair(rng, 'fc_norm', DIM, norm=True), **pair(rng, 'head', 3, DIM)}
  save_safetensors(tmp_path / 'w', state)
  arrays, account = fit(str(tmp_path / 'w'), mimic_objective())
  np.testing.assert_array_equal(arrays['fc_norm/scale'], state['fc_norm.weight'])
  assert {'encoder/norm/scale', 'encoder/norm/bias', 'classifier/fc/kernel'} <= set(account['fresh'])
  assert account['unused'] == ['head.bias', 'head.weight']
  refused(tmp_path / 'w', r"has no 'norm.bias'", mimic_objective(**{'head.pool': 'cls'}))


@pytest.mark.parametrize(
  ('said', 'fc_norm', 'read'),
  [
    ('token', False, 'cls'),
    ('avg', True, 'gap'),
    ('avg', False, 'gap of tokens after the final norm'),  # timm's vit_*_gap: fc_norm=False
    ('map', False, 'map'),
  ],
)
def test_a_classifier_is_taken_for_what_timm_says_it_reads(said, fc_norm, read, rng, tmp_path):
  state = {**timm_encoder(rng, norm='' if fc_norm else 'norm'), **pair(rng, 'head', 3, DIM)}
  state |= pair(rng, 'fc_norm', DIM, norm=True) if fc_norm else {}
  save_safetensors(tmp_path / 'model.safetensors', state)
  (tmp_path / 'config.json').write_text(json.dumps({'global_pool': said, 'num_heads': HEADS}))
  found = weights.read(str(tmp_path), 'init')
  assert found.facts['pool'] == read
  _, *own = mimic.Objective.uses(found.facts, found.tensors)
  assert [stage.head.pool for _, stage in own] == ([read] if read in ('cls', 'gap') else [])
  notes = mimic_objective(init_head=True).notes(found.facts)
  expected = f"its classifier reads '{read}', here head.pool is 'gap': its answers begin wrong"
  assert notes == ([] if read == 'gap' else [expected])
  assert not mimic_objective().notes(found.facts)
  if not own:
    with pytest.raises(UserError, match=f"has a classifier that reads '{read}', which none does here"):
      trained.load(str(tmp_path), sharding.make_mesh())


def test_half_a_norm_is_needed_by_the_class_token_and_started_anew_by_global_pooling(rng, tmp_path):
  state = timm_encoder(rng)
  del state['norm.bias']
  save_safetensors(tmp_path / 'w', state)
  arrays, account = fit(str(tmp_path / 'w'), mimic_objective())
  assert 'encoder/norm/scale' not in arrays
  assert account['unused'] == ['norm.weight']
  assert re.match(r"encoder/norm starts anew: .* has no 'norm.bias'", account['notes'][0])
  refused(tmp_path / 'w', r"has no 'norm.bias'", mimic_objective(**{'head.pool': 'cls'}))


def test_a_head_is_taken_only_when_asked_for_and_must_fit(rng, tmp_path):
  state = {**timm_encoder(rng), **pair(rng, 'head', 3, DIM)}
  save_safetensors(tmp_path / 'w', state)
  arrays, account = fit(str(tmp_path / 'w'), mimic_objective(init_head=True))
  np.testing.assert_array_equal(
    arrays['classifier/fc/kernel'], state['head.weight'].T
  )  # no names known: by place
  assert account['notes'][:-1] == [
    f'{tmp_path / "w"} has no class names: its classifier is taken by place, column 0 = surprise, column 1 = fear, '
    'column 2 = disgust'
  ]
  assert fit(str(tmp_path / 'w'), mimic_objective())[1]['notes'] == []
  four = mimic_objective(names=(*NAMES, 'anger'), init_head=True)
  refused(
    tmp_path / 'w',
    r'has a classifier of 3 classes; expected the 4 of this data \(surprise, .*init_head=False',
    four,
  )
  save_safetensors(tmp_path / 'w', timm_encoder(rng))
  refused(tmp_path / 'w', r"has no 'head.bias'", mimic_objective(init_head=True))


def test_the_note_of_many_columns_is_short_and_inspect_has_it_without_names(rng, tmp_path, capsys):
  state = {**timm_encoder(rng), **pair(rng, 'head', 12, DIM)}
  path = save_safetensors(tmp_path / 'w', state)
  names = tuple(f'c{i}' for i in range(12))
  note, other = fit(path, mimic_objective(names=names, init_head=True))[1]['notes']
  assert 'here it reads a mean behind a fresh norm (head.pool=cls reads the token)' in other
  assert note.endswith('column 0 = c0, ' + ', '.join(f'column {i} = c{i}' for i in range(1, 8)) + ', …')
  command.main(['inspect', path])
  told = ' '.join(capsys.readouterr().out.split())
  assert "taken by place, column 0 = the data's class 0, column 1 = the data's class 1" in told


def test_a_class_that_the_weights_lack_is_named(rng, tmp_path):
  save_safetensors(
    tmp_path / 'model.safetensors', hugging_face({**timm_encoder(rng), **pair(rng, 'head', 3, DIM)})
  )
  labels = {'0': 'Happy', '1': 'fear', '2': 'disgust'}
  (tmp_path / 'config.json').write_text(json.dumps({'id2label': labels}))
  named = mimic_objective(names=('disgust', 'happiness', 'fear'), init_head=True)
  arrays, account = fit(str(tmp_path), named)
  (note,) = account['notes']
  assert 'a fresh norm' in note
  read = weights.read(str(tmp_path), 'x')
  np.testing.assert_array_equal(arrays['classifier/fc/bias'], read.tensors['classifier/fc/bias'][[2, 0, 1]])
  refused(tmp_path, r"has no class 'surprise' among Happy, fear, disgust", mimic_objective(init_head=True))


def test_a_run_of_ours_gives_its_whole_model_with_its_classes(tmp_path):
  names = ('happiness', 'sadness', 'anger')
  objective = mimic_objective(small.model_section(), names)
  _, params, rest = models.split(objective.init(jax.random.key(3)), objective.trainable)
  config = {'model': small.model_section().to_dict()}
  meta = {'stage': 'finetune', 'config': config, 'data': 'x', 'reading': {'class_names': list(names)}}
  with checkpoint.opened(epath.Path(tmp_path / 'finetune'), 1) as checkpoints:
    checkpoints.save(7, {'params': params, 'rest': rest, 'opt_state': {'mu': params}}, meta)
  read = weights.read(str(tmp_path), 'config.init')
  assert read.kind == weights.OWN
  assert (read.facts['heads'], read.facts['dim'], read.facts['depth']) == (2, 16, 2)
  assert read.class_names == names
  expected = {**checkpoint.flatten(params), **checkpoint.flatten(rest)}
  assert read.tensors.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(read.tensors[name], array)

  turned = (*names[1:], names[0])
  again = mimic_objective(small.model_section(), turned, init_head=True)
  arrays, account = fit(read, again)
  assert account['fresh'] == account['unused'] == []
  assert 'projection/fc2/kernel' in account['loaded']
  kernel = read.tensors['classifier/fc/kernel']
  np.testing.assert_array_equal(arrays['classifier/fc/kernel'], kernel[:, [*range(1, len(names)), 0]])
  # another projection's size is no reason to fail
  _, account = fit(
    read, mimic_objective(small.model_section(), names, init_head=True, **{'head.projection_dim': 4})
  )
  assert {n for n in account['fresh'] if n.startswith('projection/')} == set(account['unused'])
  _, account = fit(read, mimic_objective(small.model_section(), names))
  assert {n.split('/')[0] for n in account['fresh']} == {'classifier', 'projection'}


def test_a_stage_starts_with_a_published_file_and_says_what_it_took(rng, tmp_path):
  state = {**timm_encoder(rng, dim=16, grid=2), **pair(rng, 'head', 7, 16)}
  path = save_safetensors(tmp_path / 'w', state)
  config = FrozenConfigDict(small.run_config(finetune=small.mimic_stage()))
  stage = stage_lib.Stage(config, 'finetune', epath.Path(tmp_path / 'run'), sharding.make_mesh(), path)
  stage.prepare()
  first, account = stage.initial_state()
  np.testing.assert_array_equal(first['params']['encoder']['cls_token'], state['cls_token'])
  assert account['kind'] == 'timm ViT'
  assert account['unused'] == ['head.bias', 'head.weight']
  assert json.loads(json.dumps(account)) == account  # it goes beside checkpoints


# ---- the command


def test_inspect_says_what_a_file_is_and_what_would_load(rng, tmp_path, capsys):
  patch, dim, depth, _ = vit.PRESETS['vit_ti16']
  state = timm_encoder(rng, dim=dim, depth=depth, patch=patch, grid=14)
  state['pos_embed'] = vit.sincos_2d(dim, 14, 14, 'sincos2d_moco')[None]
  path = save_safetensors(tmp_path / 'w', {**state, 'extra': np.zeros(2, np.float32)})
  command.main(['inspect', path])
  told = ' '.join(capsys.readouterr().out.split())
  assert 'architecture vit_ti16: dim 192, depth 12, heads 3, patch_size 16, image_size 224, mlp 768' in told
  count = sum(a.size for a in state.values())
  assert f'parameters {count:,}, float32' in told
  assert 'positions sincos2d_moco, 14 × 14' in told
  pretraining, tuning = told.split('MAE pre-training, of')[1].split('fine-tuning, global pooling')
  assert 'blocks.*.attn.qkv.{weight,bias}' in pretraining
  assert 'decoder/pred/{kernel,bias}' in pretraining
  for part in (pretraining, tuning):
    assert 'not used 1: extra' in part
  assert 'classifier/fc/{kernel,bias}' in tuning


def test_inspect_holds_a_file_against_a_config(rng, tmp_path, capsys):
  path = save_safetensors(tmp_path / 'w', timm_encoder(rng))
  sizes = {'image_size': 48, 'patch_size': PATCH, 'dim': DIM, 'depth': DEPTH, 'heads': HEADS}
  flags = [f'--config.model.{k}={v}' for k, v in sizes.items()]
  command.main(['inspect', path, '--config', 'finetune_folder', *flags])
  told = ' '.join(capsys.readouterr().out.split())
  assert 'config.finetune, mimic' in told
  assert 'resized 1: pos_embed' in told
  with pytest.raises(UserError, match=r'another architecture, .*expected .6, 192.'):
    command.main(['inspect', path, '--config', 'finetune_folder'])


def test_inspect_says_where_layernorm_and_pixels_differ_from_ours(rng, tmp_path, capsys):
  save_safetensors(tmp_path / 'model.safetensors', hugging_face(timm_encoder(rng)))
  (tmp_path / 'config.json').write_text('{"layer_norm_eps": 1e-12, "num_attention_heads": 3}')
  (tmp_path / 'preprocessor_config.json').write_text(
    '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
  )
  command.main(['inspect', str(tmp_path)])
  told = ' '.join(capsys.readouterr().out.split())
  assert 'LayerNorm its config says epsilon 1e-12: --config.model.layer_norm_eps=1e-12' in told
  assert 'mean (0.5, 0.5, 0.5), std (0.5, 0.5, 0.5); set augment.mean and augment.std so' in told


def test_a_pth_becomes_safetensors_with_the_same_names_and_bits(rng, tmp_path, capsys):
  torch = pytest.importorskip('torch')
  state = {k: torch.from_numpy(v) for k, v in {**timm_encoder(rng), **pair(rng, 'head', 3, DIM)}.items()}
  state['head.bias'] = state['head.bias'].to(torch.bfloat16)
  state['cls_token'] = state['cls_token'].half()
  state['norm.bias'] = state['norm.bias'].double() / 3
  state['steps'] = torch.arange(3)
  torch.save({'model': state, 'args': argparse.Namespace(lr=1)}, tmp_path / 'w.pth')
  command.main(['convert', str(tmp_path / 'w.pth'), str(tmp_path / 'new')])
  assert f"new: {len(state)} tensors from under ['model']" in capsys.readouterr().out
  held = load_file(tmp_path / 'new')
  assert held.keys() == state.keys()
  for name, tensor in state.items():
    assert held[name].dtype.name == str(tensor.dtype).removeprefix('torch.')
    assert held[name].tobytes() == bytes(tensor.contiguous().view(torch.uint8).numpy())
  for wrong, match in (
    (tmp_path / 'w.pth', 'is there already; expected a new file'),
    (tmp_path / 'no' / 'x', 'can not be written'),
  ):
    with pytest.raises(UserError, match=match):
      command.main(['convert', str(tmp_path / 'w.pth'), str(wrong)])
  with pytest.raises(UserError, match='which is already safetensors'):
    command.main(['convert', str(tmp_path / 'new'), str(tmp_path / 'x')])
  assert sorted(p.name for p in tmp_path.iterdir()) == ['new', 'w.pth']


@pytest.mark.parametrize(
  ('argv', 'match'),
  [
    (['inspect'], 'FILE'),
    (['show', 'x'], "invalid choice: 'show'"),
    (['inspect', '/nowhere'], "FILE is '/nowhere', which does not exist"),
    (['inspect', '/nowhere', '--config', 'nothing'], r"--config: no file 'nothing'"),
    (
      ['inspect', '/nowhere', '--foo=1'],
      r'^--foo is no flag; expected --config CONFIG, --config.field=value',
    ),
    (['inspect', '/nowhere', '--foo', '1'], r'^--foo is no flag; expected --config'),
    (
      ['inspect', '/nowhere', '--confg=x'],
      r"^--confg is no flag \(did you mean 'config'\?\); expected --config",
    ),
    (['inspect', '/nowhere', '--config=finetune_folder', '--workdir=x'], r'^--workdir is no flag; expected'),
    (['inspect', '/nowhere', '/elsewhere'], r"^'/elsewhere' is not understood; expected one FILE"),
    (['convert', '/nowhere', 'x'], "FILE is '/nowhere', which is no such file; expected a file of PyTorch's"),
    (['convert', '/nowhere'], "convert has '' after FILE; expected the name of the new file"),
    (['inspect', '/nowhere', '--config.model.dim=3'], r'^--config is missing; expected a config file'),
  ],
)
def test_a_wrong_command_is_one_line(argv, match):
  with pytest.raises(UserError, match=match):
    command.main(argv)

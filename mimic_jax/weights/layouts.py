"""The namings of weight files, and what is behind each: a table from our names to theirs, read in both directions.

A name of ours stands for one tensor of theirs, for one per block ('*' is the block's number), or for three side by side
(query, key, value). PyTorch's Linear is [out, in], ours [in, out]; its patch embedding is a convolution [D, 3, p, p], ours
a Linear over a patch's values in (row, column, colour) order.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np

# our name -> theirs: one, or three side by side
Names = dict[str, tuple[str, ...]]

# within a block
TIMM_BLOCK = {
  'norm1': ('norm1',),
  'attn/qkv': ('attn.qkv',),
  'attn/proj': ('attn.proj',),
  'norm2': ('norm2',),
  'mlp/fc1': ('mlp.fc1',),
  'mlp/fc2': ('mlp.fc2',),
}
HF_BLOCK = {
  'norm1': ('layernorm_before',),
  'attn/qkv': tuple(f'attention.attention.{x}' for x in ('query', 'key', 'value')),
  'attn/proj': ('attention.output.dense',),
  'norm2': ('layernorm_after',),
  'mlp/fc1': ('intermediate.dense',),
  'mlp/fc2': ('output.dense',),
}
# what some files have instead, by a part of their names: transformers 5 in memory, DINOv2
HF_OTHER = {
  '.q_proj.': {'attn/qkv': tuple(f'attention.{x}_proj' for x in 'qkv'), 'attn/proj': ('attention.o_proj',)},
  '.fc1.': {'mlp/fc1': ('mlp.fc1',), 'mlp/fc2': ('mlp.fc2',)},
  '.norm1.': {'norm1': ('norm1',), 'norm2': ('norm2',)},
}
# names by which an encoder is recognised, whatever stands before them; a few may be missing
TIMM_ANCHORS = (
  'cls_token',
  'pos_embed',
  'patch_embed.proj.weight',
  'patch_embed.proj.bias',
  'blocks.0.norm1.weight',
  'blocks.0.attn.proj.weight',
  'blocks.0.mlp.fc1.weight',
)
HF_ANCHORS = (
  'embeddings.cls_token',
  'embeddings.position_embeddings',
  'embeddings.patch_embeddings.projection.weight',
  'embeddings.patch_embeddings.projection.bias',
)
# torchvision's and timm's ResNets: a module's or a tensor's name -> ours
RESNET_MODULES = {'downsample.0': 'downsample_conv', 'downsample.1': 'downsample_bn'}
RESNET_ENDS = {'weight': 'scale', 'bias': 'bias', 'running_mean': 'mean', 'running_var': 'var'}
RESNET_ANCHORS = ('conv1.weight', 'bn1.weight', 'layer1.0.conv1.weight', 'layer4.0.bn2.weight')
LEAST_ANCHORS = 2
# What changes what the encoder computes and ours has not: such a file can't be had by leaving it unused.
FOREIGN = ('dist_token', 'distillation_token', 'reg_token', 'norm_pre', 'rel_pos_bias')


@dataclasses.dataclass(frozen=True)
class Layout:
  """A file's naming.

  Attributes:
    kind: what the file is, in words.
    names: our name -> theirs, whether the file has them or not.
    stacks: the part of their names that ends where a block's number follows, of each stack of blocks.
    encoder: the part of their names before the encoder's.
    zeros: the end of the names of tensors that the architecture lacks, which are zeros here; '' for none.
  """

  kind: str
  names: Names
  stacks: tuple[str, ...]
  encoder: str
  zeros: str = ''


def detect(tensors: Mapping[str, np.ndarray], place: str, args: bool) -> Layout | None:
  """Recognises a naming.

  Args:
    tensors: by their names in the file.
    place: where they stood in a PyTorch file.
    args: whether a training's command line stood beside them.

  Returns:
    None when it is none of those known.

  Raises:
    ValueError: when the file holds several encoders, saying which.
  """
  known = ((TIMM_ANCHORS, _timm), (HF_ANCHORS, _hugging_face), (RESNET_ANCHORS, _resnet))
  for anchors, layout in known:
    prefix = _prefix(tensors, anchors)
    if prefix is not None:
      return layout(tensors, prefix, place, args)
  return None


def _prefix(tensors: Mapping[str, np.ndarray], anchors: Iterable[str]) -> str | None:
  """Returns what stands before most of the anchors, None when there are too few of them."""
  votes: dict[str, int] = {}
  for anchor in anchors:
    for name in tensors:
      before = name.removesuffix(anchor)
      if name.endswith(anchor) and (not before or before.endswith('.')):
        votes[before] = votes.get(before, 0) + 1
  most = max(votes.values(), default=0)
  if most < LEAST_ANCHORS:
    return None
  best = [p for p, n in votes.items() if n == most]
  online = [p for p in best if p.endswith('base_encoder.')]  # MoCo v3; beside it the momentum encoder
  if len(online or best) > 1:
    raise ValueError(f'holds several encoders, under {", ".join(map(repr, sorted(best)))}; expected one')
  return (online or best)[0]


def _pair(ours: str, *theirs: str) -> Names:
  """Returns the two tensors of a Linear or a LayerNorm."""
  weight = 'scale' if 'norm' in ours else 'kernel'
  return {
    f'{ours}/{weight}': tuple(f'{t}.weight' for t in theirs),
    f'{ours}/bias': tuple(f'{t}.bias' for t in theirs),
  }


def _stack(ours: str, theirs: str, block: Mapping[str, tuple[str, ...]]) -> Names:
  names: Names = {}
  for part, spellings in block.items():
    names |= _pair(f'{ours}/{part}', *(f'{theirs}*.{s}' for s in spellings))
  return names


def _timm(tensors: Mapping[str, np.ndarray], prefix: str, place: str, args: bool) -> Layout:
  """MAE, timm, DeiT, MoCo v3, LocalMIM: one naming, other things around it."""
  taps = sorted(
    int(m[1]) for n in tensors if (m := re.fullmatch(rf'{re.escape(prefix)}norm\.(\d+)\.weight', n))
  )
  # LocalMIM has a norm behind each block that it taps; the last of them is behind the last block
  norm = f'norm.{taps[-1]}' if taps else 'norm'
  names: Names = {
    'encoder/cls_token': (f'{prefix}cls_token',),
    'encoder/register_tokens': (f'{prefix}register_tokens',),
    'encoder/pos_embed': (f'{prefix}pos_embed',),
    **_pair('encoder/patch_embed', f'{prefix}patch_embed.proj'),
    **_stack('encoder/blocks', f'{prefix}blocks.', TIMM_BLOCK),
    **{f'encoder/blocks/ls{i}': (f'{prefix}blocks.*.ls{i}.gamma',) for i in (1, 2)},
    **_pair('encoder/norm', f'{prefix}{norm}'),
    **_pair('fc_norm', f'{prefix}fc_norm'),
    **_pair('classifier/fc', f'{prefix}head'),
    'decoder/mask_token': (f'{prefix}mask_token',),
    'decoder/pos_embed': (f'{prefix}decoder_pos_embed',),
    **_pair('decoder/embed', f'{prefix}decoder_embed'),
    **_stack('decoder/blocks', f'{prefix}decoder_blocks.', TIMM_BLOCK),
    **_pair('decoder/norm', f'{prefix}decoder_norm'),
    **_pair('decoder/pred', f'{prefix}decoder_pred'),
  }
  stacks = (f'{prefix}blocks.', f'{prefix}decoder_blocks.')
  for k in taps:
    decoder, root = _local_mim_decoder(tensors, f'{prefix}decoder.{k}.', f'decoders/{k}')
    names |= decoder | (_pair(f'norms/{k}', f'{prefix}norm.{k}') if k < taps[-1] else {})
    stacks += (root,)
  kind = _timm_kind(tensors, prefix, place, args, bool(taps))
  if kind == 'DINOv2':  # its mask token is the encoder's, of the masked pictures it was trained on
    del names['decoder/mask_token']
  return Layout(kind, names, stacks, prefix)


def _local_mim_decoder(tensors: Mapping[str, np.ndarray], theirs: str, ours: str) -> tuple[Names, str]:
  """Returns the names of one of LocalMIM's decoders, and its stack of blocks."""
  names: Names = {
    f'{ours}/mask_token': (f'{theirs}mask_token',),
    f'{ours}/pos_embed': (f'{theirs}pos_embed',),
    **_pair(f'{ours}/embed', f'{theirs}embed'),
    **_stack(f'{ours}/blocks', f'{theirs}blocks.', TIMM_BLOCK),
    **_pair(f'{ours}/norm', f'{theirs}norm'),
  }
  counts = {'up': 0, 'norms': 0}
  numbers = (re.fullmatch(rf'{re.escape(theirs)}pred\.(\d+)\.weight', n) for n in tensors)
  for n in sorted(int(m[1]) for m in numbers if m):
    shape = tensors[f'{theirs}pred.{n}.weight'].shape
    part = 'norms' if len(shape) == 1 else 'up' if shape[-1] == 2 else ''  # a transposed convolution is 2 × 2
    name = f'{part}/{counts[part]}' if part else 'out'
    names |= _pair(f'{ours}/pred/{name}', f'{theirs}pred.{n}')
    if part:
      counts[part] += 1
  return names, f'{theirs}blocks.'


def _timm_kind(tensors: Mapping[str, np.ndarray], prefix: str, place: str, args: bool, taps: bool) -> str:
  has = {w: f'{prefix}{w}.weight' in tensors for w in ('decoder_embed', 'fc_norm', 'norm', 'head')}
  if prefix.endswith('base_encoder.'):
    return 'MoCo v3'
  if taps:
    return 'LocalMIM'
  if (
    f'{prefix}blocks.0.ls1.gamma' in tensors and f'{prefix}mask_token' in tensors and not has['decoder_embed']
  ):
    return 'DINOv2'
  if place == 'teacher':
    return 'DINO'
  if has['decoder_embed']:
    return 'MAE training checkpoint' if args else 'MAE pre-training, with decoder'
  if args:
    return 'fine-tuning checkpoint (MAE, DeiT)' if has['head'] else 'training checkpoint'
  if has['fc_norm'] and not has['norm'] and place:
    return 'MAE fine-tuning'
  if has['head'] and place == 'model':
    return 'DeiT'
  if not has['head'] and place == 'model':
    return 'MAE pre-training, encoder alone'
  return 'timm ViT'


def _hugging_face(tensors: Mapping[str, np.ndarray], prefix: str, place: str, args: bool) -> Layout:
  del place, args
  # before 'vit.' and 'decoder.' alike, where a wrapper saved itself
  outer = re.sub(r'[^.]+\.$', '', prefix) if prefix else ''

  def stack(ours: str, roots: tuple[str, ...]) -> tuple[Names, str]:
    root = next((r for r in roots if any(n.startswith(f'{r}0.') for n in tensors)), roots[0])
    block = dict(HF_BLOCK)
    for part, names in HF_OTHER.items():
      block |= names if any(n.startswith(root) and part in n for n in tensors) else {}
    return _stack(ours, root, block), root

  beit = prefix.endswith('beit.')
  scale = 'lambda_{}' if beit else 'layer_scale{}.lambda1'
  blocks, root = stack('encoder/blocks', (f'{prefix}encoder.layer.', f'{prefix}layers.'))
  decoder_roots = (f'{outer}decoder.decoder_layers.', f'{outer}decoder.decoder_encoder.layer.')
  decoder_blocks, decoder_root = stack('decoder/blocks', decoder_roots)
  names: Names = {
    'encoder/cls_token': (f'{prefix}embeddings.cls_token',),
    'encoder/register_tokens': (f'{prefix}embeddings.register_tokens',),
    'encoder/pos_embed': (f'{prefix}embeddings.position_embeddings',),
    **_pair('encoder/patch_embed', f'{prefix}embeddings.patch_embeddings.projection'),
    **blocks,
    **{f'encoder/blocks/ls{i}': (f'{root}*.' + scale.format(i),) for i in (1, 2)},
    **_pair('encoder/norm', f'{prefix}layernorm'),
    **(_pair('fc_norm', f'{prefix}pooler.layernorm') if beit else {}),
    **_pair('classifier/fc', f'{outer}classifier'),
    'decoder/mask_token': (f'{outer}decoder.mask_token',),
    'decoder/pos_embed': (f'{outer}decoder.decoder_pos_embed',),
    **_pair('decoder/embed', f'{outer}decoder.decoder_embed'),
    **decoder_blocks,
    **_pair('decoder/norm', f'{outer}decoder.decoder_norm'),
    **_pair('decoder/pred', f'{outer}decoder.decoder_pred'),
  }
  mae = any(n.startswith(f'{outer}decoder.decoder_') for n in tensors)
  scaled = f'{root}0.layer_scale1.lambda1' in tensors
  kind = 'Hugging Face ' + ('BEiT' if beit else 'ViTMAE' if mae else 'DINOv2' if scaled else 'ViT')
  # BEiT's keys have no bias: it adds the same to all scores of a query, which softmax does not see
  zeros = next(t[1] for ours, t in blocks.items() if ours.endswith('qkv/bias')).rpartition('*')[2]
  return Layout(kind, names, (root, decoder_root), prefix, zeros if beit else '')


def _resnet(tensors: Mapping[str, np.ndarray], prefix: str, place: str, args: bool) -> Layout:
  """torchvision's ResNet, and timm's: each of our names has one of theirs."""
  del place, args
  names: Names = _pair('classifier/fc', f'{prefix}fc')
  for theirs in tensors:
    module, _, end = theirs.removeprefix(prefix).rpartition('.')
    for there, here in RESNET_MODULES.items():
      module = module.replace(there, here)
    if not theirs.startswith(prefix) or not re.match(r'(conv1|bn1|layer[1-4]\..*)$', module):
      continue
    if 'conv' in module.rsplit('.', 1)[-1] and end == 'weight':
      names['encoder/' + module.replace('.', '/') + '/kernel'] = (theirs,)
    elif end in RESNET_ENDS:
      names['encoder/' + module.replace('.', '/') + f'/{RESNET_ENDS[end]}'] = (theirs,)
  return Layout('ResNet (torchvision, timm)', names, (), prefix)


# Parts of tensors' names -> whose they are, of encoders that are not read.
OTHERS = {
  'visual.transformer.resblocks': 'CLIP',
  'attnpool.': "CLIP's ResNet",
  '.conv1_1x1.': "timm's ByobNet (CLIP's ResNets, RegNet)",
  'norm_pre.': "timm's CLIP",
  'conv1.0.weight': "timm's ResNet-C or -D",
  'encoder.layers.0.layer_norm1': 'CLIP or SigLIP as Hugging Face writes it',
  '.mlp.w12': "DINOv2's largest, whose MLPs are SwiGLU,",
  '.mlp.weights_in': "DINOv2's largest, whose MLPs are SwiGLU,",
  'relative_position_bias': 'BEiT',
  'rel_pos_bias': 'BEiT',
  '.gamma_1': 'BEiT, CaiT or DINOv3',
  'backbone.layers.0.ln1': 'mmpretrain',
  'layers.0.blocks.0.attn': 'Swin',
  'stages.0.': 'ConvNeXt',
}


def whose(tensors: Iterable[str]) -> str:
  """Returns ', as … has it' for an encoder that is known and not read, '' for any other."""
  names = list(tensors)
  return next(
    (f', as {who} has it' for part, who in OTHERS.items() if any(part in name for name in names)), ''
  )


def foreign(tensors: Iterable[str], layout: Layout) -> str | None:
  """Returns the first tensor that makes this another architecture than ours: in a block, or a token of its own."""
  if not layout.stacks:  # a ResNet's blocks: each has convolutions, norms and perhaps a projection
    block = r'layer\d\.\d+\.(?!conv\d\.|bn\d\.|downsample\.)'
    odd = re.compile(rf'{re.escape(layout.encoder)}({block}|conv1\.\d|conv2\.|attnpool\.)')
    return next((name for name in tensors if odd.match(name)), None)
  root = layout.stacks[0]
  known = {t for spellings in layout.names.values() for t in spellings if t.startswith(root)}
  for name in tensors:
    if name.startswith(root) and re.sub(r'^\d+\.', '*.', name[len(root) :]) not in {
      k[len(root) :] for k in known
    }:
      return name
    if name.startswith(layout.encoder):
      if 'relative_position_bias' in name:  # shared by all blocks
        return name
      part = name.removeprefix(layout.encoder).removeprefix('embeddings.').split('.')[0]
      if part in FOREIGN:
        return name
  return None


def collect(
  tensors: Mapping[str, np.ndarray], layout: Layout
) -> tuple[dict[str, np.ndarray], dict[str, str], set[str]]:
  """Turns a file's tensors into ours.

  Args:
    tensors: by their names in the file.
    layout: of the file.

  Returns:
    Our arrays by name, float32; of what could not be made although a part of it is there, our name -> why; and the file's
    names that went into an array.
  """
  depths = {}
  for root in layout.stacks:
    numbers = [int(m[1]) for n in tensors if (m := re.match(rf'{re.escape(root)}(\d+)\.', n))]
    depths[f'{root}*.'] = max(numbers, default=-1) + 1
  arrays, broken, used = {}, {}, set()
  for ours, spellings in layout.names.items():
    depth = next((d for root, d in depths.items() if spellings[0].startswith(root)), None)
    numbers = [None] if depth is None else range(depth)
    blocks = [[s.replace('*', str(i)) for s in spellings] for i in numbers]
    every = [name for block in blocks for name in block]
    there = [name for name in every if name in tensors]
    if not there:
      continue
    if layout.zeros and any(name.endswith(layout.zeros) for name in every):
      tensors = dict.fromkeys(every, np.zeros_like(tensors[there[0]])) | tensors
    if problem := _uneven(tensors, every, there):
      broken[ours] = problem
      continue
    parts = [_beside(tensors, block) for block in blocks]
    arrays[ours] = _ours(ours, parts[0] if depth is None else np.stack(parts))
    used.update(every)
  return arrays, broken, used


def _uneven(tensors: Mapping[str, np.ndarray], every: list[str], there: list[str]) -> str:
  """Returns what keeps tensors from becoming one array: one that is not there, or of another shape; '' for nothing."""
  first = there[0]
  for name in every:
    if name not in tensors:
      return f"has no '{name}' (and has '{first}')"
    if tensors[name].shape != tensors[first].shape:
      return (
        f"has '{name}' of shape {tensors[name].shape} and '{first}' of shape {tensors[first].shape}; expected blocks of "
        'one size'
      )
  return ''


def _beside(tensors: Mapping[str, np.ndarray], names: list[str]) -> np.ndarray:
  """Returns one tensor, or three put side by side along their outputs, float32."""
  arrays = [np.asarray(tensors[name], np.float32) for name in names]
  return np.array(arrays[0]) if len(arrays) == 1 else np.concatenate(arrays)


def _ours(name: str, array: np.ndarray) -> np.ndarray:
  """Returns a tensor in our layout: Linear [..., out, in] to [..., in, out], patch embedding [D, 3, p, p] to [p·p·3, D],
  convolution [out, in, k, k] to [k, k, in, out]; of LocalMIM's, transposed [in, out, 2, 2] to [in, 4·out], 1 × 1 to [in, out].
  """
  if not name.endswith('/kernel') or array.ndim < 2:
    return array
  if '/pred/up/' in name:
    return array.transpose(0, 2, 3, 1).reshape(len(array), -1)
  if '/pred/out/' in name:
    return array.reshape(array.shape[:2]).T
  if array.ndim == 4 and name != 'encoder/patch_embed/kernel':
    return array.transpose(2, 3, 1, 0)
  if array.ndim == 4:
    return array.transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
  return array.swapaxes(-1, -2)


def layout_of(naming: str, ours: Iterable[str]) -> Layout:
  """Returns the layout to write a model in.

  Args:
    naming: 'timm' (MAE's, too), 'resnet', or a model of Hugging Face's by its base: 'vit', 'beit'.
    ours: names of the model's tensors.
  """
  if naming == 'timm':
    return _timm({}, '', '', False)
  if naming == 'resnet':
    return _resnet(dict.fromkeys(map(_resnet_name, ours)), '', '', False)
  return _hugging_face({}, f'{naming}.', '', False)


def _resnet_name(ours: str) -> str:
  """Returns torchvision's name of a ResNet's tensor."""
  module, _, end = ours.removeprefix('encoder/').rpartition('/')
  module = module.replace('/', '.')
  for there, here in RESNET_MODULES.items():
    module = module.replace(here, there)
  return f'{module}.' + next((there for there, here in RESNET_ENDS.items() if here == end), 'weight')


def spread(arrays: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
  """Turns our tensors into a file's: the inverse of `collect`.

  Args:
    arrays: by our names; those that the layout has no name for are left out.
    layout: of the file.

  Returns:
    Theirs by name, float32, but those that are zeros in the layout.
  """
  tensors = {}
  for ours, spellings in layout.names.items():
    if ours not in arrays:
      continue
    array = _theirs(ours, np.asarray(arrays[ours], np.float32))
    numbers = range(len(array)) if '*' in spellings[0] else [None]
    for i in numbers:
      parts = np.split(array if i is None else array[i], len(spellings))
      tensors |= {s.replace('*', str(i)): np.ascontiguousarray(p) for s, p in zip(spellings, parts)}
  return {n: a for n, a in tensors.items() if not (layout.zeros and n.endswith(layout.zeros))}


def _theirs(name: str, array: np.ndarray) -> np.ndarray:
  """Returns a tensor of ours in their layout: the inverse of `_ours`, but for LocalMIM's, which no form has a place for."""
  if not name.endswith('/kernel') or array.ndim < 2:
    return array
  if name == 'encoder/patch_embed/kernel':
    side = round((len(array) / 3) ** 0.5)
    array = array.reshape(side, side, 3, -1)
  return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.swapaxes(-1, -2)

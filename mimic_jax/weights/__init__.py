"""Initial weights for a model. Whatever can be started from is recognised here, by content, and read into one form.

The form is a flat dict of NumPy arrays named like the model's own parameters, 'encoder/blocks/attn/qkv/kernel', block
parameters stacked [depth, …]. `read` makes it out of a run of ours or a published file (files.py opens, layouts.py
translates names), `fit` lays it against a model and accounts for every tensor. docs/weights.md lists what is recognised.
"""

import dataclasses
import math
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from mimic_jax.data import classes
from mimic_jax.models import vit
from mimic_jax.runtime import checkpoint, remote
from mimic_jax.runtime.errors import UserError
from mimic_jax.runtime.files import is_remote
from mimic_jax.weights import facts as facts_lib
from mimic_jax.weights import files, layouts, pytorch

OWN = 'mimic_jax checkpoint'
EXPECTED = (
  "a run's folder (with <stage>/checkpoints), a stage in it or a checkpoint, a weight file (.pth, .safetensors) or a model "
  'folder with one'
)

MOST_COLUMNS = 8  # that a note shows; there are as many expressions


@dataclasses.dataclass(frozen=True)
class Weights:
  """A model's parameters and where they are from.

  Attributes:
    tensors: our name ('encoder/cls_token', 'fc_norm/scale', 'decoder/…', 'classifier/fc/kernel', 'projection/…') -> float32.
    origin: the file, or the checkpoint and its step.
    kind: what it is, in words: 'MAE pre-training, encoder alone', 'MoCo v3', …
    classifier: name of the layer whose last axis is the classes.
    class_names: of the classifier, where they are known.
    source_names: our name -> the file's, one or three (query, key, value), with '*' for a block's number; of what the file
      lacks, too.
    unused: names in the file that no model of ours has.
    broken: our name -> why it could not be made although a part of it is there.
    facts: what else is known, for people: preset, dim, depth, patch_size, image_size, … (weights/facts.py).
  """

  tensors: dict[str, np.ndarray]
  origin: str
  kind: str
  classifier: str = 'classifier/fc'
  class_names: tuple[str, ...] | None = None
  source_names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  unused: Sequence[str] = ()
  broken: Mapping[str, str] = dataclasses.field(default_factory=dict)
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def spelled(self, name: str) -> tuple[str, ...]:
    """Returns the file's own names for a tensor of ours."""
    return self.source_names.get(name, (name,))


def read(path: str, field: str) -> Weights:
  """Reads initial weights.

  Args:
    path: a run's folder, a checkpoint, a weight file, a model folder; on an object store, too.
    field: the config's field that holds the path, for errors.

  Raises:
    UserError: when there is nothing there, nothing that is known, or it is damaged, holds code, or is of another kind of
      architecture than ours.
  """
  if is_remote(path):  # what was fetched of it need not be fetched again
    return remote.patiently(lambda: _read(path, field), f"{field} is '{path}'")
  return _read(path, field)


def _read(path: str, field: str) -> Weights:
  where = epath.Path(path)
  if not where.exists():
    raise UserError(f"{field} is '{path}', which does not exist; expected {EXPECTED}")
  found = checkpoint.find(where) if where.is_dir() else None
  if found is not None:
    return _read_own(*found)
  contents = files.open_weights(where, field)
  if contents is None:
    raise UserError(
      f"{field} is '{path}', which holds no checkpoint of mimic_jax and no weights; expected {EXPECTED}"
    )
  return _read_published(contents, field)


def _read_own(folder: epath.Path, step: int) -> Weights:
  """Reads a checkpoint that mimic_jax wrote: the model, not the optimiser."""
  meta = checkpoint.read_meta(folder, step)
  arrays = checkpoint.read_arrays(folder, step, ('params', 'rest'))
  named = {name.split('/', 1)[1]: array for name, array in arrays.items()}
  # Random keys and counters are no weights.
  tensors = {name: array for name, array in named.items() if jnp.issubdtype(array.dtype, jnp.floating)}
  reading = meta.get('reading', {})
  classifier = reading.get('classifier', Weights.classifier)
  return Weights(
    tensors,
    f'{folder} step {step}',
    OWN,
    classifier,
    tuple(reading.get('class_names', ())) if _under(classifier, tensors) else None,
    facts=facts_lib.of_checkpoint(tensors, meta),
  )


def _under(layer: str, names: Iterable[str]) -> list[str]:
  """Returns the names of a layer's tensors; none where there is no layer."""
  return [name for name in names if layer and name.startswith(f'{layer}/')]


def _read_published(contents: files.Contents, field: str) -> Weights:
  where = f"{field}: '{contents.path}'"
  try:
    layout = layouts.detect(contents.tensors, contents.place, bool(contents.args))
  except ValueError as e:
    raise UserError(f'{where} {e}') from e
  if layout is None:
    some = ', '.join(f"'{n}'" for n in list(contents.tensors)[:4]) or 'no tensors'
    raise UserError(
      f'{where} has {some}{layouts.whose(contents.tensors)}; expected the names of a ViT as MAE, timm, DeiT, MoCo v3, LocalMIM or Hugging Face write them, or of a ResNet'
    )
  if odd := layouts.foreign(contents.tensors, layout):
    raise UserError(
      f"{where} is of another architecture: it has '{odd}'{layouts.whose(contents.tensors)}; expected a plain ViT, whose blocks are norm1, attn (qkv, proj), "
      'norm2, mlp (fc1, fc2), with a class token and no other'
    )
  _check_patches(contents.tensors, layout, where)
  tensors, broken, used = layouts.collect(contents.tensors, layout)
  positions = tensors.get('encoder/pos_embed')
  if positions is not None and not facts_lib.is_square(positions.shape):
    raise UserError(
      f"{where}: '{layout.names['encoder/pos_embed'][0]}' has shape {positions.shape}; expected [1, 1 + side · side, D]: a "
      'class token and a square of patches'
    )
  unused = [n for n in contents.tensors if n not in used]
  kind = layout.kind + (', a moving average of the weights' if contents.place in pytorch.EMA_KEYS else '')
  unused += [f"['{key}']" for key, tensors_in in contents.beside.items() if tensors_in]
  return Weights(
    tensors,
    str(contents.path),
    kind,
    class_names=facts_lib.class_names(contents.config, tensors),
    source_names=layout.names,
    unused=grouped(unused, used),
    broken=broken,
    facts=facts_lib.of_file(tensors, contents, layout.kind),
  )


def _check_patches(tensors: Mapping[str, np.ndarray], layout: layouts.Layout, where: str) -> None:
  """Raises UserError unless patches are cut by a convolution over square patches of three colours."""
  if 'encoder/patch_embed/kernel' not in layout.names:
    return
  name = layout.names['encoder/patch_embed/kernel'][0]
  shape = tensors[name].shape if name in tensors else (1, 3, 1, 1)
  if len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] > 0:
    return
  channels = f' ({shape[1]} channels)' if len(shape) == 4 and shape[1] != 3 else ''
  raise UserError(
    f"{where} is of another architecture: '{name}' has shape {shape}{channels}; expected [D, 3, p, p], square patches of "
    'three colours'
  )


Rule = Callable[[tuple[str, ...]], str | tuple[str, tuple[str, ...]]]


def _taken_from(rule: Rule, name: str) -> tuple[str, str]:
  """Returns what a rule says of a tensor: the wish, and the name in the weights that it is taken from."""
  said = rule(tuple(name.split('/')))
  return (said, name) if isinstance(said, str) else (said[0], '/'.join(said[1]))


class _Misfit(Exception):  # noqa: N818
  """Why one tensor can't be had; becomes a UserError where it is needed."""


def fit(
  weights: Weights,
  target: Mapping[str, Any],
  rule: Rule,
  field: str,
  *,
  heads: int = 0,
  layer_norm_eps: float = 0.0,
  classifier: str = '',
  class_names: Sequence[str] = (),
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Fits read weights to a model: every tensor of either is loaded, resized, started anew or listed as unused.

  Args:
    weights: as read.
    target: the model's parameters by flat name, arrays or shapes.
    rule: an objective's `initial`: path -> 'needed', 'if_whole' or 'fresh', alone or with the path in the weights.
    field: the config's field that names the weights, for errors.
    heads: of the model's attention; 0 = not compared. No tensor's shape shows it.
    layer_norm_eps: of the model, likewise.
    classifier: name of the model's layer whose last axis is the classes; '' where it has none.
    class_names: of it.

  Returns:
    The arrays to be loaded by flat name, float32, and an account {'loaded', 'resized', 'unused': names as the file spells
    them, 'fresh': our names, 'notes': sentences}.

  Raises:
    UserError: naming the first tensor that is missing, of another shape or not finite.
  """
  where = f'{field}: {weights.origin}'
  account: dict[str, Any] = {
    'loaded': [],
    'resized': [],
    'fresh': [],
    'unused': list(weights.unused),
    'notes': list(weights.facts.get('ignored', ())),
  }
  source = {name: _taken_from(rule, name)[1] for name in target}
  _check_extras(weights, set(source.values()), where)
  _check_heads(weights, heads, where, account['notes'])
  stated = weights.facts.get('layer_norm_eps', layer_norm_eps)
  if layer_norm_eps and not math.isclose(stated, layer_norm_eps):
    raise UserError(
      f'{where} says layer_norm_eps {stated:g}; expected the {layer_norm_eps:g} of config.model '
      f'(--config.model.layer_norm_eps={stated:g} makes them so)'
    )
  columns = None
  if any(_taken_from(rule, n)[0] == 'needed' for n in _under(classifier, target)):
    columns = _columns(weights, class_names, where, account['notes'])
  fitted: dict[str, np.ndarray] = {}
  for wish, names in _groups(target, rule):
    taken: dict[str, np.ndarray] = {}
    try:
      for name in names if wish != 'fresh' else ():
        taken[name] = _candidate(weights, source[name], name, tuple(target[name].shape), columns)
    except _Misfit as e:
      if wish == 'needed':
        raise UserError(f'{where} {e}') from e
      if any(source[n] in weights.tensors or source[n] in weights.broken for n in names):
        account['notes'].append(f'{posixpath.commonpath(names)} starts anew: {weights.origin} {e}')
      taken = {}
    if not taken:
      account['fresh'] += names
    fitted |= taken
  for name, array in fitted.items():
    _check_finite(weights, source[name], array, where)
    same = array.shape == weights.tensors[source[name]].shape or not name.endswith('pos_embed')
    account['loaded' if same else 'resized'] += weights.spelled(source[name])
  if columns is not None and any(name.startswith('fc_norm/') for name in account['fresh']):
    account['notes'].append(
      f'the classifier of {weights.origin} has no norm of its own before it, as one of the class token has not; here it reads a '
      'mean behind a fresh norm (head.pool=cls reads the token)'
    )
  used = {source[name] for name in fitted}
  account |= {k: list(dict.fromkeys(account[k])) for k in ('loaded', 'resized')}  # one may be taken twice
  deeper = [n for n in weights.tensors if n not in used and re.match(r'encoder/layer\d+/', n)]
  if deeper and any(re.match(r'encoder/layer\d+/', n) for n in used):
    raise UserError(
      f"{where} is of another architecture: it has '{weights.spelled(deeper[0])[0]}', a block that the model has not; expected "
      'the blocks of config.model.preset'
    )
  left = [spelled for name in weights.tensors if name not in used for spelled in weights.spelled(name)]
  account['unused'] = sorted({*account['unused'], *left})
  return fitted, account


def _groups(target: Iterable[str], rule: Rule) -> list[tuple[str, list[str]]]:
  """Returns the names that stand or fall together: (wish, names), those of 'if_whole' by top-level module."""
  groups: dict[tuple[str, str], list[str]] = {}
  for name in target:
    wish = _taken_from(rule, name)[0]
    groups.setdefault((wish, name.split('/')[0] if wish == 'if_whole' else ''), []).append(name)
  return [(wish, names) for (wish, _), names in sorted(groups.items(), key=lambda g: g[0][0] != 'needed')]


def _candidate(
  weights: Weights, name: str, ours: str, shape: tuple[int, ...], columns: list[int] | None
) -> np.ndarray:
  """Returns tensor `name` of the weights for `ours` of the model; raises _Misfit when there is none of that shape."""
  if name in weights.broken:
    raise _Misfit(weights.broken[name])
  spelled = ', '.join(f"'{s}'" for s in weights.spelled(name))
  mine = f'our {ours}, {list(shape)}'
  if name not in weights.tensors:
    raise _Misfit(f'has no {spelled}; expected it for {mine}')
  array = np.asarray(weights.tensors[name], np.float32)
  if columns is not None and _under(weights.classifier, [name]):
    array = array[..., columns]
  tables = name.endswith('pos_embed') and facts_lib.is_square(array.shape) and facts_lib.is_square(shape)
  if tables and array.shape != shape and array.shape[-1] == shape[-1]:
    side = round((shape[1] - 1) ** 0.5)
    antialias = 'encoder/register_tokens' in weights.tensors
    return np.asarray(vit.resize_pos_embed(array, (side, side), antialias), np.float32)
  if array.shape != shape:
    raise _Misfit(
      f'is of another architecture, {facts_lib.architecture(weights.facts)}: {spelled} has shape {array.shape}; expected '
      f'{shape} for our {ours} ({facts_lib.flags(weights.facts)} makes a model of its sizes)'
    )
  return array


def _columns(weights: Weights, class_names: Sequence[str], where: str, notes: list[str]) -> list[int] | None:
  """Returns, for each class of the model, its column in the weights' classifier; by place, with a note, without names."""
  layer = _under(weights.classifier, weights.tensors)
  if not layer:
    return None
  have, want = weights.tensors[layer[0]].shape[-1], len(class_names)
  if have != want:
    named = f' ({", ".join(weights.class_names)})' if weights.class_names and have < 20 else ''
    raise UserError(
      f'{where} has a classifier of {have} classes{named}; expected the {want} of this data ({", ".join(class_names)}), or '
      'init_head=False to start it anew'
    )
  if weights.class_names is None:
    order = ', '.join(f'column {i} = {name}' for i, name in enumerate(class_names[:MOST_COLUMNS]))
    notes.append(
      f'{weights.origin} has no class names: its classifier is taken by place, {order}'
      + (', …' if have > MOST_COLUMNS else '')
    )
    return list(range(have))
  columns = classes.match(weights.class_names, class_names)
  if -1 in columns:
    raise UserError(
      f"{where} has no class '{class_names[columns.index(-1)]}' among {', '.join(weights.class_names)}; expected each class "
      'of this data, or init_head=False to start the classifier anew'
    )
  return columns


def _check_extras(weights: Weights, wanted: set[str], where: str) -> None:
  """Raises UserError for what changes what a ViT's encoder computes, where the model has no place for it."""
  for name in ('encoder/register_tokens', 'encoder/blocks/ls1', 'encoder/blocks/ls2'):
    there = name in weights.tensors or name in weights.broken
    if there and name not in wanted and 'encoder/cls_token' in wanted:
      raise UserError(
        f"{where} is of another architecture, {facts_lib.architecture(weights.facts)}: it has '{weights.spelled(name)[0]}', "
        f'which the model has not; expected the same in both ({facts_lib.flags(weights.facts)} makes a model of its sizes)'
      )


def _check_heads(weights: Weights, heads: int, where: str, notes: list[str]) -> None:
  have, sure = weights.facts.get('heads', 0), weights.facts.get('heads_from', '')
  if not heads or not have or heads == have:
    return
  if sure != facts_lib.FROM_PRESET:
    raise UserError(
      f'{where} has {have} attention heads ({sure}); expected the {heads} of config.model ({facts_lib.flags(weights.facts)} makes '
      'a model of its sizes)'
    )
  like = weights.facts['preset'] or 'a ViT of its width and depth'
  notes.append(f'{like} has {have} attention heads, config.model {heads}; no tensor shows which is right')


def _check_finite(weights: Weights, name: str, array: np.ndarray, where: str) -> None:
  """Raises UserError naming, as the file spells it, the first tensor with NaN or infinity."""
  if np.isfinite(array).all():
    return
  at = np.argwhere(~np.isfinite(array))[0]
  spelled = weights.spelled(name)
  one = spelled[at[-1] * len(spelled) // array.shape[-1]] if len(spelled) > 1 else spelled[0]
  if '*' in one:
    one = one.replace('*', str(at[0]))
  raise UserError(f"{where}: '{one}' has values that are not finite; expected numbers")


def grouped(names: Iterable[str], others: Iterable[str] = ()) -> list[str]:
  """Returns names sorted, with those that differ in numbers alone as one: 'blocks.0.x' and 'blocks.1.x' as 'blocks.*.x'.

  Args:
    names: each once.
    others: names that must not seem to be meant: what would take in one of them stays as it is.
  """
  groups: dict[str, list[str]] = {}
  for name in names:
    groups.setdefault(_pattern(name), []).append(name)
  taken = set(map(_pattern, others))
  found = []
  for pattern, group in groups.items():
    found += [pattern] if len(group) > 1 and pattern not in taken else group
  return sorted(found)


def _pattern(name: str) -> str:
  return re.sub(r'(?<=\.)\d+(?=\.)', '*', name)


def summary(names: Sequence[str], most: int = 6) -> str:
  """Returns a list of tensors in a few words: by what stands before the first dot or slash, with counts."""
  groups: dict[str, int] = {}
  for name in names:
    head = re.split(r'[./]', name, maxsplit=1)[0]
    groups[head] = groups.get(head, 0) + 1
  shown = [f'{head} ({n} tensors)' if n > 1 else head for head, n in groups.items()]
  return ', '.join(shown[:most]) + (f' and {len(shown) - most} more' if len(shown) > most else '')

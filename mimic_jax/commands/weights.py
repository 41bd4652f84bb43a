"""Says what a weight file is and what would be taken of it; makes safetensors of a .pth.

  mimic weights inspect FILE [--config CONFIG] [--config.field=value …]
  mimic weights convert FILE.pth NEW.safetensors

`convert` keeps names and tensors as they are, for machines without PyTorch; nothing in the file is run.

FILE is whatever config.init takes: a .pth or safetensors file, a model folder, a run's folder or a checkpoint. Without
--config it says what MAE pre-training and fine-tuning would take of it, with a model of the file's own sizes; with one,
what the first stage of that config would.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from mimic_jax import config as config_lib
from mimic_jax import data, defaults, models, objectives, weights
from mimic_jax.models import vit
from mimic_jax.runtime import cli
from mimic_jax.runtime.errors import UserError, nearest
from mimic_jax.training import sizes, step
from mimic_jax.weights import facts, files

WIDTH = 14  # of the names at the left
COLUMNS = 118
ACCOUNT = {'loaded': 'loaded', 'resized': 'resized', 'fresh': 'started anew', 'unused': 'not used'}


def describe(found: weights.Weights) -> str:
  """Returns what weights are, a line for each thing that is known."""
  f = found.facts
  container = f['container'] + (f", under ['{f['place']}']" if f['place'] else '')
  lines = [('what', f'{found.kind} ({container})'), ('architecture', _architecture(f))]
  lines.append(('parameters', f'{f["parameters"]:,}, {" and ".join(f["dtypes"])}'))
  if 'trained_as' in f:
    lines.append(('trained as', f['trained_as']))
  if 'decoder_dim' in f:
    lines.append(('decoder', f'dim {f["decoder_dim"]}, depth {f["decoder_depth"]}'))
  if 'norm_pix' in f:
    lines.append(('norm_pix', str(f['norm_pix'])))
  if 'classes' in f:
    names = f': {", ".join(found.class_names[:12])}' if found.class_names else ', of no known names'
    lines.append(('classes', f'{f["classes"]}{names}' + (', …' if len(found.class_names or ()) > 12 else '')))
  if 'classes' in f and 'pool' in f:
    lines.append(('pooling', f['pool']))
  if 'pos_embed' in f:
    lines.append(('positions', f'{f["pos_embed"]}, {f["grid"]} × {f["grid"]}'))
  if f.get('layer_norm_eps', vit.EPSILON) != vit.EPSILON:
    lines.append(
      (
        'LayerNorm',
        f'its config says epsilon {f["layer_norm_eps"]:g}: --config.model.layer_norm_eps={f["layer_norm_eps"]:g}',
      )
    )
  augment = defaults.stage().augment
  if any(key in f and f[key] != tuple(augment[key]) for key in ('mean', 'std')):
    lines.append(
      (
        'pixels',
        f'its config says mean {f.get("mean")}, std {f.get("std")}; set augment.mean and augment.std so',
      )
    )
  lines += [('broken', f'{found.origin} {why}') for why in found.broken.values()]
  lines += [('note', ignored) for ignored in f.get('ignored', ())]
  return _table(lines)


def _architecture(f: Mapping[str, Any]) -> str:
  heads = f' (heads: {f.get("heads_from", "the file does not say")})' if f.get('dim') else ''
  hidden = f', mlp {f["mlp_hidden"]}' if 'mlp_hidden' in f else ''
  return facts.architecture(f) + hidden + heads


def _table(lines: Sequence[tuple[str, str]]) -> str:
  indent = ' ' * (WIDTH + 2)
  wrap = {'width': COLUMNS, 'break_long_words': False, 'break_on_hyphens': False, 'subsequent_indent': indent}
  return '\n'.join(textwrap.fill(f'  {name:{WIDTH}}{text}', **wrap) for name, text in lines)


def _paired(names: Sequence[str]) -> list[str]:
  """Returns names with a layer's two tensors as one: 'norm.weight' and 'norm.bias' as 'norm.{weight,bias}'."""
  layers: dict[str, list[str]] = {}
  for name in names:
    layer, end = re.fullmatch(r'(.*?[./])?([^./]*)', name).groups(default='')
    layers.setdefault(layer if end in ('weight', 'kernel', 'scale', 'bias') else name, []).append(end)
  return [
    layer
    if layer in names
    else layer + (f'{{{",".join(sorted(ends, reverse=True))}}}' if len(ends) > 1 else ends[0])
    for layer, ends in layers.items()
  ]


def account_of(
  found: weights.Weights,
  stage: Mapping[str, Any],
  model: Mapping[str, Any],
  names: tuple[str, ...],
  field: str,
) -> str:
  """Returns what a stage would take of weights, tensor by tensor, or the one line that says why it can't."""
  objective = objectives.make(stage, model, names, f'{field}.objective')
  _, params, rest = models.split(nnx.eval_shape(objective.init, jax.random.key(0)), objective.trainable)
  _, account = step.fit(found, objective, params, rest, f'{field}.init')
  lines = [
    (what, f'{len(account[key])}: {", ".join(_paired(account[key]))}')
    for key, what in ACCOUNT.items()
    if account[key]
  ]
  told = found.facts.get('ignored', ())  # by `describe`
  return _table(lines + [('note', note) for note in account['notes'] if note not in told])


def _own_model(f: Mapping[str, Any]) -> ConfigDict:
  """Returns an encoder section of the file's own sizes."""
  if f.get('dim') and not f.get('heads'):  # no tensor depends on their number; one must be given that divides
    f = {**f, 'heads': models.largest_divisor(f['dim'], f['dim'] // 64)}
  model = defaults.encoder()
  model.preset, model.image_size = models.INIT, 0
  return sizes.model_section(model, sizes.model_fields(f), 'the file')


def _own_stages(found: weights.Weights) -> list[tuple[str, ConfigDict, tuple[str, ...]]]:
  """Returns the uses that a file is held against by itself: (title, stage, class names)."""
  names = found.class_names or tuple(f"the data's class {k}" for k in range(found.facts.get('classes', 7)))
  kinds = [objectives.find(name) for name in objectives.names()]
  return [
    (title, stage, names if kind.labelled else ())
    for kind in kinds
    for title, stage in kind.uses(found.facts, found.tensors)
  ]


def _class_names(stage: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the classes of a stage's data; without init_head they don't matter, and the data need not be there."""
  if not objectives.find(stage['objective']).labelled:
    return ()
  d = stage['data']
  if not stage['init_head']:
    return ('a class', 'another')
  return tuple(data.build(d['source'], d['root'], d['split'], {**d, 'cache': False}).class_names)


def _check_flags(flags: Sequence[str]) -> None:
  """Raises UserError for a flag that is not of the config."""
  for flag in flags:
    match = re.match(r'--?([A-Za-z][^=]*)', flag)
    if match and match[1] != 'config' and not match[1].startswith('config.'):
      raise UserError(
        f'--{match[1]} is no flag{nearest(match[1], ["config", "help"])}; expected --config CONFIG, --config.field=value'
      )
  if not flags[0].startswith('-'):
    raise UserError(
      f"'{flags[0]}' is not understood; expected one FILE, --config CONFIG, --config.field=value"
    )


def main(argv: Sequence[str]) -> None:
  """Runs the command line without the program's name; raises UserError."""
  parser = cli.Parser('weights', __doc__)
  parser.add_argument('command', choices=['inspect', 'convert'])
  parser.add_argument('file', metavar='FILE')
  given, flags = parser.parse_known_args(list(argv))
  if given.command == 'convert':
    if len(flags) != 1 or flags[0].startswith('-'):
      raise UserError(
        f"convert has '{' '.join(flags)}' after FILE; expected the name of the new file and no more"
      )
    read = files.convert(epath.Path(given.file), epath.Path(flags[0]), 'FILE')
    print(
      f'{flags[0]}: {len(read.tensors)} tensors' + (f" from under ['{read.place}']" if read.place else '')
    )
    return
  # a flag that is wrong is better known before gigabytes are read
  if flags:
    _check_flags(flags)
  config = config_lib.parse(['weights', *flags]).config if flags else None
  found = weights.read(given.file, 'FILE')
  print(f'{found.origin}\n{describe(found)}')
  if config is not None:
    name = config_lib.stages(config)[0]
    if config.model.preset == models.INIT:
      config = sizes.filled(config, sizes.of_weights(config, found.facts, found.origin))
    stage = config[name]
    print(f'\nconfig.{name}, {stage.objective}')
    print(account_of(found, stage, config.model, _class_names(stage), f'config.{name}'))
    return
  model = _own_model(found.facts)
  for title, stage, names in _own_stages(found):
    print(f'\n{title}, of a model of these sizes')
    stage.drop_path = 0.0  # which a ResNet has not, and no tensor shows
    try:
      print(account_of(found, stage, model, names, 'config.stage'))
    except UserError as e:
      print(_table([('can not', ' '.join(str(e).split()))]))

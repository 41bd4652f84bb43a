"""Prints how a stage's weights would lie on many devices.

  mimic layout --config CONFIG --devices 8 --fsdp 8

Prints for every array its bytes, along which axis it is split over `fsdp`, and the bytes that each device holds of it. Needs
neither the devices nor the data. Activations and gradients come on top; they depend on the batch.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType
from ml_collections import ConfigDict

from mimic_jax import config as config_lib
from mimic_jax import objectives
from mimic_jax.runtime import checkpoint, cli, sharding
from mimic_jax.runtime.errors import UserError, one_of
from mimic_jax.training import step as step_lib

TREES = {'params': 'trained parameters', 'rest': 'fixed ones', 'opt_state': 'optimiser'}
_MOMENT = re.compile(r'^\d+/(mu|nu)/')  # of the optimiser, of a parameter


@dataclasses.dataclass(frozen=True)
class Row:
  """Arrays that lie alike: a parameter, or its two moments.

  Attributes:
    tree: a key of TREES.
    name: of the parameter.
    count: how many.
    shape, dtype: of each.
    axis: which is split; None for none.
    whole: bytes of all.
    here: bytes of all that a device holds.
  """

  tree: str
  name: str
  count: int
  shape: tuple[int, ...]
  dtype: str
  axis: int | None
  whole: int
  here: int


def rows(
  config: Mapping[str, Any], name: str, devices: int, fsdp: int, class_names: tuple[str, ...]
) -> list[Row]:
  """Returns how the state of a stage lies.

  Args:
    config: of the run.
    name: of the stage.
    devices: in all.
    fsdp: over how many of them arrays are split; the rest holds copies.
    class_names: of the classifier, where there is one.

  Raises:
    UserError: when the devices can't be laid out so, or the model can not be.
  """
  if fsdp < 1 or devices < 1 or devices % fsdp:
    raise UserError(f'--fsdp is {fsdp}; expected a divisor of --devices, {devices}')
  mesh = AbstractMesh((devices // fsdp, fsdp), sharding.AXES, axis_types=(AxisType.Auto,) * 2)
  stage, model = config[name], ConfigDict(config['model'].to_dict())
  model.attention = 'xla'  # where it is computed is of no concern here
  objective = objectives.make(stage, model, class_names, f'config.{name}.objective')
  program = step_lib.make_program(stage, objective, stage['batch_images'], mesh)
  groups: dict[tuple[str, str], list[jax.ShapeDtypeStruct]] = {}
  for full, leaf in checkpoint.flatten(program.abstract).items():
    tree, _, short = full.partition('/')
    if tree in TREES:
      groups.setdefault((tree, _MOMENT.sub('', short)), []).append(leaf)
  return [_row(tree, short, leaves) for (tree, short), leaves in groups.items()]


def _row(tree: str, name: str, leaves: Sequence[jax.ShapeDtypeStruct]) -> Row:
  first = leaves[0]
  split = [i for i, axis in enumerate(first.sharding.spec) if axis]
  return Row(
    tree,
    name,
    len(leaves),
    tuple(first.shape),
    str(first.dtype),
    split[0] if split else None,
    sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves),
    sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves),
  )


def table(found: Sequence[Row], fsdp: int) -> str:
  """Returns the rows and their sums as lines of text."""
  lines = [['array', 'shape', 'type', 'bytes', 'split', 'on a device']]
  for r in sorted(found, key=lambda r: (list(TREES).index(r.tree), r.name)):
    times = f' ({r.count} ×)' if r.count > 1 else ''
    split = '–' if r.axis is None else f'axis {r.axis}'
    shape = ' × '.join(map(str, r.shape)) or 'number'
    lines.append([f'{r.tree}/{r.name}{times}', shape, r.dtype, f'{r.whole:,}', split, f'{r.here:,}'])
  sums = [['sum', 'bytes', 'on a device', 'share', 'not split', f'1/{fsdp} of the whole + not split']]
  for title, part in [*((t, [r for r in found if r.tree == k]) for k, t in TREES.items()), ('all', found)]:
    whole, here = (sum(getattr(r, k) for r in part) for k in ('whole', 'here'))
    fixed = sum(r.whole for r in part if r.axis is None)
    if whole:
      bound = whole / fsdp + fixed
      sums.append(
        [title, f'{whole:,}', f'{here:,}', f'{here / whole:.4f}', f'{fixed:,}', f'{math.ceil(bound):,}']
      )
  return '\n'.join([*cli.aligned(lines), '', *cli.aligned(sums)])


def _parser() -> cli.Parser:
  parser = cli.Parser('layout', __doc__)
  add = parser.add_argument
  add('--config', required=True, help='a config file or name, with :VARIANT')
  add('--devices', type=int, default=8, help='of all processes together')
  add('--fsdp', type=int, default=0, help='how many share one copy of the weights; default all')
  add('--stage', default='', help="one of the config's; default all that it runs")
  add('--classes', type=int, default=8, help="of the data, which isn't looked at")
  parser.epilog = 'and --config.FIELD=VALUE as for mimic train'
  return parser


def main(argv: Sequence[str]) -> None:
  """Runs the command line without the program's name; raises UserError."""
  given, rest = _parser().parse_known_args(list(argv))
  for arg in rest:
    if not arg.startswith(('--config.', '-config.')):
      raise UserError(f"'{arg}' is not understood; expected --config.FIELD=VALUE or a flag that --help names")
  config = config_lib.parse([sys.argv[0], f'--config={given.config}', *rest]).config
  names = config_lib.stages(config)
  if given.stage:
    names = [one_of('--stage', given.stage, names)]
  if given.classes < 1:
    raise UserError(f'--classes is {given.classes}; expected at least 1')
  fsdp = given.fsdp or given.devices
  class_names = tuple(map(str, range(given.classes)))
  for name in names:
    found = rows(config, name, given.devices, fsdp, class_names)
    print(f'stage {name} on {given.devices} devices, data={given.devices // fsdp}, fsdp={fsdp}\n')
    print(table(found, fsdp), end='\n\n')

"""Prints how a stage's weights would lie on many devices, and what its step sends between them.

  mimic layout --config CONFIG --devices 8 --fsdp 8 [--json layout.json]

Prints for every array its bytes, along which axis it is split over `fsdp`, and the bytes that each device holds of it; and of the
step, compiled for so many CPU devices, its temporaries and every kind of array that devices send to each other. Needs neither
the devices nor the data. What a loop over blocks sends is in `count` once, in `times` as often as it runs. An accelerator's
compiler may fuse and split otherwise.
"""

import contextlib
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from mimic_jax.runtime import checkpoint, cli, compiled, files, sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import planned
from mimic_jax.training import step as step_lib

TREES = {
  'params': 'trained parameters',
  'rest': 'fixed ones',
  'opt_state': 'optimiser',
  'ema': 'their average',
}
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


def rows(program: step_lib.Program) -> list[Row]:
  """Returns how the state of a stage lies."""
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


def traffic(found: Mapping[str, Any]) -> str:
  """Returns the temporaries and the collectives of a compiled step as lines of text."""
  lines = [['sent', 'shape', 'type', 'count', 'times', 'bytes of one']]
  for c in found['collectives']:
    shape = ' × '.join(map(str, c['shape'])) or 'number'
    lines.append([c['kind'], shape, c['dtype'], str(c['count']), str(c['times']), f'{c["bytes"]:,}'])
  return f'temporaries of the step: {found["temporaries"]:,} bytes on a device\n\n' + '\n'.join(
    cli.aligned(lines)
  )


def _devices(count: int) -> list[jax.Device]:
  """Returns so many CPU devices, made where JAX has not begun yet."""
  if count < 1:
    raise UserError(f'--devices is {count}; expected at least 1')
  with contextlib.suppress(RuntimeError):  # it has begun
    jax.config.update('jax_num_cpu_devices', count)
  devices = jax.devices('cpu')
  if len(devices) < count:
    raise UserError(f'--devices is {count}, and this process has {len(devices)} already; expected no more')
  return devices[:count]


def _parser() -> cli.Parser:
  parser = planned.parser('layout', __doc__)
  add = parser.add_argument
  add('--devices', type=int, default=8, help='of all processes together')
  add('--fsdp', type=int, default=0, help='how many share one copy of the weights; default all')
  add('--json', default='', help='file to write all of it to')
  return parser


def main(argv: Sequence[str]) -> None:
  """Runs the command line without the program's name; raises UserError."""
  given, _, config, names = planned.parsed(_parser(), argv)
  devices = _devices(given.devices)
  fsdp = given.fsdp or given.devices
  if fsdp < 1 or given.devices % fsdp:
    raise UserError(f'--fsdp is {fsdp}; expected a divisor of --devices, {given.devices}')
  mesh = sharding.make_mesh(-1, fsdp, devices)
  whole: dict[str, Any] = {}
  for name in names:
    program = planned.program(config, name, mesh, given.classes)
    print(f'stage {name} on {given.devices} devices, data={given.devices // fsdp}, fsdp={fsdp}\n')
    held = rows(program)
    print(table(held, fsdp), end='\n\n', flush=True)
    said = compiled.summary(program.lower().compile())
    print(traffic(said), end='\n\n')
    whole[name] = {
      'devices': given.devices,
      'fsdp': fsdp,
      'arrays': [dataclasses.asdict(r) for r in held],
      **said,
    }
  if given.json:
    files.write_json(epath.Path(given.json), whole)

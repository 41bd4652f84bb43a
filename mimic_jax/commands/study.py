"""Runs a study of the paper, arms × sets × seeds, and makes its table, statistics and figures.

  mimic study --study table2 --scale tiny --out runs/table2
  mimic study --study fig5 --scale small --data general=/data/photos,ferplus=/data/ferplus --seeds 5 --out runs/study

Each run is a `mimic train` of its own under OUT/runs, of configs/study.py. The same command goes on after a kill, runs again what
failed, and runs nothing that is done; studies in one OUT share the runs that they have in common. Several of the same command on one OUT, on
one machine or as a Slurm array, share the work. What came of it is in OUT/STUDY: index.html, table.md, .csv and .tex, figures.
"""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mimic_jax import config as config_lib
from mimic_jax.runtime import cli, files
from mimic_jax.runtime.errors import UserError, one_of
from mimic_jax.study import design, runner
from mimic_jax.study.design import DRAWN, GENERAL, Plan, Study

MOST_SEEDS = 1000


def _named(flag: str, given: str, known: Sequence[str]) -> dict[str, str]:
  """Returns what 'a=X,b=Y' names; raises UserError."""
  held = {}
  for part in filter(None, given.split(',')):
    name, equals, path = part.partition('=')
    one_of(flag, name, known)
    if not equals or not path:
      raise UserError(f"{flag} has '{part}'; expected {name}=PATH")
    held[name] = str(epath.Path(path).expanduser())
  return held


def _seeds(given: str) -> list[int]:
  if not re.fullmatch('[0-9]+', given) or not 1 <= int(given) <= MOST_SEEDS:
    raise UserError(f"--seeds is '{given}'; expected how many, from 1 to {MOST_SEEDS}")
  return list(range(int(given)))


def _worker(given: str) -> tuple[int, int]:
  match = re.fullmatch('([0-9]+)/([0-9]+)', given)
  if not match or not int(match[1]) < int(match[2]):
    raise UserError(f"--worker is '{given}'; expected I/N with I from 0 to N − 1")
  return int(match[1]), int(match[2])


def begin(out: epath.Path, study: Study, scale: str, weights: Mapping[str, str]) -> None:
  """Writes what a study is made of, or checks that it is what was begun there; arms and seeds may be added.

  Raises:
    UserError: naming the field that differs, or when the folder holds something else.
  """
  path = out / 'study.json'
  now = files.jsonable(
    {
      'scale': scale,
      'weights': {k: str(v) for k, v in weights.items()},
      'studies': {
        study.name: {'arms': {k: a._asdict() for k, a in study.arms.items()}, 'primary': study.primary}
      },
    }
  )
  held: dict[str, Any] = {}
  if path.exists():
    held = files.read_json(path)
    for field, was in config_lib.fields(held):
      mine = field.startswith(f'studies.{study.name}.') or not field.startswith('studies.')
      there = dict(config_lib.fields(now))
      if mine and there.get(field) != was:
        flag = f'--{field.split(".")[0]}' if not field.startswith('studies.') else f'--study {study.name}'
        raise UserError(
          f'{flag}: {field.removeprefix(f"studies.{study.name}.")} is {there.get(field, "(absent)")}, and was {was} when {out} was begun; '
          'expected the same, or another --out'
        )
    if (
      study.name in held['studies']
      and held['studies'][study.name]['primary'] != now['studies'][study.name]['primary']
    ):
      raise UserError(
        f'--study {study.name}: its primary contrasts are others than when {out} was begun; expected the same, or another --out'
      )
  elif out.is_dir() and any(out.iterdir()):
    raise UserError(
      f'--out {out} is not empty and holds no study; expected a new or empty folder, or a study to go on with'
    )
  out.mkdir(parents=True, exist_ok=True)
  files.write_json(path, {**now, 'studies': {**held.get('studies', {}), **now['studies']}})


def _parser() -> cli.Parser:
  parser = cli.Parser('study', __doc__)
  add = parser.add_argument
  add('--study', required=True, help=f'{" | ".join(design.names())}, or a TOML file')
  add('--scale', default='tiny', help='tiny | small | paper: configs/study.py')
  add(
    '--data',
    default='',
    help=f'SET=FOLDER,…: ferplus, rafdb, affectnet, and {GENERAL}, the pictures to pre-train on',
  )
  add(
    '--weights',
    default='',
    help='PRETRAINING=FILE,…: instead of pre-training: mae, moco_v3, local_mim, supervised',
  )
  add('--seeds', default='3', help='how many of each arm; more can be added later')
  add('--out', required=True, help='folder of the study')
  add('--worker', default='', metavar='I/N', help='of N that share OUT; under a Slurm array by itself')
  add('--dry-run', action='store_true', help='prints the runs and about what they cost; runs nothing')
  add('--render', action='store_true', help='renders what there is; runs nothing')
  return parser


def main(argv: Sequence[str]) -> None:
  """Runs the command line without the program's name; raises UserError."""
  given = _parser().parse_args(list(argv))
  study, scale = design.read(given.study), one_of('--scale', given.scale, design.SCALES)
  data = _named('--data', given.data, ('ferplus', 'rafdb', 'affectnet', DRAWN, GENERAL))
  weights = _named('--weights', given.weights, ('mae', 'moco_v3', 'local_mim', 'supervised'))
  worker = _worker(given.worker or _of_array())
  out = epath.Path(given.out).expanduser()
  there, gone = dict(data), {}
  for name, path in data.items():
    if name != DRAWN and not epath.Path(path).exists():
      gone[name] = there.pop(name)
  plan = design.plan(study, scale, str(out), there, weights, _seeds(given.seeds))
  if gone:
    raise UserError(
      f'--data: {", ".join(f"{k}={v}" for k, v in gone.items())} does not exist; without it '
      f'{len(plan.runs)} runs can still be done: leave it out'
    )
  for name, path in weights.items():
    if not epath.Path(path).exists():
      raise UserError(f'--weights: {name}={path} does not exist; expected a weight file or a run')
  for line in plan.missing:
    print(f'mimic: left out: {line}', file=sys.stderr)
  if not plan.runs:
    raise UserError(
      f'--data has none of {", ".join(study.sets)}; expected at least one as SET=FOLDER, or --scale tiny'
    )
  if given.dry_run:
    print(_costs(out, plan))
    return
  begin(out, study, scale, weights)
  failed: dict[str, str] = {}
  try:
    if not given.render:
      failed = runner.carry_out(out, plan.runs, _say, *worker).failed
  finally:
    from mimic_jax.study import page  # heavy

    print(page.write(out, study, plan, scale, weights, failed))
  if failed:
    raise UserError(
      f'{len(failed)} of {len(plan.runs)} runs failed ({", ".join(failed)}); the same command runs them again'
    )


def _say(line: str) -> None:
  print(f'mimic: {line}', file=sys.stderr, flush=True)


def _of_array() -> str:
  """Returns which of a Slurm array's jobs this is, as --worker has it."""
  first, number, count = (os.environ.get(f'SLURM_ARRAY_TASK_{k}') for k in ('MIN', 'ID', 'COUNT'))
  return f'{(int(number) - int(first)) % int(count)}/{count}' if count else '0/1'


def _costs(out: epath.Path, plan: Plan) -> str:
  from mimic_jax.study import cost  # heavy

  needed = cost.operations(plan.runs, out)
  rate, told = cost.rate(plan.runs, out, needed)
  rows = [['run', 'TFLOP', 'about', '']]
  for run in plan.runs:
    state = 'done' if runner.done(out, run) else ''
    rows.append([run.name, f'{needed[run.name] / 1e12:,.1f}', _duration(needed[run.name] / rate), state])
  left = sum(needed[r.name] for r in plan.runs if not runner.done(out, r))
  return '\n'.join(
    [
      *cli.aligned(rows),
      '',
      f'{len(plan.runs)} runs; what is left takes {left / 1e12:,.1f} TFLOP, about {_duration(left / rate)} ({told}).',
      'Each is a command of its own, such as',
      f'  {shlex.join(["python", *runner.command(out, plan.runs[0])[1:]])}',
    ]
  )


def _duration(seconds: float) -> str:
  return f'{seconds / 3600:,.1f} h' if seconds >= 5400 else f'{seconds / 60:,.1f} min'

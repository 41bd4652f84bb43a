"""Runs a study of the paper, arms × sets × seeds, and makes its table, statistics and figures.

  mimic study --study table2 --scale tiny --out runs/table2
  mimic study --study fig5 --scale small --data general=/data/photos,ferplus=/data/ferplus --seeds 5 --out runs/study

Each run is a `mimic train` of its own under OUT/runs, of configs/study.py. The same command goes on after a kill, runs again what
failed, and runs nothing that is done; studies in one OUT share the runs that they have in common. Several of the same command on one OUT, on
one machine or as a Slurm array, share the work. What came of it is in OUT/STUDY: index.html, table.md, .csv and .tex, figures.
"""

import argparse
import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from mimic_jax import config as config_lib
from mimic_jax.runtime import cli, files, lease
from mimic_jax.runtime.errors import UserError, one_of
from mimic_jax.study import design, runner
from mimic_jax.study.design import DRAWN, GENERAL, Plan, Study
from mimic_jax.training import workdir

MOST_SEEDS = 1000
WAITS = 120  # seconds, for another runner that writes the page


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


def begin(
  out: epath.Path, study: Study, scale: str, data: Mapping[str, str], weights: Mapping[str, str], plan: Plan
) -> int:
  """Writes what a study is made of, or checks that it is what was begun there; arms, sets and seeds may be added.

  Returns:
    How many of its runs were there when its primary contrasts were written down.

  Raises:
    UserError: naming the field that differs, or when the folder holds something else.
  """
  path = out / 'study.json'
  held = files.read_json(path) if path.exists() else {'studies': {}}
  if not path.exists() and any(p.name != lease.FILE and not p.name.startswith('.') for p in out.iterdir()):
    raise UserError(
      f'--out {out} is not empty and holds no study; expected a new or empty folder, or a study to go on with'
    )
  arms = files.jsonable({name: arm._asdict() for name, arm in study.arms.items()})
  now = {'arms': arms, 'primary': files.jsonable(study.primary)}
  old = held['studies'].get(study.name)
  _same(out, '--scale', held.get('scale', scale), scale)
  _same(out, '--weights', held.get('weights', weights), dict(weights))
  for name, root in held.get('data', {}).items():
    _same(out, f'--data: {name}', root, data.get(name, root))
  if old:
    _same(out, f'--study {study.name}: primary', old['primary'], now['primary'])
    for name, arm in old['arms'].items():
      for field in arm:
        _same(
          out,
          f'--study {study.name}: arms."{name}".{field}',
          arm[field],
          arms.get(name, {}).get(field, '(absent)'),
        )
  begun_with = (
    old['begun_with'] if old else sum(runner.done(out, r) for r in plan.runs if r.stage == 'finetune')
  )
  files.write_json(
    path,
    {
      'scale': scale,
      'data': {**held.get('data', {}), **data},
      'weights': dict(weights),
      'studies': {**held['studies'], study.name: {**now, 'begun_with': begun_with}},
    },
  )
  return begun_with


def _same(out: epath.Path, field: str, was: Any, now: Any) -> None:
  if was != now:
    raise UserError(
      f'{field} is {now}, and was {was} when {out} was begun; expected the same, or another --out'
    )


@contextlib.contextmanager
def _alone(out: epath.Path) -> Iterator[None]:
  """Keeps other runners of the study from writing what they share; waits for them."""
  out.mkdir(parents=True, exist_ok=True)
  mine = lease.Lease(out, lambda line: None)
  for wait in (*([1.0] * WAITS), 0.0):
    try:
      mine.acquire()
      break
    except UserError:
      if not wait:
        raise
      time.sleep(wait)
  try:
    yield
  finally:
    mine.release()


def _check_done(out: epath.Path, plan: Plan) -> None:
  """Raises UserError when a run that is done, or begun, is of another config than it would have now."""
  for run in plan.runs:
    kept = runner.folder(out, run) / 'config.json'
    if not kept.exists() or not runner.done(out, run):
      continue
    flags = [f for f in run.flags if not f.startswith('--config.init=')]
    config = config_lib.parse(['mimic train', '--config', run.config, *flags]).config
    was = files.read_json(kept)
    differs = [
      d for d in config_lib.differences(was, workdir.as_dict(config)) if not re.match(r'(\w+\.)?init:', d)
    ]
    if differs:
      raise UserError(
        f'{kept.parent} is of another config ({"; ".join(differs[:5])}); expected the same, or another --out'
      )


def _parser() -> cli.Parser:
  parser = cli.Parser('study', __doc__)
  add = parser.add_argument
  add('--study', required=True, help=f'{" | ".join(design.names())}, or a TOML file')
  add('--scale', default='tiny', help='tiny | small | paper: configs/study.py')
  add(
    '--data',
    default='',
    help=f'SET=FOLDER,…: such as ferplus, and {GENERAL}, the pictures to pre-train on',
  )
  add(
    '--weights',
    default='',
    help='PRETRAINING=FILE,…: instead of pre-training, such as mae',
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
  data = _named('--data', given.data, [*design.words().SETS, GENERAL])
  weights = _named(
    '--weights', given.weights, [p for p in design.words().PRETRAININGS if p != design.SCRATCH]
  )
  worker, seeds = _worker(given.worker or _of_array()), _seeds(given.seeds)
  out = epath.Path(
    given.out if files.is_remote(given.out) else os.path.abspath(os.path.expanduser(given.out))
  )
  plan = design.plan(
    study, scale, str(out), _there(given, study, scale, data, weights, seeds), weights, seeds
  )
  for name, path in weights.items():
    if not given.render and not epath.Path(path).exists():
      raise UserError(f'--weights: {name}={path} does not exist; expected a weight file or a run')
  for line in plan.missing:
    _say(f'left out: {line}')
  if not plan.runs:
    raise UserError(
      f'--data has none of {", ".join(study.sets)}; expected at least one as SET=FOLDER, or --scale tiny'
    )
  if given.dry_run:
    print(_costs(out, plan))
    return
  with runner.Listening() as listening:
    with _alone(out):
      begun_with = begin(out, study, scale, data, weights, plan)
      _check_done(out, plan)
    failed = [] if given.render else runner.carry_out(out, plan.runs, _say, listening, *worker)
    from mimic_jax.study import page  # heavy

    with _alone(out):
      print(page.write(out, study, plan, scale, weights, begun_with))
  if failed:
    raise UserError(
      f'{len(failed)} of {len(plan.runs)} runs failed ({", ".join(failed)}); the same command runs them again'
    )


def _there(
  given: argparse.Namespace,
  study: Study,
  scale: str,
  data: Mapping[str, str],
  weights: Mapping[str, str],
  seeds: Sequence[int],
) -> Mapping[str, str]:
  """Returns --data; raises UserError, with what can be done without it, when a folder isn't there."""
  gone = (
    [] if given.render else [n for n, path in data.items() if n != DRAWN and not epath.Path(path).exists()]
  )
  if gone:
    there = {name: path for name, path in data.items() if name not in gone}
    left = design.plan(study, scale, given.out, there, weights, seeds).runs
    can = f'without it {len(left)} runs can still be done: leave it out' if left else 'expected a folder'
    raise UserError(f'--data: {", ".join(f"{n}={data[n]}" for n in gone)} does not exist; {can}')
  return data


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

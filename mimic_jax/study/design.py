"""The design of a study: a TOML file that names arms, which of them are compared, and what the paper has; and the runs of it.

  title = "…"                        sets = ["rafdb", …]          about = "…"       figure = "bars" | "sweeps" | "tsne"
  [arms]      "MAE, SCL" = { begins = "mae", method = "scl", size = "large", set = { "finetune.head.pool" = "cls" } }
  [sweeps]    "λ" = { field = "finetune.contrast.weight", values = [0.1, 1.0] }      each of every arm: "MAE, SCL, λ = 0.1"
  [primary]   "SCL against CE" = ["MAE, CE", "MAE, SCL"]                              B − A, written down before the runs
  [paper], [quoted], [published]   "MAE, SCL" = { rafdb = 88.87 }                     percent

begins, method and size are words of configs/study.py, fields are named as on the command line.
"""

import functools
import pathlib
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mimic_jax import config as config_lib
from mimic_jax.runtime.errors import UserError, nearest, one_of

FIGURES = ('', 'bars', 'sweeps', 'tsne')
SCALES = {
  'tiny': 'a ViT of three blocks on pictures of 32 × 32, which draws its own general pictures; half of the batches are mixed',
  'small': 'a ViT of three blocks on pictures of 48 × 48; half of the batches are mixed',
  'paper': "the paper's models, pictures and schedules",
}
DRAWN = 'faces'  # the set that needs no data
SCRATCH = 'scratch'  # begins with nothing
GENERAL = 'general'  # the pictures to pre-train on, in --data
MOST_PRIMARY = 5
_TABLES = ('arms', 'sweeps', 'primary', 'paper', 'quoted', 'published')
_OWN = ('seed', 'init', 'data.root')  # fields that the plan sets
_PLAIN = {'title': str, 'about': str, 'figure': str, 'sets': list}


class Arm(NamedTuple):
  """A method: how it begins, what it is fine-tuned with, the model, and fields that differ, by full name."""

  begins: str
  method: str
  size: str = 'base'
  set: Mapping[str, Any] = {}


class Study(NamedTuple):
  """What a file holds; `arms` with those of the sweeps, `sweeps` title → its value → the names of arms.

  `references` are the arms that each is compared with when nothing else is asked: the first, of a sweep's the first at that value.
  """

  name: str
  title: str
  about: str
  sets: tuple[str, ...]
  figure: str
  arms: dict[str, Arm]
  sweeps: dict[str, dict[Any, list[str]]]
  references: dict[str, str]
  primary: dict[str, tuple[str, str]]
  paper: dict[str, dict[str, float]]
  quoted: dict[str, dict[str, float]]
  published: dict[str, dict[str, float]]


class Run(NamedTuple):
  """One run of `mimic train`.

  Attributes:
    name: its folder's among the runs, 'ferplus-mae-scl/seed0'.
    stage: its one.
    config: for --config.
    flags: beside --config and --workdir.
    needs: the run whose weights it begins with; '' = none of this study's.
  """

  name: str
  stage: str
  config: str
  flags: tuple[str, ...]
  needs: str = ''


class Plan(NamedTuple):
  """The runs of a study, seed after seed, each after what it needs; those of `arms` by set, arm and seed; `missing` says
  what is left out for want of data.
  """

  runs: list[Run]
  arms: dict[str, dict[str, dict[int, Run]]]
  missing: list[str]


@functools.cache
def words() -> types.ModuleType:
  """Returns configs/study.py, whose SETS, PRETRAININGS and IN_DOMAIN say what there is."""
  return config_lib.module(config_lib.find_config('study')[0])


def names() -> list[str]:
  """Returns the names of the studies that come with mimic_jax."""
  found = (f for folder in config_lib.config_folders() for f in (folder / 'studies').glob('*.toml'))
  return sorted({f.stem for f in found})


def read(given: str) -> Study:
  """Reads a study.

  Args:
    given: one of `names()`, or a file.

  Raises:
    UserError: when there is no such study, or its file is not one.
  """
  path = pathlib.Path(given)
  if not path.is_file():
    one_of('--study', given, names())
    path = next(p for f in config_lib.config_folders() if (p := f / 'studies' / f'{given}.toml').is_file())
  try:
    held = tomllib.loads(path.read_text('utf-8'))
  except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
    raise UserError(f'{path}: no TOML ({e})') from e
  for key, value in held.items():
    if key not in _TABLES and key not in _PLAIN:
      raise UserError(f"{path}: '{key}' is no part of a study{nearest(key, [*_PLAIN, *_TABLES])}")
    kind = _PLAIN.get(key, dict)
    if not isinstance(value, kind):
      raise UserError(f"{path}: {key} is '{value}'; expected a {kind.__name__}")
  if not held.get('arms') or not held.get('sets'):
    raise UserError(f'{path}: no arms or no sets; expected at least one of each')
  one_of(f'{path}: figure', held.get('figure', ''), FIGURES)
  for target in held['sets']:
    one_of(f'{path}: sets', target, words().SETS)
  arms = {name: _arm(f'{path}: arms."{name}"', given) for name, given in held['arms'].items()}
  arms, sweeps, references = _swept(path, arms, held.get('sweeps', {}))
  figures = {key: held.get(key, {}) for key in ('paper', 'quoted', 'published')}
  for part, rows in figures.items():
    for name, row in rows.items():
      if part == 'paper':
        one_of(f'{path}: paper', name, arms)
      if not isinstance(row, dict) or not all(isinstance(x, (int, float)) for x in row.values()):
        raise UserError(
          f'{path}: {part}."{name}" is {row}; expected percent by set, such as {{ ferplus = 89.74 }}'
        )
  return Study(
    path.stem,
    held.get('title', path.stem),
    ' '.join(held.get('about', '').split()),
    tuple(held['sets']),
    held.get('figure', ''),
    arms,
    sweeps,
    references,
    _primary(path, held.get('primary', {}), arms),
    **figures,
  )


def _arm(where: str, given: Any) -> Arm:
  lacking = [key for key in ('begins', 'method') if not isinstance(given, dict) or key not in given]
  if lacking:
    raise UserError(
      f"{where} has no '{lacking[0]}'; expected begins and method, as words of configs/study.py"
    )
  for key, value in given.items():
    one_of(where, key, Arm._fields)
    if not isinstance(value, dict if key == 'set' else str):
      raise UserError(
        f'{where}: {key} is {value}; expected {"fields with their values" if key == "set" else "a word"}'
      )
  arm = Arm(**given)
  one_of(f'{where}: begins', arm.begins, words().PRETRAININGS)
  one_of(f'{where}: method', arm.method, [m for m in words().METHODS if m != 'pretrain'])
  one_of(f'{where}: size', arm.size, words().PAPER)
  for field in arm.set:
    if field in _OWN:
      raise UserError(f"{where}: set has '{field}', which the study sets itself; expected another field")
  return arm


def _swept(
  path: pathlib.Path, arms: dict[str, Arm], sweeps: Mapping[str, Any]
) -> tuple[dict[str, Arm], dict[str, dict[Any, list[str]]], dict[str, str]]:
  """Returns the arms with those of the sweeps, the names by sweep and value, and what each arm is compared with."""
  first = next(iter(arms))
  whole, named, references = dict(arms), {}, {name: first for name in arms if name != first}
  for title, sweep in sweeps.items():
    if (
      not isinstance(sweep, dict)
      or sweep.keys() != {'field', 'values'}
      or not isinstance(sweep['values'], list)
    ):
      raise UserError(f'{path}: sweeps."{title}" is {sweep}; expected field and values')
    if not all(isinstance(x, (int, float)) for x in sweep['values']):
      raise UserError(f'{path}: sweeps."{title}".values is {sweep["values"]}; expected numbers')
    named[title] = {value: [f'{name}, {title} = {value}' for name in arms] for value in sweep['values']}
    for value, those in named[title].items():
      for one, arm in zip(those, arms.values()):
        whole[one] = arm._replace(set={**arm.set, sweep['field']: value})
        references[one] = first if one == those[0] else those[0]
  return whole, named, references


def _primary(
  path: pathlib.Path, given: Mapping[str, Any], arms: Mapping[str, Arm]
) -> dict[str, tuple[str, str]]:
  if len(given) > MOST_PRIMARY:
    raise UserError(
      f'{path}: {len(given)} primary contrasts; expected at most {MOST_PRIMARY}: the others are exploratory'
    )
  for name, pair in given.items():
    if not isinstance(pair, list) or len(pair) != 2:
      raise UserError(
        f'{path}: primary."{name}" is {pair}; expected two arms, of which the second is to be better'
      )
    for arm in pair:
      one_of(f'{path}: primary."{name}"', arm, arms)
  return {name: (a, b) for name, (a, b) in given.items()}


def plan(
  study: Study,
  scale: str,
  out: str,
  data: Mapping[str, str],
  weights: Mapping[str, str],
  seeds: Sequence[int],
) -> Plan:
  """Lays out the runs of a study.

  A pre-training is one run per seed, which the fine-tunings of that seed share; with a weight file it is none.

  Args:
    study: the design.
    scale: one of SCALES.
    out: the folder whose 'runs' they are in.
    data: folders by set, and of GENERAL.
    weights: files by pre-training.
    seeds: of every arm.

  Raises:
    UserError: on an arm that is no config.
  """
  sets = [s for s in study.sets if s in data] or ([DRAWN] if scale == 'tiny' else [])
  if scale == 'tiny' and GENERAL in data:
    raise UserError(
      f'--data has {GENERAL}, and --scale tiny draws the pictures to pre-train on; expected sets of faces alone'
    )
  missing = [f'{s}: no folder in --data' for s in study.sets if s not in data] if sets != [DRAWN] else []
  runs, arms, without = {}, {}, {}
  for target in sets:
    arms[target] = {}
    for name, arm in study.arms.items():
      if why := _lacks(arm, scale, data, weights):
        without.setdefault(why, []).append(f'{name} ({target})')
        continue
      arms[target][name] = {}
      for seed in seeds:
        before = None if arm.begins in (SCRATCH, *weights) else _pretraining(arm, scale, target, data, seed)
        init = weights.get(arm.begins, '') if before is None else f'{out}/runs/{before.name}'
        run = _finetuning(arm, scale, target, data, seed, init, before.name if before else '')
        runs |= {r.name: r for r in (before, run) if r}
        arms[target][name][seed] = run
  missing += [f'{why}: {", ".join(left)}' for why, left in without.items()]
  by_seed = sorted(runs.values(), key=lambda r: seeds.index(int(r.name.rpartition('seed')[2])))
  return Plan(by_seed, arms, missing)


def _lacks(arm: Arm, scale: str, data: Mapping[str, str], weights: Mapping[str, str]) -> str:
  if arm.begins in (SCRATCH, *words().IN_DOMAIN, *weights) or scale == 'tiny' or GENERAL in data:
    return ''
  return f'{arm.begins} has no weights in --weights, nor {GENERAL} pictures in --data'


def _pretraining(arm: Arm, scale: str, target: str, data: Mapping[str, str], seed: int) -> Run:
  in_domain = arm.begins in words().IN_DOMAIN
  chosen = (scale, *([target] if in_domain else []), arm.begins, 'pretrain', arm.size)
  name = '-'.join([*chosen[1:-2], *([arm.size] if arm.size != 'base' else []), 'pretrain'])
  root = data.get(target if in_domain else GENERAL, '')
  return Run(f'{name}/seed{seed}', 'pretrain', f'study:{",".join(chosen)}', _flags(root, seed))


def _finetuning(
  arm: Arm, scale: str, target: str, data: Mapping[str, str], seed: int, init: str, needs: str
) -> Run:
  chosen = (scale, target, arm.begins, arm.method, arm.size)
  own = dict(config_lib.fields(_loaded(chosen)))
  changed = {}
  for field, value in arm.set.items():
    if field not in own:
      raise UserError(
        f"set: {arm.method} has no field '{field}'{nearest(field, own)}; expected one by its full name, such as finetune.optim.lr"
      )
    if (plain := tuple(value) if isinstance(value, list) else value) != own[field]:
      changed[field] = plain
  name = '-'.join(
    [*chosen[1:4], *([arm.size] if arm.size != 'base' else [])]
    + [f'{k.removeprefix("finetune.")}={v}' for k, v in changed.items()]
  )
  flags = (*_flags(data.get(target, ''), seed), *([f'--config.init={init}'] if init else []))
  flags += tuple(f'--config.{k}={v}' for k, v in changed.items())
  folder = re.sub(r'[^\w.=-]+', '_', name)
  return Run(f'{folder}/seed{seed}', 'finetune', f'study:{",".join(chosen)}', flags, needs)


@functools.cache
def _loaded(chosen: tuple[str, ...]) -> ConfigDict:
  return config_lib.load(*config_lib.find_config(f'study:{",".join(chosen)}'))


def _flags(root: str, seed: int) -> tuple[str, ...]:
  return (*([f'--config.data.root={root}'] if root else []), f'--config.seed={seed}')

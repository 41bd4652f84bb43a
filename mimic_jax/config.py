"""Finds, loads, overrides and checks a config; everything wrong with it is one line that names the field."""

import dataclasses
import importlib.machinery
import importlib.util
import math
import os
import pathlib
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from mimic_jax import defaults
from mimic_jax.runtime.errors import UserError, nearest, one_of

# What may be set differently when a run is resumed: it changes how the run is carried out, not what it computes. Of where the
# data are that holds by their fingerprint, which is compared.
RESUMABLE = re.compile(
  r'^(mesh|log)\.|^profile$|\.checkpoint\.|\.data\.(threads|workers|worker_restarts|prefetch|cache|resident|on_bad_image|root)$|^data\.|'
  r'\.eval\.root$|^model\.(scan|remat|attention)$|\.max_bad_steps$'
)

# What configs of configs/ have set since there was such a field: a run from before goes on, held by its data's fingerprint.
LATER = re.compile(r'\.data\.held_out$')

# Flags that say which process of several this is, and for how long it waits for the others.
PROCESS_FLAGS = ('coordinator_address', 'num_processes', 'process_id', 'connect_seconds')


@dataclasses.dataclass(frozen=True)
class Command:
  """What the command line asked for.

  Attributes:
    config: with its overrides, checked.
    workdir: the run's folder; of several seeds, the folder that theirs are in.
    debug_step: '[STAGE:]N', a step to look at instead of a run; '' = run.
    processes: the arguments of distributed.initialize.
    seeds: one run each; () = one run, of config.seed.
  """

  config: FrozenConfigDict
  workdir: str
  debug_step: str
  processes: dict[str, Any]
  seeds: tuple[int, ...] = ()


def config_folders() -> list[pathlib.Path]:
  """Returns where configs are looked for by name: beside the package in a checkout, inside it when installed."""
  package = pathlib.Path(__file__).parent
  return [package.parent / 'configs', package / 'configs']


def config_names() -> list[str]:
  """Returns the names of the configs that come with mimic_jax."""
  files = (f for folder in config_folders() if folder.is_dir() for f in folder.glob('*.py'))
  return sorted({f.stem for f in files if not f.stem.startswith('_')})


def find_config(given: str) -> tuple[pathlib.Path, str]:
  """Returns the file and the variant that `--config=given` means: 'configs/x.py', 'configs/x.py:small', 'x', 'x:small'.

  Raises:
    UserError: when there is no such file.
  """
  name, _, variant = os.path.expanduser(given).partition(':')
  path = pathlib.Path(name)
  if path.is_file():
    return path.resolve(), variant
  stem = path.stem if path.suffix == '.py' else path.name
  for folder in config_folders():
    if (folder / f'{stem}.py').is_file() and path.parent.name in ('', 'configs'):
      return folder / f'{stem}.py', variant
  raise UserError(
    f"--config: no file '{name}'{nearest(stem, config_names())}; expected a path or one of {', '.join(config_names())}"
  )


def module(path: pathlib.Path) -> types.ModuleType:
  """Returns a config file as a module; raises whatever it does."""
  loader = importlib.machinery.SourceFileLoader(f'mimic_jax_config_{path.stem}', str(path))
  made = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
  loader.exec_module(made)
  return made


def load(path: pathlib.Path, variant: str) -> ConfigDict:
  """Runs `get_config` of a config file.

  Args:
    path: the file.
    variant: what stood behind the colon; passed when not empty.

  Raises:
    UserError: when the file can't be run or has no `get_config`.
  """
  try:
    make = getattr(module(path), 'get_config', None)
    config = make and (make(variant) if variant else make())
  except UserError:
    raise
  except Exception as e:  # a config is a program of the user's: whatever it raises is theirs to mend
    raise UserError(f'{path}: {type(e).__name__}: {" ".join(str(e).split())}') from e
  if not isinstance(config, ConfigDict) or 'stages' not in config:
    raise UserError(
      f'{path}: expected a function get_config that returns an ml_collections.ConfigDict begun with '
      'mimic_jax.defaults.base()'
    )
  if not config.get('name'):
    config.name = f'{path.stem}_{variant}' if variant else path.stem
  return config


def fields(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Yields (dotted name, value) of every field, sorted by name."""
  for key in sorted(config):
    value = config[key]
    if isinstance(value, (ConfigDict, FrozenConfigDict, dict)):
      yield from fields(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def filled(config: Mapping[str, Any]) -> ConfigDict:
  """Returns the config of an earlier run with the fields it did not have yet at their defaults.

  Args:
    config: as config.json holds it, nested dicts.
  """
  from mimic_jax import objectives

  whole = ConfigDict(dict(config))

  def fill(here: ConfigDict, usual: ConfigDict) -> None:
    for key, value in usual.items():
      if key not in here:
        here[key] = value
      elif isinstance(value, ConfigDict) and isinstance(here[key], ConfigDict):
        fill(here[key], value)
      elif isinstance(value, str) and isinstance(here[key], bool):  # model.remat was one
        with here.ignore_type():
          here[key] = 'full' if here[key] else value

  fill(whole, defaults.base())
  for section in whole.values():
    if isinstance(section, ConfigDict) and 'objective' in section:
      fill(section, objectives.defaults(section.objective))
  return whole


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Returns the fields that differ between two configs and must not when a run is resumed, as 'field: old → new'.

  A field that `old` does not have, since it is from an earlier version, counts as its default; one of LATER as the same.
  """
  had, a, b = dict(fields(old)), dict(fields(filled(old))), dict(fields(new))

  def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

  return [
    f'{name}: {plain(a.get(name, "(absent)"))} → {plain(b.get(name, "(absent)"))}'
    for name in sorted({*had, *b})
    if not RESUMABLE.search(name) and (name in had or not LATER.search(name))
    if plain(a.get(name)) != plain(b.get(name))
  ]


def stages(config: Mapping[str, Any]) -> list[str]:
  """Returns the names of the stages to run, in order.

  Raises:
    UserError: when none is named, or one has no section.
  """
  names = [s.strip() for s in config['stages'].split(',') if s.strip()]
  sections = [k for k, v in config.items() if hasattr(v, 'get') and 'objective' in v]
  if not names:
    raise UserError(f"config.stages is ''; expected one or more of {', '.join(sections)}, comma-separated")
  for name in names:
    one_of('config.stages', name, sections)
  return names


def limits(objective: str) -> tuple[dict[str, Sequence[str]], dict[str, tuple[float, float]]]:
  """Returns what fields may be, by their last two parts or one: the words, and the bounds of numbers.

  Args:
    objective: whose section is looked at; '' = none.
  """
  from mimic_jax import augment, models, objectives
  from mimic_jax.data import options

  owners = [defaults, options, models, augment, *([objectives.find(objective)] if objective else [])]
  choices = {k: v for owner in owners for k, v in owner.CHOICES.items()}
  return choices, {k: v for owner in owners for k, v in owner.RANGES.items()}


def limited_as(name: str) -> str:
  """Returns the name that `limits` has for a field: its last two parts; an `optim_x` is as `optim`."""
  return re.sub(r'^optim_\w+', 'optim', '.'.join(name.split('.')[-2:]))


def check_values(section: Mapping[str, Any], prefix: str, objective: str = '') -> None:
  """Checks the words and numbers of a section, `prefix` being its name; raises UserError as `check` does."""
  choices, ranges = limits(objective)
  for name, value in fields(section, f'{prefix}.'):
    last_two = limited_as(name)
    last = name.rsplit('.', 1)[-1]
    for key in (last_two, last):
      if key in choices:
        one_of(name, value, choices[key])
      if key in ranges and (not isinstance(value, (int, float)) or math.isinf(value)):
        raise UserError(f"{name} is '{value}'; expected a number")
      if key in ranges and not ranges[key][0] <= value <= ranges[key][1]:
        low, high = ranges[key]
        expected = f'at least {low}' if high == math.inf else f'from {low} to {high}'
        expected = f'{low}' if low == high else expected
        raise UserError(f'{name} is {value}; expected {expected}')


def check(config: Mapping[str, Any]) -> None:
  """Checks every value that can be judged without looking at data or devices.

  Raises:
    UserError: naming the first field that is wrong and what was expected.
  """
  from mimic_jax import objectives

  known = set(defaults.base())
  check_values({k: v for k, v in config.items() if k in known}, 'config')
  for name, value in config.items():
    if name in known:
      continue
    if not (hasattr(value, 'get') and 'objective' in value):
      raise UserError(f'config.{name} is neither a field nor a stage{nearest(name, known)}')
    objectives.find(value['objective'], f'config.{name}.objective')
    check_values(value, f'config.{name}', value['objective'])
  for stage in stages(config):
    s = config[stage]
    if not (s['steps'] or s['epochs']):
      raise UserError(
        f'config.{stage}.epochs is {s["epochs"]}; expected a number above 0, or config.{stage}.steps'
      )
    for key in ('mean', 'std'):
      value = tuple(s['augment'][key])
      if len(value) != 3 or min(value) < 0 or max(value) > 1 or (key == 'std' and min(value) <= 0):
        raise UserError(
          f'config.{stage}.augment.{key} is {value}; expected three numbers of 0 to 1, as pixels are here (not 0 to 255)'
          + (', above 0' if key == 'std' else '')
        )
    for key in ('rand_magnitude', 'rand_std'):
      usual = defaults.stage().augment[key]
      value = s['augment'].get(key, usual)  # an objective with augmentations of its own has none
      if value != usual and not s['augment']['rand_ops']:
        raise UserError(
          f'config.{stage}.augment.{key} is {value}, and config.{stage}.augment.rand_ops 0, which draws no operation; expected '
          f'{usual}, its default, or rand_ops=2'
        )
    for key in (k for k in s if k == 'optim' or k.startswith('optim_')):
      lr, blr = s[key]['lr'], s[key]['blr']
      if bool(lr) == bool(blr):
        raise UserError(
          f'config.{stage}.{key}.lr is {lr} and config.{stage}.{key}.blr {blr}; expected one of them above 0, the other 0: '
          'lr is the rate itself, blr that of 256 images'
        )
    for key in ('scale', 'ratio'):
      pair = s['augment'][key]
      if len(pair) != 2 or not 0 < pair[0] <= pair[1] or (key == 'scale' and pair[1] > 1):
        raise UserError(
          f'config.{stage}.augment.{key} is {tuple(pair)}; expected (low, high) with 0 < low ≤ high'
          + (' ≤ 1' if key == 'scale' else '')
        )


def check_overrides(argv: Sequence[str], section: ConfigDict, flag: str) -> None:
  """Raises UserError when `--flag.a.b=…` names a field that the section does not have."""
  known = [name for name, _ in fields(section)]
  for arg in argv:
    match = re.match(rf'--?{flag}\.([^=]+)(=.*)?$', arg)
    if not match:
      continue
    name = match[1]
    node = section
    for i, part in enumerate(name.split('.')):
      if not isinstance(node, ConfigDict) or part not in node:
        where = '.'.join(name.split('.')[:i])
        here = list(node.keys()) if isinstance(node, ConfigDict) else []
        same_leaf = [k for k in known if k.rsplit('.', 1)[-1] == name.rsplit('.', 1)[-1]]
        hint = nearest(part, here) or (
          f" (did you mean '{same_leaf[0]}'?)" if same_leaf else nearest(name, known)
        )
        raise UserError(
          f"--{flag}.{name}: there is no field '{part}' in {flag}{'.' + where if where else ''}{hint}; "
          f'its fields: {", ".join(sorted(here)) or "none, it is a value"}'
        )
      node = node[part]


def overridden(section: ConfigDict, argv: Sequence[str], flag: str) -> ConfigDict:
  """Returns a section changed by `--flag.field=value` arguments and checked.

  Args:
    section: what may be changed.
    argv: such arguments only.
    flag: its name on the command line.

  Raises:
    UserError: for an unknown field, a value of another type or out of range.
  """
  check_overrides(argv, section, flag)
  values = flags.FlagValues()
  argv = [flag, *argv]
  holder = config_flags.DEFINE_config_dict(flag, section, flag_values=values, sys_argv=argv)
  rest = _parsed(values, argv)
  if len(rest) > 1:
    raise UserError(f"'{rest[1]}' is not understood; expected --{flag}.field=value")
  _find_home(holder.value)
  check_values(holder.value, flag)
  return holder.value


def _find_home(section: ConfigDict) -> None:
  """Puts the home folder for the ~ that paths begin with, which no shell does behind a '='."""
  for key, value in section.items():
    if isinstance(value, ConfigDict):
      _find_home(value)
    elif key in ('root', 'general', 'init') and value.startswith('~'):
      section[key] = os.path.expanduser(value)


def parse(argv: Sequence[str]) -> Command:
  """Reads the command line of `mimic_jax.main`.

  Args:
    argv: as sys.argv, the program's name first.

  Returns:
    The config with its overrides, frozen and checked, and the working folder.

  Raises:
    UserError: for everything that is wrong with either.
  """
  argv = list(argv)
  given = [i for i, a in enumerate(argv) if re.match(r'--?config(=.*)?$', a)]
  helping = any(re.match(r'--?help(full|short|xml)?$', a) for a in argv)
  for arg in argv[1:]:
    if arg.startswith('-'):
      _check_flag(arg.lstrip('-').partition('=')[0])
  if not given and not helping:
    raise UserError(f'--config is missing; expected a config file or one of {", ".join(config_names())}')
  if given:
    i = given[-1]
    value = argv[i].partition('=')[2] if '=' in argv[i] else ''.join(argv[i + 1 : i + 2])
    path, variant = find_config(value)
    base = load(path, variant)
    check_overrides(argv, base, 'config')
    rest = argv[1:i] + argv[i + (1 if '=' in argv[i] else 2) :]
    # First, wherever it stood: ml_collections wants the file before the fields.
    argv = [argv[0], '--config=' + str(path) + (f':{variant}' if variant else ''), *rest]
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file(
    'config', None, 'Config file or name, with :variant.', flag_values=values, sys_argv=argv
  )
  flags.DEFINE_string('workdir', '', 'Folder of the run; default runs/<config name>.', flag_values=values)
  flags.DEFINE_string('seeds', None, 'One run each, in a folder of its own: 0,1,2.', flag_values=values)
  flags.DEFINE_string('debug_step', '', '[STAGE:]N: recompute one step with checks on.', flag_values=values)
  flags.DEFINE_string('coordinator_address', '', 'HOST:PORT of process 0.', flag_values=values)
  flags.DEFINE_integer(
    'num_processes', 0, 'Of this run; 1 = this one alone.', flag_values=values, lower_bound=0
  )
  flags.DEFINE_integer('process_id', -1, 'Of this process, from 0.', flag_values=values, lower_bound=-1)
  flags.DEFINE_integer(
    'connect_seconds', 300, 'To wait for the other processes.', flag_values=values, lower_bound=1
  )
  flags.DEFINE_bool('help', False, 'Show this help.', flag_values=values, short_name='h')
  rest = _parsed(values, argv)
  if values.help:
    if given:
      from mimic_jax import describe

      print(describe.describe(path, holder.value), flush=True)
    else:
      print(_usage(), flush=True)
    sys.exit(0)
  if len(rest) > 1:
    raise UserError(
      f"'{rest[1]}' is not understood; expected flags such as --config, --workdir or --config.field=value"
    )
  config = holder.value
  config.name = config.name or base.name
  _find_home(config)
  check(config)
  seeds = _seeds(values.seeds, argv, values.debug_step)
  which = '_seeds' if seeds else f'_seed{config.seed}' if config.seed else ''
  return Command(
    FrozenConfigDict(config),
    os.path.expanduser(values.workdir) or f'runs/{config.name}{which}'.replace(',', '_'),
    values.debug_step,
    {k: values[k].value for k in PROCESS_FLAGS},
    seeds,
  )


def _seeds(given: str | None, argv: Sequence[str], debug_step: str) -> tuple[int, ...]:
  """Returns what --seeds names, () without it; raises UserError, also for a flag that has no effect beside it."""
  if given is None:
    return ()
  words = [word.strip() for word in given.split(',')]
  if not all(re.fullmatch('[0-9]{1,9}', word) for word in words) or len(set(map(int, words))) < len(words):
    raise UserError(f"--seeds is '{given}'; expected whole numbers from 0, each once, such as 0,1,2")
  if any(re.match(r'--?config\.seed(=|$)', arg) for arg in argv):
    raise UserError('--config.seed has no effect beside --seeds; expected one of them')
  if debug_step:
    raise UserError(
      '--debug_step looks at one run; expected --config.seed=N and --workdir FOLDER/seedN instead of --seeds'
    )
  return tuple(map(int, words))


def _parsed(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
  """Sets the flags from a command line and returns what is left of it; raises UserError."""
  try:
    return values(argv)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
    raise UserError(_one_line(e)) from e


def _one_line(error: Exception) -> str:
  text = ' '.join(str(error).split())
  match = re.match(r'flag --(\w+)\.(\S+?)=(.*?): (.*)', text)
  if match:
    return f"--{match[1]}.{match[2]} is '{match[3]}'; expected a value of the field's own type ({match[4]})"
  match = re.match(r"Unknown command line flag '(.*?)'", text)
  if match:
    _check_flag(match[1])
  return text


def _check_flag(name: str) -> None:
  """Raises UserError unless a flag of that name, without its dashes, is one of `mimic train`."""
  known = ['config', 'workdir', 'seeds', 'debug_step', 'help', *PROCESS_FLAGS]
  if name.split('.')[0] not in known:
    raise UserError(
      f'--{name} is no flag{nearest(name, known)}; expected --config, --workdir, --config.field=value'
    )


def _usage() -> str:
  return (
    'usage: mimic train --config CONFIG [--workdir FOLDER] [--seeds=0,1,2] [--config.field=value …]\n'
    '         [--debug_step [STAGE:]N] [--coordinator_address HOST:PORT --num_processes N --process_id I]\n'
    '         [--connect_seconds 300]\n\n'
    f'CONFIG is a file or one of: {", ".join(config_names())}; NAME:VARIANT picks a variant.\n'
    'FOLDER holds the run (default runs/<config name>); the same command on it resumes. With --seeds it holds a run for\n'
    'each, seed0, seed1, …, one after the other.\n'
    'mimic train --config CONFIG --help prints what CONFIG is, its words and its fields.\n'
    'N is a step of the run in FOLDER to compute once more, with checks that find what is not finite; writes nothing.\n'
    'A run of several processes is found by itself under Slurm, Open MPI and on a TPU slice; elsewhere each process gets\n'
    'the same HOST:PORT of process 0, the same N and its own I. SIGTERM or SIGUSR1: a checkpoint, and exit code 75.'
  )

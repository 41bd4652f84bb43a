"""A run's folder: config.json, record.json and a folder per stage; local or remote (etils.epath)."""

import json
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from mimic_jax import config as config_lib
from mimic_jax.runtime import checkpoint, cli, files, lease
from mimic_jax.runtime.errors import UserError

PACKAGES = [
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'tensorflow-datasets',
  'ml_collections',
  'einops',
  'numpy',
  'pillow',
]


def as_dict(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config as nested plain dicts and lists, as config.json holds it."""
  return json.loads(config.to_json_best_effort())


def open_run(workdir: str, config: Mapping[str, Any]) -> tuple[epath.Path, bool]:
  """Opens a run's folder, or checks that one can be made there; `begin` makes it.

  Args:
    workdir: path or address.
    config: of the run.

  Returns:
    The folder, and whether the run had begun before.

  Raises:
    UserError: when the folder holds a run with another config (names the fields that differ), or holds something else.
  """
  if odd := sorted(set('[]*?') & set(workdir)):
    raise UserError(
      f"--workdir is '{workdir}'; expected a name without {' '.join(odd)}, which orbax takes for a pattern"
    )
  if any('\ud800' <= letter <= '\udfff' for letter in workdir):  # orbax can't take it
    raise UserError(f"--workdir is '{workdir}' in this locale; expected one of UTF-8, such as LC_ALL=C.UTF-8")
  folder = epath.Path(workdir)
  kept = folder / 'config.json'
  if kept.exists():
    old = files.read_json(kept)
    differs = config_lib.differences(old, as_dict(config))
    if differs and not _saved_anything(folder):
      return folder, False  # it failed before there was anything to go on from
    if differs:
      shown = '; '.join(differs[:5]) + (f'; and {len(differs) - 5} more' if len(differs) > 5 else '')
      raise UserError(
        f'{folder} holds a run with another config ({shown}); expected the same config, or another --workdir, where '
        f'--config.init={folder} begins with its weights and a schedule of its own'
      )
    return folder, True
  if folder.exists() and not folder.is_dir():
    raise UserError(f'--workdir {folder} is a file; expected a folder, or a new one')
  if folder.exists() and any(not _is_ours(p.name) for p in folder.iterdir()):
    raise UserError(
      f'--workdir {folder} is not empty and holds no run; expected a new or empty folder, or a run to resume'
    )
  return folder, False


def begun(folder: epath.Path) -> ConfigDict | None:
  """Returns the config of a run that has a checkpoint or a result, None where there is none."""
  kept = folder / 'config.json'
  if not kept.exists() or not _saved_anything(folder):
    return None
  return config_lib.filled(files.read_json(kept))


def _is_ours(name: str) -> bool:
  """Returns whether a file is one that a run which was killed at its very beginning leaves: a lease, half a config.json."""
  return lease.FILE in name or name.startswith('.config.json.')


def _saved_anything(folder: epath.Path) -> bool:
  """Returns whether a run has a checkpoint or a result."""
  return any(
    (stage / 'result.json').exists() or checkpoint.find(stage)
    for stage in folder.iterdir()
    if stage.is_dir() and stage.name != 'evaluations'
  )


def begin(folder: epath.Path, config: Mapping[str, Any]) -> None:
  """Makes a run's folder with its config.json; called once everything about the run has been checked.

  Raises:
    UserError: when it can't be written.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / 'config.json', as_dict(config))
  except OSError as e:
    raise UserError(f'--workdir {folder}: can not be written ({e.strerror or e})') from e


def environment() -> dict[str, Any]:
  """Returns what a result depends on besides config and data: versions, devices, git revision, command."""
  kinds: dict[str, int] = {}
  for d in jax.devices():
    kinds[d.device_kind] = kinds.get(d.device_kind, 0) + 1
  return {
    'python': platform.python_version(),
    'platform': platform.platform(),
    'versions': cli.installed(*PACKAGES),
    'devices': {'backend': jax.default_backend(), 'kinds': kinds, 'processes': jax.process_count()},
    'git': _git(),
    'command': sys.argv,
  }


def _git() -> dict[str, Any]:
  """Returns the revision of the checkout that this package stands in, and whether it was changed since."""
  here = pathlib.Path(__file__).parent

  def run(*args: str) -> str | None:
    try:
      done = subprocess.run(
        ('git', '-c', 'safe.directory=*', '-C', str(here), *args),
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
      )
    except (OSError, subprocess.TimeoutExpired):
      return None
    return done.stdout.strip() if done.returncode == 0 else None

  if run('ls-files', '--error-unmatch', str(here / 'workdir.py')) is None:
    return {'revision': 'not a checkout'}
  return {
    'revision': run('rev-parse', 'HEAD'),
    'changed': bool(run('status', '--porcelain', '--untracked-files=no')),
  }


def update_record(folder: epath.Path, **parts: Any) -> None:
  """Adds to record.json: mappings are merged a level deep, anything else replaces what was there."""
  path = folder / 'record.json'
  record = files.read_json(path) if path.exists() else {}
  for key, value in parts.items():
    old = record.get(key)
    record[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, Mapping) else value
  files.write_json(path, record)

"""Reads a run's folder as far as it has come: what is not there yet is left empty, what can't be read is said."""

import io
import json
import re
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mimic_jax.report.drawing import Drawing, read_drawing
from mimic_jax.runtime.errors import READ_ERRORS, UserError
from mimic_jax.runtime.files import read_jsonl


class Stage(NamedTuple):
  """One stage; `lines` are those of metrics.jsonl, `result` is {} until it has ended, `pictures` are by file name."""

  name: str
  folder: epath.Path
  config: dict[str, Any]
  lines: list[dict[str, Any]]
  result: dict[str, Any]
  pictures: dict[str, Drawing]


class Run(NamedTuple):
  """A run; `problems` are sentences about files that can't be read."""

  name: str
  config: dict[str, Any]
  record: dict[str, Any]
  stages: list[Stage]
  problems: list[str]


def read(workdir: epath.Path) -> Run:
  """Returns what stands in the folder `workdir`, stages in the order of the config."""
  problems: list[str] = []
  config = _json(workdir / 'config.json', problems)
  stages = []
  for name in stage_names(config):
    folder, section = workdir / name, config.get(name)
    try:
      lines = logged(folder)
    except UserError as error:
      lines = []
      problems.append(str(error))
    stages.append(
      Stage(
        name=name,
        folder=folder,
        config=section if isinstance(section, dict) else {},
        lines=lines,
        result=_json(folder / 'result.json', problems),
        pictures=_pictures(folder / 'pictures', problems),
      )
    )
  title = str(config.get('name') or workdir.name)
  return Run(title, config, _json(workdir / 'record.json', problems), stages, problems)


def logged(stage_folder: epath.Path) -> list[dict[str, Any]]:
  """Returns the lines of a stage's metrics.jsonl, which all have 'step' and 'split'; raises UserError as read_jsonl."""
  return read_jsonl(stage_folder / 'metrics.jsonl', ('step', 'split'))


def seed_folder(workdir: epath.Path, seed: int) -> epath.Path:
  """Returns the folder of one seed's run among those of several."""
  return workdir / f'seed{seed}'


def seeds(workdir: epath.Path) -> dict[int, epath.Path]:
  """Returns the folders of the seeds in a folder of several, by number; {} where it is none."""
  found = {}
  for path in workdir.iterdir() if workdir.is_dir() else ():
    match = re.fullmatch(r'seed(\d+)', path.name)
    if match and (path / 'config.json').exists():
      found[int(match[1])] = path
  return dict(sorted(found.items()))


def stage_names(config: dict[str, Any]) -> list[str]:
  """Returns the names in the comma-separated field `stages`, each once."""
  names = [name.strip() for name in str(config.get('stages') or '').split(',')]
  return list(dict.fromkeys(name for name in names if name))


def arrays(path: epath.Path, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
  """Returns the named arrays of an .npz, or None when the file is missing, unreadable or lacks one of them."""
  if not path.exists():
    return None
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as held:
      return {name: held[name] for name in names}
  except READ_ERRORS:
    return None


def _json(path: epath.Path, problems: list[str]) -> dict[str, Any]:
  if not path.exists():
    return {}
  try:
    value = json.loads(path.read_bytes())
  except ValueError:  # not JSON, or not UTF-8
    value = None
  if not isinstance(value, dict):
    problems.append(f'{path} is not a JSON object')
    return {}
  return value


def _pictures(folder: epath.Path, problems: list[str]) -> dict[str, Drawing]:
  pictures = {}
  found = folder.iterdir() if folder.exists() else ()
  for name in sorted(p.name.removesuffix('.png') for p in found if p.name.endswith('.png')):
    try:
      pictures[name] = read_drawing(folder, name)
    except UserError as error:
      problems.append(str(error))
  return pictures

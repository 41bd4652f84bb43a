"""Files that are written whole or not at all, JSON and lines of JSON, on a disk or in an object store (etils.epath)."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from mimic_jax.runtime.errors import UserError

REMOTE_SECONDS = 10.0  # between rewrites of a file in an object store, which limits writes to one object


def jsonable(value: Any) -> Any:
  """Returns `value` as what JSON can hold: arrays and device scalars as numbers or lists, NaN and ±inf as None."""
  if isinstance(value, Mapping):
    return {str(k): jsonable(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [jsonable(v) for v in value]
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if value is None or isinstance(value, (bool, int, str)):
    return value
  if hasattr(value, '__array__'):
    array = np.asarray(value)
    if array.dtype.kind == 'V':  # bfloat16 and its like, which tolist would not turn into numbers
      array = array.astype(np.float64)
    return jsonable(array.tolist())
  return str(value)


def is_remote(path: os.PathLike | str) -> bool:
  """Returns whether `path` lies in an object store (gs://, s3://), which can neither append nor rename cheaply."""
  return '://' in os.fspath(path)


def cache_folder() -> str:
  """Returns the user's folder for what can be made or fetched again; it begins with '~' where there is no home."""
  return os.path.join(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'mimic_jax')


def write_whole(path: epath.Path, content: str | bytes) -> None:
  """Writes text or bytes so that a reader sees the old file or the new one, never a part."""
  data = content if isinstance(content, bytes) else content.encode('utf-8', 'surrogateescape')
  if is_remote(path):  # one object, put at once
    path.write_bytes(data)
    return
  beside = path.parent / f'.{path.name}.{os.getpid()}'
  with open(beside, 'wb') as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())  # before the name: a machine that dies leaves the old file or the new one, too
  os.replace(beside, path)


def write_json(path: epath.Path, value: Any) -> None:
  """Writes JSON so that a reader never sees half of it."""
  write_whole(path, json.dumps(jsonable(value), indent=2, ensure_ascii=False) + '\n')


def read_json(path: epath.Path) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    UserError: when it is none.
  """
  try:
    value = json.loads(path.read_bytes().decode('utf-8', 'surrogateescape'))
  except (json.JSONDecodeError, UnicodeDecodeError) as e:
    raise UserError(f'{path}: not valid JSON ({e}); expected what mimic_jax wrote') from e
  if not isinstance(value, dict):
    raise UserError(f'{path}: not a JSON object; expected what mimic_jax wrote')
  return value


def read_jsonl(path: epath.Path, keys: Sequence[str] = ()) -> list[dict[str, Any]]:
  """Returns the lines of a jsonl; [] when there is no file. A last line torn by a crash is left out.

  Raises:
    UserError: naming the file and the line, when another line is not a JSON object or a line has not all `keys`.
  """
  path = epath.Path(path)
  if not path.exists():
    return []
  rows = path.read_bytes().decode(errors='replace').split('\n')
  while rows and not rows[-1].strip():
    rows.pop()
  lines = []
  for number, row in enumerate(rows, 1):
    try:
      line = json.loads(row)
    except json.JSONDecodeError:
      line = None
    if isinstance(line, dict):
      if lacking := [k for k in keys if k not in line]:
        raise UserError(f"{path}: line {number} has no '{lacking[0]}'; expected what mimic_jax wrote")
      lines.append(line)
    elif number < len(rows):
      raise UserError(f'{path}: line {number} is not a JSON object; expected one line per logged step')
  return lines


class JsonlWriter:
  """Writes one JSON object per line, each on disk as soon as it is written.

  An object store can't append: there the lines are kept and the file is rewritten at most every REMOTE_SECONDS, by
  `flush` and by `close`. Call `flush` before a checkpoint, so that no line older than it is lost.
  """

  def __init__(self, path: epath.Path, resume_step: int = -1):
    """Opens `path`, keeping its lines up to and with `resume_step`; −1 begins anew."""
    self._path = epath.Path(path)
    self._path.parent.mkdir(parents=True, exist_ok=True)
    kept = read_jsonl(self._path) if resume_step >= 0 else []
    self._rows = [_row(line) for line in kept if line.get('step', 0) <= resume_step]
    self._file, self._written = None, -math.inf
    write_whole(self._path, ''.join(self._rows))
    if not is_remote(self._path):
      self._rows = []
      self._file = open(self._path, 'a', encoding='utf-8', errors='surrogateescape')  # noqa: SIM115 (closed by close)

  def write(self, line: Mapping[str, Any]) -> None:
    """Adds `line`; numbers that are not finite become null."""
    if self._file is not None:
      self._file.write(_row(line))
      self._file.flush()
      return
    self._rows.append(_row(line))
    if time.monotonic() - self._written >= REMOTE_SECONDS:
      self.flush()

  def flush(self) -> None:
    """Makes sure that every line so far is in the file."""
    if self._file is not None:
      self._file.flush()
      os.fsync(self._file.fileno())
    else:
      write_whole(self._path, ''.join(self._rows))
      self._written = time.monotonic()

  def close(self) -> None:
    """Flushes and closes."""
    self.flush()
    if self._file is not None:
      self._file.close()


def _row(line: Mapping[str, Any]) -> str:
  return json.dumps(jsonable(line), ensure_ascii=False, allow_nan=False) + '\n'

"""What `mimic prepare` leaves beside TFDS's own files, so that nothing needs a pass over the pictures.

mimic_jax.json            how the set was made, and of each split the record of the source it came from
mimic_index-<split>.npz   of each picture, in order: its id, label, content hash and named targets
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mimic_jax.runtime.errors import READ_ERRORS, UserError

FORMAT = 1  # of both files


class Index(NamedTuple):
  """What is known of the n pictures of a split without reading them.

  Attributes:
    names: uint8, all ids one after the other in UTF-8.
    ends: int64 [n], where each id ends in `names`.
    labels: int32 [n], −1 where there is none, or float32 [n, K].
    hashes: uint8 [n, 32], the source's content hashes.
    targets: name -> float32 [n].
  """

  names: np.ndarray
  ends: np.ndarray
  labels: np.ndarray
  hashes: np.ndarray
  targets: dict[str, np.ndarray]

  def id(self, i: int) -> str:
    """Returns the id of picture i."""
    start = int(self.ends[i - 1]) if i else 0
    return self.names[start : int(self.ends[i])].tobytes().decode('utf-8', 'surrogateescape')


def record_path(root: str | os.PathLike[str]) -> pathlib.Path:
  """Returns where the record of a data set is."""
  return pathlib.Path(root) / 'mimic_jax.json'


def index_path(root: str | os.PathLike[str], split: str) -> pathlib.Path:
  """Returns where the index of a split is."""
  return pathlib.Path(root) / f'mimic_index-{split}.npz'


def write_index(
  path: pathlib.Path,
  ids: Sequence[str],
  labels: Sequence[int | np.ndarray],
  hashes: Sequence[str],
  targets: Mapping[str, Sequence[float]],
) -> None:
  """Writes an index.

  Args:
    path: as index_path gives it.
    ids: of the n pictures.
    labels: classes or distributions.
    hashes: SHA-256, as hexadecimal numbers.
    targets: name -> n numbers.
  """
  names = [name.encode('utf-8', 'surrogateescape') for name in ids]
  soft = np.ndim(labels[0]) > 0
  with open(path, 'wb') as f:  # opened here: given a path, NumPy adds an ending of its own
    np.savez(
      f,
      names=np.frombuffer(b''.join(names), np.uint8),
      ends=np.cumsum([len(name) for name in names], dtype=np.int64),
      labels=np.array(labels, np.float32 if soft else np.int32),
      hashes=np.frombuffer(bytes.fromhex(''.join(hashes)), np.uint8).reshape(-1, 32),
      **{f'target/{name}': np.array(values, np.float32) for name, values in targets.items()},
    )


def read_index(path: pathlib.Path) -> Index:
  """Reads what `write_index` wrote; raises UserError naming a file that isn't that."""
  try:
    with np.load(path) as found:
      arrays = {name: found[name] for name in found.files}
      targets = {k.removeprefix('target/'): v for k, v in arrays.items() if k.startswith('target/')}
      return Index(*(arrays[name] for name in Index._fields[:-1]), targets)
  except READ_ERRORS as e:
    raise UserError(f'{path}: is no index of `mimic prepare` ({e}); prepare the set again') from None


def write_record(path: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Writes a JSON file; what isn't ASCII is escaped, as the name of a file may be no valid text."""
  path.write_text(json.dumps(record, indent=1, default=lambda x: x.tolist()) + '\n', 'utf-8')


def read_record(root: str | os.PathLike[str]) -> dict[str, Any] | None:
  """Returns the record in a data set's folder; None where there is none.

  Raises:
    UserError: on a file that can't be read or is of another format.
  """
  path = record_path(root)
  try:
    found = json.loads(path.read_text('utf-8'))
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as e:
    raise UserError(f'{path}: is not readable ({e}); prepare the set again') from None
  if not isinstance(found, dict) or found.get('format') != FORMAT:
    format_here = found.get('format') if isinstance(found, dict) else None
    raise UserError(f'{path}: is of format {format_here}; expected {FORMAT}: prepare the set again')
  return found

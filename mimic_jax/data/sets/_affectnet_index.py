"""What the label files of AffectNet say of each picture, read once and kept as arrays.

The newer release has three or four little files per picture, the older a table of half a gigabyte: reading them takes
minutes (0.5 ms a picture on two busy cores), an index a moment. Which pictures of the older release are empty is kept with
it. It lies in $XDG_CACHE_HOME/mimic_jax (else ~/.cache/mimic_jax) and holds as long as the
label files do: by the time at which their folder changed last and its number of files, or the table's time and size. A
label overwritten in place in the newer release leaves both as they were, and so does a copy that keeps folders' times
(rsync -a): delete the index then. A cache that can't be written only costs time.
"""

import hashlib
import io
import json
import os
import sys
import tempfile
import tokenize
from collections.abc import Callable, Container, Sequence
from typing import NamedTuple

import numpy as np

from mimic_jax.data import files as files_lib
from mimic_jax.data.faces import alignment, cutting
from mimic_jax.runtime.errors import READ_ERRORS, UserError
from mimic_jax.runtime.files import cache_folder

CLASS_NAMES = ('neutral', 'happy', 'sad', 'surprise', 'fear', 'disgust', 'anger', 'contempt')
EXPRESSIONS = (*CLASS_NAMES, 'none', 'uncertain', 'non-face')
COLUMNS = (
  'subDirectory_filePath',
  'face_x',
  'face_y',
  'face_width',
  'face_height',
  'facial_landmarks',
  'expression',
  'valence',
  'arousal',
)
NOT_GIVEN = -2.0  # what the release writes as valence and arousal of a picture without an expression
MOST_BROKEN = 3  # rows of a table; the release has one, and with more the file is not what it is taken for
MOST_LOST = 3  # pictures of a table that are empty or missing; copies of the release lack one or two
_MANY = 20_000  # pictures from which on it is said that reading takes a while
_VERSION = 2  # of the arrays below and how they are made


class Index(NamedTuple):
  """All labelled pictures of a split, whatever their expression.

  Attributes:
    names: of the pictures: 'subDirectory_filePath' in the older release, the number that files begin with in the newer.
    expression: int8 [n], an index into EXPRESSIONS.
    valence, arousal: float32 [n], −1..1, NaN where they are not given.
    boxes: float32 [n, 4] left, top, width, height in pixels; NaN where there is none.
    points: float32 [n, 5, 2] as alignment.five_from_68 gives them; NaN where there are none.
    lines: int32 [n], of the table; 0 in the newer release.
    broken: 'file:line: why' of the rows that can't be read.
    empty: of the older release, the pictures of the eight classes whose files had 0 bytes when they were looked at.
    looked: the folder and the number of those pictures in it at that time; [] where they were not looked at.
  """

  names: list[str]
  expression: np.ndarray
  valence: np.ndarray
  arousal: np.ndarray
  boxes: np.ndarray
  points: np.ndarray
  lines: np.ndarray
  broken: list[str]
  empty: list[str]
  looked: list


_LISTS = ('broken', 'empty', 'looked')
_ARRAYS = Index._fields[1 : -len(_LISTS)]


def of_folder(annotations: str, threads: int) -> Index:
  """Returns what the `{id}_exp.npy`, `_val`, `_aro` and `_lnd` of a folder say, in the order of their numbers.

  Raises:
    UserError: on a folder without `_exp.npy`, on a file that isn't what it should be, on an expression outside 0..10.
  """
  before = os.stat(annotations).st_mtime_ns
  files = set(os.listdir(annotations))
  return _cached(annotations, [before, len(files)], lambda: _read_folder(annotations, files, threads))


def of_table(path: str) -> Index:
  """Returns what training.csv or validation.csv of the older release says, in its order.

  Raises:
    UserError: on a file that can't be read or lacks columns, on more than MOST_BROKEN rows that can't be read.
  """
  return _cached(path, _stamp_of_table(path), lambda: _read_table(path))


def empty_pictures(
  table: str, index: Index, folder: str, on_disk: Container[str], threads: int
) -> frozenset[str]:
  """Returns the pictures of the eight classes whose files have 0 bytes.

  All are looked at once, and again when there are more or fewer of them; at other times only those that were empty.

  Args:
    table: that `index` is of.
    index: from `of_table`.
    folder: where its pictures are.
    on_disk: those that are there.
    threads: that look at files.
  """
  names = [n for n, e in zip(index.names, index.expression) if e < len(CLASS_NAMES) and n in on_disk]
  looked = [os.path.realpath(folder), len(names)]
  again = index.looked == looked
  if not again and len(names) >= _MANY:
    print(f'mimic: looking for empty files among {len(names)} in {folder} once', file=sys.stderr)

  def empty(chunk: Sequence[str]) -> list[bool]:
    return [_is_empty(os.path.join(folder, name)) for name in chunk]

  asked = index.empty if again else names
  found = [name for name, is_empty in zip(asked, files_lib.in_chunks(empty, asked, threads)) if is_empty]
  if not again:
    _save(
      cache_file(table), _stamp(table, _stamp_of_table(table)), index._replace(empty=found, looked=looked)
    )
  return frozenset(found)


def _is_empty(path: str) -> bool:
  try:
    return os.stat(path).st_size == 0
  except OSError:
    return False  # missing, or for its reader to say


def _stamp_of_table(path: str) -> list[int]:
  stat = os.stat(path)
  return [stat.st_mtime_ns, stat.st_size]


def _stamp(place: str, stamp: list[int]) -> list:
  return [_VERSION, os.path.realpath(place), *stamp]


def cache_file(place: str) -> str:
  """Returns where the index of a folder or table is kept."""
  key = hashlib.sha256(os.path.realpath(place).encode('utf-8', 'surrogateescape')).hexdigest()[:20]
  return os.path.join(cache_folder(), f'affectnet-{key}.npz')


def _cached(place: str, stamp: list[int], read: Callable[[], Index]) -> Index:
  stamp = _stamp(place, stamp)
  path = cache_file(place)
  index = _load(path, stamp)
  if index is None:
    index = read()
    _save(path, stamp, index)
  return index


def _load(path: str, stamp: list) -> Index | None:
  """Returns the index if it is there, whole, and still holds; whatever is wrong with it means that it isn't there."""
  try:
    with np.load(path, allow_pickle=False) as saved:
      if json.loads(str(saved['stamp'])) != stamp:
        return None
      arrays = [saved[name] for name in _ARRAYS]
      rest = [json.loads(str(saved[name])) for name in _LISTS]
      names = saved['names'].tobytes().decode('utf-8', 'surrogateescape')
      return Index(names.split('\n') if names else [], *arrays, *rest)
  except READ_ERRORS:
    return None


def _save(path: str, stamp: list, index: Index) -> None:
  text = '\n'.join(index.names).encode('utf-8', 'surrogateescape')
  temporary = ''
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), suffix='.part', delete=False) as f:
      temporary = f.name
      np.savez(
        f,
        stamp=json.dumps(stamp),
        names=np.frombuffer(text, np.uint8),
        **{name: getattr(index, name) for name in _ARRAYS},
        **{name: json.dumps(getattr(index, name)) for name in _LISTS},
      )
    os.replace(temporary, path)  # whole or not at all, also where several processes write it
  except OSError:
    if temporary and os.path.exists(temporary):
      os.unlink(temporary)


def _read_folder(annotations: str, files: set[str], threads: int) -> Index:
  names = sorted(
    (f.removesuffix('_exp.npy') for f in files if f.endswith('_exp.npy') and not f.startswith('.')),
    key=lambda name: (len(name), name),
  )
  if not names:
    raise UserError(f"no '{{id}}_exp.npy' in '{annotations}'; expected one for each picture")
  if len(names) >= _MANY:
    print(f'mimic: reading {len(names)} labels in {annotations} once', file=sys.stderr)

  def rows(chunk: Sequence[str]) -> list[tuple[int, float, float, np.ndarray]]:
    return [_annotation(annotations, name, files) for name in chunk]

  expression, valence, arousal, points = zip(*files_lib.in_chunks(rows, names, threads))
  return Index(
    names,
    np.array(expression, np.int8),
    np.array(valence, np.float32),
    np.array(arousal, np.float32),
    np.full((len(names), 4), np.nan, np.float32),
    np.array(points, np.float32).reshape(-1, 5, 2),
    np.zeros(len(names), np.int32),
    [],
    [],
    [],
  )


def _annotation(annotations: str, name: str, files: set[str]) -> tuple[int, float, float, np.ndarray]:
  """Returns expression, valence, arousal and the five points of a picture."""
  path = os.path.join(annotations, f'{name}_exp.npy')
  expression = _number(path)
  if expression not in range(len(EXPRESSIONS)):
    raise UserError(f'{path}: the expression is {expression:g}; expected 0..{len(EXPRESSIONS) - 1}')
  affect = []
  for kind in ('val', 'aro'):
    here = f'{name}_{kind}.npy' in files
    value = _number(os.path.join(annotations, f'{name}_{kind}.npy')) if here else np.nan
    affect.append(np.nan if value == NOT_GIVEN else value)
  points = np.full((5, 2), np.nan)
  if f'{name}_lnd.npy' in files:
    path = os.path.join(annotations, f'{name}_lnd.npy')
    found = _numbers(path)
    if found.size != 136:
      raise UserError(f'{path}: has {found.size} numbers; expected 68 landmarks (x, y)')
    points = alignment.five_from_68(found.reshape(68, 2))
  return int(expression), affect[0], affect[1], points


def _numbers(path: str) -> np.ndarray:
  """Returns the numbers in a .npy file, which the release writes as text in places, as float64."""
  try:
    with open(path, 'rb') as f:
      data = f.read()  # at once: a network disk is asked once
    return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False).astype(np.float64)
  except (OSError, ValueError, TypeError, EOFError, SyntaxError, tokenize.TokenError) as e:
    why = (str(e).splitlines() or [''])[0] or type(e).__name__
    raise UserError(f'{path}: is not a .npy file of numbers ({why})') from None


def _number(path: str) -> float:
  values = _numbers(path)
  if values.size != 1:
    raise UserError(f'{path}: has {values.size} numbers; expected one')
  return float(values.item())


class _BrokenRow(Exception):  # noqa: N818  never leaves this module
  """Why a row of a table can't be read."""


def _read_table(path: str) -> Index:
  names, numbers, points, lines, broken = [], [], [], [], []
  if os.path.getsize(path) > 50_000_000:
    print(f'mimic: reading {path} once', file=sys.stderr)
  columns, width = [], 0
  try:
    # Lines split at commas, not the csv module: a stray quotation mark would swallow the rows behind it.
    with open(path, encoding='utf-8-sig', errors='surrogateescape') as f:
      for line, text in enumerate(f, 1):
        if not text.strip():
          continue
        fields = [v.strip().strip('"') for v in text.rstrip('\n').split(',')]
        if not columns:
          columns, width = cutting.columns(path, fields, COLUMNS), len(fields)
          continue
        try:
          name, row, five = _row(fields, columns, width)
        except _BrokenRow as e:
          broken.append(f'{path}:{line}: {e}')
          continue
        names.append(name)
        numbers.append(row)
        points.append(five)
        lines.append(line)
  except OSError as e:
    raise UserError(f'{path}: is not a readable csv file ({e})') from None
  if len(broken) > MOST_BROKEN:
    raise UserError(
      f"{broken[0]}, and {len(broken) - 1} more rows can't be read; expected at most {MOST_BROKEN}"
    )
  if not names:
    raise UserError(f'{path}: has no rows; expected a header and a row for each picture')
  _check_names(path, names, lines)
  table = np.array(numbers, np.float64)
  affect = np.where(table[:, 1:3] == NOT_GIVEN, np.nan, table[:, 1:3]).astype(np.float32)
  return Index(
    names,
    table[:, 0].astype(np.int8),
    affect[:, 0],
    affect[:, 1],
    table[:, 3:].astype(np.float32),
    np.array(points, np.float32),
    np.array(lines, np.int32),
    broken,
    [],
    [],
  )


def _row(fields: list[str], columns: list[int], width: int) -> tuple[str, list[float], np.ndarray]:
  """Returns the picture's name, (expression, valence, arousal, box), and its five points; raises _BrokenRow."""
  if len(fields) != width:
    raise _BrokenRow(f'{len(fields)} columns; expected {width}')
  name, *box, landmarks, expression, valence, arousal = (fields[k] for k in columns)
  if not name or name.startswith('/') or '..' in name.split('/') or '\\' in name:
    raise _BrokenRow(f"the picture is '{name[:80]}'; expected a path like '103/29a3.jpg'")
  if expression not in {str(k) for k in range(len(EXPRESSIONS))}:
    raise _BrokenRow(f"the expression is '{expression[:20]}'; expected 0..{len(EXPRESSIONS) - 1}")
  row = [float(expression)]
  for column, text in (('valence', valence), ('arousal', arousal), *zip(COLUMNS[1:5], box)):
    row.append(_float(column, text))
  return name, row, _five(landmarks)


def _float(column: str, text: str) -> float:
  """Returns a number, NaN where the field says that there is none."""
  if text in {'', 'NULL'}:
    return np.nan
  try:
    return float(text)
  except ValueError:
    raise _BrokenRow(f"{column} is '{text[:20]}'; expected a number") from None


def _five(text: str) -> np.ndarray:
  """Returns float64 [5, 2] from 'x;y;x;y;…' of 68 landmarks, NaN where there are none."""
  if text in {'', 'NULL'}:
    return np.full((5, 2), np.nan)
  try:
    values = np.array(text.split(';'), np.float64)
  except ValueError:
    raise _BrokenRow(f"facial_landmarks are '{text[:20]}…'; expected 136 numbers") from None
  if values.size != 136:
    raise _BrokenRow(f'facial_landmarks are {values.size} numbers; expected 136')
  return alignment.five_from_68(values.reshape(68, 2))


def _check_names(path: str, names: list[str], lines: list[int]) -> None:
  if len(set(names)) == len(names):
    return
  seen: dict[str, int] = {}
  for name, line in zip(names, lines):
    if name in seen:
      raise UserError(f"{path}:{line}: picture '{name}' is named a second time (first in line {seen[name]})")
    seen[name] = line

"""Pictures and their labels in tables: a row names a picture by its path from the table's folder, and its class.

    root/train.csv (or training.csv), root/valid.csv, …    a table for each split
    root/labels.csv, or a root that is a table itself      one for all: with a column 'split', or all of it is 'train'

The first row has the columns' names, among them 'id' and 'label'; others that hold numbers, or nothing, are targets by their names (a split has those of its
own table), and what else there is is passed over, with a warning where some of it is numbers. UTF-8, commas. Classes are sorted by name. Where there is no valid split, data.held_out makes one of a share of the training pictures
(data/held_out.py).
"""

import csv
import io
import math
import os
import posixpath
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mimic_jax.data import held_out
from mimic_jax.data import source as sources
from mimic_jax.data.faces import alignment, cutting
from mimic_jax.data.files import Files
from mimic_jax.data.sets import folder
from mimic_jax.runtime import remote
from mimic_jax.runtime.errors import UserError

READS = ('held_out',)
TABLE = 'labels.csv'
# of a table, and of a batch, which no target may be called
OWN = ('id', 'label', 'split', 'image', 'index', 'mask', 'bad')


class Row(NamedTuple):
  """A picture in a table: its path from the table's folder, its class, the line that says so."""

  path: str
  label: str
  place: str
  more: Mapping[str, str]  # what stands in other columns
  first: 'Row | None'  # of a picture that is named again


def build(root: str, split: str, options: Mapping[str, Any]) -> Files:
  """Returns the pictures of `split`; ids are their paths from the table's folder.

  The classes are the training split's where there is one.

  Raises:
    UserError: on a missing table or split, and naming file and line on a row that can't be meant.
  """
  place, splits = _splits(root)
  _, align = alignment.choose(options, place, 'csv')
  side = folder.held_out_side(split, splits, options)
  wanted = 'train' if side else folder.canonical(split)
  if wanted not in splits:
    raise UserError(
      f"no split '{split}' in '{root}', whose tables have {', '.join(splits)}; expected one of them"
    )
  every = splits[wanted]
  rows = [row for row in every if row.first is None]
  class_names = tuple(sorted({row.label for row in splits.get('train', rows)}))
  position = {name: k for k, name in enumerate(class_names)}
  for row in rows:
    if row.label not in position:
      raise UserError(
        f"{row.place}: label '{row.label}' has no picture to train on; expected {_some(class_names)}"
      )
  paths = [row.path for row in rows]
  there = [os.path.isfile(os.path.join(place, path)) for path in paths]
  policy = options.get('on_bad_image', 'error')
  kept, left_out = cutting.to_keep(place, paths, there, lambda k: rows[k].place, policy)
  labels = np.array([position[rows[k].label] for k in kept], np.int32)
  ids = [paths[k] for k in kept]
  targets, warnings = _numbers(every, ids)
  about: dict[str, Any] = {'left_out': left_out}
  if side:
    kept, held = held_out.part(side, place, ids, labels, class_names, options)
    ids, labels = [ids[k] for k in kept], labels[kept]
    targets = {name: values[kept] for name, values in targets.items()}
    about['held_out'], warnings = held, [*warnings, held_out.note(held)]
  record = {
    'source': 'csv',
    'root': root,
    'split': split,
    'label_rule': 'label column',
    'count': len(ids),
    'class_names': list(class_names),
    'class_counts': sources.class_counts(labels, class_names),
    'align': align,
    'warnings': warnings,
    **about,
  }
  most = options.get('max_pixels', 50_000_000)
  return Files(place, ids, ids, labels, class_names, record, most, targets=targets)


def _numbers(rows: Sequence[Row], paths: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
  """Returns the columns that hold numbers, float32 [n] of the pictures at `paths`, NaN where a cell is empty; not those that are empty altogether.

  And a warning, naming the cell, about each that is no target though it holds numbers: another of its cells is none, or a picture has two.
  """
  found, warnings = {}, []
  for name in rows[0].more:
    numbers = {row.place: _number(row.more[name]) for row in rows}
    if not any(n is not None and math.isfinite(n) for n in numbers.values()):
      continue
    values = {}
    for row in rows:
      number, first = numbers[row.place], row.first or row
      if number is None:
        odd = f"'{row.more[name]}'; expected a number, or nothing where none is known"
      elif str(number) != str(numbers[first.place]):  # NaN is like NaN
        odd = f"'{row.more[name]}', and '{first.more[name]}' in {first.place}; expected one for each picture"
      else:
        values[row.path] = number
        continue
      warnings.append(f"without {name}: {row.place}: the {name} of '{row.path}' is {odd}")
      break
    else:
      found[name] = np.array([values[path] for path in paths], np.float32)
  return {name: v for name, v in found.items() if np.isfinite(v).any()}, warnings


def _number(text: str) -> float | None:
  """Returns a cell's number, NaN of an empty one, None of any other."""
  try:
    value = float(text or 'nan')
  except ValueError:
    return None
  return None if abs(value) > np.finfo(np.float32).max else value


def fetch(root: str, split: str, options: Mapping[str, Any]) -> str:
  """Brings a table and what lies beside it and below here, or a folder with tables; returns where it is."""
  del split, options
  place, _, name = root.rstrip('/').rpartition('/')
  if name.lower().endswith('.csv'):
    return os.path.join(remote.fetched(place, 'data.root'), name)
  return remote.fetched(root, 'data.root')


def _splits(root: str) -> tuple[str, dict[str, list[Row]]]:
  """Returns the folder that paths are relative to, and the rows of each split."""
  if not root:
    raise UserError(
      "data.root is empty; source 'csv' needs a folder with train.csv or labels.csv, or such a table"
    )
  if os.path.isfile(root):
    return os.path.dirname(root) or '.', _rows(root)
  if not os.path.isdir(root):
    raise UserError(
      f"data.root '{root}' does not exist; source 'csv' looks for train.csv or labels.csv there"
    )
  here = {name.lower(): os.path.join(root, name) for name in sorted(os.listdir(root))}
  tables = {
    split: next((here[f'{name}.csv'] for name in names if f'{name}.csv' in here), '')
    for split, names in folder.SPLITS.items()
  }
  if any(tables.values()):
    return root, {split: _rows(table, split)[split] for split, table in tables.items() if table}
  if TABLE in here:
    return root, _rows(here[TABLE])
  raise UserError(
    f"no table in '{root}': looked for train.csv or {TABLE}; expected one with the columns id and label"
  )


def _rows(table: str, split: str = '') -> dict[str, list[Row]]:
  """Returns the rows of a table by split, which is the one given or what the column 'split' says."""
  lines = _lines(table)
  header = [name.strip().lower() for name in lines[0][1]] if lines else []
  if not {'id', 'label'} <= set(header) or any(name and header.count(name) > 1 for name in header):
    raise UserError(
      f'{table}:1: the first row is {_some(header) or "empty"}; expected names of columns, among them id and label, once each'
    )
  found: dict[str, list[Row]] = {}
  known: dict[str, tuple[Row, str]] = {}  # path → its first row and split
  for number, fields in lines[1:]:
    if not any(fields):
      continue
    place = f'{table}:{number}'
    if len(fields) != len(header):
      raise UserError(f'{place}: has {len(fields)} fields; expected the {len(header)} of the first row')
    said = dict(zip(header, (field.strip() for field in fields), strict=True))
    path, label = _path(said['id'], place), unicodedata.normalize('NFC', said['label'])
    to = split or folder.canonical(said.get('split', 'train'))
    for column, value in (('label', label), ('split', to)):
      if not value:
        raise UserError(f"{place}: the {column} of '{said['id']}' is empty; expected one")
    more = {name: value for name, value in said.items() if name and name not in OWN}
    first, of = known.get(path, (None, to))
    if first and (first.label, of) != (label, to):
      raise UserError(
        f"{place}: '{path}' is {label} of {to}, and {first.label} of {of} in {first.place}; expected each picture once"
      )
    row = Row(path, label, place, more, first)
    known.setdefault(path, (row, to))
    found.setdefault(to, []).append(row)
  if not found:
    raise UserError(f'{table}: has no rows but the first; expected a picture in each')
  return found


def _lines(table: str) -> list[tuple[int, list[str]]]:
  """Returns the (line number, fields) of a table."""
  try:
    with open(table, 'rb') as f:
      data = f.read()
    reader = csv.reader(io.StringIO(data.decode('utf-8-sig'), newline=''), strict=True)
    return [(reader.line_num, row) for row in reader]
  except UnicodeDecodeError as e:
    line = data.count(b'\n', 0, e.start) + 1
    raise UserError(f'{table}:{line}: is not UTF-8 ({e.reason}); expected a table that is') from None
  except csv.Error as e:
    raise UserError(
      f'{table}:{reader.line_num}: is no row of a table ({e}); expected fields with commas between them'
    ) from None
  except OSError as e:
    raise UserError(f'{table}: is not readable ({e.strerror}); expected a table') from None


def _path(name: str, place: str) -> str:
  """Returns a picture's path from the table's folder; raises UserError where it is empty or leads out."""
  path = posixpath.normpath(name) if name else ''
  if (
    not path or path.startswith(('/', '../')) or path in ('.', '..') or re.search(r'[\\\0]|^[A-Za-z]:', path)
  ):
    raise UserError(
      f"{place}: the id is '{name}'; expected the path of a picture in the table's folder or below, with '/'"
    )
  return path


def _some(names: Sequence[str]) -> str:
  return ', '.join(names[:12]) + (', …' if len(names) > 12 else '')

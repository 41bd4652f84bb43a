"""FERPlus: FER2013's faces, each labelled by ten people (Barsoum et al. 2016, arXiv 1608.01041).

Two layouts are read:
  official   FER2013Train|FER2013Valid|FER2013Test/label.csv with the PNGs beside it; no header;
             a row is: picture, its box, ten vote counts
  raw        fer2013.csv (the pixels) and fer2013new.csv (the votes), joined by row; a blank picture name means skip

The release's two label files differ in some rows, so a record names the one its labels came from.
"""

import csv
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mimic_jax.data import source as sources
from mimic_jax.data.faces import alignment, cutting
from mimic_jax.data.files import Files, find_below, is_picture, need_folder
from mimic_jax.runtime.errors import UserError, one_of

WHOLE = {'label_rule': 'argmax8'}  # options under which fewest pictures are left out

CLASS_NAMES = ('neutral', 'happiness', 'surprise', 'sadness', 'anger', 'disgust', 'fear', 'contempt')
COLUMNS = (*CLASS_NAMES, 'unknown', 'NF')  # NF: not a face
SIDE = 48  # pixels

# split -> (folder of the official layout, Usage of the raw one)
SPLITS = {
  'train': ('FER2013Train', 'Training'),
  'valid': ('FER2013Valid', 'PublicTest'),
  'test': ('FER2013Test', 'PrivateTest'),
}
SYNONYMS = {
  'val': 'valid',
  'validation': 'valid',
  'train+val': 'train+valid',
  'train+validation': 'train+valid',
}

# Pictures kept of the published release, computed from its files: layout -> base rule -> split -> pictures of each class,
# or of all where we have not counted the classes.
EXPECTED: dict[str, dict[str, dict[str, tuple[int, ...] | int]]] = {
  'official': {
    'majority': {
      'train': (8733, 7284, 3136, 3022, 2098, 116, 536, 120),
      'valid': (1180, 862, 411, 348, 289, 25, 60, 16),
      'test': 3137,
    },
    'argmax10': {
      'train': (10295, 7526, 3557, 3530, 2463, 191, 655, 168),
      'valid': (1329, 899, 458, 415, 325, 32, 71, 26),
    },
    'argmax8': {
      'train': (10377, 7537, 3583, 3559, 2476, 195, 659, 170),
      'valid': (1341, 899, 461, 419, 326, 34, 72, 27),
    },
  },
  'raw': {
    'majority': {'train': 25060, 'valid': 3199, 'test': 3153},
    'argmax10': {'train': 28389, 'valid': 3553, 'test': 3546},
    'argmax8': {'train': 28559, 'valid': 3579, 'test': 3573},
  },
}


def _winner(votes: np.ndarray) -> np.ndarray:
  """Returns the column with the most votes, of several the first, or −1 where that is no emotion or there is no vote."""
  first = votes.argmax(axis=1)
  return np.where((votes.max(axis=1) > 0) & (first < len(CLASS_NAMES)), first, -1)


def majority(votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Microsoft's rule: single votes don't count, and the winner has more than half of what remains."""
  votes = np.where(votes > 1, votes, 0)
  return np.where(2 * votes.max(axis=1) > votes.sum(axis=1), _winner(votes), -1), votes


def argmax10(votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The winner over all ten columns; pictures won by 'unknown' or 'NF' are dropped."""
  return _winner(votes), votes


def argmax8(votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The winner over the eight emotions; pictures without a vote for any are dropped."""
  return _winner(votes[:, : len(CLASS_NAMES)]), votes


# int [n, 10] -> (class 0..7 of each row or −1: dropped, the votes that count [n, 10])
RULES: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
  'majority': majority,
  'argmax10': argmax10,
  'argmax8': argmax8,
}
# soft rule -> the rule that chooses its pictures and cleans the votes
SOFT = {'soft': 'majority', 'soft_argmax10': 'argmax10', 'soft_argmax8': 'argmax8'}
LABEL_RULES = (*RULES, *SOFT)


def targets(votes: np.ndarray, rule: str) -> tuple[np.ndarray, np.ndarray]:
  """Turns votes into labels.

  Args:
    votes: int [n, 10] ≥ 0.
    rule: a key of RULES or SOFT. In a tie the first column wins, under every rule.

  Returns:
    classes int32 [n]: 0..7, or −1 where the picture is dropped; and the labels of all rows: the classes themselves, or
    float32 [n, 8] under a soft rule: the votes that count for the eight emotions, adding up to 1 (0 in dropped rows
    without any).
  """
  one_of('data.label_rule', rule, LABEL_RULES)
  classes, counted = RULES[SOFT.get(rule, rule)](votes)
  classes = classes.astype(np.int32)
  if rule in RULES:
    return classes, classes
  emotions = counted[:, : len(CLASS_NAMES)].astype(np.float64)
  return classes, (emotions / np.maximum(emotions.sum(axis=1, keepdims=True), 1)).astype(np.float32)


class Rows(NamedTuple):
  """One split as its files give it, before a label rule.

  Attributes:
    ids: 'FER2013Train/fer0000000.png', the same in both layouts.
    votes: int64 [n, 10].
    pixels: what the raw layout says of each picture, as text; None in the official layout, whose pictures are files.
    places: 'file:line' of each row, for messages.
    label_file: where the votes are from, relative to the root.
  """

  ids: list[str]
  votes: np.ndarray
  pixels: list[str] | None
  places: list[str]
  label_file: str


class Table:
  """The labelled faces of the raw layout, whose pixels a table holds (a Source): grey, repeated to three channels."""

  class_names = CLASS_NAMES
  image_shape = (SIDE, SIDE, 3)

  def __init__(
    self,
    ids: list[str],
    labels: np.ndarray,
    faces: np.ndarray,
    bad: dict[int, tuple[str, str]],
    record: dict[str, Any],
  ) -> None:
    self._ids, self._labels, self._faces, self._bad, self._record = ids, labels, faces, bad, record

  def __len__(self) -> int:
    return len(self._ids)

  def __getitem__(self, i: int) -> dict[str, Any]:
    if i in self._bad:
      raise sources.BadImage(*self._bad[i])
    image = np.repeat(self._faces[i][:, :, None], 3, axis=2)
    return {'image': image, 'label': self.label(i), 'id': self._ids[i]}

  def file_bytes(self, i: int) -> bytes:
    """Returns the picture as a PNG."""
    return sources.encode_png(self[i]['image'])

  def id(self, i: int) -> str:
    return self._ids[i]

  def label(self, i: int) -> int | np.ndarray:
    return self._labels[i] if self._labels.ndim == 2 else int(self._labels[i])

  def content_hash(self, i: int) -> str:
    return f'unreadable:{self._ids[i]}' if i in self._bad else sources.array_hash(self._faces[i])

  def record(self) -> dict[str, Any]:
    return {**self._record, 'split_hash': sources.split_hash(self._ids, self._labels)}


def build(root: str, split: str, options: Mapping[str, Any]) -> Files | Table:
  """Returns FERPlus under the label rule `options['label_rule']`.

  Args:
    root: the folder with FER2013Train and so on, or with fer2013.csv and fer2013new.csv. Official where it has both.
    split: 'train', 'valid', 'test', or several joined as in 'train+valid'.
    options: the data section; also `max_pixels`, and `on_bad_image`: with 'skip', pictures that are missing on disk are
      left to whoever reads them.

  Raises:
    UserError: on missing files, on rows that aren't as the layout says (file and line), on a missing picture, and on a
      data.align other than none: the boxes of label.csv are the whole of each picture.
  """
  rule = one_of('data.label_rule', options.get('label_rule', 'majority'), LABEL_RULES)
  parts = [one_of('the split of ferplus', s, SPLITS) for s in _canonical(split).split('+')]
  layout = _layout(root, parts)
  _, align = alignment.choose(options, root, 'ferplus')
  read = _read_official if layout == 'official' else _read_raw
  rows = read(root, parts)
  _check_ids(rows)
  classes, labels = targets(rows.votes, rule)
  kept = np.flatnonzero(classes >= 0)
  if not kept.size:
    raise UserError(f"no picture of {rows.label_file} in '{root}' has a label under label_rule '{rule}'")
  dropped = len(rows.ids) - len(kept)
  by_align, unnamed = {}, []
  if rows.pixels is None:
    here = _listing(root, parts)
    extra = sorted(name for name in here.difference(rows.ids) if is_picture(name))
    extra = [os.path.join(root, name) for name in extra]
    unnamed = cutting.unread(extra, f'{rows.label_file} does not name them')
    named = [rows.ids[i] for i in kept]
    chosen, by_align = cutting.to_keep(
      root,
      named,
      [name in here for name in named],
      lambda k: rows.places[kept[k]],
      options.get('on_bad_image', 'error'),
    )
    kept = kept[chosen]
  ids = [rows.ids[i] for i in kept]
  counts = sources.class_counts(classes[kept], CLASS_NAMES)
  record = {
    'source': 'ferplus',
    'root': root,
    'split': '+'.join(parts),
    'layout': layout,
    'label_file': rows.label_file,
    'label_rule': rule,
    'count': len(ids),
    'class_names': list(CLASS_NAMES),
    'class_counts': counts,
    'dropped': dropped,
    **({'left_out': by_align} if by_align else {}),
    'align': align,
    **_expected(layout, rule, parts, counts),
  }
  record['warnings'] += unnamed
  if rows.pixels is not None:
    faces, bad = _faces([rows.pixels[i] for i in kept], [rows.places[i] for i in kept])
    return Table(ids, labels[kept], faces, bad, record)
  # a folder that `mimic align` made holds pictures of the size it was asked for
  side = align.get('size', SIDE)
  most = options.get('max_pixels', 50_000_000)
  return Files(root, ids, ids, labels[kept], CLASS_NAMES, record, most, image_shape=(side, side, 3))


def _canonical(split: str) -> str:
  return '+'.join(SYNONYMS.get(s, s) for s in split.split('+'))


def _expected(layout: str, rule: str, parts: list[str], counts: dict[str, int]) -> dict[str, Any]:
  """Returns the published count, where there is one, with a warning where `counts`, class by class, are others."""
  known = EXPECTED[layout][SOFT.get(rule, rule)]
  published = [known[s] for s in parts if s in known]
  if len(published) < len(parts):
    return {'expected_count': None, 'warnings': []}
  what = f"ferplus {'+'.join(parts)} under '{rule}'"
  by_class = [numbers for numbers in published if isinstance(numbers, tuple)]
  if len(by_class) == len(parts):
    return cutting.held_against(what, counts, [dict(zip(CLASS_NAMES, map(sum, zip(*by_class))))])
  count, expected = sum(counts.values()), sum(n if isinstance(n, int) else sum(n) for n in published)
  differs = f'{what} has {count} pictures, the published release {expected}'
  return {'expected_count': expected, 'warnings': [] if count == expected else [differs]}


def _layout(root: str, parts: list[str]) -> str:
  """Returns 'official' or 'raw' by the files that are there; raises UserError saying what was looked for."""
  need_folder(root, 'ferplus', 'the folder that holds FERPlus', 'FER2013Train or fer2013.csv')
  wanted = [f'{SPLITS[s][0]}/label.csv' for s in parts]
  raw = ('fer2013.csv', 'fer2013new.csv')
  missing = [name for name in wanted if not os.path.isfile(os.path.join(root, name))]
  if not missing:
    return 'official'
  if all(os.path.isfile(os.path.join(root, name)) for name in raw):
    return 'raw'
  here = [name for name in raw if os.path.isfile(os.path.join(root, name))]
  also = f' ({here[0]} is there alone)' if here else ''
  if below := find_below(root, lambda place: os.path.isfile(os.path.join(place, wanted[0]))):
    also = f" (did you mean '{below}'?)"
  raise UserError(
    f"no FERPlus in '{root}': looked for {' and '.join(missing)}, or for {' with '.join(raw)}{also}"
  )


def _table(path: str) -> list[tuple[int, list[str]]]:
  """Returns the (line number, fields) of a csv's rows; blank lines at the end are left out."""
  try:
    with open(path, newline='', encoding='utf-8-sig') as f:
      reader = csv.reader(f, skipinitialspace=True)
      rows = [(reader.line_num, row) for row in reader]
  except (OSError, UnicodeDecodeError, csv.Error) as e:
    raise UserError(f'{path}: is not a readable csv file ({e})') from None
  while rows and not any(rows[-1][1]):
    rows.pop()
  if not rows:
    raise UserError(f'{path}: is empty; expected rows of votes')
  return rows


def _votes(fields: list[str], place: str) -> list[int]:
  """Returns ten vote counts; raises UserError naming `place`."""
  if len(fields) != len(COLUMNS):
    raise UserError(f'{place}: {len(fields)} vote columns; expected {len(COLUMNS)} ({", ".join(COLUMNS)})')
  for column, text in zip(COLUMNS, fields):
    text = text.strip()
    if not re.fullmatch(r'[0-9]{1,9}(\.0+)?', text):  # pandas makes 10.0 of 10
      raise UserError(f"{place}: the votes for {column} are '{text}'; expected a whole number from 0")
  return [int(float(text)) for text in fields]


def _read_official(root: str, parts: list[str]) -> Rows:
  ids, votes, places = [], [], []
  for s in parts:
    name = f'{SPLITS[s][0]}/label.csv'
    path = os.path.join(root, name)
    for line, row in _table(path):
      place = f'{path}:{line}'
      if line == 1 and COLUMNS[0] in [cell.strip().lower() for cell in row]:
        continue  # the names of the columns
      if len(row) != 2 + len(COLUMNS):
        raise UserError(
          f'{place}: {len(row)} columns; expected {2 + len(COLUMNS)}: picture, box, ten vote counts'
        )
      picture = row[0].strip()
      if not picture or os.path.basename(picture) != picture:
        raise UserError(f"{place}: the picture is '{picture}'; expected the name of a file beside label.csv")
      ids.append(f'{SPLITS[s][0]}/{picture}')
      votes.append(_votes(row[2:], place))
      places.append(place)
  return Rows(ids, np.array(votes), None, places, '+'.join(f'{SPLITS[s][0]}/label.csv' for s in parts))


def _read_raw(root: str, parts: list[str]) -> Rows:
  pixel_path, vote_path = (os.path.join(root, name) for name in ('fer2013.csv', 'fer2013new.csv'))
  pictures, labels = _table(pixel_path), _table(vote_path)
  if len(pictures) != len(labels):
    raise UserError(
      f'{vote_path} has {len(labels) - 1} rows and {pixel_path} {len(pictures) - 1}; expected as many, row for row'
    )
  at = cutting.columns(pixel_path, pictures[0][1], ('emotion', 'pixels', 'Usage'))
  vote_at = cutting.columns(vote_path, labels[0][1], ('Usage', 'Image name', *COLUMNS))
  folder_of = {usage: folder for folder, usage in SPLITS.values()}
  wanted = {SPLITS[s][1] for s in parts}
  ids, votes, pixels, places = [], [], [], []
  for (line, row), (vote_line, vote_row) in zip(pictures[1:], labels[1:]):
    place, vote_place = f'{pixel_path}:{line}', f'{vote_path}:{vote_line}'
    for where, fields, header in ((place, row, pictures[0][1]), (vote_place, vote_row, labels[0][1])):
      if len(fields) != len(header):
        raise UserError(f'{where}: {len(fields)} columns; expected {len(header)}')
    emotion, text, usage = (row[k].strip() for k in at)
    vote_usage, name, *counts = (vote_row[k].strip() for k in vote_at)
    if emotion not in {'0', '1', '2', '3', '4', '5', '6'}:
      raise UserError(f"{place}: emotion is '{emotion}'; expected 0..6")
    if usage not in folder_of:
      raise UserError(f"{place}: Usage is '{usage}'; expected one of {', '.join(folder_of)}")
    if vote_usage != usage:
      raise UserError(
        f"{vote_place}: Usage is '{vote_usage}'; expected '{usage}' as in the same row of {pixel_path}"
      )
    counts = _votes(counts, vote_place)
    if usage not in wanted or not name:
      continue
    ids.append(f'{folder_of[usage]}/{name}')
    votes.append(counts)
    pixels.append(text)
    places.append(place)
  return Rows(ids, np.array(votes, np.int64).reshape(-1, len(COLUMNS)), pixels, places, 'fer2013new.csv')


def _check_ids(rows: Rows) -> None:
  seen: dict[str, str] = {}
  for name, place in zip(rows.ids, rows.places):
    if name in seen:
      raise UserError(f"{place}: picture '{name}' is named a second time (first in {seen[name]})")
    seen[name] = place


def _listing(root: str, parts: list[str]) -> set[str]:
  """Returns the files that are there, named as ids are, from one listing of each folder."""
  return {
    f'{SPLITS[s][0]}/{entry.name}' for s in parts for entry in os.scandir(os.path.join(root, SPLITS[s][0]))
  }


def _faces(texts: list[str], places: list[str]) -> tuple[np.ndarray, dict[int, tuple[str, str]]]:
  """Parses pixel columns: uint8 [n, 48, 48], and (place, why) of the rows that hold something else."""
  faces = np.zeros((len(texts), SIDE, SIDE), np.uint8)
  bad: dict[int, tuple[str, str]] = {}
  for k, text in enumerate(texts):
    try:
      values = bytes(map(int, text.split()))
    except ValueError:
      bad[k] = (places[k], 'has pixels other than whole numbers 0..255')
      continue
    if len(values) != SIDE * SIDE:
      bad[k] = (places[k], f'has {len(values)} pixels; expected {SIDE * SIDE}')
      continue
    faces[k] = np.frombuffer(values, np.uint8).reshape(SIDE, SIDE)
  return faces, bad

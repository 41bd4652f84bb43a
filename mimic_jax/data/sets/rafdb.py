"""RAF-DB, basic emotions: faces from the web, each labelled by about 40 people (Li et al. 2017, CVPR; 7 classes).

Two layouts are read:
  official   EmoLabel/list_patition_label.txt (spelled so in the release; 'partition' is read, too) with lines
             'train_00001.jpg 5', and Image/aligned/train_00001_aligned.jpg, 100×100, or what `mimic align` made there of
             Image/original
  folders    train/<class>/ and test/<class>/ with pictures; a class is its number 1..7 or its name ('happy' as 'happiness')

Where Annotation/manual/train_00001_manu_attri.txt is there (official), gender, race and age are targets: the numbers of its sixth to eighth line.

A picture's id is 'train_00001' in both, and pictures come in the order of their ids in both, so that a run doesn't depend
on the layout. There is no validation split.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mimic_jax.data import classes
from mimic_jax.data import files as files_lib
from mimic_jax.data import source as sources
from mimic_jax.data.faces import alignment, cutting
from mimic_jax.data.files import Files, is_picture
from mimic_jax.data.sets import folder
from mimic_jax.runtime.errors import UserError, one_of

CLASS_NAMES = ('surprise', 'fear', 'disgust', 'happiness', 'sadness', 'anger', 'neutral')
LISTS = ('EmoLabel/list_patition_label.txt', 'EmoLabel/list_partition_label.txt')
ALIGNED = 'Image/aligned'
SPLITS = ('train', 'test')
SYNONYMS = {'training': 'train', 'testing': 'test'}

# Pictures of each class in the release.
EXPECTED = {
  'train': dict(zip(CLASS_NAMES, (1290, 281, 717, 4772, 1982, 705, 2524))),
  'test': dict(zip(CLASS_NAMES, (329, 74, 160, 1185, 478, 162, 680))),
}

ATTRIBUTES = 'Annotation/manual'
# What the release's lines behind the five points hold, with how many numbers; gender is 0 male, 1 female, 2 unsure (NaN here), race 0 Caucasian,
# 1 African-American, 2 Asian, age 0 to 3 years, 4 to 19, 20 to 39, 40 to 69, 70 and above.
OF_PERSON = {'gender': 3, 'race': 3, 'age': 5}
UNSURE = 2

# Pictures of one size are cropped on the device, which is sent each of them once instead of every crop enlarged to the
# model's size. Above this side in pixels crops made by the reader are the smaller load.
MOST_WHOLE = 256

_LISTED = re.compile(r'((train|test)_\d+)(?:_aligned)?\.(?:jpg|png)')
_NAMED = re.compile(r'((train|test)_\d+)(_aligned)?')


class Rows(NamedTuple):
  """The pictures of one split.

  Attributes:
    ids: 'train_00001'.
    paths: relative to the root.
    labels: 0..6.
    places: where each got its label, for messages: 'file:line', or the picture's own path.
    label_file: the list, or the split's folder, that the labels are from, relative to the root.
    warnings: what was found odd.
  """

  ids: list[str]
  paths: list[str]
  labels: list[int]
  places: list[str]
  label_file: str
  warnings: list[str]


def build(root: str, split: str, options: Mapping[str, Any]) -> Files:
  """Returns the pictures of one split of RAF-DB.

  `image_shape` is the pictures' size where all have one of at most 256 pixels a side, as the official ones have
  (100×100), by their headers: such pictures travel whole and are cropped on the device. Otherwise it is None.

  Args:
    root: the folder with EmoLabel and Image, or with train and test. Official where it has both.
    split: 'train' or 'test'.
    options: the data section; `align`, `max_pixels`, `threads`, and `on_bad_image`: with 'skip', pictures that are
      missing on disk are left to whoever reads them.

  Raises:
    UserError: on missing files, on lines or folders that aren't as the layout says, on a missing picture, on two
      pictures with one id, on 'valid', on a data.align that would cut faces out (the release gives no boxes here).
  """
  split = _split(split)
  layout = _layout(root)
  own = layout == 'official' and _aligned_here(root)
  _, align = alignment.choose(options, os.path.join(root, ALIGNED) if own else root, 'rafdb')
  rows = _read_official(root, split) if layout == 'official' else _read_folders(root, split)
  if not rows.ids:
    raise UserError(f"no picture of split '{split}' in '{root}': '{rows.label_file}' names none")
  _check_ids(rows)
  on_disk, unnamed = _on_disk(root, rows) if layout == 'official' else ([True] * len(rows.ids), [])
  policy = options.get('on_bad_image', 'error')
  kept, left_out = cutting.to_keep(root, rows.paths, on_disk, rows.places.__getitem__, policy)
  rows, on_disk = _chosen(rows, kept), [on_disk[k] for k in kept]
  if layout == 'official' and align['align'] == 'none':
    align['of_release'] = 'aligned by its authors'
  record = {
    'source': 'rafdb',
    'root': root,
    'split': split,
    'layout': layout,
    **_described(split, rows),
    'left_out': left_out,
    'align': align,
  }
  record['warnings'] += [*rows.warnings, *unnamed]
  there = [os.path.join(root, path) for path, here in zip(rows.paths, on_disk) if here]
  attributes = {}
  if layout == 'official':
    try:
      attributes = _attributes(root, rows.ids, options.get('threads', 8))
    except UserError as e:  # whoever asks for them is told that they are not offered
      record['warnings'].append(f'without gender, race and age: {e}')
  return Files(
    root,
    rows.paths,
    rows.ids,
    np.array(rows.labels, np.int32),
    CLASS_NAMES,
    record,
    options.get('max_pixels', 50_000_000),
    image_shape=_one_size(there, options.get('threads', 8)),
    targets=attributes,
  )


def _attributes(root: str, ids: Sequence[str], threads: int) -> dict[str, np.ndarray]:
  """Returns gender, race and age of the pictures, float32 [n], NaN where unsure; {} where the release's attribute files are not there.

  Raises:
    UserError: on a missing file where others are there, and on one that isn't as the layout says.
  """
  folder = os.path.join(root, ATTRIBUTES)
  if not os.path.isdir(folder):
    return {}

  def read(some: Sequence[str]) -> list[list[float]]:
    return [_of_person(os.path.join(folder, f'{name}_manu_attri.txt')) for name in some]

  columns = np.array(files_lib.in_chunks(read, ids, threads), np.float32).T
  return dict(zip(OF_PERSON, columns))


def _of_person(path: str) -> list[float]:
  try:
    with open(path, encoding='utf-8-sig') as f:
      lines = f.read().split('\n')
  except (OSError, UnicodeDecodeError) as e:
    why = e.strerror if isinstance(e, OSError) else 'not text'
    raise UserError(f'{path}: can not be read ({why}); expected the attributes of a picture') from None
  found = []
  for number, (name, count) in enumerate(OF_PERSON.items(), 6):
    text = lines[number - 1].strip() if len(lines) >= number else ''
    if text not in map(str, range(count)):
      raise UserError(f"{path}:{number}: the {name} is '{text[:20]}'; expected 0..{count - 1}")
    found.append(np.nan if (name, text) == ('gender', str(UNSURE)) else float(text))
  return found


def _aligned_here(root: str) -> bool:
  """Returns whether `mimic align` made the aligned pictures, not their authors."""
  return os.path.isfile(os.path.join(root, ALIGNED, alignment.FILE))


def _described(split: str, rows: Rows) -> dict[str, Any]:
  """Returns the record's entries about labels and counts."""
  counts = sources.class_counts(np.array(rows.labels, np.int32), CLASS_NAMES)
  return {
    'label_file': rows.label_file,
    'label_rule': 'one label',
    'count': len(rows.ids),
    'class_names': list(CLASS_NAMES),
    'class_counts': counts,
    **cutting.held_against(f'rafdb {split}', counts, [EXPECTED[split]]),
  }


def _split(split: str) -> str:
  split = SYNONYMS.get(split, split)
  if split in folder.SPLITS['valid']:
    raise UserError(
      f"the split of rafdb is '{split}', but RAF-DB has no validation split; expected one of {', '.join(SPLITS)}"
    )
  return one_of('the split of rafdb', split, SPLITS)


def _layout(root: str) -> str:
  """Returns 'official' or 'folders' by what is there; raises UserError saying what was looked for."""
  files_lib.need_folder(root, 'rafdb', 'the folder that holds RAF-DB', 'EmoLabel or train')
  lists = any(os.path.isfile(os.path.join(root, name)) for name in LISTS)
  aligned = os.path.isdir(os.path.join(root, ALIGNED))
  if lists and aligned:
    return 'official'
  if any(os.path.isdir(os.path.join(root, name)) for s in SPLITS for name in folder.SPLITS[s]):
    return 'folders'
  also = ''
  if lists or aligned:
    also = f' ({"the list" if lists else ALIGNED} is there alone)'
    if lists and os.path.isdir(os.path.join(root, 'Image', 'original')):
      folders = ' '.join(shlex.quote(os.path.join(root, name)) for name in ('Image/original', ALIGNED))
      also = f' (the originals are there: `mimic align {folders}` makes aligned ones)'
  elif below := files_lib.find_below(
    root, lambda place: any(os.path.isfile(os.path.join(place, n)) for n in LISTS)
  ):
    also = f" (did you mean '{below}'?)"
  raise UserError(
    f"no RAF-DB in '{root}': looked for {LISTS[0]} with {ALIGNED}, or for train/1..7 and test/1..7{also}"
  )


def _read_official(root: str, split: str) -> Rows:
  """Reads the list; the lines of the other split are checked as well, and its pictures count as named."""
  name = next(name for name in LISTS if os.path.isfile(os.path.join(root, name)))
  path = os.path.join(root, name)
  try:
    with open(path, encoding='utf-8-sig') as f:
      lines = f.read().rstrip().splitlines()
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f'{path}: is not a readable list ({e})') from None
  files = _by_number(os.path.join(root, ALIGNED))
  ids, paths, labels, places = [], [], [], []
  for number, line in enumerate(lines, 1):
    place, words = f'{path}:{number}', re.split(r'[,\s]+', line.strip())
    found = _LISTED.fullmatch(words[0]) if len(words) == 2 else None
    if found is None:
      raise UserError(f"{place}: the line is '{line.strip()[:60]}'; expected one like 'train_00001.jpg 5'")
    if words[1] not in {'1', '2', '3', '4', '5', '6', '7'}:
      raise UserError(f"{place}: the class is '{words[1][:20]}'; expected 1..7")
    if found[2] == split:
      ids.append(found[1])
      paths.append(f'{ALIGNED}/{files.get(found[1], f"{found[1]}_aligned.jpg")}')
      labels.append(int(words[1]) - 1)
      places.append(place)
  return _by_id(Rows(ids, paths, labels, places, name, []))


def _by_number(folder: str) -> dict[str, str]:
  """Returns the pictures of a folder by their ids: copies have other endings, or not the release's '_aligned'."""
  names = [name for name in files_lib.listed(folder)[1] if is_picture(name)]
  found = {}
  # the release's own last
  for name in sorted(names, key=lambda name: ('_aligned' in name, name.endswith('.jpg'))):
    if named := _NAMED.fullmatch(os.path.splitext(name)[0]):
      found[named[1]] = name
  return found


def _read_folders(root: str, split: str) -> Rows:
  name = next((n for n in folder.SPLITS[split] if os.path.isdir(os.path.join(root, n))), None)
  odd = []
  if name is None and split == 'test':  # a layout in circulation calls the official test split so
    for held in folder.SPLITS['valid']:
      stems = (
        os.path.basename(file) for file in files_lib.walk(os.path.join(root, held)) if is_picture(file)
      )
      if os.path.isdir(os.path.join(root, held)) and (first := next(stems, '')).startswith('test_'):
        name, odd = (
          held,
          [f"'{os.path.join(root, held)}' is read as the test split, as which its files are named ({first})"],
        )
  if name is None:
    raise UserError(
      f"no split '{split}' in '{root}': looked for a folder {' or '.join(folder.SPLITS[split])} with class folders 1..7"
    )
  base = os.path.join(root, name)
  ids, paths, labels, places, loose, foreign = [], [], [], [], [], []
  folders: dict[int, str] = {}
  for file in files_lib.pictures(base):
    class_folder, _, inside = file.partition('/')
    if not inside:
      loose.append(file)
      continue
    label = _class_of(class_folder, base)
    if folders.setdefault(label, class_folder) != class_folder:
      both = f"'{folders[label]}' and '{class_folder}'"
      raise UserError(f'{base}: the folders {both} are one class, {CLASS_NAMES[label]}; expected one folder')
    named = _NAMED.fullmatch(os.path.splitext(os.path.basename(file))[0])
    if named and named[2] != split:
      foreign.append(file)
    ids.append(named[1] if named else f'{name}/{file}')
    paths.append(f'{name}/{file}')
    labels.append(label)
    places.append(os.path.join(base, file))
  warnings = cutting.unread([os.path.join(base, file) for file in loose], 'they lie in no class folder')
  if foreign:
    warnings.append(
      f"{len(foreign)} pictures in '{base}' have names of the other split and are read all the same; the first is "
      f'{foreign[0]}'
    )
  return _by_id(Rows(ids, paths, labels, places, name, [*odd, *warnings]))


def _class_of(name: str, base: str) -> int:
  """Returns 0..6 for a folder's name: the release's number or a class by any of its names."""
  if name in {'1', '2', '3', '4', '5', '6', '7'}:
    return int(name) - 1
  label = classes.match(CLASS_NAMES, [name])[0]
  if label < 0:
    raise UserError(
      f"class folder '{os.path.join(base, name)}' is not of RAF-DB; expected 1..7 or {', '.join(CLASS_NAMES)}"
    )
  return label


def _by_id(rows: Rows) -> Rows:
  return _chosen(rows, sorted(range(len(rows.ids)), key=rows.ids.__getitem__))


def _chosen(rows: Rows, index: Sequence[int]) -> Rows:
  kept = ([values[k] for k in index] for values in (rows.ids, rows.paths, rows.labels, rows.places))
  return Rows(*kept, rows.label_file, rows.warnings)


def _check_ids(rows: Rows) -> None:
  for k in range(1, len(rows.ids)):
    if rows.ids[k] == rows.ids[k - 1]:
      raise UserError(
        f"{rows.places[k]}: picture '{rows.ids[k]}' comes a second time (first in {rows.places[k - 1]})"
      )


def _on_disk(root: str, rows: Rows) -> tuple[list[bool], list[str]]:
  """Returns which pictures are there, and a warning about those, of no other split, that the list doesn't name."""
  split = rows.ids[0].partition('_')[0]
  others = tuple(f'{name}_' for name in SPLITS if name != split)
  here = {name for name in files_lib.pictures(os.path.join(root, ALIGNED)) if not name.startswith(others)}
  named = [os.path.basename(path) for path in rows.paths]
  unnamed = [os.path.join(root, ALIGNED, name) for name in sorted(here.difference(named))]
  return [name in here for name in named], cutting.unread(unnamed, f'{rows.label_file} does not name them')


def _one_size(paths: Sequence[str], threads: int) -> tuple[int, int, int] | None:
  """Returns (H, W, 3) if all pictures that can be read have that size, of at most 256 pixels a side, by their headers."""

  def sizes(chunk: Sequence[str]) -> list[tuple[int, int] | None]:
    return [_size(path) for path in chunk]

  some = set(sizes(paths[:8])) - {None}
  if len(some) > 1 or any(max(size) > MOST_WHOLE for size in some):
    return None
  found = set(files_lib.in_chunks(sizes, paths, threads)) - {None}
  if len(found) != 1:
    return None
  height, width = found.pop()
  return (height, width, 3) if max(height, width) <= MOST_WHOLE else None


def _size(path: str) -> tuple[int, int] | None:
  """Returns (height, width) of the upright picture; None where it can't be read, which is for its reader to say."""
  try:
    with sources.reading(path), Image.open(path) as image:
      return sources.upright_size(image)
  except sources.BadImage:
    return None

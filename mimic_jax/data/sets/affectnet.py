"""AffectNet: faces from the web, each labelled by one annotator with an expression, valence and arousal (arXiv 1708.03985).

Both releases are read:
  newer   train_set|val_set/images/{id}.jpg with annotations/{id}_exp.npy and, where they are there, _val, _aro and _lnd
  older   training.csv and validation.csv (in Manually_Annotated_file_lists or the root) over Manually_Annotated_Images;
          faces are cut out by the face_* columns (data.align = 'auto' is box(0) here)

Seven classes, or eight with contempt (data.classes). Pictures of another class, and those labelled none, uncertain or
non-face, are left out and counted; so are up to three pictures of the older release that are empty or missing. The
training set is far from balanced: data.sampler = 'balanced'. There is no test split; results are on 'valid'.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mimic_jax.data import files as files_lib
from mimic_jax.data import source as sources
from mimic_jax.data.faces import alignment, cutting
from mimic_jax.data.files import Files
from mimic_jax.data.sets import _affectnet_index as affectnet_index
from mimic_jax.data.sets import folder
from mimic_jax.data.sets._affectnet_index import CLASS_NAMES, EXPRESSIONS, Index
from mimic_jax.runtime.errors import UserError, one_of

READS = ('classes',)  # of options.OF_SOME

# split -> (folder of the newer release, table of the older one)
SPLITS = {'train': ('train_set', 'training.csv'), 'valid': ('val_set', 'validation.csv')}
SYNONYMS = {name: split for split in SPLITS for name in folder.SPLITS[split]}
TABLE_FOLDERS = ('', 'Manually_Annotated_file_lists', 'Manually_Annotated/Manually_Annotated_file_lists')
PICTURE_FOLDERS = (
  'Manually_Annotated_Images',
  'Manually_Annotated/Manually_Annotated_Images',
  'Manually_Annotated',
)

# Pictures of each class; contempt differs between copies of the release (287,568 or 287,651; 4,000 or 3,999 in all).
_TRAIN = (74874, 134415, 25459, 14090, 6378, 3803, 24882)
EXPECTED = {'train': [(*_TRAIN, 3667), (*_TRAIN, 3750)], 'valid': [(500,) * 8, (*(500,) * 7, 499)]}


class Split(NamedTuple):
  """One split as its files give it, before classes are chosen.

  Attributes:
    release: 'newer' or 'older'.
    label_file: where the labels are from, relative to the root.
    folder: the pictures' folder, relative to the root.
    index: of all labelled pictures.
    on_disk: the pictures that are there, relative to `folder`.
    files: of each picture of the newer release by its number, wherever it lies and however it ends; {} in the older.
    also_named: pictures that the other split's table names.
    empty: pictures of 0 bytes; known of the older release only.
  """

  release: str
  label_file: str
  folder: str
  index: Index
  on_disk: set[str]
  files: dict[str, str]
  also_named: frozenset[str]
  empty: frozenset[str]

  def file(self, k: int) -> str:
    """Returns picture k, relative to `folder`."""
    name = self.index.names[k]
    return name if self.release == 'older' else self.files.get(name, f'{name}.jpg')

  def path(self, k: int) -> str:
    """Returns picture k, relative to the root."""
    return f'{self.folder}/{self.file(k)}'

  def place(self, root: str, k: int) -> str:
    """Returns what gives picture k its label, for messages."""
    if self.release == 'older':
      return f'{os.path.join(root, self.label_file)}:{self.index.lines[k]}'
    return os.path.join(root, os.path.dirname(self.label_file), f'{self.index.names[k]}_exp.npy')


def build(root: str, split: str, options: Mapping[str, Any]) -> Files:
  """Returns the pictures of one split of AffectNet.

  Pictures have 'valence' and 'arousal' (float32, −1..1, NaN where not given) beside the label where the files have them.
  `image_shape` is None, since no file says that all pictures have one size, except under five_point.

  Args:
    root: the folder with train_set and val_set, or with the older release's tables. Newer where it has both.
    split: 'train' or 'valid'.
    options: the data section; `classes`, `align` ('auto' is none for the newer release, box(0) for the older; five_point
      goes by the landmarks of either), `align_size`, `max_pixels`, `threads`, and `on_bad_image`: with 'skip', pictures
      that are missing on disk are left to whoever reads them.

  Raises:
    UserError: on missing files, on labels that can't be read, on a missing picture, on 'test', on a data.align that the
      label files don't allow.
  """
  split = _split(split)
  count = options.get('classes', 7)
  if count not in (7, 8):
    raise UserError(f'data.classes is {count}; expected 7, or 8 with contempt')
  whole = _read(root, split, options.get('threads', 8))
  older = whole.release == 'older'
  align, align_record = alignment.choose(
    options,
    root,
    'affectnet',
    auto='box(0)' if older else 'none',
    kinds=('none', 'box', 'five_point') if older else ('none', 'five_point'),
  )
  index = whole.index
  kept, faceless = _with_faces(root, whole, np.flatnonzero(index.expression < count), align)
  kept, lost = _without_lost(root, whole, kept, options.get('on_bad_image', 'error'))
  chosen, by_align = cutting.to_keep(
    root,
    [whole.path(k) for k in kept],
    [whole.file(k) in whole.on_disk for k in kept],
    lambda k: whole.place(root, kept[k]),
    options.get('on_bad_image', 'error'),
  )
  kept = kept[chosen]
  if not kept.size:
    raise UserError(f"no picture of {whole.label_file} in '{root}' has one of the {count} classes")
  paths = [whole.path(k) for k in kept]
  described = _described(split, whole, kept, count)
  described['left_out'].update(by_align)
  if lost:
    described['left_out']['empty or missing'] = len(lost)
    described['warnings'].append(
      f'left out, {len(lost)} pictures that {whole.label_file} names: {", ".join(lost)}'
    )
  described['warnings'] += [*faceless, *_unnamed(root, whole)]
  size = options.get('align_size', 224)
  return Files(
    root,
    paths,
    [index.names[k] for k in kept] if older else paths,
    index.expression[kept].astype(np.int32),
    CLASS_NAMES[:count],
    {'source': 'affectnet', 'root': root, 'split': split, **described, 'align': align_record},
    options.get('max_pixels', 50_000_000),
    image_shape=(size, size, 3) if align.kind == 'five_point' else None,
    align=align,
    boxes=index.boxes[kept] if align.kind == 'box' else None,
    points=index.points[kept] if align.kind == 'five_point' else None,
    targets=_targets(index, kept),
  )


def _described(split: str, whole: Split, kept: np.ndarray, count: int) -> dict[str, Any]:
  """Returns the record's entries about labels and counts."""
  class_names, expression = CLASS_NAMES[:count], whole.index.expression
  counts = sources.class_counts(expression[kept], class_names)
  published = [dict(zip(class_names, numbers)) for numbers in EXPECTED[split]]
  compared = cutting.held_against(f'affectnet {split}', counts, published[: 1 if count == 7 else 2])
  return {
    'layout': whole.release,
    'label_file': whole.label_file,
    'label_rule': f'expression, {count} classes',
    'count': len(kept),
    'class_names': list(class_names),
    'class_counts': counts,
    'left_out': {name: int((expression == k).sum()) for k, name in enumerate(EXPRESSIONS) if k >= count},
    **compared,
    'warnings': compared['warnings'] + [f'passed over a broken row: {row}' for row in whole.index.broken],
  }


def _split(split: str) -> str:
  if split in folder.SPLITS['test']:
    raise UserError(
      f"the split of affectnet is '{split}', but AffectNet's test set has no published labels; expected train or valid"
    )
  return one_of('the split of affectnet', SYNONYMS.get(split, split), SPLITS)


def _read(root: str, split: str, threads: int) -> Split:
  """Reads the labels of a split by the release that is there; raises UserError saying what was looked for."""
  files_lib.need_folder(root, 'affectnet', 'the folder that holds AffectNet', 'train_set or training.csv')
  newer, table = SPLITS[split]
  parts = [f'{newer}/annotations', f'{newer}/images']
  missing = [name for name in parts if not os.path.isdir(os.path.join(root, name))]
  if not missing:
    index = affectnet_index.of_folder(os.path.join(root, parts[0]), threads)
    on_disk = set(files_lib.pictures(os.path.join(root, parts[1])))
    label_files = f'{parts[0]}/*_exp.npy'
    by_number = {os.path.splitext(os.path.basename(file))[0]: file for file in sorted(on_disk, reverse=True)}
    return Split('newer', label_files, parts[1], index, on_disk, by_number, frozenset(), frozenset())
  label_file = _find_table(root, table)
  if label_file is None:
    also = f' ({newer} is there, {missing[0]} is not)' if os.path.isdir(os.path.join(root, newer)) else ''
    raise UserError(
      f"no AffectNet in '{root}': looked for {' and '.join(parts)}, or for {table} there or in {TABLE_FOLDERS[1]}{also}"
    )
  table_path = os.path.join(root, label_file)
  index = affectnet_index.of_table(table_path)
  pictures = _picture_folder(root, label_file, index)
  also_named: frozenset[str] = frozenset()
  other = _find_table(root, SPLITS['valid'][1])
  if split == 'train' and other is not None:
    also_named = frozenset(affectnet_index.of_table(os.path.join(root, other)).names)
  place = os.path.join(root, pictures)
  on_disk = _there(place, index.names, split)
  empty = affectnet_index.empty_pictures(table_path, index, place, on_disk, threads)
  return Split('older', label_file, pictures, index, on_disk, {}, also_named, empty)


def _find_table(root: str, name: str) -> str | None:
  paths = (os.path.join(place, name) for place in TABLE_FOLDERS)
  return next((path for path in paths if os.path.isfile(os.path.join(root, path))), None)


def _picture_folder(root: str, label_file: str, index: Index) -> str:
  """Returns the folder in which the table's pictures lie; raises UserError saying where they were looked for."""
  first = {name.partition('/')[0] for name in index.names[:100]}
  for place in PICTURE_FOLDERS:
    if any(os.path.exists(os.path.join(root, place, name)) for name in first):
      return place
  raise UserError(
    f"no pictures of {label_file} in '{root}': looked for {index.names[0]} in {', '.join(PICTURE_FOLDERS)}"
  )


def _there(place: str, names: Sequence[str], split: str) -> set[str]:
  """Returns the files on disk, whatever their ending; of the small split only in the folders that it names."""
  if split == 'train':
    return set(files_lib.files(place))
  found: set[str] = set()
  for inside in {os.path.dirname(name) for name in names}:
    try:
      found.update(f'{inside}/{name}' if inside else name for name in os.listdir(os.path.join(place, inside)))
    except OSError:
      continue  # its pictures are missing, then
  return found


def _with_faces(
  root: str, whole: Split, kept: np.ndarray, align: alignment.Align
) -> tuple[np.ndarray, list[str]]:
  """Leaves out the pictures without the box or the points that `align` goes by, with a warning."""
  if align.kind == 'none':
    return kept, []
  if align.kind == 'box':
    boxes = whole.index.boxes[kept]
    usable = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
  else:
    usable = np.isfinite(whole.index.points[kept]).all(axis=(1, 2))
  lost = kept[~usable]
  if not lost.size:
    return kept, []
  what = 'box of a face' if align.kind == 'box' else 'landmarks'
  first = whole.place(root, lost[0])
  return kept[usable], [
    f'left out under {align}, {len(lost)} pictures without {what}; the first is that of {first}'
  ]


def _without_lost(
  root: str, whole: Split, kept: np.ndarray, on_bad_image: str
) -> tuple[np.ndarray, list[str]]:
  """Leaves out the older release's few pictures that are empty or missing; returns also the path and fault of each.

  Copies of the release have an empty file and lack another. With more than MOST_LOST the copy is damaged: all are kept,
  for whoever reads them to say, or if that is not to happen an empty one is an error here (a missing one is in to_keep).
  """
  if whole.release == 'newer':
    return kept, []
  absent = [k for k in kept if whole.file(k) not in whole.on_disk]
  by_align = cutting.left_out(root) if absent else frozenset()
  faults = {k: 'does not exist' for k in absent if whole.path(k) not in by_align}
  faults |= {k: 'is empty (0 bytes)' for k in kept if whole.file(k) in whole.empty}
  said = [f'{os.path.join(root, whole.path(k))} {faults[k]}' for k in sorted(faults)]
  if len(said) <= affectnet_index.MOST_LOST:
    return kept[~np.isin(kept, list(faults))], said
  if on_bad_image == 'error':
    first = min(faults)
    raise UserError(
      f'{os.path.join(root, whole.path(first))}: {faults[first]}, but {whole.place(root, first)} names it (and '
      f'{len(said) - 1} more); expected at most {affectnet_index.MOST_LOST} such pictures (data.on_bad_image = '
      "'skip' goes on without)"
    )
  return kept, []


def _unnamed(root: str, whole: Split) -> list[str]:
  """Returns a warning about pictures without a label; the older release's are all looked at for training only."""
  if whole.release == 'older' and whole.label_file.endswith(SPLITS['valid'][1]):
    return []
  named = {whole.file(k) for k in range(len(whole.index.names))}
  extra = sorted(filter(files_lib.is_picture, whole.on_disk - named - whole.also_named))
  paths = [os.path.join(root, whole.folder, name) for name in extra]
  return cutting.unread(paths, f'{whole.label_file} has no label of them')


def _targets(index: Index, kept: np.ndarray) -> dict[str, np.ndarray]:
  """Returns valence and arousal of the kept pictures, where any of them is given."""
  named = {'valence': index.valence[kept], 'arousal': index.arousal[kept]}
  return {name: values for name, values in named.items() if np.isfinite(values).any()}

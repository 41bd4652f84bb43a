"""A folder of pictures: one subfolder per class, or no classes at all.

    root/<split>/<class>/….jpg    classes, sorted by name; deeper folders inside a class belong to it
    root/<split>/….jpg            no classes: labels are −1 (pre-training)
    root/<class>/….jpg, root/….jpg   the same without splits; this is split 'train', if root has no folder named as a split

Files are known by their ending, in either case; hidden files and folders are passed over.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mimic_jax.data import source as sources
from mimic_jax.data.faces import alignment
from mimic_jax.data.files import ENDINGS, Files
from mimic_jax.runtime.errors import UserError

SPLITS = {
  'train': ('train', 'training'),
  'valid': ('valid', 'val', 'validation'),
  'test': ('test', 'testing'),
}


def build(root: str, split: str, options: Mapping[str, Any]) -> Files:
  """Returns the pictures of `split` under `root`; ids are paths relative to `root`.

  The classes are the training split's where there is one, so that a class missing from another split moves no label.

  Raises:
    UserError: on a missing or empty folder, on pictures beside class folders, on a class that training lacks, and on
      a data.align that would cut faces out: a folder says nothing of where they are.
  """
  if not root:
    raise UserError("data.root is empty; source 'folder' needs the path of a folder of pictures")
  if not os.path.isdir(root):
    raise UserError(f"data.root '{root}' is not a folder; source 'folder' looks for pictures there")
  _, align = alignment.choose(options, root, 'folder')
  base = _split_folder(root, split)
  folders, loose = _scan(base)
  found = {name: list(_pictures(os.path.join(base, name))) for name in folders}
  found = {name: files for name, files in found.items() if files}
  if loose and found:
    raise UserError(
      f"'{base}' holds pictures ('{loose[0]}') beside class folders ('{next(iter(found))}'); expected the one or the other"
    )
  if not loose and not found:
    raise UserError(f"no pictures in '{base}': looked for files and class folders with {_endings()} inside")
  class_names = _class_names(root, base, tuple(found))
  position = {name: k for k, name in enumerate(class_names)}
  prefix = os.path.relpath(base, root).replace(os.sep, '/')
  prefix = '' if prefix == '.' else prefix + '/'
  if loose:
    ids, labels = [prefix + name for name in loose], [-1] * len(loose)
  else:
    ids = [f'{prefix}{name}/{file}' for name, files in found.items() for file in files]
    labels = [position[name] for name, files in found.items() for _ in files]
  labels = np.array(labels, np.int32)
  record = {
    'source': 'folder',
    'root': root,
    'split': split,
    'label_rule': 'folder names' if class_names else 'none',
    'count': len(ids),
    'class_names': list(class_names),
    'class_counts': sources.class_counts(labels, class_names),
    'align': align,
  }
  return Files(root, ids, ids, labels, class_names, record, options.get('max_pixels', 50_000_000))


def _endings() -> str:
  return ', '.join(sorted(ENDINGS))


def _split_folder(root: str, split: str) -> str:
  """Returns the folder of a split: its name or a synonym, or `root` itself where nothing is named as a split."""
  synonyms = next((names for names in SPLITS.values() if split in names), (split,))
  for name in (split, *synonyms):
    if os.path.isdir(os.path.join(root, name)):
      return os.path.join(root, name)
  known = {name for names in SPLITS.values() for name in names}
  here = sorted(e.name for e in os.scandir(root) if not e.name.startswith('.'))
  splits = [name for name in here if name in known]
  if split in SPLITS['train'] and not splits:
    return root
  what = f'it holds {", ".join(splits or here[:5])}' + (', …' if not splits and len(here) > 5 else '')
  raise UserError(f"no split '{split}' in '{root}': looked for a folder {' or '.join(synonyms)}; {what}")


def _scan(folder: str) -> tuple[list[str], list[str]]:
  """Returns the names of the subfolders and of the pictures in a folder, both sorted."""
  folders, pictures = [], []
  with os.scandir(folder) as entries:
    for entry in entries:
      if entry.name.startswith('.'):
        continue
      if os.path.splitext(entry.name)[1].lower() in ENDINGS and not entry.is_dir():
        pictures.append(entry.name)
      elif entry.is_dir():
        folders.append(entry.name)
  return sorted(folders), sorted(pictures)


def _pictures(folder: str) -> Iterator[str]:
  """Yields the pictures in a folder and below, relative to it: its own first, sorted, then each subfolder's."""
  folders, pictures = _scan(folder)
  yield from pictures
  for name in folders:
    yield from (f'{name}/{file}' for file in _pictures(os.path.join(folder, name)))


def _holds_pictures(folder: str) -> bool:
  """Says whether there is a picture in a folder or below; stops at the first, since training folders are large."""
  with os.scandir(folder) as entries:
    for entry in entries:
      if entry.name.startswith('.'):
        continue
      if entry.is_dir():
        if _holds_pictures(entry.path):
          return True
      elif os.path.splitext(entry.name)[1].lower() in ENDINGS:
        return True
  return False


def _class_names(root: str, base: str, found: tuple[str, ...]) -> tuple[str, ...]:
  """Returns the classes of the training split, or those found where there is no labelled training split."""
  train = next((p for p in (os.path.join(root, name) for name in SPLITS['train']) if os.path.isdir(p)), base)
  if not found or os.path.samefile(train, base):
    return found
  names = tuple(name for name in _scan(train)[0] if _holds_pictures(os.path.join(train, name)))
  unknown = [name for name in found if name not in names]
  if names and unknown:
    raise UserError(f"class folder '{os.path.join(base, unknown[0])}' has no counterpart in '{train}'")
  return names or found

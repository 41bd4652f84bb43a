"""A folder of pictures: one subfolder per class, or no classes at all.

    root/<split>/<class>/….jpg    classes, sorted by name; deeper folders inside a class belong to it
    root/<split>/….jpg            no classes: labels are −1 (pre-training)
    root/<class>/….jpg, root/….jpg   the same without splits; this is split 'train', if root has no folder named as a split

Where nothing is named as a valid split, data.held_out makes one of a share of the training pictures (data/held_out.py).
Files are known by their ending, in either case; hidden files and folders are passed over.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mimic_jax.data import held_out
from mimic_jax.data import source as sources
from mimic_jax.data.faces import alignment
from mimic_jax.data.faces.cutting import unread
from mimic_jax.data.files import ENDINGS, LABEL_FILES, Files, is_picture, listed, need_folder, prefix_of, walk
from mimic_jax.runtime.errors import UserError

READS = ('held_out',)
SPLITS = {
  'train': ('train', 'training'),
  'valid': ('valid', 'val', 'validation'),
  'test': ('test', 'testing'),
}
# a folder's name that is like a split's, as 'train_set' and 'fold1' are
_LIKE_A_SPLIT = re.compile(
  r'(^|[^a-z])(train|training|val|valid|validation|test|testing|dev|eval|fold)(?![a-z])'
)


def build(root: str, split: str, options: Mapping[str, Any]) -> Files:
  """Returns the pictures of `split` under `root`; ids are paths relative to `root`.

  The classes are the training split's where there is one, so that a class missing from another split moves no label.

  Raises:
    UserError: on a missing or empty folder, on pictures beside class folders, on a class that training lacks, and on
      a data.align that would cut faces out: a folder says nothing of where they are.
  """
  need_folder(root, 'folder', 'the path of a folder of pictures', 'pictures')
  _, align = alignment.choose(options, root, 'folder')
  side = held_out_side(split, listed(root)[0], options)
  base = split_folder(root, 'train' if side else split)
  folders, names = listed(base)
  loose, others = [n for n in names if is_picture(n)], [n for n in names if not is_picture(n)]
  found: dict[str, list[str]] = {}  # class → its pictures, relative to base
  for name in folders:
    files = [f'{name}/{file}' for file in walk(os.path.join(base, name))]
    if pictures := [file for file in files if is_picture(file)]:
      found[_class_name(name, base)] = pictures
    others += [file for file in files if not is_picture(file)]
  if loose and found:
    raise UserError(
      f"'{base}' holds pictures ('{loose[0]}') beside class folders ('{next(iter(found))}'); expected the one or the other"
    )
  if not loose and not found:
    raise UserError(
      f"no pictures in '{base}': looked for files and class folders with {', '.join(sorted(ENDINGS))} inside"
    )
  class_names = _class_names(root, base, tuple(found))
  position = {name: k for k, name in enumerate(class_names)}
  prefix = prefix_of(root, base)
  if loose:
    ids, labels = [prefix + name for name in loose], [-1] * len(loose)
  else:
    ids = [prefix + file for files in found.values() for file in files]
    labels = [position[name] for name, files in found.items() for _ in files]
  labels = np.array(labels, np.int32)
  about, warnings = {}, _of_others(base, others)
  if side:
    kept, about = held_out.part(side, root, ids, labels, class_names, options)
    ids, labels = [ids[k] for k in kept], labels[kept]
    about, warnings = {'held_out': about}, [*warnings, held_out.note(about)]
  record = {
    'source': 'folder',
    'root': root,
    'split': split,
    'label_rule': 'folder names' if class_names else 'none',
    'count': len(ids),
    'class_names': list(class_names),
    'class_counts': sources.class_counts(labels, class_names),
    'align': align,
    'warnings': warnings,
    **about,
  }
  return Files(root, ids, ids, labels, class_names, record, options.get('max_pixels', 50_000_000))


def canonical(split: str) -> str:
  """Returns a split's name without its synonyms: 'valid' for 'val', 'validation'; another one as it is."""
  return next((name for name, names in SPLITS.items() if split.lower() in names), split)


def held_out_side(split: str, here: Iterable[str], options: Mapping[str, Any]) -> str:
  """Returns 'train' or 'valid' where that split is to be made by holding pictures out, '' else; `here`: the splits that are there."""
  side = canonical(split)
  wanted = options.get('held_out', 0) and side in ('train', 'valid')
  return side if wanted and 'valid' not in map(canonical, here) else ''


def _of_others(base: str, files: list[str]) -> list[str]:
  """Returns a warning about files with endings that are no picture's nor any label file's."""
  odd = [file for file in files if os.path.splitext(file)[1].lower() not in LABEL_FILES]
  endings = ', '.join(sorted({os.path.splitext(file)[1].lower() or 'none' for file in odd}))
  return unread([os.path.join(base, file) for file in odd], f"their endings are no picture's ({endings})")


def split_folder(root: str, split: str) -> str:
  """Returns the folder of a split: its name or a synonym in any case, or `root` where nothing is named as a split."""
  synonyms = next((names for names in SPLITS.values() if split in names), (split,))
  here = listed(root)[0]
  for name in (split, *synonyms):
    for folder in here:
      if folder == name or folder.lower() == name:
        return os.path.join(root, folder)
  known = {name for names in SPLITS.values() for name in names}
  splits = [name for name in here if name.lower() in known]
  if split in SPLITS['train'] and not splits:
    if len(here) > 1 and all(_LIKE_A_SPLIT.search(name.lower()) for name in here):
      raise UserError(
        f"'{root}' holds {', '.join(here[:5])}, named like splits and not like classes; expected train, valid and test "
        '(a link by that name will do), or class folders'
      )
    return root
  what = f'it holds {", ".join(splits or here[:5])}' + (', …' if not splits and len(here) > 5 else '')
  way = (
    f" (--config.STAGE.eval.splits={splits[-1].lower()} measures on that one, '' on none)" if splits else ''
  )
  raise UserError(f"no split '{split}' in '{root}': looked for a folder {' or '.join(synonyms)}; {what}{way}")


def _class_name(name: str, base: str) -> str:
  """Returns a class by its folder's name, its letters composed (NFC); raises UserError unless it is UTF-8."""
  try:
    name.encode()
  except UnicodeEncodeError:
    raise UserError(
      f"class folder {os.fsencode(name)!r} in '{base}' is not UTF-8; expected a name that is"
    ) from None
  return unicodedata.normalize('NFC', name)


def _class_names(root: str, base: str, found: tuple[str, ...]) -> tuple[str, ...]:
  """Returns the classes of the training split, or those found where there is no labelled training split."""
  train = next((os.path.join(root, n) for n in listed(root)[0] if n.lower() in SPLITS['train']), base)
  if not found or os.path.samefile(train, base):
    return found
  # stops at the first
  held = (n for n in listed(train)[0] if any(map(is_picture, walk(os.path.join(train, n)))))
  names = tuple(_class_name(name, train) for name in held)
  unknown = [name for name in found if name not in names]
  if names and unknown:
    raise UserError(f"class folder '{os.path.join(base, unknown[0])}' has no counterpart in '{train}'")
  return names or found

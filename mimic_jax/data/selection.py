"""A part of a source, or a source whose classes are numbered as a model has them."""

import functools
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mimic_jax.data import classes
from mimic_jax.data import source as sources
from mimic_jax.data.source import Source
from mimic_jax.runtime.errors import UserError

MOST_NAMED = 3  # of what a message lists


class Selected:
  """Some pictures of a source, in their order, with labels translated to other class numbers (a Source).

  Args:
    source: the whole.
    index: int [n], which pictures.
    columns: for each of the new classes its number in the source, −1 where the source lacks it; None keeps the labels.
    class_names: of the new classes; () with columns = None.
    about: what to add to the record.
    labels: int [n], in place of the source's own; None keeps those.

  Attributes:
    classes_absent: those of `class_names` that the source does not have.
  """

  def __init__(
    self,
    source: Source,
    index: np.ndarray,
    columns: Sequence[int] | None = None,
    class_names: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
    labels: np.ndarray | None = None,
  ) -> None:
    self._source = source
    self._index = np.asarray(index, np.int64)
    self._columns = None if columns is None else tuple(columns)
    self._about = dict(about or {})
    self._labels = labels
    self.class_names = tuple(source.class_names) if columns is None else tuple(class_names)
    self.image_shape = source.image_shape
    if hasattr(source, 'file_bytes') and hasattr(source, 'read'):  # what Cached goes by
      self.file_bytes = self._file_bytes
    self.classes_absent = tuple(n for n, old in zip(class_names, columns or ()) if old < 0)
    if columns is not None:
      self._new = np.full(len(source.class_names), -1, np.int64)
      for new, old in enumerate(columns):
        if old >= 0:
          self._new[old] = new

  @functools.cached_property
  def targets(self) -> dict[str, np.ndarray]:
    """What the source offers, of the pictures that are selected."""
    return {name: values[self._index] for name, values in sources.targets_of(self._source).items()}

  def __len__(self) -> int:
    return len(self._index)

  def __getitem__(self, i: int) -> dict[str, Any]:
    return {**self._source[self._at(i)], 'label': self.label(i)}

  def read(self, i: int, data: bytes) -> dict[str, Any]:
    return {**self._source.read(self._at(i), data), 'label': self.label(i)}

  def _at(self, i: int) -> int:
    return int(self._index[i])

  def open(self, i: int, data: bytes | None = None) -> Image.Image:
    if data is not None:
      return self._source.open(self._at(i), data)
    return sources.open_picture(self._source, self._at(i))

  def _file_bytes(self, i: int) -> bytes:
    return self._source.file_bytes(self._at(i))

  def id(self, i: int) -> str:
    return self._source.id(self._at(i))

  def label(self, i: int) -> int | np.ndarray:
    if self._labels is not None:
      return int(self._labels[i])
    label = self._source.label(self._at(i))
    if self._columns is None:
      return label
    if np.ndim(label) == 0:
      return int(self._new[label]) if label >= 0 else -1
    kept = np.array([label[old] if old >= 0 else 0.0 for old in self._columns], np.float32)
    return kept / max(float(kept.sum()), np.finfo(np.float32).tiny)

  def content_hash(self, i: int) -> str:
    return self._source.content_hash(self._at(i))

  def record(self) -> dict[str, Any]:
    n = len(self)
    labels = [self.label(i) for i in range(n)]
    return {
      **self._source.record(),
      'count': n,
      'class_names': list(self.class_names),
      'class_counts': sources.class_counts(sources.dominant(labels), self.class_names),
      'split_hash': sources.split_hash([self.id(i) for i in range(n)], labels),
      **self._about,
    }


def for_classes(source: Source, class_names: Sequence[str], field: str) -> Source:
  """Returns a source whose labels are numbered as `class_names`, matched by name.

  Pictures of a class that is not among them are left out; the record says which and how many, and which of
  `class_names` the source has no pictures of.

  Args:
    source: with labels.
    class_names: of the model.
    field: what chose the source, for errors.

  Raises:
    UserError: when no class is in both.
  """
  if tuple(source.class_names) == tuple(class_names):
    return source
  if not source.class_names:
    raise UserError(f'{field} has no labels; expected the classes {", ".join(class_names)}')
  columns = classes.match(source.class_names, class_names)
  shared = [k for k in columns if k >= 0]
  if not shared:
    raise UserError(
      f'{field} has the classes {", ".join(source.class_names)}; expected at least one of those of the model, '
      f'{", ".join(class_names)}'
    )
  dominant = sources.dominant(source.label(i) for i in range(len(source)))
  index = np.flatnonzero(np.isin(dominant, shared))
  left_out = {
    name: int((dominant == k).sum()) for k, name in enumerate(source.class_names) if k not in shared
  }
  about = {
    'classes_matched': {
      class_names[new]: source.class_names[old] for new, old in enumerate(columns) if old >= 0
    },
    'classes_left_out': left_out,
    'classes_absent': [name for name, old in zip(class_names, columns) if old < 0],
  }
  return Selected(source, index, columns, class_names, about)


def for_training(source: Source, fraction: float, label_noise: float, seed: int) -> Source:
  """Returns what of a source is trained on: a fraction of each class, a share of whose labels is wrong.

  Which pictures these are depends on the seed and on each picture's id alone: whoever asks, in whatever process, gets the same. The record
  has both, and its split hash is of those labels.

  Args:
    source: the training pictures.
    fraction: of the pictures of each class (of all, where there are none) that are kept, one at least; 1 = the source itself.
    label_noise: share of the labels of each class, of those kept, that are made another class's, each as likely.
    seed: of both.

  Raises:
    UserError: on groups of pictures, which are no longer whole, and on noise without classes or in distributions.
  """
  if fraction >= 1 and not label_noise:
    return source
  if hasattr(source, 'group'):
    raise UserError(
      f'data.fraction is {fraction:g} and data.label_noise {label_noise:g}, and the pictures are in groups; expected 1 and 0'
    )
  labels = [source.label(i) for i in range(len(source))] if source.class_names else []
  soft = any(np.ndim(label) for label in labels)
  if label_noise and (soft or len(source.class_names) < 2):
    rule = source.record().get('label_rule')
    what = (
      f'labels are distributions{f" (data.label_rule={rule})" if rule else ""}'
      if soft
      else f'there are {len(source.class_names)} classes'
    )
    raise UserError(
      f'data.label_noise is {label_noise:g}, and {what}; expected 0, or two or more classes and one for each picture'
    )
  classes = sources.dominant(labels) if labels else np.zeros(len(source), np.int64)
  draws = np.array([_draws(seed, source.id(i)) for i in range(len(source))]).reshape(-1, 3)
  index, about = np.arange(len(source)), {}
  if fraction < 1:
    index = _share_of_each(classes, draws[:, 0], fraction, least=1)
    about['fraction'] = {'share': fraction, 'seed': seed, 'count': len(index), 'of': len(source)}
  if not label_noise:
    return Selected(source, index, about=about)
  given, draws = classes[index], draws[index]
  labelled, made = np.flatnonzero(given >= 0), given.copy()
  wrong = labelled[_share_of_each(given[labelled], draws[labelled, 1], label_noise)]
  K = len(source.class_names)
  made[wrong] = (given[wrong] + 1 + (draws[wrong, 2] * (K - 1)).astype(np.int64)) % K
  about['label_noise'] = {
    'share': label_noise,
    'seed': seed,
    'count': len(wrong),
    'of': len(labelled),
  }
  said = (
    f'data.label_noise: {len(wrong):,} of {len(labelled):,} training labels were made those of another class'
  )
  about['warnings'] = [*source.record().get('warnings', []), said]
  return Selected(source, index, about=about, labels=made)


def _draws(seed: int, name: str) -> tuple[float, float, float]:
  """Returns a picture's own three numbers in [0, 1)."""
  digest = hashlib.sha256(f'{seed}:{name}'.encode('utf-8', 'surrogateescape')).digest()
  return tuple(int.from_bytes(digest[k : k + 6], 'big') / 2.0**48 for k in (0, 6, 12))


def _share_of_each(classes: np.ndarray, draws: np.ndarray, share: float, least: int = 0) -> np.ndarray:
  """Returns in order which of int [n] are that share of each class: those with the smallest draws.

  Rounded so that the whole is that share of all, too, where each class rounded by itself may be off by half a picture for each.
  """
  chosen, before = [np.zeros(0, np.int64)], 0
  for k in np.unique(classes):
    own = np.flatnonzero(classes == k)
    first, before = int(share * before + 0.5), before + len(own)
    count = max(least, int(share * before + 0.5) - first)
    chosen.append(own[np.argsort(draws[own], kind='stable')[:count]])
  return np.sort(np.concatenate(chosen))


def listed(splits: Mapping[str, Source], path: str) -> dict[str, Source]:
  """Returns the pictures of one or more splits that a list file names.

  A line's first word (words are separated by white space or commas; one with blanks stands in "quotes") names a picture by its id, its file name or its file
  name without ending, as '_aligned' may be missing, too; what stands behind it is not read. Empty lines and lines that
  begin with '#' are passed over; a picture named twice counts once, and such lines are counted in the record. Names that no split has are counted in the records: a list of the whole set also names
  what a label rule leaves out.

  Args:
    splits: name -> source.
    path: of the list.

  Returns:
    The part of each split that has any of them.

  Raises:
    UserError: on a list that can't be read or is empty, a line that names several pictures of a split, and when most
      names are in none of the splits.
  """
  places = {split: _places(source) for split, source in splits.items()}
  found: dict[str, dict[int, int]] = {split: {} for split in splits}
  missing: list[str] = []
  repeated = 0
  for number, word in _first_words(path):
    hits = 0
    for split, source in splits.items():
      # some lists put the class in front
      names = (*_names(word), *_names(re.sub(r'^\d+_', '', os.path.basename(word))))
      here = next((places[split][name] for name in names if name in places[split]), set())
      hits += len(here)
      if len(here) > 1:
        ids = ', '.join(source.id(i) for i in sorted(here)[:MOST_NAMED])
        raise UserError(
          f"{path}:{number}: '{word}' names {len(here)} pictures ({ids}, …); expected a whole id"
        )
      for i in here:
        repeated += i in found[split]
        found[split].setdefault(i, number)
    if not hits:
      missing.append(f"'{word}' (line {number})")
  first = ', '.join(missing[:MOST_NAMED]) + (', …' if len(missing) > MOST_NAMED else '')
  total = sum(map(len, found.values()))
  if len(missing) > total:
    like = ', '.join(f"'{source.id(0)}' ({split})" for split, source in splits.items() if len(source))
    raise UserError(
      f'{path}: {len(missing)} of {len(missing) + total} names are in none of the splits {", ".join(splits)}: {first}; '
      f'expected ids or file names like {like}'
    )
  parts: dict[str, Source] = {}
  for split in (split for split in splits if found[split]):
    about: dict[str, Any] = {
      'list': os.path.basename(path),
      'count': len(found[split]),
      'of': len(splits[split]),
    }
    if repeated:
      about['repeated_lines'] = repeated
    if missing:
      about |= {'not_there': len(missing), 'first_not_there': first}
    # The warnings are about the whole.
    parts[split] = Selected(
      splits[split], np.array(sorted(found[split])), about={'subset': about, 'warnings': []}
    )
  return parts


def _places(source: Source) -> dict[str, set[int]]:
  """Returns by each name that may be meant the pictures that have it."""
  places: dict[str, set[int]] = {}
  for i in range(len(source)):
    for name in _names(source.id(i)):
      places.setdefault(name, set()).add(i)
  return places


def _first_words(path: str) -> list[tuple[int, str]]:
  """Returns (line number, first word) of a list's lines; raises UserError where there are none."""
  try:
    with open(path, encoding='utf-8-sig') as f:
      lines = f.read().splitlines()
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f'{path}: is not a readable list of pictures ({e})') from None
  words = [(n, re.match(r'\s*(?:"([^"]*)"|([^\s,]*))', line)) for n, line in enumerate(lines, 1)]
  words = [
    (n, word[1] or word[2]) for n, word in words if word[1] or (word[2] and not word[2].startswith('#'))
  ]
  if not words:
    raise UserError(f'{path}: names no picture; expected an id or a file name in each line')
  return words


def _names(word: str) -> list[str]:
  """Returns by which names a picture may be called, from the whole id to the bare stem."""
  base = word.replace('\\', '/').rsplit('/', 1)[-1]
  stem = os.path.splitext(base)[0]
  return list(dict.fromkeys([word, base, stem, stem.removesuffix('_aligned')]))

"""Any data set that TensorFlow Datasets has prepared in ArrayRecord, read without TensorFlow.

    root/<name>/<version>/, root/<name>/<config>/<version>/   as TFDS lays them out; root '' is TFDS's own folder

What `mimic prepare` wrote knows its ids, labels and content hashes by an index, and carries the record of the
source it came from. Of any other set (imagenet2012, …) the features are found by their types, and a label is read from its
record when it is asked for.
"""

import functools
import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from PIL import Image

from mimic_jax.data import source as sources
from mimic_jax.data.arrayrecord import prepared
from mimic_jax.data.arrayrecord import tfds_sets as sets
from mimic_jax.data.arrayrecord.prepared import Index
from mimic_jax.data.arrayrecord.tfds_sets import Features, Part
from mimic_jax.data.faces import alignment
from mimic_jax.data.options import defaults
from mimic_jax.runtime import remote
from mimic_jax.runtime.errors import UserError

READS = ('classes', 'name')  # of options.OF_SOME

_UNREAD = -2  # a label that was not read yet


class _once(functools.cached_property):  # noqa: N801
  """A cached property that is made once, whichever threads ask for it first; Python 3.12's has no lock."""

  _lock = threading.RLock()

  def __get__(self, instance: Any, owner: Any = None) -> Any:
    with self._lock:
      return super().__get__(instance, owner)


class Tfds:
  """Pictures of a data set in ArrayRecord (a Source).

  Args:
    folder: of the data set's version.
    split: as TFDS has it: 'train', 'train[:90%]+valid'.
    parts: what `split` is, in order.
    features: which features are what.
    class_names: of the labels.
    image_shape: (H, W, 3) where all pictures have that size; one that hasn't is bad.
    indexed: whether `mimic prepare`'s index is there.
    record: what record() gives, less what only the index knows.
    max_pixels: a picture with more is bad.
  """

  def __init__(
    self,
    folder: str,
    split: str,
    parts: Sequence[Part],
    features: Features,
    class_names: tuple[str, ...],
    image_shape: tuple[int, int, int] | None,
    indexed: bool,
    record: dict[str, Any],
    max_pixels: int,
  ) -> None:
    self.class_names, self.image_shape = class_names, image_shape
    self._folder, self._split, self._parts, self._features = folder, split, tuple(parts), features
    self._indexed, self._record, self._max_pixels = indexed, record, max_pixels
    self._ends = np.cumsum([part.count for part in self._parts])

  def __getstate__(self) -> dict[str, Any]:
    """Leaves out open files and what was read from them: a process that reads opens its own."""
    return {k: v for k, v in self.__dict__.items() if k not in ('_records', '_index', '_labels_read')}

  def __len__(self) -> int:
    return int(self._ends[-1])

  @_once
  def _records(self) -> Sequence[bytes]:
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    return sets.builder_of(self._folder).as_data_source(self._split, deserialize_method=raw)

  @_once
  def _index(self) -> Index:
    return _joined(
      [(prepared.read_index(prepared.index_path(self._folder, p.split)), p) for p in self._parts]
    )

  @_once
  def _labels_read(self) -> np.ndarray:
    return np.full(len(self), _UNREAD, np.int32)

  def _number(self, i: int) -> tuple[str, int]:
    """Returns of which split picture i is, and which one there."""
    if not 0 <= i < len(self):
      raise IndexError(i)
    k = int(np.searchsorted(self._ends, i, side='right'))
    part = self._parts[k]
    return part.split, part.first + i - int(self._ends[k] - part.count)

  def _path(self, i: int) -> str:
    """Returns picture i's name in messages."""
    split, number = self._number(i)
    return f'{self._folder}: {split} {number}' + (f' ({self._index.id(i)})' if self._indexed else '')

  def _example(self, i: int, *names: str) -> dict[str, Any]:
    """Returns features of picture i, pictures encoded; raises BadImage on a record that can't be read."""
    path = self._path(i)
    with sources.reading(path):
      record = self._records[i]
      try:
        skipped = {name: tfds.decode.SkipDecoding() for name in names if name == self._features.image}
        return sets.only(self._folder, names).deserialize_example_np(record, decoders=skipped)
      except DecodeError as e:
        raise ValueError(e) from None

  def __getitem__(self, i: int) -> dict[str, Any]:
    return self.read(i)

  @property
  def targets(self) -> dict[str, np.ndarray]:
    return self._index.targets if self._indexed else {}

  def read(self, i: int, data: bytes | None = None) -> dict[str, Any]:
    """Returns picture i, from `data` where its encoded bytes are in memory already."""
    data = self.file_bytes(i) if data is None else data
    image = sources.decode_image(self._path(i), self._max_pixels, data)
    if self.image_shape is not None and image.shape != self.image_shape:
      height, width = self.image_shape[:2]
      raise sources.BadImage(
        self._path(i), f'is {image.shape[1]}x{image.shape[0]}, expected {width}x{height}'
      )
    targets = {name: values[i] for name, values in self.targets.items()}
    return {'image': image, 'label': self.label(i), 'id': self.id(i), **targets}

  def open(self, i: int, data: bytes | None = None) -> Image.Image:
    data = self.file_bytes(i) if data is None else data
    return sources.open_image(self._path(i), self._max_pixels, data)

  def file_bytes(self, i: int) -> bytes:
    """Returns picture i as it is encoded."""
    if self._indexed or not self._features.label:
      return self._example(i, self._features.image)[self._features.image]
    found = self._example(i, self._features.image, self._features.label)
    self._labels_read[i] = found[self._features.label]  # the pipeline asks for it next
    return found[self._features.image]

  def id(self, i: int) -> str:
    if self._indexed:
      return self._index.id(i)
    if self._features.id:
      value = self._example(i, self._features.id)[self._features.id]
      return value.decode('utf-8', 'surrogateescape') if isinstance(value, bytes) else str(value)
    split, number = self._number(i)
    return f'{split}:{number:06}'

  def label(self, i: int) -> int | np.ndarray:
    if self._indexed:
      label = self._index.labels[i]
      return label if np.ndim(label) else int(label)
    if not self._features.label:
      return -1
    if self._labels_read[i] == _UNREAD:
      self._labels_read[i] = self._example(i, self._features.label)[self._features.label]
    return int(self._labels_read[i])

  def content_hash(self, i: int) -> str:
    if self._indexed:
      return self._index.hashes[i].tobytes().hex()
    try:
      return hashlib.sha256(self.file_bytes(i)).hexdigest()
    except sources.BadImage:
      return f'unreadable:{self._path(i)}'

  def record(self) -> dict[str, Any]:
    if not self._indexed or 'split_hash' in self._record:
      return dict(self._record)
    index = self._index
    labels = index.labels
    dominant = labels if labels.ndim == 1 else labels.argmax(axis=1)
    return {
      **self._record,
      'class_counts': sources.class_counts(dominant, self.class_names),
      'split_hash': sources.split_hash([index.id(i) for i in range(len(self))], labels),
    }


def build(root: str, split: str, options: Mapping[str, Any]) -> Tfds:
  """Returns a split of a data set, pictures in the order of its files.

  Args:
    root: the folder of data sets, '' = TFDS's own ($TFDS_DATA_DIR, else ~/tensorflow_datasets); or a data set's own
      folder, the one with dataset_info.json.
    split: by the set's name for it or a synonym ('valid' is 'validation'); also parts and sums, as in
      'train[:90%]+valid'.
    options: the data section. `name` is the set: 'rafdb', 'imagenet2012:5.1.0', 'set/config:1.0.0'; without a version
      the newest. `label_rule`, `align` and `classes` are what the set was prepared with, or their defaults.

  Raises:
    UserError: on a set, version, config or split that isn't there, another format, missing or truncated files, features
      without a picture, and options that the set wasn't prepared with.
  """
  place = sets.find(root, options.get('name', ''))
  builder = sets.builder_of(place)
  expression, parts = sets.parts_of(builder.info, split, place)
  found = prepared.read_record(place)
  files = (
    {k: size for split in found['splits'].values() for k, size in split['files'].items()} if found else {}
  )
  sets.check_files(builder.info, parts, place, files)
  max_pixels = options.get('max_pixels', 50_000_000)
  features, note = sets.features_of(builder.info.features, place)
  if found is not None:
    record = _own_record(found, builder.info, expression, parts, place)
    _check_options(record, options, place)
    shapes = {tuple(found['splits'][p.split]['image_shape'] or ()) for p in parts}
    shape = shapes.pop() if len(shapes) == 1 else ()
    names = tuple(record['class_names'])
    return Tfds(place, expression, parts, features, names, shape or None, True, record, max_pixels)
  record = _foreign_record(builder.info, expression, parts, place, note)
  _check_options(record, options, place)
  names = tuple(builder.info.features[features.label].names) if features.label else ()
  record['class_names'] = list(names)
  shape = builder.info.features[features.image].shape
  shape = None if None in shape[:2] else (*shape[:2], 3)
  return Tfds(place, expression, parts, features, names, shape, False, record, max_pixels)


def fetch(root: str, split: str, options: Mapping[str, Any]) -> str:
  """Brings the shards of a split here, in whole, and what describes the set; returns where they lie.

  With a global shuffle the first batch already has pictures of most shards, and each host reads rows of every batch: it
  needs all shards of a split and none of another.

  Raises:
    UserError: as `build`, and as remote.fetched.
  """
  here = remote.fetched(root, 'data.root', lambda name: name.endswith(sets.DESCRIBING))
  place = sets.find(here, options.get('name', ''))
  info = sets.builder_of(place).info
  names = {part.split for part in sets.parts_of(info, split, place)[1]}
  needed = [path for name in names for path in info.splits[name].filepaths]
  needed += [prepared.index_path(place, name) for name in names]
  needed = {os.path.relpath(path, here) for path in needed}
  remote.fetched(root, 'data.root', needed.__contains__)
  return here


def _joined(parts: Sequence[tuple[Index, Part]]) -> Index:
  """Returns the index of several parts one after the other."""
  if len(parts) == 1 and parts[0][1].count == len(parts[0][0].ends):
    return parts[0][0]
  names, ends, rest, at = [], [], [], 0
  for index, (_, first, count) in parts:
    rows = slice(first, first + count)
    start = int(index.ends[first - 1]) if first else 0
    names.append(index.names[start : int(index.ends[first + count - 1])])
    ends.append(index.ends[rows] - start + at)
    at += len(names[-1])
    targets = {name: values[rows] for name, values in index.targets.items()}
    rest.append((index.labels[rows], index.hashes[rows], targets))
  joined = (np.concatenate([r[k] for r in rest]) for k in (0, 1))
  targets = {name: np.concatenate([r[2][name] for r in rest]) for name in rest[0][2]}
  return Index(np.concatenate(names), np.concatenate(ends), *joined, targets)


def _own_record(
  found: Mapping[str, Any], info: Any, split: str, parts: Sequence[Part], place: str
) -> dict[str, Any]:
  """Returns the record of what `mimic prepare` wrote: the source's, and where it was prepared."""
  missing = next((p.split for p in parts if p.split not in found['splits']), None)
  if missing is not None:
    raise UserError(
      f"{prepared.record_path(place)}: says nothing of split '{missing}'; prepare the set again"
    )
  records = [found['splits'][s]['record'] for s in dict.fromkeys(p.split for p in parts)]
  whole = len(records) == len(parts) == 1 and parts[0].count == records[0]['count']
  record = dict(records[0])
  if not whole:  # what only the index can say comes from there
    for key in ('class_counts', 'split_hash', 'expected_count'):
      record.pop(key, None)
    record['warnings'] = [w for r in records for w in r.get('warnings', [])]
  return {
    **record,
    'source': 'tfds',
    'root': place,
    'name': _name(info),
    'split': split,
    'count': sum(p.count for p in parts),
    'prepared': {**found['made'], 'source': records[0]['source']},
  }


def _foreign_record(info: Any, split: str, parts: Sequence[Part], place: str, note: str) -> dict[str, Any]:
  """Returns the record of another set. Its split hash is of the files' names, lengths and sizes: no pass over them."""
  digest = hashlib.sha256(f'{_name(info)}\n{split}\n{parts}\n'.encode())
  for name in dict.fromkeys(part.split for part in parts):
    one = info.splits[name]
    for path, length in zip(one.filepaths, one.shard_lengths):
      digest.update(f'{path.name}\t{length}\t{os.path.getsize(path) if length else 0}\n'.encode())
  return {
    'source': 'tfds',
    'root': place,
    'name': _name(info),
    'split': split,
    'label_rule': "the set's own",
    'count': sum(part.count for part in parts),
    'class_names': [],
    'align': {'align': 'none'},
    'split_hash': digest.hexdigest(),
    'warnings': [note] if note else [],
  }


def _name(info: Any) -> str:
  return f'{info.name}{f"/{info.config_name}" if info.config_name else ""}:{info.version}'


def _check_options(record: Mapping[str, Any], options: Mapping[str, Any], place: str) -> None:
  """Raises UserError on an option that isn't its default and not what the set was prepared with."""
  usual = defaults()
  kind, align = record.get('prepared', {}).get('source', ''), record['align']
  has = {'align': align['align']}
  if 'size' in align:
    has['align_size'] = align['size']
  if kind == 'ferplus':
    has['label_rule'] = record['label_rule']
  if kind == 'affectnet':
    has['classes'] = len(record['class_names'])
  for field, value in has.items():
    wanted = options.get(field, usual[field])
    if field == 'align':
      wanted = str(alignment.parse(wanted, 'data.align', auto=value))
    elif wanted == usual[field]:
      continue
    if wanted != value:
      raise UserError(
        f"data.{field} is '{wanted}', but {place} holds pictures prepared with '{value}'; expected that, or a set that "
        'mimic prepare made so'
      )

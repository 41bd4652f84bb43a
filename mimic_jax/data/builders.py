"""TFDS builders over our sources: they write ArrayRecord without TensorFlow, and data/tfds.py reads it.

TFDS's own writer collects a split in memory, and beyond 1 GB needs TensorFlow to put it aside. Sources know their length and
their order, so here each shard is written straight from the pictures, and a shard that is whole outlives an interruption.
Beside what TFDS writes there are mimic_jax.json, the sources' records, and one index per split with ids, labels and
content hashes, so that none of these needs a pass over the pictures.
"""

import collections
import concurrent.futures
import contextlib
import fcntl
import hashlib
import io
import json
import math
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import example_serializer, file_adapters
from tqdm import tqdm

from mimic_jax import data, defaults
from mimic_jax.data import folder
from mimic_jax.data import source as sources
from mimic_jax.data.source import BadImage, Source
from mimic_jax.errors import UserError

RECORD = 'mimic_jax.json'
FORMAT = 1  # of RECORD and the indices
SHARD_BYTES = 512 << 20  # aimed at; the last shards of a split are as long as its first
_SAMPLED = 32  # pictures whose mean size says how many shards there will be
_AHEAD = 4  # pictures read ahead by each thread
_SUFFIX = '.npz'  # of what is noted beside a finished shard
_LOCK = 'lock'
_MOST_NAMED = 20  # pictures left out that the record names


class Taken(NamedTuple):
  """A picture as it goes into a record.

  Attributes:
    encoded: a PNG, a JPEG, …: the file's bytes wherever these are the picture.
    content_hash: as source.content_hash; None where it is that of `encoded`, not yet known to be so.
    targets: named float targets beside the label.
  """

  encoded: bytes
  digest: str
  targets: dict[str, float]


class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A TFDS data set of the pictures of one of our sources, in its order.

  Features: 'image', encoded as in its file (a picture that was cut out or that has no file is a PNG of its pixels);
  'label', a ClassLabel, or float32 [K] where labels are distributions; 'id'; and the source's named targets.

  Args:
    raw: the folder that the source reads.
    splits: those to write: 'train', 'valid', …
    options: the data section (defaults.data()); on_bad_image = 'skip' leaves unreadable pictures out.
    data_dir: the folder of TFDS data sets that this one goes to.
    name: of the data set; '' = the class's.
    shard_bytes: aimed at.

  Raises:
    UserError: on whatever the source finds wrong, and on splits whose labels are not of one kind.
  """

  VERSION = tfds.core.Version('1.0.0')
  SOURCE = 'folder'
  ABOUT = 'A folder of pictures.'
  HOMEPAGE = ''

  def __init__(
    self,
    raw: str,
    splits: Sequence[str],
    options: Mapping[str, Any],
    data_dir: str,
    name: str = '',
    shard_bytes: int = SHARD_BYTES,
  ) -> None:
    self.name = name or type(self).name
    self.raw = os.path.abspath(raw) if raw else ''
    self.options = {**defaults.data().to_dict(), **options, 'cache': False}
    self.sources = {split: self._source(split) for split in splits}
    self.shard_bytes = shard_bytes
    self._say: Callable[[str], None] = lambda _: None
    _check_alike(self.sources)
    first = next(iter(self.sources.values()))
    self.targets = _targets_of(first)
    super().__init__(data_dir=data_dir)

  def _source(self, split: str) -> Source:
    return data.build(self.SOURCE, self.raw, split, self.options)

  def _info(self) -> tfds.core.DatasetInfo:
    shapes = {s.image_shape for s in self.sources.values()}
    source = next(iter(self.sources.values()))
    features: dict[str, Any] = {
      'image': tfds.features.Image(shape=shapes.pop() if len(shapes) == 1 else None),
      'id': tfds.features.Text(),
      **{name: tfds.features.Scalar(np.float32) for name in self.targets},
    }
    if source.class_names and np.ndim(source.label(0)):
      features['label'] = tfds.features.Tensor(shape=(len(source.class_names),), dtype=np.float32)
    elif source.class_names:
      features['label'] = tfds.features.ClassLabel(names=list(source.class_names))
    return tfds.core.DatasetInfo(
      builder=self,
      description=f'{self.ABOUT} Written by `python -m mimic_jax.prepare`; labels and order are those of its source.',
      features=tfds.features.FeaturesDict(features),
      homepage=self.HOMEPAGE or None,
      disable_shuffling=True,
    )

  def plan(self) -> dict[str, Any]:
    """Returns what decides the data set's content: two builders with one plan write the same.

    {'source', 'on_bad_image', 'max_pixels', 'splits': {split: {'count', 'split_hash', 'label_rule', 'align'}}}
    """
    kept = ('count', 'split_hash', 'label_rule', 'align')
    records = {split: source.record() for split, source in self.sources.items()}
    return {
      'source': self.SOURCE,
      'on_bad_image': self.options['on_bad_image'],
      'max_pixels': self.options['max_pixels'],
      'splits': {s: {k: r[k] for k in kept if k in r} for s, r in records.items()},
    }

  def prepare(self, say: Callable[[str], None]) -> None:
    """Writes the data set; shards that an interrupted call with the same plan has finished are kept.

    Args:
      say: gets the lines that tell how it goes.

    Raises:
      UserError: on an unreadable picture if on_bad_image is 'error', on another process that writes the same set, and on
        a folder that can't be written.
    """
    self._say = say
    parent = pathlib.Path(self.data_dir).parent
    try:
      parent.mkdir(parents=True, exist_ok=True)
      with _alone(self._unfinished()), tempfile.TemporaryDirectory() as downloads, _quietly():
        for left in parent.glob(f'incomplete.*_{self.VERSION}'):  # of a call that was killed at its very end
          shutil.rmtree(left, ignore_errors=True)
        self.download_and_prepare(file_format='array_record', download_dir=downloads)
    except OSError as e:
      raise UserError(f"'{e.filename or self.data_dir}': can't be written ({e.strerror or e})") from None
    shutil.rmtree(self._unfinished(), ignore_errors=True)

  def _unfinished(self) -> pathlib.Path:
    """Returns where shards are until all are there. Not a version's name, so no reader takes it for a data set."""
    return pathlib.Path(self.data_dir_root) / self.name / f'unfinished-{self.VERSION}'

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    return {split: self._generate_examples(split) for split in self.sources}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (position in the source, example); pictures that are to be left out are passed over."""
    for i, taken in self._read_ahead(split, range(len(self.sources[split]))):
      if isinstance(taken, Taken):
        yield i, self._example(split, i, taken)

  def _example(self, split: str, i: int, taken: Taken) -> dict[str, Any]:
    source = self.sources[split]
    label = {'label': source.label(i)} if source.class_names else {}
    return {'image': taken.encoded, 'id': _bytes(source.id(i)), **label, **taken.targets}

  def _read_ahead(self, split: str, index: Sequence[int]) -> Iterator[tuple[int, 'Taken | BadImage']]:
    """Yields pictures in order, read by threads; a bad one where on_bad_image is 'skip', else raises it."""
    source, max_pixels = self.sources[split], self.options['max_pixels']
    of_file = _hash_is_of_file(source, index)

    def read(i: int) -> Taken | BadImage:
      try:
        return take(source, i, max_pixels, self.targets, of_file)
      except BadImage as e:
        return e

    for i, taken in zip(index, _in_order(read, index, self.options['threads']), strict=True):
      if isinstance(taken, BadImage) and self.options['on_bad_image'] == 'error':
        raise UserError(f'{taken}; expected a picture (--on_bad_image skip leaves it out)')
      yield i, taken

  def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
    """Writes all splits into self.data_path, which TFDS renames to its place when this returns."""
    work = self._unfinished()
    plan = {**self.plan(), 'shards': {s: self._shards(s) for s in self.sources}}
    if not _same_plan(work, plan):
      for path in work.iterdir():
        if path.name != _LOCK:
          path.unlink()
      _write_json(work / RECORD, plan)
    for split in self.sources:
      self._write_shards(split, plan['shards'][split])
    infos, splits = [], {}
    for split in self.sources:
      info, splits[split] = self._gather(split, plan['shards'][split])
      infos.append(info)
    self.info.set_splits(tfds.core.SplitDict(infos))
    del plan['shards']
    made = {
      'by': 'mimic_jax.prepare',
      'on': time.strftime('%Y-%m-%d'),
      'raw': self.raw,
      'tensorflow_datasets': tfds.__version__,
    }
    _write_json(self.data_path / RECORD, {'format': FORMAT, 'made': made, 'plan': plan, 'splits': splits})

  def _shards(self, split: str) -> int:
    """Returns into how many files a split goes, from the mean size of some of its pictures."""
    source = self.sources[split]
    n, sizes = len(source), []
    for i in np.unique(np.linspace(0, n - 1, _SAMPLED).astype(int)).tolist():
      with contextlib.suppress(BadImage):
        sizes.append(len(take(source, i, self.options['max_pixels'], (), True).encoded))
    mean = float(np.mean(sizes)) if sizes else 0.0
    return max(1, min(n, math.ceil(mean * n / self.shard_bytes)))

  def _write_shards(self, split: str, shards: int) -> None:
    """Writes those shards of a split that are not there yet, beside each what is in it."""
    n, work = len(self.sources[split]), self._unfinished()
    serializer = example_serializer.ExampleSerializer(self.info.features.get_serialized_info())
    adapter = file_adapters.ADAPTER_FOR_FORMAT[file_adapters.FileFormat.ARRAY_RECORD]
    kept = sum((work / _shard_name(split, k)).exists() for k in range(shards))
    if kept:
      self._say(f'{split}: {kept} of {shards} files were written before')
    with tqdm(total=n, desc=split, unit='picture', mininterval=1.0, disable=None) as bar:
      for k in range(shards):
        index = range(n * k // shards, n * (k + 1) // shards)
        path = work / _shard_name(split, k)
        if not path.exists():
          noted = _Noted()

          def records(index: range = index, noted: _Noted = noted) -> Iterator[tuple[int, bytes]]:
            for i, taken in self._read_ahead(split, index):
              bar.update()
              if noted.add(i, taken):
                example = self.info.features.encode_example(self._example(split, i, taken))
                yield i, serializer.serialize_example(example)

          part = path.with_suffix('.part')
          adapter.write_examples(part, records())
          noted.save(path.with_suffix(_SUFFIX))
          part.rename(path)  # last: a shard with this name is whole, and so is what is noted beside it
        else:
          bar.update(len(index))

  def _gather(self, split: str, shards: int) -> tuple[tfds.core.SplitInfo, dict[str, Any]]:
    """Moves a split's shards into the data set and writes its index; returns TFDS's and our entry about it."""
    source, work = self.sources[split], self._unfinished()
    template = self._get_filename_template(split)
    notes = [_Noted.load((work / _shard_name(split, k)).with_suffix(_SUFFIX)) for k in range(shards)]
    if not any(note.index for note in notes):
      raise UserError(f"no picture of split '{split}' in '{self.raw}' can be read; expected at least one")
    files = {}
    for k in range(shards):
      path = template.sharded_filepath(shard_index=k, num_shards=shards)
      shutil.move(work / _shard_name(split, k), path)
      files[path.name] = path.stat().length
    kept = [i for note in notes for i in note.index]
    ids, labels = [source.id(i) for i in kept], [source.label(i) for i in kept]
    targets = {name: [t[name] for note in notes for t in note.targets] for name in self.targets}
    digests = [d for note in notes for d in note.digests]
    write_index(self.data_path / index_name(split), ids, labels, digests, targets)
    bad = [name for note in notes for name in note.bad]
    entry = {
      'record': _without(source, ids, labels, bad),
      'image_shape': source.image_shape,
      'targets': list(self.targets),
      'files': files,
    }
    self._say(f'{split}: {len(ids)} pictures in {shards} files' + (f', {len(bad)} left out' if bad else ''))
    info = tfds.core.SplitInfo(
      name=split,
      shard_lengths=[len(note.index) for note in notes],
      num_bytes=sum(files.values()),
      filename_template=template,
    )
    return info, entry


class Folder(Pictures, skip_registration=True):
  """Any folder of pictures, with class folders or without (data/folder.py)."""


class Rafdb(Pictures, skip_registration=True):
  """RAF-DB, basic emotions (data/rafdb.py)."""

  SOURCE = 'rafdb'
  ABOUT = 'RAF-DB: 15,339 faces from the web with one of seven basic expressions.'
  HOMEPAGE = 'http://www.whdeng.cn/RAF/model1.html'


class Ferplus(Pictures, skip_registration=True):
  """FERPlus: FER2013 with the votes of ten people (data/ferplus.py)."""

  SOURCE = 'ferplus'
  ABOUT = 'FERPlus: the grey 48×48 faces of FER2013 with labels from the votes of ten people.'
  HOMEPAGE = 'https://github.com/microsoft/FERPlus'


class Affectnet(Pictures, skip_registration=True):
  """AffectNet (data/affectnet.py)."""

  SOURCE = 'affectnet'
  ABOUT = 'AffectNet: faces from the web with an expression, valence and arousal.'
  HOMEPAGE = 'http://mohammadmahoor.com/affectnet/'


class Imagenet(Pictures, skip_registration=True):
  """ImageNet-1K, or another tree of train/<class>/*.JPEG (data/folder.py)."""

  ABOUT = 'ImageNet-1K: general photographs of 1000 classes, named by their WordNet numbers.'
  HOMEPAGE = 'https://image-net.org'
  CLASSES = 1000
  COUNTS = {'train': 1_281_167, 'valid': 50_000}  # noqa: RUF012  a constant, like those above

  def _source(self, split: str) -> Source:
    """Returns the folder's split; where it isn't the published one its record has a warning."""
    source = super()._source(split)
    if not source.class_names:
      raise UserError(
        f"split '{split}' of '{self.raw}' has pictures, but no class folders; expected {split}/<class>/*.JPEG "
        "(--splits names the splits to prepare; --dataset folder takes pictures without classes)"
      )
    expected = (self.COUNTS.get(split, len(source)), self.CLASSES)
    if (len(source), len(source.class_names)) == expected:
      return source
    found = f'{len(source)} pictures in {len(source.class_names)} classes'
    return _Warned(source, f'imagenet {split} has {found}, the published release {expected[0]} in {expected[1]}')


# --dataset -> its builder
BUILDERS: dict[str, type[Pictures]] = {
  'rafdb': Rafdb,
  'ferplus': Ferplus,
  'affectnet': Affectnet,
  'imagenet': Imagenet,
  'folder': Folder,
}


def default_splits(dataset: str, raw: str) -> list[str]:
  """Returns the splits that a data set has; of a folder those that are there."""
  fixed = {'rafdb': ['train', 'test'], 'ferplus': ['train', 'valid', 'test'], 'affectnet': ['train', 'valid']}
  if dataset in fixed:
    return fixed[dataset]
  here = [s for s, names in folder.SPLITS.items() if any(os.path.isdir(os.path.join(raw, n)) for n in names)]
  return here or ['train']

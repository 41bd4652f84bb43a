"""TFDS builders over our sources: they write ArrayRecord without TensorFlow, and data/tfds.py reads it.

TFDS's own writer collects a split in memory, and beyond 1 GB needs TensorFlow to put it aside. Sources know their length and
their order, so here each file of a set is written straight from the pictures, and one that is whole outlives an
interruption.
"""

import contextlib
import io
import json
import math
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer, file_adapters
from tqdm import tqdm

from mimic_jax import data
from mimic_jax.data import source as sources
from mimic_jax.data.arrayrecord import prepared
from mimic_jax.data.arrayrecord.shards import Content, Taken, alone, begin, hash_is_of_file, in_order, take
from mimic_jax.data.bad_image import patiently
from mimic_jax.data.options import defaults
from mimic_jax.data.sets import folder
from mimic_jax.data.source import BadImage, Source
from mimic_jax.runtime.errors import UserError

SHARD_BYTES = 512 << 20  # of a file of the set, aimed at
_SAMPLED = 32  # pictures whose mean size says how many files there will be
_IN_PLAN = ('count', 'split_hash', 'label_rule', 'align')  # of a source's record
_MOST_NAMED = 20  # of the pictures left out


class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A TFDS data set of the pictures of one of our sources, in its order.

  Features: 'image'; 'id'; 'label', a ClassLabel, or float32 [K] where labels are distributions; the source's named
  targets, float32.

  Args:
    dataset: a key of SETS.
    raw: the folder that the source reads.
    splits: to write: 'train', 'valid', …
    options: the data section, or part of it; on_bad_image = 'skip' leaves unreadable pictures out.
    data_dir: the folder of TFDS data sets that this one goes to.
    name: of the data set.

  Raises:
    UserError: on whatever the source finds wrong, and where splits have other classes or kinds of labels.
  """

  VERSION = tfds.core.Version('1.0.0')

  def __init__(
    self,
    dataset: str,
    raw: str,
    splits: Sequence[str],
    options: Mapping[str, Any],
    data_dir: str,
    name: str,
  ) -> None:
    self.name = name
    self.source, self._about, self._homepage, _ = SETS[dataset]
    self.raw = os.path.abspath(raw) if raw else ''
    self.options = {**defaults().to_dict(), **options, 'cache': False}
    self.sources = {s: data.build(self.source, self.raw, s, self.options) for s in splits}
    self.records = {s: source.record() for s, source in self.sources.items()}
    for split in splits:
      more = _oddities(split, self.raw, self.sources[split]) if dataset == 'imagenet' else []
      self.records[split]['warnings'] = [*self.records[split].get('warnings', []), *more]
    _check_alike(self.sources)
    self.targets = sorted({name for source in self.sources.values() for name in sources.targets_of(source)})
    self._say: Callable[[str], None] = lambda _: None
    super().__init__(data_dir=data_dir)

  def _info(self) -> tfds.core.DatasetInfo:
    source = next(iter(self.sources.values()))
    shapes = {s.image_shape for s in self.sources.values()}
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
      description=f'{self._about} Written by `mimic prepare`, in the order of its source.',
      features=tfds.features.FeaturesDict(features),
      homepage=self._homepage or None,
      disable_shuffling=True,
    )

  def plan(self) -> dict[str, Any]:
    """Returns what decides the content: of two builders with one plan, one has already done what the other would."""
    return {
      'source': self.source,
      'on_bad_image': self.options['on_bad_image'],
      'max_pixels': self.options['max_pixels'],
      'splits': {s: {k: r[k] for k in _IN_PLAN if k in r} for s, r in self.records.items()},
    }

  def prepare(self, say: Callable[[str], None]) -> None:
    """Writes the data set; files that an interrupted call with the same plan has finished are kept.

    Args:
      say: is given the lines that tell how it goes; standard output, where TFDS talks, is silent meanwhile.

    Raises:
      UserError: on an unreadable picture if on_bad_image is 'error', where another process writes the same set, and
        where nothing can be written.
    """
    self._say = say
    work, parent = self._unfinished(), pathlib.Path(self.data_dir).parent
    try:
      with (
        alone(work),
        tempfile.TemporaryDirectory() as downloads,
        contextlib.redirect_stdout(io.StringIO()),
      ):
        for left in parent.glob(f'incomplete.*_{self.VERSION}'):  # of a call that was killed near its end
          shutil.rmtree(left)
        self.download_and_prepare(file_format='array_record', download_dir=downloads)
        shutil.rmtree(work, ignore_errors=True)
    except OSError as e:
      raise UserError(
        f"{e.filename or self.data_dir}: can't be read or written ({e.strerror or e}); expected a folder to write to"
      ) from None

  def _unfinished(self) -> pathlib.Path:
    """Returns where files are until all are there: not called as a version is, so no reader takes it for a set."""
    return pathlib.Path(self.data_dir).parent / f'unfinished-{self.VERSION}'

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    return {split: self._generate_examples(split) for split in self.sources}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (index in the source, example) of all pictures that are not left out."""
    for i, taken in self._read(split, range(len(self.sources[split]))):
      if isinstance(taken, Taken):
        yield i, self._example(split, i, taken)

  def _example(self, split: str, i: int, taken: Taken) -> dict[str, Any]:
    source = self.sources[split]
    label = {'label': source.label(i)} if source.class_names else {}
    # Bytes: a file's name may be no valid text.
    name = source.id(i).encode('utf-8', 'surrogateescape')
    return {'image': taken.encoded, 'id': name, **label, **taken.targets}

  def _read(self, split: str, index: Sequence[int]) -> Iterator[tuple[int, Taken | BadImage]]:
    """Yields pictures in order, read by threads; a bad one if on_bad_image is 'skip', else it is raised, as is one that the system fails to bring."""
    source = self.sources[split]
    of_file = hash_is_of_file(source, index)

    def read(i: int) -> Taken | BadImage:
      try:
        return patiently(lambda: take(source, i, self.targets, of_file))
      except BadImage as e:
        return e

    for i, taken in zip(index, in_order(read, index, self.options['threads'])):
      if isinstance(taken, BadImage) and taken.transient:
        raise UserError(
          f'{taken}; expected a disk or file server that answers (the same command goes on from there)'
        )
      if isinstance(taken, BadImage) and self.options['on_bad_image'] == 'error':
        raise UserError(f'{taken}; expected a picture (--on_bad_image skip leaves it out)')
      yield i, taken

  def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
    """Writes all splits into self.data_path, which TFDS moves to its place when this returns."""
    work = self._unfinished()
    begun = {
      'plan': self.plan(),
      'files': {s: self._number_of_files(s) for s in self.sources},
      'targets': self.targets,
    }
    begin(work, json.loads(json.dumps(begun)), self._say)
    for split, files in begun['files'].items():
      self._write_files(split, files)
    infos, splits = [], {}
    for split, files in begun['files'].items():
      info, splits[split] = self._gather(split, files)
      infos.append(info)
    self.info.set_splits(tfds.core.SplitDict(infos))
    made = {
      'by': 'mimic_jax.prepare',
      'on': time.strftime('%Y-%m-%d'),
      'raw': self.raw,
      'tensorflow_datasets': tfds.__version__,
    }
    record = {'format': prepared.FORMAT, 'made': made, 'plan': begun['plan'], 'splits': splits}
    prepared.write_record(prepared.record_path(self.data_path), record)

  def _number_of_files(self, split: str) -> int:
    """Returns into how many files a split goes, by the mean size of some of its pictures."""
    source, sizes = self.sources[split], []
    n = len(source)
    for i in np.unique(np.linspace(0, n - 1, _SAMPLED).astype(int)).tolist():
      with contextlib.suppress(BadImage):
        sizes.append(len(take(source, i, (), True).encoded))
    mean = float(np.mean(sizes)) if sizes else 0.0
    return max(1, min(n, math.ceil(mean * n / SHARD_BYTES)))

  def _write_files(self, split: str, files: int) -> None:
    """Writes those files of a split that are not there yet, and beside each what is in it."""
    n, work = len(self.sources[split]), self._unfinished()
    paths = [work / f'{split}-{k:05}' for k in range(files)]
    done = sum(path.exists() for path in paths)
    if done:
      self._say(f'{split}: {done} of {files} files were written before')
    with tqdm(total=n, desc=split, unit='picture', mininterval=1.0, disable=None) as bar:
      for k, path in enumerate(paths):
        index = range(n * k // files, n * (k + 1) // files)
        if path.exists():
          bar.update(len(index))
        else:
          self._write_file(split, index, path, bar)

  def _write_file(self, split: str, index: Sequence[int], path: pathlib.Path, bar: tqdm) -> None:
    serializer = example_serializer.ExampleSerializer(self.info.features.get_serialized_info())
    content = Content([], [], [], [])

    def records() -> Iterator[tuple[int, bytes]]:
      for i, taken in self._read(split, index):
        bar.update()
        if content.add(i, taken):
          example = self.info.features.encode_example(self._example(split, i, taken))
          yield i, serializer.serialize_example(example)

    part = path.with_suffix('.part')
    try:
      # TFDS's adapter leaves the writer to the garbage collector where a picture raises; it is a part of no set then.
      file_adapters.ArrayRecordFileAdapter.write_examples(part, records())
    except RuntimeError as e:  # what the writer makes of a full disk
      raise UserError(f"{part}: can't be written ({e}); the same command goes on from there") from None
    path.with_suffix('.json').write_text(json.dumps(content), 'utf-8')
    part.rename(path)  # last: a file with this name is whole, and so is what is noted beside it

  def _gather(self, split: str, files: int) -> tuple[tfds.core.SplitInfo, dict[str, Any]]:
    """Moves a split's files into the set and writes its index; returns TFDS's entry and ours."""
    source, template = self.sources[split], self._get_filename_template(split)
    work, goal = self._unfinished(), pathlib.Path(self.data_path)
    parts = [Content(*json.loads((work / f'{split}-{k:05}.json').read_text('utf-8'))) for k in range(files)]
    kept = [i for part in parts for i in part.index]
    if not kept:
      raise UserError(f"no picture of split '{split}' in '{self.raw}' can be read; expected at least one")
    sizes = {}
    for k in range(files):
      path = template.sharded_filepath(shard_index=k, num_shards=files)
      (work / f'{split}-{k:05}').rename(path)
      sizes[path.name] = os.path.getsize(path)
    ids, labels = [source.id(i) for i in kept], [source.label(i) for i in kept]
    hashes = [h for part in parts for h in part.hashes]
    values = np.array([t for part in parts for t in part.targets], np.float32).reshape(len(kept), -1)
    targets = dict(zip(self.targets, values.T))
    prepared.write_index(prepared.index_path(goal, split), ids, labels, hashes, targets)
    left_out = [why for part in parts for why in part.left_out]
    record = self.records[split]
    if left_out:
      record = {**record, **_without(record, ids, labels, left_out)}
    entry = {'record': record, 'image_shape': source.image_shape, 'files': sizes}
    more = f', {len(left_out)} left out' if left_out else ''
    self._say(f'{split}: {len(kept)} pictures in {files} files{more}')
    lengths = [len(part.index) for part in parts]
    return tfds.core.SplitInfo(split, lengths, sum(sizes.values()), template), entry


# --dataset -> its builder's source, what it is, where it is from, and its splits; () = those that are there
SETS: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
  'rafdb': (
    'rafdb',
    'RAF-DB: 15,339 faces from the web with one of seven basic expressions.',
    'http://www.whdeng.cn/RAF/model1.html',
    ('train', 'test'),
  ),
  'ferplus': (
    'ferplus',
    'FERPlus: the grey 48×48 faces of FER2013 with labels from the votes of ten people.',
    'https://github.com/microsoft/FERPlus',
    ('train', 'valid', 'test'),
  ),
  'affectnet': (
    'affectnet',
    'AffectNet: faces from the web with an expression, valence and arousal.',
    'http://mohammadmahoor.com/affectnet/',
    ('train', 'valid'),
  ),
  'imagenet': (
    'folder',
    'ImageNet-1K: general photographs of 1000 classes, named by their WordNet numbers.',
    'https://image-net.org',
    (),
  ),
  'folder': ('folder', 'A folder of pictures.', '', ()),
}
# split -> pictures of ImageNet-1K
IMAGENET = {'train': 1_281_167, 'valid': 50_000}


def _oddities(split: str, raw: str, source: Source) -> list[str]:
  """Returns what a user of ImageNet is to be warned of; raises UserError."""
  n, classes = len(source), len(source.class_names)
  if classes < 2:
    raise UserError(
      f"split '{split}' of '{raw}' has {classes or 'no'} class folders; expected {split}/n01440764/*.JPEG and so on "
      '(--splits leaves it out, --dataset folder takes pictures without classes)'
    )
  published = (IMAGENET.get(split, n), 1000)
  here = (
    f'imagenet {split} has {n} pictures of {classes} classes, the published release {published[0]} of 1000'
  )
  return [] if (n, classes) == published else [here]


def splits_of(dataset: str, raw: str) -> list[str]:
  """Returns the splits that are prepared where none are named: the release's, or those a folder has."""
  fixed = SETS[dataset][3]
  here = [s for s, names in folder.SPLITS.items() if any(os.path.isdir(os.path.join(raw, n)) for n in names)]
  return list(fixed) or here or ['train']


def _check_alike(splits: Mapping[str, Source]) -> None:
  """Raises UserError unless all splits have the classes and the kind of labels of the first."""
  (first, one), *others = splits.items()
  for split, other in others:
    if tuple(other.class_names) != tuple(one.class_names):
      raise UserError(
        f"split '{split}' has the classes {', '.join(other.class_names) or 'none'}; expected those of '{first}', "
        f'{", ".join(one.class_names) or "none"} (--splits and --name prepare them as sets of their own)'
      )


def _without(
  record: Mapping[str, Any], ids: Sequence[str], labels: Sequence[int | np.ndarray], left_out: Sequence[str]
) -> dict[str, Any]:
  """Returns what changes in a source's record once unreadable pictures are left out."""
  warning = (
    f'{len(left_out)} unreadable pictures were left out when this was prepared; the first: {left_out[0]}'
  )
  return {
    'count': len(ids),
    'class_counts': sources.class_counts(sources.dominant(labels), record['class_names']),
    'split_hash': sources.split_hash(ids, labels),
    'left_out': {**record.get('left_out', {}), 'unreadable': len(left_out)},
    'unreadable': list(left_out[:_MOST_NAMED]),
    'warnings': [*record.get('warnings', []), warning],
  }

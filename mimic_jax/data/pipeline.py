"""Batches from a source, with grain (DESIGN §3): the position is the step number, and nothing else needs saving.

Global batch s is the items [s·B, (s + 1)·B) of the seeded order, which is shuffled or drawn anew each epoch and never
ends. Process p of P reads rows [p·B/P, (p + 1)·B/P) of each, so the global batch doesn't depend on P. Pixels leave as
uint8: whole where all pictures have one size (they are cropped on the device), else cropped or resized here.
"""

import concurrent.futures
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from mimic_jax.boxes import crop_boxes
from mimic_jax.data import readers, sampling
from mimic_jax.data import source as sources
from mimic_jax.data.bad_image import POLICIES, BadImage, patiently
from mimic_jax.data.crops import FILTERS, KEY, crop_uniforms, read_crops
from mimic_jax.data.source import Source
from mimic_jax.runtime.errors import UserError, one_of

# Pictures in a row that the system may fail to bring; then it is the system, and the run stops instead of skipping on.
_FAILURES = 16


class Batches(Iterator[dict[str, np.ndarray]]):
  """An iterator over batches that knows which pictures could not be read."""

  def __init__(self, iterator: Any, on_bad_image: str, replaced: bool, count: int) -> None:
    self._iterator = iterator
    self._on_bad_image = on_bad_image
    self._replaced = replaced
    self._count = count
    self._skipped: dict[str, str] = {}

  def __iter__(self) -> 'Batches':
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    """Returns the next batch.

    Raises:
      UserError: on a bad picture if on_bad_image is 'error', where no picture at all can be read, and when more reader
        processes died than may.
    """
    try:
      batch = dict(next(self._iterator))
    except StopIteration:
      if len(self._skipped) == self._count:
        raise self._nothing() from None
      raise
    # Bad pictures travel with their batch: it may come from another process, and is read ahead of its turn.
    for name, path, why in json.loads(batch.pop('bad')):
      if self._on_bad_image == 'error':
        raise UserError(f"{path}: {why}; expected a picture (data.on_bad_image = 'skip' goes on without it)")
      self._skipped[name] = f'{path}: {why}'
    if self._replaced and (batch['index'] < 0).any():
      raise self._nothing()
    return batch

  def _nothing(self) -> UserError:
    first = next(iter(self._skipped.values()))
    return UserError(f'none of the {self._count} pictures can be read; one of them: {first}')

  def skipped(self) -> dict[str, str]:
    """Returns id -> why of the pictures skipped by this process so far."""
    return dict(self._skipped)

  def close(self) -> None:
    """Stops reading ahead."""
    self._iterator.close()


def train_batches(
  source: Source,
  *,
  batch_images: int,
  seed: int,
  start_step: int,
  process_index: int,
  process_count: int,
  views: int,
  image_size: int,
  scale: Sequence[float],
  ratio: Sequence[float],
  interpolation: str,
  sampler: str = 'shuffle',
  on_bad_image: str = 'error',
  threads: int = 8,
  workers: int = 0,
  prefetch: int = 4,
  worker_restarts: int = 3,
) -> Batches:
  """Returns this process's endless batches from step `start_step` on.

  Args:
    source: the pictures.
    batch_images: B, images per step over all processes.
    seed: of the order and of the crops, 0..2³² − 1.
    start_step: the step of the first batch.
    process_index, process_count: p and P.
    views: V, crops per picture.
    image_size: S, side of the crops in pixels.
    scale, ratio, interpolation: of the crops; see boxes.crop_boxes.
    sampler: 'shuffle': each picture once an epoch; 'balanced': as many draws an epoch as there are pictures, classes
      equally often, with replacement (sampling.Balanced), each draw in crops of its own.
    on_bad_image: 'error', or 'skip': the next readable picture by index takes its place, in the crops drawn for the bad
      one, so that a picture that comes twice is cropped differently. Every pass over the data repeats this, and so does
      a resumed run; but for a picture that the system failed to bring in all its tries (bad_image.patiently), which is
      skipped this time only.
    threads: that read pictures, in each process.
    workers: reader processes; 0 = none. The batches are the same.
    prefetch: batches read ahead.
    worker_restarts: reader processes that may die and are replaced, without a trace in the batches.

  Returns:
    Batches of dicts of numpy arrays, b = B / P:
      image: uint8 [b, H, W, 3] if source.image_shape else [b, V, S, S, 3], cropped
      label: int32 [b] or float32 [b, K]
      index: int32 [b], of the picture in the source

  Raises:
    UserError: on an empty source, a batch that doesn't divide, a value out of range, balanced draws without labels.
  """
  b = _rows(source, batch_images, process_index, process_count, on_bad_image, threads)
  n = len(source)
  if not 0 <= seed < 2**32:
    raise UserError(f'seed is {seed}; expected 0..{2**32 - 1}')
  if workers < 0 or prefetch < 1:
    raise UserError(f'data.workers is {workers} and data.prefetch {prefetch}; expected at least 0 and 1')
  if worker_restarts < 0:
    raise UserError(f'data.worker_restarts is {worker_restarts}; expected at least 0')
  reader = _Reader(
    source,
    image_size,
    interpolation,
    threads,
    views,
    tuple(scale),
    tuple(ratio),
    seed,
    replace=on_bad_image == 'skip',
  )
  if one_of('data.sampler', sampler, sampling.SAMPLERS) == 'balanced':
    order = grain.MapDataset.range(n).repeat().map_with_index(sampling.balanced(source, seed))
  else:
    order = grain.MapDataset.range(n).shuffle(seed=_order_seed(seed)).repeat()
    order = order.map_with_index(functools.partial(_with_epoch, n))
  # By slices of whole batches: `ds[p::P].batch(b)` would give other global batches for other P. An endless order drops
  # nothing, but keeping a remainder would round its length up beyond what Python's len can say where b = 1.
  order = order.batch(b, drop_remainder=True)[process_index::process_count][start_step:]
  dataset = order.map(reader)
  if workers:
    iterator = readers.Readers(dataset, workers, -(-prefetch // workers), worker_restarts)
  else:
    iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(readers.THREADS, prefetch)))
  return Batches(iterator, on_bad_image, replaced=on_bad_image == 'skip', count=n)


def eval_batches(
  source: Source,
  *,
  batch_images: int,
  image_size: int,
  interpolation: str,
  process_index: int,
  process_count: int,
  on_bad_image: str = 'error',
  threads: int = 8,
  prefetch: int = 2,
) -> Batches:
  """Returns this process's share of one pass over all pictures, in order.

  Every process yields the same number of batches of b = B / P rows; rows beyond the last picture are padding: mask False,
  index and label −1 (a distribution: 0). With on_bad_image = 'skip' a bad picture's row is padding too: an evaluation
  replaces nothing.

  Args: as for train_batches.

  Returns:
    Batches of dicts of numpy arrays:
      image: uint8 [b, H, W, 3] if source.image_shape else [b, S, S, 3], the whole picture resized
      label: int32 [b] or float32 [b, K]
      index: int32 [b], of the picture in the source
      mask: bool [b]

  Raises:
    UserError: as train_batches.
  """
  b = _rows(source, batch_images, process_index, process_count, on_bad_image, threads)
  reader = _Reader(source, image_size, interpolation, threads)
  steps = -(-len(source) // batch_images)
  rows = grain.MapDataset.range(steps).map(
    functools.partial(_pass_rows, batch_images, process_index * b, b, len(source))
  )
  dataset = rows.map(reader).map(_with_mask).to_iter_dataset(grain.ReadOptions(readers.THREADS, prefetch))
  return Batches(iter(dataset), on_bad_image, replaced=False, count=len(source))


def _rows(
  source: Source, batch_images: int, process_index: int, process_count: int, on_bad_image: str, threads: int
) -> int:
  """Returns b = B / P after checking what both kinds of batches need."""
  one_of('data.on_bad_image', on_bad_image, POLICIES)
  if len(source) == 0:
    record = source.record()
    raise UserError(f'{record["source"]} {record.get("split", "")} has no pictures; expected at least one')
  if batch_images < 1 or batch_images % process_count:
    raise UserError(f'batch_images is {batch_images}; expected a multiple of the {process_count} processes')
  if not 0 <= process_index < process_count:
    raise UserError(f'process_index is {process_index}; expected 0..{process_count - 1}')
  if threads < 1:
    raise UserError(f'data.threads is {threads}; expected at least 1')
  return batch_images // process_count


def _order_seed(seed: int) -> int:
  """Spreads the seeds out: grain shuffles epoch e by seed + e, so seed 1 would begin with seed 0's second epoch."""
  return int(np.random.SeedSequence([seed, KEY + 1]).generate_state(1)[0])


def _with_epoch(n: int, position: int, index: int) -> np.ndarray:
  return np.array([position // n, index], np.int64)


def _pass_rows(batch_images: int, first: int, b: int, n: int, step: int) -> np.ndarray:
  """Returns int64 [b, 2] (0, index) of one process's rows; −1 beyond the end."""
  index = step * batch_images + first + np.arange(b)
  return np.stack([np.zeros(b, np.int64), np.where(index < n, index, -1)], axis=1)


def _with_mask(batch: dict[str, Any]) -> dict[str, Any]:
  return {**batch, 'mask': batch['index'] >= 0}


@functools.cache
def _pool(threads: int) -> concurrent.futures.ThreadPoolExecutor:
  return concurrent.futures.ThreadPoolExecutor(threads, 'read')


def _in_threads(function: Callable[[int], Any], count: int, threads: int) -> list[Any]:
  """Returns [function(0), …, function(count − 1)], each thread taking every `threads`-th."""
  parts = min(threads, count)

  def share(first: int) -> list[Any]:
    return [function(k) for k in range(first, count, parts)]

  results: list[Any] = [None] * count
  for first, values in enumerate(_pool(threads).map(share, range(parts))):
    results[first::parts] = values
  return results


@dataclasses.dataclass(frozen=True)
class _Reader:
  """Turns rows of (epoch, index) into a batch; `views` = 0 means the whole picture, for evaluation.

  A third column is the place that keys the crops, where that isn't the index: a picture may be drawn twice in an epoch.
  """

  source: Source
  size: int
  interpolation: str
  threads: int
  views: int = 0
  scale: tuple[float, ...] = ()
  ratio: tuple[float, ...] = ()
  seed: int = 0
  replace: bool = False
  # What was found bad, so that it isn't tried again. Only saves time: never says anything that reading wouldn't. So not
  # what the system failed to bring, however often it was tried: a run that is resumed would read it.
  bad: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)
  # Pictures in a row, of all threads, that the system failed to bring.
  failed: list[int] = dataclasses.field(default_factory=list)

  def __post_init__(self) -> None:
    one_of('augment.interpolation', self.interpolation, FILTERS)

  def __call__(self, rows: np.ndarray) -> dict[str, Any]:
    """int64 [b, 2..3] -> {'image', 'label', 'index': int32 [b] (−1 where unread), 'bad': JSON [[id, path, why], …]}."""
    crops = (self.views, self.size, self.size, 3) if self.views else (self.size, self.size, 3)
    images = np.zeros((len(rows), *(self.source.image_shape or crops)), np.uint8)
    read = _in_threads(lambda r: self._fill(images[r], *map(int, rows[r])), len(rows), self.threads)
    index = np.array([i for i, _ in read], np.int32)
    found = {k: why for _, tried in read for k, why in tried.items()}
    bad = sorted(found)
    if self.replace and (index < 0).any():
      bad = bad[:1]  # nothing can be read at all: one is enough to say so
    return {
      'image': images,
      'label': self._labels(index),
      'index': index,
      'bad': json.dumps([[self.source.id(k), *found[k]] for k in bad]),
    }

  def _fill(
    self, out: np.ndarray, epoch: int, index: int, place: int | None = None
  ) -> tuple[int, dict[int, tuple[str, str]]]:
    """Reads a picture, or the next readable one, into `out`.

    Returns:
      Its index or −1, and the bad ones on the way: index -> (path, why).

    Raises:
      UserError: when the system brings no picture any more.
    """
    n, tried = len(self.source), {}
    place = index if place is None else place
    for k in range(0 if index < 0 else n if self.replace else 1):
      i = (index + k) % n
      if i in self.bad:
        tried[i] = self.bad[i]
        continue
      try:
        out[...] = patiently(lambda i=i: self._picture(i, epoch, place))
        self.failed.clear()
        return i, tried
      except BadImage as e:
        tried[i] = (e.path, e.why)
        if not e.transient:
          self.bad[i] = tried[i]
          continue
      self.failed.append(i)
      if len(self.failed) >= _FAILURES:
        raise UserError(
          f'{": ".join(tried[i])}, and so with the {_FAILURES - 1} pictures before it; expected a disk or file server '
          'that answers (the same command goes on from the last checkpoint)'
        )
    return -1, tried

  def _picture(self, i: int, epoch: int, place: int) -> np.ndarray:
    """Returns picture i as uint8: as it is, in the crops drawn for `place`, or resized as a whole."""
    if self.source.image_shape is not None:
      return self.source[i]['image']
    with sources.open_picture(self.source, i) as image:
      path = getattr(image, 'filename', '') or self.source.id(i)
      with sources.reading(path):
        height, width = sources.upright_size(image)
      boxes = np.array([[0, 0, height, width]], np.int32)
      if self.views:
        u = np.stack([crop_uniforms(self.seed, epoch, place, v) for v in range(self.views)])
        boxes = crop_boxes(np, u, height, width, self.scale, self.ratio)
      crops = read_crops(image, path, boxes, self.size, self.interpolation)
    return crops if self.views else crops[0]

  def _labels(self, index: np.ndarray) -> np.ndarray:
    """Returns int32 [b] or float32 [b, K]; −1 or 0 where nothing was read."""
    shape = np.shape(self.source.label(0))
    labels = np.zeros((len(index), *shape), np.float32) if shape else np.full(len(index), -1, np.int32)
    for r, i in enumerate(index):
      if i >= 0:
        labels[r] = self.source.label(int(i))
    return labels

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
from absl import flags
from PIL import Image, JpegImagePlugin

from mimic_jax.augment import ATTEMPTS, crop_boxes
from mimic_jax.data import sampling
from mimic_jax.data import source as sources
from mimic_jax.data.source import BadImage, Source
from mimic_jax.errors import UserError, one_of

_FILTERS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
_POLICIES = ('error', 'skip')
_CROPS = 0x63726F70  # second half of the Philox key: what the numbers are for
_READERS = 2  # batches that are put together at a time; their pictures are read by `threads` threads


class Batches(Iterator[dict[str, np.ndarray]]):
  """An iterator over batches that knows which pictures could not be read."""

  def __init__(self, dataset: grain.IterDataset, on_bad_image: str, replaced: bool, count: int) -> None:
    self._iterator = iter(dataset)
    self._on_bad_image = on_bad_image
    self._replaced = replaced
    self._count = count
    self._skipped: dict[str, str] = {}

  def __iter__(self) -> 'Batches':
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    """Returns the next batch.

    Raises:
      UserError: on a bad picture if on_bad_image is 'error', and where no picture at all can be read.
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
    scale, ratio, interpolation: of the crops; see augment.crop_boxes.
    sampler: 'shuffle': each picture once an epoch; 'balanced': as many draws an epoch as there are pictures, classes
      equally often, with replacement (sampling.Balanced), each draw in crops of its own.
    on_bad_image: 'error', or 'skip': the next readable picture by index takes its place, in the crops drawn for the bad
      one, so that a picture that comes twice is cropped differently. Every pass over the data repeats this.
    threads: that read pictures, in each process.
    workers: reader processes; 0 = none. The batches are the same.
    prefetch: batches read ahead.

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
  dataset = order.map(reader).to_iter_dataset(grain.ReadOptions(_READERS, prefetch))
  if workers:
    if not flags.FLAGS.is_parsed():  # grain's worker processes read absl's flags, which only app.run parses
      flags.FLAGS.mark_as_parsed()
    ahead = -(-prefetch // workers)
    dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(workers, per_worker_buffer_size=ahead))
  return Batches(dataset, on_bad_image, replaced=on_bad_image == 'skip', count=n)


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
  dataset = rows.map(reader).map(_with_mask).to_iter_dataset(grain.ReadOptions(_READERS, prefetch))
  return Batches(dataset, on_bad_image, replaced=False, count=len(source))


def _rows(
  source: Source, batch_images: int, process_index: int, process_count: int, on_bad_image: str, threads: int
) -> int:
  """Returns b = B / P after checking what both kinds of batches need."""
  one_of('data.on_bad_image', on_bad_image, _POLICIES)
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
  return int(np.random.SeedSequence([seed, _CROPS + 1]).generate_state(1)[0])


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
  # What was found bad, so that it isn't tried again. Only saves time: never says anything that reading wouldn't.
  bad: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    one_of('augment.interpolation', self.interpolation, _FILTERS)

  def __call__(self, rows: np.ndarray) -> dict[str, Any]:
    """int64 [b, 2..3] -> {'image', 'label', 'index': int32 [b] (−1 where unread), 'bad': JSON [[id, path, why], …]}."""
    crops = (self.views, self.size, self.size, 3) if self.views else (self.size, self.size, 3)
    images = np.zeros((len(rows), *(self.source.image_shape or crops)), np.uint8)
    read = _in_threads(lambda r: self._fill(images[r], *map(int, rows[r])), len(rows), self.threads)
    index = np.array([i for i, _ in read], np.int32)
    bad = sorted({k for _, tried in read for k in tried})
    if self.replace and (index < 0).any():
      bad = bad[:1]  # nothing can be read at all: one is enough to say so
    return {
      'image': images,
      'label': self._labels(index),
      'index': index,
      'bad': json.dumps([[self.source.id(k), *self.bad[k]] for k in bad]),
    }

  def _fill(self, out: np.ndarray, epoch: int, index: int, place: int | None = None) -> tuple[int, list[int]]:
    """Reads a picture, or the next readable one, into `out`; returns its index or −1, and the bad ones on the way."""
    n, tried = len(self.source), []
    place = index if place is None else place
    for k in range(0 if index < 0 else n if self.replace else 1):
      i = (index + k) % n
      if i not in self.bad:
        try:
          out[...] = self._picture(i, epoch, place)
          return i, tried
        except BadImage as e:
          self.bad[i] = (e.path, e.why)
      tried.append(i)
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


def crop_uniforms(seed: int, epoch: int, index: int, view: int) -> np.ndarray:
  """Returns float64 [10, 4] in [0, 1) for one crop, by counter: the same whoever draws it, and whenever."""
  generator = np.random.Generator(np.random.Philox(key=[seed, _CROPS], counter=[0, view, index, epoch]))
  return generator.random((ATTEMPTS, 4))


def read_crops(image: Image.Image, path: str, boxes: np.ndarray, size: int, interpolation: str) -> np.ndarray:
  """Decodes a picture once, cuts boxes out and resizes each, antialiased.

  A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where every crop still has `size` pixels each way. The crops keep their
  exact places: they may begin and end between two of the larger pixels.

  Args:
    image: opened, not necessarily decoded.
    path: its name in messages.
    boxes: int [V, 4] top, left, height, width in pixels of the upright picture at full size.
    size: side of the results.
    interpolation: 'bilinear' or 'bicubic'.

  Returns:
    uint8 [V, size, size, 3].

  Raises:
    BadImage: where the pixels can't be decoded.
  """
  with sources.reading(path):
    factor = _reduction(image, int(boxes[:, 2:].min()), size)
    if factor > 1:
      image.draft(None, (image.width // factor, image.height // factor))
    whole = sources.upright(image)
    out = np.empty((len(boxes), size, size, 3), np.uint8)
    for k, (top, left, h, w) in enumerate(boxes.tolist()):
      # First cut, then resized within the cut: the kernel doesn't reach beyond the crop.
      start, upper = left // factor, top // factor
      cut = whole.crop((start, upper, -(-(left + w) // factor), -(-(top + h) // factor)))
      inside = (
        left / factor - start,
        top / factor - upper,
        (left + w) / factor - start,
        (top + h) / factor - upper,
      )
      out[k] = np.asarray(sources.to_rgb(cut).resize((size, size), _FILTERS[interpolation], box=inside))
    return out


def _reduction(image: Image.Image, shortest: int, size: int) -> int:
  """Returns by which factor a picture may be decoded smaller, so that `shortest` pixels remain at least `size`.

  Where the size isn't a multiple of the factor, a JPEG's last row and column stand for fewer pixels; in a picture that is
  still to be turned these would come first, so it is decoded in full.
  """
  if not isinstance(image, JpegImagePlugin.JpegImageFile):
    return 1
  turned = sources.is_turned(image)
  fitting = (
    f for f in (8, 4, 2) if shortest // f >= size and not (turned and (image.width % f or image.height % f))
  )
  return next(fitting, 1)

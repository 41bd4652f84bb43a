"""Batches from a source, with grain: the position is the step number, and nothing else needs saving.

Global batch s is the items [s·B, (s + 1)·B) of the seeded order, which is shuffled or drawn anew each epoch and never
ends. A process reads the rows of each that its devices own, so the global batch doesn't depend on how many there are. Pixels leave as
uint8: whole where all pictures have one size (they are cropped on the device), else cropped or resized here.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from PIL import Image

from mimic_jax import landmarks
from mimic_jax.boxes import crop_boxes
from mimic_jax.clips import Frames
from mimic_jax.data import readers, sampling
from mimic_jax.data import source as sources
from mimic_jax.data.bad_image import POLICIES, BadImage, patiently
from mimic_jax.data.crops import FILTERS, KEY, crop_uniforms, read_crops
from mimic_jax.data.faces import swap
from mimic_jax.data.source import Source
from mimic_jax.runtime.errors import UserError, one_of

# Pictures in a row that the system may fail to bring; then it is the system, and the run stops instead of skipping on.
_FAILURES = 16
_BOXES = 'boxes'  # of 'image' within a batch that is being read
_SWAPPED = 'swapped'  # points of swapped faces within one
_GROUPS = 0x67726F75  # second half of the Philox key that draws the pictures of a group


class Share(NamedTuple):
  """What of each batch a process reads: the parts of these numbers, of so many equal ones, in this order."""

  parts: tuple[int, ...] = (0,)
  of: int = 1


ALONE = Share()


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
  more_crops: Mapping[str, tuple[int, int]] | None = None,
  targets: Sequence[str] = (),
  group: int = 1,
  frames: Frames | None = None,
  resident: bool = False,
  share: Share = ALONE,
) -> Batches:
  """Returns this process's endless batches from step `start_step` on.

  Args:
    source: the pictures.
    batch_images: B, images per step over all processes.
    seed: of the order and of the crops, 0..2³² − 1.
    start_step: the step of the first batch.
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
    more_crops: name → (views, side) of other crops than 'image', of sources whose pictures have many sizes; where they
      have one, the whole picture is there once, to be cropped on the device.
    targets: what the source offers that is to be in the batch; 'landmarks' go along with crops that are made here, [b, V, 68, 2].
    group: G, pictures of one group (Source.group): the one whose turn it is, then others of its group, drawn anew each
      time without replacement (with, where there are fewer). With more than one every array is [b, G, …].
    frames: where groups are clips, which of their frames make an item; an epoch is then each clip once (sampling.Clips).
    resident: whether the pictures are elsewhere, all of them, and batches go without (feed.on_devices takes them by index).
    share: what this process reads of each batch.

  Returns:
    Batches of dicts of numpy arrays, b rows of the share:
      image: uint8 [b, H, W, 3] if source.image_shape else [b, V, S, S, 3], cropped
      label: int32 [b] or float32 [b, K]
      index: int32 [b], of the picture in the source

  Raises:
    UserError: on an empty source, a batch that doesn't divide, a value out of range, balanced draws without labels.
  """
  rows = _rows(source, batch_images, share, on_bad_image, threads)
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
    more_crops=tuple((name, *crops) for name, crops in (more_crops or {}).items()),
    targets=tuple(targets),
    group=group,
    resident=resident,
  )
  one_of('data.sampler', sampler, sampling.SAMPLERS)
  if frames is not None:
    if frames.swap and resident:
      raise UserError('data.resident is True, and the readers swap faces; expected False')
    if sampler != 'shuffle':
      raise UserError(
        f"data.sampler is '{sampler}', and the pictures are frames of clips; expected 'shuffle'"
      )
    drawn = sampling.clips_of(source, frames, seed)
    order = grain.MapDataset.range(len(drawn)).shuffle(seed=_order_seed(seed)).repeat().map_with_index(drawn)
  elif sampler == 'balanced':
    order = grain.MapDataset.range(n).repeat().map_with_index(sampling.balanced(source, seed))
  else:
    order = grain.MapDataset.range(n).shuffle(seed=_order_seed(seed)).repeat()
    order = order.map_with_index(functools.partial(_with_epoch, n))
  # An endless order drops nothing, but keeping a remainder would round its length up beyond what Python's len can say.
  parts = order.batch(rows, drop_remainder=True)
  steps = grain.MapDataset.range(start_step, len(parts) // share.of)
  dataset = steps.map(functools.partial(_share_of, parts, share)).map(reader)
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
  on_bad_image: str = 'error',
  threads: int = 8,
  prefetch: int = 2,
  targets: Sequence[str] = (),
  share: Share = ALONE,
) -> Batches:
  """Returns this process's share of one pass over all pictures, in order.

  Every process yields the same number of batches of b rows; rows beyond the last picture are padding: mask False,
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
  rows = _rows(source, batch_images, share, on_bad_image, threads)
  reader = _Reader(source, image_size, interpolation, threads, targets=tuple(targets))
  steps = -(-len(source) // batch_images)
  parts = functools.partial(_part_of_pass, rows, len(source))
  shares = grain.MapDataset.range(steps).map(functools.partial(_share_of, parts, share))
  dataset = shares.map(reader).map(_with_mask).to_iter_dataset(grain.ReadOptions(readers.THREADS, prefetch))
  return Batches(iter(dataset), on_bad_image, replaced=False, count=len(source))


def whole(source: Source, threads: int) -> np.ndarray:
  """Returns all pictures of a source whose pictures have one size, uint8 [n, H, W, 3].

  Raises:
    UserError: for the first that can't be read.
  """
  found = np.empty((len(source), *source.image_shape), np.uint8)

  def read(i: int) -> None:
    found[i] = patiently(lambda: source[i])['image']

  try:
    _in_threads(read, len(source), threads)
  except BadImage as e:
    raise UserError(f'{e}; expected pictures that can be read, or data.resident=False') from e
  return found


def _rows(source: Source, batch_images: int, share: Share, on_bad_image: str, threads: int) -> int:
  """Returns the rows of a part of a batch, after checking what both kinds of batches need."""
  one_of('data.on_bad_image', on_bad_image, POLICIES)
  if len(source) == 0:
    record = source.record()
    raise UserError(f'{record["source"]} {record.get("split", "")} has no pictures; expected at least one')
  if batch_images < 1 or batch_images % share.of:
    raise UserError(
      f'batch_images is {batch_images}; expected a multiple of {share.of}, the number of devices'
    )
  if threads < 1:
    raise UserError(f'data.threads is {threads}; expected at least 1')
  return batch_images // share.of


def _order_seed(seed: int) -> int:
  """Spreads the seeds out: grain shuffles epoch e by seed + e, so seed 1 would begin with seed 0's second epoch."""
  return int(np.random.SeedSequence([seed, KEY + 1]).generate_state(1)[0])


def _with_epoch(n: int, position: int, index: int) -> np.ndarray:
  return np.array([position // n, index], np.int64)


def _share_of(parts: Any, share: Share, step: int) -> np.ndarray:
  """Returns the rows of one step that a process reads; `parts` has or makes those of each part by its number."""
  numbers = (step * share.of + k for k in share.parts)
  return np.concatenate([parts(k) if callable(parts) else parts[k] for k in numbers])


def _part_of_pass(rows: int, n: int, number: int) -> np.ndarray:
  """Returns int64 [rows, 2] (0, index) of a part of one pass; −1 beyond the end."""
  index = number * rows + np.arange(rows)
  return np.stack([np.zeros(rows, np.int64), np.where(index < n, index, -1)], axis=1)


def _with_mask(batch: dict[str, Any]) -> dict[str, Any]:
  return {**batch, 'mask': batch['index'] >= 0}


def _where_read(values: np.ndarray, index: np.ndarray) -> np.ndarray:
  """Returns float32 [b, …] of the pictures at `index`, NaN where that is −1."""
  rows = values[np.maximum(index, 0)]
  rows[index < 0] = np.nan
  return rows


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
  more_crops: tuple[tuple[str, int, int], ...] = ()
  targets: tuple[str, ...] = ()
  group: int = 1
  resident: bool = False
  # What was found bad, so that it isn't tried again. Only saves time: never says anything that reading wouldn't. So not
  # what the system failed to bring, however often it was tried: a run that is resumed would read it.
  bad: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)
  # Pictures in a row, of all threads, that the system failed to bring.
  failed: list[int] = dataclasses.field(default_factory=list)

  def __post_init__(self) -> None:
    one_of('augment.interpolation', self.interpolation, FILTERS)

  @property
  def _moves(self) -> bool:
    """Whether points go along with crops that are made here."""
    return landmarks.TARGET in self.targets and self.source.image_shape is None

  def __call__(self, rows: np.ndarray) -> dict[str, Any]:
    """int64 [b, 2..3] or [b, G, 3..4] -> {'image', …, 'label', 'index': int32 [b] (−1 where unread), 'bad': JSON [[id, path, why], …]}."""
    if rows.ndim == 3:
      rows = rows.reshape(-1, rows.shape[-1])
    elif self.group > 1:
      rows = np.concatenate([self._members(*map(int, row)) for row in rows])
    shape = self.source.image_shape or (
      (self.views, self.size, self.size, 3) if self.views else (self.size, self.size, 3)
    )
    images = {} if self.resident else {'image': np.zeros((len(rows), *shape), np.uint8)}
    for name, views, size in () if self.source.image_shape else self.more_crops:
      images[name] = np.zeros((len(rows), views, size, size, 3), np.uint8)
    if self._moves:
      images[_BOXES] = np.zeros((len(rows), *((self.views, 4) if self.views else (4,))), np.int32)
    if rows.shape[-1] == 4:
      images[_SWAPPED] = np.full((len(rows), landmarks.POINTS, 2), np.nan, np.float32)
    if self.resident:
      read = [(int(i), {}) for i in rows[:, 1]]
    else:
      read = _in_threads(
        lambda r: self._fill({k: v[r] for k, v in images.items()}, *map(int, rows[r])),
        len(rows),
        self.threads,
      )
    index = np.array([i for i, _ in read], np.int32)
    found = {k: why for _, tried in read for k, why in tried.items()}
    bad = sorted(found)
    if self.replace and (index < 0).any():
      bad = bad[:1]  # nothing can be read at all: one is enough to say so
    offered = sources.targets_of(self.source) if self.targets else {}  # some take time to make
    batch = {
      **images,
      'label': self._labels(index),
      'index': index,
      **{name: _where_read(np.asarray(offered[name], np.float32), index) for name in self.targets},
    }
    if _SWAPPED in batch:
      points = batch.pop(_SWAPPED)
      batch[landmarks.TARGET] = np.where(np.isnan(points), batch[landmarks.TARGET], points)
    if self._moves:
      boxes = batch.pop(_BOXES).astype(np.float32)
      boxes[..., 2:] = np.maximum(boxes[..., 2:], 1)  # 0 where nothing was read
      points = batch[landmarks.TARGET]
      batch[landmarks.TARGET] = landmarks.cropped(points[:, None] if self.views else points, boxes, self.size)
    if self.group > 1:
      batch = {k: v.reshape(-1, self.group, *v.shape[1:]) for k, v in batch.items()}
    return {
      **batch,
      'bad': json.dumps([[self.source.id(k), *found[k]] for k in bad]),
    }

  def _members(self, epoch: int, index: int, place: int | None = None) -> np.ndarray:
    """Returns int64 [G, 3] (epoch, index, place) of a picture and others of its group."""
    place = index if place is None else place
    others = np.setdiff1d(self.source.group(index), [index])
    generator = np.random.Generator(np.random.Philox(key=[self.seed, _GROUPS], counter=[0, 0, place, epoch]))
    if len(others):
      others = generator.choice(others, self.group - 1, replace=len(others) < self.group - 1)
    else:
      others = np.full(self.group - 1, index)
    # Places beyond the pictures' own: one that is drawn into several groups gets other crops in each.
    places = [place, *(len(self.source) + place * self.group + g for g in range(1, self.group))]
    return np.array([(epoch, i, p) for i, p in zip((index, *others), places)], np.int64)

  def _fill(
    self, out: dict[str, np.ndarray], epoch: int, index: int, place: int | None = None, other: int = -1
  ) -> tuple[int, dict[int, tuple[str, str]]]:
    """Reads a picture, or the next readable one, into `out`; with the outline of picture `other`, where there is one.

    Returns:
      Its index or −1, and the bad ones on the way: index -> (path, why).

    Raises:
      UserError: when the system brings no picture any more.
    """
    tried: dict[int, tuple[str, str]] = {}
    place = index if place is None else place
    candidates = () if index < 0 else self._stand_ins(index) if self.replace else (index,)
    for i in candidates:
      if i in self.bad:
        tried[i] = self.bad[i]
        continue
      try:
        for name, pixels in patiently(lambda i=i: self._pictures(i, epoch, place, other)).items():
          out[name][...] = pixels
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

  def _stand_ins(self, index: int) -> Iterator[int]:
    """Yields a picture and what may stand in for it, in turn: those that follow, in a ring; first those of its group, then those from its place on in the next group."""
    n = len(self.source)
    if self.group == 1:
      yield from ((index + k) % n for k in range(n))
      return
    members, seen = np.asarray(self.source.group(index)), set()
    first = int(np.flatnonzero(members == index)[0])
    while int(members[0]) not in seen:
      seen.add(int(members[0]))
      yield from (int(i) for i in np.roll(members, -(first % len(members))))
      members = np.asarray(self.source.group((int(members[-1]) + 1) % n))

  def _pictures(self, i: int, epoch: int, place: int, other: int) -> dict[str, np.ndarray]:
    """Returns picture i as uint8: as it is, in the crops drawn for `place`, or resized as a whole."""
    swapped = self._swapped(i, other) if other >= 0 else None
    pictures, first = {} if swapped is None else {_SWAPPED: swapped[1]}, 0
    if self.source.image_shape is not None:
      return {**pictures, 'image': self.source[i]['image'] if swapped is None else swapped[0]}
    for name, views, size in (('image', self.views, self.size), *self.more_crops):
      whole = None if swapped is None else Image.fromarray(swapped[0])
      crops, boxes = self._crops(i, epoch, place, range(first, first + views), size, whole)
      pictures[name] = crops if views else crops[0]
      if self._moves and name == 'image':
        pictures[_BOXES] = boxes if views else boxes[0]
      first += views
    return pictures

  def _swapped(self, i: int, other: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns picture i with the outline of another, uint8 [H, W, 3], and its points; None where a face is missing."""
    points = sources.targets_of(self.source)[landmarks.TARGET]
    if not np.isfinite(points[[i, other]]).all():
      return None
    inner = self.source[i]['image']
    try:
      outer = self.source[other]['image']
    except BadImage as e:
      if e.transient:
        raise
      return None  # it is named when its own turn comes
    return swap.swap(outer, points[other], inner, points[i])

  def _crops(
    self,
    i: int,
    epoch: int,
    place: int,
    views: Sequence[int],
    size: int,
    whole: Image.Image | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns picture i, or what was made of it, in the crops of these numbers, uint8 [V, size, size, 3], and their boxes [V, 4]; of none, the whole, [1, …]."""
    with sources.open_picture(self.source, i) if whole is None else whole as image:
      path = getattr(image, 'filename', '') or self.source.id(i)
      with sources.reading(path):
        height, width = sources.upright_size(image)
      boxes = np.array([[0, 0, height, width]], np.int32)
      if views:
        u = np.stack([crop_uniforms(self.seed, epoch, place, v) for v in views])
        boxes = crop_boxes(np, u, height, width, self.scale, self.ratio)
      # what is measured is decoded as exported models, PIL pictures and faces are
      return read_crops(image, path, boxes, size, self.interpolation, reduced=bool(views)), boxes

  def _labels(self, index: np.ndarray) -> np.ndarray:
    """Returns int32 [b] or float32 [b, K]; −1 or 0 where nothing was read."""
    shape = ()
    with contextlib.suppress(BadImage):  # where a label is in the picture's own record
      shape = np.shape(self.source.label(int(max(index.max(initial=-1), 0))))
    labels = np.zeros((len(index), *shape), np.float32) if shape else np.full(len(index), -1, np.int32)
    for r, i in enumerate(index):
      if i >= 0:
        labels[r] = self.source.label(int(i))
    return labels

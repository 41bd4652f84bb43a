"""Pictures in files, with whatever folders and lists say of them, each cut out on the way where that is asked for."""

import concurrent.futures
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mimic_jax.data import source as sources
from mimic_jax.data.faces import alignment
from mimic_jax.runtime.errors import UserError

# What is taken for a picture, in either case.
_FORMATS = 'jpg jpeg jpe jfif png bmp webp tif tiff gif ppm pgm pbm pnm jp2 tga avif'
ENDINGS = frozenset(f'.{name}' for name in _FORMATS.split())
# What stands beside pictures: lists, votes, annotations.
LABEL_FILES = frozenset(['.csv', '.tsv', '.txt', '.npy', '.json', '.xml', '.lst', '.md'])
_CHUNK = 64  # files that a thread takes at a time


class Files:
  """Labelled pictures in files, each cut out as an alignment says (a Source).

  Args:
    root: the folder that the paths are relative to.
    paths: one file per picture.
    ids: the pictures' stable names.
    labels: int32 [n], 0..K−1, −1 is none; or float32 [n, K].
    class_names: the K classes.
    record: what record() gives, less the split hash.
    max_pixels: a picture with more is bad.
    image_shape: (H, W, 3) if all pictures have that size once cut out; one that hasn't is bad. None: any size.
    align: how each picture is cut out while it is read; 'none': not at all.
    boxes: float32 [n, 4] left, top, width, height in pixels, for align 'box'.
    points: float32 [n, 5, 2] as alignment.warp takes them, NaN where there are none, for align 'five_point'.
    targets: name -> float32 [n], given beside the label of each picture.
  """

  def __init__(
    self,
    root: str,
    paths: Sequence[str],
    ids: Sequence[str],
    labels: np.ndarray,
    class_names: Sequence[str],
    record: Mapping[str, Any],
    max_pixels: int,
    *,
    image_shape: tuple[int, int, int] | None = None,
    align: alignment.Align | None = None,
    boxes: np.ndarray | None = None,
    points: np.ndarray | None = None,
    targets: Mapping[str, np.ndarray] | None = None,
  ) -> None:
    self.class_names = tuple(class_names)
    self.image_shape = image_shape
    self._root, self._paths, self._ids, self._labels = root, paths, ids, labels
    self._record, self._max_pixels = dict(record), max_pixels
    self._align, self._boxes, self._points = align or alignment.Align(), boxes, points
    self.targets = dict(targets or {})

  @property
  def cuts(self) -> bool:
    """Whether a picture is more than its file's bytes decoded: a face is cut out of it while reading."""
    return self._align.kind != 'none'

  def __len__(self) -> int:
    return len(self._ids)

  def __getitem__(self, i: int) -> dict[str, Any]:
    return self.read(i)

  def read(self, i: int, data: bytes | None = None) -> dict[str, Any]:
    """Returns picture i, from `data` where the file's bytes are in memory already."""
    path = self.path(i)
    if self.cuts:
      with self.open(i, data) as face, sources.reading(path):
        image = np.array(sources.to_rgb(face))
    else:
      image = sources.decode_image(path, self._max_pixels, data)
    if self.image_shape is not None and image.shape != self.image_shape:
      height, width = self.image_shape[:2]
      raise sources.BadImage(path, f'is {image.shape[1]}x{image.shape[0]}, expected {width}x{height}')
    targets = {name: values[i] for name, values in self.targets.items()}
    return {'image': image, 'label': self.label(i), 'id': self.id(i), **targets}

  def open(self, i: int, data: bytes | None = None) -> Image.Image:
    """Returns picture i, of a picture that isn't cut only its header; raises BadImage."""
    path = self.path(i)
    image = sources.open_image(path, self._max_pixels, data)
    if not self.cuts:
      return image
    box, points = (None if v is None else v[i] for v in (self._boxes, self._points))
    size = self.image_shape[0] if self.image_shape else 0
    with image, sources.reading(path):
      image.load()
      try:
        return alignment.apply(self._align, image, box, points, size)
      except ValueError as e:
        raise sources.BadImage(path, str(e)) from None

  def file_bytes(self, i: int) -> bytes:
    path = self.path(i)
    with sources.reading(path), open(path, 'rb') as f:
      return f.read()

  def path(self, i: int) -> str:
    """Returns where picture i is."""
    return os.path.join(self._root, self._paths[i])

  def id(self, i: int) -> str:
    return self._ids[i]

  def label(self, i: int) -> int | np.ndarray:
    return self._labels[i] if self._labels.ndim == 2 else int(self._labels[i])

  def content_hash(self, i: int) -> str:
    return sources.file_hash(self.path(i), self._ids[i])

  def record(self) -> dict[str, Any]:
    return {**self._record, 'split_hash': sources.split_hash(self._ids, self._labels)}


def walk(folder: str) -> Iterator[str]:
  """Yields the files in a folder and below, as paths relative to it with '/': its own first, sorted, then each subfolder's.

  Links are followed. Passed over are hidden files and folders, and the folders of runs, whose pictures are no data.

  Raises:
    UserError: on a link that leads to itself or back to a folder above it.
  """
  yield from _below(folder, '', (os.path.realpath(folder),))


def _below(place: str, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
  folders, names = listed(place)
  for name in names:
    yield prefix + name
  for name in folders:
    inner = os.path.join(place, name)
    real = os.path.realpath(inner)
    if real in above:
      raise UserError(f"'{inner}' is a link back to '{real}', a folder above it; expected none")
    yield from _below(inner, f'{prefix}{name}/', (*above, real))


def listed(folder: str) -> tuple[list[str], list[str]]:
  """Returns the subfolders and the files of a folder that `walk` sees, both sorted; nothing of the folder of a run."""
  folders, names = [], []
  with os.scandir(folder) as entries:
    for entry in entries:
      if entry.name.startswith('.'):
        continue
      try:
        (folders if entry.is_dir() else names).append(entry.name)
      except OSError as e:
        raise UserError(f"'{entry.path}' can't be followed ({e.strerror}); expected no such link") from None
  return ([], []) if {'config.json', 'record.json'} <= set(names) else (sorted(folders), sorted(names))


def files(folder: str) -> list[str]:
  """Returns what `walk` yields, sorted."""
  return sorted(walk(folder))


def find_below(root: str, test: Callable[[str], bool]) -> str | None:
  """Returns the first folder one or two levels below `root` that passes a test."""
  first = [os.path.join(root, name) for name in listed(root)[0]]
  second = (os.path.join(place, name) for place in first for name in listed(place)[0])
  return next(filter(test, itertools.chain(first, second)), None)


def is_picture(path: str) -> bool:
  """Says whether a file is a picture by its ending, and not hidden."""
  name = os.path.basename(path)
  return os.path.splitext(name)[1].lower() in ENDINGS and not name.startswith('.')


def pictures(folder: str) -> list[str]:
  """Returns those of `files` that are pictures."""
  return [path for path in files(folder) if is_picture(path)]


def need_folder(root: str, source: str, needs: str, looked_for: str) -> None:
  """Raises UserError unless data.root is a folder, saying what a source needs and what it looks for there."""
  if not root:
    raise UserError(f"data.root is empty; source '{source}' needs {needs}")
  if not os.path.isdir(root):
    raise UserError(f"data.root '{root}' is not a folder; source '{source}' looks for {looked_for} there")


def prefix_of(root: str, base: str) -> str:
  """Returns what stands before a path relative to `base` to make one relative to `root`."""
  prefix = os.path.relpath(base, root).replace(os.sep, '/')
  return '' if prefix == '.' else f'{prefix}/'


def in_chunks(
  function: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any], threads: int
) -> list[Any]:
  """Returns what `function` makes of all items, a chunk at a time, in `threads` threads: files wait on the disk."""
  chunks = [items[k : k + _CHUNK] for k in range(0, len(items), _CHUNK)]
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    return [value for values in pool.map(function, chunks) for value in values]

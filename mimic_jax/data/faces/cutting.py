"""What the readers of published face sets share: pictures in files, cut out on the way, and a tree held against its lists."""

import concurrent.futures
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mimic_jax.data import source as sources
from mimic_jax.data.faces import alignment
from mimic_jax.data.sets.folder import ENDINGS
from mimic_jax.runtime.errors import UserError

_CHUNK = 64  # files that a thread takes at a time


class Faces:
  """Labelled pictures in files, each cut out as an alignment says (a Source; see DESIGN §3).

  Args:
    root: the folder that the paths are relative to.
    paths: one file per picture.
    ids: the pictures' stable names.
    labels: int32 [n], 0..K−1.
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

  def label(self, i: int) -> int:
    return int(self._labels[i])

  def content_hash(self, i: int) -> str:
    return sources.file_hash(self.path(i), self._ids[i])

  def record(self) -> dict[str, Any]:
    return {**self._record, 'split_hash': sources.split_hash(self._ids, self._labels)}


def files(folder: str) -> list[str]:
  """Returns the files in a folder and below, sorted, as paths relative to it with '/'; hidden folders are passed over."""
  found = []
  for place, folders, names in os.walk(folder):
    folders[:] = [name for name in folders if not name.startswith('.')]
    inside = os.path.relpath(place, folder).replace(os.sep, '/')
    prefix = '' if inside == '.' else inside + '/'
    found += [prefix + name for name in names]
  return sorted(found)


def is_picture(path: str) -> bool:
  """Says whether a file is a picture by its ending, and not hidden."""
  name = os.path.basename(path)
  return os.path.splitext(name)[1].lower() in ENDINGS and not name.startswith('.')


def pictures(folder: str) -> list[str]:
  """Returns those of `files` that are pictures."""
  return [path for path in files(folder) if is_picture(path)]


def unread(paths: Sequence[str], why: str) -> list[str]:
  """Returns a warning that pictures on disk are not read, with their number and the first; [] where there are none."""
  more = f' and {len(paths) - 1} more' if len(paths) > 1 else ''
  return [f'not read, since {why}: {paths[0]}{more}'] if paths else []


def to_keep(
  root: str, paths: Sequence[str], on_disk: Sequence[bool], place: Callable[[int], str], on_bad_image: str
) -> tuple[np.ndarray, dict[str, int]]:
  """Decides which of the pictures that label files name are kept, though not all of them may be on disk.

  Those that `mimic align` left out of a folder that it made are left out here. Of others that are missing
  none may be, unless they are left to whoever reads them.

  Args:
    root: the source's folder.
    paths: of the pictures, relative to it, with '/'.
    on_disk: which of them are there.
    place: says of picture k what names it, as 'file:line'.
    on_bad_image: 'skip' keeps those that are missing.

  Returns:
    The kept ones' numbers, and {'by mimic_jax.align': number left out}, {} where that is none.

  Raises:
    UserError: on a missing picture, with the number of others.
  """
  missing = [k for k, here in enumerate(on_disk) if not here]
  known = left_out(root) if missing else frozenset()
  without = [k for k in missing if paths[k] in known]
  others = [k for k in missing if paths[k] not in known]
  if others and on_bad_image == 'error':
    more = f' (and {len(others) - 1} more)' if len(others) > 1 else ''
    raise UserError(
      f'{os.path.join(root, paths[others[0]])}: does not exist, but {place(others[0])} names it{more}; expected a '
      "picture (data.on_bad_image = 'skip' goes on without)"
    )
  kept = np.delete(np.arange(len(paths)), without)
  return kept, {f'by {alignment.MADE_BY}': len(without)} if without else {}


def left_out(root: str) -> frozenset[str]:
  """Returns the pictures that `mimic align` did not write into a folder that it made."""
  if alignment.of_root(root)['align'] == 'none':
    return frozenset()
  with open(os.path.join(root, alignment.FILE), encoding='utf-8') as f:
    made = json.load(f)
  without_face = made.get('pictures_without_face', []) if made.get('on_missing') == 'keep_out' else []
  return frozenset([*without_face, *made.get('unreadable', {})])


def held_against(
  what: str, counts: Mapping[str, int], published: Sequence[Mapping[str, int]]
) -> dict[str, Any]:
  """Compares the number of pictures of each class with the published ones.

  Args:
    what: 'rafdb train', for the warning.
    counts: class -> number of pictures here.
    published: the same of the release; several where its versions differ, the first being the usual one.

  Returns:
    {'expected_count': int, 'warnings': []}, or with one warning that states both, and says so where the numbers are the
    published ones in another order of the classes.
  """
  expected = [sum(p.values()) for p in published]
  if any(dict(counts) == dict(p) for p in published):
    return {'expected_count': sum(counts.values()), 'warnings': []}

  def said(numbers: Mapping[str, int]) -> str:
    return f'{sum(numbers.values())} pictures ({"/".join(map(str, numbers.values()))})'

  differs = f'{what} has {said(counts)}, the published release {" or ".join(map(said, published))}'
  if any(sorted(counts.values()) == sorted(p.values()) for p in published):
    differs += (
      f': the same numbers of other classes, so the class order looks wrong; expected {", ".join(counts)}'
    )
  return {'expected_count': expected[0], 'warnings': [differs]}


def in_chunks(
  function: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any], threads: int
) -> list[Any]:
  """Returns what `function` makes of all items, a chunk at a time, in `threads` threads: files wait on the disk."""
  chunks = [items[k : k + _CHUNK] for k in range(0, len(items), _CHUNK)]
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    return [value for values in pool.map(function, chunks) for value in values]

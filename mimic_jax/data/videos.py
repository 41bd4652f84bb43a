"""Frames of videos as a source of groups, by PyAV (`pip install 'mimic-jax[clips]'`): each is sought and decoded when it is asked for."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mimic_jax.data import source as sources
from mimic_jax.data.bad_image import BadImage, patiently, reading
from mimic_jax.data.files import in_chunks
from mimic_jax.runtime.errors import UserError

ENDINGS = frozenset(
  ['.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.wmv', '.flv', '.3gp']
)


def is_video(path: str) -> bool:
  """Says whether a file is a video by its ending, and not hidden."""
  name = os.path.basename(path)
  return os.path.splitext(name)[1].lower() in ENDINGS and not name.startswith('.')


@contextmanager
def _opened(path: str) -> Iterator[tuple[Any, Any]]:
  """Yields PyAV's container and its first video stream; raises BadImage on what is no video, UserError without PyAV."""
  try:
    import av
  except ImportError as e:
    raise UserError(
      f"videos need PyAV ({e}); expected it installed: pip install 'mimic-jax[clips]'"
    ) from None
  with reading(path), av.open(path) as container:  # PyAV's errors are Python's, too
    if not container.streams.video:
      raise BadImage(path, 'has no pictures in it')
    yield container, container.streams.video[0]


def _seconds(container: Any, stream: Any) -> float:
  """Returns how long a video is by its header, 0 where that does not say."""
  if stream.duration:
    return float(stream.duration * stream.time_base)
  return (container.duration or 0) / 1e6


def counted(
  root: str, names: Sequence[str], fps: float, threads: int, on_bad_image: str
) -> tuple[list[int], dict[str, str]]:
  """Returns how many frames each video has at `fps` a second, by its header, and name → why of those without.

  Args:
    root: the folder that the names are relative to.
    names: of the videos.
    fps: frames per second.
    threads: that open them.
    on_bad_image: of a video that can't be opened or does not say how long it is: 'error', or 'skip': it has 0 frames.

  Raises:
    UserError: on such a one where that is an error, where all are, where the system fails to bring one, and without PyAV.
  """

  def of(chunk: Sequence[str]) -> list[int | BadImage]:
    counts: list[int | BadImage] = []
    for name in chunk:
      try:
        counts.append(patiently(lambda name=name: _count(os.path.join(root, name), fps)))
      except BadImage as e:
        if on_bad_image == 'error' or e.transient:
          raise
        counts.append(e)
    return counts

  found = in_chunks(of, names, threads)
  bad = {name: e.why for name, e in zip(names, found) if isinstance(e, BadImage)}
  if len(bad) == len(names):
    raise UserError(f'none of the {len(names)} videos can be read; one of them: {found[0]}')
  return [0 if isinstance(n, BadImage) else n for n in found], bad


def _count(path: str, fps: float) -> int:
  with _opened(path) as (container, stream):
    seconds = _seconds(container, stream)
  if seconds <= 0:
    raise BadImage(path, 'does not say how long it is')
  return max(1, int(seconds * fps + 1e-6))


class Videos:
  """Frames of videos, each video a group (a Source).

  Args:
    root: the folder that the names are relative to.
    names: of the videos.
    counts: frames of each.
    fps: frames per second; frame k is what is shown at k / fps seconds, turned as the video says.
    targets: name → [n, …], of all frames.
    record: what record() gives, less the split hash.
    max_pixels: a frame with more is bad.
  """

  class_names: tuple[str, ...] = ()
  image_shape = None

  def __init__(
    self,
    root: str,
    names: Sequence[str],
    counts: Sequence[int],
    fps: float,
    targets: Mapping[str, np.ndarray],
    record: Mapping[str, Any],
    max_pixels: int,
  ) -> None:
    self._root, self._names, self._fps, self._max_pixels = root, tuple(names), fps, max_pixels
    self._ends = np.cumsum(counts)
    self._record, self.targets = dict(record), dict(targets)

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Returns {'image': uint8 [H, W, 3], 'label', 'id', …}; raises BadImage where the video ends before its header says."""
    video, k = self._place(i)
    path, at = os.path.join(self._root, self._names[video]), k / self._fps
    targets = {name: values[i] for name, values in self.targets.items()}
    return {'image': self._frame(path, at), 'label': -1, 'id': self.id(i), **targets}

  def _frame(self, path: str, at: float) -> np.ndarray:
    with _opened(path) as (container, stream):
      if stream.width * stream.height > self._max_pixels:
        raise BadImage(
          path, f'has {stream.width}x{stream.height} pixels, more than max_pixels = {self._max_pixels}'
        )
      begins = stream.start_time or 0
      container.seek(begins + int(at / stream.time_base), stream=stream)
      due, shown = at + float(begins * stream.time_base) + 1e-3, None
      for frame in container.decode(stream):
        if shown is not None and (frame.time or 0) > due:
          break
        shown = frame
      else:  # the last frame stays for as long as any, and for a film without a rate until the end
        rate = stream.average_rate
        if shown is None or (rate and due > (shown.time or 0) + 1.5 / rate):
          raise BadImage(path, f'ends before {at:.2f} s; its header says {_seconds(container, stream):.2f} s')
      return np.rot90(shown.to_ndarray(format='rgb24'), shown.rotation // 90)

  def _place(self, i: int) -> tuple[int, int]:
    if not 0 <= i < len(self):
      raise IndexError(i)
    video = int(np.searchsorted(self._ends, i, side='right'))
    return video, i - (int(self._ends[video - 1]) if video else 0)

  def group(self, i: int) -> np.ndarray:
    """Returns the frames of i's video, int64 [m], in their order."""
    video, k = self._place(i)
    return np.arange(i - k, self._ends[video])

  def id(self, i: int) -> str:
    """Returns the frame's stable name, such as 'ann/1.mp4@3.360s'."""
    video, k = self._place(i)
    return f'{self._names[video]}@{k / self._fps:.3f}s'

  def label(self, i: int) -> int:
    del i
    return -1

  def content_hash(self, i: int) -> str:
    """Returns the SHA-256 of the decoded pixels, of a frame that can't be read a value of its own."""
    try:
      return sources.array_hash(self[i]['image'])
    except BadImage:
      return f'unreadable:{self.id(i)}'

  def record(self) -> dict[str, Any]:
    n = len(self)
    return {**self._record, 'split_hash': sources.split_hash([self.id(i) for i in range(n)], [-1] * n)}

"""Frames of videos as a source of groups, by PyAV (`pip install 'mimic-jax[clips]'`): each is sought and decoded when it is asked for."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from mimic_jax.data import source as sources
from mimic_jax.data.bad_image import BadImage
from mimic_jax.data.files import in_chunks
from mimic_jax.runtime.errors import READ_ERRORS, UserError

ENDINGS = frozenset(['.mp4', '.m4v', '.mov', '.mkv', '.webm', '.avi'])


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
  try:
    with av.open(path) as container:
      if not container.streams.video:
        raise BadImage(path, 'has no pictures in it')
      yield container, container.streams.video[0]
  except BadImage:
    raise
  except READ_ERRORS as e:  # PyAV's are among them
    raise BadImage(path, f'is no video that PyAV can read ({str(e).splitlines()[0]})') from None


def _seconds(container: Any, stream: Any) -> float:
  """Returns how long a video is by its header, 0 where that does not say."""
  if stream.duration:
    return float(stream.duration * stream.time_base)
  return (container.duration or 0) / 1e6


def counted(root: str, names: Sequence[str], fps: float, threads: int) -> list[int]:
  """Returns how many frames each video has at `fps` a second, by its header.

  Raises:
    UserError: on one that can't be opened or does not say how long it is, and without PyAV.
  """

  def of(chunk: Sequence[str]) -> list[int]:
    counts = []
    for name in chunk:
      path = os.path.join(root, name)
      with _opened(path) as (container, stream):
        seconds = _seconds(container, stream)
      if seconds <= 0:
        raise BadImage(path, 'does not say how long it is')
      counts.append(max(1, int(seconds * fps + 1e-6)))
    return counts

  return in_chunks(of, names, threads)


class Videos:
  """Frames of videos, each video a group (a Source).

  Args:
    root: the folder that the names are relative to.
    names: of the videos.
    counts: frames of each.
    fps: frames per second; frame k is the first that is shown at k / fps seconds or later.
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
      due = at + float(begins * stream.time_base) - 1e-3
      for frame in container.decode(stream):
        if frame.time is not None and frame.time >= due:
          return frame.to_ndarray(format='rgb24')
      raise BadImage(path, f'ends before {at:.2f} s; its header says {_seconds(container, stream):.2f} s')

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
    """Returns the frame's stable name, such as 'ann/1.mp4@3.36s'."""
    video, k = self._place(i)
    return f'{self._names[video]}@{k / self._fps:.2f}s'

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

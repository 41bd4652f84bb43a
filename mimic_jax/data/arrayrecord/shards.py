"""What the builders of data sets need to write files that outlive an interruption: pictures as they go in, notes, a lock."""

import collections
import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mimic_jax.data import source as sources
from mimic_jax.data.arrayrecord import prepared
from mimic_jax.data.source import BadImage, Source
from mimic_jax.runtime.errors import UserError

_AHEAD = 4  # pictures that each thread reads ahead
_LOCK = 'lock'


class Taken(NamedTuple):
  """A picture as it goes into the set.

  Attributes:
    encoded: its file's bytes; a PNG of its pixels where it was cut out of a file or has none.
    content_hash: the source's.
    targets: named numbers beside the label.
  """

  encoded: bytes
  content_hash: str
  targets: dict[str, float]


class Content(NamedTuple):
  """What is in a file of a set.

  Attributes:
    index: of each picture, its index in the source.
    hashes: of each, the content hash.
    targets: of each, the targets' values.
    left_out: why pictures are missing.
  """

  index: list[int]
  hashes: list[str]
  targets: list[list[float]]
  left_out: list[str]

  def add(self, i: int, taken: Taken | BadImage) -> bool:
    """Notes a picture; returns whether it goes into the file."""
    if isinstance(taken, BadImage):
      self.left_out.append(str(taken))
      return False
    self.index.append(i)
    self.hashes.append(taken.content_hash)
    self.targets.append(list(taken.targets.values()))
    return True


def take(source: Source, i: int, targets: Sequence[str], hash_of_file: bool) -> Taken:
  """Reads picture i of a source as it goes into a set.

  Args:
    source: of the picture.
    i: its index.
    targets: the names of numbers beside the label; NaN where the source has none by that name.
    hash_of_file: as hash_is_of_file says; saves reading a file twice.

  Raises:
    BadImage: on a picture whose header can't be read. Pixels are only decoded where something hangs on them: of a cut
      face, and where all pictures are to have one size.
  """
  keeps = keeps_files(source)
  decoded = bool(targets) or source.image_shape is not None or not keeps
  item = source[i] if decoded else {}
  encoded = source.file_bytes(i) if keeps else sources.encode_png(item['image'])
  if not decoded:
    source.open(i, encoded).close()
  content_hash = hashlib.sha256(encoded).hexdigest() if hash_of_file else source.content_hash(i)
  return Taken(encoded, content_hash, {name: float(item.get(name, math.nan)) for name in targets})


def begin(work: pathlib.Path, plan: Mapping[str, Any], say: Callable[[str], None]) -> None:
  """Empties the folder of unfinished files unless it was begun with this plan."""
  path = prepared.record_path(work)
  begun = json.loads(path.read_text('utf-8')) if path.exists() else None
  if begun == plan:
    return
  if begun is not None:
    say('what was begun before was of other pictures or options: starting anew')
  for old in work.iterdir():
    if old.name != _LOCK:
      old.unlink()
  prepared.write_record(path, plan)


@contextlib.contextmanager
def alone(work: pathlib.Path) -> Iterator[None]:
  """Holds the folder of unfinished files; raises UserError where another process does."""
  work.mkdir(parents=True, exist_ok=True)
  with open(work / _LOCK, 'w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(
        f'{work}: another process prepares this data set; expected only one at a time'
      ) from None
    yield


def in_order(function: Callable[[int], Any], index: Sequence[int], threads: int) -> Iterator[Any]:
  """Yields function(i) for each i in order, computed by threads that run only a little ahead: memory stays flat."""
  waiting: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    try:
      for i in index:
        waiting.append(pool.submit(function, i))
        if len(waiting) >= _AHEAD * threads:
          yield waiting.popleft().result()
      while waiting:
        yield waiting.popleft().result()
    finally:
      for future in waiting:
        future.cancel()


def keeps_files(source: Source) -> bool:
  """Says whether a picture is its file's bytes decoded."""
  return hasattr(source, 'file_bytes') and not getattr(source, 'cuts', False)


def hash_is_of_file(source: Source, index: Sequence[int]) -> bool:
  """Says whether the source's content hashes are those of its files, by the first that can be read."""
  for i in index if keeps_files(source) else ():
    with contextlib.suppress(BadImage):
      return hashlib.sha256(source.file_bytes(i)).hexdigest() == source.content_hash(i)
  return False

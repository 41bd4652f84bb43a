"""Files of object stores, brought into a cache on this host: what reads pictures and weights needs files with names.

They lie in $XDG_CACHE_HOME/mimic_jax/remote (~/.cache/…) under their own names and with the store's own time, so that a listing tells
what has changed. One that is being fetched is `.NAME.….part`: whoever holds its lock fetches it, other processes wait, and
a fetch that was cut off goes on. fsspec is what etils.epath reads gs:// with; used itself here, it also says checksums.
"""

import base64
import concurrent.futures
import fcntl
import functools
import hashlib
import importlib
import importlib.util
import os
import pathlib
import shutil
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, TypeVar

from tqdm import tqdm

from mimic_jax.runtime import files
from mimic_jax.runtime.errors import UserError, one_of, short

SCHEMES = ('gs', 's3', 'az', 'hf')  # those of etils.epath
THREADS = 16  # files at a time: a small one is mostly waiting
CHUNK = 8 << 20  # bytes asked for at a time
PAUSES = (1.0, 10.0)  # seconds before the store is asked again; gcsfs itself tries for a minute each time
POLL_SECONDS = 0.2  # between looks at whether another process has a file

T = TypeVar('T')


def fetched(url: str, field: str, wanted: Callable[[str], bool] = lambda name: True) -> str:
  """Returns where a remote file or folder lies on this host, after fetching what is not there yet as it is in the store.

  Hidden files and folders stay behind. What the store no longer has is removed from the cache.

  Args:
    url: 'gs://…'; a path on this machine is returned as it is.
    field: that holds it, for errors.
    wanted: which files of a folder, by their paths relative to it.

  Raises:
    UserError: when there is nothing, it can't be read after several tries, a file is not what the store says of it, or
      there is no room.
  """
  if not files.is_remote(url):
    return url
  url, what = url.rstrip('/'), f"{field} is '{url}'"
  scheme, _, path = url.partition('://')
  one_of(f'the scheme of {field}', scheme, SCHEMES)
  store, found = patiently(lambda: _listed(url), what)
  found = {name: info for name, info in found.items() if not _hidden(name) and wanted(name)}
  if not found:
    raise UserError(f'{what}, which does not exist or is empty; expected a file or a folder with files')
  place = os.path.join(files.cache_folder(), 'remote', scheme, path)
  try:
    for name in _below(place):
      if name not in found and wanted(name):
        pathlib.Path(place, name).unlink(missing_ok=True)
    missing = {str(pathlib.Path(place, name)): info for name, info in found.items()}
    missing = {target: info for target, info in missing.items() if not _is_current(target, info)}
    if missing:
      _fetch_all(store, missing, what, place)
  except OSError as e:
    raise UserError(
      f"{what}: {e.filename or place} can't be written ({e.strerror or e}); expected a cache folder with room ($XDG_CACHE_HOME)"
    ) from e
  return place


def patiently(ask: Callable[[], T], what: str) -> T:
  """Returns ask(), asked again after each of PAUSES while the store fails.

  Args:
    ask: asks the store.
    what: field and value, for errors.

  Raises:
    UserError: when it keeps failing, or at once when asking again would bring the same.
  """
  for pause in (*PAUSES, None):
    try:
      return ask()
    except UserError:
      raise
    except ImportError as e:
      raise UserError(f'{what}: {e}; expected the package that reads it (gs://: pip install gcsfs)') from e
    except Exception as e:  # each store has its own kinds
      if pause is None or _is_lasting(e):
        raise UserError(
          f"{what}, which can't be read ({short(e)}); expected what this machine may read"
        ) from e
      time.sleep(pause)
  raise AssertionError


def _is_lasting(e: Exception) -> bool:
  """Returns whether a store would answer the same again."""
  if isinstance(e, FileNotFoundError | PermissionError | ValueError):
    return True
  code = str(getattr(e, 'code', ''))
  # 'Forbidden' is gcsfs's 403
  return (code.startswith('4') and code not in ('408', '429')) or str(e).startswith('Forbidden')


def _listed(url: str) -> tuple[Any, dict[str, Mapping[str, Any]]]:
  """Returns fsspec's file system, and of each file its path relative to `url` ('' = it is itself one) and what the store says."""
  import fsspec  # a fifth of a second that nothing on this machine needs

  store, path = fsspec.core.url_to_fs(url)
  found = store.find(path, detail=True)
  if path in found:
    return store, {'': found[path] or store.info(path)}
  return store, {name[len(path) + 1 :]: info for name, info in found.items() if info['type'] == 'file'}


def _hidden(name: str) -> bool:
  """Returns whether a path has a part that begins with a dot, as '..' does, too."""
  return any(part.startswith('.') for part in name.split('/'))


def _below(place: str) -> Iterator[str]:
  """Yields the files that are in the cache, relative to `place`; '' when that is one."""
  if os.path.isfile(place):
    yield ''
  for folder, _, names in os.walk(place):
    for name in names:
      if not name.startswith('.'):
        yield os.path.relpath(os.path.join(folder, name), place)


def _time(info: Mapping[str, Any]) -> int | None:
  """Returns when a file was last written, in whole seconds; None where the store does not say."""
  said = info.get('mtime') or info.get('LastModified') or info.get('last_modified')
  return said if said is None else int(said.timestamp() if hasattr(said, 'timestamp') else said)


def _is_current(target: str, info: Mapping[str, Any]) -> bool:
  """Returns whether a file in the cache is the store's, by size and time."""
  try:
    here = os.stat(target)
  except OSError:
    return False
  return here.st_size == info['size'] and _time(info) in (None, int(here.st_mtime))


def _fetch_all(store: Any, missing: Mapping[str, Mapping[str, Any]], what: str, place: str) -> None:
  """Fetches files (target -> what the store says), several at a time, with a bar."""
  os.makedirs(os.path.dirname(place), exist_ok=True)
  total = sum(info['size'] for info in missing.values())
  begun = sum(_size(_part(target, info)) for target, info in missing.items())
  free = shutil.disk_usage(os.path.dirname(place)).free
  if total - begun > free:
    raise UserError(
      f'{what}, of which {(total - begun) / 1e9:.1f} GB are to be fetched; expected room for them in {place}, where '
      f'{free / 1e9:.1f} GB are free ($XDG_CACHE_HOME)'
    )
  many = f'{len(missing)} file{"s" * (len(missing) > 1)}'
  print(f'{what}: fetching {many}, {total / 1e6:.1f} MB, to {place}', file=sys.stderr, flush=True)
  stop = threading.Event()
  with (
    tqdm(total=total, unit='B', unit_scale=True, mininterval=1.0, disable=None) as bar,
    concurrent.futures.ThreadPoolExecutor(THREADS) as pool,
  ):
    jobs = [
      pool.submit(_fetch, store, info, target, what, bar.update, stop) for target, info in missing.items()
    ]
    try:
      for job in concurrent.futures.as_completed(jobs):
        job.result()
    except BaseException:
      stop.set()
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _size(path: str) -> int:
  try:
    return os.path.getsize(path)
  except FileNotFoundError:
    return 0


def _part(target: str, info: Mapping[str, Any]) -> str:
  """Returns where a file is while it is fetched; a new version in the store begins a new one."""
  said = [info['size'], _time(info), *(info.get(k) for k in ('md5Hash', 'crc32c', 'ETag', 'etag'))]
  folder, name = os.path.split(target)
  return os.path.join(folder, f'.{name}.{zlib.crc32(repr(said).encode()):08x}.part')


def _fetch(
  store: Any,
  info: Mapping[str, Any],
  target: str,
  what: str,
  update: Callable[[int], Any],
  stop: threading.Event,
) -> None:
  """Fetches a file unless another process brings it meanwhile; `update` is told the bytes, `stop` ends it early."""
  what = f"{what}: '{info['name']}'"
  os.makedirs(os.path.dirname(target), exist_ok=True)
  part = _part(target, info)
  while not stop.is_set():
    with open(part, 'ab+') as f:
      while not _locked(f) and not stop.wait(POLL_SECONDS):
        pass
      if _is_current(target, info):
        pathlib.Path(part).unlink(missing_ok=True)
        update(info['size'])
        return
      if (
        stop.is_set() or not os.path.exists(part) or not os.path.samestat(os.fstat(f.fileno()), os.stat(part))
      ):
        continue  # another process has put it away
      for again in (True, False):
        _go_on(store, info, f, what, update, stop)
        if stop.is_set():
          return
        wrong = _differs(f, info)
        if not wrong:
          break
        f.truncate(0)
        if not again:
          raise UserError(
            f'{what}, whose {wrong} is twice not what the store says; expected a whole file there'
          )
        update(-info['size'])
      f.flush()
      os.fsync(f.fileno())
      os.utime(part, (time.time(), _time(info) or time.time()))
      os.replace(part, target)
      return


def _locked(f: IO[bytes]) -> bool:
  try:
    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True


def _go_on(
  store: Any,
  info: Mapping[str, Any],
  f: IO[bytes],
  what: str,
  update: Callable[[int], Any],
  stop: threading.Event,
) -> None:
  """Adds to a file what is missing at its end."""
  at = f.seek(0, os.SEEK_END)
  update(at)
  while at < info['size'] and not stop.is_set():
    data = patiently(functools.partial(_bytes, store, info['name'], at, min(at + CHUNK, info['size'])), what)
    f.write(data)
    f.flush()
    at += len(data)
    update(len(data))


def _bytes(store: Any, name: str, start: int, end: int) -> bytes:
  data = store.cat_file(name, start=start, end=end)
  if len(data) != end - start:
    raise OSError(f'{len(data)} bytes came of {end - start}')
  return data


def _differs(f: IO[bytes], info: Mapping[str, Any]) -> str:
  """Returns what of a file is not as the store says, its size or a checksum; '' when nothing is."""
  if f.seek(0, os.SEEK_END) != info['size']:
    return 'size'
  if info.get('md5Hash'):
    name, digest = 'md5Hash', hashlib.md5(usedforsecurity=False)
  elif info.get('crc32c') and importlib.util.find_spec('google_crc32c'):  # which gcsfs brings
    name, digest = 'crc32c', importlib.import_module('google_crc32c').Checksum()
  else:
    return ''
  f.seek(0)
  while data := f.read(1 << 20):
    digest.update(data)
  return '' if base64.b64encode(digest.digest()).decode() == info[name] else name

"""An object store that isn't there: fsspec's gs:// over a folder, which notes what is asked of it and fails when told to."""

import base64
import datetime
import hashlib
import io
import os
import pathlib

import fsspec
from etils.epath import backend

from mimic_jax.runtime import remote


class Store(fsspec.AbstractFileSystem):
  """Buckets are folders in `folder`. What is asked goes to `log`, a line each, also from other processes.

  `failures`: raised one after the other by what is asked next, None = nothing; `sums`: the checksums that it says of every file,
  {} = its MD5; `torn`: so many of the next answers with bytes have one altered.
  """

  protocol = ('gs', 'gcs')
  cachable = False
  folder: pathlib.Path
  log: pathlib.Path
  failures: list[Exception | None]
  sums: dict[str, str]
  torn: int

  def _asked(self, what, name, count=0):
    error = self.failures.pop(0) if self.failures else None
    with open(self.log, 'a') as f:
      f.write(f'{what} {name} {0 if error else count}\n')
    if error is not None:
      raise error

  def info(self, path, **kwargs):
    name = self._strip_protocol(path)
    self._asked('info', name)
    return self._info(name)

  def _info(self, name):
    file = self.folder / name
    if file.is_dir():
      return {'name': name, 'size': 0, 'type': 'directory'}
    data = file.read_bytes()
    time = datetime.datetime.fromtimestamp(file.stat().st_mtime, datetime.UTC)
    sums = self.sums or {'md5Hash': base64.b64encode(hashlib.md5(data).digest()).decode()}
    return {'name': name, 'size': len(data), 'type': 'file', 'mtime': time, **sums}

  def exists(self, path, **kwargs):
    try:
      return bool(self.info(path))
    except FileNotFoundError:  # any other error is the caller's to see, as with gcsfs
      return False

  def ls(self, path, detail=True, **kwargs):
    name = self._strip_protocol(path)
    self._asked('list', name)
    found = [self._info(f'{name}/{entry}') for entry in sorted(os.listdir(self.folder / name))]
    return found if detail else [info['name'] for info in found]

  def find(self, path, detail=False, **kwargs):
    name = self._strip_protocol(path)
    self._asked('list', name)
    place = self.folder / name
    inside = [place] if place.is_file() else sorted(p for p in place.rglob('*') if p.is_file())
    return {n: self._info(n) for n in (str(p.relative_to(self.folder)) for p in inside)}

  def cat_file(self, path, start=None, end=None, **kwargs):
    name = self._strip_protocol(path)
    data = (self.folder / name).read_bytes()[start:end]
    self._asked('read', name, len(data))
    if self.torn:
      type(self).torn -= 1
      data = bytes([data[0] ^ 1]) + data[1:]
    return data

  def _open(self, path, mode='rb', **kwargs):
    return io.BytesIO(self.cat_file(path))

  @classmethod
  def said(cls, what):
    """Returns (name, count) of what was asked since the last time."""
    lines = [line.split(' ') for line in cls.log.read_text().splitlines()] if cls.log.exists() else []
    cls.log.unlink(missing_ok=True)
    return [(' '.join(rest), int(count)) for kind, *rest, count in lines if kind == what]

  @classmethod
  def read(cls):
    """Returns how many bytes were read since the last time."""
    return sum(count for _, count in cls.said('read'))


def stand_in(folder, log):
  """Makes gs:// this store, in this process; asking again takes no time."""
  Store.folder, Store.log, Store.failures, Store.sums, Store.torn = folder, log, [], {}, 0
  for name in Store.protocol:
    fsspec.register_implementation(name, Store, clobber=True)
  backend.fsspec_backend._get_filesystem.cache_clear()
  remote.PAUSES = (0.0, 0.0)
  return Store

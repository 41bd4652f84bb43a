"""Who works in a run's folder: a file there names the program, and a second program refuses.

File locks are not used: they don't reach across hosts on every file system, and object stores have none. The file says
which process holds the folder, and that process rewrites it every BEAT_SECONDS. Whoever comes next asks the process
table if the holder was a process of this machine, and else watches whether the file still changes. Neither step
compares the clocks of two machines closely: only a beat older than STALE_SECONDS is taken for dead without watching.

Nothing here needs more of a file system than that a file can be written and read back, which object stores have, too: whoever
wrote waits a moment and reads whose file it is, and the last one to write has the folder. A program that stood still for longer
than that moment between its last look and its write, or one that was suspended for so long that another took over, is
found at the next beat: the program whose file it no longer is stops.
"""

import contextlib
import dataclasses
import datetime
import errno
import json
import os
import pathlib
import platform
import threading
import time
import uuid
from collections.abc import Callable

from absl import logging
from etils import epath

from mimic_jax.runtime import files
from mimic_jax.runtime.errors import UserError

FILE = 'lock.json'  # every file that is made here has this in its name
BEAT_SECONDS = 15.0  # between rewrites of the file
WATCH_SECONDS = 2 * BEAT_SECONDS + 5.0  # a holder that wrote nothing for so long is not at work
STALE_SECONDS = 600.0  # a beat this old by the wall clock needs no watching
POLL_SECONDS = 1.0  # between looks while watching
SETTLE_SECONDS = 0.25  # longer than it takes from a look at the file to the end of the write that follows it
REMOTE_SETTLE_SECONDS = 3.0  # the same on an object store
TRIES = 10  # of a file that keeps coming and going


@dataclasses.dataclass(frozen=True)
class Holder:
  """What the file says: the process that holds the folder and when it last said so."""

  host: str
  boot: str  # of the machine's last start, and the process ids' namespace: containers share host names
  namespace: str
  pid: int
  started: str  # of the process: process ids are used again
  token: str  # one per lease
  since: str  # when the folder was taken, for people
  beat: int
  time: float  # of the beat

  def __str__(self) -> str:
    """Returns who it is, for messages."""
    return f'process {self.pid} on {self.host} (since {self.since})'


class Lost(UserError):  # noqa: N818
  """Another program writes in the folder now: nothing more may be written."""


def holder(folder: epath.Path) -> str:
  """Returns who is at work in a folder, in words, as far as that is seen from here without waiting; '' for nobody.

  A process of another machine counts until its beat is STALE_SECONDS old.
  """
  try:
    held = _parse((folder / FILE).read_bytes())
  except FileNotFoundError:
    return ''
  if held is None:
    return ''
  alive = _alive(held)
  return str(held) if alive or (alive is None and time.time() - held.time < STALE_SECONDS) else ''


class Lease:
  """The right to write in a folder. `acquire` it before anything is written, `check` it on the way, `release` it."""

  def __init__(self, folder: epath.Path, say: Callable[[str], None] = print):
    """Takes the folder, which need not exist, and what is given a line when `acquire` has to wait."""
    self._folder = epath.Path(folder)
    self._path = self._folder / FILE
    self._say = say
    self._token = uuid.uuid4().hex
    self._mine: Holder | None = None
    self._lost = ''  # why the folder is no longer this program's
    self._looked = 0.0  # when the file was last looked at, by the monotonic clock
    self._stop = threading.Event()
    self._thread: threading.Thread | None = None

  def acquire(self) -> None:
    """Takes the folder, making it if it isn't there, and keeps it until `release`.

    Takes SETTLE_SECONDS (REMOTE_SETTLE_SECONDS on an object store) when nobody holds it, or a process of this machine
    that is gone; and WATCH_SECONDS more when the holder can't be seen from here (another host, another container, a
    garbled file).

    Raises:
      UserError: naming the holder, when there is one; or the file, when it can't be read or written.
    """
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
      for _ in range(TRIES):
        if self._try():
          break
      else:
        raise UserError(f'{self._path} keeps changing; expected that no other program uses {self._folder}')
    except OSError as e:
      raise UserError(f'{self._path}: can not be read or written ({e.strerror or e})') from e
    self._lost, self._looked, self._stop = '', time.monotonic(), threading.Event()
    # A daemon: a program that ends without `release` must end. The file it leaves names a process that is gone.
    self._thread = threading.Thread(target=self._keep, args=(self._stop,), name='lease', daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Does nothing while the folder is this program's. Cheap: call it at every step, and before a checkpoint.

    Reads the file only when the thread that keeps watch has not done so for WATCH_SECONDS, as after the program was
    suspended: another may have taken over meanwhile.

    Raises:
      Lost: when another program has taken over, or the file is gone.
    """
    if self._thread is not None and not self._lost and time.monotonic() - self._looked > WATCH_SECONDS:
      self._look()
    if self._lost:
      raise Lost(self._lost)

  def release(self) -> None:
    """Gives the folder back if it is still this program's; does nothing otherwise. Raises nothing: it may be called on
    the way out of another error, which matters more. What is left behind names a process that will be gone."""
    if self._thread is None:
      return
    self._stop.set()
    # it may be in the middle of a write; a file system that hangs is not waited for
    self._thread.join(BEAT_SECONDS)
    self._thread = None
    try:
      holder = _parse(self._read() or b'')
      if holder and holder.token == self._token:
        self._path.unlink()
    except Exception as e:
      logging.warning('%s can not be removed (%s)', self._path, e)

  def _try(self) -> bool:
    """Returns whether the folder was free and is this program's now; False when the file changed on the way.

    Raises:
      UserError: when another program holds it.
    """
    self._mine = _this_process(self._token)
    if (raw := self._read()) is not None:
      holder = _parse(raw)
      alive = _alive(holder) if holder else None
      if alive:
        raise self._in_use(holder)
      if (alive is None and not self._silent(raw, holder)) or self._read() != raw:
        return False
    self._put()
    time.sleep(self._settle())
    holder = _parse(self._read() or b'')
    if holder and holder.token != self._token:
      raise self._in_use(holder)
    return holder is not None

  def _settle(self) -> float:
    return REMOTE_SETTLE_SECONDS if files.is_remote(self._path) else SETTLE_SECONDS

  def _in_use(self, holder: Holder) -> UserError:
    return UserError(
      f'{self._folder} is in use by {holder}; expected that it has ended, or another --workdir'
    )

  def _silent(self, raw: bytes, holder: Holder | None) -> bool:
    """Returns whether `raw`, what the file holds, is from a program that no longer works; False: look at it anew.

    Raises:
      UserError: when it works.
    """
    if holder and time.time() - holder.time > STALE_SECONDS:
      return True
    who = f'{holder} used it last' if holder else f'{FILE} is not what mimic_jax wrote'
    self._say(f'{self._folder}: {who}; waiting {WATCH_SECONDS:.0f} s to see whether it is still at work')
    end = time.monotonic() + WATCH_SECONDS
    while (left := end - time.monotonic()) > 0:
      time.sleep(min(left, POLL_SECONDS))
      now = self._read()
      if now == raw:
        continue
      seen = _parse(now) if now is not None else None
      if holder and seen:
        raise self._in_use(seen)
      return False  # released; or garbled before, which may have been a write in progress
    return True

  def _read(self) -> bytes | None:
    """Returns what the file holds; None when there is none."""
    for again in (True, True, False):
      try:
        return self._path.read_bytes()
      except FileNotFoundError:
        return None
      except OSError as e:
        # NFS: another host put the next beat in place of the file that was just opened.
        if not again or e.errno != errno.ESTALE:
          raise
    return None

  def _keep(self, stop: threading.Event) -> None:
    """Rewrites the file until `stop` is set or the file is another's; the body of the thread."""
    failing = False
    while not stop.wait(BEAT_SECONDS):
      try:
        if self._look() and not stop.is_set():
          self._write_beat()
          failing = False
        if self._lost:
          return
      except Exception as e:
        # A full disk or a file server that is away: the lease is kept as long as nobody else takes it.
        if not failing:
          logging.warning('%s can not be written (%s); tried again every %g s', self._path, e, BEAT_SECONDS)
        failing = True

  def _look(self) -> bool:
    """Returns whether the file is this program's; sets `_lost` when it is not. One that can't be read says nothing."""
    try:
      for pause in (0.0, self._settle()):  # an object store's may be half written
        time.sleep(pause)
        raw = self._read()
        holder = _parse(raw) if raw is not None else None
        if holder:
          break
    except Exception as e:  # object stores have their own kinds
      logging.warning('%s can not be read (%s)', self._path, e)
      return False
    finally:
      self._looked = time.monotonic()
    if not holder:
      self._lost = (
        f'{self._path} is {"garbled" if raw is not None else "gone"}: another program used {self._folder}, or someone '
        'removed it; expected one program per --workdir'
      )
    elif holder.token != self._token:
      self._lost = f'{self._folder} was taken over by {holder}; expected one program per --workdir'
    return not self._lost

  def _write_beat(self) -> None:
    """Says that this program is at work."""
    self._mine = dataclasses.replace(self._mine, beat=self._mine.beat + 1, time=time.time())
    self._put()

  def _put(self) -> None:
    """Writes the file, so that a reader sees the old one or the new one."""
    if files.is_remote(self._path):
      self._path.write_bytes(_bytes(self._mine))
      return
    # Not files.write_whole, whose file beside has the process id in its name: two hosts' may be the same.
    beside = self._folder / f'.{FILE}.{self._token}'
    try:
      beside.write_bytes(_bytes(self._mine))
      os.replace(beside, self._path)
    except OSError:  # a full disk
      with contextlib.suppress(OSError):
        beside.unlink(missing_ok=True)
      raise


def _place() -> tuple[str, str, str]:
  """Returns host, boot and namespace: where they are equal, process ids mean the same processes."""
  boot, namespace = '', ''  # where there is no /proc, the host's name has to do
  with contextlib.suppress(OSError):
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    namespace = os.readlink('/proc/self/ns/pid')
  return platform.node(), boot, namespace


def _process(pid: int) -> tuple[str, str]:
  """Returns a process's state (a letter) and start (ticks since boot); '' for what can't be found out."""
  try:
    # The name, in brackets, may hold spaces and brackets.
    fields = pathlib.Path(f'/proc/{pid}/stat').read_text(errors='replace').rpartition(')')[2].split()
    return fields[0], fields[19]
  except (OSError, IndexError):
    return '', ''


def _this_process(token: str) -> Holder:
  """Returns this process as the holder, from now on."""
  now = datetime.datetime.now(datetime.UTC)
  pid = os.getpid()
  since = now.strftime('%Y-%m-%d %H:%M:%S UTC')
  return Holder(*_place(), pid, _process(pid)[1], token, since, 0, now.timestamp())


def _alive(holder: Holder) -> bool | None:
  """Returns whether the holder's process is there; None when that can't be seen from here."""
  if (holder.host, holder.boot, holder.namespace) != _place():
    return None
  try:
    os.kill(holder.pid, 0)  # signal 0 is not delivered
  except ProcessLookupError:
    return False
  except PermissionError:
    pass  # another user's
  state, started = _process(holder.pid)
  if state in ('Z', 'X'):  # killed, but its parent has not asked yet
    return False
  return '' in (started, holder.started) or started == holder.started


def _bytes(holder: Holder) -> bytes:
  return (json.dumps(dataclasses.asdict(holder), indent=2) + '\n').encode()


def _parse(raw: bytes) -> Holder | None:
  """Returns what the file says; None when it is garbled."""
  try:
    value = json.loads(raw)
    held = {f.name: value[f.name] for f in dataclasses.fields(Holder)}
  except (ValueError, TypeError, LookupError, RecursionError):
    return None
  kinds = {'pid': int, 'beat': int, 'time': float}
  if any(type(v) is not kinds.get(k, str) for k, v in held.items()):
    return None
  # other numbers would mean groups of processes to kill
  return Holder(**held) if 0 < held['pid'] < 2**31 else None

"""Reader processes: batches put together outside the training process, which no death of theirs stops or holds up.

Reader w of W makes batches w, w + W, … of the dataset and sends them through a socket whose other end only it holds: the
end of the process is the end of the stream, seen at once and at any place. Readers hold nothing that could be lost, so
they are killed, not asked, and one that died is replaced by another that begins at the batch that was next.

Why not grain's own processes (`mp_prefetch`; seen with grain 0.2.18): one that is killed while its dataset is still being
sent to it, or in the middle of a message, leaves the run waiting for ever; SIGTERM to the process group kills them; they
outlive a run that was killed; and a batch lies in /dev/shm, of which a container has 64 MB.
"""

import atexit
import contextlib
import os
import pickle
import queue
import signal
import socket
import struct
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import get_context, resource_tracker
from typing import Any

import grain
import numpy as np
from tqdm import tqdm

from mimic_jax.runtime.errors import UserError

THREADS = 2  # batches that one process puts together at a time
# What a cluster sends to all of a run's processes: for the main one to answer, while the readers go on.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_END_SECONDS = 10.0  # how long to wait for the exit code of a process whose stream has ended


def say(text: str) -> None:
  """Prints to standard error, whichever process of the run this is: each has readers of its own."""
  tqdm.write(text, file=sys.stderr)


class Readers(Iterator[dict[str, Any]]):
  """The batches of a dataset in order, made by several processes."""

  def __init__(
    self,
    dataset: grain.MapDataset,
    workers: int,
    ahead: int,
    restarts: int,
    note: Callable[[str], None] = say,
  ) -> None:
    """Starts the processes.

    Args:
      dataset: of batches; picklable.
      workers: number of processes.
      ahead: batches that each makes before they are asked for.
      restarts: processes that may die, all together, before the run stops.
      note: is told in one line of each death.

    Raises:
      UserError: when a process can't be started.
    """
    self._dataset, self._ahead, self._note = dataset, ahead, note
    self._restarts, self._deaths = restarts, 0
    self._next = 0  # the batch that comes next
    self._processes: list[_Process] = []
    self._end = weakref.finalize(self, _end_all, self._processes)
    # Registered now, so that it comes before multiprocessing's own clean-up, which sends SIGTERM and waits.
    atexit.register(self._end)
    try:
      for number in range(workers):
        self._processes.append(_Process(number, workers, dataset[number::workers], ahead))
    except BaseException:
      self.close()
      raise

  def __iter__(self) -> 'Readers':
    return self

  def __next__(self) -> dict[str, Any]:
    """Returns the next batch.

    Raises:
      UserError: when a process died and all restarts are used up.
      Exception: whatever the dataset raised in its process.
    """
    if not self._end.alive:
      raise ValueError('the readers are closed')
    while True:
      process = self._processes[self._next % len(self._processes)]
      kind, found = process.get()
      if kind == 'batch':
        self._next += 1
        return found
      if kind == 'raised':
        raise found
      self._replace(process)

  def _replace(self, dead: '_Process') -> None:
    """Starts another process in the place of one that died."""
    workers = len(self._processes)
    name = f'reader process {dead.number + 1} of {workers} {dead.fate()}'
    self._deaths += 1
    if self._deaths > self._restarts:
      raise UserError(
        f'{name}; data.worker_restarts = {self._restarts} allows no more restarts. The same command goes on from the '
        'last checkpoint; lower data.workers, data.prefetch or data.threads need less memory'
      )
    dead.end()
    self._note(
      f'{name}; started again at the same batch ({self._deaths} of data.worker_restarts = {self._restarts})'
    )
    rest = self._dataset[self._next :: workers]
    self._processes[dead.number] = _Process(dead.number, workers, rest, self._ahead)

  def close(self) -> None:
    """Ends all processes."""
    atexit.unregister(self._end)
    self._end()


def _end_all(processes: list['_Process']) -> None:
  for process in processes:
    process.end()


class _Process:
  """One reader process and the thread that takes its batches in."""

  def __init__(self, number: int, count: int, dataset: grain.MapDataset, ahead: int) -> None:
    self.number = number
    self._socket, theirs = socket.socketpair()
    self._process = get_context('spawn').Process(
      target=_work, args=(theirs,), name=f'reader {number + 1} of {count}', daemon=True
    )
    try:
      with theirs, _blocked_signals():
        self._process.start()
    except OSError as e:
      self._socket.close()
      raise UserError(
        f'reader process {number + 1} of data.workers = {count} can not be started: {e}'
      ) from None
    self._found: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
    self._room = threading.Semaphore(1)  # for a batch, taken in while the one before it is in use
    self._ended = threading.Event()
    threading.Thread(
      target=self._take_in, args=(dataset, ahead), name=self._process.name, daemon=True
    ).start()

  def _take_in(self, dataset: grain.MapDataset, ahead: int) -> None:
    """Sends the dataset, then receives; the last thing in the queue is always that the process is gone."""
    try:
      try:
        # From here, not with the process's arguments: these block for ever if it dies before it has read them.
        with self._socket.makefile('wb') as f:
          pickle.dump((dataset, ahead), f, protocol=5)
        while True:
          self._room.acquire()
          if self._ended.is_set():
            break
          self._found.put(_receive(self._socket))
      except (EOFError, OSError):
        pass  # it is gone
      except Exception as e:  # a source that can't be pickled, or no memory for its batch
        self._found.put(('raised', e))
    finally:
      self._found.put(('gone', None))

  def get(self) -> tuple[str, Any]:
    """Returns ('batch', it), ('raised', the exception) or, from then on, ('gone', None); waits for it."""
    kind, found = self._found.get()
    if kind == 'gone':
      self._found.put((kind, found))
    else:
      self._room.release()
    return kind, found

  def fate(self) -> str:
    """Says what became of a process that is gone."""
    self._process.join(_END_SECONDS)
    code = self._process.exitcode
    if code is None:
      return 'no longer answers'
    if code >= 0:
      return f'ended with exit code {code}'
    try:
      name = signal.Signals(-code).name
    except ValueError:
      name = f'signal {-code}'
    return f'was killed by {name}' + (' (out of memory?)' if -code == signal.SIGKILL else '')

  def end(self) -> None:
    """Kills the process if there still is one, and lets the thread end."""
    self._ended.set()
    self._room.release()
    self._process.kill()
    with contextlib.suppress(OSError):
      self._socket.shutdown(socket.SHUT_RDWR)
    self._process.join(_END_SECONDS)


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
  """Blocks SIGNALS in this thread: a process started meanwhile has them blocked from its first moment to its last.

  Other threads still receive them, and this one does afterwards.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
  try:
    resource_tracker.ensure_running()  # a process of multiprocessing's, whose start unblocks signals
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(connection: socket.socket, message: tuple[str, Any]) -> None:
  """Sends a message; arrays go as they are."""
  buffers: list[pickle.PickleBuffer] = []
  head = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
  parts = [memoryview(head), *(b.raw() for b in buffers)]
  connection.sendall(struct.pack(f'<{1 + len(parts)}Q', len(parts), *(p.nbytes for p in parts)))
  for part in parts:
    connection.sendall(part)


def _receive(connection: socket.socket) -> tuple[str, Any]:
  """Returns the next message; raises EOFError or OSError at the end of the stream, in the middle of a message or not."""
  (count,) = struct.unpack('<Q', _exactly(connection, 8))
  sizes = struct.unpack(f'<{count}Q', _exactly(connection, 8 * count))
  head, *buffers = [_exactly(connection, size) for size in sizes]
  return pickle.loads(head, buffers=buffers)


def _exactly(connection: socket.socket, size: int) -> np.ndarray:
  """Returns the next uint8 [size]."""
  data = np.empty(size, np.uint8)
  view, got = memoryview(data), 0
  while got < size:
    more = connection.recv_into(view[got:])
    if not more:
      raise EOFError
    got += more
  return data


def _work(connection: socket.socket) -> None:
  """What a reader process does: gets a dataset and sends its batches, as long as somebody is there to take them."""
  code = 1
  try:
    for message in _messages(connection):
      _send(connection, message)
    code = 0
  except OSError:
    pass  # the main process is gone
  except BaseException:
    traceback.print_exc()
  finally:
    os._exit(code)  # not through Python's end, which waits for threads that read


def _messages(connection: socket.socket) -> Iterator[tuple[str, Any]]:
  """Yields ('batch', it) and at the end ('raised', the exception)."""
  try:
    with connection.makefile('rb') as f:
      dataset, ahead = pickle.load(f)
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    for batch in dataset.to_iter_dataset(grain.ReadOptions(THREADS, max(THREADS, ahead))):
      yield 'batch', dict(batch)
    yield 'raised', StopIteration()
  except Exception as e:
    yield 'raised', _portable(e)


def _end_with(connection: socket.socket) -> None:
  """Ends this process when the main one is gone, whatever its other threads are at."""
  with contextlib.suppress(OSError):
    connection.recv(1)  # nothing is ever sent: this returns at the end
  os._exit(0)


def _portable(e: Exception) -> Exception:
  """Returns an exception that reaches the main process, with where it was raised as a note."""
  where = ''.join(traceback.format_exception(e))
  try:
    e = pickle.loads(pickle.dumps(e))
  except Exception:
    e = RuntimeError(f'{type(e).__name__}: {e}')
  e.add_note(f'in a reader process:\n{where}')
  return e

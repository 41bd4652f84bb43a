"""Faults in the data: readers that die, files that vanish, disks that fail; nothing hangs, and batches stay the same."""

import errno
import gc
import itertools
import json
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mimic_jax.data import bad_image, pipeline, source
from mimic_jax.runtime.errors import UserError
from tests.data.test_pipeline import Numbers, evaluate, files, folder, same, take, train

__all__ = ['files']  # a fixture
ROOT = pathlib.Path(__file__).parents[2]
SOON = 15  # seconds; nothing here takes more than a few, a process's start included


class Big(Numbers):
  """Pictures so big that a batch doesn't fit into a socket: a reader waits in the middle of sending one."""

  image_shape = (200, 300, 3)

  def __getitem__(self, i):
    time.sleep(0.005)  # so that a reader may be killed while it reads
    return super().__getitem__(i)


class Deadly(Numbers):
  """Reading picture 5 ends the process, unless that is the one of the test."""

  def __init__(self, n, how):
    super().__init__(n)
    self.how, self.home = how, os.getpid()

  def __getitem__(self, i):
    if i == 5 and os.getpid() != self.home:
      os.kill(os.getpid(), signal.SIGKILL) if self.how == 'killed' else os._exit(3)
    return super().__getitem__(i)


class OddError(Exception):
  """Can't be unpickled."""

  def __init__(self, a, b):
    super().__init__(f'{a} and {b}')


class Raising(Numbers):
  """Reading picture 5 raises what no reader expects."""

  def __init__(self, n, error):
    super().__init__(n)
    self.error = error

  def __getitem__(self, i):
    if i == 5:
      raise MemoryError('no more') if self.error == 'memory' else OddError('this', 'that')
    return super().__getitem__(i)


class Stuck(Numbers):
  """A file server that doesn't answer."""

  def __getitem__(self, i):
    time.sleep(600)


class Flaky(Numbers):
  """Picture 5 fails as often as said, then is there; counts the tries."""

  def __init__(self, n, error, times, picture=5):
    super().__init__(n)
    self.error, self.times, self.picture, self.tries = error, times, picture, 0

  def __getitem__(self, i):
    if i == self.picture or self.picture is None:
      self.tries += 1
      if self.tries <= self.times:
        with source.reading(f'/somewhere/{i}.png'):
          raise self.error
    return super().__getitem__(i)


def readers():
  return [p for p in multiprocessing.active_children() if p.name.startswith('reader ')]


@pytest.fixture(autouse=True)
def none_left():
  yield
  if readers():
    gc.collect()  # more than a second in a session of many tests
  assert not readers()


@pytest.fixture
def no_pauses(monkeypatch):
  monkeypatch.setattr(bad_image, 'PAUSES', (0.0, 0.0))


def test_readers_killed_at_any_time_are_replaced_and_the_batches_stay_the_same(capfd):
  s = Big(20)
  s.names = [
    'x' * 100
  ] * 10_000  # more than a pipe holds: whoever is killed early dies before it has all of it
  expected = take(train(s, 8, start_step=3), 16)
  batches = train(s, 8, start_step=3, workers=2, worker_restarts=5)
  for p in readers():
    p.kill()  # before they have begun
  got = [next(batches) for _ in range(4)]
  readers()[0].kill()  # while it reads
  got += [next(batches) for _ in range(4)]
  time.sleep(0.5)
  readers()[1].kill()  # while it waits, with half of a batch sent
  got += [next(batches) for _ in range(8)]
  batches.close()
  same(got, expected)
  said = capfd.readouterr().err.splitlines()
  assert len(said) == 4
  for number, line in enumerate(said, 1):
    assert line.startswith('reader process ')
    assert line.endswith(
      'of 2 was killed by SIGKILL (out of memory?); started again at the same batch '
      f'({number} of data.worker_restarts = 5)'
    )


@pytest.mark.parametrize(
  ('how', 'restarts', 'why'),
  [
    ('killed', 1, r'was killed by SIGKILL \(out of memory\?\); data.worker_restarts = 1 allows no more'),
    ('exit', 0, r'ended with exit code 3; data.worker_restarts = 0 allows no more restarts'),
  ],
)
def test_readers_that_die_too_often_stop_the_run_with_what_died(how, restarts, why):
  s = Deadly(8, how)
  expected = take(train(s, 1), 8)
  before = next(k for k, b in enumerate(expected) if b['index'][0] == 5)
  batches = train(s, 1, workers=1, worker_restarts=restarts, prefetch=1)
  began, got = time.monotonic(), []
  with pytest.raises(UserError, match='reader process 1 of 1 ' + why) as e:
    got.extend(batches)
  assert time.monotonic() - began < 2 * SOON
  assert '\n' not in str(e.value)
  # Batches after the last one sent are lost with the process, never handed out wrongly.
  same(got, expected[: len(got)])
  assert len(got) <= before
  batches.close()


@pytest.mark.parametrize('workers', [0, 1])
def test_an_error_that_no_reader_expects_ends_the_run_as_it_is(workers):
  batches = train(Raising(8, 'memory'), workers=workers)
  with pytest.raises(MemoryError, match='no more') as e:
    take(batches, 2)
  assert not workers or any('in a reader process' in note for note in e.value.__notes__)
  batches.close()


def test_an_error_that_can_not_be_sent_is_told_and_a_source_that_can_not_be_is_refused():
  batches = train(Raising(8, 'odd'), workers=1)
  with pytest.raises(RuntimeError, match='OddError: this and that'):
    take(batches, 2)
  batches.close()
  s = Numbers(8)
  s.function = lambda: None
  batches = train(s, workers=1)
  with pytest.raises((AttributeError, pickle.PicklingError), match='lambda'):
    next(batches)
  batches.close()
  with pytest.raises(ValueError, match='closed'):
    next(batches)


def test_readers_end_with_their_batches_even_while_they_wait_for_a_file():
  for leave in (lambda b: b.close(), lambda b: None):
    batches = train(Stuck(8), workers=1)
    processes = readers()
    time.sleep(2)
    began = time.monotonic()
    leave(batches)
    del batches
    gc.collect()
    for p in processes:
      p.join(SOON)
      assert not p.is_alive()
    assert time.monotonic() - began < 5


RUN = """
import os, signal, sys
import numpy as np
from tests.data.test_pipeline import Numbers, train

def main():
  received = []
  for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(s, lambda number, frame: received.append(number))
  here, there = train(Numbers(12)), train(Numbers(12), workers=2)
  from tests.data.test_reader_faults import readers
  for k in range(8):
    if k in (0, 4):  # in the first moment, and later
      for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.killpg(0, s)
    a, b = next(here), next(there)
    assert all(np.array_equal(a[name], b[name]) for name in a)
  here.close()
  assert len(received) == 6, received
  print(*[p.pid for p in readers()], flush=True)
  sys.stdin.read() if sys.argv[1] == 'wait' else sys.exit(5)

if __name__ == '__main__':
  main()
"""


def is_running(pid):
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] not in 'ZX'
  except OSError:
    return False


@pytest.mark.parametrize('end', ['killed', 'exit'])
def test_readers_live_through_signals_to_the_group_and_end_with_the_run(tmp_path, end):
  script = tmp_path / 'run.py'
  script.write_text(RUN)
  with open(tmp_path / 'said', 'w+') as said:
    run = subprocess.Popen(
      [sys.executable, str(script), 'wait' if end == 'killed' else 'exit'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=said,
      text=True,
      cwd=ROOT,
      env={**os.environ, 'PYTHONPATH': str(ROOT)},
      start_new_session=True,
    )
    try:
      pids = [int(p) for p in run.stdout.readline().split()]
      assert len(pids) == 2, (tmp_path / 'said').read_text()
      if end == 'killed':
        assert all(is_running(pid) for pid in pids)
        run.kill()
      assert run.wait(SOON) == (-signal.SIGKILL if end == 'killed' else 5)
      until = time.monotonic() + SOON
      while any(is_running(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.1)
      assert not any(is_running(pid) for pid in pids)
    finally:
      run.kill()
      run.communicate()
  assert (tmp_path / 'said').read_text() == ''


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('policy', ['error', 'skip'])
def test_a_file_that_vanishes_stops_the_run_or_is_skipped_from_then_on(files, workers, policy):
  s = folder(files)
  gone = 7
  whole = take(train(s, 13), 12)
  batches = train(s, 13, workers=workers, on_bad_image=policy, prefetch=1)
  first = next(batches)
  (files / s.id(gone)).unlink()
  if policy == 'error':
    with pytest.raises(UserError, match=rf'{s.id(gone)}: does not exist; expected a picture'):
      list(itertools.islice(batches, 11))
  else:
    rest = [next(batches) for _ in range(11)]
    for a, b in zip([first, *rest], whole):
      there = (b['index'] != gone) | (a['index'] == gone)
      np.testing.assert_array_equal(a['index'], np.where(there, b['index'], gone + 1))
      np.testing.assert_array_equal(a['image'][there], b['image'][there])
    assert gone not in np.concatenate([b['index'] for b in rest[-4:]])
    assert list(batches.skipped()) == [s.id(gone)]
  batches.close()


SYSTEM = [
  OSError(errno.EIO, 'I/O'),
  OSError(errno.ESTALE, 'stale'),
  TimeoutError('late'),
  PermissionError(13, 'no'),
]
FILE = [
  FileNotFoundError(errno.ENOENT, 'none'),
  OSError('image file is truncated'),  # Pillow's have no number
  OSError(errno.EINVAL, 'seek'),  # a damaged file's offsets
  ValueError('damaged'),
]


@pytest.mark.parametrize('error', SYSTEM, ids=repr)
def test_what_the_system_fails_to_bring_is_tried_again(no_pauses, error):
  expected = take(train(Numbers(8)), 4)
  for policy in ('error', 'skip'):
    s = Flaky(8, error, times=2)
    batches = train(s, on_bad_image=policy)
    same(take(batches, 4), expected)
    assert not batches.skipped()
    assert s.tries >= 3


def test_what_the_system_fails_to_bring_in_all_tries_is_bad_this_time_only(no_pauses):
  s = Flaky(8, OSError(errno.EIO, 'Input/output error'), times=3)
  with pytest.raises(
    UserError, match=r'5.png: could not be read \(.*Input/output error\); tried 3 times; expected'
  ):
    take(train(s, 8), 1)
  s = Flaky(8, OSError(errno.EIO, 'Input/output error'), times=3)
  read = pipeline._Reader(s, 8, 'bilinear', 1, replace=True)
  first, second = read(np.array([[0, 5]])), read(np.array([[0, 5]]))
  assert (first['index'].tolist(), second['index'].tolist()) == ([6], [5])
  assert json.loads(first['bad']) == [
    ['n5', '/somewhere/5.png', 'could not be read ([Errno 5] Input/output error); tried 3 times']
  ]
  assert json.loads(second['bad']) == []


@pytest.mark.parametrize('error', FILE, ids=repr)
def test_what_is_wrong_with_the_file_is_found_once(no_pauses, error):
  s = Flaky(8, error, times=10**6)
  read = pipeline._Reader(s, 8, 'bilinear', 1, replace=True)
  for _ in range(2):
    batch = read(np.array([[0, 5]]))
    assert batch['index'].tolist() == [6]
    assert [found[0] for found in json.loads(batch['bad'])] == ['n5']
  assert s.tries == 1


@pytest.mark.parametrize('batches', [train, evaluate])
def test_a_disk_that_is_gone_stops_the_run_instead_of_skipping_all_its_pictures(no_pauses, batches):
  s = Flaky(100_000, OSError(errno.EIO, 'Input/output error'), times=10**9, picture=None)
  with pytest.raises(
    UserError,
    match=r'tried 3 times, and so with the 15 pictures before it; expected a disk or file server that',
  ) as e:
    next(batches(s, 40, on_bad_image='skip'))
  assert '\n' not in str(e.value)
  assert s.tries < 3 * 200  # some more were begun in other threads


@pytest.mark.parametrize('lazy', [False, True])
def test_a_source_in_memory_tries_again_and_reads_later_what_it_could_not_hold(no_pauses, files, lazy):
  class Once(type(folder(files))):
    fails = 0

    def file_bytes(self, i):
      self._fail(i)
      return super().file_bytes(i)

    def __getitem__(self, i):
      self._fail(i)
      return super().__getitem__(i)

    def _fail(self, i):
      if i == 5 and self.fails:
        type(self).fails -= 1
        with source.reading('x'):
          raise OSError(errno.EIO, 'I/O')

  s = folder(files)
  s.__class__ = Once
  whole = source.Cached(s)
  if not lazy:
    s = _Eager(s)
  for fails in (2, 3):  # the third time is the last
    Once.fails = fails
    cached = source.Cached(s)
    assert Once.fails == 0
    np.testing.assert_array_equal(cached[5]['image'], whole[5]['image'])
    same(take(train(cached, 13), 2), take(train(whole if lazy else _Eager(whole), 13), 2))


class _Eager:
  """A source without its `file_bytes` and `open`: held as decoded pictures."""

  def __init__(self, inner):
    self.inner, self.class_names, self.image_shape = inner, inner.class_names, inner.image_shape

  def __len__(self):
    return len(self.inner)

  def __getitem__(self, i):
    return self.inner[i]

  def id(self, i):
    return self.inner.id(i)

  def label(self, i):
    return self.inner.label(i)

  def record(self):
    return self.inner.record()


def test_bad_pictures_stay_what_they_are_when_pickled():
  for transient in (False, True):
    e = pickle.loads(pickle.dumps(source.BadImage('/a.png', 'is bad', transient)))
    assert (e.path, e.why, e.transient, str(e)) == ('/a.png', 'is bad', transient, '/a.png: is bad')


def test_fewer_than_no_restarts_are_refused():
  with pytest.raises(UserError, match=r'data\.worker_restarts is -1; expected at least 0'):
    train(Numbers(8), worker_restarts=-1)

"""Leases: one program at a time in a folder, and none is kept out by one that is gone."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from mimic_jax.runtime import files, lease
from mimic_jax.runtime.errors import UserError

HOLD = """
import sys, time
from mimic_jax.runtime import lease
lease.Lease(sys.argv[1]).acquire()
print('held', flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
  monkeypatch.setattr(lease, 'BEAT_SECONDS', 0.1)
  monkeypatch.setattr(lease, 'WATCH_SECONDS', 0.6)
  monkeypatch.setattr(lease, 'POLL_SECONDS', 0.02)
  monkeypatch.setattr(lease, 'SETTLE_SECONDS', 0.1)
  monkeypatch.setattr(lease, 'REMOTE_SETTLE_SECONDS', 0.3)


@pytest.fixture
def take(tmp_path):
  """Returns a function that acquires the run's folder; all are released at the end."""
  taken = []

  def take(say=print):
    held = lease.Lease(epath.Path(tmp_path / 'run'), say)
    held.acquire()
    taken.append(held)
    return held

  yield take
  for held in taken:
    held.release()


def read(folder) -> dict:
  while not (text := (folder / 'run' / lease.FILE).read_text()).endswith('}\n'):
    time.sleep(0.01)  # what stands in for an object store is a file, which is seen half written
  return json.loads(text)


def leave(folder, **changes) -> dict:
  """Writes the file as a program left it that was killed, with `changes`; returns what it says."""
  said = {**dataclasses.asdict(lease._this_process('left')), **changes}
  (folder / 'run').mkdir(exist_ok=True)
  (folder / 'run' / lease.FILE).write_text(json.dumps(said) + '\n')
  return said


def until(condition, seconds=20.0):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'waited in vain'
    time.sleep(0.02)


def lost(held) -> str:
  """Returns what `check` raises; '' for nothing."""
  try:
    held.check()
  except UserError as e:
    return str(e)
  return ''


def quiet(text):
  raise AssertionError(f'waited: {text}')


@pytest.mark.parametrize('remote', [False, True])
def test_a_free_folder_is_taken_kept_and_given_back(take, tmp_path, monkeypatch, remote):
  monkeypatch.setattr(files, 'is_remote', lambda path: remote)
  held = take(quiet)
  first = read(tmp_path)
  assert first['pid'] == os.getpid()
  until(lambda: read(tmp_path)['beat'] >= first['beat'] + 3)
  held.check()
  assert {**read(tmp_path), 'beat': 0, 'time': 0} == {**first, 'beat': 0, 'time': 0}
  held.release()
  assert list((tmp_path / 'run').iterdir()) == []
  held.release()
  time.sleep(0.3)
  assert list((tmp_path / 'run').iterdir()) == []  # no beat afterwards
  take(quiet)


def test_the_second_is_told_who_the_first_is_and_does_not_disturb_it(take, tmp_path):
  held = take()
  said = read(tmp_path)
  with pytest.raises(UserError) as e:
    take(quiet)
  for part in (tmp_path / 'run', said['pid'], said['host'], said['since']):
    assert str(part) in str(e.value)
  assert '\n' not in str(e.value)
  time.sleep(0.3)
  held.check()


def test_a_killed_process_is_succeeded_at_once_and_a_live_one_not(take, tmp_path):
  child = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(tmp_path / 'run')], stdout=subprocess.PIPE, text=True
  )
  try:
    assert child.stdout.readline() == 'held\n'
    with pytest.raises(UserError, match=f'process {child.pid} on '):
      take(quiet)
    os.kill(child.pid, signal.SIGSTOP)  # suspended is not dead
    with pytest.raises(UserError, match=f'process {child.pid} on '):
      take(quiet)
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in the process table
    held = take(quiet)
    held.release()
    child.wait()
    leave(tmp_path, pid=child.pid)
    take(quiet)
    assert [p.name for p in (tmp_path / 'run').iterdir()] == [lease.FILE]
  finally:
    child.kill()
    child.wait()
    child.stdout.close()


@pytest.mark.skipif(
  not os.path.exists('/proc/self/stat'), reason='the start of a process is known from /proc'
)
def test_another_process_with_the_same_id_is_not_the_holder(take, tmp_path):
  said = leave(tmp_path)
  with pytest.raises(UserError, match='in use'):
    take(quiet)
  leave(tmp_path, started=str(int(said['started']) - 1))
  take(quiet)


def test_a_process_that_may_not_be_signalled_or_looked_at_is_alive(take, tmp_path, monkeypatch):
  leave(tmp_path)
  monkeypatch.setattr(lease, '_process', lambda pid: ('', ''))
  with pytest.raises(UserError, match='in use'):
    take(quiet)

  def refused(pid, signal):
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

  monkeypatch.setattr(os, 'kill', refused)
  with pytest.raises(UserError, match='in use'):
    take(quiet)


# Host names are the same in many containers, and a process id means another process there.
@pytest.mark.parametrize('elsewhere', [{'host': 'far'}, {'boot': 'x'}, {'namespace': 'pid:[1]'}])
@pytest.mark.parametrize('remote', [False, True])
def test_a_silent_holder_elsewhere_is_succeeded_after_watching(
  take, tmp_path, monkeypatch, elsewhere, remote
):
  monkeypatch.setattr(files, 'is_remote', lambda path: remote)
  said = leave(tmp_path, **elsewhere)
  lines, begun = [], time.monotonic()
  take(lines.append)
  assert time.monotonic() - begun > lease.WATCH_SECONDS
  assert len(lines) == 1
  assert str(said['pid']) in lines[0]
  assert read(tmp_path)['token'] != said['token']


@pytest.mark.parametrize('seconds', [-1e5, 500.0])  # its clock may be ahead or behind
def test_a_holder_elsewhere_that_still_writes_is_not_disturbed(take, tmp_path, monkeypatch, seconds):
  monkeypatch.setattr(lease, 'WATCH_SECONDS', 60.0)
  said = leave(tmp_path, host='far', time=time.time() - seconds)
  again = threading.Timer(0.3, lambda: leave(tmp_path, **{**said, 'beat': said['beat'] + 1}))
  again.start()
  with pytest.raises(UserError, match=f'process {said["pid"]} on far'):
    take()
  again.join()
  assert read(tmp_path)['token'] == said['token']


def test_a_holder_elsewhere_that_ends_meanwhile_makes_room(take, tmp_path, monkeypatch):
  monkeypatch.setattr(lease, 'WATCH_SECONDS', 60.0)
  leave(tmp_path, host='far')
  gone = threading.Timer(0.3, (tmp_path / 'run' / lease.FILE).unlink)
  gone.start()
  take()
  gone.join()


def test_a_very_old_beat_needs_no_watching(take, tmp_path):
  leave(tmp_path, host='far', time=time.time() - lease.STALE_SECONDS - 60)
  take(quiet)


@pytest.mark.parametrize('text', ['', '{"host": "a', '[]', '{"pid": 1}', '\xff', None])
def test_a_garbled_file_is_watched_and_then_replaced(take, tmp_path, text):
  said = leave(tmp_path)
  text = json.dumps({**said, 'pid': 0}) if text is None else text  # would signal the own process group
  (tmp_path / 'run' / lease.FILE).write_bytes(text.encode('latin-1'))
  lines = []
  take(lines.append)
  assert len(lines) == 1


def test_a_file_that_is_being_written_is_read_again(take, tmp_path, monkeypatch):
  monkeypatch.setattr(lease, 'WATCH_SECONDS', 60.0)
  said = leave(tmp_path)
  path = tmp_path / 'run' / lease.FILE
  path.write_text('{')
  whole = threading.Timer(0.2, lambda: path.write_text(json.dumps(said)))
  whole.start()
  with pytest.raises(UserError, match=f'in use by process {os.getpid()} '):
    take()
  whole.join()


@pytest.mark.parametrize('remote', [False, True])
def test_whoever_was_taken_over_stops_and_leaves_the_other_alone(take, tmp_path, monkeypatch, remote):
  monkeypatch.setattr(files, 'is_remote', lambda path: remote)
  held = take()
  other = {**read(tmp_path), 'token': 'other', 'host': 'far', 'pid': 77}

  def taken_over() -> (
    bool
  ):  # again and again: a beat that is under way replaces it, which the other would find
    (tmp_path / 'other').write_text(json.dumps(other) + '\n')
    os.replace(tmp_path / 'other', tmp_path / 'run' / lease.FILE)
    return bool(lost(held))

  until(taken_over)
  assert 'taken over by process 77 on far' in lost(held)
  held.release()
  assert read(tmp_path) == other


def test_a_file_that_is_gone_ends_the_lease(take, tmp_path):
  held = take()
  shutil.rmtree(tmp_path / 'run')
  until(lambda: lost(held))
  assert 'is gone' in lost(held)
  assert not (tmp_path / 'run').exists()


def test_after_a_suspension_check_looks_for_itself(take, tmp_path, monkeypatch):
  monkeypatch.setattr(lease, 'BEAT_SECONDS', 600.0)  # the thread sleeps as if the program were suspended
  held = take()
  (tmp_path / 'run' / lease.FILE).write_text(json.dumps({**read(tmp_path), 'token': 'other'}))
  monkeypatch.setattr(lease, 'WATCH_SECONDS', 600.0)
  held.check()
  monkeypatch.setattr(lease, 'WATCH_SECONDS', 0.0)
  assert 'taken over' in lost(held)


@pytest.mark.parametrize('name', ['_read', '_write_beat'])
def test_a_file_system_that_fails_for_a_while_does_not_end_the_lease(take, tmp_path, monkeypatch, name):
  held = take()
  failed = []

  def fail():
    failed.append(1)
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  with monkeypatch.context() as patch:
    patch.setattr(held, name, fail)
    until(lambda: len(failed) > 2)
    held.check()
  beat = read(tmp_path)['beat']
  until(lambda: read(tmp_path)['beat'] > beat)
  held.check()


@pytest.mark.parametrize('seen', [None, b'', b'{"host'])
def test_a_file_that_is_away_for_a_moment_does_not_end_the_lease(take, tmp_path, monkeypatch, seen):
  held = take()
  read_file, answers = held._read, [seen]
  monkeypatch.setattr(held, '_read', lambda: answers.pop() if answers else read_file())
  until(lambda: not answers)
  beat = read(tmp_path)['beat']
  until(lambda: read(tmp_path)['beat'] > beat)
  held.check()


def test_a_file_that_was_replaced_while_it_was_opened_is_opened_again(tmp_path):
  answers = [OSError(errno.ESTALE, 'stale'), OSError(errno.ESTALE, 'stale'), b'new']

  class Replaced:
    def read_bytes(self):
      answer = answers.pop(0)
      if isinstance(answer, OSError):
        raise answer
      return answer

  held = lease.Lease(epath.Path(tmp_path))
  held._path = Replaced()
  assert held._read() == b'new'


def race(folder, count) -> tuple[list, list]:
  """Returns the leases of those who got the folder, and what the others were told."""
  won, told, go = [], [], threading.Barrier(count)

  def enter():
    held = lease.Lease(epath.Path(folder / 'run'), lambda text: None)
    go.wait()
    try:
      held.acquire()
      won.append(held)
    except UserError as e:
      told.append(str(e))

  threads = [threading.Thread(target=enter) for _ in range(count)]
  for t in threads:
    t.start()
  for t in threads:
    t.join()
  return won, told


@pytest.mark.parametrize('left', [None, {'pid': 2**31 - 1}, {'host': 'far'}])
@pytest.mark.parametrize(('remote', 'rounds'), [(False, 4), (True, 1)])
def test_of_several_at_the_same_time_one_gets_the_folder(tmp_path, monkeypatch, left, remote, rounds):
  monkeypatch.setattr(files, 'is_remote', lambda path: remote)
  monkeypatch.setattr(lease, 'WATCH_SECONDS', 0.35)
  monkeypatch.setattr(lease, 'SETTLE_SECONDS', 0.5)
  monkeypatch.setattr(lease, 'REMOTE_SETTLE_SECONDS', 1.0)
  for _ in range(rounds):
    if left is not None:
      leave(tmp_path, **left)
    won, told = race(tmp_path, 6)
    assert len(won) == 1, told
    assert len(told) == 5
    time.sleep(0.1)
    won[0].check()
    won[0].release()
    assert list((tmp_path / 'run').iterdir()) == []


@pytest.mark.parametrize('remote', [False, True])
def test_the_dead_file_is_looked_at_again_before_it_is_replaced(tmp_path, monkeypatch, remote):
  """The slower one stands still after it has watched."""
  monkeypatch.setattr(files, 'is_remote', lambda path: remote)
  leave(tmp_path, host='far', time=0.0)
  folder = epath.Path(tmp_path / 'run')
  fast, slow = lease.Lease(folder, quiet), lease.Lease(folder, quiet)
  monkeypatch.setattr(slow, '_silent', lambda raw, holder: fast.acquire() or True)
  with pytest.raises(UserError, match='in use'):
    slow.acquire()
  fast.check()
  fast.release()
  assert list(folder.iterdir()) == []


@pytest.mark.parametrize('remote', [False, True])
def test_who_looked_at_the_same_time_and_wrote_first_finds_that_it_was_overwritten(
  tmp_path, monkeypatch, remote
):
  monkeypatch.setattr(files, 'is_remote', lambda path: remote)
  monkeypatch.setattr(lease, 'SETTLE_SECONDS', 2.0)
  monkeypatch.setattr(lease, 'REMOTE_SETTLE_SECONDS', 2.0)
  folder = epath.Path(tmp_path / 'run')
  first, second = lease.Lease(folder, quiet), lease.Lease(folder, quiet)
  absent, written, put = threading.Event(), threading.Event(), lease.Lease._put

  def put_first():
    assert absent.wait(20)
    put(first)
    written.set()

  def put_second():
    absent.set()
    assert written.wait(20)
    time.sleep(0.1)
    put(second)

  monkeypatch.setattr(first, '_put', put_first)
  monkeypatch.setattr(second, '_put', put_second)
  thread = threading.Thread(target=second.acquire)
  thread.start()
  with pytest.raises(UserError, match='in use'):
    first.acquire()
  thread.join()
  second.check()
  second.release()
  assert list(folder.iterdir()) == []


def test_a_folder_that_can_not_be_used_is_one_line(take, tmp_path, monkeypatch):
  (tmp_path / 'run').write_text('a file')
  with pytest.raises(UserError, match=r'lock\.json: can not be read or written \(File exists\)'):
    take()
  (tmp_path / 'run').unlink()
  (tmp_path / 'run' / lease.FILE).mkdir(parents=True)
  with pytest.raises(UserError, match=r'\(Is a directory\)'):
    take()


def test_on_a_full_disk_it_says_so_and_leaves_nothing(take, tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'replace', full)
  with pytest.raises(UserError, match='No space left on device'):
    take()
  assert list((tmp_path / 'run').iterdir()) == []

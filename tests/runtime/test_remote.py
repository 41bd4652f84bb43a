"""Files of an object store in a cache on this host: read once, whole, as they are there now, whatever fails on the way."""

import base64
import os
import pathlib
import subprocess
import sys
import threading

import fsspec
import pytest

from mimic_jax.runtime import remote
from mimic_jax.runtime.errors import UserError

URL = 'gs://bucket/set'


@pytest.fixture
def folder(store, rng, monkeypatch):
  """A remote folder of four files, fetched in pieces of 100 bytes."""
  monkeypatch.setattr(remote, 'CHUNK', 100)
  folder = store.folder / 'bucket' / 'set'
  for name, size in (('a.bin', 950), ('b/c.bin', 100), ('b/d/e.txt', 30), ('empty', 0)):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(rng.bytes(size))
    os.utime(folder / name, (1e9, 1e9))
  return folder


def contents(place):
  return {str(p.relative_to(place)): p.read_bytes() for p in pathlib.Path(place).rglob('*') if p.is_file()}


def refused(url=URL, **options):
  with pytest.raises(UserError) as e:
    remote.fetched(url, 'data.root', **options)
  assert '\n' not in str(e.value)
  assert str(e.value).startswith(f"data.root is '{url}'")
  return str(e.value)


def test_a_folder_is_read_once(store, folder):
  place = remote.fetched(URL + '/', 'data.root')
  assert contents(place) == contents(folder)
  assert store.read() == 1080
  assert remote.fetched(URL, 'data.root') == place
  assert (store.read(), remote.fetched(place, 'data.root')) == (0, place)


def test_the_cache_is_what_the_store_holds_now(store, folder):
  (folder / 'b' / '.hidden').write_bytes(b'x')
  place = remote.fetched(URL, 'data.root')
  assert not (pathlib.Path(place) / 'b' / '.hidden').exists()
  store.read()
  (folder / 'b' / 'c.bin').write_bytes(b'y' * 100)  # the same size, another time
  (folder / 'a.bin').unlink()
  (folder / 'b' / '.hidden').unlink()
  remote.fetched(URL, 'data.root')
  assert (contents(place), store.read()) == (contents(folder), 100)


def test_only_what_is_wanted_is_fetched_and_nothing_else_removed(store, folder):
  remote.fetched(URL, 'data.root', lambda name: name == 'a.bin')
  place = remote.fetched(URL, 'data.root', lambda name: name.endswith('.txt'))
  assert sorted(contents(place)) == ['a.bin', 'b/d/e.txt']
  assert {name for name, _ in store.said('read')} == {'bucket/set/a.bin', 'bucket/set/b/d/e.txt'}


@pytest.mark.parametrize(
  'error', [ConnectionError('reset'), fsspec.exceptions.FSTimeoutError(), OSError(5, 'I/O')]
)
def test_a_store_that_fails_at_times_is_asked_again(store, folder, error, monkeypatch):
  monkeypatch.setattr(remote, 'PAUSES', (0.0, 0.0))
  store.failures = [error, error, *[None, None, error] * 9]
  assert contents(remote.fetched(URL, 'data.root')) == contents(folder)


@pytest.mark.parametrize('times', [1, 2])
def test_a_fetch_that_was_cut_off_goes_on_where_it_was(store, folder, times):
  for _ in range(times):
    store.failures = [*[None] * 4, PermissionError('gone')]  # the listing and three pieces go well
    assert 'PermissionError: gone' in refused(URL + '/a.bin')
  assert store.read() == times * 300
  place = remote.fetched(URL + '/a.bin', 'data.root')
  assert pathlib.Path(place).read_bytes() == (folder / 'a.bin').read_bytes()
  assert store.read() == 950 - times * 300
  assert os.listdir(os.path.dirname(place)) == ['a.bin']


def test_what_was_begun_of_another_version_is_not_gone_on_with(store, folder):
  store.sums = {'etag': 'this store says no checksum'}
  store.failures = [*[None] * 4, PermissionError('gone')]
  refused(URL + '/a.bin')
  (folder / 'a.bin').write_bytes(b'z' * 950)
  assert pathlib.Path(remote.fetched(URL + '/a.bin', 'data.root')).read_bytes() == b'z' * 950


def test_a_file_altered_on_the_way_is_fetched_again_or_refused(store, folder):
  store.torn = 1
  assert contents(remote.fetched(URL, 'data.root')) == contents(folder)
  os.utime(folder / 'a.bin', (1e9, 2e9))
  store.torn = 20
  assert "'bucket/set/a.bin', whose md5Hash is twice not what the store says" in refused()
  store.torn = 0
  assert contents(remote.fetched(URL, 'data.root')) == contents(folder)


def test_the_other_checksum_of_gs_is_held_too(store, folder):
  pytest.importorskip('google_crc32c')
  (folder / 'a.bin').write_bytes(b'123456789')
  store.sums = {'crc32c': base64.b64encode(bytes.fromhex('e3069283')).decode()}  # the check value of CRC-32C
  remote.fetched(URL + '/a.bin', 'data.root')
  (folder / 'a.bin').write_bytes(b'12345678')
  assert 'whose crc32c is twice not' in refused(URL + '/a.bin')


def test_processes_and_threads_of_a_host_fetch_once(store, folder):
  code = (
    'import sys, pathlib; from mimic_jax.runtime import remote; from tests import store\n'
    'folder, log, url = sys.argv[1:]; store.stand_in(pathlib.Path(folder), pathlib.Path(log)); remote.CHUNK = 10\n'
    'print("ready", flush=True); sys.stdin.readline(); print(remote.fetched(url, "x"))'
  )
  command = [sys.executable, '-c', code, str(store.folder), str(store.log), URL]
  pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
  processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
  assert [p.stdout.readline() for p in processes] == ['ready\n'] * 2
  threads = [threading.Thread(target=remote.fetched, args=(URL, 'x')) for _ in range(2)]
  for thread in threads:
    thread.start()
  places = {p.communicate('\n')[0].strip() for p in processes}
  for thread in threads:
    thread.join()
  assert places == {remote.fetched(URL, 'x')}
  assert (contents(places.pop()), store.read()) == (contents(folder), 1080)


def test_what_can_not_be_had_is_one_line(store, folder, monkeypatch):
  assert 'which does not exist or is empty' in refused('gs://bucket/nothing')
  with pytest.raises(UserError, match=r"the scheme of data.root is 'gx' .*; expected one of gs, s3, az, hf"):
    remote.fetched('gx://b', 'data.root')
  for error in (FileNotFoundError('no such bucket'), PermissionError('not yours'), OSError('Forbidden: b/x')):
    store.failures = [error]
    store.said('list')
    assert f"which can't be read ({type(error).__name__}: {error})" in refused()
    assert len(store.said('list')) == 1
  store.failures = [ConnectionError('reset')] * 9
  assert "which can't be read (ConnectionError: reset)" in refused()
  store.failures = [ImportError('Please install gcsfs')]
  assert 'Please install gcsfs; expected the package that reads it (gs://: pip install gcsfs)' in refused()


def test_a_cache_without_room_or_that_can_not_be_written_is_one_line(store, folder, tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  assert (
    "can't be written (Not a directory); expected a cache folder with room ($XDG_CACHE_HOME)" in refused()
  )
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  usage = type('Usage', (), {'free': 1079})
  monkeypatch.setattr(remote.shutil, 'disk_usage', lambda path: usage)
  store.read()
  assert 'of which 0.0 GB are to be fetched; expected room for them in' in refused()
  assert store.read() == 0
  usage.free = 1080
  remote.fetched(URL, 'data.root')

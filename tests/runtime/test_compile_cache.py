"""Compiled programs that are kept: where, when not, and that a run with them has the same bits."""

import os
import pathlib
import time

import jax
import pytest
from etils import epath

from mimic_jax.runtime import checkpoint, compile_cache, distributed, files
from tests.runtime.test_distributed import end, start


@pytest.fixture
def free(monkeypatch):
  """JAX as one that was given no folder; what is set here is taken back."""
  names = [
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
    'jax_persistent_cache_enable_xla_caches',
  ]
  before = {n: getattr(jax.config, n) for n in names}
  jax.config.update('jax_compilation_cache_dir', None)
  monkeypatch.delenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS')
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def kept_in(where: str) -> tuple[str | None, list[str]]:
  said = []
  compile_cache.keep(where, 'run', said.append)
  return jax.config.jax_compilation_cache_dir, said


def test_programs_are_kept_in_the_users_cache_folder_for_thirty_days(free, tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  folder, said = kept_in('auto')
  assert pathlib.Path(folder).parent == tmp_path / 'mimic_jax' / 'compile'
  assert (said, os.listdir(folder)) == ([], [])
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
  for name, days in (('jit_a-1-cache', 31), ('jit_b-2-cache', 29), ('other', 99)):
    (pathlib.Path(folder) / name).write_text('')
    os.utime(pathlib.Path(folder) / name, (time.time() - 86400 * days,) * 2)
  (pathlib.Path(folder) / 'jit_c-3-cache').symlink_to('gone')  # as one that another run has just removed
  jax.config.update('jax_compilation_cache_dir', None)
  assert kept_in('auto') == (folder, [])
  assert sorted(os.listdir(folder)) == ['jit_b-2-cache', 'jit_c-3-cache', 'other']
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  jax.config.update('jax_compilation_cache_dir', None)
  assert pathlib.Path(kept_in('auto')[0]).parent == tmp_path / 'home' / '.cache' / 'mimic_jax' / 'compile'


def test_a_folder_of_ones_own_and_none(free, tmp_path):
  assert kept_in('') == (None, [])
  folder, _ = kept_in(str(tmp_path / 'x'))
  assert pathlib.Path(folder).parent == tmp_path / 'x'
  assert kept_in(str(tmp_path / 'y'))[0] == folder  # that JAX has
  assert not (tmp_path / 'y').exists()


def test_a_folder_that_can_not_be_written_is_said_and_stops_nothing(free, tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  folder, (line,) = kept_in(str(tmp_path / 'file' / 'x'))
  assert folder is None
  assert line.startswith(f'compiled programs are not kept: {tmp_path}/file/x/')
  assert 'can not be written (Not a directory) (config.log.compile_cache' in line
  monkeypatch.setattr(os.path, 'expanduser', lambda path: path)
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  folder, (line,) = kept_in('auto')
  assert folder is None
  assert 'there is no home folder' in line


def test_nothing_is_kept_where_another_process_does_not_see_it(free, tmp_path, monkeypatch):
  monkeypatch.setattr(distributed, 'gather', lambda value: [value, False])
  folder, (line,) = kept_in(str(tmp_path))
  assert folder is None
  assert f'process 1 does not see {tmp_path}' in line


def outcome(folder: pathlib.Path) -> list:
  """Returns every number of a run that its computations made: the lines of its logs, the sums of its last checkpoints."""
  found = []
  for stage in ('pretrain', 'finetune'):
    lines = files.read_jsonl(epath.Path(folder) / stage / 'metrics.jsonl')
    found += [{k: v for k, v in x.items() if k not in ('seconds', 'images_per_second')} for x in lines]
    found.append(checkpoint.read_meta(*checkpoint.find(epath.Path(folder) / stage))['checksums'])
  return found


@pytest.mark.processes
@pytest.mark.parametrize('processes', [1, 2])
def test_a_run_with_programs_from_before_has_the_same_bits_and_compiles_none(
  processes, tmp_path, monkeypatch
):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  steps = ['--config.pretrain.steps=6', '--config.finetune.steps=6']

  def run(name: str) -> tuple[list, str]:
    said = end(tmp_path / name, start(tmp_path / name, processes, 2 // processes, *steps, cache=''))
    return outcome(tmp_path / name), said[0]

  cold, _ = run('cold')
  kept = sorted((tmp_path / 'cache').rglob('*-cache'))
  assert kept
  warm, said = run('warm')
  assert warm == cold
  assert sorted((tmp_path / 'cache').rglob('*-cache')) == kept
  assert 'persistent compilation cache' not in said
  if (
    processes == 1
  ):  # as one leaves it that is killed while it writes, and another that has not yet come to its end
    for file in kept:
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    damaged, said = run('damaged')
    assert damaged == cold
    assert 'Error reading persistent compilation cache entry' in said

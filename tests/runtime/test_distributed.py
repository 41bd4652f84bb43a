"""Several processes: how they are found, what they agree on, and that a run does not depend on how many carry it."""

import contextlib
import io
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.error

import numpy as np
import pytest
from etils import epath
from PIL import Image

from mimic_jax.runtime import distributed, feed, files, preemption, sharding
from mimic_jax.runtime.errors import AgreedError, Preempted, UserError
from tests.conftest import CACHE

ROOT = pathlib.Path(__file__).parents[2]
STAGES = ('pretrain', 'finetune')
SLURM = {
  'SLURM_JOB_ID': '70001',
  'SLURM_STEP_NODELIST': 'gpu[07-09]',
  'SLURM_NTASKS': '6',
  'SLURM_PROCID': '3',
  'SLURM_LOCALID': '1',
  'SLURM_STEP_TASKS_PER_NODE': '2(x3)',
}
OPEN_MPI = {
  'OMPI_COMM_WORLD_SIZE': '2',
  'OMPI_COMM_WORLD_RANK': '1',
  'OMPI_COMM_WORLD_LOCAL_RANK': '1',
  'OMPI_COMM_WORLD_LOCAL_SIZE': '2',
  'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1,10.148.0.1:34911',
}


@pytest.mark.parametrize(
  ('nodes', 'first'),
  [
    ('n7', 'n7'),
    ('n7,x2', 'n7'),
    ('n[7,9]', 'n7'),
    ('n[007-012,30],x', 'n007'),
    ('gpu-a[1-2].cluster', 'gpu-a1.cluster'),
    ('a-b.c,d', 'a-b.c'),
  ],
)
def test_the_first_host_of_a_slurm_node_list(nodes, first):
  assert distributed.first_host(nodes) == first


def test_a_process_that_no_cluster_started_is_alone():
  assert distributed.cluster({}, '', 0, -1) is None
  assert distributed.cluster({**SLURM, 'SLURM_NTASKS': '1'}, '', 0, -1) is None
  batch_script = {k: v for k, v in SLURM.items() if 'STEP' not in k}
  assert distributed.cluster(batch_script, '', 0, -1) is None


def test_one_process_by_flag_is_alone_whatever_the_cluster_says():
  assert distributed.cluster(SLURM, '', 1, -1) is None


def test_a_slurm_task_finds_its_run_and_one_gpu_of_its_own():
  found = distributed.cluster(SLURM, '', 0, -1)
  assert found.pop('coordinator_address') == f'gpu07:{61440 + 70001 % 4096}'
  assert found == {
    'num_processes': 6,
    'process_id': 3,
    'local_device_ids': [1],
    'cluster_detection_method': 'deactivate',
  }


@pytest.mark.parametrize(
  'changes',
  [
    {'SLURM_STEP_TASKS_PER_NODE': '1(x6)', 'SLURM_LOCALID': '0', 'CUDA_VISIBLE_DEVICES': '0,1,2,3'},
    {'CUDA_VISIBLE_DEVICES': '0'},  # srun --gpus-per-task=1
  ],
)
def test_a_slurm_task_with_a_node_or_a_gpu_to_itself_takes_all_it_sees(changes):
  assert distributed.cluster({**SLURM, **changes}, '', 0, -1)['local_device_ids'] is None


def test_open_mpi_says_who_is_who_and_before_version_5_where():
  found = distributed.cluster(OPEN_MPI, '', 0, -1)
  assert found['coordinator_address'] == f'10.96.0.1:{61440 + 1531576320 // 4096 % 4096}'
  assert (found['num_processes'], found['process_id'], found['local_device_ids']) == (2, 1, [1])
  five = {k: v for k, v in OPEN_MPI.items() if 'uri' not in k}
  with pytest.raises(UserError, match='--coordinator_address is missing'):
    distributed.cluster(five, '', 0, -1)
  assert distributed.cluster(five, 'head:9', 0, -1)['coordinator_address'] == 'head:9'


def test_the_hosts_of_a_tpu_slice_are_counted_where_jax_finds_chips_and_nowhere_else(monkeypatch):
  def answer(*_, **__):
    return io.BytesIO(b'unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2,x:y:10.0.0.3,x:y:10.0.0.4')

  def no_slice(*_, **__):
    raise urllib.error.HTTPError('u', 404, 'Not Found', None, None)

  for name in ('TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES', 'TPU_SKIP_MDS_QUERY', 'MEGASCALE_NUM_SLICES'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(distributed.urllib.request, 'urlopen', answer)
  assert distributed._tpu_hosts() == 1  # these tests run on the CPU
  monkeypatch.setattr(distributed.jax, 'config', types.SimpleNamespace(jax_platforms='tpu,cpu'))
  assert distributed._tpu_hosts() == 4
  monkeypatch.setattr(distributed.urllib.request, 'urlopen', no_slice)
  assert distributed._tpu_hosts() == 1
  monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 'h0,h1')
  assert distributed._tpu_hosts() == 2
  monkeypatch.setenv('MEGASCALE_NUM_SLICES', '2')
  monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 'h0')
  assert distributed._tpu_hosts() == 2


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (('h:1', 0, -1), '--num_processes is missing'),
    (('h:1', 2, -1), '--process_id is missing'),
    (('', 2, 0), '--coordinator_address is missing'),
    (('h', 2, 0), r"--coordinator_address is 'h'; expected HOST:PORT"),
    (('h:1', 2, 2), r'--process_id is 2; expected 0 to 1 of --num_processes 2'),
  ],
)
def test_flags_that_do_not_make_sense_together_are_named(flags, message):
  with pytest.raises(UserError, match=message) as e:
    distributed.cluster({}, *flags)
  assert '\n' not in str(e.value)


def test_alone_everything_is_agreed_without_a_word(monkeypatch):
  monkeypatch.setattr(distributed.multihost_utils, 'process_allgather', None)
  assert distributed.gather({'a': 1}) == [{'a': 1}]
  assert distributed.agree(lambda: 3) == 3
  assert distributed.merged([{'a': 'x'}, {'b': 'y'}]) == {'a': 'x', 'b': 'y'}
  with pytest.raises(UserError, match='mine'), distributed.together():
    raise UserError('mine')


def test_a_command_that_differs_between_processes_is_named(monkeypatch):
  monkeypatch.setattr(distributed, 'gather', lambda value: [value, {**value, 'config.seed': 1}])
  with pytest.raises(UserError, match=r'config\.seed is 1 in process 1 and 0 in process 0'):
    distributed.check_same({'config.name': 'x', 'config.seed': 0})


def test_what_any_process_complains_of_is_raised_in_all(monkeypatch):
  monkeypatch.setattr(
    distributed, 'gather', lambda value: [None, 'b.png: torn', 'b.png: torn', 'c.png: gone']
  )
  with pytest.raises(AgreedError, match=r'^b.png: torn \(and 1 more of the kind in other processes\)$'):
    distributed.raise_first(None)


def test_a_batch_that_can_not_be_made_is_an_error_when_its_turn_comes_and_no_earlier():
  def batches():
    for k in range(2):
      yield {'x': np.full(8, k)}
    raise UserError('b.png: torn')

  stream = feed.on_devices(batches(), 5, sharding.make_mesh())
  assert [int(next(stream)['x'][0]) for _ in range(2)] == [0, 1]
  with pytest.raises(UserError, match='torn'):
    next(stream)


def test_no_batch_is_read_beyond_the_last():
  read = iter({'x': np.full(8, k)} for k in range(9))
  assert [int(b['x'][0]) for b in feed.on_devices(read, 4, sharding.make_mesh())] == [0, 1, 2, 3]
  assert int(next(read)['x'][0]) == 4


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def start(
  folder: pathlib.Path,
  processes: int,
  devices: int,
  *flags: str,
  module: str = 'mimic_jax.main',
  cache: str = str(CACHE),
) -> list[subprocess.Popen]:
  """Starts a run of the fault campaign's config in so many processes with so many devices each."""
  env = {
    **os.environ,
    'XLA_FLAGS': '--xla_backend_optimization_level=0',
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(devices),
    'JAX_COMPILATION_CACHE_DIR': cache,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  command = [sys.executable, '-m', module, '--config', 'tests/faults/config.py']
  command += ['--workdir', str(folder), *flags]
  port, started = free_port(), []
  for i in range(processes):
    own = [f'--coordinator_address=127.0.0.1:{port}', f'--num_processes={processes}', f'--process_id={i}']
    with open(f'{folder}.{i}.log', 'w') as log:
      started.append(
        subprocess.Popen(
          command + (own if processes > 1 else []), cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT
        )
      )
  return started


def end(folder: pathlib.Path, started: list[subprocess.Popen], code: int = 0) -> list[str]:
  """Waits for processes and returns what they said; fails when one ends with another code."""
  until = time.monotonic() + 300
  for p in started:
    try:
      p.wait(until - time.monotonic())
    except subprocess.TimeoutExpired:
      p.kill()
  said = [pathlib.Path(f'{folder}.{i}.log').read_text() for i in range(len(started))]
  assert [p.returncode for p in started] == [code] * len(started), '\n\n'.join(said)
  return said


# found by use, 65
@pytest.mark.parametrize(
  ('flags', 'stop', 'code', 'said'),
  [
    (
      ('0', '127.0.0.1', '2', '2'),
      None,
      2,
      'somebody answers there, but not all have come); expected 2 of them',
    ),
    (('0', '127.0.0.1', '5', '2'), None, 2, 'but not all have come); expected 5 of them'),
    (
      ('1', '127.0.0.1', '2', '2'),
      None,
      2,
      'nobody answers there: [Errno 111] Connection refused); expected 2',
    ),
    (('3', 'nowhere.invalid', '4', '1'), None, 2, 'nobody answers there: '),
    (('0', 'nowhere.invalid', '4', '1'), None, 2, 'nobody answers there: '),
    (('0', '127.0.0.1', '2', '200'), signal.SIGTERM, 75, 'mimic: told to stop'),
    (('0', '127.0.0.1', '3', '200'), signal.SIGINT, 75, 'mimic: told to stop'),
  ],
)
def test_a_process_whose_others_do_not_come_says_so_in_a_line(flags, stop, code, said, tmp_path):
  i, host, processes, seconds = flags
  port = free_port()
  where = f'{host}:{port}'
  command = [sys.executable, '-m', 'mimic_jax', 'train', '--config=quickstart', f'--workdir={tmp_path}/run']
  command += [f'--coordinator_address={where}', f'--num_processes={processes}', f'--process_id={i}']
  command += [f'--connect_seconds={seconds}']
  began = time.monotonic()
  p = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  if stop:
    while p.poll() is None:  # until it waits
      with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        break
      time.sleep(0.2)
    p.send_signal(stop)
  out, err = p.communicate(timeout=120)
  assert p.returncode == code, out + err
  assert time.monotonic() - began < 60
  (line,) = [x for x in err.splitlines() if 'proxy' not in x and 'Ctrl-C once more' not in x and x]
  assert said in line
  if code == 2:
    assert line.startswith(f'mimic: error: the processes of this run did not find each other at {where} (')
    assert f'within {seconds} seconds (--connect_seconds)' in line


def losses(folder: pathlib.Path, stage: str) -> list[float]:
  lines = files.read_jsonl(epath.Path(folder) / stage / 'metrics.jsonl')
  return [x['loss'] for x in lines if x['split'] == 'train']


def scores(folder: pathlib.Path, stage: str) -> list[dict]:
  lines = files.read_jsonl(epath.Path(folder) / stage / 'metrics.jsonl')
  return [
    {k: x[k] for k in ('step', 'count', 'accuracy', 'loss') if k in x} for x in lines if x['split'] == 'valid'
  ]


@pytest.mark.processes
def test_two_processes_have_the_fifty_losses_of_one_and_pass_over_a_damaged_checkpoint_together(tmp_path):
  flags = [f'--config.{s}.steps=50' for s in STAGES]
  flags += [f'--config.{s}.checkpoint.every_epochs=4' for s in STAGES]
  flags += [f'--config.{s}.eval.every_epochs=4' for s in STAGES]
  flags += ['--config.model.dim=64']  # kernels large enough to be split over fsdp
  one, two = tmp_path / 'one', tmp_path / 'two'
  end(one, start(one, 1, 4, *flags))
  # Each process a slice, in another order than their numbers': process 0 reads the last rows of a batch.
  said = end(two, start(two, 2, 2, *flags, '--config.mesh.fsdp=2', module='tests.runtime.sliced'))
  assert 'finetune:' not in said[1]  # only the first says anything
  for stage in STAGES:
    alone, shared = losses(one, stage), losses(two, stage)
    assert len(alone) == len(set(alone)) == 50
    np.testing.assert_allclose(shared, alone, rtol=1e-5)
    assert [x['count'] for x in scores(one, stage)] == [24, 24]
    for a, b in zip(scores(two, stage), scores(one, stage), strict=True):
      assert a == pytest.approx(b, rel=1e-5)
  record = json.loads((two / 'record.json').read_text())
  assert record['environment']['devices']['processes'] == 2

  folder, before = two / 'finetune', losses(two, 'finetune')
  (folder / 'result.json').unlink()
  largest = max((folder / 'checkpoints' / '50' / 'state').rglob('d/*'), key=lambda p: p.stat().st_size)
  raw = bytearray(largest.read_bytes())
  raw[len(raw) // 2] ^= 1
  largest.write_bytes(bytes(raw))
  said = end(two, start(two, 2, 2, *flags, '--config.mesh.fsdp=2'))
  assert 'checkpoints/50 is damaged' in said[0]
  assert 'the run goes on from step 32' in said[0]
  assert losses(two, 'finetune') == before


# found by use, 50
@pytest.mark.processes
def test_two_processes_do_not_call_saved_what_was_torn(tmp_path):
  flags = [
    '--config.stages=pretrain',
    '--config.pretrain.steps=12',
    '--config.pretrain.checkpoint.every_epochs=1',
  ]
  folder = tmp_path / 'run'
  said = end(folder, start(folder, 2, 1, *flags, module='tests.runtime.torn'), code=2)
  errors = [line for text in said for line in text.splitlines() if 'error' in line]
  assert len(errors) == 1
  assert 'checkpoints/12 is damaged' in errors[0]
  assert 'though it was written only now. Those before it: 8;' in errors[0]
  assert not (folder / 'pretrain' / 'result.json').exists()
  said = end(folder, start(folder, 2, 1, *flags))
  assert 'the run goes on from step 8' in said[0]
  assert (folder / 'pretrain' / 'result.json').exists()


@pytest.mark.processes
def test_what_one_process_can_not_read_stops_all_of_them_and_is_named_once(tmp_path):
  rng = np.random.default_rng(0)
  for split, n in (('train', 40), ('valid', 8)):
    for k in range(n):
      path = tmp_path / 'data' / split / f'c{k % 2}' / f'{k:03}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).save(path)
  bad = tmp_path / 'data' / 'train' / 'c1' / '011.png'
  bad.write_bytes(bad.read_bytes()[:200])
  flags = ['--config.stages=finetune', '--config.finetune.init=', '--config.finetune.data.source=folder']
  flags += [f'--config.finetune.data.root={tmp_path / "data"}', '--config.finetune.steps=5']
  folder = tmp_path / 'run'
  said = end(folder, start(folder, 2, 1, *flags), code=2)
  errors = [line for text in said for line in text.splitlines() if 'error' in line]
  assert len(errors) == 1
  assert errors[0].startswith(f'mimic: error: {bad}: ')
  assert 'on_bad_image' in errors[0]
  assert not any('Traceback' in text for text in said)
  done = len(losses(folder, 'finetune'))
  assert done < 5
  if done:
    assert (folder / 'finetune' / 'checkpoints' / str(done)).is_dir()
  end(folder, start(folder, 2, 1, *flags, '--config.finetune.data.on_bad_image=skip'))
  assert len(losses(folder, 'finetune')) == 5
  assert list(json.loads((folder / 'record.json').read_text())['skipped']['finetune']['train']) == [
    'train/c1/011.png'
  ]


def test_told_to_stop_a_run_of_one_raises_at_the_next_place(monkeypatch):
  monkeypatch.setattr(preemption, '_notice', preemption._Notice())
  preemption.look()
  preemption._note(15, None)
  for _ in range(2):
    with pytest.raises(Preempted):
      preemption.look()

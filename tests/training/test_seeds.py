"""--seeds: one run each in a folder of its own, which the same command goes on with, whatever stopped it."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from etils import epath

from mimic_jax import config as config_lib
from mimic_jax.runtime import files
from mimic_jax.runtime.errors import Preempted, UserError
from mimic_jax.training import run, workdir

ROOT = pathlib.Path(__file__).parents[2]
GIVEN = ('--config', str(ROOT / 'tests/faults/config.py'), '--config.stages=finetune')
GIVEN = (*GIVEN, '--config.finetune.init=', '--config.finetune.steps=10')


def parse(*flags: str) -> config_lib.Command:
  return config_lib.parse(['mimic train', *GIVEN, *flags])


@pytest.fixture
def ran(monkeypatch):
  """Returns the (seed, folder) of each run that would have been made, in order."""
  made = []
  monkeypatch.setattr(run, 'run', lambda one, _: made.append((one.config.seed, one.workdir)))
  return made


def begun(folder: pathlib.Path, command: config_lib.Command, seed: int) -> None:
  """Makes the folder of a seed that has a result."""
  workdir.begin(epath.Path(folder), run._of_seed(command, seed).config)
  (folder / 'finetune').mkdir()
  (folder / 'finetune' / 'result.json').write_text('{}')


def test_each_seed_is_run_in_its_own_folder_in_the_order_given(tmp_path, ran):
  command = parse('--seeds=3,0,11', f'--workdir={tmp_path}')
  run.run_seeds(command)
  assert ran == [(seed, f'{tmp_path}/seed{seed}') for seed in (3, 0, 11)]


def test_default_folders_tell_config_method_and_seed_apart_without_commas():
  def folder(*flags: str) -> str:
    return config_lib.parse(['mimic train', '--config=finetune_rafdb:vitb16,scl', *flags]).workdir

  assert folder() == 'runs/finetune_rafdb_vitb16_scl'
  assert folder('--config.seed=3') == 'runs/finetune_rafdb_vitb16_scl_seed3'
  assert folder('--seeds=3,4') == 'runs/finetune_rafdb_vitb16_scl_seeds'


@pytest.mark.parametrize(
  ('flags', 'told'),
  [
    (['--seeds=1,x'], "--seeds is '1,x'; expected whole numbers from 0, each once, such as 0,1,2"),
    (['--seeds='], "--seeds is ''; expected whole"),
    (['--seeds=1,-2'], "--seeds is '1,-2'; expected whole"),
    (['--seeds=1,01'], "--seeds is '1,01'; expected whole"),
    (['--seeds=1,2', '--config.seed=0'], '--config.seed has no effect beside --seeds'),
    (['--seeds=1,2', '--debug_step=3'], '--debug_step looks at one run; expected --config.seed=N'),
    (['--seed=1,2'], "--seed is no flag (did you mean 'seeds'?)"),
  ],
)
def test_what_is_wrong_with_seeds_is_said_in_one_line(flags, told):
  with pytest.raises(UserError) as caught:
    parse(*flags)
  assert told in str(caught.value)


@pytest.mark.parametrize('kind', [UserError, Preempted, KeyboardInterrupt])
def test_what_stops_a_seed_says_which(tmp_path, monkeypatch, kind):
  def fails(one, _):
    if one.config.seed == 1:
      raise kind('no room')

  monkeypatch.setattr(run, 'run', fails)
  with pytest.raises(kind, match='seed 1: no room'):
    run.run_seeds(parse('--seeds=0,1,2', f'--workdir={tmp_path}'))


def test_seeds_of_another_config_and_a_run_of_its_own_are_refused(tmp_path, ran):
  flags = ('--seeds=2', f'--workdir={tmp_path}')
  begun(tmp_path / 'seed0', parse(*flags), 0)
  run.run_seeds(parse(*flags))
  assert len(ran) == 1
  with pytest.raises(UserError, match=r'seed0 is a seed of another config \(finetune.steps: 10 → 12\)'):
    run.run_seeds(parse(*flags, '--config.finetune.steps=12'))
  with pytest.raises(
    UserError, match=r'seed0 holds a run of its own; expected a folder for those of --seeds'
  ):
    run.run_seeds(parse('--seeds=2', f'--workdir={tmp_path}/seed0'))
  assert len(ran) == 1


@pytest.mark.processes
def test_killed_in_the_middle_the_same_command_goes_on_to_what_each_seed_gives_alone(tmp_path):
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  command = [sys.executable, '-m', 'mimic_jax.main', *GIVEN]
  many, alone = tmp_path / 'many', tmp_path / 'alone'
  first = subprocess.Popen([*command, '--seeds=0,1', f'--workdir={many}'], env=env, stderr=subprocess.PIPE)
  until = time.monotonic() + 600
  while not (many / 'seed1' / 'finetune' / 'checkpoints' / '4').exists():
    assert first.poll() is None, first.stderr.read()
    assert time.monotonic() < until
    time.sleep(0.005)
  first.send_signal(signal.SIGKILL)
  first.wait()
  result = many / 'seed0' / 'finetune' / 'result.json'
  before = result.stat().st_mtime_ns
  assert not (many / 'seed1' / 'finetune' / 'result.json').exists()
  again = subprocess.run(
    [*command, '--seeds=0,1', f'--workdir={many}'], env=env, capture_output=True, text=True
  )
  assert again.returncode == 0, again.stderr
  assert f'seeds 0, 1 done in {many}' in again.stderr
  assert result.stat().st_mtime_ns == before
  subprocess.run(
    [*command, '--config.seed=1', f'--workdir={alone}'], env=env, check=True, capture_output=True
  )

  def losses(folder: pathlib.Path) -> list[float]:
    lines = files.read_jsonl(epath.Path(folder) / 'finetune' / 'metrics.jsonl')
    return [x['loss'] for x in lines if x['split'] == 'train']

  assert len(losses(alone)) == 10
  assert losses(many / 'seed1') == losses(alone) != losses(many / 'seed0')

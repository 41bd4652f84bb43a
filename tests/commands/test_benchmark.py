"""What `mimic benchmark` says: its figures agree with each other, its step is the one that trains, and it leaves nothing behind."""

import json

import jax
import numpy as np
import pytest

from mimic_jax import main
from mimic_jax.commands import benchmark
from mimic_jax.runtime import chips, sharding
from mimic_jax.runtime.errors import UserError
from tests import small

CONFIG = """
from tests import small
def get_config():
  return small.run_config(pretrain=small.mae_stage(), finetune=small.mimic_stage(**{'mix.probability': 0.0}))
"""


@pytest.fixture
def given(tmp_path, monkeypatch):
  (tmp_path / 'tiny.py').write_text(CONFIG)
  here = tmp_path / 'here'
  here.mkdir()
  monkeypatch.chdir(here)
  return ['benchmark', '--config', str(tmp_path / 'tiny.py')]


def test_its_figures_agree_and_it_leaves_nothing_but_json(given, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(chips, 'measured_peak', lambda: 5e9)
  out = tmp_path / 'found.json'
  main.main([*given, '--steps', '4', '--json', str(out)])
  found, said = json.loads(out.read_text()), capsys.readouterr().out
  assert (found['stage'], found['batch_images']) == ('pretrain', 8)
  assert found['images_per_second'] == pytest.approx(8e3 / found['ms_per_step'])
  low, high = found['ms_per_step_quartiles']
  assert 0 < low <= found['ms_per_step'] <= high
  done = found['images_per_second'] * found['gflops_per_image'] / 1e3
  assert found['model_tflops_per_second'] == pytest.approx(done)
  assert found['mfu'] == pytest.approx(done / 5e-3)
  assert found['input_overhead'] == pytest.approx(found['ms_per_step_with_input'] / found['ms_per_step'])
  assert min(found['compile_seconds'], found['peak_memory_bytes']) > 0
  assert 'measured' in found['peak_from']
  assert all(word in said for word in ('finetune', 'input_overhead', 'mfu'))
  assert not list((tmp_path / 'here').iterdir())


def test_an_accelerator_that_is_not_in_the_table_has_no_mfu():
  found = {
    'stage': 's', 'objective': 'o', 'batch_images': 8, 'devices': 1, 'device_kind': 'Chip X', 'images_per_second': 1.0,
    'ms_per_step': 1.0, 'ms_per_step_quartiles': [1.0, 1.0], 'ms_per_step_with_input': 1.0,
    'ms_per_step_with_input_quartiles': [1.0, 1.0], 'model_tflops_per_second': 1.0, 'gflops_per_image': 1.0, 'mfu': None,
    'peak_tflops_per_second': None, 'peak_from': '', 'input_overhead': 1.0, 'compile_seconds': 1.0,
    'peak_memory_bytes': 2**20, 'peak_memory_from': 'the device',
  }  # fmt: skip
  assert 'unknown: 1 × Chip X is not in the table of chips' in benchmark.table(found)


@pytest.fixture(scope='module')
def tiny():
  """A stage and one of its batches."""
  run = benchmark.stage_of(small.run_config(pretrain=small.mae_stage()), 'pretrain')
  batches = run.batches(0)
  batch = sharding.to_devices(next(batches), run.mesh)
  batches.close()
  return run, batch


def test_the_step_that_is_timed_is_the_one_that_trains(tiny):
  run, batch = tiny
  step = run.program.lower(batch).compile()
  timed, said = step(run.initial_state()[0], batch, run.step_key, run.program.frozen.arrays)
  trained, other = run.program.step(run.initial_state()[0], batch, run.step_key)
  np.testing.assert_allclose(said['loss'], other['loss'], rtol=1e-6)
  for a, b in zip(jax.tree.leaves(timed), jax.tree.leaves(trained), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_batch_that_is_said_to_fit_does(tiny):
  run, batch = tiny
  own = benchmark.needed(benchmark._for_batch(run, batch, 16).compile())
  found = benchmark.largest_batch(run, batch, own)
  assert found == {'images': 16, 'too_large': 24}


def test_the_input_that_is_slow_shows():
  slept = iter([0.0] * 2 + [0.02] * 5)

  def step(state, batch, key):
    return state, batch

  def stream():
    for seconds in slept:
      benchmark.time.sleep(seconds)
      yield np.zeros(())

  _, seconds = benchmark.seconds_of(step, None, stream(), None, 2)
  assert len(seconds) == 4
  assert min(seconds) >= 0.02


@pytest.mark.parametrize(
  ('memory', 'first', 'least'),
  [(10_000, 64, 1), (10_000, 5000, 1), (1_050, 64, 1), (1_029, 64, 2), (10**7, 8, 1)],
)
def test_the_largest_batch_is_found_in_few_tries(memory, first, least):
  tried = []

  def need(n):
    tried.append(n)
    return 1000 + 7 * n + 50 * (n % 3)  # not quite a line, as compilers have it

  low, high = benchmark.largest(need, memory, first, least)
  assert len(tried) <= 8
  assert min(tried) >= least
  assert (1000 + 7 * high + 50 * (high % 3)) > memory
  assert low == 0 or need(low) <= memory
  assert high - low <= max(1, 0.03 * low) or (low == 0 and high == least)


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    (['--steps', '1'], '--steps is 1'),
    (['--memory', 'much'], "--memory is 'much'"),
    (['--stage', 'pretran'], 'pretran'),
    (['--wordir=x'], "'--wordir=x' is not understood"),
    (['--config.pretrain.data.source=folder', '--config.pretrain.data.root=/nowhere'], '/nowhere'),
  ],
)
def test_what_can_not_be_is_one_line(given, flags, said):
  with pytest.raises(UserError, match=said):
    main.main([*given, *flags])

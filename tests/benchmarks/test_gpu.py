"""The script for a lent GPU: what it does when there is no room or no time left, and that its rivals are of our size."""

import json

import jax
import pytest
from etils import epath
from flax import nnx

from benchmarks import cases, gpu
from mimic_jax import models

FIGURES = {
  'ms_per_step': 1.0, 'ms_per_step_quartiles': [0.9, 1.1], 'mfu': 0.5, 'peak_memory_bytes': 2**30, 'compile_seconds': 3.0
}  # fmt: skip


@pytest.fixture
def machine(monkeypatch, tmp_path):
  """Returns a file, and what was measured: a minute each, up to 128 pictures, ours three times as fast as PyTorch; cuDNN fails on S."""
  now, asked = [0.0], []
  file = epath.Path(tmp_path / 'gpu.json')

  def in_child(row, images, tiny, seconds):
    asked.append((row, images))
    now[0] += 60
    if seconds < 60:
      return {'error': 'out of time'}
    if row.endswith('S cudnn'):
      return {'error': 'broken'}
    if images > 128:
      return {'error': 'no room'}
    return {**FIGURES, 'images': images, 'images_per_second': 100.0 if row.endswith('torch') else 300.0}

  monkeypatch.setattr(gpu, 'in_child', in_child)
  monkeypatch.setattr(gpu.time, 'monotonic', lambda: now[0])
  return file, asked


def test_a_second_call_goes_on_where_the_time_of_the_first_ended(machine):
  file, asked = machine
  gpu.run(file, 7.5, tiny=False)
  first = json.loads(file.read_text())['rows']
  # three batches of mae B cudnn, three of its torch, one of mimic B cudnn that has no room, one that is cut off
  assert {k: v.get('images') for k, v in first.items()} == {
    'mae B cudnn': 128,
    'mae B torch': 128,
    'mimic B cudnn': None,
  }
  assert first['mae B cudnn']['times_torch'] == 3
  assert first['mimic B cudnn'] == {'error': 'out of time'}
  asked.clear()
  rows = gpu.run(file, 1000, tiny=False)['rows']
  assert asked[0] == ('mimic B cudnn', 256)
  assert not any(row.startswith('mae B') and not row.endswith(('xla', 'unrolled')) for row, _ in asked)
  assert list(rows) == list(gpu.ROWS)
  assert rows['mae S cudnn'] == {'error': 'broken'}
  assert rows['mimic L xla']['times_torch'] == 3
  assert json.loads(file.read_text())['rows'] == rows


def test_what_fits_no_batch_says_so(machine, monkeypatch):
  file, asked = machine
  monkeypatch.setattr(gpu, 'in_child', lambda row, images, *_: asked.append(images) or {'error': 'no room'})
  rows = gpu.run(file, 10, tiny=True)['rows']
  assert asked[:4] == [8, 4, 2, 1]
  assert all(' B ' in row and figures == {'error': 'no room'} for row, figures in rows.items())


def test_a_row_that_fails_in_its_process_gives_the_reason():
  found = gpu.in_child('mae B cudnn', 8, True, 300)
  assert "model.attention is 'cudnn' with model.dtype bfloat16 on cpu" in found['error']


@pytest.mark.processes
def test_a_row_has_a_speed():
  found = gpu.measured('mae', 'B', 'xla', 8, True)
  assert found['images_per_second'] == pytest.approx(8e3 / found['ms_per_step'])
  assert found['mfu'] is None  # of a CPU
  assert gpu.said(found).startswith('8 pictures, ')


@pytest.mark.parametrize('size', gpu.PRESETS)
@pytest.mark.parametrize('name', gpu.IMAGES)
def test_a_rival_trains_as_many_parameters(name, size):
  torch = pytest.importorskip('torch')
  pytest.importorskip('transformers')
  from benchmarks import rivals

  _, learned = cases.stage_of(cases.CASES[name], [f'--config.model.preset={gpu.PRESETS[size]}'])
  with torch.device('meta'):
    net, _ = {'mae': rivals._mae, 'mimic': rivals._mimic}[name](2, learned)
  theirs = sum(p.numel() for p in net.parameters() if p.requires_grad)
  example = nnx.eval_shape(learned.init, jax.random.key(0))
  _, params, _ = models.split(example, learned.trainable)
  assert theirs == sum(x.size for x in jax.tree.leaves(params))

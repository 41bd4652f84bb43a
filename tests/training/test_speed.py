"""How fast a stage is said to be."""

import time

import jax
import pytest

from mimic_jax import objectives
from mimic_jax.runtime import chips, sharding
from mimic_jax.training import speed
from tests import small


def test_mfu_is_the_share_of_the_peak_of_all_devices(monkeypatch):
  mesh = sharding.make_mesh(devices=jax.devices()[:4])
  objective = objectives.make(small.mae_stage(), small.model_section(), (), 'objective')
  each = objective.flops_per_image()
  assert speed.figures(10.0, objective, mesh) == {
    'model_tflops_per_second': pytest.approx(each / 1e11),
    'mfu': None,
  }
  monkeypatch.setattr(chips, 'peak', lambda kind: 100 * each)
  assert speed.figures(10.0, objective, mesh)['mfu'] == pytest.approx(10 / 400)
  assert speed.figures(None, objective, mesh) == {'model_tflops_per_second': None, 'mfu': None}


def test_waiting_counts_between_the_batches_of_steps_but_not_that_of_the_first_nor_what_comes_between():
  def slow():
    while True:
      time.sleep(0.02)
      yield 0

  stream = speed.Input(slow(), waited=1.0, seconds=2.0)
  for step in range(4):
    next(stream)
    time.sleep(0.3 if step == 0 else 0.01)  # the first compiles
    stream.step_done()
    time.sleep(0.05)  # evaluating
  assert stream.waited - 1 == pytest.approx(0.06, abs=0.03)
  assert stream.seconds - 2 == pytest.approx(0.09, abs=0.05)

"""Times what the training loop does around its step, in Python: reading the next batch, sending it, settling and logging the last.

  python -m benchmarks.loop [--steps 3000]

The loop of the quickstart's second stage runs whole, with a step that gives back what one real step gave: what is left is the loop.
"""

import argparse
import dataclasses
import itertools
import statistics
import tempfile
import time
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from mimic_jax import config as config_lib
from mimic_jax.runtime import sharding
from mimic_jax.training import loop
from mimic_jax.training import stage as stage_lib


class Repeated:
  """One batch again and again."""

  def __init__(self, batches: Any):
    self.batch = next(batches)
    batches.close()

  def __iter__(self) -> 'Repeated':
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    return self.batch

  def skipped(self) -> dict[str, str]:
    return {}

  def close(self) -> None:
    pass


def turns_of(steps: int, repeated: bool) -> list[float]:
  """Returns the seconds of each turn, of real input or one batch."""
  config = ConfigDict(config_lib.load(*config_lib.find_config('quickstart')))
  config.log.progress = False
  config.finetune.update({'steps': steps, 'init': ''})
  config.finetune.eval.every_epochs = 0.0
  config.finetune.checkpoint.every_epochs = 1e9
  times: list[float] = []
  with tempfile.TemporaryDirectory() as folder:
    run = stage_lib.Stage(config, 'finetune', epath.Path(folder), sharding.make_mesh())
    real, kept, batches = run.program.step, [], run.batches

    def step(state: Any, batch: Any, key: Any) -> tuple[Any, Any]:
      if not kept:
        kept[:] = real(state, batch, key)
      times.append(time.perf_counter())
      return kept[0], kept[1]

    run.program = dataclasses.replace(run.program, step=step)
    if repeated:
      run.batches = lambda start: Repeated(batches(start))
    loop.run_stage(run)
  return [b - a for a, b in itertools.pairwise(times)]


def main() -> None:
  """Prints the time of one turn of the loop."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--steps', type=int, default=3000)
  given = parser.parse_args()
  for what, repeated in (('one repeated batch', True), ('real input', False)):
    each = turns_of(given.steps, repeated)
    low, middle, high = statistics.quantiles(each, n=4)
    print(
      f'{what}: {1e3 * statistics.mean(each):.2f} ms a turn (median {1e3 * middle:.2f}, quartiles {1e3 * low:.2f} and '
      f'{1e3 * high:.2f}), {given.steps} turns'
    )


if __name__ == '__main__':
  main()

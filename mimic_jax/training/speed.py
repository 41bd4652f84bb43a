"""How fast a stage trains: its model's operations against what the devices can do, and the waiting for its input."""

import time
from collections.abc import Iterator
from typing import Any

from jax.sharding import Mesh

from mimic_jax.objectives import Objective
from mimic_jax.runtime import chips


def figures(
  rate: float | None, objective: Objective, mesh: Mesh, peak: float | None = None
) -> dict[str, Any]:
  """Returns 'model_tflops_per_second' and 'mfu', the share of the peak; None where one is not known.

  Args:
    rate: pictures per second, of which an item of a batch may hold several.
    objective: of the stage.
    mesh: of its devices.
    peak: of all of them, in operations per second; None = by their data sheet.
  """
  peak = peak or chips.peak_of(mesh.devices.flat)
  done = None if rate is None else rate * objective.flops_per_image()
  return {
    'model_tflops_per_second': None if done is None else done / 1e12,
    'mfu': done / peak if done is not None and peak else None,
  }


class Input:
  """A stream of batches that knows how long was waited for it.

  Attributes:
    waited, seconds: for batches, and in all, between `next` and `step_done` of all steps but the first of this start.
  """

  def __init__(self, stream: Iterator[Any], waited: float = 0.0, seconds: float = 0.0):
    self._stream, self.waited, self.seconds = stream, waited, seconds
    self._asked, self._got, self._first = 0.0, 0.0, True

  def __next__(self) -> Any:
    self._asked = time.monotonic()
    batch = next(self._stream)
    self._got = time.monotonic()
    return batch

  def step_done(self) -> None:
    """Counts the step since the last batch, unless it is the first: that one compiles."""
    if not self._first:
      self.waited += self._got - self._asked
      self.seconds += time.monotonic() - self._asked
    self._first = False

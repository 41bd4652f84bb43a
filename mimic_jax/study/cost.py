"""What runs cost: the operations that their steps take, and from those about how long."""

import statistics
from collections.abc import Sequence

import jax
from etils import epath

from mimic_jax.runtime import chips, files, sharding
from mimic_jax.study import runner
from mimic_jax.study.design import Run
from mimic_jax.training import planned
from mimic_jax.training.stage import Stage

# Of a device's peak in matrix products; small models on CPUs and large ones on accelerators reach about as much.
SHARE = 0.35


def operations(runs: Sequence[Run], out: epath.Path) -> dict[str, float]:
  """Returns how many operations each run takes in its steps, by name; looks for what can go wrong in each on the way.

  Evaluations, reading and compiling are not in it.

  Raises:
    UserError: as `training.stage.Stage`: for data that aren't there, and fields that can't be.
  """
  found: dict[str, float] = {}
  by_folder: dict[str, float] = {}
  mesh = sharding.make_mesh()
  for run in runs:
    alike = run.name.rpartition('/')[0]
    if alike not in by_folder:
      flags = [f for f in run.flags if not f.startswith('--config.init=')]  # may not be there yet
      config = planned.configured(run.config, flags)
      stage = Stage(config, run.stage, runner.folder(out, run), mesh)
      images = stage.program.total_steps * stage.stage['batch_images'] * stage.objective.pictures
      by_folder[alike] = images * stage.objective.flops_per_image()
    found[run.name] = by_folder[alike]
  return found


def rate(runs: Sequence[Run], out: epath.Path, needed: dict[str, float]) -> tuple[float, str]:
  """Returns operations per second, and where that is from: of the runs that are done, or of this machine's peak."""
  seen = []
  for run in runs:
    if runner.done(out, run):
      result = files.read_json(runner.folder(out, run) / run.stage / 'result.json')
      if result.get('seconds'):
        seen.append(needed[run.name] / result['seconds'])
  if seen:
    return statistics.median(seen), f'as the {len(seen)} that are done'
  kind = jax.devices()[0].device_kind
  peak = chips.peak(kind)
  told = f"{SHARE:.0%} of {kind}'s peak" if peak else f'{SHARE:.0%} of what a matrix product reaches here'
  return SHARE * (
    peak or chips.measured_peak()
  ), f'at {told}; the runs begin each by compiling, which is not in it'

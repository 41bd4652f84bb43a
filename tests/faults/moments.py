"""Moments of a run to wait for: what `Run.until` takes."""

import json
import time

from mimic_jax.runtime import checkpoint
from tests.faults.harness import Moment, Run


def after_step(stage: str, step: int) -> Moment:
  """Until a stage has logged a step, in this start."""
  return lambda run: stage in run.begun() and run.logged(stage) >= step


def after_seconds(seconds: float) -> Moment:
  """Until so many seconds have gone by."""
  limit = time.monotonic() + seconds
  return lambda run: time.monotonic() >= limit


def writing(stage: str) -> Moment:
  """Until a checkpoint of a stage is half written."""

  def there(run: Run) -> bool:
    folder = run.folder / stage / checkpoint.FOLDER
    return (
      stage in run.begun()
      and run.logged(stage) > run.begun()[stage]
      and any('tmp' in p.name for p in folder.iterdir())
    )

  return there


def evaluating(stage: str) -> Moment:
  """Until a stage is being measured: a step that is measured after is logged, and the measurement is not."""

  def there(run: Run) -> bool:
    if stage not in run.begun() or run.logged(stage) <= run.begun()[stage]:
      return False
    rows = (run.folder / stage / 'metrics.jsonl').read_text().splitlines()
    last = json.loads(rows[-1])
    return last['split'] == 'train' and (last['step'] % 8 == 0 or last['step'] == last['total_steps'])

  return there


def exists(path: str) -> Moment:
  """Until a file is there, by its path inside the run's folder."""
  return lambda run: (run.folder / path).exists()


def later(moment: Moment, seconds: float) -> Moment:
  """Returns a moment so many seconds after another one."""
  since: list[float] = []

  def there(run: Run) -> bool:
    if not since and moment(run):
      since.append(time.monotonic())
    return bool(since) and time.monotonic() - since[0] >= seconds

  return there

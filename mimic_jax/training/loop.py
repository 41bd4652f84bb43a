"""The one loop, for every objective: state, step, log, checkpoint, evaluate."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from mimic_jax.data import source as source_lib
from mimic_jax.report import sheets
from mimic_jax.runtime import checkpoint, distributed, feed, files, lease, preemption, sharding
from mimic_jax.runtime.errors import AgreedError, Preempted, UserError
from mimic_jax.training import log as log_lib
from mimic_jax.training import profiling, results, speed, workdir
from mimic_jax.training import stage as stage_lib
from mimic_jax.training import start as start_lib
from mimic_jax.training import step as step_lib


def due(step: int, every_epochs: float, steps_per_epoch: float) -> bool:
  """Returns whether an interval of `every_epochs` ends with `step` steps done; never when it is 0."""
  interval = every_epochs * steps_per_epoch
  return interval > 0 and int(step / interval) > int((step - 1) / interval)


def run_stage(
  run: stage_lib.Stage,
  still_ours: Callable[[], None] = lambda: None,
  clock: start_lib.Clock | None = None,
) -> dict[str, Any]:
  """Runs one stage from its latest checkpoint, or its beginning, to its end.

  Args:
    run: the stage.
    still_ours: is called at every step; raises lease.Lost when another program writes to the run's folder.
    clock: of this start; record.json gets its parts.

  Returns:
    What result.json holds; {} in a process that writes nothing.

  Raises:
    UserError: for bad pictures, weights that do not fit, or too many steps with non-finite gradients.
    Preempted: when told to stop; a checkpoint holds all that was done.
  """
  clock = clock or start_lib.Clock()
  with distributed.together():
    run.prepare()
  preemption.look()
  config, name = run.config, run.name
  with checkpoint.opened(run.folder, run.stage['checkpoint']['keep']) as checkpoints:
    step, state, meta = _begin(run, checkpoints, clock)
    meta['reading'] = files.jsonable(run.reading())
    log = log_lib.Log(run.folder, step, config['log'], name, run.program.total_steps, meta.pop('pending', []))
    log_lib.say(log_lib.introduction(run, meta, step))
    distributed.agree(lambda: _say_what_is_read(run, meta))
    b = run.stage['batch_images']
    smaller = f'config.{name}.batch_images (is {b}), model, or config.model.remat=full'
    with log:
      with sharding.enough_memory(f'stage {name}', smaller):
        state, meta = _loop(run, state, meta, step, checkpoints, log, still_ours, clock)
        log.doing('evaluating')
        found = run.measure(state, intervals=True)
        total = run.program.total_steps
        log.evaluated(total, total / run.program.steps_per_epoch, found)
      log.flush()
      still_ours()
      log.doing('saving')
      checkpoints.confirm()  # a stage with a result counts as done: its last checkpoint must be whole by then
      log.doing('writing the report')
      return results.finish(run, state, meta, found)


def _begin(
  run: stage_lib.Stage, checkpoints: checkpoint.Checkpoints, clock: start_lib.Clock
) -> tuple[int, step_lib.State, dict[str, Any]]:
  """Returns the step, the state and what checkpoints carry: of the newest that is whole, or of a new stage."""
  fingerprint = source_lib.fingerprint(run.records['train'])
  measured = {s.name: source_lib.fingerprint(run.records[s.name]) for s in run.splits}
  frozen = stage_lib.frozen_sums(run)
  distributed.check_same(
    {
      f'the fingerprint of config.{run.name}.data': fingerprint,
      **{f"the fingerprint of config.{run.name}.eval's '{k}'": v for k, v in measured.items()},
      **{f"the fingerprint of {run.name}'s frozen '{k}'": v for k, v in frozen.items()},
    }
  )
  clock.lap('data')
  newest = checkpoints.restore_newest(run.program.abstract, log_lib.say)
  if newest is None:
    state, origin = run.initial_state()
    meta = {
      'stage': run.name,
      'config': workdir.as_dict(run.config),
      'data': fingerprint,
      'measured': measured,
      'frozen': frozen,
      'random': stage_lib.random_numbers(),
      'origin': origin,
      'seconds': 0.0,
    }
    step = 0
    checkpoints.warm_up(state)
  else:
    step, state, meta = newest
    with distributed.together():
      stage_lib.check_same_data(run, meta['data'], fingerprint)
      for split, now in measured.items():
        stage_lib.check_same_data(run, meta.get('measured', {}).get(split, now), now, split)
      stage_lib.check_same_frozen(run, meta.get('frozen', {}), frozen)
      stage_lib.check_same_random(meta)
  clock.lap('restore')
  return step, state, meta


def _say_what_is_read(run: stage_lib.Stage, meta: Mapping[str, Any]) -> None:
  workdir.update_record(
    run.run_folder,
    data={run.name: {**run.records, 'reading': meta['reading']}},
    weights={run.name: {k: meta['origin'][k] for k in ('origin', 'kind') if k in meta['origin']}},
    figures={run.name: {name: figure._asdict() for name, figure in run.objective.FIGURES.items()}},
  )
  sheets.save_contact_sheet(run.folder, run.source)


def _loop(
  run: stage_lib.Stage,
  state: step_lib.State,
  meta: dict[str, Any],
  start: int,
  checkpoints: checkpoint.Checkpoints,
  log: log_lib.Log,
  still_ours: Callable[[], None],
  clock: start_lib.Clock,
) -> tuple[step_lib.State, dict[str, Any]]:
  """Steps from `start` to the end; metrics are read one step late, so that the devices never wait for the host."""
  stage, program, total = run.stage, run.program, run.program.total_steps
  batches = run.batches(start)
  stream = speed.Input(
    feed.on_devices(batches, total - start, run.mesh, run.pictures), **meta.get('stepping', {})
  )
  trace = profiling.Trace(run.folder / 'profile', run.config['profile'], start, total, log_lib.say)
  before, began = meta['seconds'], time.monotonic()
  skipped = meta.get('skipped', {})
  unmeasured = meta.pop('unmeasured', False)  # the evaluation that is due at this step has not been made
  late: tuple[int, dict[str, jax.Array]] | None = None

  def settle(done: tuple[int, dict[str, jax.Array]] | None, check: bool = True) -> None:
    if done is None:
      return
    step, measured = done
    log.add(step, measured)
    if step == start + 1:
      clock.lap('compile')
      if distributed.is_main():
        workdir.update_record(
          run.run_folder, start={run.name: {k: round(v, 2) for k, v in clock.parts.items()}}
        )
    meta['seconds'] = before + time.monotonic() - began
    log.train_line(
      step, step / program.steps_per_epoch, stage['batch_images'] * run.objective.pictures, meta['seconds']
    )
    if check:
      _stop_if_bad(run, measured, step)

  def save(step: int) -> None:
    still_ours()
    log.flush()
    meta['skipped'] = distributed.merged([skipped, batches.skipped()])
    checkpoints.save(step, state, {**meta, 'pending': log.pending, 'unmeasured': unmeasured})

  def measure(step: int) -> None:
    nonlocal unmeasured
    log.doing('evaluating')
    log.evaluated(step, step / program.steps_per_epoch, run.measure(state))
    unmeasured = False
    log.doing('writing the report')
    results.show(run, state, every=run.config['log']['report_every'])
    log.doing('')
    log.restart_clock(step)

  try:
    if unmeasured:
      measure(start)
      clock.lap('evaluate')
    for step in range(start + 1, total + 1):
      still_ours()
      trace.before(step)
      batch = next(stream)
      if step == start + 1:
        clock.lap('data')
      with jax.profiler.StepTraceAnnotation('train', step_num=step):
        state, measured = program.step(state, batch, run.step_key)
      trace.after(step, measured)
      last = step == total
      saving = due(step, stage['checkpoint']['every_epochs'], program.steps_per_epoch) or last
      measuring = due(step, stage['eval']['every_epochs'], program.steps_per_epoch) and not last
      unmeasured = measuring
      late, done = (step, measured), late
      settle(done)
      if saving or measuring:
        late, done = None, late
        settle(done)
      stream.step_done()
      meta['stepping'] = {'waited': stream.waited, 'seconds': stream.seconds}
      if measuring:
        measure(step)
      if saving:
        save(step)
      preemption.look()
  except lease.Lost:
    raise
  except (UserError, Preempted) as e:
    # A bad picture, bad numbers, or told to stop: the weights are those of the last good step, and nothing is to be lost.
    if distributed.alike(e) and (done := int(state['step'])) > start:
      settle(late, check=False)
      save(done)
    raise
  finally:
    trace.close()
    batches.close()
  return state, meta


def _stop_if_bad(run: stage_lib.Stage, measured: dict[str, jax.Array], step: int) -> None:
  """Raises UserError, in every process, when more steps than allowed had a loss or gradient that is not finite."""
  bad = int(measured['bad_steps'])
  if bad > run.stage['max_bad_steps']:
    norms = ', '.join(f'{float(v):g}' for k, v in measured.items() if k.startswith('grad_norm'))
    raise AgreedError(
      f'stage {run.name}, step {step}: loss {float(measured["loss"]):g}, gradient norm {norms}; expected finite numbers ({bad} such steps, config.{run.name}.max_bad_steps is '
      f'{run.stage["max_bad_steps"]}). The weights were left as before and are saved; the same command with a higher '
      'max_bad_steps goes on, a new run with a lower optim.lr, a clip_norm or model.dtype=float32 may do better; '
      f'--debug_step={run.name}:{step} shows where it came from'
    )

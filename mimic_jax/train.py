"""The one loop, for every objective: state, step, log, checkpoint, evaluate."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from mimic_jax import (
  checkpoint,
  data,
  distributed,
  evaluation,
  feed,
  lease,
  metrics,
  models,
  objectives,
  preemption,
  results,
  sharding,
  workdir,
)
from mimic_jax import config as config_lib
from mimic_jax import program as program_lib
from mimic_jax.data import pipeline
from mimic_jax.data import source as source_lib
from mimic_jax.errors import AgreedError, Preempted, UserError


def first_weights(config: Mapping[str, Any], name: str, folder: epath.Path) -> str:
  """Returns the path of a stage's initial weights, which an earlier stage may have yet to make; '' = from scratch."""
  init, names = config[name]['init'], config_lib.stages(config)
  return str(folder / init) if init in names[: names.index(name)] else init


def due(step: int, every_epochs: float, steps_per_epoch: float) -> bool:
  """Returns whether an interval of `every_epochs` ends with `step` steps done; never when it is 0."""
  interval = every_epochs * steps_per_epoch
  return interval > 0 and int(step / interval) > int((step - 1) / interval)


class Stage:
  """A stage: what the loop needs at hand. Making one looks for what can go wrong before anything is computed.

  Args:
    config: of the run.
    name: of the stage.
    folder: the run's.
    mesh: of the devices.
    init: where the first weights are from; '' = from scratch. Weights that an earlier stage of the run has yet
      to make are not looked at here.

  Raises:
    UserError: on bad data, a batch that does not divide, an objective or a model that can not be.
  """

  def __init__(self, config: Mapping[str, Any], name: str, folder: epath.Path, mesh: Mesh, init: str = ''):
    self.config, self.name, self.mesh = config, name, mesh
    self.stage = config[name]
    self.run_folder, self.folder = folder, folder / name
    sharding.check_divides(f'config.{name}.batch_images', self.stage['batch_images'], mesh)
    sharding.check_divides(f'config.{name}.eval.batch_images', self.stage['eval']['batch_images'], mesh)
    self.image_size = models.encoder_config(config['model'], self.stage['drop_path']).image_size
    d = self.stage['data']
    self.source = data.build(d['source'], d['root'], d['split'], {**d, 'cache': False})
    self.class_names = tuple(self.source.class_names)
    self.objective = objectives.make(
      self.stage,
      config['model'],
      self.class_names,
      f'config.{name}.objective',
      getattr(self.source, 'why_unlabelled', ''),
    )
    self.splits = self._splits({**d, 'cache': False})
    self.program = program_lib.make_program(
      self.stage, config['model'], self.objective, len(self.source), mesh
    )
    self.init = init
    # Once the stage has a checkpoint its first weights are of no more concern, and may be gone.
    self._fitted: program_lib.Fitted | None = None
    if init and not checkpoint.find(self.folder) and folder not in epath.Path(init).parents:
      self._fitted = program_lib.fitted(self.program, init, f'config.{name}.init')

  def prepare(self) -> None:
    """Does what takes time: reads pictures that are to be kept in memory, finds duplicates, builds the program."""
    d = self.stage['data']
    if self.stage['eval']['without_duplicates']:
      evaluation.find_duplicates(self.splits, data.whole(d['source'], d['root'], d['split'], d))
    if d['cache']:
      self.source = data.build(d['source'], d['root'], d['split'], d)
      for split, cached in zip(self.splits, self._splits(d), strict=True):
        split.source = cached.source
    self.records = {'train': self.source.record(), **{s.name: s.source.record() for s in self.splits}}
    self.eval_step = evaluation.make_step(self.objective, self.program.template, self.mesh)
    key = jax.random.fold_in(jax.random.key(self.config['seed']), results.number_of(self.name))
    self.init_key, self.step_key, self.draw_key = jax.random.split(key, 3)
    shown = self.splits[0].source if self.splits else self.source
    self.sample = results.sample_batch(shown, self.image_size, self.stage['augment']['interpolation'])

  def _splits(self, options: Mapping[str, Any]) -> list[evaluation.Split]:
    classes = self.class_names if self.objective.labelled else ()
    return evaluation.splits_of(self.stage, options, classes, f'config.{self.name}')

  def initial_state(self) -> tuple[program_lib.State, dict[str, Any]]:
    """Returns the first state, and where its weights are from; called once, since it lets go of what it has read."""
    with distributed.together():
      given, self._fitted = self._fitted, None
      if given is None and self.init:
        given = program_lib.fitted(self.program, self.init, f'config.{self.name}.init')
    return program_lib.initial_state(self.program, self.init_key, given), given.account if given else {
      'origin': 'scratch'
    }

  def reading(self) -> dict[str, Any]:
    """Returns how pictures and labels were read, which whoever uses the weights must do alike."""
    a = self.stage['augment']
    return {
      'channels': 'RGB',
      'image_size': self.image_size,
      **{k: a[k] for k in ('interpolation', 'mean', 'std')},
      'align': self.records['train'].get('align', {'align': 'none'}),
      'sampler': self.stage['data']['sampler'],
      'label_rule': self.records['train'].get('label_rule', 'none'),
      'class_names': self.class_names,
    }

  def batches(self, start: int) -> Any:
    """Returns the training batches from step `start` on."""
    d, a = self.stage['data'], self.stage['augment']
    return pipeline.train_batches(
      self.source,
      batch_images=self.stage['batch_images'],
      seed=self.config['seed'],
      start_step=start,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      views=self.objective.views,
      image_size=self.image_size,
      scale=a['scale'],
      ratio=a['ratio'],
      interpolation=a['interpolation'],
      **{k: d[k] for k in ('sampler', 'on_bad_image', 'threads', 'workers', 'prefetch', 'worker_restarts')},
    )

  def measure(self, state: program_lib.State) -> dict[str, evaluation.Measured]:
    """Evaluates every split."""
    return {
      split.name: evaluation.measure(
        self.eval_step,
        state['params'],
        state['rest'],
        split,
        self.mesh,
        class_names=self.class_names,
        batch_images=self.stage['eval']['batch_images'],
        image_size=self.image_size,
        interpolation=self.stage['augment']['interpolation'],
        on_bad_image=self.stage['data']['on_bad_image'],
      )
      for split in self.splits
    }

  def draw(self, state: program_lib.State) -> dict[str, Any]:
    """Returns what the objective shows of its model."""
    model = models.merge(self.program.template, state['params'], state['rest'])
    return self.objective.draw(model, self.sample, self.draw_key)


def run_stage(run: Stage, still_ours: Callable[[], None] = lambda: None) -> dict[str, Any]:
  """Runs one stage from its latest checkpoint, or its beginning, to its end.

  Args:
    run: the stage.
    still_ours: is called at every step; raises lease.Lost when another program writes to the run's folder.

  Returns:
    What result.json holds; {} in a process that writes nothing.

  Raises:
    UserError: for bad pictures, weights that do not fit, or too many steps with non-finite gradients.
    Preempted: when told to stop; a checkpoint holds all that was done.
  """
  with distributed.together():
    run.prepare()
  preemption.look()
  config, name = run.config, run.name
  with checkpoint.opened(run.folder, run.stage['checkpoint']['keep']) as checkpoints:
    fingerprint = source_lib.fingerprint(run.records['train'])
    distributed.check_same({f'the fingerprint of config.{name}.data': fingerprint})
    newest = checkpoints.restore_newest(run.program.abstract, results.say)
    if newest is None:
      state, origin = run.initial_state()
      meta = {
        'stage': name,
        'config': workdir.as_dict(config),
        'data': fingerprint,
        'origin': origin,
        'seconds': 0.0,
      }
      step = 0
      checkpoints.warm_up(state)
    else:
      step, state, meta = newest
      with distributed.together():
        check_same_data(run, meta['data'], fingerprint)
    meta['reading'] = metrics.jsonable(run.reading())
    log = results.Log(run.folder, step, config['log'], name, run.program.total_steps, meta.pop('pending', []))
    results.say(results.introduction(run, meta, step))
    distributed.agree(lambda: _say_what_is_read(run, meta['reading']))
    b = run.stage['batch_images']
    smaller = f'config.{name}.batch_images (is {b}), model, or config.model.remat=True'
    with log, sharding.enough_memory(f'stage {name}', smaller):
      state, meta = _loop(run, state, meta, step, checkpoints, log, still_ours)
      found = run.measure(state)
      for split in run.splits:
        evaluation.add_intervals(found[split.name], split, run.class_names)
      total = run.program.total_steps
      log.evaluated(total, total / run.program.steps_per_epoch, found)
    still_ours()
    checkpoints.wait()  # a stage with a result counts as done: its last checkpoint must be whole by then
    return results.finish(run, state, meta, found)


def _say_what_is_read(run: Stage, reading: Mapping[str, Any]) -> None:
  workdir.update_record(run.run_folder, data={run.name: {**run.records, 'reading': reading}})
  results.save_contact_sheet(run.folder, run.source)


def check_same_data(run: Stage, old: str, new: str) -> None:
  """Raises UserError unless two fingerprints of a stage's training data are one."""
  if old != new:
    raise UserError(
      f"config.{run.name}.data.root '{run.stage['data']['root']}' no longer holds the data this run began with "
      f'(fingerprint {new}; expected {old})'
    )


def _loop(
  run: Stage,
  state: program_lib.State,
  meta: dict[str, Any],
  start: int,
  checkpoints: checkpoint.Checkpoints,
  log: results.Log,
  still_ours: Callable[[], None],
) -> tuple[program_lib.State, dict[str, Any]]:
  """Steps from `start` to the end; metrics are read one step late, so that the devices never wait for the host."""
  stage, program, total = run.stage, run.program, run.program.total_steps
  batches = run.batches(start)
  stream = feed.on_devices(batches, total - start, run.mesh)
  before, began = meta['seconds'], time.monotonic()
  skipped = meta.get('skipped', {})
  unmeasured = meta.pop('unmeasured', False)  # the evaluation that is due at this step has not been made
  late: tuple[int, dict[str, jax.Array]] | None = None

  def settle(done: tuple[int, dict[str, jax.Array]] | None, check: bool = True) -> None:
    if done is None:
      return
    step, measured = done
    log.add(step, measured)
    meta['seconds'] = before + time.monotonic() - began
    log.train_line(step, step / program.steps_per_epoch, stage['batch_images'], meta['seconds'])
    if check:
      _stop_if_bad(run, measured, step)

  def save(step: int) -> None:
    still_ours()
    log.flush()
    meta['skipped'] = distributed.merged([skipped, batches.skipped()])
    checkpoints.save(step, state, {**meta, 'pending': log.pending, 'unmeasured': unmeasured})

  def measure(step: int) -> None:
    nonlocal unmeasured
    log.evaluated(step, step / program.steps_per_epoch, run.measure(state))
    unmeasured = False
    results.show(run, state, every=run.config['log']['report_every'])
    log.restart_clock(step)

  try:
    if unmeasured:
      measure(start)
    for step in range(start + 1, total + 1):
      still_ours()
      state, measured = program.step(state, next(stream), run.step_key)
      last = step == total
      saving = due(step, stage['checkpoint']['every_epochs'], program.steps_per_epoch) or last
      measuring = due(step, stage['eval']['every_epochs'], program.steps_per_epoch) and not last
      unmeasured = measuring
      late, done = (step, measured), late
      settle(done)
      if saving or measuring:
        late, done = None, late
        settle(done)
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
    batches.close()
  return state, meta


def _stop_if_bad(run: Stage, measured: dict[str, jax.Array], step: int) -> None:
  """Raises UserError, in every process, when more steps than allowed had a loss or gradient that is not finite."""
  bad = int(measured['bad_steps'])
  if bad > run.stage['max_bad_steps']:
    raise AgreedError(
      f'stage {run.name}, step {step}: loss {float(measured["loss"]):g}, gradient norm '
      f'{float(measured["grad_norm"]):g}; expected finite numbers ({bad} such steps, config.{run.name}.max_bad_steps is '
      f'{run.stage["max_bad_steps"]}). The weights were left as before and are saved; the same command with a higher '
      'max_bad_steps goes on, a new run with a lower optim.lr, a clip_norm or model.dtype=float32 may do better; '
      f'--debug_step={run.name}:{step} shows where it came from'
    )

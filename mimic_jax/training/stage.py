"""A stage: from its section of the config to what the loop needs at hand."""

import contextlib
import hashlib
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from mimic_jax import config as config_lib
from mimic_jax import data, models, objectives
from mimic_jax.data import pipeline, sampling, selection
from mimic_jax.data import source as source_lib
from mimic_jax.objectives.base import Crops
from mimic_jax.runtime import checkpoint, checksum, distributed, sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import evaluation
from mimic_jax.training import step as step_lib


def earlier(config: Mapping[str, Any], name: str, folder: epath.Path) -> dict[str, str]:
  """Returns the folders of a run's stages that come before one, by name."""
  names = config_lib.stages(config)
  return {n: str(folder / n) for n in names[: names.index(name)]}


def first_weights(config: Mapping[str, Any], name: str, folder: epath.Path) -> str:
  """Returns the path of a stage's initial weights, which an earlier stage may have yet to make; '' = from scratch."""
  init = config[name]['init']
  return earlier(config, name, folder).get(init, init)


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
    with self._fields_as_typed():
      self.source = self._training({**d, 'cache': False})
    self.class_names = tuple(self.source.class_names)
    self.objective = objectives.make(
      self.stage,
      config['model'],
      self.class_names,
      f'config.{name}.objective',
      getattr(self.source, 'why_unlabelled', ''),
    )
    self._check_offers(self.source, f'config.{name}.data.source', d['source'])
    if d['resident'] and self.source.image_shape is None:
      raise UserError(
        f"config.{name}.data.resident is True, and the pictures of '{d['source']}' have many sizes; expected a set of one "
        'size, or False'
      )
    with self._fields_as_typed():
      self.splits = self._splits({**d, 'cache': False})
    for split in self.splits:
      self._check_offers(split.source, f'config.{name}.eval.splits', split.name, grouped=False)
    self._earlier = earlier(config, name, folder)
    paths = {network.path for network in self.objective.frozen().values()}
    self._frozen_later = not paths.isdisjoint(self._earlier)  # a stage has yet to make one
    if self._frozen_later:
      frozen = step_lib.frozen_shapes(self.objective, mesh)
    else:
      frozen = step_lib.read_frozen(self.objective, f'config.{name}', mesh)
    self.clips = None
    if frames := self.objective.frames:
      with self._fields_as_typed():
        self.clips = sampling.clips_of(self.source, frames, config['seed'])
    self.items = len(self.source if self.clips is None else self.clips)  # of an epoch
    self.program = step_lib.make_program(
      self.stage, self.objective, self.items, mesh, frozen, f'config.{name}.'
    )
    self.init = init
    self.pictures: jax.Array | None = None  # where they lie on the devices
    # Once the stage has a checkpoint its first weights are of no more concern, and may be gone.
    self._fitted: step_lib.Fitted | None = None
    if init and not checkpoint.find(self.folder) and folder not in epath.Path(init).parents:
      self._fitted = step_lib.fitted(self.program, init, f'config.{name}.init')

  @contextlib.contextmanager
  def _fields_as_typed(self) -> Iterator[None]:
    """Names fields of the data section in a UserError as they are typed."""
    try:
      yield
    except UserError as e:
      whole = self.config.get('data', {})
      if (
        str(e).startswith('data.root is empty') and ',' in self.stage['data']['source'] and whole.get('root')
      ):
        field = 'general' if 'general' in whole else 'root'
        raise UserError(f'--config.data.{field} is empty; {str(e).partition("; ")[2]}') from e
      own = 'root' in whole and self.stage['data']['root'] == whole['root']
      text = re.sub(r"(?<![\w.-])data\.root(?= is| ')", '--config.data.root', str(e)) if own else str(e)
      raise type(e)(re.sub(r'(?<![\w.-])data\.(?=[a-z_]+)', f'--config.{self.name}.data.', text)) from e

  def _check_offers(self, source: Any, field: str, value: str, grouped: bool = True) -> None:
    """Raises UserError when a source lacks what the objective needs of it."""
    evaluation.check_targets(source, self.objective.targets, self.stage['objective'], f"{field} is '{value}'")
    if grouped and self.objective.pictures > 1 and not hasattr(source, 'group'):
      raise UserError(
        f"{field} is '{value}', whose pictures are in no groups; objective '{self.stage['objective']}' needs groups of {self.objective.pictures}"
      )

  def prepare(self, made_up: bool = False) -> None:
    """Does what takes time: reads pictures that are to be kept in memory, finds copies, reads what earlier stages have made.

    Args:
      made_up: whether frozen networks that an earlier stage of the run makes are fresh ones instead.
    """
    d = self.stage['data']
    if self._frozen_later:
      made = (
        step_lib.fresh_frozen(self.objective, self.mesh)
        if made_up
        else step_lib.read_frozen(self.objective, f'config.{self.name}', self.mesh, self._earlier)
      )
      self.program.frozen.arrays.update(made.arrays)
    if self.stage['eval']['without_duplicates']:
      evaluation.find_copies(self.splits, data.whole(d['source'], d['root'], d['split'], d))
    if d['resident']:
      self.pictures = self._on_devices()
    if d['cache']:
      self.source = self._training({**d, 'cache': not d['resident']})
      for split, cached in zip(self.splits, self._splits(d), strict=True):
        split.source = cached.source
    self.records = {'train': self.source.record(), **{s.name: s.source.record() for s in self.splits}}
    if self.clips is not None:
      self.records['train'] |= {'clips_used': len(self.clips), 'clips_too_short': self.clips.left_out}
      if self.clips.left_out:
        every = len(self.clips) + self.clips.left_out
        said = f'{self.clips.left_out:,} of {every:,} clips are shorter than {self.objective.frames.least} frames and not trained on'
        self.records['train']['warnings'] = [*self.records['train'].get('warnings', ()), said]
    for split in self.splits:
      if said := evaluation.warnings_of_copies(split):
        record = self.records[split.name]
        record['warnings'] = [*record.get('warnings', ()), *said]
    self.eval_step = evaluation.make_step(
      self.objective.evaluate, self.program.template, self.mesh, self.program.frozen
    )
    key = jax.random.fold_in(jax.random.key(self.config['seed']), zlib.crc32(self.name.encode()))
    self.init_key, self.step_key, self.draw_key = jax.random.split(key, 3)
    shown = self.splits[0].source if self.splits else self.source
    self.sample = evaluation.sample_batch(
      shown, self.image_size, self.stage['augment']['interpolation'], list(self.objective.targets)
    )

  def _on_devices(self) -> jax.Array:
    """Returns the training pictures, uint8 [n, H, W, 3], on every device; raises UserError where one can't be read."""
    with sharding.enough_memory(f'config.{self.name}.data.resident', 'set, or data.resident=False'):
      whole = pipeline.whole(self.source, self.stage['data']['threads'])
      like = jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=sharding.replicated(self.mesh))
      return jax.block_until_ready(sharding.put(whole, like))

  def _training(self, d: Mapping[str, Any]) -> source_lib.Source:
    """Returns what is trained on, which is not all where a fraction is asked for."""
    if d['part_seed'] >= 0 and d['fraction'] == 1 and not d['label_noise']:
      raise UserError(
        f'data.part_seed is {d["part_seed"]}, and neither data.fraction nor data.label_noise is set; expected -1, its default'
      )
    whole = data.build(d['source'], d['root'], d['split'], d)
    seed = self.config['seed'] if d['part_seed'] < 0 else d['part_seed']
    return selection.for_training(whole, d['fraction'], d['label_noise'], seed)

  def _splits(self, options: Mapping[str, Any]) -> list[evaluation.Split]:
    classes = self.class_names if self.objective.labelled else ()
    return evaluation.splits_of(self.stage, options, classes, f'config.{self.name}')

  def initial_state(self) -> tuple[step_lib.State, dict[str, Any]]:
    """Returns the first state, and where its weights are from; called once, since it lets go of what it has read."""
    with distributed.together():
      given, self._fitted = self._fitted, None
      if given is None and self.init:
        given = step_lib.fitted(self.program, self.init, f'config.{self.name}.init')
    account = given.account if given else {'origin': 'scratch'}
    for key, value in account.pop('pixels', {}).items():
      own = tuple(self.stage['augment'][key])
      if tuple(value) != own:
        flag = f'--config.{self.name}.augment.{key}={tuple(value)}'.replace(' ', '')
        account['notes'].append(
          f"its config says {key} {tuple(value)}, here it is {own} ('{flag}' makes them so)"
        )
    return step_lib.initial_state(self.program, self.init_key, given), account

  def reading(self) -> dict[str, Any]:
    """Returns how pictures and labels were read, which whoever uses the weights must do alike."""
    a = self.stage['augment']
    return {
      'channels': 'RGB',
      'image_size': self.image_size,
      'image_shape': self.source.image_shape,  # of the pictures, where all have one: they are resized on the device then
      **{k: a[k] for k in ('interpolation', 'mean', 'std')},
      'align': self.records['train'].get('align', {'align': 'none'}),
      'sampler': self.stage['data']['sampler'],
      'label_rule': self.records['train'].get('label_rule', 'none'),
      'class_names': self.class_names,
      'classifier': '/'.join(self.objective.classifier),
    }

  def batches(self, start: int) -> Any:
    """Returns the training batches from step `start` on."""
    d, a = self.stage['data'], self.stage['augment']
    crops = {name: c for name, c in self.objective.inputs().items() if name not in self.objective.targets}
    image = crops.pop('image', Crops())
    return pipeline.train_batches(
      self.source,
      batch_images=self.stage['batch_images'],
      seed=self.config['seed'],
      start_step=start,
      share=pipeline.Share(*sharding.share(self.mesh)),
      views=image.views,
      image_size=image.size or self.image_size,
      more_crops={name: (c.views, c.size or self.image_size) for name, c in crops.items()},
      targets=list(self.objective.targets),
      group=self.objective.pictures,
      frames=self.objective.frames,
      resident=d['resident'],
      scale=a['scale'],
      ratio=a['ratio'],
      interpolation=a['interpolation'],
      **{k: d[k] for k in ('sampler', 'on_bad_image', 'threads', 'workers', 'prefetch', 'worker_restarts')},
    )

  def measure(self, state: step_lib.State, intervals: bool = False) -> dict[str, evaluation.Measured]:
    """Evaluates every split, and under <split>_ema with the average of the weights, where there is one."""
    found = {}
    for suffix, tree in (('', 'params'), ('_ema', 'ema')):
      for split in self.splits if tree in state else ():
        measured = evaluation.measure(
          self.objective,
          self.eval_step,
          state[tree],
          state['rest'],
          split,
          self.mesh,
          class_names=self.class_names,
          batch_images=self.stage['eval']['batch_images'],
          image_size=self.image_size,
          interpolation=self.stage['augment']['interpolation'],
          on_bad_image=self.stage['data']['on_bad_image'],
        )
        if intervals:
          evaluation.add_intervals(measured, split, self.class_names)
        found[split.name + suffix] = measured
    return found

  def draw(self, params: Any, rest: Any, frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the objective shows of its model; `frozen` are the arrays of its frozen networks."""
    model = models.merge(self.program.template, params, rest)
    return self.objective.draw(self.program.frozen.attached(model, frozen), self.sample, self.draw_key)


def check_same_data(run: Stage, old: str, new: str, split: str = '') -> None:
  """Raises UserError unless two fingerprints of a stage's training data are one, or of a split that it is measured on."""
  if old != new:
    field = 'eval.root' if split and run.stage['eval']['root'] else 'data.root'
    section, _, key = field.partition('.')
    what = f"the '{split}' that this run is measured on" if split else 'the data this run began with'
    raise UserError(
      f"config.{run.name}.{field} '{run.stage[section][key]}' no longer holds {what} (fingerprint {new}; expected {old})"
    )


def frozen_sums(run: Stage) -> dict[str, str]:
  """Returns a fingerprint of each of a stage's frozen networks, by its name; every process must call it."""
  sums = {k: checksum.of_arrays(checkpoint.flatten(v)) for k, v in run.program.frozen.arrays.items()}
  return {k: hashlib.sha256(repr(sorted(v.items())).encode()).hexdigest()[:16] for k, v in sums.items()}


def check_same_frozen(run: Stage, old: Mapping[str, str], new: Mapping[str, str]) -> None:
  """Raises UserError unless two `frozen_sums` of a stage are one; older checkpoints have none."""
  for name, network in run.objective.frozen().items():
    if old.get(name, new[name]) != new[name]:
      raise UserError(
        f"config.{run.name}.{network.field} '{network.path}' no longer holds the network this run began with (fingerprint {new[name]}; "
        f'expected {old[name]})'
      )


def random_numbers() -> str:
  """Returns what makes JAX's random numbers, which the environment can change."""
  return f'{jax.config.jax_default_prng_impl}{"" if jax.config.jax_threefry_partitionable else ", not partitionable"}'


def check_same_random(meta: Mapping[str, Any]) -> None:
  """Raises UserError unless a checkpoint was made with the random numbers of now; older ones do not say."""
  if meta.get('random', random_numbers()) != random_numbers():
    raise UserError(
      f"JAX_DEFAULT_PRNG_IMPL or jax_threefry_partitionable make random numbers '{random_numbers()}'; expected "
      f"'{meta['random']}', with which this run began"
    )

"""A trained model out of a run's folder, a checkpoint or published weights: what evaluation, prediction and export begin with."""

import dataclasses
import os
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from mimic_jax import augment, defaults, models, objectives, weights
from mimic_jax import config as config_lib
from mimic_jax.runtime import checkpoint, remote, sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import log, sizes
from mimic_jax.training import stage as stage_lib
from mimic_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Trained:
  """A model and how it was made.

  Attributes:
    folder: of the checkpoints; step: the one read. Of published weights the file, and −1.
    config: of its run, whole; stage_name: the stage's section in it.
    reading: how its training pictures were read: channels, image_size, interpolation, align, class_names, …
    objective: of the stage.
    template, params, rest: the model, on the devices (models.merge); frozen: the networks that it reads from files.
    ema: whether params are the moving average.
  """

  folder: epath.Path
  step: int
  config: FrozenConfigDict
  stage_name: str
  reading: dict[str, Any]
  objective: Any
  template: models.Template
  params: Any
  rest: Any
  frozen: step_lib.FrozenNetworks
  ema: bool = False

  @property
  def where(self) -> str:
    """The checkpoint or the file, and whether its average was read."""
    step = f'/{self.step}' if self.step >= 0 else ''
    return f'{self.folder}{step}' + (' (ema)' if self.ema else '')

  @property
  def stage(self) -> FrozenConfigDict:
    """The stage's section of the config."""
    return self.config[self.stage_name]

  @property
  def class_names(self) -> tuple[str, ...]:
    """Of the classifier; () where the objective has none."""
    return tuple(self.reading['class_names']) if self.objective.labelled else ()

  def seen(self, images: jax.Array) -> jax.Array:
    """Returns pictures as the encoder gets them, read as those of the training: uint8 [B, H, W, 3] → float32 [B, S, S, 3]."""
    r = self.reading
    return augment.evaluation_view(images, r['image_size'], r['interpolation'], r['mean'], r['std'])


def locate(path: str, field: str) -> tuple[epath.Path, int]:
  """Returns the folder of checkpoints and the step that `path` means.

  Args:
    path: a run's folder, a stage's folder or a checkpoint. Of a run's folder with several stages, the one that learned
      from labels.
    field: the flag that holds it, for errors.

  Raises:
    UserError: when there is none, or several stages might be meant.
  """
  where = epath.Path(path).expanduser()
  if not where.exists():
    raise UserError(f"{field} is '{path}', which does not exist; expected {weights.EXPECTED}")
  found = []
  if not (where / checkpoint.FOLDER).exists() and not where.name.isdigit():
    stages = [p for p in sorted(where.iterdir()) if (p / checkpoint.FOLDER).is_dir()]
    found = [f for p in stages if (f := checkpoint.find(p)) and _labelled(*f)] if len(stages) > 1 else []
  if len(found) > 1:
    names = ', '.join(str(f.parent) for f, _ in found)
    raise UserError(f"{field} is '{path}', which holds several fine-tuned stages; expected one of {names}")
  one = found[0] if found else checkpoint.find(where)
  if one is None:
    raise UserError(
      f"{field} is '{path}', which holds no checkpoint of mimic_jax and no weights; expected {weights.EXPECTED}"
    )
  return one


def _labelled(folder: epath.Path, step: int) -> bool:
  meta = checkpoint.read_meta(folder, step)
  known = objectives.find(meta['config'][meta['stage']]['objective']).labelled
  return known or bool(meta.get('reading', {}).get('classifier'))  # of one whose section says what it learns


def load(path: str, mesh: Mesh, field: str = '--checkpoint', ema: bool = False) -> Trained:
  """Reads a trained model and puts it on every device.

  Args:
    path: as for `locate`; or weights with a classifier, a file or a folder, as `config.init` takes them.
    mesh: of the devices.
    field: the flag that holds the path, for errors.
    ema: whether to take the average of the weights.

  Raises:
    UserError: when there is no checkpoint, it has no average, is damaged, not of this version's form or has values that are not
      finite; when weights have no classifier.
  """
  given = epath.Path(path).expanduser()
  if remote.patiently(lambda: _is_published(given), f"{field} is '{path}'"):
    return _published(os.path.expanduser(path), mesh, field, ema)
  folder, step = locate(path, field)
  where = f'{folder}/{step}'
  meta = checkpoint.read_meta(folder, step)
  if 'reading' not in meta:
    raise UserError(f'{where} does not say how its pictures were read; expected a checkpoint of this version')
  name, reading = meta['stage'], meta['reading']
  config = FrozenConfigDict(config_lib.filled(meta['config']))
  objective = objectives.make(
    config[name], config['model'], tuple(reading['class_names']), f'{where}: config.{name}.objective'
  )
  example = nnx.eval_shape(objective.init, jax.random.key(0))
  template, params, rest = models.split(example, objective.trainable)
  if ema and not config[name].ema:
    raise UserError(
      f'--ema: {where} has no average of the weights (its config.{name}.ema is 0); expected one'
    )
  weights = 'ema' if ema else 'params'
  arrays = checkpoint.read_arrays(folder, step, (weights, 'rest'))
  trees = {}
  for tree, shapes in ((weights, params), ('rest', rest)):
    trees[tree] = {}
    for flat, leaf in checkpoint.flatten(shapes).items():
      array = arrays.get(f'{tree}/{flat}')
      if array is None or array.shape != leaf.shape:
        has = 'lacks' if array is None else f'has in another shape, {array.shape},'
        raise UserError(f"{where} {has} '{flat}'; expected {leaf.shape}, as its own config makes it")
      if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        raise UserError(
          f"{where}: '{flat}' has values that are not finite; expected a model that was trained well"
        )
      trees[tree][flat] = array
  put = _everywhere(trees, mesh)
  stages = stage_lib.earlier(config, name, folder.parent.parent)
  frozen = step_lib.read_frozen(objective, f'config.{name}', mesh, stages, measured=True)
  return Trained(
    folder, step, config, name, reading, objective, template, put[weights], put['rest'], frozen, ema
  )


def _everywhere(trees: dict[str, dict[str, np.ndarray]], mesh: Mesh) -> dict[str, Any]:
  return {k: jax.device_put(checkpoint.nest(v), sharding.replicated(mesh)) for k, v in trees.items()}


def _is_published(where: epath.Path) -> bool:
  """Says whether a path is a weight file, or a folder with one that is no run's."""
  if where.is_dir():
    here = list(where.iterdir())
    ours = any(p.name == checkpoint.FOLDER or (p / checkpoint.FOLDER).is_dir() for p in here)
    return not ours and any(p.suffix in ('.safetensors', '.bin', '.pth', '.pt') for p in here)
  return where.exists()


def _published(path: str, mesh: Mesh, field: str, ema: bool) -> Trained:
  """Builds the model that published weights with a classifier are of: of their sizes, classes and pixels."""
  if ema:
    raise UserError(
      f"--ema: {field} is '{path}', which has no second set of weights; expected a run's folder"
    )
  found = weights.read(path, field)
  uses = [
    stage
    for kind in map(objectives.find, objectives.names())
    for _, stage in kind.uses(found.facts, found.tensors)
    if kind.labelled and stage.init_head
  ]
  if not uses:
    pool = found.facts.get('pool') if 'classes' in found.facts else None
    lacks = f"has a classifier that reads '{pool}', which none does here" if pool else 'has no classifier'
    raise UserError(f"{field}: '{path}' ({found.kind}) {lacks}; expected fine-tuned weights")
  if found.facts.get('dim') and not found.facts.get('heads'):
    raise UserError(
      f"{field}: '{path}' does not show how many heads it has; expected a model folder whose config.json says num_attention_heads"
    )
  config, stage, name = defaults.base(), uses[0], 'published'
  config.stages = name
  config.model.update(preset=models.INIT, image_size=0, dtype='float32')
  sizes.model_section(config.model, sizes.model_fields(found.facts), f"{field}: '{path}'")
  stage.augment.update({k: found.facts[k] for k in ('mean', 'std', 'interpolation') if k in found.facts})
  config[name] = stage
  names = found.class_names or tuple(str(k) for k in range(found.facts['classes']))
  objective = objectives.make(stage, config.model, names, field)
  model = jax.jit(lambda key: models.split(objective.init(key), objective.trainable)[1:])(jax.random.key(0))
  arrays, account = step_lib.fit(found, objective, *model, field)
  for note in account['notes']:
    log.say(f'note: {note}')
  trees = {}
  for tree, fresh in zip(('params', 'rest'), model):
    trees[tree] = {k: arrays.get(k, v) for k, v in checkpoint.flatten(fresh).items()}
  put = _everywhere(trees, mesh)
  template = models.split(nnx.eval_shape(objective.init, jax.random.key(0)), objective.trainable)[0]
  reading = {
    'channels': 'RGB',
    'image_size': objective.config.image_size,
    'image_shape': None,
    **{k: stage.augment[k] for k in ('interpolation', 'mean', 'std')},
    'align': {'align': 'none'},
    'class_names': names,
    'classifier': '/'.join(objective.classifier),
    'kind': found.kind,
  }
  frozen = step_lib.read_frozen(objective, field, mesh)
  return Trained(
    epath.Path(path),
    -1,
    FrozenConfigDict(config),
    name,
    reading,
    objective,
    template,
    put['params'],
    put['rest'],
    frozen,
  )

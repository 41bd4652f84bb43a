"""What a stage compiles: its state and its step, for any objective, and the state that it begins with."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from mimic_jax import landmarks, models, weights
from mimic_jax.objectives import Objective
from mimic_jax.objectives.base import Crops
from mimic_jax.runtime import checkpoint, sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import optim

State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Program:
  """What a stage compiles: everything but the numbers.

  Attributes:
    objective: what is learned.
    template: the model without its arrays.
    abstract: the state as jax.ShapeDtypeStruct with shardings.
    init: key → state.
    step: (state, batch, key) → (state, metrics); donates the state.
    lower: the step ready to be compiled, for a batch or its shapes, by default of pictures that were cropped on the host;
      compiled it takes `frozen.arrays`, too.
    frozen: the networks read from files, arguments of the step.
    gradients: (state, batch, key) → (loss, its parts, the rest's new state, gradients), as `step` computes them; not
      compiled.
    total_steps: of the stage.
    steps_per_epoch: not rounded.
  """

  objective: Objective
  template: Any
  abstract: State
  init: Callable[[jax.Array], State]
  step: Callable[..., tuple[State, dict[str, jax.Array]]]
  lower: Callable[..., jax.stages.Lowered]
  frozen: 'FrozenNetworks'
  gradients: Callable[..., tuple[jax.Array, dict[str, jax.Array], Any, Any]]
  total_steps: int
  steps_per_epoch: float


def make_program(
  stage: Mapping[str, Any],
  objective: Objective,
  images: int,
  mesh: Mesh,
  frozen: 'FrozenNetworks | None' = None,
  field: str = '',
) -> Program:
  """Builds a stage's state and step.

  Args:
    stage: its section of the config.
    objective: from `objectives.make`.
    images: items of an epoch: the pictures of the training source, or its clips.
    mesh: of the devices.
    frozen: the objective's networks; without, their shapes, which are enough to compile.
    field: 'config.NAME.' of the stage, for errors.

  Raises:
    UserError: when a group of parameters has no optimiser, or the batch can't be computed in parts.
  """
  _check_parts(stage, objective, mesh, field)
  frozen = frozen or frozen_shapes(objective, mesh)
  per_epoch = images / stage['batch_images']
  total = stage['steps'] or max(round(stage['epochs'] * per_epoch), 1)
  example = nnx.eval_shape(objective.init, jax.random.key(0))
  template, params, _ = models.split(example, objective.trainable)
  group = optim.labels(params, objective.group)
  sections = {g: _section(stage, g) for g in sorted(set(jax.tree.leaves(group)))}
  tx = optim.make_optimiser(group, sections, objective.decays)

  def init(key: jax.Array) -> State:
    _, params, rest = models.split(objective.init(key), objective.trainable)
    zero = jnp.zeros((), jnp.int32)
    state = {'step': zero, 'bad_steps': zero, 'params': params, 'rest': rest, 'opt_state': tx.init(params)}
    return {**state, 'ema': jax.tree.map(jnp.copy, params)} if stage['ema'] else state

  def of_part(
    state: State, batch: dict[str, jax.Array], key: jax.Array, given: Any
  ) -> tuple[jax.Array, dict[str, jax.Array], Any, Any]:
    augment_key, loss_key = jax.random.split(key)

    def loss_of(params: Any) -> tuple[jax.Array, tuple[dict[str, jax.Array], Any]]:
      model = frozen.attached(models.merge(template, params, state['rest']), given)
      loss, parts = objective.loss(model, batch, loss_key, state['step'], total)
      return loss, (parts, models.rest_of(template, model))

    with sharding.in_mesh(mesh):
      batch = jax.tree.map(sharding.along_batch, objective.augment(batch, augment_key))
      (loss, (parts, rest)), grads = jax.value_and_grad(loss_of, has_aux=True)(state['params'])
    return loss, parts, rest, grads

  of_batch = of_part if stage['accumulate'] == 1 else _accumulated(of_part, stage['accumulate'], mesh)

  def gradients(
    state: State, batch: dict[str, jax.Array], key: jax.Array, given: Any = frozen.arrays
  ) -> tuple[jax.Array, dict[str, jax.Array], Any, Any]:
    return of_batch(state, batch, jax.random.fold_in(key, state['step']), given)

  def step(
    state: State, batch: dict[str, jax.Array], key: jax.Array, given: Any
  ) -> tuple[State, dict[str, jax.Array]]:
    loss, parts, rest, grads = gradients(state, batch, key, given)
    norms = {g: optax.global_norm(optim.of_group(grads, group, g)) for g in sections}
    rates = {g: _rate(state['step'], o, stage['batch_images'], per_epoch, total) for g, o in sections.items()}
    updates, opt_state = tx.update(grads, state['opt_state'], state['params'])
    decays = {g: o['layer_decay'] for g, o in sections.items()}
    scales = optim.layer_scales(state['params'], group, objective.layer_id, objective.layers, decays)
    params = jax.tree.map(lambda p, u, s, g: p - rates[g] * s * u, state['params'], updates, scales, group)
    fine = jnp.isfinite(loss) & jnp.isfinite(jnp.stack(list(norms.values()))).all()
    new = {'params': params, 'rest': rest, 'opt_state': opt_state}
    if stage['ema']:
      new['ema'] = jax.tree.map(lambda e, p: e + (1 - stage['ema']) * (p - e), state['ema'], params)
    kept = jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, {k: state[k] for k in new})
    bad = state['bad_steps'] + jnp.where(fine, 0, 1)
    measured = {'loss': loss, **parts, 'bad_steps': bad}
    for g in sections:
      measured |= {optim.named('grad_norm', g): norms[g], optim.named('lr', g): rates[g]}
      if decays[g] != 1:
        measured[optim.named('lr_first_layer', g)] = rates[g] * decays[g] ** objective.layers
    return {'step': state['step'] + 1, 'bad_steps': bad, **kept}, measured

  shapes = jax.eval_shape(init, jax.random.key(0))
  shardings = sharding.state_shardings(shapes, mesh)
  whole = sharding.replicated(mesh)
  compiled = jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(shardings, sharding.over_batch(mesh), whole, whole),
    out_shardings=(shardings, whole),
  )
  return Program(
    objective=objective,
    template=template,
    abstract=_abstract(shapes, shardings),
    init=jax.jit(init, out_shardings=shardings),
    step=lambda state, batch, key: compiled(state, batch, key, frozen.arrays),
    lower=lambda batch=None: compiled.lower(
      _abstract(shapes, shardings),
      batch or batch_shapes(objective, stage['batch_images'], mesh),
      jax.eval_shape(lambda: jax.random.key(0)),
      frozen.arrays,
    ),
    frozen=frozen,
    gradients=gradients,
    total_steps=total,
    steps_per_epoch=per_epoch,
  )


def _check_parts(stage: Mapping[str, Any], objective: Objective, mesh: Mesh, field: str) -> None:
  if stage['accumulate'] > 1 and objective.pairs:
    raise UserError(
      f"{field}accumulate is {stage['accumulate']}, and objective '{stage['objective']}' puts pictures of a batch together; expected 1: "
      'in parts it would be another loss'
    )
  if stage['batch_images'] % (mesh.size * stage['accumulate']):
    raise UserError(
      f'{field}accumulate is {stage["accumulate"]}; expected a divisor of the {stage["batch_images"] // mesh.size} pictures of '
      'batch_images that a device gets'
    )


def _accumulated(of_part: Callable[..., Any], n: int, mesh: Mesh) -> Callable[..., Any]:
  """Returns what computes a batch in n parts, one after the other: the means of all that `of_part` gives of each."""

  def of_batch(
    state: State, batch: dict[str, jax.Array], key: jax.Array, given: Any
  ) -> tuple[jax.Array, dict[str, jax.Array], Any, Any]:
    with sharding.in_mesh(mesh):
      batches = jax.tree.map(lambda x: sharding.in_parts(x, n), batch)
    parts = (batches, jax.random.split(key, n))

    def add(carry: Any, part: Any) -> tuple[Any, None]:
      rest, sums = carry
      loss, said, rest, grads = of_part({**state, 'rest': rest}, *part, given)
      return (rest, jax.tree.map(jnp.add, sums, (loss, said, grads))), None

    loss, said, _, grads = jax.eval_shape(of_part, state, *jax.tree.map(lambda x: x[0], parts), given)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (loss, said, grads))
    held = jax.lax.with_sharding_constraint(zeros[2], sharding.state_shardings(grads, mesh))
    (rest, sums), _ = jax.lax.scan(add, (state['rest'], (*zeros[:2], held)), parts)
    loss, said, grads = jax.tree.map(lambda x: x / n, sums)
    return loss, said, rest, grads

  return of_batch


def _abstract(shapes: Any, shardings: Any) -> Any:
  return jax.tree.map(lambda s, h: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=h), shapes, shardings)


def batch_shapes(objective: Objective, batch_images: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns what a step gets of pictures that were cropped on the host: shapes with shardings."""
  lead = (batch_images,) if objective.pictures == 1 else (batch_images, objective.pictures)
  found = dict.fromkeys(('label', 'index'), (lead, jnp.int32))
  views = objective.inputs().get('image', Crops()).views
  for name, what in objective.inputs().items():
    if name in objective.targets:
      crops = (views,) if name == landmarks.TARGET else ()
      found[name] = ((*lead, *crops, *what.shape), jnp.float32)
    else:
      side = what.size or objective.config.image_size
      found[name] = ((*lead, what.views, side, side, 3), jnp.uint8)
  place = sharding.over_batch(mesh)
  return {name: jax.ShapeDtypeStruct(shape, kind, sharding=place) for name, (shape, kind) in found.items()}


def _section(stage: Mapping[str, Any], group: str) -> Mapping[str, Any]:
  """Returns the optimiser's section of a group of parameters; raises UserError when there is none."""
  name = optim.named('optim', group)
  if name not in stage:
    raise UserError(
      f"objective '{stage['objective']}' has parameters in group '{group}'; expected a section {name}"
    )
  return stage[name]


def _rate(
  step: jax.Array, o: Mapping[str, Any], batch_images: int, per_epoch: float, total: int
) -> jax.Array:
  """Returns an optimiser's learning rate, float32 []."""
  peak = o['blr'] * batch_images / 256 if o['blr'] else o['lr']
  return optim.learning_rate(
    step,
    peak=peak,
    warmup_steps=o['warmup_epochs'] * per_epoch,
    total_steps=total,
    min_lr=min(o['min_lr'], peak),
    hold_steps=o['hold_epochs'] * per_epoch,
    cosine_steps=o['cosine_epochs'] * per_epoch,
  )


class FrozenNetworks(NamedTuple):
  """An objective's frozen networks: each without its arrays, and the arrays of each (or their shapes) on every device."""

  templates: dict[str, models.Template]
  arrays: dict[str, Any]

  def attached(self, model: nnx.Module, arrays: Mapping[str, Any]) -> nnx.Module:
    """Gives a model the networks as attributes; `arrays` are traced where the model is."""
    for name, template in self.templates.items():
      setattr(model, name, models.merge(template, *arrays[name]))
    return model


def frozen_shapes(objective: Objective, mesh: Mesh, measured: bool = False) -> FrozenNetworks:
  """Returns the networks that an objective has from files, without reading any; `measured`: those alone that are."""
  templates, arrays = {}, {}
  for name, network in objective.frozen().items():
    if measured and not network.measured:
      continue
    example = nnx.eval_shape(network.init, jax.random.key(0))
    templates[name], *shapes = models.split(example, lambda path: True)
    place = jax.tree.map(lambda _: sharding.replicated(mesh), tuple(shapes))
    arrays[name] = _abstract(tuple(shapes), place)
  return FrozenNetworks(templates, arrays)


def fresh_frozen(objective: Objective, mesh: Mesh) -> FrozenNetworks:
  """Returns the networks that an objective has from files with random weights: for whoever only times them."""
  networks = frozen_shapes(objective, mesh)
  for name, network in objective.frozen().items():
    split = lambda key, init=network.init: models.split(init(key), lambda path: True)[1:]  # noqa: E731
    networks.arrays[name] = jax.jit(split, out_shardings=sharding.replicated(mesh))(jax.random.key(0))
  return networks


def read_frozen(
  objective: Objective,
  field: str,
  mesh: Mesh,
  stages: Mapping[str, str] | None = None,
  measured: bool = False,
) -> FrozenNetworks:
  """Reads the networks that an objective has from files; their random keys and counters are fresh ones.

  Args:
    objective: of the stage.
    field: the config's field that holds the stage, for errors.
    mesh: of the devices.
    stages: folders of the run's earlier stages by name: a network's path that is such a name means what that stage made.
    measured: whether to read those alone that an evaluation needs.

  Raises:
    UserError: naming the field, when a file is missing, can't be read or does not fit.
  """
  networks, frozen = frozen_shapes(objective, mesh, measured), objective.frozen()
  for name in networks.templates:
    network = frozen[name]
    where = f'{field}.{network.field}'
    arrays = networks.arrays[name]
    target = {k.split('/', 1)[1]: v for k, v in checkpoint.flatten(arrays).items() if is_weight(v)}
    path = (stages or {}).get(network.path, network.path)
    found, _ = weights.fit(weights.read(path, where), target, network.initial, where)
    absent = sorted(set(target) - set(found))
    if absent:
      raise UserError(f"{where}: '{path}' lacks '{absent[0]}'; expected all of a network that is not trained")

    def others(init: Callable[[jax.Array], nnx.Module] = network.init) -> dict[str, jax.Array]:
      _, *trees = models.split(init(jax.random.key(0)), lambda path: True)
      return {k: v for k, v in checkpoint.flatten(tuple(trees)).items() if not is_weight(v)}

    given = jax.jit(others)()
    whole = [
      sharding.put(given[k] if k in given else found[k.split('/', 1)[1]], v)
      for k, v in checkpoint.flatten(arrays).items()
    ]
    networks.arrays[name] = jax.tree.unflatten(jax.tree.structure(arrays), whole)
  return networks


def is_weight(array: Any) -> bool:
  """Returns whether weights can give an array: random keys and counters are fresh ones."""
  return jnp.issubdtype(array.dtype, jnp.floating)


class Fitted(NamedTuple):
  """Weights that fit a program's model.

  Attributes:
    arrays: by flat name.
    account: where they are from: {'origin', 'kind', 'loaded', 'resized', 'fresh', 'unused', 'notes'}.
  """

  arrays: dict[str, np.ndarray]
  account: dict[str, Any]


def fit(
  read: weights.Weights, objective: Objective, params: Any, rest: Any, field: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Fits weights to an objective's model, given as arrays or shapes; returns and raises as `weights.fit`."""
  target = {**checkpoint.flatten(params), **checkpoint.flatten(rest)}
  return weights.fit(
    read,
    {k: v for k, v in target.items() if is_weight(v)},
    objective.initial,
    field,
    heads=objective.config.heads,
    layer_norm_eps=objective.config.layer_norm_eps,
    classifier='/'.join(objective.classifier),
    class_names=objective.class_names,
  )


def fitted(program: Program, init: str, field: str) -> Fitted:
  """Reads weights and fits them to the program's model.

  Args:
    program: of the stage.
    init: a run's folder, a checkpoint or a weight file.
    field: the config's field that holds it, for errors.

  Raises:
    UserError: when they can't be read or do not fit.
  """
  read = weights.read(init, field)
  arrays, account = fit(read, program.objective, program.abstract['params'], program.abstract['rest'], field)
  account['notes'] += program.objective.notes(read.facts)
  stated = {k: read.facts[k] for k in ('mean', 'std') if k in read.facts}
  return Fitted(arrays, {'origin': read.origin, 'kind': read.kind, **account, 'pixels': stated})


def initial_state(program: Program, key: jax.Array, given: Fitted | None = None) -> State:
  """Makes a stage's first state: fresh, but for the weights that are given."""
  state = program.init(key)
  if given is None:
    return state

  def replace(path: tuple, leaf: jax.Array) -> jax.Array:
    name = '/'.join(str(k.key) for k in path)
    return sharding.put(given.arrays[name], leaf) if name in given.arrays else leaf

  for tree in ('params', 'rest', 'ema'):
    if tree in state:
      state[tree] = jax.tree_util.tree_map_with_path(replace, state[tree])
  return state

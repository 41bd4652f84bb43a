"""`--debug_step=[STAGE:]N`: computes one step of a run once more and looks at everything in it that could be wrong.

  python -m mimic_jax.main --config … --workdir runs/mine --debug_step=finetune:1234

Restores the newest whole checkpoint before the step, repeats the steps between, and prints tables: the batch, the step's
figures beside those that the run logged, gradient and update of every parameter, and the operation that first made a NaN
or an infinity. It only reads: the run's folder stays as it is, and may belong to a run that is still at work.
"""

import dataclasses
import functools
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from mimic_jax import config as config_lib
from mimic_jax.data import source as source_lib
from mimic_jax.report import run as runs
from mimic_jax.runtime import checkpoint, cli, distributed, feed, sharding
from mimic_jax.runtime.errors import UserError, one_of
from mimic_jax.training import nonfinite
from mimic_jax.training import stage as stage_lib
from mimic_jax.training import step as step_lib
from mimic_jax.training.log import say

FLAG = '--debug_step'


@dataclasses.dataclass(frozen=True)
class Recomputed:
  """One step, on the host.

  Attributes:
    batch: arrays as they were read.
    figures: the step's own, as the run logs them.
    gradients: by parameter, the columns of `_gradient_sizes`.
    weights: by parameter: norm before the step, norm of what the step changed.
    origins: of what is not finite, by result.
  """

  batch: dict[str, np.ndarray]
  figures: dict[str, float]
  gradients: dict[str, dict[str, np.ndarray]]
  weights: dict[str, tuple[float, float]]
  origins: dict[str, nonfinite.Origin]


def run(config: Mapping[str, Any], folder: epath.Path, where: str, mesh: Mesh) -> int:
  """Recomputes a step and prints what is found.

  Args:
    config: of the run, frozen, and found to be the one that the folder was begun with.
    folder: the run's; nothing is written to it.
    where: 'N' or 'STAGE:N', N from 1; without a stage the last one that has begun.
    mesh: of the devices; the numbers are the run's own on the same ones.

  Returns:
    The exit code: 0 when all numbers are finite; 2, after a line on standard error, when not.

  Raises:
    UserError: when there is no such step, several processes, other data than the run's, or weights that do not fit.
  """
  if distributed.several():
    raise UserError(
      f'{FLAG} is for one process; this run has {jax.process_count()}; expected --num_processes=1'
    )
  name, number = _place(config, folder, where)
  b = config[name]['batch_images']
  with sharding.enough_memory(FLAG, f'config.{name}.batch_images (is {b}), or more devices'):
    stage = _stage(config, name, folder, mesh)
    total = stage.program.total_steps
    if not 1 <= number <= total:
      raise UserError(f'{FLAG} is {where}; expected a step from 1 to {total} of stage {name}')
    start, state = _start(stage, number - 1)
    batches = stage.batches(start)
    try:
      stream = feed.on_devices(batches, number - start, mesh)
      for _ in range(start + 1, number):
        state, _ = stage.program.step(state, next(stream), stage.step_key)
      found = _recompute(stage, state, next(stream))
    finally:
      batches.close()
  wrong = _print(stage, number, start, found, _logged(folder / name, number))
  if not wrong:
    print('all is finite')
    return 0
  print(f'mimic: error: stage {name}, step {number}: {wrong}; expected finite numbers', file=sys.stderr)
  return 2


def _place(config: Mapping[str, Any], folder: epath.Path, where: str) -> tuple[str, int]:
  """Returns the stage and the step that `where` means."""
  names = config_lib.stages(config)
  match = re.fullmatch(r'(?:(.*):)?(\d{1,15})', where)
  if not match:
    raise UserError(f"{FLAG} is '{where}'; expected a step, or STAGE:STEP with a stage of {', '.join(names)}")
  if match[1] is not None:
    return one_of(FLAG, match[1], names), int(match[2])
  begun = [name for name in names if (folder / name).is_dir()]
  if not begun:
    raise UserError(f'{FLAG}: {folder} holds no stage that has begun; expected a run, or STAGE:STEP')
  return begun[-1], int(match[2])


def _stage(config: Mapping[str, Any], name: str, folder: epath.Path, mesh: Mesh) -> stage_lib.Stage:
  """Returns the stage, prepared without what only evaluation needs and what only saves time over many steps."""
  changed = ConfigDict(config.to_dict())
  changed[name].eval.splits = ''
  changed[name].eval.without_duplicates = False
  changed[name].data.update({'cache': False, 'resident': False, 'workers': 0})
  init = stage_lib.first_weights(config, name, folder)
  stage = stage_lib.Stage(FrozenConfigDict(changed), name, folder, mesh, init)
  stage.prepare()
  return stage


def _start(stage: stage_lib.Stage, latest: int) -> tuple[int, step_lib.State]:
  """Returns the newest state the run has kept that is whole and of step `latest` or before, and its step."""
  folder = stage.folder / checkpoint.FOLDER
  if folder.is_dir():
    with checkpoint.opened(stage.folder, read_only=True) as checkpoints:
      for step in reversed([s for s in checkpoints.steps() if s <= latest]):
        try:
          state, meta = checkpoints.restore(step, stage.program.abstract)
        except checkpoint.Damaged as e:
          say(f'note: {e}; an earlier one is used')
          continue
        fingerprint = source_lib.fingerprint(stage.records['train'])
        stage_lib.check_same_data(stage, meta['data'], fingerprint)
        _say_start(step, latest)
        return step, state
  state, _ = stage.initial_state()
  _say_start(0, latest)
  return 0, state


def _say_start(start: int, latest: int) -> None:
  since = f'checkpoint {start}' if start else 'the beginning'
  say(f'from {since}' + (f', {latest - start:,} steps are repeated first' if latest > start else ''))


def _recompute(stage: stage_lib.Stage, state: step_lib.State, batch: dict[str, jax.Array]) -> Recomputed:
  """Computes a step: its gradients first, then the whole as the run did, then by operations if something is not finite."""
  program, key = stage.program, stage.step_key
  sizes = jax.device_get(jax.jit(lambda *a: _gradient_sizes(program.gradients(*a)[-1]))(state, batch, key))
  before = jax.jit(lambda s: jax.tree.map(jnp.copy, s))(state)  # the step takes the state for itself
  after, measured = program.step(state, batch, key)
  figures = {k: float(v) for k, v in jax.device_get(measured).items()}
  weights, left_fine = jax.device_get(jax.jit(_changes)(before, after))
  del after
  bad_gradient = any(s['bad'].any() for s in sizes.values())
  bad_figures = [k for k, v in figures.items() if not np.isfinite(v)]
  origins = {}
  if bad_gradient or bad_figures or not left_fine:
    say('not all is finite: looking for the operation that made it so')
    # The optimiser is left out where it isn't to blame: most of the operations are its.
    guilty = bad_gradient or [k for k in bad_figures if not k.startswith('grad_norm')]
    results = _loss_and_gradients if guilty else _whole_step
    origins = nonfinite.find(
      functools.partial(results, program), {'state': before, 'batch': batch, 'key': key}
    )
  return Recomputed({k: np.asarray(v) for k, v in batch.items()}, figures, sizes, weights, origins)


def _loss_and_gradients(
  program: step_lib.Program, state: step_lib.State, batch: dict[str, jax.Array], key: jax.Array
) -> dict[str, jax.Array]:
  loss, parts, rest, grads = program.gradients(state, batch, key)
  return {
    'loss': loss,
    **parts,
    **checkpoint.flatten(grads, 'gradient of '),
    **checkpoint.flatten(rest, 'new rest/'),
  }


def _whole_step(
  program: step_lib.Program, state: step_lib.State, batch: dict[str, jax.Array], key: jax.Array
) -> dict[str, jax.Array]:
  new, measured = program.step(state, batch, key)
  return {**measured, **checkpoint.flatten({k: new[k] for k in ('params', 'rest', 'opt_state')}, 'new ')}


def _gradient_sizes(grads: Any) -> dict[str, dict[str, jax.Array]]:
  """Returns by parameter: norm and largest magnitude, and how many numbers are not finite, of stacked blocks for each."""

  def of(name: str, g: jax.Array) -> dict[str, jax.Array]:
    over = tuple(range('blocks' in name.split('/') and g.ndim > 1, g.ndim))
    return {
      'norm': jnp.linalg.norm(g.ravel().astype(jnp.float32)),
      'largest': jnp.max(jnp.abs(g)),
      'bad': jnp.sum(~jnp.isfinite(g), axis=over),
      'shape': jnp.array(g.shape, jnp.int32),
    }

  return {name: of(name, g) for name, g in checkpoint.flatten(grads).items()}


def _changes(
  before: step_lib.State, after: step_lib.State
) -> tuple[dict[str, tuple[jax.Array, jax.Array]], jax.Array]:
  """Returns by parameter its norm and that of its change, and whether all that the step leaves behind is finite."""
  old, new = (checkpoint.flatten(s['params']) for s in (before, after))
  sizes = {k: (jnp.linalg.norm(old[k].ravel()), jnp.linalg.norm((new[k] - old[k]).ravel())) for k in old}
  left = jax.tree.leaves({k: after[k] for k in ('params', 'rest', 'opt_state')})
  floats = [x for x in left if jnp.issubdtype(x.dtype, jnp.inexact)]
  return sizes, jnp.stack([jnp.isfinite(x).all() for x in floats]).all()


def _logged(folder: epath.Path, step: int) -> dict[str, Any]:
  """Returns the figures that the run logged for this very step; {} when it logged none, or means of several."""
  lines = {x['step']: x for x in runs.logged(folder) if x['split'] == 'train'}
  return lines.get(step, {}) if step == 1 or step - 1 in lines else {}


def _print(
  stage: stage_lib.Stage, number: int, start: int, found: Recomputed, logged: Mapping[str, Any]
) -> str:
  """Prints the tables; returns what is wrong in a few words, '' for nothing."""
  since = f'checkpoint {start}' if start else 'the beginning'
  print(f'stage {stage.name}, step {number} of {stage.program.total_steps}, from {since}')
  gated = not all(
    np.isfinite(v) for k, v in found.figures.items() if k == 'loss' or k.startswith('grad_norm')
  )
  sections = {
    'batch': _batch_table(found.batch),
    'figures': _figures_table(found.figures, logged),
    'parameters': _parameters_table(found, gated),
  }
  for title, table in sections.items():
    print(f'\n{title}')
    print('\n'.join(f'  {line}' for line in cli.aligned(table)))
  if gated:
    print('  the weights were left as they were: loss or gradient is not finite')
  for origin in dict.fromkeys(found.origins.values()):
    names = [name for name, o in found.origins.items() if o == origin]
    print(f'\nnot finite: {", ".join(names[:4])}' + (f' and {len(names) - 4} more' if len(names) > 4 else ''))
    print('\n'.join(f'  {line}' for line in _story(origin)))
  return _wrong(found)


def _story(origin: nonfinite.Origin) -> list[str]:
  lines = [str(origin)]
  lines += [f'  of {operand}' for operand in origin.operands]
  lines += [f'  to {origin.result}'] if origin.result else []
  return [*lines, 'because of', *_story(origin.because)] if origin.because else lines


def _wrong(found: Recomputed) -> str:
  """Returns what is not finite, the loss before anything else, and where that is from; '' when all is."""
  bad = [f'{k} is {v:g}' for k, v in found.figures.items() if not np.isfinite(v)]
  bad.sort(key=lambda text: not text.startswith('loss '))
  bad += [f'batch array {k} is not finite' for k, v in found.batch.items() if not _finite(v)]
  bad += [f'the gradient of {k} is not finite' for k, s in found.gradients.items() if s['bad'].any()]
  bad += [f'{k} is not finite' for k in found.origins if k.startswith('new ')]
  if not bad:
    return ''
  if found.origins:
    return f'{bad[0]}; {next(iter(found.origins.values()))}'
  return f'{bad[0]}; computed by single operations all is finite, so it takes their fusion, or their order, to overflow'


def _finite(array: np.ndarray) -> bool:
  return array.dtype.kind in 'iub' or bool(np.isfinite(array).all())


def _batch_table(batch: Mapping[str, np.ndarray]) -> list[list[str]]:
  rows = [['array', 'shape', 'type', 'lowest', 'highest', 'not finite']]
  for name, x in sorted(batch.items()):
    bad = 0 if _finite(x) else int(np.sum(~np.isfinite(x)))
    rows.append([name, _shape(x.shape), str(x.dtype), f'{x.min():g}', f'{x.max():g}', str(bad or '')])
  return rows


def _figures_table(figures: Mapping[str, float], logged: Mapping[str, Any]) -> list[list[str]]:
  rows = [['figure', 'now', *(['logged by the run', ''] if logged else [])]]
  for name, value in figures.items():
    row = [name, f'{value:.8g}']
    if name in logged:
      before = np.nan if logged[name] is None else logged[name]  # JSON holds no NaN and no infinity
      same = before == value or not (np.isfinite(before) or np.isfinite(value))
      row += ['not finite' if logged[name] is None else f'{before:.8g}', 'the same' if same else 'differs']
    rows.append(row)
  return rows


def _parameters_table(found: Recomputed, gated: bool) -> list[list[str]]:
  rows = [['parameter', 'shape', 'weight', 'gradient', 'largest', 'update/weight', 'gradient not finite']]
  for name, sizes in found.gradients.items():
    weight, change = found.weights[name]
    relative = f'{change / weight:.3g}' if weight > 0 else f'({change:.3g})'
    bad, total = int(sizes['bad'].sum()), int(np.prod(sizes['shape']))
    place = f'{bad} of {total}' if bad else ''
    if bad and sizes['bad'].ndim:
      place += f', in block {", ".join(map(str, np.flatnonzero(sizes["bad"])))}'
    numbers = [f'{weight:.4g}', f'{sizes["norm"]:.4g}', f'{sizes["largest"]:.4g}', '' if gated else relative]
    rows.append([name, _shape(sizes['shape']), *numbers, place])
  return rows


def _shape(shape: Sequence[int]) -> str:
  return ' × '.join(map(str, shape)) or '1'

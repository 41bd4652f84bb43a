"""Checkpoints with orbax: the state, and beside it the step, the config and the data's fingerprint, saved as one.

A stage's checkpoints are in <workdir>/<stage>/checkpoints/<step>; `state` holds the arrays as nested dicts, `meta` is
JSON. Restoring takes the shardings of the state it is given, so a run may go on with other devices than it began on.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mimic_jax.errors import UserError

FOLDER = 'checkpoints'


def flatten(tree: Any, prefix: str = '') -> dict[str, Any]:
  """Returns {'a/b/c': leaf} of a pytree of dicts, tuples and named tuples."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    prefix + '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path): leaf
    for path, leaf in flat
  }


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns nested plain dicts of {'a/b/c': leaf}: the form that checkpoints have on disk."""
  tree: dict[str, Any] = {}
  for name, leaf in flat.items():
    *parents, last = name.split('/')
    node = tree
    for p in parents:
      node = node.setdefault(p, {})
    node[last] = leaf
  return tree


def _manager(
  folder: epath.Path, *, keep: int | None = None, read_only: bool = False
) -> ocp.CheckpointManager:
  # orbax reports every file it touches at info level and warns of its own defaults; errors are raised in any case.
  logging.getLogger('absl').setLevel(logging.ERROR)
  # Of a damaged checkpoint's other reads, which it leaves running, asyncio would print the tracebacks.
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep, read_only=read_only, create=not read_only, enable_async_checkpointing=not read_only
  )
  return ocp.CheckpointManager(folder, options=options, item_names=('state', 'meta'))


class Checkpoints:
  """A stage's checkpoints: written in the background, the newest `keep` kept."""

  def __init__(self, stage_folder: epath.Path, keep: int):
    self.folder = epath.Path(stage_folder).resolve() / FOLDER
    self._orbax = _manager(self.folder, keep=keep)

  def latest(self) -> int | None:
    """Returns the newest complete checkpoint's step, None when there is none."""
    return self._orbax.latest_step()

  def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
    """Starts writing; the arrays are copied before this returns, so the state may be donated.

    Args:
      step: names the checkpoint.
      state: pytree of jax.Array.
      meta: JSON-able; the state's shapes are added to it.
    """
    if step in self._orbax.all_steps():
      return
    flat = flatten(state)
    meta = {**meta, 'step': step, 'shapes': {k: list(v.shape) for k, v in flat.items()}}
    args = ocp.args.Composite(state=ocp.args.PyTreeSave(nest(flat)), meta=ocp.args.JsonSave(meta))
    self._orbax.save(step, args=args, force=True)

  def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    """Restores a checkpoint onto the devices.

    Args:
      step: which.
      like: pytree of jax.ShapeDtypeStruct with shardings, of the state's structure.

    Returns:
      The state and the meta data it was saved with.

    Raises:
      UserError: when it is of another architecture; names the first array that differs.
    """
    with self._reading(step):
      meta = self._orbax.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))['meta']
      meta['shapes'], meta['data']  # what a whole one has at the least
    want = {k: list(v.shape) for k, v in flatten(like).items()}
    for name in sorted({*want, *meta['shapes']}):
      if want.get(name) != meta['shapes'].get(name):
        raise UserError(
          f"{self.folder}/{step} is of another architecture: '{name}' is {meta['shapes'].get(name, 'absent')} there; "
          f'expected {want.get(name, "no such array")}'
        )
    nested = nest(flatten(like))
    restore_args = ocp.checkpoint_utils.construct_restore_args(nested)
    args = ocp.args.PyTreeRestore(item=nested, restore_args=restore_args)
    with self._reading(step):
      found = flatten(self._orbax.restore(step, args=ocp.args.Composite(state=args))['state'])
    return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in want]), meta

  @contextlib.contextmanager
  def _reading(self, step: int) -> Iterator[None]:
    """Turns whatever orbax raises on a damaged checkpoint, which may be of any kind, into a UserError that names it."""
    try:
      yield
    except Exception as e:
      earlier = [s for s in self._orbax.all_steps() if s < step]
      remedy = f'; without it the run goes on from step {max(earlier)}' if earlier else ''
      what = ' '.join(f'{type(e).__name__}: {e}'.split())[:200]
      raise UserError(f'{self.folder}/{step} is damaged ({what}); expected a whole checkpoint{remedy}') from e

  def close(self) -> None:
    """Waits for writes under way and lets go of the folder."""
    self._orbax.wait_until_finished()
    self._orbax.close()


@contextlib.contextmanager
def opened(stage_folder: epath.Path, keep: int) -> Iterator[Checkpoints]:
  """Opens a stage's checkpoints and closes them whatever happens, so that a write under way is finished."""
  checkpoints = Checkpoints(stage_folder, keep)
  try:
    yield checkpoints
  finally:
    checkpoints.close()


def _steps(folder: epath.Path) -> list[int]:
  if not folder.is_dir():
    return []
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / 'state').exists())


def find(path: epath.Path) -> tuple[epath.Path, int] | None:
  """Returns the folder of checkpoints and the step that `path` means; None when it holds none.

  Args:
    path: a run's folder with one stage, a stage's folder, its 'checkpoints', or one checkpoint.

  Raises:
    UserError: for a run's folder with several stages; names them.
  """
  path = epath.Path(path).resolve()
  if path.name.isdigit() and (path / 'state').exists():
    return path.parent, int(path.name)
  for folder in (path, path / FOLDER):
    if steps := _steps(folder):
      return folder, steps[-1]
  stages = [p for p in sorted(path.iterdir()) if _steps(p / FOLDER)] if path.is_dir() else []
  if len(stages) > 1:
    raise UserError(
      f'{path} holds the checkpoints of several stages; expected one of {", ".join(map(str, stages))}'
    )
  return (stages[0] / FOLDER, _steps(stages[0] / FOLDER)[-1]) if stages else None


@contextlib.contextmanager
def _whole(folder: epath.Path, step: int) -> Iterator[ocp.CheckpointManager]:
  """Opens a folder for reading; whatever orbax raises on a damaged checkpoint becomes a UserError that names it."""
  manager = _manager(folder, read_only=True)
  with contextlib.closing(manager):
    try:
      yield manager
    except Exception as e:
      what = ' '.join(f'{type(e).__name__}: {e}'.split())[:200]
      raise UserError(f'{folder}/{step} is damaged ({what}); expected a whole checkpoint') from e


def _read_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
  return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))['meta']


def read_meta(folder: epath.Path, step: int) -> dict[str, Any]:
  """Reads what stands beside a checkpoint's arrays: stage, config, reading, shapes; raises UserError when damaged."""
  with _whole(folder, step) as manager:
    meta = _read_meta(manager, step)
    meta['stage'], meta['config'], meta['shapes']  # what a whole one has at the least
    return meta


def read_arrays(folder: epath.Path, step: int, prefixes: Sequence[str]) -> dict[str, np.ndarray]:
  """Reads only the arrays whose flat names begin with one of `prefixes`, as NumPy, whatever devices wrote them.

  Raises:
    UserError: when the checkpoint is damaged.
  """
  with _whole(folder, step) as manager:
    shapes = _read_meta(manager, step)['shapes']
    names = [n for n in shapes if n.startswith(tuple(f'{p}/' for p in prefixes))]
    wanted = nest({name: np.zeros(0) for name in names})
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=restore_args, partial_restore=True)
    return flatten(manager.restore(step, args=ocp.args.Composite(state=args))['state'])

"""Checkpoints with orbax: the state, and beside it the step, the config and the data's fingerprint, saved as one.

A stage's checkpoints are in <workdir>/<stage>/checkpoints/<step>; `state` holds the arrays as nested dicts, `meta` is
JSON. Restoring takes the shardings of the state it is given, so a run may go on with other devices than it began on.

Orbax restores wrong values without a word where a byte of a file was altered, so `meta` holds a checksum of every array and
one of itself, and whoever reads a checkpoint compares them.
"""

import contextlib
import functools
import hashlib
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from mimic_jax.runtime import checksum, distributed, files
from mimic_jax.runtime.errors import AgreedError, Preempted, UserError

FOLDER = 'checkpoints'
DAMAGED = 'damaged_checkpoints'  # beside FOLDER: what could not be restored and was passed over
_HALF = '.orbax-checkpoint-tmp'  # in the name of a checkpoint that is not written yet
_NO_ROOM = ('No space left on device', 'Disk quota exceeded', 'Read-only file system', 'Permission denied')


class Damaged(UserError):  # noqa: N818
  """A checkpoint that is not whole, or not what was written."""


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


@functools.cache
def _hush() -> None:
  """Keeps quiet of a damaged checkpoint's other reads, which orbax leaves running: a traceback for each otherwise."""
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  usual = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
      usual(unraisable)

  sys.unraisablehook = hook


class _Manager(ocp.CheckpointManager):
  """Orbax's, but it does not ask JAX's coordination service whether the run is to stop.

  The service takes the number that it was last asked with for the place that a process has come to. Orbax asks with the
  step, runtime/preemption.py with a count of its own, and a notice between the two would name a place that is never reached.
  """

  def reached_preemption(self, step: int) -> bool:
    del step
    return False


def _manager(
  folder: epath.Path, *, keep: int | None = None, read_only: bool = False
) -> ocp.CheckpointManager:
  # orbax reports every file it touches, warns of its own defaults, and logs the traceback of what it raises as well.
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  _hush()
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep,
    read_only=read_only,
    create=not read_only,
    enable_async_checkpointing=not read_only,
    cleanup_tmp_directories=not read_only,  # what a run killed in the middle of writing left
  )
  if read_only and distributed.several():  # each process for itself: no other need read the same
    me = jax.process_index()
    options.multiprocessing_options = ocp.options.MultiprocessingOptions(
      primary_host=me, active_processes={me}, barrier_sync_key_prefix=f'alone{me}'
    )
  return _Manager(folder, options=options, item_names=('state', 'meta'))


class Checkpoints:
  """A stage's checkpoints: written in the background, the newest `keep` kept; or opened only to read them."""

  def __init__(self, stage_folder: epath.Path, keep: int | None = None, *, read_only: bool = False):
    self.folder = epath.Path(stage_folder).resolve() / FOLDER
    self._orbax = _manager(self.folder, keep=keep, read_only=read_only)
    self._unread: int | None = None  # the newest that was written here and not read back

  def steps(self) -> list[int]:
    """Returns the steps of the checkpoints there are, rising; not all need be whole."""
    return sorted(self._orbax.all_steps())

  def warm_up(self, state: Any) -> None:
    """Compiles what saving needs, so that it isn't done in the seconds between the notice to stop and the end."""
    checksum.of_arrays(flatten(state))

  def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
    """Starts writing; all is copied before this returns, so the state may be donated and the meta data changed.

    Args:
      step: names the checkpoint.
      state: pytree of jax.Array.
      meta: JSON-able; the state's shapes and checksums are added to it.

    Raises:
      UserError: when this one, or the one before it, can't be written.
    """
    with self._writing():
      self._orbax.check_for_errors()  # of the write before, which one process of several may be alone to know of
    if distributed.agree(lambda: step in self._orbax.all_steps()):
      return
    flat = flatten(state)
    meta = {
      **meta,
      'step': step,
      'shapes': {k: list(v.shape) for k, v in flat.items()},
      'checksums': checksum.of_arrays(flat),
    }
    meta = json.loads(json.dumps(meta))  # a copy: it is written later, and the caller's lists go on growing
    meta[_OWN] = _digest(meta)
    args = ocp.args.Composite(state=ocp.args.PyTreeSave(nest(flat)), meta=ocp.args.JsonSave(meta))
    with self._writing():
      self._orbax.save(step, args=args, force=True)
    self._unread = step

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns whatever orbax raises when it can't write, at once or of a write in the background, into a UserError."""
    try:
      yield
    except Exception as e:  # of any kind: TensorStore's are ValueErrors
      if distributed.is_peer_gone(e):
        raise
      self._unread = None
      if distributed.is_main():
        for half in self.folder.glob(f'*{_HALF}*'):  # it may be what fills the disk
          half.rmtree(missing_ok=True)
      what = next((x for x in _NO_ROOM if x.lower() in str(e).lower()), ' '.join(str(e).split())[:200])
      whole = ', '.join(map(str, _steps(self.folder))) or 'none yet'
      raise UserError(
        f'{self.folder}: a checkpoint can not be written ({what}); expected room and the right to write. Those before '
        f'it are whole: {whole}; the same command goes on from the last'
      ) from e

  def restore_newest(self, like: Any, say: Callable[[str], None]) -> tuple[int, Any, dict[str, Any]] | None:
    """Restores the newest checkpoint that is whole; damaged ones after it are named and moved aside.

    Args:
      like: as for `restore`.
      say: is given a line for each that is passed over.

    Returns:
      Its step, the state and the meta data; None when there is no checkpoint at all. The same in every process.

    Raises:
      Damaged: when none is whole.
      UserError: when it is of another architecture.
    """
    damaged: list[tuple[int, Damaged]] = []
    for step in distributed.agree(lambda: sorted(self._orbax.all_steps(), reverse=True)):
      try:
        if distributed.several():
          # Reading together, a process that finds its part damaged would leave the others waiting for it.
          self._verify(step)
        state, meta = self.restore(step, like)
      except Damaged as e:
        damaged.append((step, e))
        continue
      for bad, why in damaged:
        place = self._move_aside(bad)
        say(f'note: {why}; it is in {place} now, and the run goes on from step {step}')
      return step, state, meta
    if damaged:
      each = '; '.join(str(why) for _, why in damaged)
      raise Damaged(f'none of the {len(damaged)} checkpoints is whole (a new --workdir begins anew): {each}')
    return None

  def _move_aside(self, step: int) -> epath.Path:
    """Moves a checkpoint out of the way, so that the run can write that step once more; nothing is deleted."""
    folder = self.folder.parent / DAMAGED

    def move() -> str:
      folder.mkdir(parents=True, exist_ok=True)
      place, n = folder / str(step), 1
      while place.exists():
        n += 1
        place = folder / f'{step}.{n}'
      (self.folder / str(step)).rename(place)
      return str(place)

    place = distributed.agree(move)
    self._orbax.reload()
    return epath.Path(place)

  def _verify(self, step: int) -> None:
    """Looks at a checkpoint's files, of several processes each at a share of the arrays.

    Raises:
      Damaged: in every process, when any of them finds it so.
    """
    damage = ''
    with distributed.together():
      try:
        read_arrays(self.folder, step, lambda i, _: i % jax.process_count() == distributed.index())
      except Damaged as e:
        damage = str(e)
    said = [x for x in distributed.gather(damage) if x]
    if said:
      raise Damaged(said[0])

  def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    """Restores a checkpoint onto the devices.

    Args:
      step: which.
      like: pytree of jax.ShapeDtypeStruct with shardings, of the state's structure.

    Returns:
      The state and the meta data it was saved with.

    Raises:
      Damaged: when it is not whole or not what was written.
      UserError: when it is of another architecture; names the first array that differs.
    """
    where = f'{self.folder}/{step}'
    with _reading(where):
      meta = _checked(_read_meta(self._orbax, step), where)
    want = {k: list(v.shape) for k, v in flatten(like).items()}
    for name in sorted({*want, *meta['shapes']}):
      if want.get(name) != meta['shapes'].get(name):
        raise UserError(
          f"{where} is of another architecture: '{name}' is {meta['shapes'].get(name, 'absent')} there; "
          f'expected {want.get(name, "no such array")}'
        )
    nested = nest(flatten(like))
    restore_args = ocp.checkpoint_utils.construct_restore_args(nested)
    args = ocp.args.PyTreeRestore(item=nested, restore_args=restore_args)
    with _reading(where):
      found = flatten(self._orbax.restore(step, args=ocp.args.Composite(state=args))['state'])
      _compare(checksum.of_arrays(found), meta, where)
    return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in want]), meta

  def wait(self) -> None:
    """Waits for writes under way; raises UserError as `save` does."""
    with self._writing():
      self._orbax.wait_until_finished()

  def confirm(self) -> None:
    """Waits for writes under way and reads the newest back: what is called saved is there, with the values that were written.

    Raises:
      UserError: in every process, when it is not; as `save` does, too.
    """
    self.wait()
    if self._unread is None:
      return
    step, self._unread = self._unread, None
    try:
      self._verify(step)
    except Damaged as e:
      before = ', '.join(str(s) for s in _steps(self.folder) if s < step) or 'none'
      raise AgreedError(
        f'{e}, though it was written only now. Those before it: {before}; the same command goes on from the newest '
        'that is whole'
      ) from e

  def close(self) -> None:
    """Waits for writes under way and lets go of the folder; raises UserError as `save` does."""
    self.wait()
    self._orbax.close()


@contextlib.contextmanager
def opened(
  stage_folder: epath.Path, keep: int | None = None, *, read_only: bool = False
) -> Iterator[Checkpoints]:
  """Opens a stage's checkpoints and closes them whatever happens, so that a write under way is finished.

  Where all processes leave together, which says that what was done is saved, the newest is read back first.
  """
  checkpoints = Checkpoints(stage_folder, keep, read_only=read_only)
  try:
    yield checkpoints
  except BaseException as e:
    # of another error the other processes, with which this one would wait, don't know
    if distributed.alike(e):
      try:
        if isinstance(e, Preempted | AgreedError):
          checkpoints.confirm()
      finally:
        checkpoints.close()
    raise
  checkpoints.close()


def _steps(folder: epath.Path) -> list[int]:
  if not folder.is_dir():
    return []
  # Elsewhere orbax renames a whole checkpoint into place; an object store can't, and gets a file that says so.
  whole = 'commit_success.txt' if files.is_remote(folder) else 'state'
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and (p / whole).exists())


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


_OWN = 'meta_checksum'
# by TensorStore's and JAX's names
_NOT_DAMAGE = re.compile(
  'RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|DEADLINE_EXCEEDED|UNAUTHENTICATED|ABORTED'
)


def _digest(meta: Mapping[str, Any]) -> str:
  """Returns the SHA-256 of meta data as JSON gives them back, without their own digest."""
  held = {k: v for k, v in meta.items() if k != _OWN}
  return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def _checked(meta: dict[str, Any], where: str) -> dict[str, Any]:
  """Returns the meta data if it is whole and what was written; raises Damaged."""
  own = meta.pop(_OWN, None)
  before = own is None and 'checksums' not in meta  # written by a version that kept none
  meta['shapes'], meta['config']  # what a whole one has at the least
  if not before and own != _digest(meta):
    raise Damaged(
      f'{where} is damaged (its meta data are not those that were written); expected a whole checkpoint'
    )
  return meta


def _compare(found: Mapping[str, str], meta: Mapping[str, Any], where: str) -> None:
  """Raises Damaged for the first array whose checksum is not the one that was written, where checksums were."""
  for name in sorted(found) if 'checksums' in meta else ():
    if found[name] != meta['checksums'].get(name):
      raise Damaged(
        f"{where} is damaged ('{name}' has other values than were written); expected a whole checkpoint"
      )


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
  """Turns what orbax and TensorStore raise on a damaged checkpoint into Damaged, which names it.

  What says nothing of the checkpoint itself, too little memory, a missing right or a disk that doesn't answer, must not
  make a run pass over a whole one: it is a UserError of its own, or goes through.
  """
  try:
    yield
  except (Damaged, MemoryError):
    raise
  except Exception as e:  # orbax itself raises bare Exceptions
    if distributed.is_peer_gone(e):
      raise
    what = ' '.join(f'{type(e).__name__}: {e}'.split())[:200]
    if isinstance(e, (PermissionError, TimeoutError, ConnectionError)) or _NOT_DAMAGE.search(str(e)):
      raise UserError(
        f"{where} can't be read now ({what}); expected memory, rights and a disk that answers"
      ) from e
    raise Damaged(f'{where} is damaged ({what}); expected a whole checkpoint') from e


@contextlib.contextmanager
def _opened_to_read(folder: epath.Path, step: int) -> Iterator[tuple[ocp.CheckpointManager, dict[str, Any]]]:
  """Opens a folder for reading one checkpoint, whose meta data are checked."""
  with contextlib.closing(_manager(folder, read_only=True)) as manager, _reading(f'{folder}/{step}'):
    yield manager, _checked(_read_meta(manager, step), f'{folder}/{step}')


def _read_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
  return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))['meta']


def read_meta(folder: epath.Path, step: int) -> dict[str, Any]:
  """Reads what stands beside a checkpoint's arrays: stage, config, reading, shapes; raises Damaged."""
  with _opened_to_read(folder, step) as (_, meta):
    return meta


def read_arrays(
  folder: epath.Path, step: int, wanted: Sequence[str] | Callable[[int, str], bool]
) -> dict[str, np.ndarray]:
  """Reads some of a checkpoint's arrays as NumPy, whatever devices wrote them.

  Args:
    folder: of the checkpoints.
    step: which.
    wanted: what flat names begin with, such as 'params'; or says of a number and a flat name whether to read it.

  Raises:
    Damaged: when the checkpoint is not whole or not what was written.
  """
  with _opened_to_read(folder, step) as (manager, meta):
    names = [
      name
      for i, name in enumerate(sorted(meta['shapes']))
      if (wanted(i, name) if callable(wanted) else name.startswith(tuple(f'{p}/' for p in wanted)))
    ]
    nested = nest({name: np.zeros(0) for name in names})
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), nested)
    args = ocp.args.PyTreeRestore(item=nested, restore_args=restore_args, partial_restore=True)
    found = flatten(manager.restore(step, args=ocp.args.Composite(state=args))['state'])
    _compare(checksum.of_numpy(found), meta, f'{folder}/{step}')
    return found

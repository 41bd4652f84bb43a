"""A run: the stages of a config in order, in a folder of its own that one program writes to."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict, FrozenConfigDict

from mimic_jax import config as config_lib
from mimic_jax.report import page, summary
from mimic_jax.report import run as runs
from mimic_jax.runtime import checkpoint, compile_cache, distributed, files, lease, preemption, sharding
from mimic_jax.runtime.errors import Ended, Preempted, UserError
from mimic_jax.training import debugging, loop, sizes, workdir
from mimic_jax.training import stage as stage_lib
from mimic_jax.training import start as start_lib
from mimic_jax.training.log import check_wandb, say


def run(command: config_lib.Command, began: float | None = None) -> None:
  """Runs the config's stages in order; a stage that has a result is not run again.

  Args:
    command: what the command line asked for.
    began: the time.monotonic() when this program did, for the record; now without one.

  Raises:
    UserError: for anything the user can mend.
    Preempted: when told to stop; the same command goes on.
  """
  config = command.config
  clock = start_lib.Clock(began)
  clock.lap('import')
  if not command.debug_step:
    preemption.note()
  distributed.initialize(**command.processes, look=preemption.look)
  distributed.check_same(
    {
      **{f'config.{k}': v for k, v in config_lib.fields(workdir.as_dict(config))},
      '--workdir': command.workdir,
      '--debug_step': command.debug_step,
    }
  )
  config, of_init = sizes.resolved(config, command.workdir)
  check_wandb(config.log.wandb)
  compile_cache.keep(config.log.compile_cache, command.workdir, say)
  names = config_lib.stages(config)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
  if command.debug_step:
    if not workdir.open_run(command.workdir, config)[1]:
      raise UserError(
        f'--workdir {command.workdir} holds no run of this config; expected the one of --debug_step'
      )
    sys.exit(debugging.run(config, epath.Path(command.workdir), command.debug_step, mesh))
  preemption.listen()
  with _Folder(command.workdir, config) as folder:
    todo = distributed.agree(lambda: [n for n in names if not (folder.path / n / 'result.json').exists()])
    with distributed.together():
      inits = {name: _init(config, name, names, folder.path) for name in todo}
      # Everything that can go wrong in any stage is looked for before the first one begins.
      stages = [stage_lib.Stage(config, name, folder.path, mesh, inits[name]) for name in todo]
    folder.begin()
    if of_init:
      say(sizes.told(of_init))
      distributed.agree(lambda: workdir.update_record(folder.path, of_init=of_init))
    for name in names:
      if name not in todo:
        say(f'{name}: done before')
    try:
      while stages:
        preemption.look()
        # popped, so that its pictures and weights are let go before the next
        loop.run_stage(stages.pop(0), folder.check, clock)
        clock = start_lib.Clock()
    except (Preempted, KeyboardInterrupt) as e:
      said = 'told to stop' if isinstance(e, Preempted) else 'interrupted'
      raise type(e)(f'{said}; {_on_disk(folder.path, names)}; the same command goes on') from e
    distributed.agree(lambda: str(page.write(folder.path)))  # so that no process leaves before it is written
    say(summary.of_run(folder.path))


def _on_disk(folder: epath.Path, names: Sequence[str]) -> str:
  """Returns which step of a run is saved: 'step 40 of finetune is on disk (runs/x/finetune/checkpoints)'."""
  for name in reversed(names):
    if found := checkpoint.find(folder / name):
      return f'step {found[1]:,} of {name} is on disk ({found[0]})'
  return 'there is no checkpoint yet'


def run_seeds(command: config_lib.Command, began: float | None = None) -> None:
  """Runs the config once for each of the command's seeds, in order, in folders of their own; those that are done stay.

  Args:
    command, began: as for `run`.

  Raises:
    UserError, Ended, KeyboardInterrupt: as `run`, naming the seed; UserError, too, when the folder holds a run of its own or another
      config's seeds.
  """
  outer = epath.Path(command.workdir)
  if (outer / 'config.json').exists():
    raise UserError(f'--workdir {outer} holds a run of its own; expected a folder for those of --seeds')
  each = {seed: _of_seed(command, seed) for seed in command.seeds}
  for seed, folder in runs.seeds(outer).items():
    if seed not in each and workdir.begun(folder) is not None:
      config, _ = sizes.resolved(_of_seed(command, seed).config, str(folder))
      if differs := config_lib.differences(files.read_json(folder / 'config.json'), workdir.as_dict(config)):
        raise UserError(
          f'{folder} is a seed of another config ({"; ".join(differs[:5])}); expected the same one, or another --workdir'
        )
  for seed, one in each.items():
    try:
      run(one, began)
    except (UserError, Ended, KeyboardInterrupt) as e:
      raise type(e)(f'seed {seed}: {str(e) or "interrupted"}') from e
    began = None
  say(f'seeds {", ".join(map(str, each))} done in {outer}; mimic table {outer} has them in one')


def _of_seed(command: config_lib.Command, seed: int) -> config_lib.Command:
  config = ConfigDict(command.config)
  config.seed = seed
  folder = runs.seed_folder(epath.Path(command.workdir), seed)
  return dataclasses.replace(command, config=FrozenConfigDict(config), workdir=str(folder), seeds=())


class _Folder:
  """A run's folder, written to by this program alone while the context lasts; of several processes, by the first."""

  def __init__(self, workdir_flag: str, config: Mapping[str, Any]):
    self.path, self._config = epath.Path(workdir_flag), config
    self._resumed, self._lease = False, lease.Lease(self.path, say)

  def __enter__(self) -> '_Folder':
    self._resumed = distributed.agree(self._open)
    return self

  def _open(self) -> bool:
    _, resumed = workdir.open_run(str(self.path), self._config)
    if resumed:
      self._lease.acquire()
    return resumed

  def begin(self) -> None:
    """Makes a new run's folder; called once all that is to be done there has been checked."""
    distributed.agree(self._begin)
    say(f'{self._config.name} in {self.path}' + (' (resumed)' if self._resumed else ''))

  def _begin(self) -> None:
    if not self._resumed:
      self._lease.acquire()
      # Once more: another program may have begun there meanwhile.
      workdir.open_run(str(self.path), self._config)
    workdir.begin(self.path, self._config)
    workdir.update_record(self.path, environment=workdir.environment())

  def check(self) -> None:
    """Raises lease.Lost when another program has taken the folder over."""
    self._lease.check()

  def __exit__(self, *_: object) -> None:
    self._lease.release()


def _init(config: Mapping[str, Any], name: str, names: Sequence[str], folder: epath.Path) -> str:
  """Returns the path of a stage's initial weights, '' for none."""
  init, field = config[name].init, f'config.{name}.init'
  if init in config and init not in names[: names.index(name)]:
    raise UserError(
      f"{field} is '{init}', which does not run before it; expected an earlier one of config.stages, a path or ''"
    )
  begun = (folder / name / checkpoint.FOLDER).exists()
  if init and init not in config and not begun and not epath.Path(init).exists():
    raise UserError(
      f"{field} is '{init}', which does not exist; expected a run's folder, a checkpoint or a weight file"
    )
  return stage_lib.first_weights(config, name, folder)

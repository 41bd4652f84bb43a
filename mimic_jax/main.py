"""The front door: `python -m mimic_jax.main --config CONFIG [--workdir FOLDER] [--config.field=value …]`."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mimic_jax import checkpoint, cli, sharding, train, workdir
from mimic_jax import config as config_lib
from mimic_jax.errors import UserError
from mimic_jax.report import page
from mimic_jax.results import say


def run(argv: Sequence[str]) -> None:
  """Runs the config's stages in order; a stage that has a result is not run again.

  Args:
    argv: as sys.argv.

  Raises:
    UserError: for anything the user can mend.
  """
  command = config_lib.parse(argv)
  config = command.config
  names = config_lib.stages(config)
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
  folder, resumed = workdir.open_run(command.workdir, config)
  todo = [name for name in names if not (folder / name / 'result.json').exists()]
  inits = {name: _init(config, name, names, folder) for name in todo}
  # Everything that can go wrong in any stage is looked for before the first one begins.
  stages = [train.Stage(config, name, folder, mesh, inits[name]) for name in todo]
  workdir.begin(folder, config)
  say(f'{config.name} in {folder}' + (' (resumed)' if resumed else ''))
  for name in names:
    if name not in todo:
      say(f'{name}: done before')
  if workdir.is_main():
    workdir.update_record(folder, environment=workdir.environment())
  while stages:
    train.run_stage(stages.pop(0))  # popped, so that its pictures and weights are let go before the next
  if workdir.is_main():
    page.write(folder)
  say(f'report: {folder / "report.html"}')


def _init(config: Mapping[str, Any], name: str, names: Sequence[str], folder: epath.Path) -> str:
  """Returns the path of a stage's initial weights, '' for none."""
  init, field = config[name].init, f'config.{name}.init'
  if init in names[: names.index(name)]:
    return str(folder / init)
  if init in config:
    raise UserError(
      f"{field} is '{init}', which does not run before it; expected an earlier one of config.stages, a path or ''"
    )
  begun = (folder / name / checkpoint.FOLDER).exists()
  if init and not begun and not epath.Path(init).exists():
    raise UserError(
      f"{field} is '{init}', which does not exist; expected a run's folder, a checkpoint or a weight file"
    )
  return init


def entry() -> None:
  """Runs the command line; an error of the user's is one line and exit code 2."""
  cli.run(
    lambda flags: run([sys.argv[0], *flags]), 'interrupted; the same command goes on from the last checkpoint'
  )


if __name__ == '__main__':
  entry()

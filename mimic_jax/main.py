"""The front door: `python -m mimic_jax.main --config CONFIG [--workdir FOLDER] [--config.field=value …]`."""

import os
import sys
from collections.abc import Sequence

from mimic_jax import config as config_lib
from mimic_jax import sharding, train, workdir
from mimic_jax.errors import UserError
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
  say(f'{config.name} in {folder}' + (' (resumed)' if resumed else ''))
  if workdir.is_main():
    workdir.update_record(folder, environment=workdir.environment())
  for name in names:
    if (folder / name / 'result.json').exists():
      say(f'{name}: done before')
      continue
    init = config[name].init
    if init in config and init not in names:
      raise UserError(
        f"config.{name}.init is '{init}', which is not among config.stages; expected one of {', '.join(names)}"
      )
    result = train.run_stage(config, name, folder, mesh, str(folder / init) if init in names else init)
    for split, figures in result['metrics'].items():
      accuracy = f', accuracy {100 * figures["accuracy"]:.2f} %' if 'accuracy' in figures else ''
      say(f'{name}: {split} loss {figures["loss"]:.4f}{accuracy} ({result["seconds"]:.0f} s)')
  say(f'report: {folder / "report.html"}')


def entry() -> None:
  """Runs the command line; an error of the user's is one line and exit code 2."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  try:
    run(sys.argv)
  except UserError as e:
    print(f'mimic: error: {" ".join(str(e).split())}', file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    print('mimic: interrupted; the same command goes on from the last checkpoint', file=sys.stderr)
    sys.exit(130)


if __name__ == '__main__':
  entry()

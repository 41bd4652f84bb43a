"""A stage that is asked about and not run: its program without its data, and the flags of the verbs that ask."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from mimic_jax import config as config_lib
from mimic_jax import objectives
from mimic_jax.runtime import cli, sharding
from mimic_jax.runtime.errors import UserError, one_of
from mimic_jax.training import sizes
from mimic_jax.training import step as step_lib


def parser(command: str, description: str, without_data: bool = True) -> cli.Parser:
  """Returns a verb's parser with the flags that say which stages of which config, and what stands for data not looked at."""
  made = cli.Parser(command, description)
  made.add_argument('--config', required=True, help='a config file or name, with :VARIANT')
  made.add_argument('--stage', default='', help="one of the config's; default all that it runs")
  if without_data:
    made.add_argument('--classes', type=int, default=8, help="of the data, which isn't looked at")
  made.epilog = 'and --config.FIELD=VALUE as for mimic train'
  return made


def parsed(
  made: cli.Parser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str], FrozenConfigDict, list[str]]:
  """Reads a command line.

  Returns:
    The flags of `made`, those that change the config, the config, and the names of the stages.

  Raises:
    UserError: for what is not understood.
  """
  given, changes = made.parse_known_args(list(argv))
  for arg in changes:
    if not arg.startswith(('--config.', '-config.')):
      raise UserError(f"'{arg}' is not understood; expected --config.FIELD=VALUE or a flag that --help names")
  config = configured(given.config, changes)
  names = config_lib.stages(config)
  if given.stage:
    names = [one_of('--stage', given.stage, names)]
  if getattr(given, 'classes', 1) < 1:
    raise UserError(f'--classes is {given.classes}; expected at least 1')
  return given, changes, config, names


def configured(name: str, changes: Sequence[str]) -> FrozenConfigDict:
  """Returns a config with --config.FIELD=VALUE flags applied and checked, all sizes in it; raises UserError."""
  return sizes.resolved(config_lib.parse([sys.argv[0], f'--config={name}', *changes]).config)[0]


def program(
  config: Mapping[str, Any], name: str, mesh: Mesh, classes: int = 8, images: int = 0
) -> step_lib.Program:
  """Returns a stage's program.

  Args:
    config: of the run.
    name: of the stage.
    mesh: of as many devices as are asked about.
    classes: of the classifier, where there is one.
    images: in the training set; 0 = as many as a batch has.

  Raises:
    UserError: when the model can not be, or the batch does not divide over the devices.
  """
  stage, model = config[name], ConfigDict(config['model'].to_dict())
  model.attention = 'xla'  # where it is computed is of no concern here
  class_names = tuple(map(str, range(classes)))
  objective = objectives.make(stage, model, class_names, f'config.{name}.objective')
  sharding.check_divides(f'config.{name}.batch_images', stage['batch_images'], mesh)
  return step_lib.make_program(
    stage, objective, images or stage['batch_images'], mesh, field=f'config.{name}.'
  )

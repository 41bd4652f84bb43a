"""Trains the stages of a config in order; the same command goes on where it was stopped.

mimic train --config CONFIG [--workdir FOLDER] [--seeds=0,1,2] [--config.field=value …]
"""

from collections.abc import Sequence

import mimic_jax
from mimic_jax import config as config_lib
from mimic_jax.runtime import cli


def main(argv: Sequence[str]) -> None:
  """Runs the command line without the program's name, on one process or on several (runtime/distributed.py)."""
  command = config_lib.parse(['mimic train', *argv])
  # Seconds: only once it is known what is asked.
  from mimic_jax.runtime import distributed
  from mimic_jax.training import run

  def start(_: Sequence[str]) -> None:
    with distributed.watching_peers():
      (run.run_seeds if command.seeds else run.run)(command, mimic_jax.BEGAN)

  cli.run(start, argv, distributed.end)

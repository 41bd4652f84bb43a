"""The front door: `mimic VERB …`, also `python -m mimic_jax VERB …` and `python -m mimic_jax.main VERB …`.

A verb is a module of commands/ with `main(argv)`; without one it is `train`, which runs the stages of a config by
training/loop.py; what they learn is in objectives/. Nothing heavy is imported before the verb is known.
"""

import ast
import importlib
import pathlib
import sys
from collections.abc import Sequence

import mimic_jax
from mimic_jax.runtime import cli
from mimic_jax.runtime.errors import UserError, nearest

COMMANDS = pathlib.Path(__file__).parent / 'commands'


def verbs() -> dict[str, str]:
  """Returns every verb and what it does, the first line of its module's docstring, without importing it."""
  files = (f for f in sorted(COMMANDS.glob('*.py')) if f.stem != '__init__')
  return {f.stem: ast.get_docstring(ast.parse(f.read_text('utf-8'))).split('\n')[0] for f in files}


def main(argv: Sequence[str]) -> None:
  """Runs a command line without the program's name; raises UserError."""
  first = argv[0] if argv else '--help'
  if first in ('--help', '-h', '-help', 'help') and len(argv) < 2:
    print(_usage(), flush=True)
  elif first in ('--version', '-version', 'version'):
    print(f'mimic_jax {mimic_jax.__version__}', flush=True)
  elif first.startswith('-'):
    _module('train').main(argv)
  else:
    known = verbs()
    if first not in known:
      raise UserError(
        f"'{first}' is no verb{nearest(first, known)}; expected one of {', '.join(known)}, or --config CONFIG"
      )
    _module(first).main(argv[1:])


def _module(verb: str):
  return importlib.import_module(f'mimic_jax.commands.{verb}')


def _usage() -> str:
  known = verbs()
  width = max(map(len, known))
  return '\n'.join(
    [
      'usage: mimic VERB …, or mimic --config CONFIG, which is short for mimic train --config CONFIG\n',
      *(f'  {verb:{width}}  {what}' for verb, what in known.items()),
      '\nmimic VERB --help says more, mimic --version the version.',
    ]
  )


def entry() -> None:
  """Runs the command line of this process; an error of the user's is one line and exit code 2."""
  cli.run(main, sys.argv[1:])


if __name__ == '__main__':
  entry()

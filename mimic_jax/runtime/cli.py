"""What the commands share: flags whose errors are one line, and exit codes, tables."""

import argparse
import importlib.metadata
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mimic_jax.runtime.errors import Ended, UserError


class Parser(argparse.ArgumentParser):
  """argparse, but a wrong command line is a UserError; flags can't be shortened."""

  def __init__(self, command: str, description: str) -> None:
    super().__init__(
      prog=f'mimic {command}',
      description=description,
      allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )

  def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
    """As argparse's, but a ~ behind a '=', which no shell puts the home folder for, is the home folder."""
    args = sys.argv[1:] if args is None else args
    return super().parse_known_args([_at_home(a) for a in args], namespace)

  def error(self, message: str) -> NoReturn:
    raise UserError(f'{message}; {self.prog} --help says what there is')


def _at_home(argument: str) -> str:
  flag, equals, value = argument.partition('=')
  return f'{flag}={os.path.expanduser(value)}' if equals and flag.startswith('-') else argument


def installed(*packages: str) -> dict[str, str]:
  """Returns the versions of packages by name, 'not installed' for those that aren't there; for records."""
  versions = {}
  for name in packages:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = 'not installed'
  return versions


def end(code: int, said: str, error: BaseException | None = None) -> NoReturn:
  """Says a line on standard error and ends the program.

  Args:
    code: the exit code.
    said: the line.
    error: what ended it, for other ways to end than this one.
  """
  del error
  print(said, file=sys.stderr)
  sys.exit(code)


def run(
  main: Callable[[Sequence[str]], None],
  argv: Sequence[str],
  end: Callable[[int, str, BaseException], NoReturn] = end,
) -> None:
  """Runs a command on its arguments; an error of the user's is one line on standard error and exit code 2.

  Args:
    main: gets argv.
    argv: the command line without the program's name.
    end: ends the program early.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  # A notebook hands its backend to the commands that it starts, where it may not be installed; figures here need none.
  os.environ.pop('MPLBACKEND', None)
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):  # what an encoding has no letter for is shown as its number
      stream.reconfigure(errors='backslashreplace')
  try:
    main(argv)
  except Ended as e:
    end(e.code, f'mimic: {e}', e)
  except UserError as e:
    end(2, f'mimic: error: {" ".join(str(e).split())}', e)
  except BrokenPipeError as e:  # whoever read the output has gone
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
      os.dup2(nowhere, stream.fileno())
    end(1, 'mimic: error: nobody reads the output any more', e)
  except (
    OSError
  ) as e:  # a disk that is full, a folder that can't be written: nothing that a command could mend
    where = f'{e.filename}: ' if e.filename else ''
    end(2, f'mimic: error: {where}{e.strerror or e}', e)
  except KeyboardInterrupt as e:
    end(130, f'mimic: {str(e) or "interrupted"}', e)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
  """Returns the rows of a table as lines, its columns under each other; a row may end early."""
  widths = [max(len(r[k]) for r in rows if k < len(r)) for k in range(max(map(len, rows), default=0))]
  return ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]

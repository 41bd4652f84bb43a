"""The one kind of error that is shown to a user as a single line, without a traceback, and what it stands for."""

import difflib
import struct
import zipfile
import zlib
from collections.abc import Iterable

# What the readers of Pillow, NumPy, PyTorch and zipfile raise on files that are damaged or not there. Not MemoryError:
# that says nothing of the file.
READ_ERRORS = (
  OSError,
  SyntaxError,
  ValueError,
  TypeError,
  LookupError,
  EOFError,
  ArithmeticError,
  RuntimeError,
  struct.error,
  zlib.error,
  zipfile.BadZipFile,
)


class UserError(Exception):
  """Something the user gave is wrong. The message names the file, field or value and what was expected."""


class AgreedError(UserError):
  """One that every process of a run raises at the same place, so that all can leave in order."""


class Ended(Exception):  # noqa: N818
  """The program ends early and the user has nothing to mend; `code` is its exit code."""

  code = 1


class Preempted(Ended):
  """The run was told to stop, and every process of it did at the same place, from which it can go on."""

  code = 75  # EX_TEMPFAIL of sysexits.h: try again later


def nearest(word: str, options: Iterable[str]) -> str:
  """Returns " (did you mean 'x'?)" for the option most like `word`, or '' when none is near."""
  close = difflib.get_close_matches(str(word), [str(o) for o in options], n=1, cutoff=0.5)
  return f" (did you mean '{close[0]}'?)" if close else ''


def one_of(field: str, value: str, options: Iterable[str]) -> str:
  """Returns `value` if it is among `options`.

  Raises:
    UserError: naming `field`, the value, what was expected and the nearest option.
  """
  options = list(options)
  if value not in options:
    raise UserError(f"{field} is '{value}'{nearest(value, options)}; expected one of {', '.join(options)}")
  return value


def short(e: Exception) -> str:
  """Returns an exception's first words on one line."""
  text = ' '.join(f'{type(e).__name__}: {e}'.split())
  return text if len(text) < 120 else f'{text[:117]}…'

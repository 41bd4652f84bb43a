"""Classes of different sets are the same when their names are, not their numbers (datasets.md, "Classes across sets")."""

import unicodedata
from collections.abc import Sequence

from mimic_jax.runtime.errors import UserError

# canonical name -> the other names it goes by
ALIASES = {
  'happiness': ('happy',),
  'sadness': ('sad',),
  'surprise': ('surprised',),
  'fear': ('fearful', 'scared'),
  'disgust': ('disgusted',),
  'anger': ('angry',),
}
_CANONICAL = {name: canonical for canonical, names in ALIASES.items() for name in (canonical, *names)}


def canonical(name: str) -> str:
  """Returns the name by which a class is compared: lower case, an alias replaced by its canonical name."""
  plain = unicodedata.normalize('NFC', str(name)).strip().lower()
  return _CANONICAL.get(plain, plain)


def match(have: Sequence[str], want: Sequence[str]) -> list[int]:
  """Finds each class of one set in another.

  Args:
    have: class names, in the order of their numbers.
    want: the names looked for.

  Returns:
    For each of `want` its number in `have`, −1 where it is not there.

  Raises:
    UserError: when two names of one set mean the same class.
  """
  if list(have) == list(want):
    return list(range(len(have)))
  known = _numbers(have)
  return [known.get(name, -1) for name in _numbers(want)]


def _numbers(names: Sequence[str]) -> dict[str, int]:
  """Returns canonical name -> number, in order; raises UserError where two names are one class."""
  numbers: dict[str, int] = {}
  for k, name in enumerate(names):
    other = numbers.setdefault(canonical(name), k)
    if other != k:
      raise UserError(f"'{names[other]}' and '{name}' are one class by two names; expected each class once")
  return numbers

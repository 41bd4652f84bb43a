"""What can be learned, one module each. A new objective is a new module here whose class `Objective` fills in the contract
of base.py; nothing else changes.
"""

import importlib
import pkgutil
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mimic_jax.objectives.base import Objective
from mimic_jax.runtime.errors import UserError, one_of


def names() -> list[str]:
  """Returns the names of all objectives."""
  return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != 'base')


def find(name: str, field: str = 'objective') -> type[Objective]:
  """Returns the objective of that name: of a module here, or of any module that can be imported, by its dotted name.

  Raises:
    UserError: naming `field`, when there is none.
  """
  if '.' not in name:
    return importlib.import_module(f'{__name__}.{one_of(field, name, names())}').Objective
  try:
    return importlib.import_module(name).Objective
  except (ImportError, AttributeError, TypeError, ValueError) as e:
    raise UserError(f"{field} is '{name}': {e}; expected a module with a class Objective") from e


def defaults(name: str) -> ConfigDict:
  """Returns the section that a stage with the objective of that name begins as."""
  return find(name).defaults()


def make(
  stage: Mapping[str, Any],
  model: Mapping[str, Any],
  class_names: tuple[str, ...],
  field: str,
  why_unlabelled: str = '',
) -> Objective:
  """Returns the objective that `stage.objective` names.

  Args:
    stage: a stage's section of the config.
    model: the encoder's section.
    class_names: of the training source; () when it has no labels.
    field: the field that holds the name, for the error.
    why_unlabelled: why the training source has no labels, where it can say more than that.

  Raises:
    UserError: when there is no such objective, when it learns from labels and there are none, and whatever it refuses, by the field as it is typed.
  """
  name = stage['objective']
  kind = find(name, field)
  if kind.labelled and len(class_names) == 1:
    raise UserError(
      f"objective '{name}' tells classes apart, and {stage['data']['source']} in '{stage['data']['root']}' has one, "
      f"'{class_names[0]}'; expected two or more class folders"
    )
  if kind.labelled and not class_names:
    raise UserError(
      f"{field} is '{name}', which needs labels, but data.source is '{stage['data']['source']}' and "
      f'{why_unlabelled or stage["data"]["source"] + " of this stage has none"}; '
      f'expected {"the same classes in each" if why_unlabelled else "one with classes"}'
    )
  try:
    return kind(stage, model, class_names)
  except UserError as e:  # an objective knows its fields by their names within the stage
    first = re.match(r'\w*', str(e))[0]
    where = {'model': 'config.'} | dict.fromkeys(stage, field.removesuffix('objective'))
    if not field.endswith('.objective') or first not in where:
      raise
    raise UserError(f'{where[first]}{e}') from None

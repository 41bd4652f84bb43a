"""What can be learned, one module each. A new objective is a new module here whose class `Objective` fills in the contract
of base.py; nothing else changes.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from mimic_jax.objectives.base import Objective
from mimic_jax.runtime.errors import UserError, one_of


def names() -> list[str]:
  """Returns the names of all objectives."""
  return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != 'base')


def is_labelled(name: str) -> bool:
  """Returns whether the objective of that name learns from labels."""
  return importlib.import_module(f'{__name__}.{name}').Objective.labelled


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
    UserError: when there is no such objective, or when it learns from labels and there are none.
  """
  name = one_of(field, stage['objective'], names())
  if why_unlabelled and not class_names and is_labelled(name):
    raise UserError(
      f"{field} is '{name}', which needs labels, but data.source is '{stage['data']['source']}' and {why_unlabelled}; "
      'expected the same classes in each'
    )
  return importlib.import_module(f'{__name__}.{name}').Objective(stage, model, class_names)

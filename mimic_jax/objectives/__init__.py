"""What can be learned, one module each. A new objective is a new module with a class `Objective`; nothing else changes.

The contract (`Objective(stage, model, class_names)`; stage and model are sections of the config):

  views: int                                    crops per image
  labelled: bool                                whether it learns from labels
  init(key) -> nnx.Module                       with `.encoder`, so that one stage can hand over to the next
  augment(batch, key) -> batch                  {'image': uint8, 'label', 'index'} → 'image': float32 [B, V, S, S, 3]
  loss(model, batch, key, step, total_steps) -> (float32 [], {name: scalar})
  evaluate(model, batch) -> {'sums': {name: (total, count)}, 'outputs': {name: [B, …]}}; a figure
                                                is total / count over all batches; batch has 'mask', False on padding
  trainable(path) -> bool                       whether the parameter at this path of names is trained
  initial(path) -> str                          what it takes from initial weights: 'needed' (an error where they lack it),
                                                'if_whole' (only if all such of its top-level module fit), 'fresh' (nothing)
  config: vit.Config                            of its encoder; class_names: of its classifier, where it is labelled
  draw(model, batch, key) -> {name: Drawing}    what the report of a stage shows
  look(model, batch) -> {name: Drawing}         what that of an evaluation shows: nothing that is drawn at random

`augment`, `loss` and `evaluate` are traced inside jax.jit over global, sharded arrays; they see no optimiser, no mesh
and no file system.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from mimic_jax.errors import UserError, one_of


def names() -> list[str]:
  """Returns the names of all objectives."""
  return sorted(m.name for m in pkgutil.iter_modules(__path__))


def is_labelled(name: str) -> bool:
  """Returns whether the objective of that name learns from labels."""
  return importlib.import_module(f'{__name__}.{name}').Objective.labelled


def make(
  stage: Mapping[str, Any],
  model: Mapping[str, Any],
  class_names: tuple[str, ...],
  field: str,
  why_unlabelled: str = '',
) -> Any:
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

"""`python -m tests.faults.poisoned …`: mimic_jax.main with a fine-tuning loss that is NaN at the steps in MIMIC_FAULTS_BAD_STEPS."""

import os
from typing import Any

import jax
import jax.numpy as jnp

from mimic_jax import main
from mimic_jax.objectives import mimic

VARIABLE = 'MIMIC_FAULTS_BAD_STEPS'  # numbers of steps from 0, comma-separated


def poison(steps: list[int]) -> None:
  """Makes the loss of the fine-tuning NaN at these steps."""
  original = mimic.Objective.loss

  def loss(self: Any, model: Any, batch: Any, key: jax.Array, step: jax.Array, total_steps: int) -> Any:
    value, parts = original(self, model, batch, key, step, total_steps)
    return jnp.where(jnp.isin(step, jnp.array(steps)), jnp.nan, value), parts

  mimic.Objective.loss = loss


if __name__ == '__main__':
  poison([int(s) for s in os.environ[VARIABLE].split(',')])
  main.entry()

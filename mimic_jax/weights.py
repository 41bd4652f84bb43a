"""Initial weights for an encoder. Whatever can be started from is recognised here, by content, and read into one form.

The form is a flat dict of NumPy arrays named like the encoder's own parameters, 'blocks/attn/qkv/kernel', block
parameters stacked [depth, …]. An importer of a weight file is one function `path -> Weights | None` in READERS.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from mimic_jax import checkpoint
from mimic_jax.errors import UserError
from mimic_jax.models import vit


@dataclasses.dataclass(frozen=True)
class Weights:
  """An encoder's parameters and where they are from."""

  encoder: dict[str, np.ndarray]
  origin: str


def read_own(path: epath.Path) -> Weights | None:
  """Reads a run's folder, a stage's folder or a checkpoint's folder that mimic_jax wrote; None when it is none of them."""
  found = checkpoint.find(path)
  if found is None:
    return None
  folder, step = found
  arrays = checkpoint.read_arrays(folder, step, ('params/encoder', 'rest/encoder'))
  names = {name.split('/encoder/', 1)[1]: array for name, array in arrays.items()}
  return Weights(names, f'{folder} step {step}')


READERS: list[Callable[[epath.Path], Weights | None]] = [read_own]


def read(path: str, field: str) -> Weights:
  """Reads initial weights.

  Args:
    path: a run's folder, a checkpoint, a weight file.
    field: the config's field that holds the path, for errors.

  Raises:
    UserError: when there is nothing there, or nothing that any reader knows.
  """
  where = epath.Path(path)
  if not where.exists():
    raise UserError(f"{field} is '{path}', which does not exist; expected a run's folder or a checkpoint")
  for reader in READERS:
    weights = reader(where)
    if weights is not None:
      return weights
  raise UserError(
    f"{field} is '{path}', which holds no checkpoint of mimic_jax; expected a run's folder (with <stage>/checkpoints), "
    'a stage in it or a checkpoint'
  )


def fit(
  weights: Weights, target: Mapping[str, Any], field: str
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
  """Fits read weights to an encoder: every tensor is loaded, resized or listed as unused.

  Args:
    weights: as read.
    target: the encoder's parameters by flat name, arrays or shapes.
    field: for errors.

  Returns:
    The arrays by flat name, float32, and an account {'loaded': […], 'resized': […], 'unused': […]}.

  Raises:
    UserError: naming the first tensor that is missing or of another shape.
  """
  fitted, account = {}, {'loaded': [], 'resized': [], 'unused': sorted(set(weights.encoder) - set(target))}
  for name, leaf in target.items():
    if name not in weights.encoder:
      raise UserError(
        f"{field}: {weights.origin} has no '{name}'; the encoder needs it with shape {tuple(leaf.shape)}"
      )
    array = np.asarray(weights.encoder[name], np.float32)
    if name == 'pos_embed' and array.shape != leaf.shape and array.shape[-1] == leaf.shape[-1]:
      side = round((leaf.shape[1] - 1) ** 0.5)
      array = np.asarray(vit.resize_pos_embed(array, (side, side)), np.float32)
      account['resized'].append(name)
    else:
      account['loaded'].append(name)
    if array.shape != tuple(leaf.shape):
      raise UserError(
        f"{field}: {weights.origin} is of another architecture: '{name}' has shape {array.shape}; "
        f'expected {tuple(leaf.shape)} (config.model: preset, dim, depth, patch_size)'
      )
    fitted[name] = array
  return fitted, account

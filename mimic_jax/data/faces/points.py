"""The 68 points of pictures as `mimic align --landmarks 68` has written them beside these."""

import os
from collections.abc import Sequence

import numpy as np

from mimic_jax import landmarks
from mimic_jax.runtime.errors import READ_ERRORS, UserError


def read(root: str, ids: Sequence[str]) -> tuple[np.ndarray, str] | None:
  """Returns the points of pictures, float32 [n, 68, 2], NaN where no face was found or none was looked for, and what found them; None without a file.

  Args:
    root: the folder that has the file (landmarks.FILE).
    ids: the pictures, as paths relative to it.

  Raises:
    UserError: on a file that is no such one, or that has none of these pictures.
  """
  path = os.path.join(root, landmarks.FILE)
  if not os.path.exists(path):
    return None
  try:
    with np.load(path, allow_pickle=False) as held:
      names, points, maker = held['id'], held['landmarks'].astype(np.float32), str(held['maker'])
  except (*READ_ERRORS, AttributeError) as e:  # the last: one array, not several
    raise UserError(f"'{path}' is not what `mimic align --landmarks 68` writes ({e})") from None
  if names.ndim != 1 or points.shape != (len(names), landmarks.POINTS, 2):
    raise UserError(
      f"'{path}': id and landmarks have shapes {names.shape} and {points.shape}; expected (n,) and (n, {landmarks.POINTS}, 2)"
    )
  place = {str(name): k for k, name in enumerate(names)}
  where = np.array([place.get(name, -1) for name in ids], np.int64)
  if (where < 0).all():
    raise UserError(
      f"'{path}' has the points of other pictures ('{next(iter(place), '')}', …); expected '{ids[0]}'"
    )
  found = points[where]
  found[where < 0] = np.nan
  return found, maker

"""300W-LP and AFLW2000-3D: faces with the angles of the head, for training and for measuring (Zhu et al. 2016, CVPR). No classes.

  train  300W_LP/<AFW|HELEN|IBUG|LFPW>[_Flip]/<name>.jpg, 122,450 of them, profiles made of the faces of 300-W
  test   AFLW2000/<name>.jpg, 2,000

Beside each picture lies <name>.mat (MATLAB's, version 5) with Pose_Para: pitch, yaw, roll in radians and four numbers more; and the 68 points, pt3d_68 or pt2d.
Targets: `yaw`, `pitch`, `roll` in degrees. As is the habit (Ruiz et al., arXiv 1710.00925), pictures with an angle beyond 99° are left out and counted.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.io

from mimic_jax.data import files as files_lib
from mimic_jax.data.faces import alignment, cutting
from mimic_jax.data.files import Files, is_picture
from mimic_jax.runtime.errors import READ_ERRORS, UserError, one_of

SPLITS = {'train': ('300W_LP', '300W-LP'), 'test': ('AFLW2000', 'AFLW2000-3D')}
PUBLISHED = {'train': 122_450, 'test': 2_000}
MOST_DEGREES = 99.0
ANGLES = ('pitch', 'yaw', 'roll')  # in Pose_Para's order
POINTS = ('pt3d_68', 'pt2d')


def build(root: str, split: str, options: Mapping[str, Any]) -> Files:
  """Returns the pictures of one split; `image_shape` is None, since faces are cut out of them.

  Args:
    root: the folder that holds 300W_LP and AFLW2000.
    split: 'train' or 'test'.
    options: the data section; `align` ('auto' is box(0.2) about the 68 points; 'none' takes whole pictures), `max_pixels`, `threads`.

  Raises:
    UserError: on a missing folder, on one without pictures with angles, on a .mat that can't be read or lacks them, on a data.align that goes by points.
  """
  split = one_of('the split of pose_300w_lp', split, tuple(SPLITS))
  if not root:
    raise UserError(
      "data.root is empty; source 'pose_300w_lp' needs the folder that holds 300W_LP and AFLW2000"
    )
  folder = next((name for name in SPLITS[split] if os.path.isdir(os.path.join(root, name))), None)
  if folder is None:
    raise UserError(f"no split '{split}' in '{root}': looked for a folder {' or '.join(SPLITS[split])}")
  align, about = alignment.choose(options, root, 'pose_300w_lp', auto='box(0.2)', kinds=('none', 'box'))
  base = os.path.join(root, folder)
  every = files_lib.files(base)
  stems = {os.path.splitext(name)[0] for name in every if name.lower().endswith('.mat')}
  pictures = [name for name in every if is_picture(name)]
  with_angles = [name for name in pictures if os.path.splitext(name)[0] in stems]
  if not with_angles:
    raise UserError(
      f"no picture in '{base}' has a .mat of its name beside it; expected AFW/name.jpg with AFW/name.mat"
    )

  def read(names: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [_read(os.path.join(base, os.path.splitext(name)[0] + '.mat')) for name in names]

  found = files_lib.in_chunks(read, with_angles, options.get('threads', 8))
  degrees, boxes = (np.array(values, np.float32) for values in zip(*found))
  kept = np.flatnonzero((np.abs(degrees) <= MOST_DEGREES).all(axis=1))
  if not kept.size:
    raise UserError(
      f"all {len(degrees)} pictures of '{base}' have an angle beyond {MOST_DEGREES:g}°; expected some without"
    )
  warnings = cutting.unread(
    [os.path.join(base, n) for n in pictures if os.path.splitext(n)[0] not in stems],
    'no .mat lies beside them',
  )
  if len(with_angles) != PUBLISHED[split]:
    warnings.append(
      f'pose_300w_lp {split} has {len(with_angles)} pictures, the published release {PUBLISHED[split]}'
    )
  record = {
    'source': 'pose_300w_lp',
    'root': root,
    'split': split,
    'label_rule': 'none',
    'count': len(kept),
    'class_names': [],
    'expected_count': PUBLISHED[split],
    'left_out': {f'an angle beyond {MOST_DEGREES:g} degrees': len(degrees) - len(kept)},
    'align': about,
    'warnings': warnings,
  }
  ids = [f'{folder}/{with_angles[k]}' for k in kept]
  return Files(
    root,
    ids,
    ids,
    np.full(len(kept), -1, np.int32),
    (),
    record,
    options.get('max_pixels', 50_000_000),
    align=align,
    boxes=boxes[kept] if align.kind == 'box' else None,
    targets={name: degrees[kept, k] for k, name in enumerate(ANGLES)},
  )


def _read(path: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns pitch, yaw, roll in degrees, [3], and the box of the points, left, top, width, height, [4], of a .mat; raises UserError."""
  try:
    held = scipy.io.loadmat(path)
    angles = np.asarray(held.get('Pose_Para', ()), np.float64).reshape(-1)
    points = next((np.asarray(held[n], np.float64)[:2] for n in POINTS if n in held), np.zeros((0, 0)))
  except (*READ_ERRORS, scipy.io.matlab.MatReadError) as e:
    raise UserError(f'{path}: can not be read ({e}); expected a .mat of version 5 with numbers') from e
  if len(angles) < 3 or not np.isfinite(angles[:3]).all():
    raise UserError(f'{path}: has no Pose_Para of numbers; expected pitch, yaw, roll in radians first in it')
  if points.shape != (2, 68) or not np.isfinite(points).all():
    raise UserError(f'{path}: has no {" or ".join(POINTS)} of 68 points; expected x and y, a row each')
  first, last = points.min(axis=1), points.max(axis=1)
  return np.degrees(angles[:3]), np.concatenate([first, last - first])

"""Source `synthetic_masks`: random binary masks as pictures, white where a picture is seen and black where it is hidden."""

from collections.abc import Mapping

import numpy as np

from mimic_jax.data.drawn import masks, synthetic

VERSION = 1  # of everything that decides a pixel here; raise it whenever a picture changes

KINDS = {kind.__name__: kind for kind in (masks.rectangles, masks.ellipses, masks.strokes, masks.blobs)}
CLASS_NAMES = tuple(KINDS)


def paint(label: int, content: np.random.Generator, look: np.random.Generator, size: int) -> np.ndarray:
  """Draws a mask of the kind CLASS_NAMES[label] from `content`: uint8 [size, size, 3] of 0 (hidden) and 255."""
  del look
  hidden = KINDS[CLASS_NAMES[label]](size, content)
  return np.repeat(np.where(hidden, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def build(root: str, split: str, options: Mapping) -> synthetic.Drawn:
  """Returns the source of `options['size']` masks of `options['draw_size']` pixels; `root` is not used.

  Raises:
    UserError: as synthetic.drawn.
  """
  del root
  return synthetic.drawn('masks', CLASS_NAMES, paint, VERSION, split, options)

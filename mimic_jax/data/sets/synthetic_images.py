"""Source `synthetic_images`: drawn scenes, things, shapes and textures without a face, to pre-train on."""

from collections.abc import Mapping

import numpy as np

from mimic_jax.data.drawn import canvas, scenes, synthetic

VERSION = 2  # of everything that decides a pixel here; raise it whenever a picture changes

# Each kind draws on a canvas of its own: (size, generator) -> Canvas.
KINDS = {
  kind.__name__: kind
  for kind in (scenes.landscape, scenes.city, scenes.sea, scenes.still_life, scenes.geometry, scenes.pattern)
}
CLASS_NAMES = tuple(KINDS)


def paint(label: int, content: np.random.Generator, look: np.random.Generator, size: int) -> np.ndarray:
  """Draws a picture of the kind CLASS_NAMES[label] from `content`, lit from `look`: uint8 [size, size, 3]."""
  board = KINDS[CLASS_NAMES[label]](size, content)
  return canvas.photograph(
    board.finish(),
    light=look.uniform(0.8, 1.15),
    slope=tuple(look.uniform(-0.15, 0.15, 2)),
    contrast=look.uniform(0.8, 1.1),
    grey=bool(look.uniform() < 0.08),
    noise=5.0 * look.uniform() ** 2,
    rng=look,
  )


def build(root: str, split: str, options: Mapping) -> synthetic.Drawn:
  """Returns the source of `options['size']` pictures of `options['draw_size']` pixels; `root` is not used.

  Raises:
    UserError: as synthetic.drawn.
  """
  del root
  return synthetic.drawn('images', CLASS_NAMES, paint, VERSION, split, options)

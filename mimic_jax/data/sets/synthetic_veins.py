"""Source `synthetic_veins`: drawn veins of palms, branching dark curves on a light ground, one pattern for each person.

A class is a person; every picture of one shows the same pattern, held, bent and lit otherwise. All splits of one `data.draw_seed` have
the same persons in other pictures; another seed has other persons. `data.classes` says how many there are.
"""

import functools
from collections.abc import Mapping

import numpy as np

from mimic_jax.data.drawn import canvas, synthetic, veins
from mimic_jax.runtime.errors import UserError

READS = ('classes',)  # of options.OF_SOME
VERSION = 1  # of everything that decides a pixel here; raise it whenever a picture changes

BEND = 0.06  # how far a pattern is bent, in half pictures
BLUR = (0.8, 2.0)  # of what lies under the skin, in pixels of a picture of 64


@functools.lru_cache(4096)
def pattern(seed: int, person: int) -> list[veins.Vein]:
  """Returns the pattern of a person, the same in every split."""
  return veins.pattern(synthetic.generator('veins', 'persons', seed, person))


def paint(
  seed: int, label: int, content: np.random.Generator, look: np.random.Generator, size: int
) -> np.ndarray:
  """Draws a picture of person `label` of a seed, held as `content` says, lit as `look` does: uint8 [size, size, 3], grey."""
  light, dark = look.uniform(165, 225), look.uniform(45, 80)
  skin = (round(light),) * 3
  board = canvas.Canvas(size, canvas.corners(look, skin, 18))
  board.warp = veins.bend(content, BEND)
  board.place(
    *content.uniform(-0.09, 0.09, 2), scale=content.uniform(0.9, 1.1), angle=content.normal(0, 0.08)
  )
  veins.draw(board, pattern(seed, label), content.uniform(0.8, 1.2), skin, (round(light - dark),) * 3)
  return canvas.photograph(
    board.finish(look.uniform(*BLUR) * size / 64),
    light=look.uniform(0.8, 1.15),
    slope=tuple(look.uniform(-0.2, 0.2, 2)),
    contrast=look.uniform(0.8, 1.15),
    grey=True,
    noise=look.uniform(2, 9),
    rng=look,
  )


def build(root: str, split: str, options: Mapping) -> synthetic.Drawn:
  """Returns the source of `options['size']` pictures of `options['classes']` persons; `root` is not used.

  Raises:
    UserError: as synthetic.drawn, and on fewer than two persons.
  """
  del root
  count = options['classes']
  if count < 2:
    raise UserError(f'data.classes is {count}; synthetic_veins expected at least 2 persons')
  names = tuple(f'person-{k:0{len(str(count - 1))}d}' for k in range(count))
  drawing = functools.partial(paint, options['draw_seed'])
  return synthetic.drawn('veins', names, drawing, VERSION, split, options, more=(count,))

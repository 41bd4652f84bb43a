"""Source `synthetic_faces`: cartoon faces with seven expressions, for trying things out without a download.

A face is an expression (what the label is about) worn by a look (who, how turned, how lit, before what,
hidden by what). They come from two generators, so that the look says nothing about the label.

Targets: `valence` and `arousal` of the expression, −1..1; how the head is held, `yaw`, `pitch`, `roll`, in degrees (to the right of the
picture, down, clockwise); `glasses` and `beard`, 0 or 1.
"""

import math
from collections.abc import Mapping

import numpy as np

from mimic_jax.data.drawn import canvas, face, synthetic

VERSION = 2  # of everything that decides a pixel here; raise it whenever a picture changes

# In RAF-DB's order.
CLASS_NAMES = ('surprise', 'fear', 'disgust', 'happiness', 'sadness', 'anger', 'neutral')

# The columns are face.FIELDS; 0 is at rest, ±1 as far as a cartoon goes.
PROTOTYPES = np.array(
  [
    # inner outer squeeze lids squint curve open width square teeth sneer cheek wrinkle
    [1.00, 0.90, 0.00, 0.60, 0.00, -0.05, 0.95, -0.60, 0.00, 0.10, 0.00, 0.00, 0.00],  # surprise
    [0.85, -0.15, 0.50, 0.50, 0.00, -0.55, 0.50, 0.10, 0.60, 0.80, 0.00, 0.00, 0.05],  # fear
    [-0.45, -0.30, 0.45, -0.35, 0.60, -0.60, 0.25, -0.10, 0.30, 0.55, 1.00, 0.35, 1.00],  # disgust
    [0.15, 0.20, 0.00, -0.10, 0.50, 1.00, 0.50, 0.35, 0.00, 0.90, 0.00, 1.00, 0.00],  # happiness
    [0.80, -0.75, 0.30, -0.45, 0.10, -0.95, 0.05, -0.15, 0.00, 0.10, 0.00, 0.00, 0.00],  # sadness
    [-1.00, 0.45, 0.90, -0.10, 0.35, -0.55, 0.30, 0.05, 0.90, 0.90, 0.20, 0.05, 0.35],  # anger
    [0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00],  # neutral
  ]
)

# What a face of each class may be partly: the confusions that people make too.
NEIGHBOURS = (
  (1, 3, 6),  # surprise: fear, happiness, neutral
  (0, 4, 2),  # fear: surprise, sadness, disgust
  (5, 4, 1),  # disgust: anger, sadness, fear
  (6, 0, 2),  # happiness: neutral, surprise, disgust
  (6, 1, 2),  # sadness: neutral, fear, disgust
  (2, 6, 1),  # anger: disgust, neutral, fear
  (4, 5, 3),  # neutral: sadness, anger, happiness
)

# Valence and arousal of each class at full strength: places on Russell's circumplex, by hand.
AFFECT = np.array(
  [[0.1, 0.8], [-0.6, 0.75], [-0.7, 0.3], [0.85, 0.45], [-0.75, -0.4], [-0.5, 0.7], [0.0, 0.0]], np.float64
)

SPREAD = 0.12  # standard deviation of every field
BLEND = 0.45  # the largest share of a neighbour
INTENSITY = (0.7, 1.25)


def expression(label: int, rng: np.random.Generator) -> np.ndarray:
  """Returns one face's expression, float64 [13] in the order of face.FIELDS.

  It is the class' prototype times an intensity, blended with up to BLEND of a neighbouring class, with
  every field a little off. Neighbours therefore overlap: some faces can't be told, as in the real sets.
  """
  neighbour, share, strength = _blend(label, rng)
  fields = strength * ((1 - share) * PROTOTYPES[label] + share * PROTOTYPES[neighbour])
  fields = fields + SPREAD * rng.standard_normal(fields.shape)
  fields[face.FIELDS.index('open')] *= rng.uniform(0.4, 1.2)  # a laugh and a smile are both happy
  return fields


def _blend(label: int, rng: np.random.Generator) -> tuple[int, float, float]:
  """Returns the neighbour that a face of a class partly is, its share, and how strong the expression is."""
  neighbour = NEIGHBOURS[label][int(rng.integers(3))]
  return neighbour, BLEND * rng.uniform() ** 2, rng.uniform(*INTENSITY)  # shares are mostly small


def measure(label: int, content: np.random.Generator, look: np.random.Generator) -> dict[str, float]:
  """Returns the targets of the face that `paint` draws of the same label and generators.

  Valence and arousal are blended as the expression is. The head's middle lies half a unit before its axis (face._turning), which makes an
  angle of the features' shift.
  """
  neighbour, share, strength = _blend(label, content)
  valence, arousal = np.clip(strength * ((1 - share) * AFFECT[label] + share * AFFECT[neighbour]), -1, 1)
  p = face.person(look)
  angles = {'yaw': p.yaw, 'pitch': math.asin(p.pitch / 0.5), 'roll': p.roll}
  return {
    'valence': float(valence),
    'arousal': float(arousal),
    **{name: math.degrees(angle) for name, angle in angles.items()},
    'glasses': float(p.glasses),
    'beard': float(p.beard),
  }


def paint(label: int, content: np.random.Generator, look: np.random.Generator, size: int) -> np.ndarray:
  """Draws a face.

  Args:
    label: class, index into CLASS_NAMES.
    content: gives the expression.
    look: gives everything else.
    size: side in pixels.

  Returns:
    uint8 [size, size, 3].
  """
  person = face.person(look)
  board = face.background(size, look)
  face.draw(board, person, expression(label, content))
  face.hide(board, look)
  blur = max(0.0, look.uniform(-1.2, 0.5)) * size / 64
  return canvas.photograph(
    board.finish(blur),
    light=look.uniform(0.75, 1.2),
    slope=tuple(look.uniform(-0.25, 0.25, 2)),
    contrast=look.uniform(0.65, 1.1),
    grey=bool(look.uniform() < 0.12),
    noise=12.0 * look.uniform() ** 2,
    rng=look,
  )


def build(root: str, split: str, options: Mapping) -> synthetic.Drawn:
  """Returns the source of `options['size']` faces of `options['draw_size']` pixels; `root` is not used.

  Raises:
    UserError: as synthetic.drawn.
  """
  del root
  return synthetic.drawn('faces', CLASS_NAMES, paint, VERSION, split, options, measure)

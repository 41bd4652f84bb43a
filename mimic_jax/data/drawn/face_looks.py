"""All of a drawn face but its expression: who it is, how it is held, what is behind and before it."""

import dataclasses

import numpy as np

from mimic_jax.data.drawn import canvas
from mimic_jax.data.drawn.canvas import Canvas, Colour, clear, darker, mix

SKINS = (
  (255, 224, 196), (244, 205, 170), (232, 184, 144), (214, 160, 116),
  (190, 134, 94), (160, 108, 74), (130, 86, 60), (104, 68, 48),
)  # fmt: skip
HAIRS = (
  (32, 26, 26), (66, 42, 28), (110, 68, 36), (160, 104, 52), (222, 182, 104), (176, 70, 36),
  (150, 148, 150), (226, 224, 220), (196, 84, 140), (72, 108, 190), (84, 150, 110),
)  # fmt: skip
IRISES = ((72, 46, 28), (104, 70, 38), (60, 116, 168), (72, 130, 84), (110, 116, 124))
STYLES = ('bald', 'short', 'long', 'curly', 'bun', 'fringe', 'parted', 'spikes', 'scarf', 'beanie')


@dataclasses.dataclass(frozen=True)
class Person:
  """Who the face is and how it is held. Lengths are in heads: 1 is half a head's height."""

  skin: Colour
  hair: Colour
  iris: Colour
  lip: Colour
  cloth: Colour
  style: str  # of the hair, one of STYLES
  width: float  # half the head's
  jaw: float  # 0 round .. 1 pointed
  spacing: float  # of an eye from the middle
  eye: float  # size, 1 is usual
  brow: float  # thickness
  arch: float  # of the brows at rest, 0 .. 1
  brow_rest: float  # height of the brows at rest: what is stern on one face is calm on another
  nose: int  # one of three
  nose_size: float
  mouth: float  # width, 1 is usual
  mouth_rest: float  # curve of the mouth at rest
  lip_size: float
  blush: float  # opacity
  glasses: str  # '' | round | square | tinted
  beard: str  # '' | stubble | full | moustache
  freckles: bool
  yaw: float  # radians to the right; the features shift and foreshorten
  pitch: float  # shift of the features downwards
  x: float  # of the head's middle, in half pictures
  y: float
  scale: float  # half a head's height, in half pictures
  roll: float  # radians, clockwise


def person(rng: np.random.Generator) -> Person:
  """Draws a person and a pose, nearly frontal and upright, as in the sets of aligned faces."""

  def between(low: float, high: float) -> float:
    return low + (high - low) * rng.random()

  def pick(options):
    return options[int(rng.random() * len(options))]

  skin = mix(pick(SKINS), pick(SKINS), between(0, 0.4))
  return Person(
    skin=skin,
    hair=mix(pick(HAIRS), pick(HAIRS), between(0, 0.25)),
    iris=pick(IRISES),
    lip=mix(darker(skin, 0.72), canvas.hsv(between(0.93, 1.03), 0.65, 0.75), between(0.15, 0.8)),
    cloth=canvas.hsv(between(0, 1), between(0.1, 0.75), between(0.3, 0.95)),
    style=pick(STYLES),
    width=between(0.7, 0.88),
    jaw=between(0, 1),
    spacing=between(0.31, 0.39),
    eye=between(0.82, 1.15),
    brow=between(0.055, 0.12),
    arch=between(0, 1),
    brow_rest=between(-0.05, 0.05),
    nose=pick((0, 1, 2)),
    nose_size=between(0.75, 1.3),
    mouth=between(0.85, 1.15),
    mouth_rest=between(-0.12, 0.12),
    lip_size=between(0.02, 0.065),
    blush=max(0.0, between(-0.4, 0.45)),
    glasses=pick(('', '', '', '', '', '', '', 'round', 'square', 'tinted')),
    beard=pick(('', '', '', '', '', '', '', 'stubble', 'full', 'moustache')),
    freckles=rng.random() < 0.12,
    yaw=between(-0.13, 0.13),
    pitch=between(-0.05, 0.05),
    x=between(-0.025, 0.025),
    y=between(0.0, 0.05),
    scale=between(0.9, 0.96),
    roll=between(-0.065, 0.065),
  )


def background(size: int, rng: np.random.Generator) -> Canvas:
  """Returns a canvas with a plain wall, stripes, spots, boxes or an edge between two tones."""
  base = canvas.hsv(rng.uniform(), rng.uniform(0.05, 0.6), rng.uniform(0.35, 0.95))
  board = Canvas(size, canvas.corners(rng, base, 45))
  kind = int(rng.integers(5))
  tint = canvas.hsv(rng.uniform(), rng.uniform(0.1, 0.6), rng.uniform(0.3, 1.0))
  tint = clear(tint, rng.uniform(0.2, 0.6))
  spots = rng.uniform(-1.1, 1.1, (7, 2))
  radii = rng.uniform(0.1, 0.4, 7)
  angle = rng.uniform(-1.6, 1.6)
  if kind == 1:
    board.place(angle=angle)
    step = 0.2 + radii[0]
    for k in range(int(3 / step)):
      board.rectangle(k * step - 1.5, -1.5, (k + 0.5) * step - 1.5, 1.5, tint)
  elif kind == 2:
    for (x, y), r in zip(spots, radii):
      board.ellipse(x, y, r, r, tint)
  elif kind == 3:
    for (x, y), r in zip(spots[:4], radii):
      board.rectangle(x, y, x + 2 * r, y + 3 * r, tint)
  elif kind == 4:
    board.place(angle=angle)
    board.rectangle(-2, spots[0, 0] / 2, 2, 2, tint)
  board.place()
  return board


def hide(board: Canvas, p: Person, rng: np.random.Generator) -> None:
  """Covers a part of one face in six with a hand, a bar or a patch, wherever it falls."""
  kind = int(rng.integers(18))
  x, y, angle = rng.uniform(-0.75, 0.75), rng.uniform(-0.5, 0.9), rng.uniform(-0.8, 0.8)
  colour = canvas.hsv(rng.uniform(), rng.uniform(0, 0.7), rng.uniform(0.15, 0.95))
  size = rng.uniform(0.2, 0.34)
  if kind == 0:
    board.place(x, y, 0.85 * p.scale, angle)
    _hand(board, p)
  elif kind == 1:
    board.place(x, y, 1.0, angle)
    board.rectangle(-3, -size / 2, 3, size / 2, colour)
  elif kind == 2:
    board.place(x, y, 1.0, angle)
    board.rectangle(-size, -size, size, size, colour)
  board.place()


def _hand(board: Canvas, p: Person) -> None:
  for tone, grow in ((darker(p.skin, 0.6), 0.03), (darker(p.skin, 0.96), 0.0)):
    board.rectangle(-0.19 - grow, 0.6, 0.19 + grow, 2.0, tone)
    board.ellipse(0, 0.45, 0.28 + grow, 0.3 + grow, tone)
    for k in range(4):
      tip = -0.14 + 0.05 * abs(k - 1.5)
      board.stroke(canvas.path([(-0.2 + 0.135 * k, 0.4), (-0.26 + 0.175 * k, tip)]), 0.1 + 2 * grow, tone)
    board.stroke(canvas.path([(0.2, 0.5), (0.46, 0.2)]), 0.12 + 2 * grow, tone)

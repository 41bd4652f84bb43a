"""How a cartoon face is drawn from an expression (FIELDS) and a person, who the face is and how it is held.

Units: half a head's height is 1, around (0, 0); x to the right, y down.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mimic_jax.data.drawn import canvas
from mimic_jax.data.drawn.canvas import Canvas, Colour, clear, darker, mix

FIELDS = (
  'inner',  # inner end of the brows: up +, down −
  'outer',  # outer end of the brows
  'squeeze',  # brows drawn together
  'lids',  # upper lids: wide +, drooping −
  'squint',  # lower lids raised
  'curve',  # corners of the mouth: up +, down −
  'open',  # lips apart
  'width',  # mouth stretched +, pursed −
  'square',  # the opening: lens 0, box 1
  'teeth',
  'sneer',  # upper lip raised, folds beside the nose
  'cheek',  # cheeks raised
  'wrinkle',  # of the nose
)
SKINS = ((255, 224, 196), (232, 184, 144), (190, 134, 94), (130, 86, 60), (104, 68, 48))
HAIRS = ((32, 26, 26), (92, 58, 32), (222, 182, 104), (176, 70, 36), (190, 188, 186), (72, 108, 190))
IRISES = ((84, 56, 32), (60, 116, 168), (72, 130, 84), (110, 116, 124))
STYLES = ('bald', 'short', 'long', 'fringe', 'parted', 'hat')

INK = (38, 26, 30)
_U = np.linspace(-1.0, 1.0, 17)  # across an eye, a mouth, a head
_LENS = 1.0 - _U**2
_T = np.linspace(0.0, 1.0, 9)  # along a brow, from its inner end
_SIDES = (-1.0, 1.0)
_HAIRLINES = {  # the lower edge of the hair over the forehead, along _U
  'short': -0.66 + 0.3 * _U**4,
  'long': -0.72 + 0.75 * _U**4,
  'fringe': -0.55 + 0.02 * np.cos(16 * _U) + 0.5 * _U**8,
  'parted': -0.62 - 0.22 * np.exp(-(((_U - 0.35) / 0.25) ** 2)) + 0.35 * _U**4,
  'hat': -0.58 + 0.06 * _U**2,
}
_CROWN = -1.06 * np.sqrt(1 - (_U * 0.92) ** 2)


class Person(NamedTuple):
  """Who the face is and how it is held."""

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
  brow_rest: float  # height of the brows at rest: what is stern on one face is calm on another
  nose: float  # size, 1 is usual
  mouth: float  # width, 1 is usual
  mouth_rest: float  # curve of the mouth at rest
  lip_size: float
  glasses: bool
  beard: bool
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
    brow_rest=between(-0.05, 0.05),
    nose=between(0.75, 1.3),
    mouth=between(0.85, 1.15),
    mouth_rest=between(-0.12, 0.12),
    lip_size=between(0.02, 0.065),
    glasses=rng.random() < 0.25,
    beard=rng.random() < 0.25,
    yaw=between(-0.13, 0.13),
    pitch=between(-0.05, 0.05),
    x=between(-0.025, 0.025),
    y=between(0.0, 0.05),
    scale=between(0.9, 0.96),
    roll=between(-0.065, 0.065),
  )


def clip(value: float, low: float, high: float) -> float:
  """Returns `value` kept within [low, high]; for plain floats np.clip is many times slower."""
  return low if value < low else high if value > high else value


def draw(board: Canvas, p: Person, fields: np.ndarray) -> None:
  """Draws person `p` with the expression `fields`, float [13] in the order of FIELDS; 0 is at rest."""
  e = dict(zip(FIELDS, fields.tolist()))
  board.place(p.x, p.y, p.scale, p.roll)
  turn = _turning(p)
  jaw = _head(board, p, drop=_drop(e))
  board.warp = turn
  _cheeks_and_nose(board, p, e)
  if p.beard:
    top = canvas.path([(-0.5, 0.35), (-0.3, 0.38), (0, 0.35), (0.3, 0.38), (0.5, 0.35)])
    board.shape(np.concatenate([jaw, top]), clear(p.hair, 0.9))
  _mouth(board, p, e)
  for side in _SIDES:
    _eye(board, p, e, side)
  board.warp = None
  _hair(board, p)
  board.warp = turn
  for side in _SIDES:
    _brow(board, p, e, side)
  if p.glasses:
    for side in _SIDES:
      board.ring(side * p.spacing, -0.05, 0.29, 0.28, 0.05, darker(p.cloth, 0.45))
    board.rectangle(0.29 - p.spacing, -0.09, p.spacing - 0.29, -0.05, darker(p.cloth, 0.45))
  board.warp = None


def _turning(p: Person) -> Callable[[np.ndarray], np.ndarray]:
  """Returns what moves the features [N] of a face that is not frontal."""
  cosine, sine = math.cos(p.yaw), math.sin(p.yaw)
  nod = complex(0.5 * sine, p.pitch)

  def turn(points: np.ndarray) -> np.ndarray:
    # The features sit on a bulging front that turns by yaw: x cos + depth sin, less deep to the sides.
    x = points.real
    return points + x * ((cosine - 1.0) - (0.35 * sine) * x) + nod

  return turn


def _drop(e: dict[str, float]) -> float:
  """Returns how much lower the chin is."""
  return 0.1 * clip(e['open'], 0.0, 1.1)


def points(p: Person, fields: np.ndarray, size: int) -> np.ndarray:
  """Returns the 68 points (landmarks.py) of the face that `draw` draws of the same on a picture of `size` pixels, float32 [68, 2].

  They are computed from what is drawn, not found: exact, also where hair or a bar covers them.
  """
  e = dict(zip(FIELDS, fields.tolist()))
  jaw = _outline(p, _drop(e), np.exp(1j * np.linspace(math.pi, 0.0, 17)))  # from ear to ear, left to right
  brows = [_brow_line(p, e, side)[::2] for side in _SIDES]  # each from its inner end
  y = 0.22 - 0.04 * max(clip(e['sneer'], 0.0, 1.0), clip(e['wrinkle'], 0.0, 1.0))
  bridge = 1j * np.linspace(-0.07, y, 4)  # between the eyes to the tip
  nostrils = 0.12 * p.nose * np.linspace(-1.0, 1.0, 5) + 1j * (y + 0.06)
  eyes = []
  for side in _SIDES:
    lids, u = _lids(p, e, side), np.array([-1.0, -0.4, 0.4, 1.0])
    upper, lower = lids.at(u)
    x = lids.x + lids.half * u
    eyes += [x + 1j * upper, (x + 1j * lower)[2:0:-1]]
  x, upper, lower, lip, *_ = _lips(p, e)
  outer, inner = np.linspace(0, 16, 7).round().astype(int), np.linspace(0, 16, 5).astype(int)
  mouth = [
    *(1.06 * x + 1j * (upper - lip))[outer],
    *(1.06 * x + 1j * (lower + 1.2 * lip))[outer[5:0:-1]],
    *(x + 1j * upper)[inner],
    *(x + 1j * lower)[inner[3:0:-1]],
  ]
  front = np.concatenate([brows[0][::-1], brows[1], bridge, nostrils, *eyes, np.array(mouth)])
  placed = np.concatenate([jaw, _turning(p)(front)]) * complex(math.cos(p.roll), math.sin(p.roll)) * p.scale
  xy = np.stack([placed.real + p.x, placed.imag + p.y], axis=1)
  return ((1.0 + xy) * (size / 2)).astype(np.float32)


def _head(board: Canvas, p: Person, drop: float) -> np.ndarray:
  """Draws long hair, neck, shoulders, ears and head, its chin lower by `drop`; returns the outline of the jaw."""
  if p.style == 'long':
    tone, w = darker(p.hair, 0.8), p.width + 0.17
    board.ellipse(0, -0.15, w, 0.95, tone)
    board.polygon([(-w, -0.15), (w, -0.15), (w + 0.05, 1.25), (-w - 0.05, 1.25)], tone)
  board.rectangle(-0.32, 0.6, 0.32, 1.5, darker(p.skin, 0.78))
  board.ellipse(0, 1.95, 1.15, 0.72, p.cloth)
  edge = darker(p.skin, 0.6)
  for side in _SIDES:
    x = side * (p.width + 0.015) - 0.1 * p.yaw
    board.ellipse(x, 0.05, 0.15, 0.22, edge)
    board.ellipse(x, 0.05, 0.11, 0.18, darker(p.skin, 0.92))
  outline = _outline(p, drop, canvas.CIRCLE)
  board.shape(outline * 1.04, edge)
  board.shape(outline, p.skin)
  return outline[canvas.CIRCLE.imag > 0.3] * 0.975


def _outline(p: Person, drop: float, circle: np.ndarray) -> np.ndarray:
  """Returns the head's outline [N] at points [N] of the unit circle."""
  low = np.maximum(circle.imag, 0.0)  # how far down the jaw
  squared = 1.0 + 0.12 * np.abs(circle.real * circle.imag)
  x = p.width * circle.real * (1 - (0.1 + 0.22 * p.jaw) * low**2) * squared
  return x + 1j * (0.95 * circle.imag + (0.05 + drop) * low)


def _cheeks_and_nose(board: Canvas, p: Person, e: dict[str, float]) -> None:
  raised, line = clip(e['cheek'], 0.0, 1.2), darker(p.skin, 0.58)
  sneer, wrinkle = clip(e['sneer'], 0.0, 1.0), clip(e['wrinkle'], 0.0, 1.0)
  y = 0.22 - 0.04 * max(sneer, wrinkle)
  board.ellipse(0, y, 0.12 * p.nose, 0.09 * p.nose, darker(p.skin, 0.82))
  for side in _SIDES:
    board.ellipse(side * 0.07 * p.nose, y + 0.06, 0.03 * p.nose, 0.022 * p.nose, line)
    if raised > 0.05:
      board.ellipse(side * 0.47, 0.34 - 0.07 * raised, 0.19, 0.13, clear((236, 96, 90), 0.35 * raised))
    if sneer > 0.25:
      fold = canvas.path([(side * 0.16 * p.nose, y), (side * 0.3, y + 0.1), (side * 0.37, y + 0.26)])
      board.stroke(fold, 0.035, clear(line, sneer))
  for k in range(3 if wrinkle > 0.25 else 0):
    fold = (0.1 - 0.02 * k) * _U + 1j * (0.09 * k - 0.14 - 0.03 * _LENS)
    board.stroke(fold, 0.032, clear(line, wrinkle))


class _Lips(NamedTuple):
  """The opening of a mouth along _U, and how thick the lips are about it."""

  x: np.ndarray
  upper: np.ndarray
  lower: np.ndarray
  thick: np.ndarray
  opening: float
  square: float


def _lips(p: Person, e: dict[str, float]) -> _Lips:
  half = 0.33 * p.mouth * clip(1 + 0.45 * e['width'], 0.45, 1.5)
  curve = clip(e['curve'] + p.mouth_rest, -1.2, 1.2)
  opening = 0.34 * clip(e['open'], 0.0, 1.1)
  square = clip(e['square'], 0.0, 1.0)
  power = 2.0 + 2.5 * square
  gap = opening * (1.0 - np.abs(_U) ** power) ** (1 / power)
  x = half * _U
  middle = 0.53 + curve * (0.5 + 1.5 * half) * (0.09 - 0.2 * _U**2)
  share = clip(0.42 - 0.3 * curve, 0.12, 0.65)  # a laugh opens downwards, a wail upwards
  upper = middle - share * gap - 0.09 * clip(e['sneer'], 0.0, 1.1) * _LENS * (1.0 + 0.5 * _U)
  lower = middle + (1 - share) * gap + 0.012
  return _Lips(x, upper, lower, p.lip_size * np.sqrt(_LENS) + 0.012, opening, square)


def _mouth(board: Canvas, p: Person, e: dict[str, float]) -> None:
  x, upper, lower, lip, opening, square = _lips(p, e)
  board.band(1.06 * x, upper - lip, lower + 1.2 * lip, p.lip)
  board.band(x, upper - 0.012, lower + 0.012, (74, 24, 30))
  inside = lower - upper
  if opening > 0.17 and square < 0.5:  # the tongue
    board.band(0.75 * x, np.maximum(lower - 0.45 * opening * _LENS, upper), lower - 0.01, (206, 92, 96))
  teeth, clenched = clip(e['teeth'], 0.0, 1.0), square > 0.45
  if teeth > 0.2 and float(inside.max()) > 0.05:
    height = inside if clenched else np.minimum(inside, 0.13 * teeth)
    board.band(0.94 * x, upper, upper + height, (248, 246, 236))
    if clenched:
      board.stroke(0.94 * x + 0.5j * (upper + lower), 0.022, (120, 96, 96))


class _Lids(NamedTuple):
  """An eye: its middle and half its width, how far the lids are from its axis there, and the slope of the upper one."""

  x: float
  y: float
  half: float
  high: float
  low: float
  slant: float

  def at(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both lids' heights at places u [N] of −1..1 from one corner to the other."""
    lens = 1.0 - u * u
    return self.y - self.high * lens * (1 - self.slant * u), self.y + self.low * lens


def _lids(p: Person, e: dict[str, float], side: float) -> _Lids:
  x, y, half, tall = side * p.spacing, -0.07, 0.21 * p.eye, 0.2 * p.eye
  # Brows that slope pull the lid along.
  slant = 0.22 * side * clip(e['inner'] - e['outer'], -1.6, 1.6)
  high = tall * clip(1 + 0.75 * e['lids'], 0.12, 1.6)
  low = max(0.8 * tall * clip(1 - 1.1 * e['squint'], -0.5, 1.15), 0.02 - 0.8 * high)
  return _Lids(x, y, half, high, low, slant)


def _eye(board: Canvas, p: Person, e: dict[str, float], side: float) -> None:
  lids = _lids(p, e, side)
  x, y, half = lids.x, lids.y, lids.half
  across, (upper, lower) = x + half * _U, lids.at(_U)
  board.band(across, upper, lower, (252, 252, 250))
  # The iris is kept between the lids by moving its outline onto them.
  for radius, colour in ((0.125, p.iris), (0.062, (14, 12, 16))):
    disc = radius * p.eye * canvas.CIRCLE
    u = np.clip(disc.real / half, -1.0, 1.0)
    board.shape(x + half * u + 1j * np.clip(y + disc.imag, *lids.at(u)), colour)
  board.stroke(across + 1j * upper, 0.05, INK)
  board.stroke(across + 1j * lower, 0.02, darker(p.skin, 0.5))


def _brow_line(p: Person, e: dict[str, float], side: float) -> np.ndarray:
  """Returns the middle of a brow along _T."""
  inner, outer = clip(e['inner'], -1.2, 1.25), clip(e['outer'], -1.2, 1.25)
  squeeze = clip(e['squeeze'], 0.0, 1.1)
  start, end = p.spacing - 0.19 - 0.08 * squeeze, p.spacing + 0.24
  rise = 0.17 * (inner + (outer - inner) * _T) + 0.025 * np.sin(math.pi * _T) + p.brow_rest
  return side * (start + (end - start) * _T) - 1j * (0.4 + rise)


def _brow(board: Canvas, p: Person, e: dict[str, float], side: float) -> None:
  squeeze = clip(e['squeeze'], 0.0, 1.1)
  board.stroke(_brow_line(p, e, side), p.brow * (1.15 - 0.6 * _T), mix(darker(p.hair, 0.6), INK, 0.35))
  if squeeze > 0.35:
    crease = canvas.path([(side * 0.06, -0.42), (side * 0.045, -0.28)])
    board.stroke(crease, 0.028, clear(darker(p.skin, 0.5), squeeze / 1.1))


def _hair(board: Canvas, p: Person) -> None:
  """Draws the hair or hat over the forehead; the brows come on top of it."""
  if p.style == 'bald':
    return
  x, line = 1.06 * p.width * _U + 0.12 * p.yaw, _HAIRLINES[p.style]
  colour, crown = (p.cloth, _CROWN - 0.08) if p.style == 'hat' else (p.hair, _CROWN)
  board.band(x, np.minimum(crown, line), line, colour)
  if p.style == 'hat':
    board.band(1.03 * x, line - 0.16, line, darker(colour, 0.75))


def background(size: int, rng: np.random.Generator) -> Canvas:
  """Returns a canvas with a plain wall, stripes or spots."""
  base = canvas.hsv(rng.uniform(), rng.uniform(0.05, 0.6), rng.uniform(0.35, 0.95))
  board = Canvas(size, canvas.corners(rng, base, 45))
  tint = canvas.hsv(rng.uniform(), rng.uniform(0.1, 0.6), rng.uniform(0.3, 1.0))
  tint, kind = clear(tint, rng.uniform(0.2, 0.6)), int(rng.integers(3))
  spots, step = rng.uniform(-1.1, 1.1, (7, 3)), rng.uniform(0.3, 0.6)
  board.place(angle=rng.uniform(-1.6, 1.6))
  for k in range(int(3 / step) if kind == 1 else 0):
    board.rectangle(k * step - 1.5, -1.5, (k + 0.5) * step - 1.5, 1.5, tint)
  for x, y, r in spots if kind == 2 else ():
    board.ellipse(x, y, 0.25 + 0.13 * r, 0.25 + 0.13 * r, tint)
  return board


def hide(board: Canvas, rng: np.random.Generator) -> None:
  """Covers a part of one face in six with a bar or a patch, wherever it falls."""
  kind = int(rng.integers(12))
  board.place(rng.uniform(-0.75, 0.75), rng.uniform(-0.5, 0.9), 1.0, rng.uniform(-0.8, 0.8))
  colour = canvas.hsv(rng.uniform(), rng.uniform(0, 0.7), rng.uniform(0.15, 0.95))
  size = rng.uniform(0.2, 0.34)
  if kind < 2:
    long, high = (3.0, size / 2) if kind else (size, size)
    board.rectangle(-long, -high, long, high, colour)

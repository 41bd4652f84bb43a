"""How a cartoon face is drawn from an expression (FIELDS) and a person (face_looks.Person).

Units: half a head's height is 1, around (0, 0); x to the right, y down.
"""

import math

import numpy as np

from mimic_jax.data.drawn import canvas
from mimic_jax.data.drawn.canvas import Canvas, clear, darker, mix
from mimic_jax.data.drawn.face_looks import Person

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

INK = (38, 26, 30)
_U = np.linspace(-1.0, 1.0, 17)  # across an eye, a mouth, a head
_LENS = 1.0 - _U**2
_ROUND = np.sqrt(_LENS)
_T = np.linspace(0.0, 1.0, 9)  # along a brow, from its inner end
_ARCH = np.sin(math.pi * _T)
_SIDES = (-1.0, 1.0)
_LOW = np.maximum(canvas.CIRCLE.imag, 0.0)  # of the points of a head's outline, how far down the jaw
_SQUARED = 1.0 + 0.12 * np.abs(canvas.CIRCLE.real * canvas.CIRCLE.imag)
_DISC = (0.135, 0.115, 0.062)  # radii of an iris' rim, the iris and the pupil

_CURLS = ((-0.8, -0.5), (0.8, -0.5), (-0.9, -0.05), (0.9, -0.05), (-0.45, -0.92), (0.45, -0.92), (0, -1.0))
_FRECKLES = ((-0.55, 0.22), (-0.42, 0.3), (-0.3, 0.2), (0.3, 0.22), (0.44, 0.3), (0.56, 0.2))
_MOUSTACHE = canvas.path([(-0.3, 0.43), (0, 0.33), (0.3, 0.43), (0.26, 0.46), (0, 0.43), (-0.26, 0.46)])
_BEARD_TOP = canvas.path([(-0.5, 0.35), (-0.3, 0.38), (0, 0.35), (0.3, 0.38), (0.5, 0.35)])

# The lower edge of the hair over the forehead, along _U.
_HAIRLINES = {
  'short': -0.66 + 0.3 * _U**4,
  'long': -0.72 + 0.75 * _U**4,
  'curly': -0.68 + 0.3 * _U**4 + 0.05 * np.sin(9 * _U),
  'bun': -0.74 + 0.45 * _U**4,
  'fringe': -0.55 + 0.02 * np.cos(16 * _U) + 0.5 * _U**8,
  'parted': -0.62 - 0.22 * np.exp(-(((_U - 0.35) / 0.25) ** 2)) + 0.35 * _U**4,
  'spikes': -0.7 + 0.07 * np.abs(np.mod(_U * 5, 2) - 1) + 0.3 * _U**4,
  'scarf': -0.6 + 0.55 * _U**4,
  'beanie': -0.58 + 0.06 * _U**2,
}
_CROWN = -1.06 * np.sqrt(1 - (_U * 0.92) ** 2)
_ZIGZAG = 0.16 * (np.arange(17) % 2)


def clip(value: float, low: float, high: float) -> float:
  """Returns `value` kept within [low, high]; for plain floats np.clip is many times slower."""
  return low if value < low else high if value > high else value


def draw(board: Canvas, p: Person, fields: np.ndarray) -> None:
  """Draws person `p` with the expression `fields`, float [13] in the order of FIELDS; 0 is at rest."""
  e = dict(zip(FIELDS, fields.tolist()))
  board.place(p.x, p.y, p.scale, p.roll)
  chin = _outline(p, drop=0.1 * clip(e['open'], 0.0, 1.1))
  cosine, sine = math.cos(p.yaw), math.sin(p.yaw)
  nod = complex(0.5 * sine, p.pitch)

  def turn(points: np.ndarray) -> np.ndarray:
    # The features sit on a bulging front that turns by yaw: x cos + depth sin, less deep to the sides.
    x = points.real
    return points + x * ((cosine - 1.0) - (0.35 * sine) * x) + nod

  _behind(board, p)
  _head(board, p, chin)
  board.warp = turn
  _cheeks(board, p, e)
  _beard(board, p, chin)
  _nose(board, p, e)
  _mouth(board, p, e)
  for side in _SIDES:
    _eye(board, p, e, side)
  board.warp = None
  _hair(board, p)
  board.warp = turn
  for side in _SIDES:
    _brow(board, p, e, side)
  _glasses(board, p)
  board.warp = None


def _outline(p: Person, drop: float) -> np.ndarray:
  """Returns the outline [28] of the head, its chin lower by `drop`."""
  x = p.width * canvas.CIRCLE.real * (1 - (0.1 + 0.22 * p.jaw) * _LOW**2) * _SQUARED
  return x + 1j * (0.95 * canvas.CIRCLE.imag + (0.05 + drop) * _LOW)


def _behind(board: Canvas, p: Person) -> None:
  """Draws what is behind the head: long hair, neck, shoulders."""
  w = p.width
  if p.style == 'long':
    tone = darker(p.hair, 0.8)
    board.ellipse(0, -0.15, w + 0.17, 0.95, tone)
    board.polygon([(-w - 0.17, -0.15), (w + 0.17, -0.15), (w + 0.22, 1.25), (-w - 0.22, 1.25)], tone)
  elif p.style == 'curly':
    for x, y in _CURLS:
      board.ellipse(x * (w + 0.15), y, 0.34, 0.34, darker(p.hair, 0.85))
  elif p.style == 'bun':
    board.ellipse(0.1, -1.12, 0.32, 0.28, darker(p.hair, 0.85))
  elif p.style == 'scarf':
    tone = darker(p.cloth, 0.75)
    board.ellipse(0, 0, w + 0.2, 1.22, tone)
    board.polygon([(-w, 0.5), (w, 0.5), (w + 0.25, 2.2), (-w - 0.25, 2.2)], tone)
  board.rectangle(-0.32, 0.6, 0.32, 1.5, darker(p.skin, 0.78))
  board.ellipse(0, 1.95, 1.15, 0.72, p.cloth)


def _head(board: Canvas, p: Person, outline: np.ndarray) -> None:
  edge = darker(p.skin, 0.6)
  if p.style != 'scarf':
    for side in _SIDES:
      x = side * (p.width + 0.015) - 0.1 * p.yaw
      board.ellipse(x, 0.05, 0.15, 0.22, edge)
      board.ellipse(x, 0.05, 0.11, 0.18, darker(p.skin, 0.92))
  board.shape(outline * 1.04, edge)
  board.shape(outline, p.skin)


def _cheeks(board: Canvas, p: Person, e: dict[str, float]) -> None:
  raised = clip(e['cheek'], 0.0, 1.2)
  for side in _SIDES:
    x, y = side * 0.47, 0.34 - 0.07 * raised
    colour = min(p.blush + 0.25 * raised, 0.7)
    if colour > 0.05:
      board.ellipse(x, y, 0.19, 0.13, clear((236, 96, 90), colour))
    if raised > 0.3:
      fold = (x + 0.16 * _U) + 1j * (y - 0.13 - 0.05 * _LENS)
      board.stroke(fold, 0.03, clear(darker(p.skin, 0.6), min(0.8 * raised, 1.0)))
  if p.freckles:
    for x, y in _FRECKLES:
      board.ellipse(x, y, 0.03, 0.03, darker(p.skin, 0.7))


def _beard(board: Canvas, p: Person, outline: np.ndarray) -> None:
  if p.beard == 'moustache':
    board.shape(_MOUSTACHE, darker(p.hair, 0.9))
  elif p.beard:
    jaw = outline[canvas.CIRCLE.imag > 0.3] * 0.975
    board.shape(np.concatenate([jaw, _BEARD_TOP]), clear(p.hair, 0.3 if p.beard == 'stubble' else 0.95))


def _nose(board: Canvas, p: Person, e: dict[str, float]) -> None:
  shade, line = darker(p.skin, 0.82), darker(p.skin, 0.58)
  n = p.nose_size
  y = 0.22 - 0.04 * clip(max(e['sneer'], e['wrinkle']), 0.0, 1.2)
  if p.nose == 0:
    board.ellipse(0, y, 0.12 * n, 0.09 * n, shade)
  elif p.nose == 1:
    board.polygon([(-0.02, -0.1), (0.05, -0.1), (0.14 * n, y + 0.04), (-0.12 * n, y + 0.06)], shade)
  else:
    bridge = canvas.path([(0.04, -0.12), (0.09 * n, y - 0.05), (0.1 * n, y + 0.04), (-0.06 * n, y + 0.06)])
    board.stroke(bridge, 0.04, line)
  for side in _SIDES:
    board.ellipse(side * 0.07 * n, y + 0.06, 0.03 * n, 0.022 * n, line)
  wrinkle = clip(e['wrinkle'], 0.0, 1.0)
  if wrinkle > 0.25:
    for k in range(3):
      fold = (0.1 - 0.02 * k) * _U + 1j * (0.09 * k - 0.14 - 0.03 * _LENS)
      board.stroke(fold, 0.032, clear(line, wrinkle))
  sneer = clip(e['sneer'], 0.0, 1.0)
  if sneer > 0.25:
    for side in _SIDES:
      fold = canvas.path([(side * 0.16 * n, y), (side * 0.3, y + 0.1), (side * 0.37, y + 0.26)])
      board.stroke(fold, 0.035, clear(line, sneer))


def _mouth(board: Canvas, p: Person, e: dict[str, float]) -> None:
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
  lip = p.lip_size * _ROUND + 0.012
  board.band(1.06 * x, upper - lip, lower + 1.2 * lip, p.lip)
  board.band(x, upper - 0.012, lower + 0.012, (74, 24, 30))
  inside = lower - upper
  highest = float(inside.max())
  if opening > 0.17 and square < 0.5:
    tongue = np.maximum(lower - 0.45 * opening * _LENS, upper)
    board.band(0.75 * x, tongue, lower - 0.01, (206, 92, 96))
  teeth = clip(e['teeth'], 0.0, 1.0)
  if teeth > 0.2 and highest > 0.05:
    clenched = square > 0.45
    height = inside if clenched else np.minimum(inside, 0.13 * teeth)
    board.band(0.94 * x, upper, upper + height, (248, 246, 236))
    if clenched and highest > 0.09:
      board.stroke(0.94 * x + 0.5j * (upper + lower), 0.022, (120, 96, 96))
  if curve < -0.35:  # a shadow under the lower lip
    board.stroke(0.4 * x + 1j * (lower + lip + 0.08), 0.025, clear(darker(p.skin, 0.6), 0.6))


def _eye(board: Canvas, p: Person, e: dict[str, float], side: float) -> None:
  x, y, half, tall = side * p.spacing, -0.07, 0.21 * p.eye, 0.2 * p.eye
  # Brows that slope pull the lid along.
  slant = 0.22 * side * clip(e['inner'] - e['outer'], -1.6, 1.6)
  high = tall * clip(1 + 0.75 * e['lids'], 0.12, 1.6)
  low = max(0.8 * tall * clip(1 - 1.1 * e['squint'], -0.5, 1.15), 0.02 - 0.8 * high)
  upper = y - high * _LENS * (1 - slant * _U)
  lower = y + low * _LENS
  across = x + half * _U
  board.band(across, upper, lower, (252, 252, 250))
  # The iris is kept between the lids by moving its outline onto them.
  disc = np.outer(_DISC, canvas.CIRCLE) * p.eye
  u = np.clip(disc.real / half, -1.0, 1.0)
  lens = 1.0 - u * u
  disc = x + half * u + 1j * np.clip(y + disc.imag, y - high * lens * (1 - slant * u), y + low * lens)
  for points, colour in zip(disc, (darker(p.iris, 0.7), p.iris, (14, 12, 16))):
    board.shape(points, colour)
  if high > 0.1:
    board.ellipse(x + 0.04, y - 0.05, 0.032, 0.032, (255, 255, 255))
  board.stroke(across + 1j * upper, 0.05, INK)
  board.stroke(across + 1j * lower, 0.02, darker(p.skin, 0.5))
  if e['lids'] < -0.25:  # the fold of a drooping lid
    board.stroke(across + 1j * (upper - 0.09 * _LENS), 0.025, darker(p.skin, 0.62))


def _brow(board: Canvas, p: Person, e: dict[str, float], side: float) -> None:
  inner, outer = clip(e['inner'], -1.2, 1.25), clip(e['outer'], -1.2, 1.25)
  squeeze = clip(e['squeeze'], 0.0, 1.1)
  start, end = p.spacing - 0.19 - 0.08 * squeeze, p.spacing + 0.24
  rise = 0.17 * (inner + (outer - inner) * _T) + 0.05 * p.arch * _ARCH + p.brow_rest
  points = side * (start + (end - start) * _T) - 1j * (0.4 + rise)
  board.stroke(points, p.brow * (1.15 - 0.6 * _T), mix(darker(p.hair, 0.6), INK, 0.35))
  if squeeze > 0.35:
    crease = canvas.path([(side * 0.06, -0.42), (side * 0.045, -0.28)])
    board.stroke(crease, 0.028, clear(darker(p.skin, 0.5), squeeze / 1.1))


def _hair(board: Canvas, p: Person) -> None:
  """Draws the hair or cloth over the forehead; the brows come on top of it."""
  if p.style == 'bald':
    return
  x, line, crown = 1.06 * p.width * _U + 0.12 * p.yaw, _HAIRLINES[p.style], _CROWN
  colour = p.cloth if p.style in ('scarf', 'beanie') else p.hair
  if p.style == 'spikes':
    crown = crown - _ZIGZAG
  elif p.style in ('beanie', 'curly'):
    crown = crown - 0.08
  board.band(x, np.minimum(crown, line), line, colour)
  if p.style == 'beanie':
    board.band(1.03 * x, line - 0.16, line, darker(colour, 0.75))
  elif p.style != 'scarf':
    shine = 0.5 * x - 0.2 * p.width - 1j * (0.82 + 0.06 * _LENS)
    board.stroke(shine, 0.05, clear((255, 255, 255), 0.18))


def _glasses(board: Canvas, p: Person) -> None:
  if not p.glasses:
    return
  frame, y, r = darker(p.cloth, 0.45), -0.05, 0.29
  for side in _SIDES:
    x = side * p.spacing
    if p.glasses == 'tinted':
      board.ellipse(x, y, r, 0.95 * r, clear(darker(p.cloth, 0.4), 0.45))
    if p.glasses == 'square':
      for dy in (-0.23, 0.23):
        board.stroke(canvas.path([(x - r - 0.02, y + dy), (x + r + 0.02, y + dy)]), 0.05, frame)
      for dx in (-r, r):
        board.stroke(canvas.path([(x + dx, y - 0.23), (x + dx, y + 0.23)]), 0.05, frame)
    else:
      board.ring(x, y, r, 0.95 * r, 0.05, frame)
    board.stroke(canvas.path([(side * (p.spacing + r), y - 0.04), (side * 0.9, y - 0.08)]), 0.045, frame)
  board.stroke(canvas.path([(r - p.spacing, y - 0.02), (p.spacing - r, y - 0.02)]), 0.045, frame)

"""Outdoor pictures for synthetic_images: (size in pixels, generator) -> a finished Canvas.

The picture spans [−1, 1] on both axes, x to the right, y down.
"""

import math

import numpy as np

from mimic_jax.data.drawn import canvas
from mimic_jax.data.drawn.canvas import Canvas, Colour, clear, darker, mix

_X = np.linspace(-1.3, 1.3, 40)
_SKIES = (  # top, horizon
  ((84, 150, 222), (206, 232, 248)),  # noon
  ((70, 96, 168), (250, 190, 130)),  # evening
  ((120, 140, 160), (200, 206, 210)),  # overcast
  ((150, 120, 190), (255, 208, 196)),  # dawn
  ((64, 168, 208), (230, 246, 214)),
)


def _sky(size: int, rng: np.random.Generator) -> tuple[Canvas, Colour]:
  """Returns a canvas under a sky, and the colour of the air at the horizon."""
  top, low = _SKIES[int(rng.integers(len(_SKIES)))]
  rows = np.array([[top, top], [low, low]], np.float64) + rng.uniform(-14, 14, (2, 1, 3))
  board = Canvas(size, rows)
  if rng.random() < 0.6:
    x, y, r = rng.uniform(-0.85, 0.85), rng.uniform(-0.85, -0.3), rng.uniform(0.1, 0.22)
    board.ellipse(x, y, 1.5 * r, 1.5 * r, (255, 244, 190, 90))
    board.ellipse(x, y, r, r, mix((255, 236, 150), (255, 150, 80), rng.random()))
  for _ in range(int(rng.integers(4))):
    _cloud(board, rng)
  return board, low


def _cloud(board: Canvas, rng: np.random.Generator) -> None:
  x, y, s = rng.uniform(-1, 1), rng.uniform(-0.95, -0.35), rng.uniform(0.1, 0.24)
  for k in range(int(rng.integers(3, 6))):
    r = s * rng.uniform(0.5, 1.0)
    board.ellipse(x + (k - 2) * s * 0.8, y - 0.3 * r, 1.2 * r, 0.8 * r, (255, 255, 255, 215))


def _ridge(rng: np.random.Generator, height: float, rough: float) -> np.ndarray:
  """Returns the height y [40] of a line of hills over _X; `rough` adds peaks."""
  line = height + 0.0 * _X
  for wave in range(1, 4):
    line = line + rng.uniform(-0.16, 0.16) / wave * np.sin(_X * 2.0 * wave + rng.uniform(0, 6.28))
  peaks = rng.uniform(-1.2, 1.2, 4)
  for peak in peaks:
    line = line - rough * rng.uniform(0.4, 1.0) * np.maximum(
      0.0, 1.0 - np.abs(_X - peak) / rng.uniform(0.25, 0.55)
    )
  return line


def _ground(board: Canvas, line: np.ndarray, colour: Colour) -> None:
  board.band(_X, line, np.full_like(line, 1.3), colour)


def tree(board: Canvas, rng: np.random.Generator, x: float, y: float, s: float) -> None:
  """Draws a tree, about 2·s high, with its foot at (x, y): fir, round, poplar, palm or bare."""
  kind = int(rng.integers(5))
  bark = mix((96, 64, 40), (60, 48, 44), rng.random())
  leaf = canvas.hsv(rng.uniform(0.18, 0.42), rng.uniform(0.35, 0.8), rng.uniform(0.3, 0.7))
  if rng.random() < 0.15:
    leaf = canvas.hsv(rng.uniform(0.02, 0.12), 0.75, 0.8)
  board.stroke(canvas.path([(x, y), (x, y - s)]), np.array([0.2 * s, 0.13 * s]), bark)
  if kind == 0:
    for k in range(3):
      base, wide = y - (0.45 + 0.5 * k) * s, (0.7 - 0.17 * k) * s
      board.polygon([(x - wide, base), (x + wide, base), (x, base - 0.85 * s)], darker(leaf, 0.85 + 0.12 * k))
  elif kind == 1:
    board.ellipse(x, y - 1.35 * s, 0.68 * s, 0.66 * s, darker(leaf, 0.8))
    board.ellipse(x - 0.12 * s, y - 1.48 * s, 0.5 * s, 0.47 * s, leaf)
  elif kind == 2:
    board.ellipse(x, y - 1.35 * s, 0.32 * s, 0.95 * s, leaf)
  elif kind == 3:
    board.stroke(canvas.path([(x, y - s), (x + 0.12 * s, y - 1.6 * s)]), 0.12 * s, bark)
    for turn in np.linspace(-2.9, -0.2, 6):
      tip = canvas.path(
        [
          (0, 0),
          (0.5 * math.cos(turn), 0.45 * math.sin(turn)),
          (0.95 * math.cos(turn), 0.4 * math.sin(turn) + 0.2),
        ]
      )
      board.stroke(complex(x + 0.12 * s, y - 1.6 * s) + s * tip, s * np.array([0.12, 0.16, 0.02]), leaf)
  else:
    for side, high in ((-1, 0.75), (1, 0.95), (-1, 1.2), (1, 1.35)):
      branch = canvas.path([(x, y - high * s), (x + side * 0.45 * s, y - (high + 0.5) * s)])
      board.stroke(branch, np.array([0.1, 0.03]) * s, bark)
    board.stroke(canvas.path([(x, y - s), (x, y - 1.9 * s)]), np.array([0.12, 0.03]) * s, bark)


def landscape(size: int, rng: np.random.Generator) -> Canvas:
  """Draws hills or mountains in layers, with trees, and a river or a path on some."""
  board, air = _sky(size, rng)
  hue, rough = rng.uniform(0.08, 0.45), rng.uniform(0.0, 0.5)
  layers = int(rng.integers(2, 5))
  horizon = rng.uniform(-0.2, 0.25)
  for k in range(layers):
    near = (k + 1) / layers
    line = _ridge(rng, horizon + 0.6 * k / layers, rough * (1 - near))
    green = canvas.hsv(hue + rng.uniform(-0.03, 0.03), rng.uniform(0.35, 0.7), rng.uniform(0.4, 0.7))
    _ground(board, line, mix(air, green, 0.35 + 0.65 * near))
    if k == layers - 1 and rng.random() < 0.4:
      _winding(board, rng, float(line[20]))
    for _ in range(int(rng.integers(0, 4))):
      at = int(rng.integers(5, 35))
      tree(board, rng, float(_X[at]), float(line[at]) + 0.04, rng.uniform(0.1, 0.16) + 0.16 * near)
  return board


def _winding(board: Canvas, rng: np.random.Generator, top: float) -> None:
  """Draws a river or a path that widens towards the viewer."""
  t = np.linspace(0.0, 1.0, 12)
  x = rng.uniform(-0.4, 0.4) + 0.3 * rng.uniform(-1, 1) * np.sin(5 * t + rng.uniform(0, 6)) * t
  colour = (120, 176, 214) if rng.random() < 0.5 else (204, 180, 138)
  board.stroke(x + 1j * (top + (1.2 - top) * t), 0.05 + 0.45 * t**1.5, colour)


def village(size: int, rng: np.random.Generator) -> Canvas:
  """Draws houses on a meadow before hills, with trees and fences."""
  board, air = _sky(size, rng)
  meadow = canvas.hsv(rng.uniform(0.12, 0.4), rng.uniform(0.35, 0.65), rng.uniform(0.5, 0.75))
  _ground(board, _ridge(rng, 0.0, 0.25), mix(air, meadow, 0.5))
  _ground(board, _ridge(rng, 0.35, 0.0), meadow)
  count = int(rng.integers(1, 4))
  for k in range(count):
    x = (k + 0.5) / count * 2 - 1 + rng.uniform(-0.15, 0.15)
    tree(board, rng, x + rng.uniform(0.3, 0.5), rng.uniform(0.4, 0.5), rng.uniform(0.2, 0.36))
    _house(board, rng, x, rng.uniform(0.55, 0.75), rng.uniform(0.3, 0.42) * (1.25 if count == 1 else 0.9))
  if rng.random() < 0.4:
    wood = mix((240, 236, 228), (140, 100, 70), rng.random())
    for k in range(11):
      board.rectangle(0.2 * k - 1.05, 0.72, 0.2 * k - 0.98, 1.0, wood)
    board.rectangle(-1, 0.79, 1, 0.84, wood)
  return board


def _house(board: Canvas, rng: np.random.Generator, x: float, y: float, s: float) -> None:
  """Draws a house, 2·s wide, with its foot at (x, y): a gable or a long roof, door at a side, windows."""
  wall = canvas.hsv(rng.uniform(0, 1), rng.uniform(0.05, 0.4), rng.uniform(0.75, 1.0))
  roof = canvas.hsv(rng.uniform(0.95, 1.1), rng.uniform(0.4, 0.8), rng.uniform(0.35, 0.75))
  high = s * rng.uniform(0.9, 1.3)
  peak = y - high - s * rng.uniform(0.5, 0.9)
  if rng.random() < 0.5:
    board.rectangle(x + 0.35 * s, peak - 0.05, x + 0.6 * s, y - high, darker(roof, 0.7))
  board.rectangle(x - s, y - high, x + s, y, wall)
  board.rectangle(x + 0.45 * s, y - high, x + s, y, darker(wall, 0.85))
  ridge = (x, x) if rng.random() < 0.5 else (x - 0.6 * s, x + 0.6 * s)
  board.polygon([(x - 1.2 * s, y - high), (ridge[0], peak), (ridge[1], peak), (x + 1.2 * s, y - high)], roof)
  door = x + s * float(rng.choice([-0.65, 0.6]))
  board.rectangle(door - 0.18 * s, y - 0.6 * s, door + 0.18 * s, y, darker(roof, 0.6))
  glass = (92, 124, 150) if rng.random() < 0.7 else (250, 226, 140)
  side = -1 if door > x else 1
  for k in range(int(rng.integers(1, 4))):
    left = x + side * (0.05 + 0.34 * k) * s
    board.rectangle(left - 0.13 * s, y - 0.75 * s, left + 0.13 * s, y - 0.4 * s, (250, 250, 246))
    board.rectangle(left - 0.09 * s, y - 0.71 * s, left + 0.09 * s, y - 0.44 * s, glass)


def city(size: int, rng: np.random.Generator) -> Canvas:
  """Draws rows of buildings with lit windows, by day or by night, over a street or water."""
  night = rng.random() < 0.4
  if night:
    low = canvas.hsv(rng.uniform(0.6, 0.95), 0.5, 0.4)
    board = Canvas(size, np.array([[(16, 18, 44)] * 2, [low] * 2], np.float64))
  else:
    board, low = _sky(size, rng)
  floor = rng.uniform(0.45, 0.8)
  hue = rng.uniform()
  for row in range(2):
    x = -1.1
    while x < 1.1:
      wide, high = rng.uniform(0.22, 0.5), rng.uniform(0.4, 1.4) - 0.25 * row
      wall = canvas.hsv(
        hue + rng.uniform(-0.15, 0.15),
        rng.uniform(0.05, 0.4),
        rng.uniform(0.12, 0.3) if night else rng.uniform(0.4, 0.85),
      )
      _building(
        board,
        rng,
        x,
        floor - high,
        x + wide,
        floor,
        mix(low, wall, 0.55 + 0.45 * row),
        night,
        windows=row == 1,
      )
      x += wide + rng.uniform(0.0, 0.35) * row
  board.rectangle(-1.1, floor, 1.1, 1.1, mix((70, 72, 80), (60, 100, 130), rng.random()))
  for k in range(6):
    board.rectangle(
      0.4 * k - 1.1, 0.5 * (floor + 1) - 0.02, 0.4 * k - 0.9, 0.5 * (floor + 1) + 0.02, (235, 230, 200, 150)
    )
  return board


def _building(
  board: Canvas,
  rng: np.random.Generator,
  left: float,
  top: float,
  right: float,
  foot: float,
  wall: Colour,
  night: bool,
  windows: bool,
) -> None:
  board.rectangle(left, top, right, foot, wall)
  board.rectangle(left + 0.7 * (right - left), top, right, foot, darker(wall, 0.82))
  kind = int(rng.integers(4))
  if kind == 0:
    middle = (left + right) / 2
    board.polygon([(left, top), (middle, top - 0.2), (right, top)], darker(wall, 0.75))
  elif kind == 1:
    board.rectangle((left + right) / 2 - 0.01, top - 0.25, (left + right) / 2 + 0.02, top, darker(wall, 0.7))
  if not windows:
    return
  columns, rows = max(2, int((right - left) / 0.12)), int((foot - top) / 0.16)
  lit = rng.random((rows, columns))
  pane = (right - left) / columns
  for r in range(rows):
    for c in range(columns):
      bright = lit[r, c] < (0.45 if night else 0.15)
      tone = (255, 222, 130) if bright else darker(wall, 0.6)
      x, y = left + (c + 0.25) * pane, top + 0.05 + 0.16 * r
      board.rectangle(x, y, x + 0.5 * pane, y + 0.09, tone)


def sea(size: int, rng: np.random.Generator) -> Canvas:
  """Draws waves with boats, an island, a lighthouse or a beach."""
  board, air = _sky(size, rng)
  horizon = rng.uniform(-0.25, 0.25)
  deep = canvas.hsv(rng.uniform(0.47, 0.62), rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.75))
  if rng.random() < 0.5:
    x, w = rng.uniform(-0.7, 0.7), rng.uniform(0.3, 0.7)
    rock = mix((90, 110, 90), (120, 100, 90), rng.random())
    board.ellipse(x, horizon, w, rng.uniform(0.12, 0.3), mix(air, rock, 0.8))
    if rng.random() < 0.5:
      _lighthouse(board, x, horizon - 0.1)
  layers = int(rng.integers(4, 8))
  swell = rng.uniform(0.01, 0.09)
  boat = int(rng.integers(-1, layers - 1))
  for k in range(layers):
    near = k / (layers - 1)
    y = horizon + (1 - horizon) * near**1.2 * 0.9
    crest = y + swell * (0.3 + near) * np.sin(_X * (14 - 8 * near) + rng.uniform(0, 6.28))
    if k == 0:
      crest = np.full_like(crest, y)
    _ground(board, crest, mix(mix(air, deep, 0.5), deep, near))
    if k:
      board.stroke(_X + 1j * crest, 0.02 + 0.03 * near, (255, 255, 255, 150))
    if k == boat:
      _boat(board, rng, rng.uniform(-0.6, 0.6), y + 0.05, rng.uniform(0.15, 0.22) + 0.2 * near)
  if rng.random() < 0.35:
    _ground(board, 0.72 + 0.1 * np.sin(_X * 2 + rng.uniform(0, 6.28)), (232, 206, 150))
  return board


def _lighthouse(board: Canvas, x: float, y: float) -> None:
  for k in range(4):
    wide = 0.07 - 0.008 * k
    board.rectangle(
      x - wide, y - 0.13 * (k + 1), x + wide, y - 0.13 * k, (214, 70, 60) if k % 2 else (245, 240, 232)
    )
  board.rectangle(x - 0.05, y - 0.6, x + 0.05, y - 0.52, (255, 226, 130))
  board.polygon([(x - 0.07, y - 0.6), (x, y - 0.7), (x + 0.07, y - 0.6)], (120, 40, 40))


def _boat(board: Canvas, rng: np.random.Generator, x: float, y: float, s: float) -> None:
  hull = canvas.hsv(rng.uniform(), rng.uniform(0.3, 0.8), rng.uniform(0.3, 0.8))
  sail = canvas.hsv(rng.uniform(), rng.uniform(0, 0.5), rng.uniform(0.85, 1))
  board.rectangle(x - 0.03 * s, y - 2.0 * s, x + 0.05 * s, y, (90, 64, 44))
  board.polygon([(x + 0.1 * s, y - 1.95 * s), (x + 1.0 * s, y - 0.2 * s), (x + 0.1 * s, y - 0.2 * s)], sail)
  board.polygon(
    [(x - 0.1 * s, y - 1.6 * s), (x - 0.7 * s, y - 0.2 * s), (x - 0.1 * s, y - 0.2 * s)], darker(sail, 0.85)
  )
  board.polygon(
    [
      (x - s, y - 0.1 * s),
      (x + 1.15 * s, y - 0.1 * s),
      (x + 0.75 * s, y + 0.4 * s),
      (x - 0.7 * s, y + 0.4 * s),
    ],
    hull,
  )


def night_sky(size: int, rng: np.random.Generator) -> Canvas:
  """Draws stars, a moon, a planet or northern lights over a dark ridge."""
  top = canvas.hsv(rng.uniform(0.58, 0.78), rng.uniform(0.5, 0.9), rng.uniform(0.08, 0.25))
  low = canvas.hsv(rng.uniform(0.5, 0.9), rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.55))
  board = Canvas(size, np.array([[top, top], [low, low]], np.float64))
  kind = int(rng.integers(3))
  if kind == 0:
    for _ in range(3):
      y = rng.uniform(-0.7, 0.0) + 0.15 * np.sin(_X * rng.uniform(1, 4) + rng.uniform(0, 6.28))
      glow = canvas.hsv(rng.uniform(0.35, 0.85), 0.6, 0.9)
      for wide, alpha in ((0.5, 0.15), (0.28, 0.22), (0.1, 0.35)):
        board.band(_X, y - wide, y + 0.3 * wide, clear(glow, alpha))
  for x, y, r in rng.uniform(0, 1, (int(rng.integers(12, 45)), 3)):
    board.ellipse(2 * x - 1, 1.7 * y - 1, 0.012 + 0.022 * r**3, 0.012 + 0.022 * r**3, (255, 250, 225))
  x, y, r = rng.uniform(-0.7, 0.7), rng.uniform(-0.75, -0.2), rng.uniform(0.14, 0.34)
  if kind == 1:
    disc = canvas.hsv(rng.uniform(), rng.uniform(0.2, 0.6), 0.85)
    board.ellipse(x, y, r, r, disc)
    for k in range(3):
      h = r * (0.5 * k - 0.45)
      w = math.sqrt(r * r - h * h) * 0.96
      board.rectangle(x - w, y + h - 0.02, x + w, y + h + 0.05, darker(disc, 0.78))
    board.stroke(canvas.ellipse(x, y, 1.7 * r, 0.35 * r, -0.3)[:15], 0.05, (240, 226, 190))
  else:
    board.ellipse(x, y, 1.35 * r, 1.35 * r, (255, 250, 220, 40))
    if rng.random() < 0.5:
      arc = np.exp(1j * np.linspace(0.5, 1.5, 20) * math.pi)
      moon = np.concatenate([arc, (0.35 * arc.real + 1j * arc.imag)[::-1]]) * np.exp(
        1j * rng.uniform(-0.6, 0.6)
      )
      board.shape(complex(x, y) + r * moon, (250, 244, 214))
    else:
      board.ellipse(x, y, r, r, (250, 244, 214))
      for dx, dy, s in ((-0.3, -0.2, 0.2), (0.35, 0.3, 0.26), (0.1, -0.5, 0.14), (-0.2, 0.45, 0.16)):
        board.ellipse(x + dx * r, y + dy * r, s * r, s * r, (222, 214, 184))
  line = _ridge(rng, rng.uniform(0.45, 0.7), rng.uniform(0.0, 0.4))
  _ground(board, line, darker(top, 0.5))
  for at in rng.integers(4, 36, int(rng.integers(0, 5))):
    base, s = float(line[at]) + 0.05, rng.uniform(0.15, 0.35)
    board.polygon(
      [(_X[at] - 0.35 * s, base), (_X[at] + 0.35 * s, base), (_X[at], base - 1.6 * s)], darker(top, 0.4)
    )
  return board

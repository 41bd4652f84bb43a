"""Pictures for synthetic_images: (size in pixels, generator) -> a finished Canvas, spanning [−1, 1], x to the right, y down."""

import math

import numpy as np

from mimic_jax.data.drawn import canvas
from mimic_jax.data.drawn.canvas import Canvas, Colour, clear, darker, mix

_X = np.linspace(-1.5, 1.5, 48)
_S = np.linspace(0.0, 1.0, 12)
_SKIES = (  # top, horizon
  ((84, 150, 222), (206, 232, 248)),  # noon
  ((70, 96, 168), (250, 190, 130)),  # evening
  ((120, 140, 160), (200, 206, 210)),  # overcast
  ((18, 20, 56), (92, 70, 120)),  # night
)


def _sky(size: int, rng: np.random.Generator) -> tuple[Canvas, Colour]:
  """Returns a canvas under a sky with sun or moon, clouds or stars, and the colour of the air at the horizon."""
  top, low = _SKIES[int(rng.integers(len(_SKIES)))]
  board = Canvas(size, np.array([[top, top], [low, low]], np.float64) + rng.uniform(-14, 14, (2, 1, 3)))
  if sum(top) < 200:
    for x, y, r in rng.uniform(0, 1, (30, 3)):
      board.ellipse(2 * x - 1, 1.7 * y - 1, 0.03 * r, 0.03 * r, (255, 250, 225))
  x, y, r = rng.uniform(-0.85, 0.85), rng.uniform(-0.85, -0.3), rng.uniform(0.1, 0.25)
  board.ellipse(x, y, 1.5 * r, 1.5 * r, (255, 244, 190, 80))
  board.ellipse(x, y, r, r, mix((255, 240, 190), (255, 150, 80), rng.random()))
  for _ in range(int(rng.integers(4))):
    x, y, r = rng.uniform(-1, 1), rng.uniform(-0.95, -0.35), rng.uniform(0.1, 0.24)
    for k in range(4):
      s = r * rng.uniform(0.5, 1.0)
      board.ellipse(
        x + (k - 2) * r * 0.8, y - 0.3 * s, 1.2 * s, 0.8 * s, (*mix(low, (255, 255, 255), 0.7), 215)
      )
  return board, low


def _below(board: Canvas, line: np.ndarray, colour: Colour) -> None:
  board.band(_X, line, np.full_like(line, 1.3), colour)


def _tree(board: Canvas, rng: np.random.Generator, x: float, y: float, s: float) -> None:
  """Draws a fir or a leaf tree, about 2·s high, with its foot at (x, y)."""
  leaf = canvas.hsv(rng.uniform(0.05, 0.42), rng.uniform(0.35, 0.8), rng.uniform(0.3, 0.7))
  board.rectangle(x - 0.1 * s, y - s, x + 0.1 * s, y, (96, 64, 44))
  if rng.random() < 0.5:
    for k in range(3):
      base, wide = y - (0.45 + 0.5 * k) * s, (0.7 - 0.17 * k) * s
      board.polygon([(x - wide, base), (x + wide, base), (x, base - 0.85 * s)], darker(leaf, 0.85 + 0.12 * k))
  else:
    wide = rng.uniform(0.35, 0.7) * s
    board.ellipse(x, y - 1.35 * s, wide, 0.7 * s, darker(leaf, 0.8))
    board.ellipse(x - 0.12 * s, y - 1.48 * s, 0.7 * wide, 0.5 * s, leaf)


def landscape(size: int, rng: np.random.Generator) -> Canvas:
  """Draws hills or mountains in layers, with trees."""
  board, air = _sky(size, rng)
  hue, rough, layers = rng.uniform(0.08, 0.45), rng.uniform(0.0, 0.5), int(rng.integers(2, 5))
  horizon = rng.uniform(-0.2, 0.25)
  for k in range(layers):
    near = (k + 1) / layers
    line = horizon + 0.6 * k / layers + 0.0 * _X
    for wave in range(1, 4):
      line = line + rng.uniform(-0.16, 0.16) / wave * np.sin(_X * 2.0 * wave + rng.uniform(0, 6.28))
    for peak in rng.uniform(-1.2, 1.2, 4):
      line = line - rough * (1 - near) * np.maximum(0.0, 1.0 - np.abs(_X - peak) / rng.uniform(0.25, 0.55))
    green = canvas.hsv(hue + rng.uniform(-0.03, 0.03), rng.uniform(0.35, 0.7), rng.uniform(0.4, 0.7))
    _below(board, line, mix(air, green, 0.35 + 0.65 * near))
    for at in rng.integers(8, 40, int(rng.integers(0, 4))):
      _tree(board, rng, float(_X[at]), float(line[at]) + 0.04, rng.uniform(0.1, 0.16) + 0.2 * near)
  return board


def city(size: int, rng: np.random.Generator) -> Canvas:
  """Draws two rows of buildings with lit windows over a street or water."""
  board, low = _sky(size, rng)
  floor, hue, lights = rng.uniform(0.45, 0.8), rng.uniform(), rng.uniform(0.1, 0.6)
  for row in range(2):
    x = -1.1
    while x < 1.1:
      wide, high = rng.uniform(0.22, 0.5), rng.uniform(0.4, 1.4) - 0.25 * row
      tone = canvas.hsv(hue + rng.uniform(-0.15, 0.15), rng.uniform(0.05, 0.4), rng.uniform(0.2, 0.85))
      wall = mix(low, tone, 0.55 + 0.45 * row)
      board.rectangle(x, floor - high, x + wide, floor, wall)
      board.rectangle(x + 0.7 * wide, floor - high, x + wide, floor, darker(wall, 0.82))
      if rng.random() < 0.3:
        roof = [(x, floor - high), (x + wide / 2, floor - high - 0.2), (x + wide, floor - high)]
        board.polygon(roof, darker(wall, 0.75))
      columns = max(2, int(wide / 0.12)) * row
      for r in range(int(high / 0.16)):
        for c in range(columns):
          left, top = x + (c + 0.25) * wide / columns, floor - high + 0.05 + 0.16 * r
          pane = (255, 222, 130) if rng.random() < lights else darker(wall, 0.6)
          board.rectangle(left, top, left + 0.5 * wide / columns, top + 0.09, pane)
      x += wide + rng.uniform(0.0, 0.35) * row
  board.rectangle(-1.1, floor, 1.1, 1.1, mix((70, 72, 80), (60, 100, 130), rng.random()))
  return board


def sea(size: int, rng: np.random.Generator) -> Canvas:
  """Draws waves with a sailing boat and an island."""
  board, air = _sky(size, rng)
  horizon, swell = rng.uniform(-0.25, 0.25), rng.uniform(0.01, 0.09)
  deep = canvas.hsv(rng.uniform(0.47, 0.62), rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.75))
  island = mix(air, (110, 104, 92), 0.8)
  board.ellipse(rng.uniform(-1, 1), horizon, rng.uniform(0.2, 0.7), rng.uniform(0.0, 0.3), island)
  layers = int(rng.integers(4, 8))
  boat = int(rng.integers(layers))
  for k in range(layers):
    near = k / (layers - 1)
    y = horizon + (1 - horizon) * near**1.2 * 0.9
    crest = y + swell * (0.3 + near) * np.sin(_X * (14 - 8 * near) + rng.uniform(0, 6.28)) * (k > 0)
    _below(board, crest, mix(mix(air, deep, 0.5), deep, near))
    board.stroke(_X + 1j * crest, 0.02 + 0.03 * near, (255, 255, 255, 150))
    if k == boat:
      _boat(board, rng, rng.uniform(-0.6, 0.6), y + 0.05, rng.uniform(0.15, 0.22) + 0.2 * near)
  return board


def _boat(board: Canvas, rng: np.random.Generator, x: float, y: float, s: float) -> None:
  hull = canvas.hsv(rng.uniform(), rng.uniform(0.3, 0.8), rng.uniform(0.3, 0.8))
  sail = canvas.hsv(rng.uniform(), rng.uniform(0, 0.5), rng.uniform(0.85, 1))
  board.rectangle(x - 0.03 * s, y - 2.0 * s, x + 0.05 * s, y, (90, 64, 44))
  for side, reach in ((1, 1.0), (-1, 0.7)):
    corners = [
      (x + side * 0.1 * s, y - 1.9 * s),
      (x + side * reach * s, y - 0.2 * s),
      (x + side * 0.1 * s, y - 0.2 * s),
    ]
    board.polygon(corners, darker(sail, 0.92 + 0.08 * side))
  low, high = y + 0.4 * s, y - 0.1 * s
  board.polygon([(x - s, high), (x + 1.15 * s, high), (x + 0.75 * s, low), (x - 0.7 * s, low)], hull)


def still_life(size: int, rng: np.random.Generator) -> Canvas:
  """Draws vessels and fruit on a table."""
  wall = canvas.hsv(rng.uniform(), rng.uniform(0.05, 0.4), rng.uniform(0.55, 0.95))
  board, edge = Canvas(size, canvas.corners(rng, wall, 25)), rng.uniform(0.05, 0.4)
  table = canvas.hsv(rng.uniform(0.02, 0.14), rng.uniform(0.2, 0.7), rng.uniform(0.35, 0.85))
  board.rectangle(-1.1, edge, 1.1, 1.1, table)
  for draw, most, down in ((_vessel, 3, 0.2), (_fruit, 5, 0.42)):
    count = int(rng.integers(1, most))
    for k in range(count):
      x = (k + 0.5) / count * 1.7 - 0.85 + rng.uniform(-0.12, 0.12)
      draw(board, rng, x, edge + down + rng.uniform(-0.07, 0.07))
  return board


def _vessel(board: Canvas, rng: np.random.Generator, x: float, foot: float) -> None:
  """Draws a bowl, vase, bottle or cup with its foot at (x, foot)."""
  profiles = (
    np.sqrt(_S) * 0.6 + 0.4,
    0.45 + 0.55 * np.sin(math.pi * _S**0.7),
    np.where(_S < 0.6, 0.8, 0.3),
    0.72 + 0.12 * _S,
  )
  kind = int(rng.integers(4))
  half = rng.uniform(0.2, 0.38) * profiles[kind]
  y = foot - rng.uniform(0.7, 1.15) * (0.55 if kind in (0, 3) else 1.0) * _S
  colour = canvas.hsv(rng.uniform(), rng.uniform(0.1, 0.8), rng.uniform(0.45, 1.0))
  board.ellipse(x + 0.15 * half[0], foot, 1.15 * half[0], 0.22 * half[0], (20, 14, 20, 80))
  board.shape(np.concatenate([x - half + 1j * y, (x + half + 1j * y)[::-1]]), colour)
  board.shape(np.concatenate([x + 0.35 * half + 1j * y, (x + half + 1j * y)[::-1]]), darker(colour, 0.8))
  board.ellipse(x, float(y[-1]), float(half[-1]), 0.2 * float(half[-1]), darker(colour, 0.55))
  board.stroke(x - 0.6 * half[1:9] + 1j * y[1:9], 0.05, (255, 255, 255, 110))


def _fruit(board: Canvas, rng: np.random.Generator, x: float, y: float) -> None:
  """Draws a round fruit that rests at (x, y)."""
  r, tall = rng.uniform(0.16, 0.27), rng.uniform(0.75, 1.1)
  colour = canvas.hsv(rng.uniform(-0.2, 0.25), rng.uniform(0.65, 0.9), rng.uniform(0.6, 1.0))
  board.ellipse(x + 0.15 * r, y, 1.15 * r, 0.22 * r, (20, 14, 20, 80))
  board.ellipse(x, y - tall * r, r, tall * r, darker(colour, 0.78))
  board.ellipse(x - 0.1 * r, y - (tall + 0.08) * r, 0.82 * r, 0.82 * tall * r, colour)
  board.ellipse(x - 0.35 * r, y - (tall + 0.4) * r, 0.17 * r, 0.13 * r, (255, 255, 255, 170))
  board.ellipse(x + 0.3 * r, y - 2.1 * tall * r, 0.32 * r, 0.14 * r, (84, 150, 64), -0.5)


def _palette(rng: np.random.Generator, count: int) -> list[Colour]:
  """Returns a ground and colours around one hue and its opposite that can be told from it."""
  hue = rng.uniform()
  ground, *others = (
    canvas.hsv(hue + rng.choice([0, 0.08, 0.5, 0.6]), rng.uniform(0.25, 0.9), rng.uniform(0.35, 1.0))
    for _ in range(count)
  )
  away = (0, 0, 0) if sum(ground) > 380 else (255, 255, 255)
  return [ground, *(mix(c, away, 0.6) if abs(sum(c) - sum(ground)) < 130 else c for c in others)]


def geometry(size: int, rng: np.random.Generator) -> Canvas:
  """Draws a composition of discs, rings, polygons, stars, arcs and bars."""
  ground, *colours = _palette(rng, 7)
  board = Canvas(size, canvas.corners(rng, ground, 20))
  for k in range(int(rng.integers(4, 10))):
    board.place(rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.8), rng.uniform(0.2, 0.6), rng.uniform(0, 6.28))
    colour = clear(colours[k % 6], 0.6 if rng.random() < 0.25 else 1.0)
    kind, corners = int(rng.integers(6)), int(rng.integers(3, 8))
    turn = np.exp(1j * math.pi * np.arange(2 * corners) / corners)
    if kind == 0:
      board.ellipse(0, 0, 1, rng.uniform(0.5, 1), colour)
    elif kind == 1:
      board.ring(0, 0, 0.85, 0.85, rng.uniform(0.12, 0.4), colour)
    elif kind == 2:
      board.shape(turn[::2], colour)
    elif kind == 3:
      board.shape(turn * np.tile([1.0, rng.uniform(0.35, 0.6)], corners), colour)
    elif kind == 4:
      board.rectangle(-1.6, -0.14, 1.6, 0.14, colour)
    else:
      board.stroke(np.exp(1j * np.linspace(0, rng.uniform(1.5, 5), 20)), 0.25, colour)
  return board


def pattern(size: int, rng: np.random.Generator) -> Canvas:
  """Draws stripes, bricks, dots, waves or rings, repeated, at any angle."""
  ground, one, two = _palette(rng, 3)
  board, step = Canvas(size, canvas.corners(rng, ground, 15)), rng.uniform(0.2, 0.55)
  board.place(0, 0, 1.0, rng.uniform(0, math.pi))
  kind, share, shift, bend = (
    int(rng.integers(5)),
    rng.uniform(0.3, 0.9),
    rng.choice([0.0, 0.5]),
    rng.uniform(1, 4),
  )
  for r in range(int(3 / step) + 1):
    y, tone = r * step - 1.5, two if r % 3 == 0 else one
    if kind == 0:
      board.rectangle(-1.5, y, 1.5, y + share * step, tone)
    elif kind == 1:
      board.stroke(_X + 1j * (y + share * step * np.sin(bend * _X)), 0.4 * step, tone)
    elif kind == 2:
      board.ring(0, 0, (r + 0.5) * step, (r + 0.5) * step * share, 0.45 * step, tone)
    else:
      for c in range(int(3 / step) + 1):
        x = (c + shift * (r % 2)) * step - 1.5
        if kind == 3:
          board.rectangle(x, y, x + 0.9 * step, y + share * step, darker(one, rng.uniform(0.75, 1.2)))
        else:
          board.ellipse(x, y, 0.45 * share * step, 0.45 * share * step, two if (r + c) % 3 == 0 else one)
  return board

"""Indoor pictures, shapes, textures for synthetic_images: (size in pixels, generator) -> a finished Canvas.

The picture spans [−1, 1] on both axes, x to the right, y down.
"""

import math
from collections.abc import Callable

import numpy as np

from mimic_jax.data.drawn import canvas
from mimic_jax.data.drawn.canvas import Canvas, Colour, clear, darker, mix

_X = np.linspace(-1.5, 1.5, 60)
_S = np.linspace(0.0, 1.0, 12)


def _palette(rng: np.random.Generator, count: int) -> list[Colour]:
  """Returns colours around one hue and its opposite, light and dark."""
  hue = rng.uniform()
  return [
    canvas.hsv(hue + rng.choice([0, 0.08, 0.5, 0.6]), rng.uniform(0.25, 0.9), rng.uniform(0.35, 1.0))
    for _ in range(count)
  ]


def _room(size: int, rng: np.random.Generator) -> tuple[Canvas, float]:
  """Returns a canvas with a wall and a table, and the height of the table's far edge."""
  wall = canvas.hsv(rng.uniform(), rng.uniform(0.05, 0.4), rng.uniform(0.55, 0.95))
  board = Canvas(size, canvas.corners(rng, wall, 25))
  edge = rng.uniform(0.05, 0.4)
  if rng.random() < 0.35:
    x, w = rng.uniform(-0.7, 0.2), rng.uniform(0.35, 0.6)
    board.rectangle(x - 0.05, -0.95, x + w + 0.05, edge - 0.25, (240, 236, 226))
    board.rectangle(x, -0.9, x + w, edge - 0.3, (160, 206, 236))
    board.rectangle(x + w / 2 - 0.02, -0.9, x + w / 2 + 0.02, edge - 0.3, (240, 236, 226))
  table = canvas.hsv(rng.uniform(0.02, 0.14), rng.uniform(0.2, 0.7), rng.uniform(0.35, 0.85))
  board.rectangle(-1.1, edge, 1.1, 1.1, table)
  if rng.random() < 0.4:
    for k in range(6):
      board.rectangle(0.4 * k - 1.1, edge, 0.4 * k - 0.9, 1.1, clear(darker(table, 1.3), 0.4))
  return board, edge


def _shadow(board: Canvas, x: float, y: float, w: float) -> None:
  board.ellipse(x + 0.15 * w, y, 1.15 * w, 0.22 * w, (20, 14, 20, 80))


def _vessel(board: Canvas, rng: np.random.Generator, x: float, foot: float, w: float, h: float) -> None:
  """Draws a bowl, vase, bottle or cup with its foot at (x, foot), up to 2·w wide and h high."""
  profile = (
    np.sqrt(_S) * 0.6 + 0.4,  # bowl
    0.45 + 0.55 * np.sin(math.pi * _S**0.7),  # vase
    np.where(_S < 0.6, 0.8, 0.3),  # bottle
    0.72 + 0.12 * _S,  # cup
  )
  kind = int(rng.integers(4))
  half = w * profile[kind]
  y = foot - h * (0.55 if kind in (0, 3) else 1.0) * _S
  colour = canvas.hsv(rng.uniform(), rng.uniform(0.1, 0.8), rng.uniform(0.45, 1.0))
  _shadow(board, x, foot, float(half[0]))
  if kind == 3:
    board.ring(x + half[6], float(y[6]), 0.3 * w, 0.14 * h, 0.1 * w, darker(colour, 0.85))
  board.shape(np.concatenate([x - half + 1j * y, (x + half + 1j * y)[::-1]]), colour)
  board.ellipse(x, foot, float(half[0]), 0.14 * w, colour)
  right = np.concatenate([x + 0.35 * half + 1j * y, (x + half + 1j * y)[::-1]])
  board.shape(right, clear(darker(colour, 0.6), 0.6))
  if rng.random() < 0.5:
    stripe = slice(3, 6)
    band = np.concatenate([(x - half + 1j * y)[stripe], (x + half + 1j * y)[stripe][::-1]])
    board.shape(band, darker(colour, 1.5 if sum(colour) < 380 else 0.6))
  rim = float(half[-1])
  board.ellipse(x, float(y[-1]), rim, 0.2 * rim, darker(colour, 0.55))
  board.stroke(x - 0.6 * half[1:9] + 1j * y[1:9], 0.05, (255, 255, 255, 110))


def _fruit(board: Canvas, rng: np.random.Generator, x: float, y: float, r: float) -> None:
  """Draws an apple, orange, lemon, plum, pear or banana that rests at (x, y)."""
  kind = int(rng.integers(6))
  hue = (0.98, 0.08, 0.14, 0.8, 0.22, 0.14)[kind] + rng.uniform(-0.03, 0.03)
  colour = canvas.hsv(
    hue, rng.uniform(0.65, 0.9), rng.uniform(0.55, 0.7) if kind == 3 else rng.uniform(0.8, 1.0)
  )
  _shadow(board, x, y, r)
  if kind == 5:
    t = np.linspace(0.3, 2.6, 12)
    board.stroke(
      complex(x, y - r) + 1.2 * r * (np.cos(t) + 0.75j * np.sin(t)),
      0.55 * r * np.sin(np.linspace(0.3, 2.9, 12)) + 0.04,
      colour,
    )
    return
  wide, tall = ((1, 0.93), (1, 1), (1.15, 0.8), (0.85, 0.9), (0.9, 0.85))[kind]
  board.ellipse(x, y - tall * r, wide * r, tall * r, darker(colour, 0.78))
  if kind == 4:
    board.ellipse(x, y - 1.7 * r, 0.5 * r, 0.7 * r, darker(colour, 0.85))
  board.ellipse(x - 0.1 * r, y - (tall + 0.08) * r, 0.82 * wide * r, 0.82 * tall * r, colour)
  board.ellipse(x - 0.35 * r, y - (tall + 0.4) * r, 0.17 * r, 0.13 * r, (255, 255, 255, 170))
  if kind in (0, 3, 4):
    top = y - (2.3 if kind == 4 else 1.8 * tall) * r
    board.stroke(canvas.path([(x, top), (x + 0.12 * r, top - 0.4 * r)]), 0.12 * r, (84, 58, 36))
    board.ellipse(x + 0.4 * r, top - 0.25 * r, 0.32 * r, 0.14 * r, (84, 150, 64), -0.5)


def still_life(size: int, rng: np.random.Generator) -> Canvas:
  """Draws vessels and fruit on a table."""
  board, edge = _room(size, rng)
  back = int(rng.integers(1, 3))
  for k in range(back):
    x = (k + 0.5) / back * 1.7 - 0.85 + rng.uniform(-0.15, 0.15)
    _vessel(board, rng, x, edge + rng.uniform(0.12, 0.25), rng.uniform(0.2, 0.38), rng.uniform(0.7, 1.15))
  front = int(rng.integers(1, 5))
  for k in range(front):
    x = (k + 0.5) / front * 1.7 - 0.85 + rng.uniform(-0.1, 0.1)
    _fruit(board, rng, x, edge + rng.uniform(0.35, 0.5), rng.uniform(0.16, 0.27))
  return board


def plant(size: int, rng: np.random.Generator) -> Canvas:
  """Draws a flower bed, a potted plant or one leaf close by."""
  kind = int(rng.integers(3))
  leaf = canvas.hsv(rng.uniform(0.2, 0.42), rng.uniform(0.45, 0.85), rng.uniform(0.35, 0.75))
  if kind == 2:
    return _leaf_close(size, rng, leaf)
  if kind == 1:
    board, edge = _room(size, rng)
    foot, stems = edge - 0.05, int(rng.integers(4, 9))
    for k in range(stems):
      lean = (k + 0.5) / stems * 2 - 1
      bend = 0.5j - lean * 0.25
      end = complex(0.75 * lean, foot - rng.uniform(0.5, 1.05) * (1.1 - 0.4 * lean**2))
      _blade(
        board,
        complex(0.1 * lean, foot),
        end,
        bend * 0.2,
        rng.uniform(0.12, 0.24),
        darker(leaf, rng.uniform(0.75, 1.2)),
      )
    pot = canvas.hsv(rng.uniform(0.0, 0.12), rng.uniform(0.3, 0.8), rng.uniform(0.5, 0.9))
    _shadow(board, 0, foot + 0.62, 0.3)
    board.polygon([(-0.36, foot), (0.36, foot), (0.26, foot + 0.6), (-0.26, foot + 0.6)], pot)
    board.polygon([(0.1, foot), (0.36, foot), (0.26, foot + 0.6), (0.1, foot + 0.6)], darker(pot, 0.8))
    board.rectangle(-0.41, foot - 0.06, 0.41, foot + 0.08, darker(pot, 0.9))
    return board
  sky = canvas.hsv(rng.uniform(0.45, 0.65), rng.uniform(0.1, 0.5), rng.uniform(0.75, 1.0))
  board = Canvas(size, np.array([[sky, sky], [leaf, darker(leaf, 0.7)]], np.float64))
  count = int(rng.integers(1, 6))
  for k in range(count):
    x = (k + 0.5) / count * 2 - 1 + rng.uniform(-0.1, 0.1)
    y, r = rng.uniform(-0.6, 0.2), rng.uniform(0.22, 0.36) * (1.4 if count == 1 else 0.9)
    sway = rng.uniform(-0.15, 0.15)
    board.stroke((x + sway * np.sin(3 * _S)) + 1j * (y + (1.1 - y) * _S), 0.06, darker(leaf, 0.75))
    _blade(board, complex(x + sway * 0.8, 0.85), complex(x + 0.4, 0.35), 0.1j, 0.16, darker(leaf, 1.15))
    _blade(board, complex(x + sway * 0.8, 0.95), complex(x - 0.4, 0.5), 0.1j, 0.16, darker(leaf, 0.9))
    _flower(board, rng, x, y, r)
  return board


def _blade(board: Canvas, foot: complex, tip: complex, bend: complex, wide: float, colour: Colour) -> None:
  """Draws a leaf from `foot` to `tip`, its middle moved by `bend`."""
  spine = foot + (tip - foot) * _S + bend * np.sin(math.pi * _S)
  board.stroke(spine, wide * np.sin(math.pi * _S**0.8) + 0.015, colour)
  board.stroke(spine, 0.02, darker(colour, 0.75))


def _flower(board: Canvas, rng: np.random.Generator, x: float, y: float, r: float) -> None:
  petals = int(rng.integers(5, 11))
  colour = canvas.hsv(rng.uniform(0.75, 1.2), rng.uniform(0.2, 0.85), rng.uniform(0.8, 1.0))
  start, fat = rng.uniform(0, 6.28), rng.uniform(0.8, 1.3)
  for k in range(petals):
    a = start + 2 * math.pi * k / petals
    tone = darker(colour, 0.86) if k % 2 else colour
    board.ellipse(
      x + 0.6 * r * math.cos(a), y + 0.6 * r * math.sin(a), 0.45 * r, fat * 1.6 * r / petals, tone, a
    )
  board.ellipse(x, y, 0.3 * r, 0.3 * r, canvas.hsv(rng.uniform(0.06, 0.15), 0.85, rng.uniform(0.4, 0.95)))


def _leaf_close(size: int, rng: np.random.Generator, leaf: Colour) -> Canvas:
  ground = canvas.hsv(rng.uniform(), rng.uniform(0.05, 0.5), rng.uniform(0.3, 0.95))
  board = Canvas(size, canvas.corners(rng, ground, 35))
  board.place(rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1), rng.uniform(0.8, 1.05), rng.uniform(0, 6.28))
  wide = rng.uniform(0.35, 0.65)
  t = np.linspace(0.0, math.pi, 30)
  ripple = 1 + rng.uniform(0, 0.16) * np.sin(t * int(rng.integers(5, 13)))
  half = wide * np.sin(t) ** rng.uniform(0.7, 1.5) * ripple
  x = -np.cos(t) * 0.9
  board.band(x, -half, 0 * half, darker(leaf, 1.15))
  board.band(x, 0 * half, half, darker(leaf, 0.85))
  vein = darker(leaf, 1.6)
  board.stroke(canvas.path([(-1.2, 0), (0.88, 0)]), np.array([0.07, 0.02]), vein)
  for k in range(int(rng.integers(4, 8))):
    start = -0.7 + 0.22 * k
    reach = 0.8 * wide * math.sqrt(max(1 - (start + 0.2) ** 2, 0.02))
    for side in (-1, 1):
      board.stroke(
        canvas.path([(start, 0), (start + 0.7 * reach, side * 0.8 * reach)]), np.array([0.035, 0.012]), vein
      )
  return board


def geometry(size: int, rng: np.random.Generator) -> Canvas:
  """Draws a composition of discs, rings, polygons, stars, arcs and bars."""
  colours = _palette(rng, 7)
  board = Canvas(size, canvas.corners(rng, colours[0], 20))
  for k in range(int(rng.integers(4, 10))):
    board.place(rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.8), rng.uniform(0.2, 0.6), rng.uniform(0, 6.28))
    colour = colours[1 + k % 6]
    if abs(sum(colour) - sum(colours[0])) < 120:  # too near the ground to be seen
      colour = darker(colour, 0.4) if sum(colours[0]) > 380 else mix(colour, (255, 255, 255), 0.6)
    if rng.random() < 0.25:
      colour = clear(colour, 0.6)
    kind = int(rng.integers(6))
    corners = int(rng.integers(3, 8))
    turn = 2j * math.pi * np.arange(2 * corners) / (2 * corners)
    if kind == 0:
      board.ellipse(0, 0, 1, rng.uniform(0.5, 1), colour)
    elif kind == 1:
      board.ring(0, 0, 0.85, 0.85, rng.uniform(0.12, 0.4), colour)
    elif kind == 2:
      board.shape(np.exp(turn[::2]), colour)
    elif kind == 3:
      board.shape(np.exp(turn) * np.tile([1.0, rng.uniform(0.35, 0.6)], corners), colour)
    elif kind == 4:
      board.rectangle(-1.6, -0.14, 1.6, 0.14, colour)
    else:
      board.stroke(np.exp(1j * np.linspace(0, rng.uniform(1.5, 5), 20)), 0.25, colour)
  board.place()
  return board


def pattern(size: int, rng: np.random.Generator) -> Canvas:
  """Draws stripes, checks, dots, zigzags, waves, rings or triangles, repeated, at any angle."""
  first, second, third = _palette(rng, 3)
  if abs(sum(first) - sum(second)) < 150:
    second = darker(first, 0.45) if sum(first) > 330 else mix(first, (255, 255, 255), 0.65)
  board = Canvas(size, canvas.corners(rng, first, 15))
  step = rng.uniform(0.2, 0.55)
  board.place(0, 0, 1.0, rng.uniform(0, math.pi))
  kinds: tuple[Callable, ...] = (_stripes, _checks, _dots, _waves, _rings, _triangles)
  kinds[int(rng.integers(len(kinds)))](board, rng, step, second, third)
  board.place()
  return board


def _stripes(board: Canvas, rng: np.random.Generator, step: float, one: Colour, two: Colour) -> None:
  share, thin = rng.uniform(0.3, 0.6), rng.random() < 0.4
  for k in range(int(3 / step) + 1):
    x = k * step - 1.5
    board.rectangle(x, -1.5, x + share * step, 1.5, one)
    if thin:
      board.rectangle(-1.5, x, 1.5, x + 0.25 * step, clear(two, 0.7))


def _checks(board: Canvas, rng: np.random.Generator, step: float, one: Colour, two: Colour) -> None:
  count, some = int(3 / step) + 1, rng.random() < 0.4
  for r in range(count):
    for c in range(r % 2, count, 2):
      x, y = c * step - 1.5, r * step - 1.5
      board.rectangle(x, y, x + step, y + step, two if some and r % 2 else one)


def _dots(board: Canvas, rng: np.random.Generator, step: float, one: Colour, two: Colour) -> None:
  count, radius, shift = int(3 / step) + 1, rng.uniform(0.2, 0.42) * step, rng.choice([0.0, 0.5])
  for r in range(count):
    for c in range(count):
      x, y = (c + shift * (r % 2)) * step - 1.5, r * step - 1.5
      board.ellipse(x, y, radius, radius, two if (r + c) % 3 == 0 else one)


def _waves(board: Canvas, rng: np.random.Generator, step: float, one: Colour, two: Colour) -> None:
  high, long = rng.uniform(0.3, 0.8) * step, rng.uniform(1.2, 3.0) * step
  phase = _X / long
  line = high * (
    2 * np.abs(2 * (phase - np.floor(phase + 0.5))) - 1 if rng.random() < 0.5 else np.sin(2 * math.pi * phase)
  )
  for k in range(int(3 / step) + 2):
    board.stroke(_X + 1j * (line + k * step - 1.5), 0.4 * step, two if k % 3 == 0 else one)


def _rings(board: Canvas, rng: np.random.Generator, step: float, one: Colour, two: Colour) -> None:
  x, y = rng.uniform(-0.6, 0.6, 2)
  squeeze = rng.uniform(0.6, 1.0)
  for k in range(int(2 / step), 0, -1):
    board.ring(x, y, k * step, k * step * squeeze, 0.45 * step, two if k % 2 else one)


def _triangles(board: Canvas, rng: np.random.Generator, step: float, one: Colour, two: Colour) -> None:
  count, fill = int(3 / step) + 1, rng.random((20, 20))
  for r in range(count):
    for c in range(count):
      x, y = c * step - 1.5, r * step - 1.5
      half = (
        [(x, y), (x + step, y), (x, y + step)]
        if fill[r, c] < 0.6
        else [(x + step, y), (x + step, y + step), (x, y + step)]
      )
      board.polygon(half, two if fill[r, c] > 0.8 else one)


def material(size: int, rng: np.random.Generator) -> Canvas:
  """Draws a close-up: bricks, planks, tiles, shingles, pebbles or weave."""
  base = canvas.hsv(
    rng.uniform(0.0, 0.16) if rng.random() < 0.6 else rng.uniform(),
    rng.uniform(0.1, 0.6),
    rng.uniform(0.45, 0.9),
  )
  board = Canvas(size, canvas.corners(rng, darker(base, 0.5), 10))
  board.place(0, 0, rng.uniform(0.8, 1.3), rng.uniform(-0.25, 0.25) + math.pi / 2 * int(rng.integers(2)))
  kinds: tuple[Callable, ...] = (_bricks, _planks, _tiles, _shingles, _pebbles, _weave)
  kinds[int(rng.integers(len(kinds)))](board, rng, base)
  board.place()
  return board


def _bricks(board: Canvas, rng: np.random.Generator, base: Colour) -> None:
  high, wide, tones = rng.uniform(0.2, 0.35), rng.uniform(0.5, 0.8), rng.uniform(0.8, 1.2, (30, 10))
  for r in range(int(4 / high)):
    for c in range(int(4 / wide) + 1):
      x, y = (c - 0.5 * (r % 2)) * wide - 2, r * high - 2
      board.rectangle(x, y, x + wide - 0.06, y + high - 0.06, darker(base, tones[r, c % 10]))


def _planks(board: Canvas, rng: np.random.Generator, base: Colour) -> None:
  high = rng.uniform(0.3, 0.6)
  for r in range(int(3.6 / high)):
    y, tone = r * high - 1.8, darker(base, rng.uniform(0.8, 1.15))
    board.rectangle(-2, y, 2, y + high - 0.04, tone)
    for k in range(3):
      grain = y + high * (0.25 + 0.25 * k) + 0.03 * np.sin(_X * rng.uniform(1, 4) + rng.uniform(0, 6.28))
      board.stroke(1.3 * _X + 1j * grain, 0.025, clear(darker(tone, 0.65), 0.8))
    if rng.random() < 0.5:
      x = rng.uniform(-0.9, 0.9)
      board.ellipse(x, y + high / 2, 0.14, 0.3 * high, darker(tone, 0.7))
      board.ellipse(x, y + high / 2, 0.06, 0.15 * high, darker(tone, 0.5))


def _tiles(board: Canvas, rng: np.random.Generator, base: Colour) -> None:
  step, motif = rng.uniform(0.4, 0.75), int(rng.integers(3))
  accent = _palette(rng, 1)[0]
  for r in range(int(4 / step)):
    for c in range(int(4 / step)):
      x, y = c * step - 2, r * step - 2
      board.rectangle(x, y, x + step - 0.05, y + step - 0.05, darker(base, 1.15))
      m, h = step / 2 - 0.025, 0.35 * step
      if motif == 0:
        board.polygon(
          [(x + m, y + m - h), (x + m + h, y + m), (x + m, y + m + h), (x + m - h, y + m)], accent
        )
      elif motif == 1:
        board.ring(x + m, y + m, 0.28 * step, 0.28 * step, 0.1 * step, accent)


def _shingles(board: Canvas, rng: np.random.Generator, base: Colour) -> None:
  step, tones = rng.uniform(0.3, 0.5), rng.uniform(0.75, 1.2, (30, 12))
  rows = int(3.6 / (0.6 * step))
  for r in range(rows, 0, -1):
    for c in range(int(4 / step) + 1):
      x, y = (c - 0.5 * (r % 2)) * step - 2, 0.6 * r * step - 1.9
      board.ellipse(x, y, 0.52 * step, 0.62 * step, darker(base, 0.6))
      board.ellipse(x, y - 0.03, 0.46 * step, 0.58 * step, darker(base, tones[r % 30, c % 12]))


def _pebbles(board: Canvas, rng: np.random.Generator, base: Colour) -> None:
  step = rng.uniform(0.35, 0.55)
  for r in range(int(3.6 / step)):
    for c in range(int(3.6 / step)):
      x, y = (c + 0.5 * (r % 2)) * step - 1.8 + rng.uniform(-0.05, 0.05), r * step - 1.8
      tone = darker(base, rng.uniform(0.7, 1.25))
      wide, tall, angle = (
        0.5 * step * rng.uniform(0.75, 1.1),
        0.5 * step * rng.uniform(0.75, 1.0),
        rng.uniform(0, 3),
      )
      board.ellipse(x, y, wide, tall, tone, angle)
      board.ellipse(
        x - 0.12 * step, y - 0.14 * step, 0.4 * wide, 0.35 * tall, clear((255, 255, 255), 0.25), angle
      )


def _weave(board: Canvas, rng: np.random.Generator, base: Colour) -> None:
  step = rng.uniform(0.28, 0.5)
  other = darker(base, rng.choice([0.7, 1.3]))
  for r in range(int(3.6 / step)):
    for c in range(int(3.6 / step)):
      x, y = c * step - 1.8, r * step - 1.8
      if (r + c) % 2:
        board.rectangle(x, y + 0.08 * step, x + step, y + 0.92 * step, base)
        board.rectangle(x, y + 0.08 * step, x + step, y + 0.3 * step, darker(base, 1.15))
      else:
        board.rectangle(x + 0.08 * step, y, x + 0.92 * step, y + step, other)
        board.rectangle(x + 0.08 * step, y, x + 0.3 * step, y + step, darker(other, 1.15))

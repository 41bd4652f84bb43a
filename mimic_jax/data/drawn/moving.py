"""How a drawn face moves: a shot (who, held how, lit how, before what, over time) and a story (which expression when)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mimic_jax.data.drawn import canvas, face

HOLD = (7, 12)  # frames that an expression is held with its change into the next, the last excluded
CHANGE = 3  # frames of that change


class Shot(NamedTuple):
  """All of a clip but its expressions.

  Attributes:
    persons: of each frame: the same person, held a little otherwise.
    wall: seed of the background.
    light, slope: float64 [T], [T, 2], of each frame; see canvas.photograph.
    contrast, grey, noise, blur: of the whole clip; blur in pictures of 64 pixels.
  """

  persons: tuple[face.Person, ...]
  wall: int
  light: np.ndarray
  slope: np.ndarray
  contrast: float
  grey: bool
  noise: float
  blur: float


def drift(rng: np.random.Generator, frames: int, spread: float) -> np.ndarray:
  """Returns a smooth way about 0, float64 [frames], that goes up to about ± `spread`: a slow sine and a quicker one."""
  t, way = np.arange(frames), np.zeros(frames)
  for share, period in ((0.7, rng.uniform(1.0, 2.0)), (0.3, rng.uniform(0.3, 0.7))):
    way += share * np.sin(2 * np.pi * (t / (period * frames) + rng.uniform()))
  return spread * way


def shot(person: face.Person, rng: np.random.Generator, frames: int) -> Shot:
  """Draws how a person is held, lit and filmed in a clip of so many frames."""
  other = face.person(rng)  # its pose is the clip's
  rest = {name: getattr(other, name) for name in ('yaw', 'pitch', 'x', 'y', 'scale', 'roll')}
  spreads = {'yaw': 0.06, 'pitch': 0.03, 'x': 0.02, 'y': 0.02, 'scale': 0.015, 'roll': 0.04}
  ways = {name: rest[name] + drift(rng, frames, spread) for name, spread in spreads.items()}
  persons = tuple(person._replace(**{k: float(way[t]) for k, way in ways.items()}) for t in range(frames))
  return Shot(
    persons,
    wall=int(rng.integers(2**32)),
    light=rng.uniform(0.75, 1.2) + drift(rng, frames, 0.08),
    slope=rng.uniform(-0.25, 0.25, 2) + np.stack([drift(rng, frames, 0.08) for _ in range(2)], axis=1),
    contrast=rng.uniform(0.65, 1.1),
    grey=bool(rng.uniform() < 0.12),
    noise=12.0 * rng.uniform() ** 2,
    blur=max(0.0, rng.uniform(-1.2, 0.5)),
  )


def story(
  rng: np.random.Generator,
  frames: int,
  classes: int,
  expression: Callable[[int, np.random.Generator], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
  """Draws one expression after another, each of another class than the one before, with a smooth change between.

  Args:
    rng: of the clip.
    frames: T.
    classes: K.
    expression: (class, generator) → the fields of one, float64 [13].

  Returns:
    The class of each frame, int [T]: in a change the nearer one; and its fields, float64 [T, 13].
  """
  labels, fields = np.zeros(frames, np.int64), np.zeros((frames, len(face.FIELDS)))
  k, start = int(rng.integers(classes)), 0
  now = expression(k, rng)
  while start < frames:
    length = int(rng.integers(*HOLD))
    following = (k + 1 + int(rng.integers(classes - 1))) % classes
    then = expression(following, rng)
    for t in range(start, min(start + length, frames)):
      part = max(0.0, (t - (start + length - CHANGE - 1)) / (CHANGE + 1))
      share = part * part * (3 - 2 * part)
      fields[t] = (1 - share) * now + share * then
      labels[t] = k if share < 0.5 else following
    k, now, start = following, then, start + length
  return labels, fields


def paint(s: Shot, fields: np.ndarray, frame: int, rng: np.random.Generator, size: int) -> np.ndarray:
  """Draws a frame of a shot with an expression, uint8 [size, size, 3]; `rng` makes the camera's noise."""
  board = face.background(size, np.random.Generator(np.random.Philox(s.wall)))
  face.draw(board, s.persons[frame], fields)
  return canvas.photograph(
    board.finish(s.blur * size / 64),
    light=float(s.light[frame]),
    slope=tuple(s.slope[frame]),
    contrast=s.contrast,
    grey=s.grey,
    noise=s.noise,
    rng=rng,
  )

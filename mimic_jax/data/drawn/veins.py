"""How the veins of a palm are drawn: who they belong to (a pattern), and how they lie in one picture.

A pattern is a few trunks that wander from the wrist upwards and branch. Units: the picture spans [−1, 1], x to the right, y down.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mimic_jax.data.drawn.canvas import Canvas, Colour

TRUNKS = (3, 5)
LEAST_WIDTH = 0.02  # below, no vein branches
STEP = 0.09  # between the points of a vein
BEND = 0.16  # radians, standard deviation of the turn at each
PULL = 0.12  # share of the way back to where a vein is headed, at each


class Vein(NamedTuple):
  """A line through points, complex128 [N], `width` [N] across; how dark it is, 0..1."""

  points: np.ndarray
  width: np.ndarray
  depth: float


def pattern(rng: np.random.Generator) -> list[Vein]:
  """Draws whose veins they are: every hand has others."""
  veins: list[Vein] = []
  count = int(rng.integers(TRUNKS[0], TRUNKS[1] + 1))
  for k in range(count):
    x = -0.9 + 1.8 * (k + rng.uniform(0.2, 0.8)) / count
    _grow(veins, complex(x, 1.15), -math.pi / 2 + rng.normal(0, 0.25), rng.uniform(0.045, 0.08), 30, rng)
  return veins


def _grow(
  veins: list[Vein], start: complex, heading: float, width: float, steps: int, rng: np.random.Generator
) -> None:
  """Adds a vein and what branches off it, each thinner than what it comes from."""
  points, angle, branches = [start], heading, []
  for k in range(steps):
    angle += BEND * rng.standard_normal() + PULL * (heading - angle)
    points.append(points[-1] + STEP * complex(math.cos(angle), math.sin(angle)))
    if width > LEAST_WIDTH and k > 2 and rng.random() < 0.13:
      side = 1 if rng.random() < 0.5 else -1
      branches.append((points[-1], angle + side * rng.uniform(0.45, 1.0), steps - k))
  veins.append(Vein(np.array(points), np.linspace(width, 0.55 * width, len(points)), rng.uniform(0.6, 1.0)))
  for point, direction, left in branches:
    _grow(
      veins, point, direction, width * rng.uniform(0.5, 0.7), max(int(left * rng.uniform(0.4, 0.9)), 3), rng
    )


def bend(rng: np.random.Generator, amount: float) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a smooth displacement of points [N] -> [N], of up to about `amount` each way: no hand lies twice alike."""
  waves = rng.uniform(0.6, 2.2, (3, 2)) * rng.choice([-1, 1], (3, 2))
  phases = rng.uniform(0, 2 * math.pi, 3)
  sizes = amount / 2 * (rng.standard_normal(3) + 1j * rng.standard_normal(3))

  def moved(points: np.ndarray) -> np.ndarray:
    angles = np.outer(points.real, waves[:, 0]) + np.outer(points.imag, waves[:, 1]) + phases
    return points + np.sin(angles) @ sizes

  return moved


def draw(board: Canvas, veins: list[Vein], thickness: float, skin: Colour, blood: Colour) -> None:
  """Draws veins, `thickness` times as wide as they are, in colours between the skin's and the blood's."""
  for vein in sorted(veins, key=lambda v: v.depth):
    colour = tuple(round(s + (b - s) * vein.depth) for s, b in zip(skin, blood, strict=True))
    board.stroke(vein.points, thickness * vein.width, colour)

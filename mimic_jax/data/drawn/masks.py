"""Random binary masks for synthetic_masks: (size in pixels, generator) -> bool [size, size], True where something is hidden."""

import math

import numpy as np
from PIL import Image

from mimic_jax.data.drawn import canvas
from mimic_jax.data.drawn.canvas import Canvas

HIDDEN = (0.1, 0.55)  # share of the pixels at the least, drawn for each mask; the last shape may go beyond it
BLACK, WHITE = (0, 0, 0), np.full((2, 2, 3), 255.0)


def _filled(size: int, rng: np.random.Generator, add) -> np.ndarray:
  """Adds shapes until as much is hidden as was drawn."""
  board, least = Canvas(size, WHITE), rng.uniform(*HIDDEN)
  while True:
    add(board)
    hidden = board.finish()[:, :, 0] < 128
    if hidden.mean() >= least:
      return hidden


def rectangles(size: int, rng: np.random.Generator) -> np.ndarray:
  """Upright or turned rectangles."""
  turned = rng.random() < 0.5

  def add(board: Canvas) -> None:
    board.place(*rng.uniform(-0.9, 0.9, 2), angle=rng.uniform(0, math.pi) if turned else 0.0)
    w, h = rng.uniform(0.1, 0.55, 2)
    board.rectangle(-w, -h, w, h, BLACK)

  return _filled(size, rng, add)


def ellipses(size: int, rng: np.random.Generator) -> np.ndarray:
  """Ellipses, turned any way."""

  def add(board: Canvas) -> None:
    board.ellipse(
      *rng.uniform(-0.9, 0.9, 2), *rng.uniform(0.1, 0.6, 2), colour=BLACK, angle=rng.uniform(0, math.pi)
    )

  return _filled(size, rng, add)


def strokes(size: int, rng: np.random.Generator) -> np.ndarray:
  """Wandering lines of one width."""
  width = rng.uniform(0.1, 0.4)

  def add(board: Canvas) -> None:
    angles = rng.uniform(0, 2 * math.pi) + np.cumsum(rng.normal(0, 0.35, 14))
    points = complex(*rng.uniform(-1, 1, 2)) + np.cumsum(0.12 * np.exp(1j * angles))
    board.stroke(points, width, BLACK)
    for end in (points[0], points[-1]):  # round ends
      board.shape(canvas.ellipse(end.real, end.imag, width / 2, width / 2), BLACK)

  return _filled(size, rng, add)


def blobs(size: int, rng: np.random.Generator) -> np.ndarray:
  """Smooth noise above a threshold."""
  side = int(rng.integers(3, 9))
  noise = Image.fromarray(rng.standard_normal((side, side)).astype(np.float32))
  smooth = np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC))
  return smooth > np.quantile(smooth, 1 - rng.uniform(*HIDDEN))

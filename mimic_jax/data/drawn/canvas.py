"""A drawing board for the synthetic pictures: filled shapes on a supersampled canvas, then light and noise.

Points are complex128 [N], x + iy with x to the right and y down, so that to turn, scale and move a shape is
one product and one sum. Their unit is that of the canvas' transform. Colours are (r, g, b) or (r, g, b, a)
in 0..255. Everything is a function of the numbers handed in; nothing here draws a random number except from
a generator that is an argument.
"""

import colorsys
import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

OVERSAMPLE = 3  # the canvas has three pixels for each of the picture, per axis: nine grey levels on an edge

CIRCLE = np.exp(2j * math.pi * np.arange(28) / 28)  # [28]

Colour = tuple[int, ...]


class Canvas:
  """A square RGB image being drawn, with the affine transform from drawing units to its pixels.

  By default the picture spans [−1, 1] on both axes. `place` moves, turns and scales what is drawn next; a
  function in `warp`, when set, bends its points [N] -> [N] before that.
  """

  def __init__(self, size: int, corners: np.ndarray):
    """Starts a picture of `size` pixels with a smooth background between the colours of its corners.

    Args:
      size: side of the finished picture in pixels.
      corners: [2, 2, 3] colours in 0..255: rows top, bottom; columns left, right.
    """
    self.size = size
    self.pixels = size * OVERSAMPLE
    small = Image.fromarray(np.clip(corners, 0, 255).astype(np.uint8))
    # From centre to centre of the four corner pixels, so that the gradient runs over the whole picture.
    smooth = small.resize((size, size), Image.Resampling.BILINEAR, box=(0.5, 0.5, 1.5, 1.5))
    self.image = smooth.resize((self.pixels, self.pixels), Image.Resampling.NEAREST)
    self.solid = ImageDraw.Draw(self.image, 'RGB')  # several times as fast as one that blends
    self.glaze = ImageDraw.Draw(self.image, 'RGBA')
    self.warp: Callable[[np.ndarray], np.ndarray] | None = None
    self.place()

  def place(self, x: float = 0.0, y: float = 0.0, scale: float = 1.0, angle: float = 0.0) -> None:
    """Draws from now on around (x, y) of the picture, `scale` times as large, turned by `angle` radians."""
    half = self.pixels / 2
    self.turn = complex(math.cos(angle), math.sin(angle)) * (scale * half)
    # Pillow counts from the middle of the first pixel.
    self.offset = complex((1 + x) * half - 0.5, (1 + y) * half - 0.5)

  def shape(self, points: np.ndarray, colour: Colour) -> None:
    """Fills the polygon through `points` [N]."""
    if self.warp is not None:
      points = self.warp(points)
    xy = (points * self.turn + self.offset).view(np.float64).tolist()
    if len(colour) == 3:
      self.solid.polygon(xy, fill=colour)
    else:
      self.glaze.polygon(xy, fill=colour)

  def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, angle: float = 0.0) -> None:
    """Fills the ellipse with centre (x, y) and radii rx, ry, turned by `angle` radians."""
    self.shape(ellipse(x, y, rx, ry, angle), colour)

  def rectangle(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
    """Fills the rectangle (turned with the transform)."""
    self.shape(
      np.array([complex(left, top), complex(right, top), complex(right, bottom), complex(left, bottom)]),
      colour,
    )

  def polygon(self, corners: Sequence[tuple[float, float]], colour: Colour) -> None:
    """Fills the polygon through `corners`, pairs of (x, y)."""
    self.shape(path(corners), colour)

  def stroke(self, points: np.ndarray, width: float | np.ndarray, colour: Colour) -> None:
    """Draws a line through `points` [N], `width` across: one number or one per point [N]."""
    self.shape(ribbon(points, width), colour)

  def band(self, x: np.ndarray, top: np.ndarray, bottom: np.ndarray, colour: Colour) -> None:
    """Fills between two curves `top` and `bottom` [N] over the same `x` [N]."""
    self.shape(np.concatenate([x + 1j * top, (x + 1j * bottom)[::-1]]), colour)

  def ring(self, x: float, y: float, rx: float, ry: float, width: float, colour: Colour) -> None:
    """Draws the outline of an ellipse, `width` across."""
    outer = ellipse(x, y, rx + width / 2, ry + width / 2)
    inner = ellipse(x, y, rx - width / 2, ry - width / 2)
    self.shape(np.concatenate([outer, outer[:1], inner[:1], inner[::-1]]), colour)

  def finish(self, blur: float = 0.0) -> np.ndarray:
    """Returns float32 [size, size, 3], 0..255: each pixel is the mean of its part of the canvas.

    A `blur` above 0 is the radius, in pixels of the picture, of a box filter over it.
    """
    image = self.image.reduce(OVERSAMPLE)
    if blur > 0:
      image = image.filter(ImageFilter.BoxBlur(blur))
    return np.asarray(image, np.float32)


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
  """Returns the outline [28] of an ellipse."""
  points = CIRCLE * ((rx + ry) / 2) + CIRCLE.conj() * ((rx - ry) / 2)
  if angle:
    points = points * complex(math.cos(angle), math.sin(angle))
  return points + complex(x, y)


def path(corners: Sequence[tuple[float, float]]) -> np.ndarray:
  """Returns pairs of (x, y) as points [N]."""
  return np.array([complex(x, y) for x, y in corners])


def ribbon(points: np.ndarray, width: float | np.ndarray) -> np.ndarray:
  """Returns the outline [2N] of a line through `points` [N], `width` across: a number or one per point."""
  along = np.empty_like(points)
  along[1:-1] = points[2:] - points[:-2]
  along[0] = points[1] - points[0]
  along[-1] = points[-1] - points[-2]
  across = along * (0.5j * width / np.maximum(np.abs(along), 1e-9))
  return np.concatenate([points + across, (points - across)[::-1]])


def hsv(h: float, s: float, v: float) -> Colour:
  """Returns (r, g, b) in 0..255 for hue (any number, one turn is 1), saturation and value in [0, 1]."""
  r, g, b = colorsys.hsv_to_rgb(h % 1.0, min(max(s, 0.0), 1.0), min(max(v, 0.0), 1.0))
  return round(255 * r), round(255 * g), round(255 * b)


def mix(a: Colour, b: Colour, t: float) -> Colour:
  """Returns the colour at t in [0, 1] on the way from `a` to `b`."""
  return tuple(round(p + (q - p) * t) for p, q in zip(a, b))


def darker(colour: Colour, factor: float) -> Colour:
  """Returns `colour` times `factor`, kept within 0..255."""
  return tuple(min(max(round(c * factor), 0), 255) for c in colour)


def clear(colour: Colour, alpha: float) -> Colour:
  """Returns `colour` with opacity `alpha` in [0, 1]."""
  return (*colour[:3], round(255 * alpha))


def corners(rng: np.random.Generator, base: Colour, spread: float) -> np.ndarray:
  """Returns [2, 2, 3] corner colours around `base`, each channel off by up to `spread`."""
  return np.array(base, np.float64)[None, None, :] + rng.uniform(-spread, spread, (2, 2, 3))


def photograph(
  pixels: np.ndarray,
  *,
  light: float,
  slope: tuple[float, float],
  contrast: float,
  grey: bool,
  noise: float,
  rng: np.random.Generator,
) -> np.ndarray:
  """Lights a finished drawing and adds the camera's noise.

  Args:
    pixels: float32 [S, S, 3], 0..255.
    light: factor on everything.
    slope: change of that factor from the centre to the right and to the lower edge (a lamp at one side).
    contrast: factor around mid-grey.
    grey: whether the colours are dropped.
    noise: standard deviation, in grey levels.
    rng: where the noise comes from; size² · 3 numbers are taken whatever the other arguments.

  Returns:
    uint8 [S, S, 3].
  """
  size = pixels.shape[0]
  across = np.linspace(-1.0, 1.0, size, dtype=np.float32)
  gain = light + slope[0] * across[None, :] + slope[1] * across[:, None]
  pixels = (pixels - 128.0) * np.float32(contrast) + 128.0
  pixels = pixels * gain[:, :, None].astype(np.float32)
  if grey:
    weights = np.array([[0.299, 0.587, 0.114]], np.float32)
    pixels = np.broadcast_to((pixels * weights[None, :, :]).sum(axis=2, keepdims=True), pixels.shape)
  pixels = pixels + rng.standard_normal(pixels.shape, np.float32) * np.float32(noise)
  return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)

"""How a face was cut out of its picture: whole, by its box, or turned so that eyes, nose and mouth lie on a template.

    none                  the picture as it is
    box(margin)           the face's box, each side moved out by margin · its length, clipped to the picture
    five_point(template)  a similarity that brings five points nearest to the template's (least squares)

The same network loses points of accuracy on crops of another kind, so the name is part of a source's record. Points and
boxes are in pixels of the upright picture (as its Exif orientation says). A point's whole numbers are pixel centres, as
annotators and OpenCV have them; a box's are pixel edges. Grammar and reasons: docs/data.md.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mimic_jax.data import source as sources
from mimic_jax.runtime.errors import UserError, nearest, one_of

GRAMMAR = 'none, box(margin) or five_point(template)'
KINDS = ('none', 'box', 'five_point')
MOST_MARGIN = 2.0  # a box moved out by more shows mostly what is not the face
FILE = 'align.json'  # what `mimic align` writes into the folder that it makes
MADE_BY = 'mimic_jax.align'
TEMPLATE_SIDE = 112

# Where the eyes (that on the picture's left first), the tip of the nose and the corners of the mouth come to lie, as
# (x, y) pixel centres in a picture of 112×112. 'arcface' is InsightFace's, used since SphereFace (arXiv 1704.08063).
TEMPLATES: dict[str, tuple[tuple[float, float], ...]] = {
  'arcface': (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
  )
}

_KERNEL = 4  # pixels kept around what a transform reads; the bicubic kernel reaches 2
_IN_RECORD = ('align', 'size', 'detector', 'on_missing', 'pictures', 'without_face')


@dataclasses.dataclass(frozen=True)
class Align:
  """One way to cut out a face; `str` gives its name in records.

  Attributes:
    kind: 'none', 'box' or 'five_point'.
    margin: of 'box', as a share of the box's width and height.
    template: of 'five_point', a key of TEMPLATES.
  """

  kind: str = 'none'
  margin: float = 0.0
  template: str = ''

  def __str__(self) -> str:
    if self.kind == 'box':
      return f'box({self.margin:g})'
    return f'five_point({self.template})' if self.kind == 'five_point' else 'none'


def parse(text: str, field: str, auto: str = 'none') -> Align:
  """Reads the name of an alignment.

  Args:
    text: 'auto', 'none', 'box(margin)' or 'five_point(template)'.
    field: where it is from, for errors.
    auto: what 'auto' means here.

  Raises:
    UserError: on anything else, on a margin outside 0..2, on an unknown template.
  """
  text = (auto if text.strip() == 'auto' else text).strip()
  if text == 'none':
    return Align()
  found = re.fullmatch(r'(\w+)\s*\(\s*([^()\s]*)\s*\)', text)
  kind, value = found.groups() if found else (text, '')
  if not found or kind not in KINDS[1:]:
    near = nearest(kind, KINDS) if kind not in KINDS else ''
    raise UserError(f"{field} is '{text}'{near}; expected {GRAMMAR}")
  if kind == 'five_point':
    return Align(kind, template=one_of(f'the template of {field}', value, TEMPLATES))
  try:
    margin = float(value)
  except ValueError:
    margin = math.nan
  if not 0 <= margin <= MOST_MARGIN:
    raise UserError(
      f"the margin of {field} is '{value}'; expected a number 0..{MOST_MARGIN:g}, as in box(0.2)"
    )
  return Align(kind, margin=margin + 0.0)  # −0.0 becomes 0.0: one alignment has one name


def crop_box(image: Image.Image, box: Sequence[float], margin: float) -> Image.Image:
  """Cuts a face's box out of a picture.

  Args:
    image: of any mode; turned upright first.
    box: left, top, width, height in pixels; fractions are rounded to whole pixels after the margin.
    margin: by which each side is moved out: left and right by margin · width, top and bottom by margin · height.

  Returns:
    What of the widened box is inside the picture, in the picture's mode.

  Raises:
    ValueError: on a box without area, with NaN, or outside the picture.
  """
  image = _upright(image)
  left, top, width, height = (float(v) for v in box)
  what = f'the box (left {left:g}, top {top:g}, width {width:g}, height {height:g})'
  if not (math.isfinite(left + top + width + height) and width > 0 and height > 0):
    raise ValueError(f'{what} has no area')
  if left >= image.width or top >= image.height or left + width <= 0 or top + height <= 0:
    raise ValueError(f'{what} is outside the picture of {image.width}x{image.height}')
  edges = (
    max(_whole(left - margin * width), 0),
    max(_whole(top - margin * height), 0),
    min(_whole(left + width + margin * width), image.width),
    min(_whole(top + height + margin * height), image.height),
  )
  if edges[0] >= edges[2] or edges[1] >= edges[3]:
    raise ValueError(f'{what} holds no whole pixel of the picture of {image.width}x{image.height}')
  return image.crop(edges)


def similarity(points: np.ndarray, template: np.ndarray) -> np.ndarray:
  """Returns the similarity without reflection that brings points nearest to a template.

  The least-squares solution of Umeyama (1991), which in the plane is a division of complex numbers: with both sets
  centred, x + iy ↦ a·(x + iy) and a = Σ conj(p)·t / Σ |p|².

  Args:
    points: [5, 2] (any number from 2) of (x, y).
    template: as many.

  Returns:
    float64 [2, 3], M with template ≈ M[:, :2] @ point + M[:, 2].

  Raises:
    ValueError: on points that aren't finite, and on points (or templates) that give no direction or size.
  """
  points, template = np.asarray(points, np.float64), np.asarray(template, np.float64)
  if not np.isfinite(points).all():
    raise ValueError('the points of the face are not all finite numbers')
  p, t = (v[:, 0] + 1j * v[:, 1] for v in (points, template))
  centre, target = p.mean(), t.mean()
  p, t = p - centre, t - target
  spread = float((abs(p) ** 2).sum())
  a = (p.conj() * t).sum() / spread if spread > 1e-12 else 0.0
  if abs(a) < 1e-12:
    raise ValueError('the points of the face give no size and direction')
  shift = target - a * centre
  return np.array([[a.real, -a.imag, shift.real], [a.imag, a.real, shift.imag]])


def warp(image: Image.Image, points: np.ndarray, template: str, size: int) -> Image.Image:
  """Turns, scales and moves a picture so that a face's five points come nearest to a template's.

  Where the face shrinks, its surroundings are first scaled down with an antialiasing filter and then turned at scale 1;
  a lone affine transform would read single pixels of a big face. A picture of 2·size scaled by ½ is the one of `size`.

  Args:
    image: of any mode; turned upright first.
    points: [5, 2] (x, y): the eye on the picture's left, the other, the tip of the nose, the corner of the mouth on the
      picture's left, the other.
    template: a key of TEMPLATES.
    size: side of the result in pixels.

  Returns:
    An RGB picture of size × size; black where it shows what is outside the picture.

  Raises:
    ValueError: on points that give no similarity, and where nothing of the result is inside the picture.
  """
  image = sources.to_rgb(_upright(image))
  # From here on a pixel covers [i, i + 1), as Pillow has it: then scaling is a multiplication.
  goal = (np.array(TEMPLATES[template]) + 0.5) * size / TEMPLATE_SIDE
  forward = similarity(np.asarray(points, np.float64) + 0.5, goal)
  scale = math.hypot(forward[0, 0], forward[1, 0])
  back = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))[:2]
  corners = np.array([[0, 0, 1], [size, 0, 1], [0, size, 1], [size, size, 1]]) @ back.T
  reach = _KERNEL * max(1.0, 1 / scale)
  first = np.clip(np.floor(corners.min(axis=0) - reach), 0, image.size).astype(int)
  last = np.clip(np.ceil(corners.max(axis=0) + reach), 0, image.size).astype(int)
  if (first >= last).any():
    raise ValueError(f'the face lies outside the picture of {image.width}x{image.height}')
  part = image.crop((*first.tolist(), *last.tolist()))
  ratio = np.ones(2)
  if scale < 1:
    small = np.maximum(np.rint((last - first) * scale), 1)
    ratio = small / (last - first)
    part = part.resize(tuple(small.astype(int).tolist()), Image.Resampling.BICUBIC)
  # result -> original -> part -> scaled part
  matrix = np.column_stack([back[:, :2], back[:, 2] - first]) * ratio[:, None]
  return part.transform(
    (size, size), Image.Transform.AFFINE, matrix.ravel().tolist(), Image.Resampling.BICUBIC
  )


def five_from_68(points: np.ndarray) -> np.ndarray:
  """Returns the five points of `warp`, float64 [5, 2], from iBUG's 68 landmarks [68, 2] (300-W's order).

  Each eye is the mean of its six points, the nose its tip (30, counted from 0), the mouth its corners (48 and 54).

  Raises:
    ValueError: on another number of points.
  """
  points = np.asarray(points, np.float64)
  if points.shape != (68, 2):
    raise ValueError(f'{points.shape} landmarks; expected (68, 2)')
  return np.stack(
    [points[36:42].mean(axis=0), points[42:48].mean(axis=0), points[30], points[48], points[54]]
  )


def apply(
  align: Align,
  image: Image.Image,
  box: Sequence[float] | None,
  points: np.ndarray | None,
  size: int,
) -> Image.Image:
  """Returns the face of a picture, cut out as `align` says.

  Args:
    align: which way.
    image: of any mode.
    box: left, top, width, height; read by 'box'.
    points: [5, 2] as for `warp`; read by 'five_point'.
    size: side in pixels; of 'five_point' only, other crops keep theirs.

  Raises:
    ValueError: as crop_box and warp.
  """
  if align.kind == 'box':
    return crop_box(image, box, align.margin)
  return warp(image, points, align.template, size) if align.kind == 'five_point' else _upright(image)


def of_root(root: str) -> dict[str, Any]:
  """Returns how the pictures of a folder were cut out: the record's entry 'align'.

  {'align': 'none'} unless `mimic align` made the folder; then also the size, the detector, what happened to
  pictures without a face, and how many of both there are.

  Raises:
    UserError: on an align.json that can't be read, and on an alignment that was begun and not finished.
  """
  path = os.path.join(root, FILE)
  try:
    with open(path, encoding='utf-8') as f:
      made = json.load(f)
  except (FileNotFoundError, NotADirectoryError):
    return {'align': 'none'}
  except (OSError, ValueError) as e:
    raise UserError(f'{path}: is not readable ({e}); expected what `mimic align` writes') from None
  if not isinstance(made, dict) or made.get('made_by') != MADE_BY:
    return {'align': 'none'}
  if not made.get('finished'):
    raise UserError(
      f'{path}: the alignment is not finished; run `mimic align {made.get("from", "SRC")} {root}` again'
    )
  return {name: made[name] for name in _IN_RECORD if name in made}


def choose(
  options: Mapping[str, Any],
  root: str,
  source: str,
  auto: str = 'none',
  kinds: Sequence[str] = ('none',),
) -> tuple[Align, dict[str, Any]]:
  """Decides how a source cuts out its faces.

  In a folder that `mimic align` made, the boxes and points of the original label files no longer fit the
  pictures: nothing more is cut there, and 'auto' is what the folder is.

  Args:
    options: the data section; `align` and `align_size` are read.
    root: the source's folder.
    source: its name, for errors.
    auto: what data.align = 'auto' means for this source.
    kinds: what its label files allow: 'box' where they give boxes, 'five_point' where they give points.

  Returns:
    What the source itself has to do with each picture, and the entry 'align' of its record.

  Raises:
    UserError: where data.align is no alignment, or one that this source can't do.
  """
  text = options.get('align', 'auto')
  made = of_root(root)
  if made['align'] != 'none':
    wanted = parse(text, 'data.align', auto=made['align'])
    if str(wanted) != made['align']:
      raise UserError(
        f"data.align is '{wanted}', but '{root}' was made by `mimic align` as {made['align']}; "
        f"expected auto or '{made['align']}', or the original folder"
      )
    return Align(), made
  wanted = parse(text, 'data.align', auto=auto)
  if wanted.kind not in kinds:
    missing = 'boxes' if wanted.kind == 'box' else 'points'
    raise UserError(
      f"data.align is '{wanted}', but source '{source}' has no {missing} of faces in '{root}'; expected "
      f"{' or '.join(('auto', *kinds))}, or a folder made by `mimic align SRC DST --align '{wanted}'`"
    )
  sized = {'size': int(options.get('align_size', 224))} if wanted.kind == 'five_point' else {}
  return wanted, {'align': str(wanted), **sized}


def _upright(image: Image.Image) -> Image.Image:
  return sources.upright(image) if sources.is_turned(image) else image


def _whole(value: float) -> int:
  """Rounds to the nearest whole number, halves up: the same on both sides of 0."""
  return math.floor(value + 0.5)

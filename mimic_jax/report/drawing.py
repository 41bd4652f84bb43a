"""A grid of pictures with titles, and the two files it becomes in a run's folder: <name>.png and <name>.json."""

import functools
import io
import json
import os
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

GAP = 6  # pixels between pictures and around them
LEAST_SIDE = 96  # pixels; smaller pictures are enlarged
TITLE_SIZE = 12
CAPTION_SIZE = 11
MAX_LINES = 3  # of a caption; what is longer ends in '…'
PAPER, INK, QUIET = (255, 255, 255), (28, 32, 36), (82, 90, 98)
HEAT_COLOURS = 'inferno'  # of matplotlib; its lightness rises evenly, so it reads without colour, too
HEAT_OPACITY = 0.65  # where the heat is greatest


class Drawing(NamedTuple):
  """Pictures for the report.

  images: uint8 [R, C, H, W, 3]; columns: C titles, or () for none; cells: R lists of C captions, or None.
  """

  title: str
  caption: str
  images: np.ndarray
  columns: tuple[str, ...] = ()
  cells: list[list[str]] | None = None


def save_drawing(directory: epath.Path, name: str, drawing: Drawing) -> None:
  """Writes `drawing` as <name>.png (the montage) and <name>.json (title and caption) into `directory`.

  Raises:
    ValueError: when images, columns and cells do not fit together.
  """
  buffer = io.BytesIO()
  montage(drawing).save(buffer, format='PNG', optimize=True)
  directory = epath.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  (directory / f'{name}.png').write_bytes(buffer.getvalue())
  about = json.dumps({'title': drawing.title, 'caption': drawing.caption}, ensure_ascii=False)
  (directory / f'{name}.json').write_bytes(about.encode())


def in_rows(
  pictures: np.ndarray, captions: Sequence[str], columns: int
) -> tuple[np.ndarray, list[list[str]]]:
  """Lays pictures out in rows: images and cells of a Drawing, the places left over white and without a caption.

  Args:
    pictures: uint8 [N, H, W, 3], N ≥ 1.
    captions: N texts.
    columns: pictures in a row; fewer where there are fewer pictures.

  Returns:
    uint8 [R, C, H, W, 3], and R lists of C texts.
  """
  columns = min(columns, len(pictures))
  empty = -len(pictures) % columns
  white = np.full((empty, *pictures.shape[1:]), 255, np.uint8)
  texts = [*captions, *[''] * empty]
  images = np.concatenate([pictures, white]).reshape(-1, columns, *pictures.shape[1:])
  return images, [texts[i : i + columns] for i in range(0, len(texts), columns)]


def overlay(pictures: np.ndarray, heat: np.ndarray) -> np.ndarray:
  """Lays heat over pictures in grey, each map scaled by itself: its least value shows the picture, its largest the heat.

  Args:
    pictures: uint8 [N, H, W, 3].
    heat: float [N, h, w], resized (bicubic) to the pictures.

  Returns:
    uint8 [N, H, W, 3].
  """
  colours = matplotlib.colormaps[HEAT_COLOURS]
  laid = []
  for picture, values in zip(pictures, np.asarray(heat, np.float32), strict=True):
    values = (values - values.min()) / max(float(np.ptp(values)), 1e-12)
    size = picture.shape[1::-1]
    smooth = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    grey = np.asarray(Image.fromarray(picture).convert('L'), np.float32)[..., None]
    opacity = HEAT_OPACITY * smooth
    laid.append(grey * (1 - opacity) + 255 * colours(smooth[..., 0])[..., :3] * opacity)
  return np.rint(np.stack(laid)).astype(np.uint8)


def enlargement(height: int, width: int) -> int:
  """Returns the least whole factor that makes both sides of a picture at least LEAST_SIDE pixels."""
  return max(1, -(-LEAST_SIDE // min(height, width)))


def montage(drawing: Drawing) -> Image.Image:
  """Returns the pictures of `drawing` as one RGB picture: titles above the columns, captions under the cells."""
  images = np.asarray(drawing.images)
  _check(drawing, images)
  rows, columns, height, width, _ = images.shape
  factor = enlargement(height, width)
  height, width = height * factor, width * factor
  title_font, caption_font = _font(TITLE_SIZE), _font(CAPTION_SIZE)
  titles = [wrap(t, title_font, width) for t in drawing.columns]
  captions = [[wrap(t, caption_font, width) for t in row] for row in drawing.cells or []]
  head = _text_height(titles, TITLE_SIZE)
  feet = [_text_height(row, CAPTION_SIZE) for row in captions] or [0] * rows

  sheet = Image.new(
    'RGB', (columns * (width + GAP) + GAP, GAP + head + sum(feet) + rows * (height + GAP)), PAPER
  )
  draw = ImageDraw.Draw(sheet)
  for c, lines in enumerate(titles):
    _write(draw, lines, GAP + c * (width + GAP), GAP, width, title_font, TITLE_SIZE, INK)
  top = GAP + head
  for r in range(rows):
    for c in range(columns):
      left = GAP + c * (width + GAP)
      picture = Image.fromarray(images[r, c])
      sheet.paste(picture.resize((width, height), Image.Resampling.BICUBIC), (left, top))
      if captions:
        _write(draw, captions[r][c], left, top + height + 3, width, caption_font, CAPTION_SIZE, QUIET)
    top += height + feet[r] + GAP
  return sheet


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
  # Pillow's own font has no λ, no × and no umlauts, which captions and class names do have.
  return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), 'fonts/ttf/DejaVuSans.ttf'), size)


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
  """Returns `text` in at most MAX_LINES lines no wider than `width` pixels; what does not fit ends in '…'."""
  lines = []
  for paragraph in str(text).split('\n'):
    line = ''
    for word in paragraph.split():
      longer = f'{line} {word}'.strip()
      if line and font.getlength(longer) > width:
        lines.append(line)
        longer = word
      line = longer
    lines.append(line)
  if len(lines) > MAX_LINES:
    lines = [*lines[: MAX_LINES - 1], ' '.join(lines[MAX_LINES - 1 :])]
  return [_shorten(line, font, width) for line in lines]


def _shorten(line: str, font: ImageFont.FreeTypeFont, width: int) -> str:
  if font.getlength(line) <= width:
    return line
  while line and font.getlength(line + '…') > width:
    line = line[:-1]
  return line.rstrip() + '…'


def _text_height(blocks: list[list[str]], size: int) -> int:
  """Returns the pixels that the tallest of some wrapped texts needs, with a margin; 0 when all are empty."""
  lines = max((len(block) for block in blocks if any(block)), default=0)
  return lines * round(size * 1.3) + 7 if lines else 0


def _write(draw, lines, left, top, width, font, size, colour) -> None:
  for i, line in enumerate(lines):
    draw.text((left + width / 2, top + i * round(size * 1.3)), line, fill=colour, font=font, anchor='ma')


def _check(drawing: Drawing, images: np.ndarray) -> None:
  if images.ndim != 5 or images.shape[-1] != 3 or images.dtype != np.uint8 or 0 in images.shape:
    raise ValueError(
      f"drawing '{drawing.title}': images are {images.dtype} {list(images.shape)}; expected uint8 [R, C, H, W, 3]"
    )
  rows, columns = images.shape[:2]
  if drawing.columns and len(drawing.columns) != columns:
    raise ValueError(f"drawing '{drawing.title}': {len(drawing.columns)} column titles for {columns} columns")
  if drawing.cells is not None and [len(row) for row in drawing.cells] != [columns] * rows:
    raise ValueError(f"drawing '{drawing.title}': captions are not {rows} rows of {columns}")

"""A grid of pictures with titles and captions, and the two files it becomes in a run's folder: <name>.png and <name>.json."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from etils import epath
from PIL import Image

from mimic_jax.runtime import files
from mimic_jax.runtime.errors import READ_ERRORS, UserError

HEAT_COLOURS = 'inferno'  # of matplotlib; its lightness rises evenly, so it reads without colour, too
HEAT_OPACITY = 0.65  # where the heat is greatest


class Drawing(NamedTuple):
  """Pictures for the report.

  images: uint8 [R, C, H, W, 3]; columns: C titles, or () for none; cells: R lists of C captions, or None; ids: of the
  pictures, row by row, where they have any. White pictures at the end are places left over.
  """

  title: str
  caption: str
  images: np.ndarray
  columns: Sequence[str] = ()
  cells: list[list[str]] | None = None
  ids: Sequence[str] = ()


def save_drawing(directory: epath.Path, name: str, drawing: Drawing) -> None:
  """Writes `drawing` as <name>.png (the pictures side by side) and <name>.json (all else) into `directory`.

  Raises:
    ValueError: when images, columns and cells do not fit together.
  """
  images = np.asarray(drawing.images)
  _check(drawing, images)
  rows, columns, height, width, _ = images.shape
  sheet = images.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
  buffer = io.BytesIO()
  Image.fromarray(sheet).save(buffer, format='PNG', optimize=True)
  directory = epath.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  (directory / f'{name}.png').write_bytes(buffer.getvalue())
  about = {k: v for k, v in drawing._asdict().items() if k != 'images'}
  files.write_json(directory / f'{name}.json', {**about, 'grid': [rows, columns]})


def read_drawing(directory: epath.Path, name: str) -> Drawing:
  """Reads what `save_drawing` wrote; what an earlier version did, whose captions are in the picture, is one picture.

  Raises:
    UserError: naming the file that can't be read.
  """
  path = epath.Path(directory) / f'{name}.json'
  about = files.read_json(path) if path.exists() else {}
  try:
    sheet = np.asarray(Image.open(io.BytesIO((path.parent / f'{name}.png').read_bytes())).convert('RGB'))
    rows, columns = about.pop('grid', (1, 1))
    height, width = sheet.shape[0] // rows, sheet.shape[1] // columns
    images = sheet.reshape(rows, height, columns, width, 3).transpose(0, 2, 1, 3, 4)
    return Drawing(**{'title': name, 'caption': '', **about}, images=images)
  except READ_ERRORS as e:
    raise UserError(
      f'{path.parent / name}.png: not a sheet of pictures; expected what mimic_jax wrote'
    ) from e


def places(drawing: Drawing) -> list[tuple[np.ndarray, str, str]]:
  """Returns of every picture, but the places left over, itself, uint8 [H, W, 3], its name (id, column or title) and caption."""
  rows, _, *shape = drawing.images.shape
  pictures = list(drawing.images.reshape(-1, *shape))
  while len(pictures) > 1 and pictures[-1].min() == 255:
    pictures.pop()
  names = [*drawing.ids] or [*drawing.columns] * rows or [drawing.title] * len(pictures)
  texts = [text for row in drawing.cells or () for text in row] or [''] * len(pictures)
  return list(zip(pictures, names, texts))


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

"""Pictures that somebody hands over, as a source without labels."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from mimic_jax.data import source as sources
from mimic_jax.runtime.errors import UserError

Picture = str | os.PathLike[str] | Image.Image | np.ndarray
MAX_PIXELS = 50_000_000  # a picture with more is refused before it is decoded


class Pictures:
  """Files, PIL pictures and arrays in one row (data/source.py: a Source); labels are −1.

  Args:
    pictures: paths, PIL pictures of any mode, arrays uint8 [H, W, 3] (RGB) or [H, W].
    ids: their names, each once.
    image_shape: (H, W, 3) where all have that size, else None.
  """

  class_names: tuple[str, ...] = ()

  def __init__(
    self,
    pictures: Sequence[Picture],
    ids: Sequence[str],
    image_shape: tuple[int, int, int] | None = None,
  ) -> None:
    self._pictures, self._ids = pictures, ids
    self.image_shape = image_shape

  def __len__(self) -> int:
    return len(self._pictures)

  def __getitem__(self, i: int) -> dict[str, Any]:
    with self.open(i) as image, sources.reading(self._ids[i]):
      return {'image': np.array(sources.to_rgb(sources.upright(image))), 'label': -1, 'id': self._ids[i]}

  def open(self, i: int) -> Image.Image:
    """Returns picture i, of a file only its header; raises BadImage."""
    picture = self._pictures[i]
    if isinstance(picture, np.ndarray):
      return Image.fromarray(picture)
    if isinstance(picture, Image.Image):
      return picture.copy()  # whoever reads it closes it
    return sources.open_image(os.fspath(picture), MAX_PIXELS)

  def id(self, i: int) -> str:
    return self._ids[i]

  def label(self, i: int) -> int:
    return -1

  def content_hash(self, i: int) -> str:
    return sources.array_hash(self[i]['image'])

  def record(self) -> dict[str, Any]:
    return {'source': 'pictures', 'count': len(self)}

  def size(self, i: int) -> tuple[int, int, int] | None:
    """Returns (H, W, 3) of picture i as it is seen, from its header; None where it can't be read."""
    try:
      with self.open(i) as image, sources.reading(self._ids[i]):
        return (*sources.upright_size(image), 3)
    except sources.BadImage:
      return None


def in_a_row(images: Any) -> list[Picture]:
  """Returns what `Model.predict` was given, one picture or several, as a list.

  Raises:
    UserError: on what is no picture, naming its place, and on arrays of another type or shape than uint8 [H, W, 3] or [H, W].
  """
  one = isinstance(images, str | os.PathLike | Image.Image) or (
    isinstance(images, np.ndarray) and (images.ndim == 2 or (images.ndim == 3 and images.shape[-1] == 3))
  )
  try:
    found = [images] if one else list(images)
  except TypeError:
    found = [images]
  for k, picture in enumerate(found):
    if isinstance(picture, np.ndarray):
      fits = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[-1] == 3)
      if picture.dtype != np.uint8 or not fits or not picture.size:
        raise UserError(
          f'images[{k}] is an array of {picture.dtype} {list(picture.shape)}; expected uint8 [H, W, 3] or [H, W], 0..255'
        )
    elif not isinstance(picture, str | os.PathLike | Image.Image):
      raise UserError(
        f'images[{k}] is of type {type(picture).__name__}; expected a path, a PIL picture or an array uint8 [H, W, 3]'
      )
  return found

"""Random crops of pictures of many sizes: where they lie, and cutting them out of a file that is read only once."""

import numpy as np
from PIL import Image, JpegImagePlugin

from mimic_jax.boxes import ATTEMPTS
from mimic_jax.data import source as sources

FILTERS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
KEY = 0x63726F70  # second half of the Philox key: what the numbers are for


def crop_uniforms(seed: int, epoch: int, index: int, view: int) -> np.ndarray:
  """Returns float64 [10, 4] in [0, 1) for one crop, by counter: the same whoever draws it, and whenever."""
  generator = np.random.Generator(np.random.Philox(key=[seed, KEY], counter=[0, view, index, epoch]))
  return generator.random((ATTEMPTS, 4))


def read_crops(
  image: Image.Image, path: str, boxes: np.ndarray, size: int, interpolation: str, reduced: bool = True
) -> np.ndarray:
  """Decodes a picture once, cuts boxes out and resizes each, antialiased.

  A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where every crop still has `size` pixels each way. The crops keep their
  exact places: they may begin and end between two of the larger pixels.

  Args:
    image: opened, not necessarily decoded.
    path: its name in messages.
    boxes: int [V, 4] top, left, height, width in pixels of the upright picture at full size.
    size: side of the results.
    interpolation: 'bilinear' or 'bicubic'.
    reduced: whether a JPEG may be decoded smaller; else it is decoded in full, as everybody else does.

  Returns:
    uint8 [V, size, size, 3].

  Raises:
    BadImage: where the pixels can't be decoded.
  """
  with sources.reading(path):
    factor = _reduction(image, int(boxes[:, 2:].min()), size) if reduced else 1
    if factor > 1:
      image.draft(None, (image.width // factor, image.height // factor))
    whole = sources.upright(image)
    out = np.empty((len(boxes), size, size, 3), np.uint8)
    for k, (top, left, h, w) in enumerate(boxes.tolist()):
      # First cut, then resized within the cut: the kernel doesn't reach beyond the crop.
      start, upper = left // factor, top // factor
      cut = whole.crop((start, upper, -(-(left + w) // factor), -(-(top + h) // factor)))
      inside = (
        left / factor - start,
        top / factor - upper,
        (left + w) / factor - start,
        (top + h) / factor - upper,
      )
      out[k] = np.asarray(sources.to_rgb(cut).resize((size, size), FILTERS[interpolation], box=inside))
    return out


def _reduction(image: Image.Image, shortest: int, size: int) -> int:
  """Returns by which factor a picture may be decoded smaller, so that `shortest` pixels remain at least `size`.

  Where the size isn't a multiple of the factor, a JPEG's last row and column stand for fewer pixels; in a picture that is
  still to be turned these would come first, so it is decoded in full.
  """
  if not isinstance(image, JpegImagePlugin.JpegImageFile):
    return 1
  turned = sources.is_turned(image)
  fitting = (
    f for f in (8, 4, 2) if shortest // f >= size and not (turned and (image.width % f or image.height % f))
  )
  return next(fitting, 1)

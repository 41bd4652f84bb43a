"""The faces of a picture, cut out as those were that a model learned from."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from PIL import Image

from mimic_jax.data import faces as detectors
from mimic_jax.data import source as sources
from mimic_jax.data.faces import alignment
from mimic_jax.runtime.errors import one_of

# Where the record does not say how faces were cut out: their box and a little around it.
UNKNOWN = 'box(0.1)'


class Found(NamedTuple):
  """A face: its box (left, top, width, height) in pixels of the upright picture, its score 0..1, and what was cut out."""

  box: tuple[float, float, float, float]
  score: float
  image: Image.Image


class Cutter:
  """Finds and cuts out faces; threads may share it.

  Args:
    reading: how the model's pictures were read.
    align: 'auto' is as recorded there, else an alignment (data/faces/alignment.py).
    detector: one of data.faces.DETECTORS.

  Attributes:
    note: what is to be said of the way they are cut out; '' for nothing.

  Raises:
    UserError: on another alignment or detector, and where the detector is not installed.
  """

  def __init__(self, reading: Mapping[str, Any], align: str = 'auto', detector: str = 'mtcnn') -> None:
    recorded = reading['align']
    known = recorded['align'] in ('none', 'mixed')
    self._align = alignment.parse(align, '--faces', auto=UNKNOWN if known else recorded['align'])
    self._size = int(recorded.get('size') or reading['image_size'])
    self._detect = detectors.DETECTORS[one_of('--detector', detector, detectors.DETECTORS)]()
    self.note = ''
    if align == 'auto' and known:
      how = recorded.get('of_release', recorded['align'])
      self.note = (
        f"the model's record says of its faces '{how}': they are cut out as {UNKNOWN} (--faces=… says how)"
      )

  def __call__(self, picture: Image.Image) -> list[Found]:
    """Returns the faces of a picture of any mode, the surest first; of one that can't be cut out nothing is returned."""
    image = sources.to_rgb(sources.upright(picture))
    found = []
    for face in self._detect(image):
      try:
        cut = alignment.apply(self._align, image, face.box, face.points, self._size)
      except ValueError:  # outside the picture, or points in one place
        continue
      found.append(Found(tuple(float(v) for v in face.box), float(face.score), cut))
    return found

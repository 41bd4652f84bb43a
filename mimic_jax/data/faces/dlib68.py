"""The 68 points of a face by dlib, whose network for them comes in the package face-recognition-models: nothing is downloaded."""

import importlib.metadata
import importlib.util
import os
from typing import NamedTuple

import numpy as np
from PIL import Image

from mimic_jax.runtime.errors import UserError

PACKAGES = ('dlib-bin', 'face-recognition-models')
_MODEL = 'shape_predictor_68_face_landmarks.dat'
UPSAMPLED = (0, 1, 2)  # how often a picture is doubled until a face is found: none below 80 pixels is
MOST_PIXELS = 4_000_000  # of a doubled picture


class Found(NamedTuple):
  """A face: float64 [4] left, top, width, height in pixels, and its points, float32 [68, 2] as in landmarks.py."""

  box: np.ndarray
  points: np.ndarray


def name() -> str:
  """Returns what finds the points, with its versions, for records; raises UserError where it is not installed."""
  versions = []
  for package in PACKAGES:
    try:
      versions.append(f'{package} {importlib.metadata.version(package)}')
    except importlib.metadata.PackageNotFoundError:
      raise UserError(
        f"--landmarks 68 needs {package}, which is not installed; expected `pip install 'mimic-jax[landmarks]'`"
      ) from None
  return ', '.join(versions)


class Finder:
  """Finds faces and their points in a picture."""

  def __init__(self) -> None:
    """Reads the network; raises UserError where it is not installed."""
    name()
    import dlib

    # not imported: face_recognition_models asks for pkg_resources, which newer setuptools lack
    place = importlib.util.find_spec('face_recognition_models').submodule_search_locations[0]
    self._find = dlib.get_frontal_face_detector()
    self._predict = dlib.shape_predictor(os.path.join(place, 'models', _MODEL))

  def __call__(self, image: Image.Image) -> list[Found]:
    """Returns the faces of an upright RGB picture, [] where none is found."""
    pixels = np.ascontiguousarray(image)
    boxes = ()
    for times in UPSAMPLED:
      if boxes or (times and image.width * image.height * 4**times > MOST_PIXELS):
        break
      boxes = self._find(pixels, times)
    found = []
    for box in boxes:
      points = [(p.x, p.y) for p in self._predict(pixels, box).parts()]
      edges = np.array([box.left(), box.top(), box.width(), box.height()], np.float64)
      found.append(Found(edges, np.array(points, np.float32) + 0.5))  # dlib's are of pixels' middles
    return found

"""The 68 points of a face from five: a mean face laid on those that the detector of `mimic align` finds, for where dlib is not to be had.

MEAN and FIVE are means over 401 portraits (faces_wild of the project's test data, of 420 those with one face by both networks): dlib's points and
this detector's, brought together by turns, scales and shifts, made symmetric; 1 is the distance of the eyes. Laid on the other half, with the mean of
one, points were off dlib's by .05 (eyes), .08 (brows, nose, mouth) and .17 (outline) of that distance (medians).
"""

import numpy as np
from PIL import Image

from mimic_jax.data.faces import alignment, mtcnn, swap
from mimic_jax.data.faces.dlib68 import Found

MEAN = np.array(
  [
    (-1.162, 0.043), (-1.152, 0.342), (-1.122, 0.638), (-1.070, 0.930), (-0.970, 1.203), (-0.801, 1.440), (-0.574, 1.617), (-0.306, 1.736),
    (0.000, 1.761), (0.306, 1.736), (0.574, 1.617), (0.801, 1.440), (0.970, 1.203), (1.070, 0.930), (1.122, 0.638), (1.152, 0.342), (1.162, 0.043),
    (-0.923, -0.189), (-0.782, -0.320), (-0.583, -0.362), (-0.376, -0.339), (-0.181, -0.263),
    (0.181, -0.263), (0.376, -0.339), (0.583, -0.362), (0.782, -0.320), (0.923, -0.189),
    (0.000, -0.037), (0.000, 0.159), (0.000, 0.354), (0.000, 0.553),
    (-0.231, 0.689), (-0.121, 0.732), (0.000, 0.767), (0.121, 0.732), (0.231, 0.689),
    (-0.693, 0.005), (-0.571, -0.065), (-0.425, -0.065), (-0.298, 0.024), (-0.435, 0.050), (-0.578, 0.050),
    (0.298, 0.024), (0.425, -0.065), (0.571, -0.065), (0.693, 0.005), (0.578, 0.050), (0.435, 0.050),
    (-0.447, 1.089), (-0.289, 1.006), (-0.122, 0.968), (0.000, 0.997), (0.122, 0.968), (0.289, 1.006), (0.447, 1.089),
    (0.296, 1.241), (0.133, 1.305), (0.000, 1.317), (-0.133, 1.305), (-0.296, 1.241),
    (-0.383, 1.094), (-0.124, 1.061), (0.000, 1.073), (0.124, 1.061), (0.383, 1.094), (0.126, 1.163), (0.000, 1.177), (-0.126, 1.163),
  ]
)  # fmt: skip
FIVE = np.array([(-0.513, -0.020), (0.513, -0.020), (0.0, 0.578), (-0.445, 1.099), (0.445, 1.099)])


def name() -> str:
  """Returns what finds the points, with its versions, for records; raises UserError where it is not installed."""
  return f'{mtcnn.detector_name()}, a mean face on its five points'


class Finder:
  """Finds faces in a picture and lays the mean face on each."""

  def __init__(self) -> None:
    """Reads the networks; raises UserError where they are not installed."""
    self._find = mtcnn.Detector()

  def __call__(self, image: Image.Image) -> list[Found]:
    """Returns the faces of an upright RGB picture, [] where none is found."""
    found = []
    for face in self._find(image):
      points = swap.moved(MEAN, alignment.similarity(FIVE, face.points + 0.5))
      found.append(Found(np.asarray(face.box, np.float64), points.astype(np.float32)))
    return found

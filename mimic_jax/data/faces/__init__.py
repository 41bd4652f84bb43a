"""Faces in pictures: finding them and cutting them out."""

from collections.abc import Callable, Sequence

from PIL import Image

from mimic_jax.data.faces import mtcnn

Detector = Callable[[Image.Image], Sequence[mtcnn.Face]]

# What finds faces in an upright RGB picture, by name: what makes it, and what gives its name for records.
DETECTORS: dict[str, Callable[[], Detector]] = {'mtcnn': mtcnn.Detector}
NAMES = {'mtcnn': mtcnn.detector_name}

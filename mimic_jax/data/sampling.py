"""Which picture comes when, other than in shuffled order."""

import dataclasses

import numpy as np

from mimic_jax.data import source as sources
from mimic_jax.data.source import Source
from mimic_jax.runtime.errors import UserError

SAMPLERS = ('shuffle', 'balanced')
_DRAWS = 0x64726177  # second half of the Philox key: what the numbers are for


@dataclasses.dataclass(frozen=True)
class Balanced:
  """Draws every class equally often, with replacement: a picture's weight is 1 / its class's count.

  An epoch has as many draws as the source has pictures. Draw k of an epoch is a function of (seed, epoch, k) alone, by
  counter, so that any process may begin anywhere.

  Attributes:
    pictures: int64 [n], the labelled pictures, class after class.
    starts, counts: int64 [K'], where each class that has pictures begins in `pictures`, and how many it has.
    epoch_draws: N.
    seed: 0..2³² − 1.
  """

  pictures: np.ndarray
  starts: np.ndarray
  counts: np.ndarray
  epoch_draws: int
  seed: int

  def __call__(self, position: int, k: int) -> np.ndarray:
    """Returns int64 [3] (epoch, index, k) of the run's draw number `position` ≥ 0, which is draw k of its epoch."""
    epoch = position // self.epoch_draws
    generator = np.random.Generator(np.random.Philox(key=[self.seed, _DRAWS], counter=[0, 0, k, epoch]))
    which, place = generator.random(2)
    c = int(which * len(self.counts))
    index = self.pictures[self.starts[c] + int(place * self.counts[c])]
    return np.array([epoch, index, k], np.int64)


def balanced(source: Source, seed: int) -> Balanced:
  """Returns the balanced order of a source's pictures.

  A distribution counts as its likeliest class, of several the first. Classes without pictures are left out, and so are
  pictures without a label (−1).

  Raises:
    UserError: where no picture has a label.
  """
  n = len(source)
  classes = sources.dominant(source.label(i) for i in range(n if source.class_names else 0))
  order = np.argsort(classes, kind='stable')
  order = order[classes[order] >= 0]
  if not order.size:
    raise UserError(
      f"data.sampler is 'balanced', but none of the {n} pictures has a label; expected 'shuffle', or a source with "
      'classes'
    )
  _, starts, counts = np.unique(classes[order], return_index=True, return_counts=True)
  return Balanced(order, starts, counts, n, seed)

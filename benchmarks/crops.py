"""Times crop, flip and normalisation of pictures in memory on one core, ours against Pillow's, in turn (A B A B) in one process.

  taskset -c 0 python -m benchmarks.crops [--side 48] [--size 224] [--rounds 9]

Ours is `augment.training_views` of a batch of 64, two crops of each, bilinear, as the compiled step has it; Pillow's a loop of crop,
resize, transpose, division and normalisation in NumPy. Seconds are of the processor: what else runs there does not count.
"""

import argparse
import itertools
import time

import jax
import numpy as np
from PIL import Image

from benchmarks import cases
from mimic_jax import augment

IMAGES, VIEWS = 64, 2
MEAN, STD = np.array((0.485, 0.456, 0.406), np.float32), np.array((0.229, 0.224, 0.225), np.float32)


def main() -> None:
  """Prints the median time of a crop of each and the ratio of each round."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--side', type=int, default=48, help='of the pictures')
  parser.add_argument('--size', type=int, default=224, help='of the crops')
  parser.add_argument('--rounds', type=int, default=9)
  given = parser.parse_args()
  rng = np.random.default_rng(0)
  pictures = rng.integers(0, 256, (IMAGES, given.side, given.side, 3), np.uint8)

  @jax.jit
  def views(key: jax.Array, x: jax.Array) -> jax.Array:
    return augment.training_views(
      key, x, views=VIEWS, size=given.size, scale=(0.67, 1.0), ratio=(3 / 4, 4 / 3), interpolation='bilinear',
      flip=0.5, mean=tuple(MEAN), std=tuple(STD),
    )  # fmt: skip

  turns, draw = itertools.count(), np.random.default_rng(1)

  def ours() -> None:
    views(jax.random.key(next(turns)), pictures).block_until_ready()

  def pillows() -> None:
    out = np.empty((IMAGES, VIEWS, given.size, given.size, 3), np.float32)
    for i, picture in enumerate(pictures):
      image = Image.fromarray(picture)
      for v in range(VIEWS):
        side = int(given.side * draw.uniform(0.67, 1.0) ** 0.5)
        left, top = draw.integers(0, given.side - side + 1, 2)
        box = (left, top, left + side, top + side)
        crop = image.resize((given.size, given.size), Image.Resampling.BILINEAR, box=box)
        if draw.random() < 0.5:
          crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        out[i, v] = (np.asarray(crop, np.float32) / 255.0 - MEAN) / STD

  seconds = cases.in_turn({'ours': ours, 'Pillow': pillows}, given.rounds, warm=1, clock=time.process_time)
  print(cases.compared(seconds, 'µs a crop', 1e6 / (IMAGES * VIEWS)))


if __name__ == '__main__':
  main()

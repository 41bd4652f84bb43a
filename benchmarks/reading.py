"""Times reading pictures and resizing them to 224 by how many threads do it, in turn in one process.

  taskset -c 0 python -m benchmarks.reading FOLDER [--pictures 256] [--rounds 7]

FOLDER is a source of pictures of many sizes, of which the first so many are read once a turn. What else runs there does not count in the processor's
time; with more cores than one the clock's is what matters.
"""

import argparse
import functools
import statistics
import time

import numpy as np

from benchmarks import cases
from mimic_jax import data
from mimic_jax.data import pipeline, selection

THREADS = (1, 2, 4, 8, 16)


def main() -> None:
  """Prints the median milliseconds of a picture for each number of threads."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('folder')
  parser.add_argument('--pictures', type=int, default=256)
  parser.add_argument('--rounds', type=int, default=7)
  given = parser.parse_args()
  every = data.build('folder', given.folder, 'train', data.defaults())
  source = selection.Selected(every, np.arange(given.pictures))

  def read(threads: int) -> None:
    batches = pipeline.eval_batches(
      source, batch_images=64, image_size=224, interpolation='bicubic', threads=threads
    )
    for _ in range(-(-given.pictures // 64)):
      next(batches)

  calls = {str(threads): functools.partial(read, threads) for threads in THREADS}
  for name, clock in (('processor', time.process_time), ('clock', time.perf_counter)):
    for threads, seconds in cases.in_turn(calls, given.rounds, warm=1, clock=clock).items():
      print(
        f'{threads:>2} threads: {1e3 * statistics.median(seconds) / given.pictures:.2f} ms a picture by the {name}'
      )


if __name__ == '__main__':
  main()

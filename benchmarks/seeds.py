"""Times the seeds of a small model one after the other against one vmapped axis of them, in turn (A B A B) in one process.

  python -m benchmarks.seeds study:tiny,faces,mae,mscl [--seeds 4] [--rounds 5]

A is a step of each seed in turn, B a step of all as one program; both are the whole step of `mimic train`, on random pictures.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import cases
from mimic_jax.runtime import sharding
from mimic_jax.training import planned


def main() -> None:
  """Prints the median seconds of a step of all seeds either way, and the ratio of each round."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('config')
  parser.add_argument('--seeds', type=int, default=4)
  parser.add_argument('--rounds', type=int, default=5)
  given = parser.parse_args()
  config = planned.configured(given.config, [])
  (name,) = [s for s in ('pretrain', 'finetune') if s in config]
  program = planned.program(config, name, sharding.make_mesh(), classes=7)
  keys = [jax.random.key(seed) for seed in range(given.seeds)]
  rng = np.random.default_rng(0)
  side = config.model.image_size
  batch = config[name].batch_images
  pictures = jnp.asarray(rng.integers(0, 256, (batch, side, side, 3), np.uint8))
  one = {
    'image': pictures,
    'label': jnp.arange(batch, dtype=jnp.int32) % 7,
    'index': jnp.arange(batch, dtype=jnp.int32),
  }
  states = [program.init(key) for key in keys]
  together = jax.tree.map(lambda *x: jnp.stack(x), *states)
  many = {k: jnp.stack([v] * given.seeds) for k, v in one.items()}
  all_keys = jnp.stack(keys)
  vmapped = jax.jit(jax.vmap(program.step), donate_argnums=0)

  def in_turn() -> None:
    for k, key in enumerate(keys):
      states[k], _ = program.step(states[k], one, key)
    jax.block_until_ready(states)

  def at_once() -> None:
    nonlocal together
    together, _ = vmapped(together, many, all_keys)
    jax.block_until_ready(together)

  print(cases.compared(cases.in_turn({'in turn': in_turn, 'vmapped': at_once}, given.rounds, warm=2), 's'))


if __name__ == '__main__':
  main()

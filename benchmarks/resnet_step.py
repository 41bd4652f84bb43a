"""Times one training step of ResNet-18 on 128 pictures of 48 × 48, ours against PyTorch's, in turn (A B A B) in one process.

  python -m benchmarks.resnet_step [--rounds 5] [--threads 2]

Ours is the whole step of `finetune_ferplus:small_resnet,ce`: crop, flip, normalisation, loss, gradient, Adam, checks. PyTorch's gets
crops that are ready: forward, cross-entropy, backward, Adam.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import torch
from ml_collections import ConfigDict

from mimic_jax import config as config_lib
from mimic_jax import objectives
from mimic_jax.runtime import sharding
from mimic_jax.training import step as step_lib
from tests import peers

IMAGES, SIDE, CLASSES = 128, 48, 8


def ours() -> Callable[[], None]:
  """Returns a call that takes one of our steps."""
  config = config_lib.load(*config_lib.find_config('finetune_ferplus:small_resnet,ce'))
  stage = ConfigDict(config.finetune)
  stage.batch_images = IMAGES
  objective = objectives.make(stage, config.model, tuple(map(str, range(CLASSES))), 'objective')
  program = step_lib.make_program(stage, objective, 25_045, sharding.make_mesh())
  state, key = program.init(jax.random.key(0)), jax.random.key(1)
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.integers(0, 256, (IMAGES, SIDE, SIDE, 3), np.uint8),
    'label': rng.integers(0, CLASSES, IMAGES).astype(np.int32),
    'index': np.arange(IMAGES, dtype=np.int32),
  }
  batch = jax.device_put(batch)

  def step() -> None:
    nonlocal state
    state, measured = program.step(state, batch, key)
    jax.block_until_ready((state, measured))

  return step


def theirs() -> Callable[[], None]:
  """Returns a call that takes one of PyTorch's steps."""
  net = peers.torch_resnet(torch, (2, 2, 2, 2), False, small_stem=True)
  net.fc = torch.nn.Linear(512, CLASSES)
  optimiser = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=5e-4)
  x, y = torch.randn(IMAGES, 3, SIDE, SIDE), torch.randint(0, CLASSES, (IMAGES,))

  def step() -> None:
    optimiser.zero_grad()
    torch.nn.functional.cross_entropy(net.fc(net(x)), y).backward()
    optimiser.step()

  return step


def main() -> None:
  """Prints the median of each and the ratio of each round."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--threads', type=int, default=2, help="PyTorch's")
  given = parser.parse_args()
  torch.set_num_threads(given.threads)
  steps = {'ours': ours(), 'PyTorch': theirs()}
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  for _ in range(2):
    for step in steps.values():
      step()
  for _ in range(given.rounds):
    for name, step in steps.items():
      began = time.perf_counter()
      step()
      seconds[name].append(time.perf_counter() - began)
  for name, each in seconds.items():
    print(f'{name:8} median {statistics.median(each):.3f} s of {", ".join(f"{s:.3f}" for s in each)}')
  ratios = [a / b for a, b in zip(seconds['ours'], seconds['PyTorch'], strict=True)]
  print(f'ours / PyTorch: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})')


if __name__ == '__main__':
  main()

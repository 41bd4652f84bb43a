"""What is timed against PyTorch: training steps of ours on random pictures, and calls in turn."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mimic_jax import objectives
from mimic_jax.runtime import sharding
from mimic_jax.training import planned
from mimic_jax.training import step as step_lib

CLASSES = 7


class Case(NamedTuple):
  """A stage to take a step of.

  Attributes:
    config: that has it.
    stage: its name.
    images: of a batch.
    shape: of a picture [H, W, 3], or of a picture's crops, where the host makes them [1, H, W, 3].
  """

  config: str
  stage: str
  images: int
  shape: tuple[int, ...]


CASES = {
  'mae': Case('pretrain_imagenet1k:vitb16', 'pretrain', 8, (1, 224, 224, 3)),
  'mimic': Case('finetune_rafdb:vitb16', 'finetune', 4, (100, 100, 3)),
  'resnet': Case('finetune_ferplus:ours,ce', 'finetune', 128, (48, 48, 3)),
}


class Ours(NamedTuple):
  """A step of ours.

  Attributes:
    take: takes so many steps and waits for the last.
    compile_seconds: tracing and compiling.
  """

  take: Callable[[int], None]
  compile_seconds: float


def stage_of(case: Case, flags: Sequence[str] = ()) -> tuple[Mapping[str, Any], objectives.Objective]:
  """Returns a case's section of its config, which `flags` change, and what is learned."""
  config = planned.configured(case.config, [f'--config.{case.stage}.batch_images={case.images}', *flags])
  names = tuple(map(str, range(CLASSES)))
  return config[case.stage], objectives.make(config[case.stage], config['model'], names, 'objective')


def ours(case: Case, stage: Mapping[str, Any], learned: objectives.Objective) -> Ours:
  """Compiles a step of a case, whole: crops (of mae the host makes them), flips, normalisation, mixing, loss, gradient, optimiser, checks."""
  mesh, rng = sharding.make_mesh(), np.random.default_rng(0)
  batch = {
    'image': rng.integers(0, 256, (case.images, *case.shape), np.uint8),
    'label': rng.integers(0, CLASSES, case.images).astype(np.int32),
    'index': np.arange(case.images, dtype=np.int32),
  }
  held = jax.device_put(batch, sharding.over_batch(mesh))
  made = step_lib.make_program(stage, learned, 25_045, mesh)
  began = time.perf_counter()
  program = made.lower(held).compile()
  compile_seconds = time.perf_counter() - began
  state, key = made.init(jax.random.key(0)), jax.random.key(1)

  def take(steps: int) -> None:
    nonlocal state
    for _ in range(steps):
      state, measured = program(state, held, key, made.frozen.arrays)
    jax.block_until_ready((state, measured))

  return Ours(take, compile_seconds)


def in_turn(
  calls: Mapping[str, Callable[[], None]],
  rounds: int,
  warm: int,
  clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
  """Makes calls in turn (A B A B) and returns the seconds of each by `clock`, without those of `warm` rounds before."""
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for turn in range(-warm, rounds):
    for name, call in calls.items():
      began = clock()
      call()
      if turn >= 0:
        seconds[name].append(clock() - began)
  return seconds


def compared(seconds: Mapping[str, Sequence[float]], unit: str, scale: float = 1.0) -> str:
  """Returns lines of text: the median of each, and of each round the first's speed over the second's."""
  lines = [f'{name:8} median {scale * statistics.median(each):.4g} {unit}' for name, each in seconds.items()]
  (_, first), (name, second) = seconds.items()
  ratios = [b / a for a, b in zip(first, second, strict=True)]
  spread = f'{min(ratios):.2f} to {max(ratios):.2f}'
  return '\n'.join([*lines, f"our speed / {name}'s: median {statistics.median(ratios):.2f} ({spread})"])

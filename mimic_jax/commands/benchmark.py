"""Times a stage's training step on this machine: pictures per second, MFU, memory, and what its input costs.

  mimic benchmark --config CONFIG [--stage STAGE] [--steps 20] [--memory 16GiB] [--json FILE] [--config.field=value …]

Builds the stage with its real data and random weights, compiles its step, times it on one batch that stays on the devices and
with its real input, in turn. With --memory it also compiles the step for other batches, to find the largest that fits. Nothing is written but
--json. What the figures are: docs/performance.md.
"""

import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from mimic_jax import config as config_lib
from mimic_jax import objectives
from mimic_jax.runtime import chips, cli, compiled, feed, files, sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import planned, speed
from mimic_jax.training import stage as stage_lib
from mimic_jax.training import step as step_lib

WARM = 2  # steps before those that count
# the share between a batch that fits and one that does not at which looking for the largest ends
CLOSE = 0.03
UNITS = {'': 1, 'KiB': 2**10, 'MiB': 2**20, 'GiB': 2**30, 'KB': 10**3, 'MB': 10**6, 'GB': 10**9}


def stage_of(config: ConfigDict, name: str) -> stage_lib.Stage:
  """Returns a stage that is made of the config's data but for evaluations, ready to begin from random weights."""
  config = ConfigDict(config.to_dict())
  config[name].eval.splits, config[name].eval.without_duplicates = '', False
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
  run = stage_lib.Stage(config, name, epath.Path(), mesh)
  run.prepare(made_up=True)
  return run


def seconds_of(
  step: Callable[..., tuple[step_lib.State, Any]],
  state: step_lib.State,
  stream: Iterator[dict[str, jax.Array]],
  key: jax.Array,
  warm: int,
) -> tuple[step_lib.State, list[float]]:
  """Takes a step for each batch and returns the last state and the seconds of each step but the first `warm` and the last.

  As in training the next step is sent off before the one in front of it is waited for.
  """
  ends, before = [], None
  for batch in stream:
    state, measured = step(state, batch, key)
    if before is not None:
      jax.block_until_ready(before)
      ends.append(time.perf_counter())
    before = measured
  return state, [b - a for a, b in zip(ends[warm - 1 :], ends[warm:], strict=False)]


def needed(program: jax.stages.Compiled) -> int:
  """Returns the bytes that a compiled step needs on a device: arguments, results and temporaries, what is donated once."""
  said = compiled.summary(program)
  donated = int(program.memory_analysis().alias_size_in_bytes)
  return said['arguments'] + said['results'] + said['temporaries'] - donated


def largest(need: Callable[[int], int], memory: int, first: int, least: int = 1) -> tuple[int, int]:
  """Returns the largest n found with need(n) ≤ memory, 0 for none, and the smallest found above it; they lie close together.

  What is needed grows by about as much with each n, so that a line through what is known says where to look; every third try
  halves what is left.

  Args:
    need: grows; slow.
    memory: the bound.
    first: tried first.
    least: the smallest n.
  """
  low, high, n = 0, None, first
  known: dict[int, int] = {}
  while True:
    known[n] = need(n)
    low, high = (n, high) if known[n] <= memory else (low, n)
    if high is not None and (high <= least or (low and high - low <= max(1, CLOSE * low))):
      return low, high
    a, b = sorted(sorted(known, key=lambda k: abs(known[k] - memory))[:2]) if len(known) > 1 else (0, n)
    slope = max((known[b] - known.get(a, 0)) / (b - a), 1e-9)
    guess = b + (memory - known[b]) / slope
    if high is None:
      n = int(min(max((1 + CLOSE / 2) * guess, low) + 1, 64 * low))
    else:
      bottom = max(low, least - 1)
      n = (bottom + high) // 2 if len(known) % 3 == 0 else int(guess)
      n = min(max(n, bottom + 1), high - 1)


def largest_batch(run: stage_lib.Stage, batch: Mapping[str, jax.Array], memory: int) -> dict[str, Any]:
  """Finds the largest batch whose step needs no more than `memory` bytes on a device, by compiling it for several.

  Args:
    run: the stage.
    batch: one of its batches.
    memory: bytes on a device.

  Returns:
    'images': the largest that was found to fit, 0 for none; 'too_large': the smallest that was found not to.
  """
  unit = run.mesh.size * run.stage['accumulate']
  low, high = largest(
    lambda n: needed(_for_batch(run, batch, n * unit).compile()),
    memory,
    run.stage['batch_images'] // unit,
    2 if run.objective.pairs and unit == 1 else 1,
  )
  return {'images': low * unit, 'too_large': high * unit}


def _for_batch(run: stage_lib.Stage, batch: Mapping[str, jax.Array], images: int) -> jax.stages.Lowered:
  """Returns the step of a stage whose batches hold `images`, ready to be compiled."""
  stage = ConfigDict({**run.stage.to_dict(), 'batch_images': images})
  where = f'config.{run.name}.objective'
  objective = objectives.make(stage, run.config['model'], run.class_names, where)
  program = step_lib.make_program(stage, objective, run.items, run.mesh, run.program.frozen)
  place = sharding.over_batch(run.mesh)
  shapes = {
    k: jax.ShapeDtypeStruct((images, *x.shape[1:]), x.dtype, sharding=place) for k, x in batch.items()
  }
  return program.lower(shapes)


def _spread(seconds: Sequence[float]) -> dict[str, float]:
  """Returns median and quartiles in milliseconds."""
  low, middle, high = statistics.quantiles(seconds, n=4, method='inclusive')
  return {'median': 1e3 * middle, 'quartiles': [1e3 * low, 1e3 * high]}


def measure(run: stage_lib.Stage, steps: int, memory: int = 0) -> dict[str, Any]:
  """Times a stage.

  Args:
    run: from `stage_of`.
    steps: to time on one batch, and as many with real input.
    memory: bytes on a device to find the largest batch for; 0 = don't.

  Returns:
    What --json holds.
  """
  mesh, images = run.mesh, run.stage['batch_images'] * run.objective.pictures
  device = mesh.devices.flat[0]
  state, _ = run.initial_state()
  batches = run.batches(0)
  held = next(feed.on_devices(batches, 1, mesh, run.pictures))
  batches.close()  # it reads ahead, which would take the processor from what is timed
  began = time.perf_counter()
  program = run.program.lower(held).compile()
  compiling = time.perf_counter() - began
  step = lambda *a: program(*a, run.program.frozen.arrays)  # noqa: E731
  alone, fed = [], []
  # in turn, since a machine may be slower at one time than at another
  for part in (steps - steps // 2, steps // 2):
    once = (held for _ in range(WARM + part + 1))
    state, seconds = seconds_of(step, state, once, run.step_key, WARM)
    alone += seconds
    # the batches that are read ahead at the beginning come for free
    warm = WARM + run.stage['data']['prefetch']
    batches = run.batches(0)
    try:
      stream = feed.on_devices(batches, warm + part + 1, mesh, run.pictures)
      state, seconds = seconds_of(step, state, stream, run.step_key, warm)
    finally:
      batches.close()
    fed += seconds
  held_bytes, peak = chips.peak_memory(mesh.devices.flat), chips.peak_of(mesh.devices.flat)
  how = 'data sheet, bfloat16' if peak else 'not in the table'
  if device.platform == 'cpu':
    peak, how = chips.measured_peak(), 'measured, a product of float32 matrices of 2048 × 2048'
  on_one, with_input = _spread(alone), _spread(fed)
  rate = 1e3 * images / on_one['median']
  found = {
    'stage': run.name,
    'objective': run.stage['objective'],
    'devices': mesh.size,
    'device_kind': device.device_kind,
    'batch_images': run.stage['batch_images'],
    'steps': steps,
    'images_per_second': rate,
    'ms_per_step': on_one['median'],
    'ms_per_step_quartiles': on_one['quartiles'],
    'gflops_per_image': run.objective.flops_per_image() / 1e9,
    **speed.figures(rate, run.objective, mesh, peak),
    'peak_tflops_per_second': peak and peak / 1e12,
    'peak_from': how,
    'input_overhead': with_input['median'] / on_one['median'],
    'ms_per_step_with_input': with_input['median'],
    'ms_per_step_with_input_quartiles': with_input['quartiles'],
    'images_per_second_with_input': 1e3 * images / with_input['median'],
    'compile_seconds': compiling,
    'peak_memory_bytes': held_bytes or needed(program),
    'peak_memory_from': 'the device' if held_bytes else 'the compiled step',
  }
  if memory:
    found['largest_batch'] = {
      'memory_bytes': memory,
      **largest_batch(run, held, memory),
    }
  return found


def table(found: Mapping[str, Any]) -> str:
  """Returns what was found as lines of text."""

  def milliseconds(name: str) -> str:
    low, high = found[f'{name}_quartiles']
    return f'{found[name]:.1f} ms, half of the steps within {low:.1f} to {high:.1f}'

  peak = found['peak_tflops_per_second']
  against = f'{peak:.4g} TFLOP/s ({found["peak_from"]})' if peak else ''
  kind = f'{found["devices"]} × {found["device_kind"]}'
  rows = [
    ['stage', f'{found["stage"]} ({found["objective"]}), batch_images {found["batch_images"]}, on {kind}'],
    ['images_per_second', f'{found["images_per_second"]:.1f}'],
    ['ms_per_step', milliseconds('ms_per_step')],
    [
      'model TFLOP/s',
      f'{found["model_tflops_per_second"]:.4g}, {found["gflops_per_image"]:.4g} GFLOP a picture',
    ],
    [
      'mfu',
      f'{100 * found["mfu"]:.1f} % of {against}' if peak else f'unknown: {kind} is not in the table of chips',
    ],
    [
      'input_overhead',
      f'{found["input_overhead"]:.3f}: with real input {milliseconds("ms_per_step_with_input")}',
    ],
    ['compile', f'{found["compile_seconds"]:.1f} s'],
    ['peak memory', f'{_size(found["peak_memory_bytes"])} on a device, by {found["peak_memory_from"]}'],
  ]
  if largest := found.get('largest_batch'):
    said = f'{largest["images"]} pictures fit {_size(largest["memory_bytes"])}, {largest["too_large"]} do not'
    rows.append(['largest batch', said])
  return '\n'.join(cli.aligned(rows))


def _size(count: int) -> str:
  return f'{count / 2**30:.2f} GiB' if count >= 2**30 else f'{count / 2**20:.0f} MiB'


def _bytes(text: str) -> int:
  """Reads '16GiB'; raises UserError."""
  match = re.fullmatch(r'(\d+(?:\.\d+)?) ?([KMG]i?B)?', text)
  if not match or not float(match[1]):
    raise UserError(f"--memory is '{text}'; expected bytes of a device, such as 16GiB")
  return int(float(match[1]) * UNITS[match[2] or ''])


def _parser() -> cli.Parser:
  parser = planned.parser('benchmark', __doc__, without_data=False)
  add = parser.add_argument
  add('--steps', type=int, default=20, help='to time on one batch, and as many with real input')
  add('--memory', default='', help='of a device, such as 16GiB: finds the largest batch that fits')
  add('--json', default='', help='file to write all of it to')
  return parser


def main(argv: Sequence[str]) -> None:
  """Runs the command line without the program's name; raises UserError."""
  given, _, config, names = planned.parsed(_parser(), argv)
  if given.steps < 2:
    raise UserError(f'--steps is {given.steps}; expected at least 2')
  memory = _bytes(given.memory) if given.memory else 0
  name = names[0]
  run = stage_of(config, name)
  smaller = f'config.{name}.batch_images (is {run.stage["batch_images"]}), model, or config.model.remat=full'
  with sharding.enough_memory(f'stage {name}', smaller):
    found = measure(run, given.steps, memory)
  print(table(found))
  if others := [n for n in config_lib.stages(config) if n != name]:
    print(f'other stages: {", ".join(others)} (--stage)')
  if given.json:
    files.write_json(epath.Path(given.json), found)

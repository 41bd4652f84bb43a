"""Times ViT-S/B/L pre-training and fine-tuning on one GPU, ours in bfloat16 against torch.compile's, and writes down every figure as it comes.

  python -m benchmarks.gpu FILE [--minutes 9] [--tiny]

FILE is JSON: what is there already is kept, what is not is measured, the most important first, so that a second call goes on where
--minutes ended the first. Each row is a process of its own, which alone holds the device: MODEL SIZE HOW, where HOW is

cudnn, xla    ours, attention by cuDNN or by XLA
unrolled      ours, attention by cuDNN, blocks unrolled
torch         transformers' model, torch.compile, autocast to bfloat16, SDPA, fused optimiser

All of a model and size get the same batch where it fits, else a half, a quarter or an eighth of it. --tiny has small models and runs to its
end on a CPU, where cuDNN's rows say that they need a GPU. How to run it on a lent machine: docs/performance.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from mimic_jax.runtime import cli, files

HOW = {
  'cudnn': ['--config.model.attention=cudnn'],
  'xla': ['--config.model.attention=xla'],
  'unrolled': ['--config.model.attention=cudnn', '--config.model.scan=False'],
  'torch': [],
}
PRESETS = {'S': 'vit_s16', 'B': 'vit_b16', 'L': 'vit_l16'}
# Pictures of a batch; of mimic two crops each.
IMAGES = {'mae': {'S': 1024, 'B': 512, 'L': 256}, 'mimic': {'S': 512, 'B': 256, 'L': 128}}
ROWS = (
  *(f'{name} {size} {how}' for size in 'BL' for name in IMAGES for how in ('cudnn', 'torch')),
  'mae B xla', 'mimic B xla', 'mae B unrolled', 'mimic B unrolled',
  *(f'{name} S {how}' for name in IMAGES for how in ('cudnn', 'torch')),
  *(f'{name} {size} xla' for size in 'LS' for name in IMAGES),
)  # fmt: skip
TINY = {
  'mae': ['--config.pretrain.mae.decoder_dim=32', '--config.pretrain.mae.decoder_depth=1', '--config.pretrain.mae.decoder_heads=2'],
  'mimic': [],
}  # fmt: skip
NO_ROOM = ('RESOURCE_EXHAUSTED', 'out of memory', 'OutOfMemoryError')  # as JAX and PyTorch say it


def measured(name: str, size: str, how: str, images: int, tiny: bool) -> dict[str, Any]:
  """Returns a row's figures; takes its device whole. Raises what JAX and PyTorch do, such as when there is no room."""
  from benchmarks import cases
  from mimic_jax.runtime import chips, sharding
  from mimic_jax.training import speed

  case = cases.CASES[name]._replace(images=images)
  flags = [f'--config.model.preset={PRESETS[size]}', *HOW[how]]
  if tiny:
    flags += ['--config.model.image_size=32', '--config.model.dim=64', '--config.model.depth=2', '--config.model.heads=2', *TINY[name]]  # fmt: skip
    case = case._replace(shape=(1, 32, 32, 3) if name == 'mae' else case.shape)
  stage, learned = cases.stage_of(case, flags)
  take, found, held = _rival(name, images, learned) if how == 'torch' else _ours(case, stage, learned)
  steps = 1 if tiny else 5
  rounds = cases.in_turn({'row': lambda: take(steps)}, rounds=3 if tiny else 12, warm=2)['row']
  low, middle, high = statistics.quantiles(rounds, n=4, method='inclusive')
  rate = images * steps / middle
  kind, memory = held()
  return {
    'images': images,
    'images_per_second': rate,
    'ms_per_step': 1e3 * middle / steps,
    'ms_per_step_quartiles': [1e3 * low / steps, 1e3 * high / steps],
    'gflops_per_image': learned.flops_per_image() / 1e9,
    **speed.figures(rate, learned, sharding.make_mesh(), chips.peak(kind)),
    'peak_memory_bytes': memory,
    'device': kind,
    **found,
  }


# What takes so many steps and waits, how it was compiled, and what says the device's name and the most bytes that were held of it.
Row = tuple[Callable[[int], None], dict[str, Any], Callable[[], tuple[str, int | None]]]


def _ours(case: Any, stage: Mapping[str, Any], learned: Any) -> Row:
  import jax

  from benchmarks import cases
  from mimic_jax.runtime import chips

  made, device = cases.ours(case, stage, learned), jax.devices()[0]
  held = lambda: (device.device_kind, chips.peak_memory([device]))  # noqa: E731
  return made.take, {'compile_seconds': made.compile_seconds}, held


def _rival(name: str, images: int, learned: Any) -> Row:
  """Takes PyTorch's first step, which compiles it; 'how' says 'eager', and why, where that can't be done."""
  import torch

  from benchmarks import rivals

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  began = time.perf_counter()
  try:
    take = rivals.take(name, images, learned, device, fast=True, whole=True)
    take(1)
    how = 'torch.compile'
  except torch.OutOfMemoryError:
    raise
  except Exception as e:  # no compiler, say
    take = rivals.take(name, images, learned, device, fast=True)
    take(1)
    how = f'eager, torch.compile failed: {" ".join(str(e).split())[:300]}'
  found = {'compile_seconds': time.perf_counter() - began, 'how': how}
  if device == 'cpu':
    return take, found, lambda: ('cpu', None)
  return take, found, lambda: (torch.cuda.get_device_name(), torch.cuda.max_memory_allocated())


def attempts(row: str, tiny: bool) -> Iterator[int]:
  """Yields batches to try, the largest first."""
  name, size, _ = row.split()
  most = 8 if tiny else IMAGES[name][size]
  return (most // n for n in (1, 2, 4, 8))


def in_child(row: str, images: int, tiny: bool, seconds: float) -> dict[str, Any]:
  """Measures a row in a process of its own; returns its figures or {'error'}."""
  command = [sys.executable, '-m', 'benchmarks.gpu', '--row', row, '--images', str(images)]
  env = {'CUDA_VISIBLE_DEVICES': '0', 'XLA_CLIENT_MEM_FRACTION': '.95', **os.environ}
  env['JAX_TRACEBACK_FILTERING'] = 'off'  # else the last of what is said is not the error
  if row.endswith('torch'):
    env['JAX_PLATFORMS'] = 'cpu'  # it only counts there
  try:
    done = subprocess.run(
      [*command, *['--tiny'] * tiny], env=env, capture_output=True, text=True, timeout=seconds
    )
  except subprocess.TimeoutExpired:
    return {'error': 'out of time'}
  if done.returncode:
    full = any(x in done.stderr for x in NO_ROOM)
    return {'error': 'no room' if full else ' '.join(done.stderr.split())[-400:]}
  return json.loads(done.stdout.splitlines()[-1])


def run(file: epath.Path, minutes: float, tiny: bool) -> dict[str, Any]:
  """Measures the rows that a file does not have, until the time is over; returns what it then holds."""
  end = time.monotonic() + 60 * minutes
  found = json.loads(file.read_text()) if file.exists() else {'rows': {}}
  found['versions'] = cli.installed('jax', 'flax', 'torch', 'transformers')
  rows = found['rows']
  for row in ROWS:
    if 'images_per_second' in rows.get(row, {}) or (tiny and ' B ' not in row):
      continue
    for images in attempts(row, tiny):
      if (left := end - time.monotonic()) <= 0:
        return found
      rows[row] = in_child(row, images, tiny, left)
      if rows[row].get('error') != 'no room':
        break
    rivals = {key: rows.get(f'{row.rpartition(" ")[0]} {key}', {}) for key in HOW}
    for key, figures in rivals.items():
      if 'images_per_second' in figures and 'images_per_second' in rivals['torch'] and key != 'torch':
        figures['times_torch'] = figures['images_per_second'] / rivals['torch']['images_per_second']
    files.write_whole(file, json.dumps(found, indent=2) + '\n')
    print(f'{row:14} {said(rows[row])}', flush=True)
  return found


def said(row: Mapping[str, Any]) -> str:
  """Returns a row in words."""
  if 'error' in row:
    return row['error']
  low, high = row['ms_per_step_quartiles']
  parts = [f'{row["images"]} pictures, {row["ms_per_step"]:.1f} ms ({low:.1f} to {high:.1f})', f'{row["images_per_second"]:,.0f} a second']  # fmt: skip
  parts += [f'MFU {row["mfu"]:.1%}'] if row['mfu'] else []
  parts += [f'{row["peak_memory_bytes"] / 2**30:.1f} GiB'] if row['peak_memory_bytes'] else []
  parts += [f'{row["times_torch"]:.2f} × torch'] if 'times_torch' in row else []
  return ', '.join(
    [*parts, f'{row["compile_seconds"]:.0f} s to compile', *([row['how']] if 'how' in row else [])]
  )


def main() -> None:
  """Measures the rows, or one of them."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('file', nargs='?', default='gpu.json', type=epath.Path)
  parser.add_argument('--minutes', type=float, default=9.0, help='after which a row under way is cut off')
  parser.add_argument('--tiny', action='store_true', help='small models, to see that it runs')
  parser.add_argument(
    '--row', help='only this one, in this process, printed (what a call makes its processes with)'
  )
  parser.add_argument('--images', type=int, help="of --row's batch")
  given = parser.parse_args()
  if given.row:
    print(json.dumps(files.jsonable(measured(*given.row.split(), given.images, given.tiny))))
  else:
    run(given.file, given.minutes, given.tiny)


if __name__ == '__main__':
  main()

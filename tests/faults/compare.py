"""Whether two runs came to the same end: every logged number, every array of the last checkpoint, every output file."""

import hashlib
import json
import pathlib
import threading
import zipfile
from typing import Any

import numpy as np
from etils import epath

from mimic_jax.runtime import checkpoint, files

# what no two runs have alike
TIMES = (
  'seconds',
  'images_per_second',
  'model_tflops_per_second',
  'mfu',
  'input_overhead',
  'peak_memory_bytes',
)
ARRAYS = ('params', 'rest', 'opt_state')
ONE = threading.Lock()  # checkpoints are read one at a time


def arrays(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns every array of the newest checkpoint in a stage's folder, verified.

  Raises:
    UserError: when it is not whole.
  """
  with ONE:
    where, step = checkpoint.find(epath.Path(folder))
    return checkpoint.read_arrays(where, step, ARRAYS)


def lines(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Returns a stage's logged lines without their times."""
  kept = files.read_jsonl(epath.Path(folder) / 'metrics.jsonl')
  return [{k: v for k, v in line.items() if k not in TIMES} for line in kept]


def _files(folder: pathlib.Path) -> dict[str, str]:
  """Returns the hash of what a stage leaves behind beside its log and checkpoints, by name."""
  found = {}
  for path in sorted(folder.rglob('*')):
    name = str(path.relative_to(folder))
    if path.is_dir() or name.split('/')[0] in (
      'tensorboard',
      'metrics.jsonl',
      'result.json',
      checkpoint.FOLDER,
      checkpoint.DAMAGED,
    ):
      continue
    content = path.read_bytes()
    if path.suffix == '.npz':  # its members: the archive holds the time
      with zipfile.ZipFile(path) as z:
        content = b''.join(n.encode() + z.read(n) for n in sorted(z.namelist()))
    found[name] = hashlib.sha256(content).hexdigest()
  return found


def stages(folder: pathlib.Path) -> list[str]:
  """Returns the stages that a run's config names, in their order."""
  return json.loads((folder / 'config.json').read_text())['stages'].split(',')


def differences(want: pathlib.Path, got: pathlib.Path) -> list[str]:
  """Compares two finished runs bit by bit.

  Args:
    want: the uninterrupted one's folder.
    got: the other's.

  Returns:
    What differs, [] when nothing does.
  """
  found = []
  for name in stages(want):
    a, b = want / name, got / name
    if not (b / 'result.json').exists():
      found.append(f'{name} has no result.json')
      continue
    first, second = lines(a), lines(b)
    for x, y in zip(first, second, strict=False):
      if x != y:
        keys = [k for k in {**x, **y} if x.get(k) != y.get(k)]
        found.append(f'{name}/metrics.jsonl step {x["step"]} {x["split"]}: {", ".join(keys)}')
        break
    if len(first) != len(second):
      found.append(f'{name}/metrics.jsonl has {len(second)} lines, not {len(first)}')
    results = [json.loads((f / 'result.json').read_text()) for f in (a, b)]
    for key in results[0]:
      if key not in TIMES and results[0][key] != results[1].get(key) and key != 'init':
        found.append(f'{name}/result.json: {key}')
    first, second = arrays(a), arrays(b)
    found += [
      f'{name}: array {k}'
      for k in sorted({*first, *second})
      if k not in first or k not in second or first[k].tobytes() != second[k].tobytes()
    ][:3]
    first, second = _files(a), _files(b)
    found += [f'{name}/{k}' for k in sorted({*first, *second}) if first.get(k) != second.get(k)]
  pages = [(f / 'report.html').read_text() for f in (want, got)]
  for tag in ('<img', '<svg', '<table'):
    counts = [p.count(tag) for p in pages]
    if counts[0] != counts[1]:
      found.append(f'report.html has {counts[1]} {tag}>, not {counts[0]}')
  return found


def furthest(want: pathlib.Path, got: pathlib.Path) -> float:
  """Returns the largest relative difference between the losses of two runs, which must have logged the same steps.

  Raises:
    ValueError: when they have not; a step that was skipped or logged twice is named.
  """
  worst = 0.0
  for name in stages(want):
    first, second = lines(want / name), lines(got / name)
    steps = [[(x['step'], x['split']) for x in found] for found in (first, second)]
    if steps[0] != steps[1]:
      wrong = next((s for s in zip(*steps, strict=False) if s[0] != s[1]), 'the end')
      raise ValueError(f'{name}/metrics.jsonl has other steps, first at {wrong}')
    for x, y in zip(first, second, strict=True):
      worst = max(worst, abs(x['loss'] - y['loss']) / abs(x['loss']))
  return worst

"""What a stage leaves behind: pictures, predictions.npz, result.json, the report."""

import csv
import io
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from mimic_jax import metrics
from mimic_jax.data import copies
from mimic_jax.report import page, sheets
from mimic_jax.report import run as runs
from mimic_jax.report.drawing import save_drawing
from mimic_jax.runtime import chips, distributed, files, sharding
from mimic_jax.training import evaluation, speed, workdir
from mimic_jax.training.stage import Stage

MOST_FEATURES = 2000  # rows kept for the t-SNE, evenly spread: a folder's first are of one class


def show(run: Stage, state: dict[str, Any], *, every: float = 0.0) -> None:
  """Draws what the objective shows and rewrites the report, unless it was rewritten less than `every` seconds ago."""
  path = run.run_folder / 'report.html'
  if distributed.agree(lambda: path.exists() and time.time() - path.stat().mtime < every):
    return
  _draw(run, state)
  if distributed.is_main():
    page.write(run.run_folder, final=False)


def _draw(run: Stage, state: dict[str, Any]) -> None:
  """Saves what the objective shows of its model; every process must call it, one draws."""
  # the devices of other processes can't take part in what one does alone
  own = sharding.local((state['params'], state['rest'], run.program.frozen.arrays), run.mesh)
  if distributed.is_main():
    for name, drawing in run.draw(*own).items():
      save_drawing(run.folder / 'pictures', name, drawing)


def _best(folder: epath.Path, split: str) -> dict[str, Any] | None:
  """Returns the epoch with the highest accuracy on a split, over all lines of metrics.jsonl."""
  lines = [x for x in runs.logged(folder) if x['split'] == split and 'accuracy' in x]
  if not lines:
    return None
  best = max(lines, key=lambda x: x['accuracy'])
  return {k: best[k] for k in ('epoch', 'step', 'accuracy')}


def _usual_rate(folder: epath.Path) -> float | None:
  """Returns the median of the logged images per second, which compiling and evaluating do not count in."""
  rates = [x['images_per_second'] for x in runs.logged(folder) if 'images_per_second' in x]
  return float(np.median(rates)) if rates else None


def _speed(run: Stage, meta: Mapping[str, Any]) -> dict[str, float | int | None]:
  """Returns how fast a stage trained; what is not known is None."""
  rate, stepping = _usual_rate(run.folder), meta.get('stepping', {})
  computing = stepping['seconds'] - stepping['waited'] if stepping else 0
  return {
    'images_per_second': rate,
    **speed.figures(rate, run.objective, run.mesh),
    'input_overhead': stepping['seconds'] / computing if computing > 0 else None,
    'peak_memory_bytes': chips.peak_memory(run.mesh.devices.flat),
  }


def finish(
  run: Stage, state: dict[str, Any], meta: Mapping[str, Any], found: Mapping[str, evaluation.Measured]
) -> dict[str, Any]:
  """Writes predictions.npz, features.npz, result.json and the report of a stage that has run to its end.

  Args:
    run: the stage.
    state: its last.
    meta: what its checkpoints carry.
    found: the last evaluation; the headline is this one, never the best epoch's.

  Returns:
    What result.json holds; {} in a process that writes nothing.
  """
  _draw(run, state)
  if not distributed.is_main():
    return {}
  steps = run.program.total_steps
  held = _speed(run, meta)
  result = {
    'stage': run.name,
    'objective': run.stage['objective'],
    'init': meta['origin']['origin'],
    'steps': steps,
    'total_steps': steps,
    'epochs': steps / run.program.steps_per_epoch,
    'seconds': meta['seconds'],
    **held,
    'metrics': {name: m.metrics for name, m in found.items()},
  }
  for split in found:
    best = _best(run.folder, split)
    if best:
      result[f'best_on_{split}'] = best
  save_outputs(run.folder, run.splits, found, run.class_names)
  save_copies(run.folder, run.splits)
  for split in run.splits[:1]:
    save_mistakes(run.folder, split, found[split.name], run.class_names)
  skipped = {'train': meta.get('skipped', {}), **{k: m.skipped for k, m in found.items()}}
  workdir.update_record(
    run.run_folder,
    skipped={run.name: {k: v for k, v in skipped.items() if v}},
    speed={run.name: held},
  )
  # Last: a stage that has it is not run again, so that whatever is missing when a run is killed here is made anew.
  files.write_json(run.folder / 'result.json', result)
  page.write(run.run_folder)
  return result


def save_mistakes(
  folder: epath.Path, split: evaluation.Split, m: evaluation.Measured, class_names: Sequence[str]
) -> None:
  """Draws what a classifier is most confidently wrong about on a split; nothing of what does not classify."""
  if 'logits' not in m.outputs:
    return
  label, logits = m.outputs['label'], m.outputs['logits']
  drawing = sheets.mistakes(split.source, m.index, label, logits, class_names, split.name)
  if drawing is not None:
    save_drawing(folder / 'pictures', 'mistakes', drawing)


def save_copies(folder: epath.Path, splits: Sequence[evaluation.Split]) -> None:
  """Writes the copies of training pictures that were found: copies.csv, and a sheet of the first split that has any."""
  found = [s for s in splits if s.copies is not None]
  if not found:
    return
  rows = [('split', 'id', 'kind', 'cosine', 'mirrored', 'training_id')]
  for split in found:
    c = split.copies
    rows += [
      (
        *(split.name, split.source.id(i), copies.KINDS[c.kind[i] - 1]),
        *(f'{c.similarity[i]:.3f}', int(c.mirrored[i]), c.train.id(int(c.match[i]))),
      )
      for i in map(int, np.flatnonzero(c.kind))
    ]
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows(rows)
  files.write_whole(folder / 'copies.csv', text.getvalue())
  for split in found:
    drawing = sheets.copies(split.source, split.copies, split.name)
    if drawing is not None:
      save_drawing(folder / 'pictures', 'copies', drawing)
      return


def save_outputs(
  folder: epath.Path,
  splits: Sequence[evaluation.Split],
  found: Mapping[str, evaluation.Measured],
  class_names: Sequence[str],
) -> None:
  """Writes what was found of every picture: predictions.npz, and features.npz of the first split for t-SNE.

  predictions.npz holds id [N], split [N], label int [N] or float [N, K], each output [N, …] but features, and of a
  classifier, which has logits [N, K], class_names [K].
  """
  first = found[splits[0].name].outputs if splits else {}
  names = first.keys() - {'features'}
  if names - {'label'}:
    named = {'class_names': np.array(class_names)} if 'logits' in names else {}
    save_npz(
      folder / 'predictions.npz',
      id=np.array([s.source.id(int(i)) for s in splits for i in found[s.name].index]),
      split=np.repeat([s.name for s in splits], [len(found[s.name].index) for s in splits]),
      **{k: np.concatenate([found[s.name].outputs[k] for s in splits]) for k in sorted(names)},
      **named,
    )
  if 'features' in first:
    label = metrics.dominant(first['label'])
    rows = np.linspace(0, len(label) - 1, min(MOST_FEATURES, len(label))).round().astype(int)
    save_npz(
      folder / 'features.npz',
      features=first['features'][rows],
      label=label[rows],
      class_names=np.array(class_names),
    )


def save_npz(path: epath.Path, **arrays: np.ndarray) -> None:
  """Writes a compressed .npz to any path that epath knows."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  path.write_bytes(buffer.getvalue())

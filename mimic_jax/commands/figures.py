"""Draws runs for a paper, as PDF and SVG: curves, confusion matrices, recall per class, t-SNE, pictures.

  mimic figures runs/ce_seeds runs/mscl_seeds --out figures

RUN is a run, a folder of --seeds, a stage of either, or an evaluation; what is of one method is one curve, with a band of a
standard deviation over its seeds. Confusion is the mean over the seeds; t-SNE and pictures are of the first.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from mimic_jax import metrics, uncertainty
from mimic_jax.report import figures as page_figures
from mimic_jax.report import vector
from mimic_jax.report.drawing import read_drawing
from mimic_jax.report.predictions import Predictions
from mimic_jax.runtime import cli, files
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import arms as arms_lib
from mimic_jax.training.arms import Arm


def drawn(arms: Sequence[Arm]) -> Iterator[tuple[str, Figure]]:
  """Yields every figure that there is of some methods, with its name."""
  yield from _curves(arms)
  columns = dict.fromkeys(
    (a.data, s) for arm in arms for a in arm.answers if a.predictions for s in a.predictions.splits()
  )
  for data, split in columns:
    held = {arm.name: found for arm in arms if (found := arm.on(data, split))}
    for name, found in held.items():
      yield f'confusion {name} {data} {split}', _confusion(found)
    for names in dict.fromkeys(p.class_names for found in held.values() for p in found.values()):
      alike = {k: v for k, v in held.items() if next(iter(v.values())).class_names == names}
      yield f'recall {data} {split} {len(names)}', _recall(alike, names)
  for arm in arms:
    folder = min(arm.answers, key=lambda a: a.seed).folder
    if points := page_figures.tsne(folder, compute=True):
      yield f'tsne {arm.name}', vector.scatter(*points)
    for path in sorted(folder.glob('pictures/*.png')):
      yield f'{path.stem} {arm.name}', vector.pictures(read_drawing(path.parent, path.stem))


def _curves(arms: Sequence[Arm]) -> Iterator[tuple[str, Figure]]:
  """Yields the loss of training, for each objective its own, and the accuracy on each split, all methods in one."""
  plots: dict[tuple[str, str, str], list[vector.Band]] = {}
  for arm in arms:
    lines = [held for a in arm.answers if (held := files.read_jsonl(a.folder / 'metrics.jsonl'))]
    objective = str(arm.answers[0].section.get('objective', ''))
    for split in dict.fromkeys(x['split'] for held in lines for x in held):
      score, of = ('loss', objective) if split == 'train' else ('accuracy', '')
      if band := _band(arm.name, lines, split, score):
        plots.setdefault((score, split, of), []).append(band)
  for (score, split, of), bands in plots.items():
    label = f'{score}, {split}' + (' (%)' if score == 'accuracy' else '')
    yield ' '.join(filter(None, (score, split, of))), vector.curves(bands, 'epoch', label)


def _band(name: str, runs_lines: Sequence[list[dict]], split: str, score: str) -> vector.Band | None:
  """Returns a score over the epochs that all seeds logged it at; None when there are none."""
  each = [{x['epoch']: x[score] for x in lines if x['split'] == split and score in x} for lines in runs_lines]
  epochs = sorted(set.intersection(*map(set, each)))
  if not epochs:
    return None
  values = np.array([[held[x] for x in epochs] for held in each]) * (100 if score == 'accuracy' else 1)
  sd = values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(epochs))
  return vector.Band(name, np.array(epochs), values.mean(0), sd)


def _shares(p: Predictions) -> np.ndarray:
  """Returns the confusion matrix [K, K] as shares of its rows; 0 in rows without a picture."""
  counts = np.array(metrics.classification(p.label, p.logits, p.class_names)['confusion'])
  return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def _confusion(found: Mapping[int, Predictions]) -> Figure:
  first = next(iter(found.values()))
  return vector.confusion(np.mean([_shares(p) for p in found.values()], axis=0), first.class_names)


def _recall(held: Mapping[str, Mapping[int, Predictions]], names: Sequence[str]) -> Figure:
  """Returns bars with a standard deviation over the seeds; of a single run with Wilson's interval."""
  recall, ends = [], []
  for found in held.values():
    each = np.array([np.diag(_shares(p)) for p in found.values()])
    mean = each.mean(0)
    if len(each) > 1:
      ends.append(mean + np.array([[-1], [1]]) * each.std(0, ddof=1))
    else:
      (p,) = found.values()
      support = np.bincount(p.label, minlength=len(names))
      whole = zip(np.rint(mean * support).astype(int), support)
      ends.append(np.array([uncertainty.wilson(int(hits), int(count)) for hits, count in whole]).T)
    recall.append(mean)
  return vector.bars(list(held), np.array(recall), np.stack(ends, axis=1), names, 'recall (%)')


def main(argv: Sequence[str]) -> None:
  """Runs the command line without the program's name; raises UserError."""
  parser = cli.Parser('figures', __doc__)
  parser.add_argument(
    'runs', metavar='RUN', nargs='+', help='a run, a folder of --seeds, a stage, an evaluation'
  )
  parser.add_argument('--out', required=True, metavar='DIR', help='folder to write to')
  given = parser.parse_args(list(argv))
  arms = arms_lib.read(given.runs, every_stage=True)
  folder, names = epath.Path(given.out), []
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for title, figure in drawn(arms):
      names.append(re.sub(r'[^\w.-]+', '_', title))
      vector.save(figure, folder, names[-1])
  except OSError as e:
    raise UserError(f"--out '{given.out}' can not be written ({e.strerror or e})") from e
  print('\n'.join(f'{folder / name}.pdf, .svg' for name in names))

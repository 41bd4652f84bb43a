"""What the terminal says at the end of a run: a table of its stages, where things are, and what to do next."""

from typing import Any

from etils import epath

from mimic_jax import metrics, uncertainty
from mimic_jax.report import run as runs
from mimic_jax.report import tables
from mimic_jax.runtime import cli

HEAD = ['stage', 'split', 'accuracy [95 %]', 'mean class', 'macro F1', 'loss', 'img/s', 'time']


def of_run(folder: epath.Path) -> str:
  """Returns the lines about the run in `folder`, read from its files."""
  run = runs.read(folder)
  rows = [_row(stage, *held) for stage in run.stages for held in tables.splits(stage).items() or [('', {})]]
  where = [
    ('report', str(folder / 'report.html')),
    *(('weights', str(stage.folder / 'checkpoints')) for stage in run.stages),
    *(('next', command) for command in _next(run, folder)),
  ]
  return '\n'.join(['', *cli.aligned([HEAD, *rows]), *_of_targets(run), '', *cli.aligned(where)])


def _of_targets(run: runs.Run) -> list[str]:
  """Returns a line for each target that was answered with a number: its scores; none without such."""
  lines = []
  for stage in run.stages:
    for split, held in tables.splits(stage).items():
      for target, kind in metrics.scored(held).items():
        scores = [f'{tables.words(s)} {held[f"{s}_{target}"]:.3f}' for s in metrics.SCORES_OF[kind]]
        lines.append([stage.name, split, target, ', '.join(scores)])
  return ['', *cli.aligned(lines)] if lines else []


def _row(stage: runs.Stage, split: str, held: dict[str, Any]) -> list[str]:
  scores = []
  for name in uncertainty.SCORES:
    ends = tables.interval(held, name)
    between = f' [{100 * ends[0]:.2f}, {100 * ends[1]:.2f}]' if ends else ''
    scores.append(tables.percent(held.get(name)) + between)
  loss, rate = tables.number(held.get('loss'), '.4g'), tables.number(stage.result.get('images_per_second'))
  took = tables.seconds(stage)
  return [stage.name, split, *scores, loss, rate, tables.NONE if took is None else tables.duration(took)]


def _next(run: runs.Run, folder: epath.Path) -> list[str]:
  """Returns commands that go on from here."""
  scored = [s for s in run.stages if any('accuracy' in held for held in tables.splits(s).values())]
  if not scored:
    return [f'mimic train --config CONFIG --config.init={folder}']
  first, *others = (str(s.folder) for s in scored)
  return [
    f'mimic predict --checkpoint {first} PICTURES',
    *(f'mimic compare {first} {other}' for other in others),
  ]

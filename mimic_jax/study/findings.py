"""What came of a study: the scores of its arms, and what their contrasts say, as tables."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mimic_jax import metrics, uncertainty
from mimic_jax.report import predictions
from mimic_jax.report import run as report_run
from mimic_jax.report.predictions import Predictions
from mimic_jax.runtime import files
from mimic_jax.study import design, runner
from mimic_jax.study.design import Plan, Run, Study
from mimic_jax.training.arms import compared
from mimic_jax.uncertainty import points

NONE = '–'


class Table(NamedTuple):
  """A table of plain text: `title`, names of the columns, rows of as many cells, sentences under it; `bold` is (row, column)."""

  title: str
  head: list[str]
  rows: list[list[str]]
  notes: tuple[str, ...] = ()
  bold: frozenset[tuple[int, int]] = frozenset()


class Answered(NamedTuple):
  """What one run says of one split: its predictions, and what its result.json has."""

  predictions: Predictions
  scores: Mapping[str, float]
  best: float | None
  fresh: float | None


Found = dict[str, dict[int, Answered]]


def splits(out: epath.Path, study: Study, plan: Plan) -> dict[tuple[str, str], Found]:
  """Returns what is there, by (set, split), arm and seed."""
  found: dict[tuple[str, str], Found] = {}
  for target, arms in plan.arms.items():
    for arm, runs in arms.items():
      for seed, run in runs.items():
        for split, answered in _of_run(out, run).items():
          found.setdefault((target, split), {}).setdefault(arm, {})[seed] = answered
  return {k: {arm: held[arm] for arm in study.arms if arm in held} for k, held in found.items()}


def _of_run(out: epath.Path, run: Run) -> dict[str, Answered]:
  folder = runner.folder(out, run) / run.stage
  if not (folder / 'result.json').exists():
    return {}
  result, held = files.read_json(folder / 'result.json'), predictions.load(folder / predictions.FILE)
  answered, epoch = {}, None
  if 'valid' in held.splits():  # where there is one, the best epoch is chosen on it
    lines = [x for x in report_run.logged(folder) if 'accuracy' in x]
    on = {split: {x['step']: x['accuracy'] for x in lines if x['split'] == split} for split in held.splits()}
    epoch = max(on['valid'], key=on['valid'].get, default=None)
  for split in held.splits():
    ((p,), _), of_split = predictions.of_split([held], split), result['metrics'].get(split, {})
    best = result.get(f'best_on_{split}', {}).get('accuracy') if epoch is None else on[split].get(epoch)
    scores = metrics.classification(p.label, p.logits, p.class_names)
    answered[split] = Answered(p, scores, best, of_split.get('accuracy_without_copies'))
  return answered


def scores(study: Study, where: tuple[str, str], found: Found) -> Table:
  """Returns a row per arm: mean ± sd over its seeds; the paper's, and others' as quoted and as published, beside them."""
  target, split = where
  theirs = any(
    target in figures for part in (study.paper, study.quoted, study.published) for figures in part.values()
  )
  fresh = any(a.fresh is not None for of_arm in found.values() for a in of_arm.values())
  head = [
    'arm',
    'seeds',
    'accuracy (%)',
    *(['without copies'] if fresh else []),
    'best epoch',
    'mean class',
    'macro F1',
  ]
  head += ['paper'] if theirs else []
  rows = []
  for arm in study.arms:
    of_arm = list(found.get(arm, {}).values())
    row = [arm, str(len(of_arm)), spread([a.scores['accuracy'] for a in of_arm])]
    row += [spread([a.fresh for a in of_arm if a.fresh is not None])] if fresh else []
    row += [spread([a.best for a in of_arm if a.best is not None])]
    row += [spread([a.scores[k] for a in of_arm]) for k in ('mean_class_accuracy', 'macro_f1')]
    rows.append(row + ([_percent(study.paper.get(arm, {}).get(target))] if theirs else []))
  for part, how in ((study.quoted, 'as quoted'), (study.published, 'as published')):
    for name, figures in part.items():
      if target in figures:
        rows.append([f'{name} ({how})', *[NONE] * (len(head) - 2), _percent(figures[target])])
  means = {
    k: np.mean([a.scores['accuracy'] for a in found[arm].values()])
    for k, arm in enumerate(study.arms)
    if arm in found
  }
  bold = frozenset([(max(means, key=means.get), 2)]) if len(means) > 1 else frozenset()
  notes = [
    'Mean ± standard deviation over seeds, at the last epoch; best epoch: the one that is highest on valid, or, where there is none, '
    'on this very split, which is what some papers print and nobody can choose without it.',
  ]
  if fresh:
    notes.append(
      'Without copies: without pictures that stand, byte by byte, pixel by pixel or nearly, in the training set.'
    )
  if theirs:
    notes.append(
      'Paper: as arXiv 2401.07245 prints it, for its model, pictures and schedule: another scale than this one unless that is `paper`.'
    )
  return Table(f'{design.words().SETS[target]}, {split}', head, rows, tuple(notes), bold)


def contrasts(
  study: Study, plan: Plan, found: Mapping[tuple[str, str], Found], begun_with: int, samples: int = 2000
) -> tuple[Table | None, Table | None]:
  """Returns the primary contrasts and the exploratory ones: each arm against the first, of a sweep at the same value.

  Primary ones are made on one split of each set, test where there is one, and p is adjusted for as many as were planned: a set whose
  runs are not there yet counts.

  Args:
    study: the design.
    plan: its runs.
    found: of `splits`.
    begun_with: how many of the runs were there when the study was begun: their contrasts were not written down before.
    samples: of the bootstrap.
  """
  every = {target: [split for t, split in found if t == target] for target, _ in found}
  one = {(target, 'test' if 'test' in names else names[0]) for target, names in every.items()}
  primary = _compared({k: v for k, v in found.items() if k in one}, study.primary, samples)
  named = {tuple(sorted(pair)) for pair in study.primary.values()}
  rest = {
    f'{arm} against {a}': (a, arm)
    for arm, a in study.references.items()
    if tuple(sorted((a, arm))) not in named
  }
  rest = {k: (a, b) for k, (a, b) in rest.items() if not _same_runs(plan, a, b)}
  other = _compared(found, rest, samples)
  planned = len(study.primary) * len(plan.arms)
  p = [c['p'] for _, _, c in primary]
  adjusted = uncertainty.holm([*p, *[1.0] * (planned - len(p))])
  before = (
    f'begun when {begun_with} of the runs were there: exploratory'
    if begun_with
    else 'written down before the runs'
  )
  return (
    _table(f'Primary contrasts, {before}', f'p (Holm, {planned})', primary, adjusted, planned),
    _table('Exploratory', 'p, one by one', other, [c['p'] for _, _, c in other], 1),
  )


def _same_runs(plan: Plan, a: str, b: str) -> bool:
  return any(arms.get(a) and arms.get(a) == arms.get(b) for arms in plan.arms.values())


def _compared(
  found: Mapping[tuple[str, str], Found], pairs: Mapping[str, tuple[str, str]], samples: int
) -> list[tuple[str, str, dict[str, Any]]]:
  """Returns (where, name, accuracy as `uncertainty.across_seeds` has it) of each pair with a seed in common."""
  rows = []
  for (target, split), arms in found.items():
    for name, (a, b) in pairs.items():
      held = [{seed: x.predictions for seed, x in arms.get(arm, {}).items()} for arm in (a, b)]
      if held[0].keys() & held[1].keys():
        whole = compared(*held, samples=samples)
        where = f'{design.words().SETS[target]}, {split}'
        rows.append((where, name, {**whole['accuracy'], 'seeds': len(whole['seeds'])}))
  return rows


def _table(
  title: str, p: str, rows: Sequence[tuple[str, str, dict[str, Any]]], adjusted: Sequence[float], tests: int
) -> Table | None:
  if not rows:
    return None
  head = ['contrast', 'on', 'seeds', 'points', '95 %', 'seeds alone', p, 'could have seen']
  cells = []
  for (where, name, c), value in zip(rows, adjusted):
    seen = NONE
    if c['error'] is not None:
      seen = f'{100 * uncertainty.detectable(c["error"], c["degrees"], 1 - 0.05 / tests):.2f}'
    alone = NONE
    if c['low_of_seeds'] is not None:
      alone = f'{points(c["low_of_seeds"])} to {points(c["high_of_seeds"])}'
    between = f'{points(c["low"])} to {points(c["high"])}'
    cells.append(
      [name, where, str(c['seeds']), points(c['difference']), between, alone, f'{value:.2g}', seen]
    )
  notes = (
    'Points: difference of accuracy, paired by seed and by picture. 95 %: crossed bootstrap over pictures and seeds; seeds alone: Student’s '
    't over the differences of the seeds, for these pictures. Could have seen: the smallest true difference that this design '
    f'finds four times in five at 5 %{f" ÷ {tests}, the first step of Holm" if tests > 1 else ""}.',
  )
  return Table(title, head, cells, notes)


def spread(values: Sequence[float]) -> str:
  """Returns '67.93 ± .41' of shares of 1, in percent; without a spread for one, NONE for none."""
  if not values:
    return NONE
  sd = f' ± {100 * np.std(values, ddof=1):.2f}' if len(values) > 1 else ''
  return f'{100 * np.mean(values):.2f}{sd}'


def _percent(value: float | None) -> str:
  return NONE if value is None else f'{value:.2f}'

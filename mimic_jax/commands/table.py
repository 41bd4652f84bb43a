"""Writes the scores of runs as a paper's table: methods in rows, data sets in columns.

  mimic table runs/ce_seeds runs/mscl_seeds runs/mscl_seeds/seed*/evaluations/* --format latex --paper > results.tex

RUN is a run, a folder of --seeds, a stage of either, or an evaluation; what is of one method is one row: mean ± sd over its
seeds, the interval of a single run. The best of a column is bold; ° marks what does not differ from it at 5 %, over the
pictures and seeds that both have (mimic compare), p adjusted for the number of methods (Holm).
"""

from collections.abc import Sequence

import numpy as np

from mimic_jax import metrics, uncertainty
from mimic_jax.report import grid, paper
from mimic_jax.report.grid import Cell, Grid, Row
from mimic_jax.report.predictions import Predictions
from mimic_jax.runtime import cli
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import arms as arms_lib
from mimic_jax.training.arms import Arm

Column = tuple[str, str]


def of_arms(arms: Sequence[Arm], with_paper: bool = False, samples: int = 2000, seed: int = 0) -> Grid:
  """Returns the table of some methods.

  Args:
    arms: the methods.
    with_paper: whether the paper's figures stand under them.
    samples, seed: of the bootstrap.

  Raises:
    UserError: when predictions of one column do not fit together, or the paper has none of the columns.
  """
  columns = list(
    dict.fromkeys((a.data, s) for arm in arms for a in arm.answers for s in a.predictions.splits())
  )
  cells: list[dict[tuple[Column, str], Cell]] = [{} for _ in arms]
  fewer = []
  for column in columns:
    held = {k: found for k, arm in enumerate(arms) if (found := arm.on(*column))}
    for k, found in held.items():
      cells[k] |= {(column, score): cell for score, cell in _scores(found, samples, seed).items()}
      if len(found) < len(arms[k].seeds()):
        where = ' '.join(filter(None, column))
        fewer.append(f'{arms[k].name} on {where}: seed {", ".join(map(str, found))} alone.')
    if len(held) > 1:
      _mark(cells, held, column, samples, seed)
  rows = [Row(arm.name, str(len(arm.seeds())), own) for arm, own in zip(arms, cells)]
  notes = fewer
  if len(rows) > 1:
    notes.append('Bold: the best; °: not different from it at 5 % (bootstrap over pictures and seeds, Holm).')
  if any(cell.sd is None for own in cells for cell in own.values()):
    notes.append('In brackets: the 95 % interval of a single run, over its pictures.')
  if with_paper:
    rows += _paper(columns)
    notes.append('(paper): as arXiv 2401.07245 prints it.')
  return Grid(columns, rows, notes)


def _scores(found: dict[int, Predictions], samples: int, seed: int) -> dict[str, Cell]:
  each = [metrics.classification(p.label, p.logits, p.class_names) for p in found.values()]
  if len(each) > 1:
    return {
      k: Cell(float(np.mean([e[k] for e in each])), float(np.std([e[k] for e in each], ddof=1)))
      for k in grid.SCORES
    }
  (p,) = found.values()
  clusters = uncertainty.identities(p.id.tolist())
  held = uncertainty.intervals(p.label, p.logits, p.class_names, clusters, samples, seed)
  return {k: Cell(held[k]['value'], None, held[k]['low'], held[k]['high']) for k in grid.SCORES}


def _mark(
  cells: list[dict[tuple[Column, str], Cell]],
  held: dict[int, dict[int, Predictions]],
  column: Column,
  samples: int,
  seed: int,
) -> None:
  """Marks the best of each score, and gives the others with a seed in common their p."""
  pairs: dict[tuple[int, int], dict] = {}
  for score in grid.SCORES:
    where = (column, score)
    best = max(held, key=lambda k, where=where: cells[k][where].mean)
    others = [k for k in held if k != best and held[k].keys() & held[best].keys()]
    for k in others:
      if (best, k) not in pairs:
        pairs[best, k] = arms_lib.compared(held[best], held[k], samples=samples, seed=seed)
    cells[best][where] = cells[best][where]._replace(best=True)
    for k, p in zip(others, uncertainty.holm([pairs[best, k][score]['p'] for k in others])):
      cells[k][where] = cells[k][where]._replace(p=p)


def _paper(columns: Sequence[Column]) -> list[Row]:
  if not set(columns) & set(paper.COLUMNS):
    there, here = (', '.join(' '.join(c).strip() for c in cs) for cs in (paper.COLUMNS, columns))
    raise UserError(
      f'--paper: the paper reports {there}; expected runs measured on one of them, not on {here} alone'
    )
  rows = []
  for name, figures in paper.ACCURACY.items():
    own = {(c, 'accuracy'): Cell(x / 100) for c, x in zip(paper.COLUMNS, figures) if c in columns}
    if own:
      rows.append(Row(f'{name} (paper)', '', own))
  return rows


def main(argv: Sequence[str]) -> None:
  """Runs the command line without the program's name; raises UserError."""
  parser = cli.Parser('table', __doc__)
  add = parser.add_argument
  add(
    'runs', metavar='RUN', nargs='+', help='a run, a folder of --seeds, a stage of either, or an evaluation'
  )
  add('--format', choices=list(grid.FORMATS), default='md', help='md | latex (with booktabs) | csv')
  add(
    '--paper', action='store_true', help="the paper's figures under the methods, on the sets that it reports"
  )
  add('--samples', type=int, default=2000, help='of the bootstrap')
  add('--seed', type=int, default=0, help='of the bootstrap')
  given = parser.parse_args(list(argv))
  found = of_arms(arms_lib.read(given.runs), given.paper, given.samples, given.seed)
  print(grid.FORMATS[given.format](found), end='')

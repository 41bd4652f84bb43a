"""A paper's table: methods in rows, data sets and scores in columns, as Markdown, LaTeX or CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

SCORES = {'accuracy': 'accuracy', 'mean_class_accuracy': 'mean class', 'macro_f1': 'macro F1'}
NONE = '–'
ALIKE = 0.05  # p from which on a method does not differ from the best
_LATEX = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}'}
_LATEX |= {c: f'\\{c}' for c in '&%$#_{}'}


class Cell(NamedTuple):
  """A score, 0..1, of one method on one split.

  Attributes:
    mean: over the seeds.
    sd: over them; None for one.
    low, high: the interval of a single run.
    best: whether it is the highest of its column, where there are several.
    p: of its difference to the best, adjusted for the number of methods; None where it is the best or not compared.
  """

  mean: float
  sd: float | None = None
  low: float | None = None
  high: float | None = None
  best: bool = False
  p: float | None = None


class Row(NamedTuple):
  """A method, its number of seeds ('' where that is not known), and its cells by column and score."""

  name: str
  seeds: str
  cells: Mapping[tuple[tuple[str, str], str], Cell]


class Grid(NamedTuple):
  """A table: columns are (set, split); notes are sentences under it."""

  columns: list[tuple[str, str]]
  rows: list[Row]
  notes: list[str]


def markdown(grid: Grid) -> str:
  """Returns the table in Markdown, its notes under it."""
  titles = [f'{" ".join(filter(None, c))}: {words}' for c in grid.columns for words in SCORES.values()]
  lines = [['method', 'seeds', *titles], ['---', '---:', *['---:'] * len(titles)]]
  for row in grid.rows:
    lines.append([row.name.replace('|', r'\|'), row.seeds, *_cells(grid, row, '**{}**', '°', '±')])
  return (
    '\n'.join([*(f'| {" | ".join(cells)} |' for cells in lines), *(f'\n{note}' for note in grid.notes)])
    + '\n'
  )


def latex(grid: Grid) -> str:
  """Returns the table as a tabular of LaTeX with booktabs; its notes are comments."""
  width = len(SCORES)
  starts = range(3, 3 + width * len(grid.columns), width)
  sets = ' & '.join(
    rf'\multicolumn{{{width}}}{{c}}{{{escaped(", ".join(filter(None, c)))}}}' for c in grid.columns
  )
  rules = ' '.join(rf'\cmidrule(lr){{{k}-{k + width - 1}}}' for k in starts)
  titles = ' & '.join(
    ['Method', 'Seeds', *[escaped(w[0].upper() + w[1:]) for w in SCORES.values()] * len(grid.columns)]
  )
  lines = [
    r'% \usepackage{booktabs}',
    *(f'% {note}' for note in grid.notes),
    rf'\begin{{tabular}}{{lr{"c" * width * len(grid.columns)}}}',
    r'\toprule',
    rf' & & {sets} \\',
    rules,
    rf'{titles} \\',
    r'\midrule',
  ]
  for row in grid.rows:
    cells = _cells(grid, row, r'\textbf{{{}}}', r'$^{\circ}$', r'$\pm$')
    cells = [cell.replace(NONE, '--') for cell in cells]
    lines.append(' & '.join([escaped(row.name), row.seeds, *cells]) + r' \\')
  return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}']) + '\n'


def comma_separated(grid: Grid) -> str:
  """Returns the table as CSV, a line for each score; scores in percent."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(['method', 'seeds', 'data', 'split', 'score', 'mean', 'sd', 'low', 'high', 'best', 'p'])
  for row in grid.rows:
    for (column, score), cell in row.cells.items():
      numbers = ('' if x is None else f'{100 * x:.4f}' for x in (cell.mean, cell.sd, cell.low, cell.high))
      p = '' if cell.p is None else f'{cell.p:.4g}'
      writer.writerow([row.name, row.seeds, *column, score, *numbers, int(cell.best), p])
  return out.getvalue()


FORMATS = {'md': markdown, 'latex': latex, 'csv': comma_separated}


def escaped(text: str) -> str:
  """Returns text as LaTeX prints it."""
  return ''.join(_LATEX.get(letter, letter) for letter in text)


def _cells(grid: Grid, row: Row, bold: str, alike: str, plus_minus: str) -> Sequence[str]:
  return [
    _shown(row.cells.get((column, score)), bold, alike, plus_minus)
    for column in grid.columns
    for score in SCORES
  ]


def _shown(cell: Cell | None, bold: str, alike: str, plus_minus: str) -> str:
  if cell is None:
    return NONE
  text = f'{100 * cell.mean:.2f}'
  if cell.sd is not None:
    text += f' {plus_minus} {100 * cell.sd:.2f}'
  elif cell.low is not None:
    text += f' [{100 * cell.low:.2f}, {100 * cell.high:.2f}]'
  if cell.best:
    return bold.format(text)
  return text + (alike if cell.p is not None and cell.p >= ALIKE else '')

"""The page of a study and the same as files: tables in Markdown, CSV and LaTeX, figures in PDF and SVG."""

import re
from collections.abc import Iterator, Mapping

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from mimic_jax.report import figures as page_figures
from mimic_jax.report import grid, tables, vector
from mimic_jax.report.style import CSS
from mimic_jax.runtime import files
from mimic_jax.study import design, findings, runner
from mimic_jax.study.design import DRAWN, Plan, Study
from mimic_jax.study.findings import NONE, Found, Table

RUNS_SHOWN = 8  # that failed, by name
MATHS = {'±': r'$\pm$', NONE: '--', '−': '$-$', 'λ': r'$\lambda$', 'τ': r'$\tau$', '∞': r'$\infty$'}


def write(
  out: epath.Path, study: Study, plan: Plan, scale: str, weights: Mapping[str, str], begun_with: int
) -> str:
  """Writes OUT/STUDY and returns its tables as Markdown.

  Args:
    out: the study's folder.
    study: the design.
    plan: its runs, those that are done and others.
    scale: of the runs.
    weights: files by pre-training.
    begun_with: how many of the runs were there when the study was begun.
  """
  folder = out / study.name
  (folder / 'figures').mkdir(parents=True, exist_ok=True)
  found = findings.splits(out, study, plan)
  shown = [findings.scores(study, where, held) for where, held in found.items()]
  shown += [t for t in findings.contrasts(study, plan, found, begun_with) if t]
  notes = list(_notes(out, study, plan, scale, weights))
  drawn = {}
  for title, figure in _figures(out, study, plan, found):
    name = re.sub(r'[^\w.-]+', '_', title)
    vector.save(figure, folder / 'figures', name)
    drawn[title] = (folder / 'figures' / f'{name}.svg').read_text()
  markdown = '\n'.join([f'# {study.title}\n', *(f'{note}\n' for note in notes), *map(_markdown, shown)])
  files.write_whole(folder / 'table.md', markdown)
  files.write_whole(folder / 'table.tex', '\n'.join(map(_latex, shown)))
  files.write_whole(folder / 'table.csv', tables.as_csv(['table', 'row', 'column', 'value'], _flat(shown)))
  files.write_whole(folder / 'index.html', _html(study, notes, shown, drawn))
  return f'{markdown}\n{folder / "index.html"}'


def _notes(
  out: epath.Path, study: Study, plan: Plan, scale: str, weights: Mapping[str, str]
) -> Iterator[str]:
  done = [r for r in plan.runs if runner.done(out, r)]
  results = [files.read_json(runner.folder(out, r) / r.stage / 'result.json') for r in done]
  hours = sum(r.get('seconds') or 0 for r in results) / 3600
  if study.about:
    yield study.about
  yield f'Scale `{scale}`: {design.SCALES[scale]} (configs/study.py). {len(done)} of {len(plan.runs)} runs done, {hours:.2f} hours of training{_machine(out, done)}.'
  if DRAWN in plan.arms:
    yield 'Drawn faces: this shows the machinery and says nothing of the method.'
  if any(r.stage == 'pretrain' for r in plan.runs):
    yield 'Every seed has a pre-training of its own, which its fine-tunings share.'
  if used := [k for k in weights if any(a.begins == k for a in study.arms.values())]:
    yield f'{", ".join(used)}: one weight file for all seeds; what is said holds for that file, not for the way it was pre-trained.'
  for line in plan.missing:
    yield f'Left out: {line}.'
  failed = {r.name: why for r in plan.runs if (why := runner.failure(out, r))}
  if failed:
    waiting = sum(r.needs in failed for r in plan.runs)
    told = '; '.join(f'{name} ({why})' for name, why in list(failed.items())[:RUNS_SHOWN])
    yield f'Failed: {told}; {len(failed)} in all, and {waiting} that wait for one of them.'


def _machine(out: epath.Path, done: list) -> str:
  """Returns what the first run that is done ran on."""
  for run in done[:1]:
    held = files.read_json(runner.folder(out, run) / 'record.json').get('environment', {})
    kinds = held.get('devices', {}).get('kinds', {})
    return f' on {", ".join(kinds)}, jax {held.get("versions", {}).get("jax", NONE)}'
  return ''


def _markdown(t: Table) -> str:
  rows = [[f'**{c}**' if (i, k) in t.bold else c for k, c in enumerate(row)] for i, row in enumerate(t.rows)]
  lines = [t.head, ['---', *['---:'] * (len(t.head) - 1)], *rows]
  body = '\n'.join(f'| {" | ".join(c.replace("|", chr(92) + "|") for c in line)} |' for line in lines)
  return '\n\n'.join([f'## {t.title}', body, *t.notes]) + '\n'


def _latex(t: Table) -> str:
  def cell(text: str, bold: bool = False) -> str:
    plain = ''.join(MATHS.get(letter, letter) for letter in grid.escaped(text))
    return rf'\textbf{{{plain}}}' if bold else plain

  lines = [r'% \usepackage{booktabs}', *(f'% {note}' for note in [t.title, *t.notes])]
  lines += [
    rf'\begin{{tabular}}{{l{"r" * (len(t.head) - 1)}}}',
    r'\toprule',
    ' & '.join(map(cell, t.head)) + r' \\',
    r'\midrule',
  ]
  lines += [
    ' & '.join(cell(c, (i, k) in t.bold) for k, c in enumerate(row)) + r' \\' for i, row in enumerate(t.rows)
  ]
  return '\n'.join([*lines, r'\bottomrule', r'\end{tabular}']) + '\n'


def _flat(shown: list[Table]) -> Iterator[list[str]]:
  for t in shown:
    for row in t.rows:
      yield from (
        [t.title, row[0], column, value] for column, value in zip(t.head[1:], row[1:]) if value != NONE
      )


def _words(note: str) -> str:
  return re.sub(r'`([^`]+)`', r'<code>\1</code>', tables.esc(note))


def _html(study: Study, notes: list[str], shown: list[Table], drawn: Mapping[str, str]) -> str:
  body = [f'<header><h1>{tables.esc(study.title)}</h1></header>', *(f'<p>{_words(n)}</p>' for n in notes)]
  for t in shown:
    rows = [
      [f'<b>{tables.esc(c)}</b>' if (i, k) in t.bold else tables.esc(c) for k, c in enumerate(row)]
      for i, row in enumerate(t.rows)
    ]
    save = tables.download(t.title, tables.as_csv(t.head, t.rows), 'csv')
    body += [f'<h2>{tables.esc(t.title)} {save}</h2>', tables.table(t.head, rows, 'stack classes')]
    body += [f'<p class="quiet small">{_words(note)}</p>' for note in t.notes]
  if drawn:
    svgs = ''.join(
      f'<figure aria-label="{tables.esc(title)}"><figcaption><h4>{tables.esc(title)}</h4></figcaption>{page_figures.inline(svg)}</figure>'
      for title, svg in drawn.items()
    )
    body.append(f'<h2>Figures</h2><div class="plots">{svgs}</div>')
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    f'<title>{tables.esc(study.title)}</title><style>{CSS}.stack tbody th {{ white-space: normal; }}</style></head><body>{"".join(body)}</body></html>\n'
  )


def _figures(
  out: epath.Path, study: Study, plan: Plan, found: Mapping[tuple[str, str], Found]
) -> Iterator[tuple[str, Figure]]:
  if study.figure == 'bars' and found:
    yield study.title, _bars(study, found)
  if study.figure == 'sweeps':
    for where, held in found.items():
      for sweep, values in study.sweeps.items():
        if bands := _bands(values, held):
          label = f'accuracy, {design.words().SETS[where[0]]} {where[1]} (%)'
          yield f'{sweep} {" ".join(where)}', vector.curves(bands, sweep, label)
  if study.figure == 'tsne':
    for target, arms in plan.arms.items():
      for arm, runs in arms.items():
        folder = runner.folder(out, next(iter(runs.values()))) / 'finetune'
        if drawn := page_figures.tsne(folder, compute=True):
          yield f'{arm}, {target}', vector.scatter(*drawn)


def _bars(study: Study, found: Mapping[tuple[str, str], Found]) -> Figure:
  arms = [arm for arm in study.arms if any(arm in held for held in found.values())]
  mean, sd = np.zeros((2, len(arms), len(found)))
  for j, held in enumerate(found.values()):
    for i, arm in enumerate(arms):
      values = [a.scores['accuracy'] for a in held.get(arm, {}).values()]
      mean[i, j] = np.mean(values) if values else np.nan
      sd[i, j] = np.std(values, ddof=1) if len(values) > 1 else 0.0
  names = [f'{design.words().SETS[target]} {split}' for target, split in found]
  return vector.bars(arms, mean, np.stack([mean - sd, mean + sd]), names, 'accuracy (%)')


def _bands(values: Mapping[float, list[str]], held: Found) -> list[vector.Band]:
  """Returns a curve over a sweep's values for each arm that has them."""
  bands = []
  for of_arm in zip(*values.values()):
    there = [
      (x, [a.scores['accuracy'] for a in held[arm].values()]) for x, arm in zip(values, of_arm) if arm in held
    ]
    if there:
      spread = [100 * np.std(v, ddof=1) if len(v) > 1 else 0.0 for _, v in there]
      name = of_arm[0].rpartition(', ')[0]
      bands.append(
        vector.Band(
          name,
          np.array([x for x, _ in there], float),
          np.array([100 * np.mean(v) for _, v in there]),
          np.array(spread),
        )
      )
  return bands

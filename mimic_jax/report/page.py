"""report.html: one page that holds everything there is to see of a run, rewritten as the run goes.

It is read from the files of the run's folder alone, carries its pictures and styles inside, and needs no script.
"""

import base64
import datetime
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from mimic_jax.report import figures, tables
from mimic_jax.report import run as runs
from mimic_jax.report.drawing import Drawing
from mimic_jax.report.figures import Curve
from mimic_jax.report.run import Run, Stage
from mimic_jax.report.style import CSS
from mimic_jax.report.tables import esc, is_number
from mimic_jax.runtime.files import write_whole

# Figures of every objective; record.json has those of its own (objectives/base.py Figure).
FIGURES = {
  'loss': {'title': 'Loss'},
  'accuracy': {'title': 'Accuracy', 'share': True},
  'lr': {'title': 'Learning rate'},
  'lr_first_layer': {'title': 'Learning rate of the first layer'},
  'images_per_second': {'title': 'Speed', 'unit': 'pictures per second'},
  'grad_norm': {'title': 'Norm of the gradient'},
  'terms': {'title': 'Terms of the loss'},
  'bad_steps': {'title': 'Steps left out because a gradient was not finite'},
}
FIRST = ('loss', 'accuracy', 'terms', 'lr')  # plots in this order, then the rest by name
MOST_SHOWN = 3  # plots of a stage; the others are folded
NOT_DRAWN = ('step', 'epoch', 'total_steps', 'seconds', 'count', 'largest_class')
SPLIT_COLOURS = {'train': '#0072b2', 'valid': '#d55e00', 'test': '#009e73'}
PICTURES = ('mistakes', 'attention', 'reconstructions', 'mixed')  # in this order, then the rest by name
LEAST_SIDE = 96  # pixels; smaller pictures are enlarged by a whole factor
WEBP = {'quality': 80, 'method': 6}


def write(workdir: os.PathLike | str, final: bool = True) -> epath.Path:
  """Writes <workdir>/report.html and returns its path; what the run has not produced yet is left out.

  Args:
    final: also compute t-SNE (seconds). Without, only points kept from an earlier page are drawn.
  """
  workdir = epath.Path(workdir)
  run = runs.read(workdir)
  path = workdir / 'report.html'
  workdir.mkdir(parents=True, exist_ok=True)
  write_whole(path, _page(run, final))
  return path


def _page(run: Run, final: bool) -> str:
  stages = sorted(run.stages, key=lambda stage: not _classified(stage))  # what has a score first
  links = [('results', 'results'), *((_anchor(stage), stage.name) for stage in stages)]
  links += [('machine', 'how it ran'), ('record', 'record')]
  nav = ''.join(f'<a href="#{anchor}">{esc(name)}</a>' for anchor, name in links)
  note = run.config.get('report_note')
  note = f'<div class="note"><p>{esc(note)}</p></div>' if note and isinstance(note, str) else ''
  record = tables.tree(run.record) if run.record else '<p>Not written yet.</p>'
  shown: dict[str, str] = {}
  body = [
    f'<header><h1>{esc(run.name)}</h1><p class="quiet">{esc(_status(run))}</p>'
    f'<nav aria-label="Parts of this page">{nav}</nav></header>',
    _notice('Warnings', [*run.problems, *tables.warnings(run.record)]),
    note,
    tables.cards(run) if run.stages else '<p>Nothing has been written by this run yet.</p>',
    tables.results(run) if run.stages else '',
    _side_by_side(run),
    *(_stage(run, stage, final, shown) for stage in stages),
    tables.machine(run),
    '<h2 id="record">Record</h2>'
    f'<details><summary>data, versions, times: record.json</summary>{record}</details>'
    f'<details><summary>every field of the config: config.json</summary><pre>{esc(_dump(run.config))}</pre></details>',
  ]
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{esc(run.name)}</title><style>{CSS}</style></head>\n<body>\n'
    + '\n'.join(body)
    + '\n</body></html>\n'
  )


def _classified(stage: Stage) -> list[tuple[str, dict[str, Any]]]:
  """Returns the splits of a stage that have a confusion matrix, and their figures."""
  return [(split, held) for split, held in tables.splits(stage).items() if held.get('confusion')]


def _status(run: Run) -> str:
  """Returns one line: how far the run is, how long it took, and when the page was written."""
  parts = []
  states = {stage.name: tables.progress(stage) for stage in run.stages}
  running = [name for name, (state, _, _) in states.items() if state == 'running']
  if states and all(state == 'done' for state, _, _ in states.values()):
    parts.append(f'All {len(states)} stages done' if len(states) > 1 else 'Done')
  elif running:
    _, step, total = states[running[-1]]
    parts.append(
      f'{running[-1]}: step {step:,}' + (f' of {total:,} ({100 * step // total} %)' if total else '')
    )
  elif states:
    done = sum(state == 'done' for state, _, _ in states.values())
    parts.append(f'{done} of {len(states)} stages done')
  took = [t for t in map(tables.seconds, run.stages) if t is not None]
  if took:
    parts.append(tables.duration(sum(took)))
  now = datetime.datetime.now(datetime.UTC)
  return ' · '.join([*parts, f'page written {now:%Y-%m-%d %H:%M} UTC'])


def _stage(run: Run, stage: Stage, final: bool, shown: dict[str, str]) -> str:
  state, step, total = tables.progress(stage)
  about = [tables.objective(stage), f'initial weights: {tables.initial(run, stage)}']
  about += [f'{step:,} of {total:,} steps' if total else state]
  parts = [f'<h2 id="{_anchor(stage)}">{esc(stage.name)}</h2><p class="quiet">{esc(" · ".join(about))}</p>']
  trained_on = tables.class_counts(run, stage)
  for i, (split, held) in enumerate(_classified(stage)):
    link = tables.download(f'{stage.name}-{split}-classes', tables.classes_csv(held), 'csv')
    pair = (
      f'<div class="pair"><div><h3>Confusion on {esc(split)} {link}</h3>{tables.confusion(held)}</div>'
      f'<div><h3>Classes of {esc(split)}</h3>{tables.per_class(held, trained_on)}</div></div>'
    )
    parts.append(
      pair if i == 0 else f'<details><summary>{esc(split)}, class by class</summary>{pair}</details>'
    )
  plots, folded = _plots(stage, {**FIGURES, **run.record.get('figures', {}).get(stage.name, {})})
  order = sorted(stage.pictures, key=lambda n: (PICTURES.index(n) if n in PICTURES else len(PICTURES), n))
  sheets = {name: _sheet(stage.pictures[name], shown) for name in order}
  data = ''.join(sheets.pop(name) for name in order if name.startswith('data_'))
  parts += [plots, f'<div class="sheets">{"".join(sheets.values())}</div>' if sheets else '']
  parts += [_calibration(stage), _tsne(stage, final)]
  if folded or data:
    parts.append(f'<details><summary>Diagnostics and training pictures</summary>{folded}{data}</details>')
  return '\n'.join(parts)


def _series(stage: Stage) -> tuple[dict[tuple[str, str], tuple[np.ndarray, np.ndarray]], str]:
  """Returns x and y of every (split, quantity) that a stage has logged, and what x is."""
  x = 'epoch' if all(is_number(line.get('epoch')) for line in stage.lines) else 'step'
  points: dict[tuple[str, str], list[tuple[float, float]]] = {}
  for line in stage.lines:
    for name, value in line.items():
      if name not in NOT_DRAWN and is_number(value):
        points.setdefault((str(line['split']), name), []).append((line[x], value))
  return {key: tuple(np.array(held, np.float64).T) for key, held in points.items()}, x


def _side_by_side(run: Run) -> str:
  """Returns plots in which each of several stages has a curve: accuracy on a split, training loss of one objective."""
  plots: dict[tuple[str, str, str], list[Curve]] = {}
  for k, stage in enumerate(run.stages):
    series, x_label = _series(stage)
    for (split, name), (x, y) in series.items():
      if (name == 'accuracy') == (split != 'train') and name in ('accuracy', 'loss'):
        alike = tables.objective(stage) if name == 'loss' else ''
        plots.setdefault((name, split, alike), []).append(Curve(stage.name, x, y, figures.PALETTE[k % 8]))
  drawn = [
    _plot(f'{name.capitalize()} on {split}', lines, x_label, {'share': name == 'accuracy'}, run.name)
    for (name, split, _), lines in sorted(plots.items())
    if len(lines) > 1
  ]
  return f'<h3>Stages side by side</h3><div class="plots">{"".join(drawn)}</div>' if drawn else ''


def _plots(stage: Stage, known: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
  """Returns the curves of a stage, one plot per quantity with all splits in it: those shown, and those folded.

  Args:
    known: says what quantities are.
  """
  by_plot: dict[str, list[Curve]] = {}
  series, x_label = _series(stage)
  for (split, name), (x, y) in series.items():
    if plot := _plot_of(name, known):
      curve = Curve(f'{split} {name}', x, y, SPLIT_COLOURS.get(split, ''), 'mean_class' in name)
      by_plot.setdefault(plot, []).append(curve)
  order = sorted(
    by_plot, key=lambda p: (FIRST.index(p) if p in FIRST else len(FIRST), _constant(by_plot[p]), p)
  )
  drawn = []
  for k, plot in enumerate(order):
    about = {'unit': known.get('loss', {}).get('unit', '') if plot == 'terms' else '', **known.get(plot, {})}
    title = about.get('title') or plot.replace('_', ' ').capitalize()
    lines = []
    for j, curve in enumerate(by_plot[plot]):
      name = curve.name if plot == 'terms' else curve.name.replace(f' {plot}', '').replace('_', ' ')
      colour = curve.colour if plot != 'terms' and curve.colour else figures.PALETTE[(j + 3) % 8]
      lines.append(curve._replace(name=name.removesuffix(' accuracy'), colour=colour))
    kept = stage.name if k < MOST_SHOWN else ''
    drawn.append(_plot(title, lines, x_label, about, kept, noisy=plot != 'lr'))
  notes = dict.fromkeys(note for p in order[:MOST_SHOWN] if (note := known.get(p, {}).get('note')))
  shown = ''.join(drawn[:MOST_SHOWN]) + ''.join(f'<p class="small quiet whole">{esc(n)}</p>' for n in notes)
  return tuple(
    f'<div class="plots">{some}</div>' if some else '' for some in (shown, ''.join(drawn[MOST_SHOWN:]))
  )


def _plot_of(name: str, known: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns the plot that a quantity is drawn in, '' for those that are in the tables only."""
  if name in ('mean_class_accuracy', 'accuracy'):
    return 'accuracy'
  if name == 'macro_f1' or name.startswith(('accuracy_', 'count_')):
    return ''
  if known.get(name, {}).get('term'):
    return 'terms'
  return name


def _constant(lines: Sequence[Curve]) -> bool:
  return all(np.ptp(curve.y) == 0 for curve in lines)


def _plot(
  title: str, lines: Sequence[Curve], x_label: str, about: Mapping[str, Any], kept: str, noisy: bool = True
) -> str:
  """Returns a plot, or a sentence where nothing changes.

  Args:
    title: of the quantity.
    lines: its curves.
    x_label: what x is.
    about: share and unit of the quantity.
    kept: what the files of its data begin with; '' = they are not offered.
    noisy: whether to smooth.
  """
  share = bool(about.get('share'))

  def said(value: float) -> str:
    return tables.percent(value, 1) if share else f'{value:.4g}'

  if _constant(lines):
    values = ', '.join(f'{c.name} {said(c.y[0])}' if len(lines) > 1 else said(c.y[0]) for c in lines)
    when = (
      'throughout' if max(len(c.y) for c in lines) > 1 else f'at {x_label} {lines[0].x[0]:g}, logged once'
    )
    return f'<p class="small whole">{esc(title)}: {esc(values)} ({when}).</p>'
  unit = about.get('unit')
  svg = figures.curves(f'{title} ({unit})' if unit else title, lines, x_label, share, noisy)
  told = '; '.join(f'{c.name} from {said(c.y[0])} to {said(c.y[-1])}' for c in lines)
  rows = [(c.name, f'{x:g}', f'{y:g}') for c in lines for x, y in zip(figures.thin(c.x), figures.thin(c.y))]
  table = tables.as_csv(('series', x_label, title), rows)
  return _figure(svg, f'{title} by {x_label}: {told}', f'{kept}-{title}' if kept else '', table)


def _figure(svg: str, told: str, kept: str, table: str = '') -> str:
  """Returns an SVG as a figure that says in words what it shows; with `kept`, offered as files of that name."""
  links = ''
  if kept:
    kept = re.sub(r'\W+', '-', kept.lower())
    links = tables.download(kept, svg, 'svg') + (tables.download(kept, table, 'csv') if table else '')
  held = figures.inline(svg).replace('<svg', f'<svg role="img" aria-label="{esc(told)}"', 1)
  return f'<figure>{held}<figcaption>{links}</figcaption></figure>'


def _sheet(drawing: Drawing, shown: dict[str, str]) -> str:
  """Returns a drawing: its pictures with their captions, and their ids as a list to copy.

  Args:
    drawing: the pictures.
    shown: id by content of the pictures that the page holds already, which are not put in again; is added to.
  """
  rows, columns, height, width, _ = drawing.images.shape
  pictures = list(drawing.images.reshape(-1, height, width, 3))
  while len(pictures) > 1 and pictures[-1].min() == 255:  # places left over
    pictures.pop()
  texts = [text for row in drawing.cells or () for text in row] or [''] * len(pictures)
  names = [*drawing.ids] or [*drawing.columns] * rows or [drawing.title] * len(pictures)
  cells = [f'<b>{esc(title)}</b>' for title in drawing.columns]
  for picture, name, text in zip(pictures, names, texts):
    told = f'{name}: {text}' if text else name
    cells.append(f'<div title="{esc(told)}">{_image(picture, told, shown)}{esc(text)}</div>')
  side = width * max(1, -(-LEAST_SIDE // min(height, width)))
  # Where columns mean something they stay together, else a row has as many pictures as there is room for.
  together = drawing.columns or len(pictures) == 1
  grid = f'repeat({columns}, minmax(0, {side}px))' if together else f'repeat(auto-fill, {side}px)'
  room = f'width:{columns * (side + 7)}px' if together else 'width:100%'
  copied = '\n'.join('\t'.join(pair).rstrip() for pair in zip(drawing.ids, texts))
  if copied:
    copied = f'<details><summary>as a list to copy</summary><pre class="copy">{esc(copied)}</pre></details>'
  return (
    f'<figure class="picture" style="{room}"><figcaption><h3>{esc(drawing.title)}</h3>'
    f'<p class="small quiet">{esc(drawing.caption)}</p></figcaption>'
    f'<div class="sheet" style="grid-template-columns:{grid}">{"".join(cells)}</div>{copied}</figure>'
  )


def _image(picture: np.ndarray, told: str, shown: dict[str, str]) -> str:
  """Returns a picture as WebP; one that the page holds already is referred to."""
  height, width, _ = picture.shape
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, 'WEBP', **WEBP)
  data = base64.b64encode(buffer.getvalue()).decode()
  inner = f'<use href="#{shown.get(data)}"/>'
  if data not in shown:
    shown[data] = f'picture-{len(shown)}'
    inner = (
      f'<image id="{shown[data]}" width="{width}" height="{height}" href="data:image/webp;base64,{data}"/>'
    )
  return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{esc(told)}">{inner}</svg>'


def _calibration(stage: Stage) -> str:
  held = next(((s, h['calibration']) for s, h in tables.splits(stage).items() if h.get('calibration')), None)
  if held is None:
    return ''
  split, found = held
  error, bins = tables.percent(found['ece'], 1), found['bins']
  table = tables.as_csv(bins[0], [tuple(b.values()) for b in bins])
  told = f'Reliability on {split}: expected calibration error {error}'
  return (
    f'<h3>Calibration on {esc(split)}</h3><div class="pair"><div class="half">'
    f'{_figure(figures.reliability(bins), told, f"{stage.name}-calibration", table)}</div><div class="half"><p class="small">'
    f'Expected calibration error {error}. An answer’s probability is the largest of its softmax. Answers fall by it into '
    f'{len(bins)} bins of equal width; the error is the mean over all answers of the distance, in their bin, between the '
    'share that is right (the bar) and the mean probability (about the dashed line). Bars under the line: surer than '
    'right.</p></div></div>'
  )


def _tsne(stage: Stage, final: bool) -> str:
  held = figures.tsne(stage.folder, compute=final)
  if held is None:
    return ''
  points, labels = held
  names = next((list(h['per_class']) for h in tables.splits(stage).values() if h.get('per_class')), [])
  own = runs.arrays(stage.folder / 'features.npz', ('class_names',))
  names = [str(name) for name in own['class_names']] if own else names
  told = f't-SNE of the features of {len(labels):,} pictures'
  table = tables.as_csv(
    ('x', 'y', 'class'), [(f'{x:.3f}', f'{y:.3f}', k) for (x, y), k in zip(points, labels)]
  )
  return (
    '<h3>t-SNE of the encoder’s features</h3>'
    f'<p class="small quiet">{len(labels):,} pictures. Distances between groups mean little in t-SNE; '
    'what matters is who is among whom.</p><div class="half">'
    f'{_figure(figures.scatter(points, labels, names), told, f"{stage.name}-tsne", table)}</div>'
  )


def _notice(title: str, texts: list[str]) -> str:
  if not texts:
    return ''
  items = ''.join(f'<li>{esc(text)}</li>' for text in texts)
  return f'<div class="warning"><strong>{title}</strong><ul>{items}</ul></div>'


def _anchor(stage: Stage) -> str:
  return 'stage-' + re.sub(r'[^A-Za-z0-9_-]', '-', stage.name)


def _dump(config: dict[str, Any]) -> str:
  return json.dumps(config, indent=2, ensure_ascii=False)

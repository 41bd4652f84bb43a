"""report.html: one page that holds everything there is to see of a run, rewritten as the run goes.

It is read from the files of the run's folder alone, carries its pictures and styles inside, and needs no script.
"""

import base64
import datetime
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from mimic_jax.report import figures, tables
from mimic_jax.report import run as runs
from mimic_jax.report.run import Picture, Run, Stage
from mimic_jax.report.style import CSS
from mimic_jax.report.tables import esc, is_number
from mimic_jax.runtime.files import write_whole

# Figures of every objective; record.json has those of its own (objectives/base.py Figure).
FIGURES = {
  'loss': {'title': 'Loss'},
  'accuracy': {'title': 'Accuracy', 'share': True},
  'lr': {'title': 'Learning rate'},
  'lr_first_layer': {'title': 'Learning rate of the first layer'},
  'images_per_second': {'title': 'Pictures per second'},
  'grad_norm': {'title': 'Norm of the gradient'},
  'terms': {'title': 'Terms of the loss'},
}
FIRST = ('loss', 'terms', 'accuracy', 'lr')  # plots in this order, then the rest by name
NOT_DRAWN = ('step', 'epoch', 'total_steps', 'seconds', 'count', 'largest_class')
SPLIT_COLOURS = {'train': '#0072b2', 'valid': '#d55e00', 'test': '#009e73'}


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
  links = [(_anchor(stage), stage.name) for stage in run.stages]
  links = [('results', 'results'), *links, ('config', 'config'), ('record', 'record')]
  nav = ''.join(f'<a href="#{anchor}">{esc(name)}</a>' for anchor, name in links)
  note = run.config.get('report_note')
  note = f'<div class="note"><p>{esc(note)}</p></div>' if note and isinstance(note, str) else ''
  body = [
    f'<header><h1>{esc(run.name)}</h1><p class="quiet">{esc(_status(run))}</p><nav>{nav}</nav></header>',
    _notice('Warnings', [*run.problems, *tables.warnings(run.record)]),
    note,
    tables.cards(run) if run.stages else '<p>Nothing has been written by this run yet.</p>',
    tables.results(run) if run.stages else '',
    *(_stage(run, stage, final) for stage in run.stages),
    f'<h2 id="config">Config</h2><details><summary>every field</summary><pre>{esc(_dump(run.config))}</pre></details>',
    f'<h2 id="record">Record</h2>{tables.tree(run.record) if run.record else "<p>Not written yet.</p>"}',
  ]
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{esc(run.name)}</title><style>{CSS}</style></head>\n<body>\n'
    + '\n'.join(body)
    + '\n</body></html>\n'
  )


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


def _stage(run: Run, stage: Stage, final: bool) -> str:
  state, step, total = tables.progress(stage)
  about = [tables.objective(stage), f'initial weights: {tables.initial(run, stage)}']
  about += [f'{step:,} of {total:,} steps' if total else state]
  parts = [
    f'<h2 id="{_anchor(stage)}">{esc(stage.name)}</h2><p class="quiet">{esc(" · ".join(about))}</p>',
    f'<p class="small quiet">{esc(fast)}</p>' if (fast := tables.speed(stage)) else '',
    _plots(stage, {**FIGURES, **run.record.get('figures', {}).get(stage.name, {})}),
    *(_picture(picture) for picture in stage.pictures),
  ]
  for i, (split, held) in enumerate((s, h) for s, h in tables.splits(stage).items() if h.get('confusion')):
    pair = (
      f'<div class="pair"><div><h3>Confusion on {esc(split)}</h3>{tables.confusion(held)}</div>'
      f'<div><h3>Classes of {esc(split)}</h3>{tables.per_class(held)}</div></div>'
    )
    parts.append(
      pair if i == 0 else f'<details><summary>{esc(split)}, class by class</summary>{pair}</details>'
    )
  return '\n'.join([*parts, _tsne(stage, final)])


def _plots(stage: Stage, known: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns the curves of a stage, one plot per quantity, all splits in one; `known` says what quantities are."""
  by_plot: dict[str, list[figures.Curve]] = {}
  epochs = all(is_number(line.get('epoch')) for line in stage.lines)
  for split in dict.fromkeys(str(line.get('split', 'train')) for line in stage.lines):
    lines = [line for line in stage.lines if str(line.get('split', 'train')) == split]
    for name in dict.fromkeys(name for line in lines for name in line if name not in NOT_DRAWN):
      points = [
        (line['epoch' if epochs else 'step'], line[name]) for line in lines if is_number(line.get(name))
      ]
      plot = _plot_of(name, known)
      if plot and points:
        x, y = np.array(points, np.float64).T
        by_plot.setdefault(plot, []).append(
          figures.Curve(f'{split} {name}', x, y, SPLIT_COLOURS.get(split, ''))
        )
  order = sorted(by_plot, key=lambda p: (FIRST.index(p) if p in FIRST else len(FIRST), p))
  label = 'epoch' if epochs else 'step'
  drawn = ''.join(_plot(plot, by_plot[plot], label, known.get(plot, {})) for plot in order)
  return f'<div class="plots">{drawn}</div>' if drawn else ''


def _plot_of(name: str, known: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns the plot that a quantity is drawn in, '' for those that are in the tables only."""
  if name in ('mean_class_accuracy', 'accuracy'):
    return 'accuracy'
  if name == 'macro_f1' or name.startswith(('accuracy_', 'count_')):
    return ''
  if known.get(name, {}).get('term'):
    return 'terms'
  return name


def _plot(plot: str, held: list[figures.Curve], x_label: str, about: Mapping[str, Any]) -> str:
  title = about.get('title') or plot.replace('_', ' ').capitalize()
  lines, legend = [], []
  for k, curve in enumerate(held):
    name = curve.name if plot == 'terms' else curve.name.replace(f' {plot}', '').replace('_', ' ')
    colour = curve.colour if plot != 'terms' and curve.colour else figures.PALETTE[(k + 3) % 8]
    lines.append(curve._replace(colour=colour, dashed='mean_class' in curve.name))
    legend.append((colour, '┅' if lines[-1].dashed else '━', name))
  svg = figures.curves(lines, x_label, percent=bool(about.get('share')), noisy=plot != 'lr')
  keys = _legend(legend) if len(legend) > 1 else ''
  return f'<figure><figcaption><h4>{esc(title)}</h4></figcaption>{svg}{keys}</figure>'


def _legend(items: list[tuple[str, str, str]]) -> str:
  keys = ''.join(
    f'<span><span style="color:var({figures.COLOURS[colour]})">{glyph}</span> {esc(name)}</span>'
    for colour, glyph, name in items
  )
  return f'<div class="legend">{keys}</div>'


def _picture(picture: Picture) -> str:
  data = base64.b64encode(picture.png).decode()
  width, height = (
    int.from_bytes(picture.png[at : at + 4], 'big') for at in (16, 20)
  )  # from the PNG's header
  caption = f'<p class="small quiet">{esc(picture.caption)}</p>' if picture.caption else ''
  return (
    f'<figure class="picture"><figcaption><h3>{esc(picture.title)}</h3>{caption}</figcaption>'
    f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{esc(picture.title)}"></figure>'
  )


def _tsne(stage: Stage, final: bool) -> str:
  held = figures.tsne(stage.folder, compute=final)
  if held is None:
    return ''
  points, labels = held
  names = next((list(h['per_class']) for h in tables.splits(stage).values() if h.get('per_class')), [])
  own = runs.arrays(stage.folder / 'features.npz', ('class_names',))
  names = [str(name) for name in own['class_names']] if own else names
  keys = []
  for k in sorted(set(labels.tolist()) - {-1}):
    colour, _, glyph = figures.look(k)
    keys.append((colour, glyph, names[k] if k < len(names) else f'class {k}'))
  return (
    '<h3>t-SNE of the encoder’s features</h3>'
    f'<p class="small quiet">{len(labels):,} pictures. Distances between groups mean little in t-SNE; '
    f'what matters is who is among whom.</p>{_legend(keys)}<figure class="scatter">{figures.scatter(points, labels)}</figure>'
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

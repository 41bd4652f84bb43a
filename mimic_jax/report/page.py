"""report.html: one page that holds everything there is to see of a run, rewritten as the run goes.

It is read from the files of the run's folder alone, carries its pictures and styles inside, and needs no script.
"""

import base64
import datetime
import io
import json
import os
import re
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from mimic_jax.report import machine, plots, tables
from mimic_jax.report import run as runs
from mimic_jax.report.drawing import Drawing, places
from mimic_jax.report.run import Run, Stage
from mimic_jax.report.style import CSS
from mimic_jax.report.tables import esc
from mimic_jax.runtime.files import write_whole

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
  config = json.dumps(run.config, indent=2, ensure_ascii=False)
  shown: dict[str, str] = {}
  body = [
    f'<header><h1>{esc(run.name)}</h1><p class="quiet">{esc(_status(run))}</p>'
    f'<nav aria-label="Parts of this page">{nav}</nav></header>',
    _notice('Warnings', [*run.problems, *tables.warnings(run.record)]),
    note,
    tables.cards(run) if run.stages else '<p>Nothing has been written by this run yet.</p>',
    tables.results(run) if run.stages else '',
    plots.side_by_side(run),
    *(_stage(run, stage, final, shown) for stage in stages),
    machine.section(run),
    '<h2 id="record">Record</h2>'
    f'<details><summary>data, versions, times: record.json</summary>{record}</details>'
    f'<details><summary>every field of the config: config.json</summary><pre>{esc(config)}</pre></details>',
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
  curves, folded = plots.of_stage(run, stage)
  order = sorted(stage.pictures, key=lambda n: (PICTURES.index(n) if n in PICTURES else len(PICTURES), n))
  sheets = {name: _sheet(stage.pictures[name], shown) for name in order}
  data = ''.join(sheets.pop(name) for name in order if name.startswith('data_'))
  parts.append(curves)
  for row in (sheets.values(), (plots.calibration(stage), plots.det(stage), plots.tsne(stage, final))):
    parts.append(f'<div class="row">{"".join(row)}</div>')
  if folded or data:
    parts.append(f'<details><summary>Diagnostics and training pictures</summary>{folded}{data}</details>')
  return '\n'.join(parts)


def _sheet(drawing: Drawing, shown: dict[str, str]) -> str:
  """Returns a drawing: its pictures with their captions, and their ids as a list to copy.

  Args:
    drawing: the pictures.
    shown: id by content of the pictures that the page holds already, which are not put in again; is added to.
  """
  _, columns, height, width, _ = drawing.images.shape
  held = places(drawing)
  cells = [f'<b>{esc(title)}</b>' for title in drawing.columns]
  for picture, name, text in held:
    told = f'{name}: {text}' if text else name
    cells.append(f'<div title="{esc(told)}">{_image(picture, told, shown)}{esc(text)}</div>')
  side = width * max(1, -(-LEAST_SIDE // min(height, width)))
  # Where columns mean something they stay together, else a row has as many pictures as there is room for.
  together = drawing.columns or len(held) == 1
  grid = f'repeat({columns}, minmax(0, {side}px))' if together else f'repeat(auto-fill, {side}px)'
  room = f'width:{columns * (side + 7)}px' if together else 'width:100%'
  copied = '\n'.join(f'{name}\t{text}'.rstrip() for _, name, text in held) if drawing.ids else ''
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


def _notice(title: str, texts: list[str]) -> str:
  if not texts:
    return ''
  items = ''.join(f'<li>{esc(text)}</li>' for text in texts)
  return f'<div class="warning"><strong>{title}</strong><ul>{items}</ul></div>'


def _anchor(stage: Stage) -> str:
  return 'stage-' + re.sub(r'[^A-Za-z0-9_-]', '-', stage.name)

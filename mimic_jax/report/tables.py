"""The page's numbers: results over the stages, cards, confusion matrices, per-class scores, nested records."""

import base64
import csv
import html
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mimic_jax import metrics, uncertainty
from mimic_jax.data import copies
from mimic_jax.report.run import Run, Stage

MOST_CLASSES = 30  # of a confusion matrix drawn as a table
CONFUSIONS = 25  # listed instead, where there are more classes
NONE = '–'
# accuracies of a split beside the headline: accuracy_<name>, of count_<name> pictures or of all
ALSO = {
  'without_duplicates': 'without duplicates of training pictures',
  'without_same_pixels': 'without pictures with the pixels of a training picture in another file',
  'without_near_copies': 'without near copies of training pictures',
  'without_copies': 'without any copies of training pictures',
  'among_shared_classes': 'with answers among its own classes only',
}


def esc(value: Any) -> str:
  """Returns `value` as text safe in HTML and in its attributes."""
  return html.escape(str(value))


def is_number(value: Any) -> bool:
  """Returns whether `value`, out of JSON, is a number (booleans are not)."""
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def percent(value: Any, digits: int = 2) -> str:
  """Returns a share as percent, '–' when there is none."""
  return f'{100 * value:.{digits}f} %' if is_number(value) else NONE


def number(value: Any, form: str = ',.0f') -> str:
  """Returns a number in `form`, '–' when there is none."""
  return format(value, form) if is_number(value) else NONE


def interval(held: Mapping[str, Any], name: str) -> tuple[float, float] | None:
  """Returns the ends of the interval of a split's score, where its figures hold one."""
  ends = mapping(mapping(held.get('intervals')).get(name))
  low, high = ends.get('low'), ends.get('high')
  return (low, high) if is_number(low) and is_number(high) else None


def span(ends: tuple[float, float], digits: int = 2) -> str:
  """Returns the ends of an interval of a share as percent: '86.95 – 89.14 %'."""
  low, high = (f'{100 * end:.{digits}f}' for end in ends)
  return f'{low} – {high} %'


def mapping(value: Any) -> Mapping[str, Any]:
  """Returns `value`, out of JSON, where it is a mapping, and {} otherwise."""
  return value if isinstance(value, Mapping) else {}


def _level(held: Mapping[str, Any]) -> str:
  """Returns '95 %', of the intervals of a split."""
  return percent(mapping(mapping(held.get('intervals')).get('method')).get('level'), 0)


def duration(seconds: float) -> str:
  """Returns seconds as '42 s', '3 min 05 s' or '2 h 07 min'."""
  seconds = round(seconds)
  if seconds < 60:
    return f'{seconds} s'
  if seconds < 3600:
    return f'{seconds // 60} min {seconds % 60:02d} s'
  return f'{seconds // 3600} h {seconds % 3600 // 60:02d} min'


def splits(stage: Stage) -> dict[str, dict[str, Any]]:
  """Returns the final metrics of a stage by split; {} until it has ended."""
  held = stage.result.get('metrics')
  return {k: v for k, v in held.items() if isinstance(v, dict)} if isinstance(held, dict) else {}


def objective(stage: Stage) -> str:
  """Returns the objective's name."""
  return str(stage.result.get('objective') or stage.config.get('objective') or NONE)


def initial(run: Run, stage: Stage) -> str:
  """Returns where the stage's weights started: as its result says, else as the config does."""
  init = stage.result.get('init', stage.config.get('init'))
  if not init and 'init' not in stage.result and stage is run.stages[0]:
    init = run.config.get('init')
  return str(init or 'from scratch')


def class_counts(run: Run, stage: Stage) -> Mapping[str, Any]:
  """Returns the training pictures of every class, as far as the record has them."""
  held = mapping(mapping(run.record.get('data')).get(stage.name))
  return mapping(mapping(held.get('train')).get('class_counts'))


def last_train(stage: Stage) -> dict[str, Any]:
  """Returns the newest training line of a stage, or {}."""
  return next((line for line in reversed(stage.lines) if line.get('split', 'train') == 'train'), {})


def progress(stage: Stage) -> tuple[str, int, int]:
  """Returns a stage's state ('done', 'running', 'waiting'), its step and its total steps (0 = not known)."""
  line = last_train(stage)
  step, total = line.get('step', 0), line.get('total_steps', 0)
  if stage.result:
    step, total = stage.result.get('steps', step), stage.result.get('total_steps', total)
    return 'done', int(step or 0), int(total or step or 0)
  return 'running' if stage.lines else 'waiting', int(step or 0), int(total or 0)


def seconds(stage: Stage) -> float | None:
  """Returns how long a stage took, or has taken so far, where that is known."""
  took = stage.result.get('seconds', last_train(stage).get('seconds'))
  return took if is_number(took) else None


def cards(run: Run) -> str:
  """Returns one card per stage: its state, and its accuracy, or its loss where it has no classes."""
  return '<div class="cards">' + ''.join(_card(stage) for stage in run.stages) + '</div>'


def _card(stage: Stage) -> str:
  state, step, total = progress(stage)
  told = 'done' if state == 'done' else f'step {step:,} of {total:,}' if total else state
  value, note = _value(stage)
  bar = f'<div class="bar"><i style="width:{100 * step / total:.1f}%"></i></div>' if total else ''
  return (
    f'<div class="card"><div class="top"><h4>{esc(stage.name)}</h4><p>{esc(told)}</p></div>'
    f'<div class="value">{value}</div><p>{esc(note)}</p>{bar}</div>'
  )


def _value(stage: Stage) -> tuple[str, str]:
  """Returns the card's number (HTML) and the sentence under it (text)."""
  final = splits(stage)
  for split, held in final.items():
    if is_number(held.get('accuracy')):
      ends = interval(held, 'accuracy')
      note = f'{_level(held)} interval {span(ends, 1)}; ' if ends else ''
      note += f'mean class {percent(held.get("mean_class_accuracy"), 1)}, macro F1 {percent(held.get("macro_f1"), 1)}'
      if is_number(held.get('largest_class')):
        note += f'; always the largest class {percent(held["largest_class"], 1)}'
      return f'{percent(held["accuracy"], 1)} <small>accuracy, {esc(split)}</small>', note
  for split, held in final.items():
    for target, kind in metrics.scored(held).items():
      first, *others = metrics.SCORES_OF[kind]
      said = ', '.join(f'{words(k)} {number(held.get(f"{k}_{target}"), ".3f")}' for k in others)
      value = number(held[f'{first}_{target}'], '.3f')
      return f'{value} <small>{words(first)}, {esc(target)}, {esc(split)}</small>', said
  for split, held in final.items():
    if is_number(held.get('loss')):
      return f'{number(held["loss"], ".4g")} <small>loss, {esc(split)}</small>', objective(stage)
  for line in reversed(stage.lines):
    if line.get('split', 'train') != 'train' and is_number(line.get('accuracy')):
      split = esc(line.get('split', ''))
      note = f'after epoch {number(line.get("epoch"), ".4g")}, not final'
      return f'{percent(line["accuracy"], 1)} <small>accuracy, {split}</small>', note
  loss = last_train(stage).get('loss')
  if is_number(loss):
    return f'{number(loss, ".4g")} <small>training loss</small>', objective(stage)
  return NONE, objective(stage)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = '', texts: int = 1) -> str:
  """Returns a table (HTML); the first cell of a row heads it.

  Args:
    head: titles of the columns.
    rows: cells, HTML; a row may end early.
    kind: its class; 'stack' turns rows into blocks where the screen is narrow.
    texts: how many of the first columns are words, the rest being numbers.
  """

  def classed(k: int) -> str:
    return ' class="text"' if k < texts else ''

  titles = ''.join(f'<th scope="col"{classed(k)}>{esc(title)}</th>' for k, title in enumerate(head))
  body = []
  for first, *cells in rows:
    inner = (f'<td{classed(k)} data-label="{esc(head[k])}">{cell}</td>' for k, cell in enumerate(cells, 1))
    body.append(f'<tr><th scope="row">{first}</th>{"".join(inner)}</tr>')
  return (
    f'<div class="wide"><table class="{kind}"><thead><tr>{titles}</tr></thead>'
    f'<tbody>{"".join(body)}</tbody></table></div>'
  )


def download(name: str, content: str, kind: str) -> str:
  """Returns a link that saves `content` as a file of this name, in letters that any system takes."""
  name = re.sub(r'\W+', '-', name.lower()).strip('-')
  mime = {'svg': 'image/svg+xml', 'csv': 'text/csv'}[kind]
  data = base64.b64encode(content.encode()).decode()
  return f'<a class="save" download="{name}.{kind}" href="data:{mime};base64,{data}">{kind.upper()}</a>'


def as_csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """Returns comma-separated lines; None is empty."""
  text = io.StringIO()
  csv.writer(text, lineterminator='\n').writerows([head, *rows])
  return text.getvalue()


def results(run: Run) -> str:
  """Returns the table of results: the last epoch of every stage on every split."""
  head = ('stage', 'split', 'accuracy', 'mean class', 'macro F1', 'loss', 'pictures', 'img/s', 'time')
  rows = [row for stage in run.stages for row in _rows(stage)]
  kept = [_kept(stage, split, held) for stage in run.stages for split, held in splits(stage).items()]
  link = download(f'{run.name}-results', as_csv(_KEPT, kept), 'csv')
  return (
    f'<h3 id="results">Results of the last epoch {link}</h3>{table(head, rows, "results stack", 2)}'
    f'{_of_targets(run)}{_about_intervals(run)}{_about_copies(run)}{_best(run)}'
  )


def words(score: str) -> str:
  """Returns the name of a score of targets: 'CCC', 'RMSE', 'sign agreement'."""
  return score.upper() if score in ('ccc', 'rmse') else score.replace('_', ' ')


def _of_targets(run: Run) -> str:
  """Returns a table of each kind of target that answers are numbers for: what its scores are, with intervals."""
  parts = []
  for kind, scores in metrics.SCORES_OF.items():
    rows = []
    for stage in run.stages:
      for split, held in splits(stage).items():
        for target in (name for name, of in metrics.scored(held).items() if of == kind):
          cells = []
          for score in scores:
            ends = interval(held, f'{score}_{target}')
            between = f'<small>{ends[0]:.3f} – {ends[1]:.3f}</small>' if ends else ''
            cells.append(number(held.get(f'{score}_{target}'), '.3f') + between)
          count = number(held.get(f'count_{target}'))
          rows.append([esc(stage.name), esc(split), esc(target), *cells, count])
    if rows:
      head = ('stage', 'split', 'target', *map(words, scores), 'pictures')
      parts.append(table(head, rows, 'stack', 3))
  return ''.join(parts)


_KEPT = ('stage', 'split', *uncertainty.SCORES, 'accuracy_low', 'accuracy_high', 'ece', 'loss', 'count')


def _kept(stage: Stage, split: str, held: Mapping[str, Any]) -> list[Any]:
  low, high = interval(held, 'accuracy') or (None, None)
  scores = [held.get(name) for name in uncertainty.SCORES]
  ece = mapping(held.get('calibration')).get('ece')
  return [stage.name, split, *scores, low, high, ece, held.get('loss'), held.get('count')]


def _rows(stage: Stage) -> Iterator[list[str]]:
  took = seconds(stage)
  rate = stage.result.get('images_per_second', last_train(stage).get('images_per_second'))
  last = [number(rate), NONE if took is None else duration(took)]
  for split, held in splits(stage).items() or {NONE: {}}.items():
    scores = [_score(held, name) for name in uncertainty.SCORES]
    yield [
      esc(stage.name),
      esc(split),
      *scores,
      number(held.get('loss'), '.4g'),
      number(held.get('count')),
      *last,
    ]
    for name, words in ALSO.items():
      if is_number(held.get(f'accuracy_{name}')) and held.get(f'count_{name}') != held.get('count'):
        count = number(held.get(f'count_{name}', held.get('count')))
        yield ['', f'{esc(split)} {words}', percent(held[f'accuracy_{name}']), '', '', '', count]


def _score(held: Mapping[str, Any], name: str) -> str:
  """Returns a score as percent with its interval, where there is one, in small print under it (HTML)."""
  ends = interval(held, name)
  return percent(held.get(name)) + (f'<small>{span(ends)}</small>' if ends else '')


def _about_intervals(run: Run) -> str:
  """Returns a sentence on where the intervals of the table are from, or ''."""
  drawn: dict[str, list[str]] = {}
  for stage in run.stages:
    for split, held in splits(stage).items():
      how = mapping(mapping(held.get('intervals')).get('method'))
      if how:
        kind = f'{_level(held)} interval ({how.get("interval")}, {number(how.get("samples"))} resamples)'
        units = f'{number(how.get("units"))} {how.get("over")} ({stage.name}, {split})'
        drawn.setdefault(kind, []).append(units)
  texts = [f'Under a score its {kind}, drawn over {", ".join(units)}.' for kind, units in drawn.items()]
  return f'<p class="small quiet">{esc(" ".join(texts))}</p>' if texts else ''


def _about_copies(run: Run) -> str:
  """Returns a sentence for each split in which copies of training pictures were looked for, or ''."""
  return ''.join(
    f'<p class="small quiet">{esc(stage.name)}, {esc(split)}: {esc(copies.told(held["copies"]))}</p>'
    for stage in run.stages
    for split, held in splits(stage).items()
    if 'copies' in held
  )


def _best(run: Run) -> str:
  """Returns the accuracies of chosen epochs, under their own names, or ''."""
  rows = [
    [
      esc(stage.name),
      f'<code>{esc(name)}</code>',
      percent(held.get('accuracy')),
      number(held.get('epoch'), 'g'),
    ]
    for stage in run.stages
    for name, held in stage.result.items()
    if name.startswith('best_on_') and isinstance(held, dict)
  ]
  if not rows:
    return ''
  return (
    '<details><summary>Epochs chosen by accuracy</summary><p class="small quiet">The best epoch on the split that it '
    'was chosen on: optimistic, and not the result above.</p>'
    f'{table(("stage", "chosen by", "accuracy", "epoch"), rows, "stack", 2)}</details>'
  )


def per_class(held: Mapping[str, Any], trained_on: Mapping[str, Any]) -> str:
  """Returns recall, precision, F1 and counts of every class; recall with a bar and its Wilson interval.

  Args:
    held: figures of a split.
    trained_on: class → its training pictures, as far as it is known.
  """
  rows = []
  for name, row in held.get('per_class', {}).items():
    recall = NONE
    if row.get('support', 0) > 0:
      ends = span(uncertainty.wilson(round(row['recall'] * row['support']), row['support']), 1)
      recall = f'<span class="share" style="--v:{row["recall"]:.4f}">{percent(row["recall"], 1)}</span><small>{ends}</small>'
    counts = [number(row.get('support')), *([number(trained_on.get(name))] if trained_on else ())]
    rows.append([esc(name), recall, percent(row.get('precision'), 1), percent(row.get('f1'), 1), *counts])
  return (
    '<p class="small quiet">Under recall its 95 % interval by Wilson, each picture taken as independent.</p>'
    + table(
      ('class', 'recall', 'precision', 'F1', 'pictures', *(('trained on',) if trained_on else ())),
      rows,
      'classes',
    )
  )


def classes_csv(held: Mapping[str, Any]) -> str:
  """Returns what `per_class` and `confusion` show as CSV: a line per class, its row of the confusion matrix behind it."""
  names = list(held.get('per_class', {}))
  scores = ('recall', 'precision', 'f1', 'support')
  rows = [
    [name, *(held['per_class'][name].get(k) for k in scores), *held['confusion'][i]]
    for i, name in enumerate(names)
  ]
  return as_csv(('class', *scores, *(f'taken for {name}' for name in names)), rows)


def confusion(held: Mapping[str, Any]) -> str:
  """Returns the confusion matrix, shaded by share of the row; beyond MOST_CLASSES, its largest entries as a list."""
  names, matrix = list(held.get('per_class', {})), held['confusion']
  names += [str(k) for k in range(len(names), len(matrix))]
  if len(matrix) > MOST_CLASSES:
    return _confusions(names, matrix)
  head = ''.join(f'<th scope="col">{esc(name)}</th>' for name in names)
  rows = []
  for i, counts in enumerate(matrix):
    total = sum(counts)
    cells = []
    for j, count in enumerate(counts):
      share = count / total if total else 0.0
      kind = ' '.join(k for k, on in (('dark', share > 0.7), ('hit', i == j)) if on)
      inner = f'{100 * share:.0f} %<small>{count:,}</small>' if count else '<small>0</small>'
      title = esc(f'{names[i]} taken for {names[j]}: {count} of {total}')
      style = f'background:rgba(var(--heat),{share:.3f})'
      cells.append(f'<td class="{kind}" style="{style}" title="{title}">{inner}</td>')
    rows.append(f'<tr><th scope="row">{esc(names[i])}</th>{"".join(cells)}</tr>')
  return (
    '<p class="small quiet">Rows: true class. Columns: predicted. Share of the row, and count.</p>'
    f'<div class="wide"><table class="confusion"><thead><tr><th></th>{head}</tr></thead>'
    f'<tbody>{"".join(rows)}</tbody></table></div>'
  )


def _confusions(names: list[str], matrix: list[list[int]]) -> str:
  pairs = ((n, i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if n and i != j)
  most = sorted(pairs, key=lambda p: (-p[0], p[1], p[2]))[:CONFUSIONS]
  rows = [[esc(names[i]), esc(names[j]), f'{n:,}'] for n, i, j in most]
  return (
    f'<p class="small quiet">The most frequent of the confusions between {len(matrix)} classes; result.json has all.</p>'
    + table(('true', 'predicted', 'pictures'), rows, texts=2)
  )


def tree(value: Any) -> str:
  """Returns nested mappings and lists as nested tables; mappings of numbers and lists of words on one line."""
  if isinstance(value, Mapping) and value:
    if all(is_number(v) for v in value.values()):
      return ', '.join(f'{esc(k)} {number(v, ",")}' for k, v in value.items())
    rows = ''.join(f'<tr><th scope="row">{esc(k)}</th><td>{tree(v)}</td></tr>' for k, v in value.items())
    return f'<table class="tree"><tbody>{rows}</tbody></table>'
  if isinstance(value, list) and value:
    if not any(isinstance(v, (Mapping, list)) for v in value):
      return ', '.join(esc(v) for v in value)
    return ''.join(tree(v) for v in value)
  return esc(NONE if value in (None, '', [], {}) else value)


def warnings(value: Any, where: str = '') -> Iterator[str]:
  """Yields every 'warning' and the members of every 'warnings' in nested `value`, each with the keys that lead to it."""
  if isinstance(value, list):
    for v in value:
      yield from warnings(v, where)
  if not isinstance(value, Mapping):
    return
  for key, held in value.items():
    if key in ('warning', 'warnings'):
      for text in held if isinstance(held, list) else [held]:
        if text:
          yield f'{where}: {text}' if where else str(text)
    elif key != 'parts':  # of several sources, whose record has all their warnings
      yield from warnings(held, f'{where} / {key}' if where else str(key))

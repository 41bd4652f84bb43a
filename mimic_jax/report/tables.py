"""The page's numbers: results over the stages, cards, confusion matrices, per-class scores, nested records."""

import html
from collections.abc import Iterator, Mapping
from typing import Any

from mimic_jax import uncertainty
from mimic_jax.report.run import Run, Stage

MOST_CLASSES = 30  # of a confusion matrix drawn as a table
CONFUSIONS = 25  # listed instead, where there are more classes
NONE = '–'
# accuracies of a split beside the headline: accuracy_<name>, of count_<name> pictures or of all
ALSO = {
  'without_duplicates': 'without duplicates of training pictures',
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
  ends = _mapping(_mapping(held.get('intervals')).get(name))
  low, high = ends.get('low'), ends.get('high')
  return (low, high) if is_number(low) and is_number(high) else None


def span(ends: tuple[float, float], digits: int = 2) -> str:
  """Returns the ends of an interval of a share as percent: '86.95 – 89.14 %'."""
  low, high = (f'{100 * end:.{digits}f}' for end in ends)
  return f'{low} – {high} %'


def _mapping(value: Any) -> Mapping[str, Any]:
  return value if isinstance(value, Mapping) else {}


def _level(held: Mapping[str, Any]) -> str:
  """Returns '95 %', of the intervals of a split."""
  return percent(_mapping(_mapping(held.get('intervals')).get('method')).get('level'), 0)


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


def speed(stage: Stage) -> str:
  """Returns how fast a stage trained, as far as its result says: '93 pictures/s · 0.012 model TFLOP/s · MFU …', or ''."""
  held = stage.result
  if not is_number(held.get('model_tflops_per_second')):
    return ''
  parts = [
    f'{number(held.get("images_per_second"))} pictures/s',
    f'{held["model_tflops_per_second"]:.4g} model TFLOP/s',
  ]
  if is_number(held.get('mfu')):
    parts.append(f'MFU {percent(held["mfu"], 1)}')
  if is_number(held.get('input_overhead')):
    parts.append(f'{held["input_overhead"]:.2f} × the time without waiting for input')
  if is_number(held.get('peak_memory_bytes')):
    parts.append(f'at most {held["peak_memory_bytes"] / 2**30:.1f} GiB on a device')
  return ' · '.join(parts)


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


def results(run: Run) -> str:
  """Returns the table of results: the last epoch of every stage on every split."""
  head = ''.join(
    f'<th scope="col"{" class=text" if text else ""}>{title}</th>'
    for title, text in (
      *(('stage', 1), ('objective', 1), ('initial weights', 1), ('split', 1), ('accuracy', 0)),
      *(('mean class', 0), ('macro F1', 0), ('loss', 0), ('pictures', 0), ('img/s', 0), ('minutes', 0)),
    )
  )
  rows = ''.join(row for stage in run.stages for row in _rows(run, stage))
  return (
    '<h3 id="results">Results of the last epoch</h3><div class="wide"><table class="results">'
    f'<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{_about_intervals(run)}{_best(run)}'
  )


def _rows(run: Run, stage: Stage) -> Iterator[str]:
  took = seconds(stage)
  speed = stage.result.get('images_per_second', last_train(stage).get('images_per_second'))
  first = [esc(stage.name), esc(objective(stage)), esc(initial(run, stage))]
  last = [number(speed), number(took / 60 if took is not None else None, '.1f')]
  for split, held in splits(stage).items() or {NONE: {}}.items():
    cells = [*first, esc(split), *(_score(held, name) for name in uncertainty.SCORES)]
    cells += [
      number(held.get('loss'), '.4g'),
      number(held.get('count')),
      *last,
    ]
    yield _row(cells)
    for name, words in ALSO.items():
      if is_number(held.get(f'accuracy_{name}')):
        count = number(held.get(f'count_{name}', held.get('count')))
        yield (
          f'<tr class="also"><th scope="row" colspan="4">{esc(split)} {words}</th>'
          f'<td>{percent(held[f"accuracy_{name}"])}</td>{"<td></td>" * 3}<td>{count}</td>{"<td></td>" * 2}</tr>'
        )


def _score(held: Mapping[str, Any], name: str) -> str:
  """Returns a score as percent with its interval, where there is one, in small print under it (HTML)."""
  ends = interval(held, name)
  return percent(held.get(name)) + (f'<small>{span(ends)}</small>' if ends else '')


def _about_intervals(run: Run) -> str:
  """Returns a sentence on where the intervals of the table are from, or ''."""
  drawn: dict[str, list[str]] = {}
  for stage in run.stages:
    for split, held in splits(stage).items():
      how = _mapping(_mapping(held.get('intervals')).get('method'))
      if how:
        kind = f'{_level(held)} interval ({how.get("interval")}, {number(how.get("samples"))} resamples)'
        units = f'{number(how.get("units"))} {how.get("over")} ({stage.name}, {split})'
        drawn.setdefault(kind, []).append(units)
  texts = [f'Under a score its {kind}, drawn over {", ".join(units)}.' for kind, units in drawn.items()]
  return f'<p class="small quiet">{esc(" ".join(texts))}</p>' if texts else ''


def _row(cells: list[str]) -> str:
  body = ''.join(
    f'<td{" class=text" if i < 3 else " class=main" if i == 3 else ""}>{cell}</td>'
    for i, cell in enumerate(cells[1:])
  )
  return f'<tr><th scope="row">{cells[0]}</th>{body}</tr>'


def _best(run: Run) -> str:
  """Returns the accuracies of chosen epochs, under their own names, or ''."""
  items = []
  for stage in run.stages:
    for name in ('best_on_valid', 'best_on_test'):
      held = stage.result.get(name)
      if isinstance(held, dict):
        items.append(
          f'<tr><th scope="row">{esc(stage.name)}</th><td class="text"><code>{name}</code></td>'
          f'<td>{percent(held.get("accuracy"))}</td><td>{number(held.get("epoch"), "g")}</td></tr>'
        )
  if not items:
    return ''
  return (
    '<h3>Epochs chosen by accuracy</h3><p class="small quiet">The best epoch on the split that it was chosen on: '
    'optimistic, and not the result above.</p><div class="wide"><table><thead><tr><th class="text">stage</th>'
    '<th class="text">chosen by</th><th>accuracy</th><th>epoch</th></tr></thead>'
    f'<tbody>{"".join(items)}</tbody></table></div>'
  )


def per_class(held: Mapping[str, Any]) -> str:
  """Returns recall, precision, F1 and support of every class; recall with a bar and its Wilson interval."""
  rows = []
  for name, row in held.get('per_class', {}).items():
    there = row.get('support', 0) > 0
    bar = f'<td class="share" style="--v:{row["recall"]:.4f}">' if there else '<td>'
    scores = ''.join(f'<td>{percent(row.get(k), 1)}</td>' for k in ('precision', 'f1'))
    recall, ends = NONE, NONE
    if there:
      recall = percent(row['recall'], 1)
      ends = span(uncertainty.wilson(round(row['recall'] * row['support']), row['support']), 1)
    rows.append(
      f'<tr><th scope="row">{esc(name)}</th>{bar}{recall}</td><td class="ends">{ends}</td>{scores}'
      f'<td>{number(row.get("support"))}</td></tr>'
    )
  return (
    '<p class="small quiet">Interval: of recall (Wilson, 95 %), each picture taken as independent.</p>'
    '<div class="wide"><table class="classes"><thead><tr><th class="text">class</th><th>recall</th><th>interval</th>'
    '<th>precision</th><th>F1</th><th>pictures</th></tr></thead>'
    f'<tbody>{"".join(rows)}</tbody></table></div>'
  )


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
  rows = ''.join(
    f'<tr><th scope="row">{esc(names[i])}</th><td class="text">{esc(names[j])}</td><td>{n:,}</td></tr>'
    for n, i, j in sorted(pairs, key=lambda p: (-p[0], p[1], p[2]))[:CONFUSIONS]
  )
  return (
    f'<p class="small quiet">The most frequent of the confusions between {len(matrix)} classes; result.json has all.</p>'
    '<div class="wide"><table><thead><tr><th class="text">true</th><th class="text">predicted</th><th>pictures</th>'
    f'</tr></thead><tbody>{rows}</tbody></table></div>'
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
    else:
      yield from warnings(held, f'{where} / {key}' if where else str(key))

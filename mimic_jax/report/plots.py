"""The page's plots: curves of a stage, stages side by side, calibration, t-SNE; what never changes is a sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mimic_jax import verification
from mimic_jax.report import figures, tables
from mimic_jax.report.figures import Curve
from mimic_jax.report.run import Run, Stage
from mimic_jax.report.tables import esc, is_number

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


def _series(stage: Stage) -> tuple[dict[tuple[str, str], tuple[np.ndarray, np.ndarray]], str]:
  """Returns x and y of every (split, quantity) that a stage has logged, and what x is."""
  x = 'epoch' if all(is_number(line.get('epoch')) for line in stage.lines) else 'step'
  points: dict[tuple[str, str], list[tuple[float, float]]] = {}
  for line in stage.lines:
    for name, value in line.items():
      if name not in NOT_DRAWN and is_number(value) and is_number(line[x]):
        points.setdefault((str(line['split']), name), []).append((line[x], value))
  return {key: tuple(np.array(held, np.float64).T) for key, held in points.items()}, x


def _known(run: Run, stage: Stage) -> dict[str, Mapping[str, Any]]:
  """Returns what the quantities of a stage are."""
  return {**FIGURES, **tables.mapping(tables.mapping(run.record.get('figures')).get(stage.name))}


def side_by_side(run: Run) -> str:
  """Returns plots in which each of several stages has a curve: accuracy on a split, training loss of one objective."""
  plots: dict[tuple[str, str, str], list[Curve]] = {}
  abouts = {}
  for k, stage in enumerate(run.stages):
    series, x_label = _series(stage)
    for (split, name), (x, y) in series.items():
      if (name == 'accuracy') == (split != 'train') and name in ('accuracy', 'loss'):
        key = (name, split, tables.objective(stage) if name == 'loss' else '')
        plots.setdefault(key, []).append(Curve(stage.name, x, y, figures.PALETTE[k % 8]))
        abouts[key] = _known(run, stage)[name]
  drawn = [
    _plot(f'{key[0].capitalize()} on {key[1]}', lines, x_label, abouts[key], run.name)
    for key, lines in sorted(plots.items())
    if len(lines) > 1
  ]
  return f'<h3>Stages side by side</h3><div class="plots">{"".join(drawn)}</div>' if drawn else ''


def of_stage(run: Run, stage: Stage) -> tuple[str, str]:
  """Returns the curves of a stage, one plot per quantity with all splits in it: those shown, and those folded."""
  known = _known(run, stage)
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
    links = tables.download(kept, svg, 'svg') + (tables.download(kept, table, 'csv') if table else '')
  held = figures.inline(svg).replace('<svg', f'<svg role="img" aria-label="{esc(told)}"', 1)
  return f'<figure>{held}<figcaption>{links}</figcaption></figure>'


def calibration(stage: Stage) -> str:
  """Returns the reliability of a stage's first split and what it means, '' where it is not known."""
  held = next(((s, h['calibration']) for s, h in tables.splits(stage).items() if h.get('calibration')), None)
  if held is None:
    return ''
  split, found = held
  error, bins = tables.percent(found['ece'], 1), found['bins']
  table = tables.as_csv(bins[0], [tuple(b.values()) for b in bins])
  told = f'Reliability on {split}: expected calibration error {error}'
  return (
    f'<div class="half"><h3>Calibration on {esc(split)}</h3><p class="small quiet">Expected calibration error {error}: '
    f'answers fall by their probability, the largest of the softmax, into {len(bins)} bins of equal width; the error is '
    'the mean over all answers of the distance, in their bin, between the share that is right (bar) and the mean '
    'probability (about the dashed line). Bars under the line: surer than right.</p>'
    f'{_figure(figures.reliability(bins), told, f"{stage.name}-calibration", table)}</div>'
  )


def det(stage: Stage) -> str:
  """Returns how well features tell persons apart on a stage's first split that was asked about it, '' for none."""
  held = next(
    ((s, h['verification']) for s, h in tables.splits(stage).items() if h.get('verification')), None
  )
  if held is None:
    return ''
  split, found = held
  told = verification.told(found)
  rows = zip(found['det']['false_alarms'], found['det']['misses'], strict=True)
  table = tables.as_csv(('false alarms', 'misses'), [(f'{a:.6g}', f'{m:.6g}') for a, m in rows])
  over = f', with its {100 * found["level"]:g} % interval over persons' if found['samples'] else ''
  return (
    f'<div class="half"><h3>Verification on {esc(split)}</h3><p class="small quiet">{esc(told[0].upper() + told[1:])}{over}. The curve (DET) is of all '
    'thresholds: misses are pairs of one person that are taken for two, false alarms the other way round.</p>'
    f'{_figure(figures.det(found), f"DET curve on {split}: {told}", f"{stage.name}-det", table)}</div>'
  )


def tsne(stage: Stage, final: bool) -> str:
  """Returns the t-SNE of a stage's features, '' where there is none; without `final` only one that was kept."""
  held = figures.tsne(stage.folder, compute=final)
  if held is None:
    return ''
  points, labels, names = held
  names = names or next(
    (list(h['per_class']) for h in tables.splits(stage).values() if h.get('per_class')), []
  )
  told = f't-SNE of the features of {len(labels):,} pictures'
  table = tables.as_csv(
    ('x', 'y', 'class'), [(f'{x:.3f}', f'{y:.3f}', k) for (x, y), k in zip(points, labels)]
  )
  return (
    f'<div class="half"><h3>t-SNE of the encoder’s features</h3><p class="small quiet">{len(labels):,} pictures. '
    'Distances between groups mean little in t-SNE; what matters is who is among whom.</p>'
    f'{_figure(figures.scatter(points, labels, names), told, f"{stage.name}-tsne", table)}</div>'
  )

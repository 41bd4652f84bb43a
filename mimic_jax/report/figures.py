"""Curves, reliability and t-SNE as SVG: for the page, whose colours are variables that follow light and dark, and to keep."""

import hashlib
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from etils import epath
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mimic_jax import verification
from mimic_jax.report import run

# The colour-blind-safe palette of Okabe and Ito, its black replaced by grey, which shows on both backgrounds.
# style.py brightens them in the dark through the CSS variables that stand in for them.
COLOURS = {
  '#0072b2': '--blue',
  '#d55e00': '--vermillion',
  '#009e73': '--green',
  '#cc79a7': '--purple',
  '#e69f00': '--orange',
  '#56b4e9': '--sky',
  '#8c8c8c': '--grey',
  '#c9b800': '--yellow',
}
PALETTE = tuple(COLOURS)
MARKERS = 'o^sDvPX*'
INK, LINE = '#5b6571', '#dfe3e8'  # of text and grid
VARIABLES = {**COLOURS, INK: '--quiet', LINE: '--line'}
MOST_POINTS = 400  # of a curve; neighbours are averaged beyond
MOST_NAMED = 40  # classes in the legend of a t-SNE
TSNE_POINTS = 1000
DET_SHARES = (0.001, 0.01, 0.05, 0.2, 0.5)  # marked on the axes of a DET curve,
DET_ENDS = (0.0007, 0.7)  # which end here
# On 700 features half the time of 500 steps at perplexity 30 and angle 0.5 (1.35 s against 2.6 s).
TSNE_SETTINGS = {'n_components': 2, 'init': 'pca', 'random_state': 0, 'max_iter': 350, 'angle': 0.8}
TSNE_PERPLEXITY = 20.0


class Curve(NamedTuple):
  """One line of a plot: x and y [n] without gaps, a colour of PALETTE, and whether it is dashed."""

  name: str
  x: np.ndarray
  y: np.ndarray
  colour: str
  dashed: bool = False


def curves(
  title: str, lines: Sequence[Curve], x_label: str, percent: bool = False, noisy: bool = True
) -> str:
  """Returns an SVG of `lines`. Long ones are thinned, and where they are `noisy` drawn faint under their mean.

  Args:
    title: what is on the y-axis, with its unit.
    lines: the curves; several are named in a legend.
    x_label: what is on the x-axis.
    percent: whether y are shares, drawn as percent.
    noisy: whether to smooth.
  """
  figure, axes = _axes(title, x_label, [curve.name for curve in lines])
  for curve in lines:
    x, y = thin(curve.x), thin(curve.y) * (100 if percent else 1)
    style = {'color': curve.colour, 'linestyle': (0, (4, 2)) if curve.dashed else '-'}
    if noisy and len(x) > 60:
      axes.plot(x, y, alpha=0.25, linewidth=0.8, **style)
      y = running_mean(y, len(y) // 20)
    few = {'marker': 'o', 'markersize': 3} if len(x) <= 30 else {}
    axes.plot(x, y, linewidth=1.6, label=_named(curve.name), **few, **style)
  axes.margins(x=0.02)
  axes.xaxis.set_major_locator(MaxNLocator(6, integer=max(c.x.max() for c in lines) >= 3))
  axes.yaxis.set_major_locator(MaxNLocator(5))
  axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f'{v:g} %' if percent else tick(v)))
  axes.grid(axis='y', color=LINE, linewidth=0.7)
  return _svg(figure, axes)


def reliability(bins: Sequence[Mapping[str, Any]]) -> str:
  """Returns an SVG of how often the answers in each bin of `metrics.calibration` are right, against their probability."""
  figure, axes = _axes('Right answers', 'probability of the answer', ())
  held = [b for b in bins if b['count']]
  axes.bar(
    [100 * b['low'] for b in held],
    [100 * b['accuracy'] for b in held],
    width=[100 * (b['high'] - b['low']) for b in held],
    align='edge',
    color=PALETTE[0],
    linewidth=0.8,
    edgecolor=LINE,
  )
  axes.plot([0, 100], [0, 100], color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
  axes.set(xlim=(0, 100), ylim=(0, 100))
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_formatter(FuncFormatter(lambda v, _: f'{v:g} %'))
  return _svg(figure, axes)


def det(found: Mapping[str, Any]) -> str:
  """Returns an SVG of misses against false alarms of `verification.measure`, on axes of normal deviates, with the rate at which they are equal."""
  figure, axes = _axes('Misses', 'false alarms', (), height=3.2)
  x, y = (verification.deviates(np.array(found['det'][k])) for k in ('false_alarms', 'misses'))
  axes.plot(x, y, color=PALETTE[0], linewidth=1.6)
  low, high = verification.deviates(np.array(DET_ENDS))
  axes.plot([low, high], [low, high], color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
  rate = verification.deviates(np.array([found['eer']]))
  axes.plot(rate, rate, color=PALETTE[1], marker='o', markersize=5)
  axes.set(xlim=(low, high), ylim=(low, high))
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_ticks(verification.deviates(np.array(DET_SHARES)), [f'{100 * s:g} %' for s in DET_SHARES])
  axes.grid(color=LINE, linewidth=0.7)
  return _svg(figure, axes)


def inline(svg: str) -> str:
  """Returns an SVG for the page: its colours are the page's variables."""
  for colour, name in VARIABLES.items():
    svg = svg.replace(colour, f'var({name})')
  return svg


def thin(values: np.ndarray) -> np.ndarray:
  """Returns at most MOST_POINTS means of neighbours of `values` [n]."""
  step = -(-len(values) // MOST_POINTS)
  return np.array([values[i : i + step].mean() for i in range(0, len(values), step)])


def running_mean(values: np.ndarray, reach: int) -> np.ndarray:
  """Returns the mean of `values` [n] over `reach` neighbours on either side.

  Near the start, where curves are steep, it takes as many on the one side as on the other; near the end, where they
  are flat, what there is.
  """
  total = np.concatenate([[0.0], np.cumsum(values)])
  at = np.arange(len(values))
  low = at - np.minimum(at, reach)
  high = np.minimum(at + np.minimum(at, reach), len(values) - 1) + 1
  return (total[high] - total[low]) / (high - low)


def tick(value: float) -> str:
  """Returns a number for an axis: '0.25', '15', '7.5e-4'."""
  if value and abs(value) < 1e-2:
    mantissa, exponent = f'{value:.2e}'.split('e')
    return f'{float(mantissa):g}e{int(exponent)}'
  return f'{value:g}'


def look(k: int) -> tuple[str, str]:
  """Returns the colour and matplotlib's marker of class `k`; the pairs repeat only after 64 classes."""
  return PALETTE[k % 8], MARKERS[(k + k // 8) % 8]


def scatter(points: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> str:
  """Returns an SVG of `points` [n, 2], marked by their class ids `labels` [n]; −1 (no label) is a small grey dot.

  `names` are those of the classes, for the legend.
  """
  known = [k for k in np.unique(labels).tolist() if k >= 0]
  label = {k: names[k] if k < len(names) else f'class {k}' for k in known[:MOST_NAMED]}
  figure, axes = _axes('', '', label.values(), height=3.2)
  for k in np.unique(labels).tolist():
    colour, marker = look(k) if k >= 0 else (INK, '.')
    style = {'color': colour, 'marker': marker, 'label': label.get(k) and _named(label[k])}
    mine = points[labels == k]
    axes.plot(mine[:, 0], mine[:, 1], linestyle='', alpha=0.75, markersize=3.8, mew=0, **style)
  axes.set_xticks([])
  axes.set_yticks([])
  axes.spines[:].set_visible(False)
  return _svg(figure, axes)


def tsne(folder: epath.Path, compute: bool) -> tuple[np.ndarray, np.ndarray, list[str]] | None:
  """Returns t-SNE points [n, 2] of <folder>/features.npz, n ≤ TSNE_POINTS evenly spaced rows, their class ids [n] and the classes' names, if kept.

  They are kept in <folder>/tsne.npz with a hash of what they were made from. Without `compute` only such kept points
  are returned. None when there is nothing to show: no features, too few, not finite, or all alike.
  """
  held = run.arrays(folder / 'features.npz', ('features', 'label'))
  if held is None or not 10 <= len(held['features']) == len(held['label']):
    return None
  rows = np.linspace(0, len(held['label']) - 1, min(TSNE_POINTS, len(held['label']))).round().astype(int)
  features = held['features'][rows].astype(np.float32).reshape(len(rows), -1)
  labels = held['label'][rows]
  labels = labels.argmax(-1) if labels.ndim == 2 else labels.astype(int)
  if not np.isfinite(features).all() or np.ptp(features, axis=0).max(initial=0) == 0:
    return None
  own = run.arrays(folder / 'features.npz', ('class_names',))
  names = own['class_names'].tolist() if own else []
  key = hashlib.sha256(
    repr((features.shape, TSNE_PERPLEXITY, TSNE_SETTINGS)).encode() + features.tobytes()
  ).hexdigest()
  kept = run.arrays(folder / 'tsne.npz', ('key', 'points'))
  if kept is not None and str(kept['key']) == key:
    return kept['points'], labels, names
  if not compute:
    return None
  from sklearn.manifold import TSNE  # takes a second to import, and only the last page of a run needs it
  from threadpoolctl import threadpool_limits

  # beside busy processes, threads that wait for each other take many times as long
  with threadpool_limits(1):
    points = TSNE(perplexity=min(TSNE_PERPLEXITY, (len(rows) - 1) / 3), **TSNE_SETTINGS).fit_transform(
      features
    )
  buffer = io.BytesIO()
  np.savez(buffer, key=key, points=points)
  (folder / 'tsne.npz').write_bytes(buffer.getvalue())
  return points, labels, names


def _axes(title: str, x_label: str, names: Iterable[str], height: float = 2.3) -> tuple[Figure, Axes]:
  """Returns a figure 4 inches wide and its axes, `height` inches high with their labels; below is room for a legend."""
  # Fixed margins: matplotlib's own layout engines take longer than the drawing itself.
  names = list(names)
  legend = 0.19 * -(-len(names) // _columns(names)) if len(names) > 1 else 0.0
  whole = height + legend
  figure = Figure(figsize=(4.0, whole))
  figure.patch.set_visible(False)
  bottom, top = legend + (0.44 if x_label else 0.1), 0.27 if title else 0.05
  left = 0.13 if title else 0.01
  axes = figure.add_axes((left, bottom / whole, 0.98 - left, 1 - (bottom + top) / whole))
  axes.patch.set_visible(False)
  axes.spines[['top', 'right', 'left']].set_visible(False)
  axes.spines['bottom'].set_color(LINE)
  axes.tick_params(colors=INK, labelsize=9, length=0, pad=5)
  axes.set_xlabel(x_label, color=INK, size=9)
  said = {'va': 'top', 'size': 10, 'weight': 'bold', 'color': INK, 'parse_math': False}
  figure.text(0.005, 1 - 0.02 / whole, title, **said)
  return figure, axes


def _named(name: str) -> str:
  return f' {name}' if name.startswith('_') else name  # matplotlib hides names that begin so


def _columns(names: Sequence[str]) -> int:
  return 3 if max(map(len, names)) < 14 else 2


def _svg(figure: Figure, axes: Axes) -> str:
  """Returns `figure` as an <svg> element whose text is text, with a legend under it where several things have names."""
  handles, names = axes.get_legend_handles_labels()
  if len(names) > 1:
    legend = figure.legend(
      handles,
      names,
      loc='lower left',
      ncols=_columns(names),
      frameon=False,
      fontsize=8.5,
      labelcolor=INK,
      borderaxespad=0,
      handlelength=1.4,
      columnspacing=1.2,
      labelspacing=0.25,
    )
    for text in legend.get_texts():
      text.set_parse_math(False)
  buffer = io.StringIO()
  with (
    matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'mimic_jax'}),
    warnings.catch_warnings(),
  ):
    # it only measures with its own font; the browser has more
    warnings.filterwarnings('ignore', 'Glyph .* missing')
    nothing = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
    FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
  text = buffer.getvalue()
  return text[text.index('<svg') :]

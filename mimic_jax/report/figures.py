"""Curves and t-SNE as inline SVG. Colours and text are CSS variables of the page, so that they follow light and dark."""

import hashlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from etils import epath
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

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
GLYPHS = '●▲■◆▼✚✖★'
INK, LINE = '#010203', '#040506'  # stand in for the page's own colours
MOST_POINTS = 400  # of a curve; neighbours are averaged beyond
TSNE_POINTS = 1000
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


def curves(lines: Sequence[Curve], x_label: str, percent: bool = False, noisy: bool = True) -> str:
  """Returns an SVG of `lines`. Long ones are thinned, and where they are `noisy` drawn faint under their mean."""
  figure, axes = _axes((4.0, 2.3), left=0.14, bottom=0.19)
  for curve in lines:
    x, y = thin(curve.x), thin(curve.y) * (100 if percent else 1)
    style = {'color': curve.colour, 'linestyle': (0, (4, 2)) if curve.dashed else '-'}
    if noisy and len(x) > 60:
      axes.plot(x, y, alpha=0.25, linewidth=0.8, **style)
      y = running_mean(y, len(y) // 20)
    few = {'marker': 'o', 'markersize': 3} if len(x) <= 30 else {}
    axes.plot(x, y, linewidth=1.6, **few, **style)
  axes.set_xlabel(x_label)
  axes.margins(x=0.02)
  axes.xaxis.set_major_locator(MaxNLocator(6, integer=max(c.x.max() for c in lines) >= 3))
  axes.yaxis.set_major_locator(MaxNLocator(5))
  axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f'{v:g} %' if percent else tick(v)))
  levels = {v * (100 if percent else 1) for curve in lines for v in curve.y}
  if len(levels) == 1:  # matplotlib would zoom into rounding
    (level,) = levels
    axes.set_ylim(*sorted((0, 2 * level)) if level else (-1, 1))
  axes.grid(axis='y', color=LINE, linewidth=0.7)
  return _svg(figure)


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


def look(k: int) -> tuple[str, str, str]:
  """Returns the colour, matplotlib's marker and the glyph of class `k`; the pairs repeat only after 64 classes."""
  marker = (k + k // 8) % 8
  return PALETTE[k % 8], MARKERS[marker], GLYPHS[marker]


def scatter(points: np.ndarray, labels: np.ndarray) -> str:
  """Returns an SVG of `points` [n, 2], marked by their class ids `labels` [n]; −1 (no label) is a small grey dot."""
  figure, axes = _axes((6.0, 4.2), left=0, bottom=0)
  for k in np.unique(labels):
    colour, marker, _ = look(int(k)) if k >= 0 else (INK, '.', '')
    mine = points[labels == k]
    axes.plot(
      mine[:, 0], mine[:, 1], linestyle='', color=colour, alpha=0.75, marker=marker, markersize=4, mew=0
    )
  axes.set_xticks([])
  axes.set_yticks([])
  axes.spines[:].set_visible(False)
  return _svg(figure)


def tsne(folder: epath.Path, compute: bool) -> tuple[np.ndarray, np.ndarray] | None:
  """Returns t-SNE points [n, 2] of <folder>/features.npz and their class ids [n], n ≤ TSNE_POINTS evenly spaced rows.

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
  key = hashlib.sha256(
    repr((features.shape, TSNE_PERPLEXITY, TSNE_SETTINGS)).encode() + features.tobytes()
  ).hexdigest()
  kept = run.arrays(folder / 'tsne.npz', ('key', 'points'))
  if kept is not None and str(kept['key']) == key:
    return kept['points'], labels
  if not compute:
    return None
  from sklearn.manifold import TSNE  # takes a second to import, and only the last page of a run needs it
  from threadpoolctl import threadpool_limits

  with threadpool_limits(
    1
  ):  # beside busy processes, threads that wait for each other take many times as long
    points = TSNE(perplexity=min(TSNE_PERPLEXITY, (len(rows) - 1) / 3), **TSNE_SETTINGS).fit_transform(
      features
    )
  buffer = io.BytesIO()
  np.savez(buffer, key=key, points=points)
  (folder / 'tsne.npz').write_bytes(buffer.getvalue())
  return points, labels


def _axes(inches: tuple[float, float], left: float, bottom: float):
  # Fixed margins: matplotlib's own layout engines take longer than the drawing itself.
  figure = Figure(figsize=inches)
  figure.patch.set_visible(False)
  axes = figure.add_axes((left, bottom, 0.98 - left, 0.97 - bottom))
  axes.patch.set_visible(False)
  axes.spines[['top', 'right', 'left']].set_visible(False)
  axes.spines['bottom'].set_color(LINE)
  axes.tick_params(colors=INK, labelsize=9, length=0, pad=5)
  axes.xaxis.label.set(color=INK, size=9)
  return figure, axes


def _svg(figure: Figure) -> str:
  """Returns `figure` as an <svg> element whose text is text and whose colours are the page's."""
  buffer = io.StringIO()
  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'mimic_jax'}):
    nothing = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
    FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
  text = buffer.getvalue()
  text = text[text.index('<svg') :].replace(INK, 'var(--quiet)').replace(LINE, 'var(--line)')
  for colour, name in COLOURS.items():
    text = text.replace(colour, f'var({name})')
  return text

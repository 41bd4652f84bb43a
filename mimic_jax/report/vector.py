"""Figures for a paper: curves with a band over seeds, confusion matrices, bars per class, t-SNE, pictures; PDF and SVG."""

import io
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from etils import epath
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mimic_jax.report import figures
from mimic_jax.report.drawing import Drawing
from mimic_jax.runtime import files

WIDTH = 3.4  # inches, of a column
SIDE, LINE = 0.85, 0.09  # inches, of a picture among several, and of a line under it
SETTINGS = {
  'font.size': 8,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'legend.frameon': False,
  'pdf.fonttype': 42,  # text stays text
  'svg.fonttype': 'none',
  'svg.hashsalt': 'mimic_jax',
}


class Band(NamedTuple):
  """A curve of a method: x [n], mean and standard deviation [n] over its seeds (0 for one)."""

  name: str
  x: np.ndarray
  mean: np.ndarray
  sd: np.ndarray


def save(figure: Figure, folder: epath.Path, name: str) -> None:
  """Writes a figure as <name>.pdf and <name>.svg, the same bytes each time."""
  for ending, canvas, nothing in (
    ('pdf', FigureCanvasPdf, ('CreationDate', 'Producer', 'Creator')),
    ('svg', FigureCanvasSVG, ('Date', 'Creator')),
  ):
    buffer = io.BytesIO()
    with matplotlib.rc_context(SETTINGS):
      canvas(figure).print_figure(buffer, format=ending, bbox_inches='tight', metadata=dict.fromkeys(nothing))
    files.write_whole(folder / f'{name}.{ending}', buffer.getvalue())


@matplotlib.rc_context(SETTINGS)
def curves(bands: Sequence[Band], x_label: str, y_label: str) -> Figure:
  """Returns curves, each with a band of a standard deviation on either side."""
  figure, axes = _axes(2.3)
  for k, band in enumerate(bands):
    colour = figures.PALETTE[k % len(figures.PALETTE)]
    axes.plot(band.x, band.mean, color=colour, linewidth=1.2, label=band.name)
    if band.sd.any():
      axes.fill_between(
        band.x, band.mean - band.sd, band.mean + band.sd, color=colour, alpha=0.25, linewidth=0
      )
  axes.set(xlabel=x_label, ylabel=y_label)
  axes.xaxis.set_major_locator(MaxNLocator(6))
  axes.legend()
  return figure


@matplotlib.rc_context(SETTINGS)
def confusion(shares: np.ndarray, class_names: Sequence[str]) -> Figure:
  """Returns a confusion matrix [K, K]: shares of each row, true classes in rows, predicted in columns."""
  size = max(WIDTH, 0.42 * len(class_names))
  figure, axes = _axes(size, size)
  axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
  places = range(len(class_names))
  axes.set_xticks(places, class_names, rotation=45, ha='right')
  axes.set_yticks(places, class_names)
  axes.set(xlabel='predicted', ylabel='true')
  axes.spines[:].set_visible(False)
  axes.tick_params(length=0)
  for i, j in np.ndindex(shares.shape):
    colour = 'white' if shares[i, j] > 0.6 else 'black'
    axes.text(j, i, f'{100 * shares[i, j]:.0f}', ha='center', va='center', color=colour)
  return figure


@matplotlib.rc_context(SETTINGS)
def bars(
  names: Sequence[str], shares: np.ndarray, ends: np.ndarray, places: Sequence[str], label: str
) -> Figure:
  """Returns shares as bars, percent, side by side for each method.

  Args:
    names: of the M methods.
    shares: 0..1 [M, K].
    ends: of the whiskers, [2, M, K].
    places: what the K groups of bars are of: classes, sets.
    label: of the axis.
  """
  figure, axes = _axes(2.3, max(WIDTH, 0.5 * len(places)))
  width = 0.8 / len(names)
  for k, name in enumerate(names):
    at = np.arange(len(places)) + (k - (len(names) - 1) / 2) * width
    reach = np.maximum(100 * np.stack([shares[k] - ends[0, k], ends[1, k] - shares[k]]), 0)
    axes.bar(
      at,
      100 * shares[k],
      width,
      yerr=reach,
      color=figures.PALETTE[k % len(figures.PALETTE)],
      error_kw={'linewidth': 0.8},
      label=name,
    )
  axes.set_xticks(range(len(places)), places, rotation=45, ha='right')
  axes.set(ylabel=label, ylim=(0, 100))
  if len(names) > 1:
    axes.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=2)
  return figure


@matplotlib.rc_context(SETTINGS)
def scatter(points: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Figure:
  """Returns points [n, 2] marked by their class ids [n]; −1, no label, is a small grey dot."""
  figure, axes = _axes(WIDTH)
  for k in np.unique(labels):
    colour, marker = figures.look(int(k)) if k >= 0 else ('#8c8c8c', '.')
    name = class_names[k] if 0 <= k < len(class_names) else 'no label'
    mine = points[labels == k]
    axes.plot(
      *mine.T, linestyle='', color=colour, marker=marker, markersize=2.5, mew=0, alpha=0.8, label=name
    )
  axes.set_xticks([])
  axes.set_yticks([])
  axes.spines[:].set_visible(False)
  axes.legend(loc='center left', bbox_to_anchor=(1, 0.5))
  return figure


@matplotlib.rc_context(SETTINGS)
def pictures(drawing: Drawing) -> Figure:
  """Returns the pictures of a drawing with its titles and captions; of an earlier version's, whose text is in it, alone."""
  rows, columns, height, width, _ = drawing.images.shape
  side = SIDE if rows * columns > 1 else WIDTH
  texts = drawing.cells or [[''] * columns] * rows
  texts = [['\n'.join(textwrap.fill(x, 20) for x in text.split('\n')) for text in row] for row in texts]
  below = max(text.count('\n') + bool(text) for row in texts for text in row) * LINE
  figure = Figure(figsize=(columns * side, rows * (side * height / width + below)))
  for i, j in np.ndindex(rows, columns):
    axes = figure.add_subplot(rows, columns, i * columns + j + 1)
    axes.imshow(drawing.images[i, j], interpolation='none')
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlabel(texts[i][j], fontsize=5, labelpad=1)
    if i == 0 and drawing.columns:
      axes.set_title(drawing.columns[j], fontsize=6, pad=2)
  figure.subplots_adjust(0, 0, 1, 1, 0.05, (below + 0.05) / (side * height / width))
  return figure


def _axes(height: float, width: float = WIDTH):
  figure = Figure(figsize=(width, height))
  return figure, figure.add_subplot()

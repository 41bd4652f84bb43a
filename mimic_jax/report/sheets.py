"""Sheets of pictures: what is trained on, and what a classifier is most confidently wrong about."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from mimic_jax import metrics
from mimic_jax.data.copies import KINDS, Copies
from mimic_jax.data.source import BadImage
from mimic_jax.report.drawing import Drawing, in_rows, save_drawing

MOST_MISTAKES = 24  # pictures shown of those that a classifier is most confidently wrong about
MOST_PAIRS = 24  # of pictures and what they are copies of
SHEET_COLUMNS, SHEET_SIDE = 8, 96  # pictures in a row of a sheet, and their side in pixels


def save_contact_sheet(folder: epath.Path, source: Any, rows: int = 3) -> None:
  """Saves a sheet of a source's pictures, evenly spread over it, with their classes."""
  pictures, captions, ids = [], [], []
  picks = np.linspace(0, len(source) - 1, min(rows * SHEET_COLUMNS, len(source))).astype(int)
  for i in picks:
    try:
      pictures.append(_square(source, int(i)))
    except BadImage:
      continue
    ids.append(source.id(int(i)))
    label = source.label(int(i))
    k = int(label) if np.ndim(label) == 0 else int(np.argmax(label))
    captions.append(source.class_names[k] if source.class_names else '')
  if not pictures:
    return
  images, cells = in_rows(np.stack(pictures), captions, SHEET_COLUMNS)
  about = f'{len(pictures)} of the {len(source):,} pictures.'
  sheet = Drawing('Training pictures', about, images, (), cells if source.class_names else None, ids)
  save_drawing(folder / 'pictures', 'data_train', sheet)


def _square(source: Any, i: int) -> np.ndarray:
  """Returns a picture as a sheet shows it and a model sees it: squeezed into a square, uint8 [SIDE, SIDE, 3]."""
  image = Image.fromarray(source[i]['image'])
  return np.asarray(image.resize((SHEET_SIDE, SHEET_SIDE), Image.Resampling.BICUBIC))


def copies(source: Any, found: Copies, split: str) -> Drawing | None:
  """Draws pictures of a split beside the training pictures that they are copies of: near ones, from the doubtful to the sure, then others.

  Returns:
    Up to MOST_PAIRS pairs; None without any. A training picture that is alike as a mirror image is shown as it is.
  """
  near = np.flatnonzero(found.kind == len(KINDS))
  picks = near[np.argsort(found.similarity[near], kind='stable')]
  if len(picks) > MOST_PAIRS:
    picks = picks[np.linspace(0, len(picks) - 1, MOST_PAIRS).astype(int)]
  same = np.flatnonzero((found.kind > 0) & (found.kind < len(KINDS)))
  pictures, captions, ids = [], [], []
  for i in [*picks, *same[: MOST_PAIRS - len(picks)]]:
    match = int(found.match[i])
    try:
      pictures += [_square(source, int(i)), _square(found.train, match)]
    except BadImage:
      continue
    how = f'{found.similarity[i]:.2f}' if found.kind[i] == len(KINDS) else KINDS[found.kind[i] - 1]
    captions += ['', f'{how}{" mirrored" if found.mirrored[i] else ""}'.replace('_', ' ')]
    ids += [source.id(int(i)), found.train.id(match)]
  if not pictures:
    return None
  images, cells = in_rows(np.stack(pictures), captions, SHEET_COLUMNS)
  return Drawing(
    f'Copies of training pictures in {split}',
    f'{len(pictures) // 2} of {int((found.kind > 0).sum()):,} pairs: a picture that is measured, and right of it the '
    'training picture, with the cosine of their hashes: near copies, the least alike first. copies.csv lists all.',
    images,
    (split, 'training') * (images.shape[1] // 2),
    cells,
    ids,
  )


def mistakes(
  source: Any,
  index: np.ndarray,
  labels: np.ndarray,
  logits: np.ndarray,
  class_names: Sequence[str],
  split: str = '',
) -> Drawing | None:
  """Draws the pictures that a classifier is most confidently wrong about: a look at labels and model alike.

  Args:
    source: of the pictures; those that can't be read are passed over.
    index: int [N], the position of each row in `source`.
    labels: int [N], or float [N, K], whose largest entry counts.
    logits: [N, K].
    class_names: the K classes.
    split: its name, for the title.

  Returns:
    Up to MOST_MISTAKES pictures, the surest first, with 'true → answer probability'; None when nothing is wrong.
  """
  truth, logits = metrics.dominant(labels), np.asarray(logits).astype(np.float64)
  chances = np.exp(logits - logits.max(axis=1, keepdims=True))
  guess, surest = logits.argmax(axis=1), 1 / chances.sum(axis=1)  # the largest numerator is 1
  wrong = np.flatnonzero(guess != truth)
  pictures, captions, ids = [], [], []
  for row in wrong[np.argsort(-surest[wrong], kind='stable')]:
    try:
      pictures.append(_square(source, int(index[row])))
    except BadImage:
      continue
    ids.append(source.id(int(index[row])))
    captions.append(f'{class_names[truth[row]]} → {class_names[guess[row]]} {surest[row]:.2f}')
    if len(pictures) == MOST_MISTAKES:
      break
  if not pictures:
    return None
  images, cells = in_rows(np.stack(pictures), captions, SHEET_COLUMNS)
  return Drawing(
    f'Confidently wrong on {split}' if split else 'Confidently wrong',
    f'The {len(pictures)} of {len(wrong):,} wrong answers (of {len(truth):,} pictures) given with the highest '
    'probability: label → answer, and its probability. Labels that are wrong themselves end up here, too.',
    images,
    (),
    cells,
    ids,
  )

"""Copies of training pictures among those that are measured: the same bytes, the same pixels in another file, near copies.

A near copy is found by a perceptual hash of the whole picture: the lowest frequencies of its cosine transform, each in units of
how much it varies over the training pictures, so that what all faces share counts for nothing. How alike two pictures
are is the cosine between their hashes, 1 for the same; of a measured picture also as its mirror image and slightly turned.
docs/data.md has how this was calibrated.
"""

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from mimic_jax.data import files
from mimic_jax.data.bad_image import BadImage, patiently
from mimic_jax.data.source import Source, array_hash

KINDS = ('duplicates', 'same_pixels', 'near_copies')  # the first that holds; numbered from 1, 0 is no copy
SIDE = 16  # pixels of the grey square that is hashed
ORDER = 14  # frequencies (u, v) with 0 < u + v ≤ ORDER are in the hash
TURNS = (-4, 4)  # degrees by which a measured picture is also turned before it is looked for
_TURNED_SIDE = 96  # pixels at most of what is turned
LEAST = 0.80  # cosine from which on pictures are taken for near copies, where that gives few false alarms
SURE = 0.90  # from which on they are taken for copies without a doubt
MOST_FALSE = 0.002  # of the pictures that may be called near copies though they are none
TRIALS = 200  # pictures that are changed on purpose, to see how many are found
_PRIOR = 100  # training pictures' worth of what is expected of any picture, for sets of few
_THREADS = 8

_SUMS = np.add.outer(range(SIDE), range(SIDE))
_ROWS, _COLUMNS = np.nonzero((_SUMS > 0) & (_SUMS <= ORDER))
_ODD = _COLUMNS % 2 == 1  # a mirror image has these with the other sign, and no others
_COSINES = np.cos(np.pi / SIDE * np.outer(range(SIDE), np.arange(SIDE) + 0.5)) * np.sqrt(2 / SIDE)
_COSINES[0] /= np.sqrt(2)
_USUAL = 1 / np.hypot(_ROWS, _COLUMNS)  # amplitudes fall as 1 / frequency in pictures of anything
_USUAL /= np.linalg.norm(_USUAL)


def _saved_as_jpeg(image: Image.Image) -> Image.Image:
  file = io.BytesIO()
  image.save(file, 'JPEG', quality=50)
  return Image.open(file)


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
  'mirrored': lambda p: p.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
  'half the size': lambda p: p.resize((max(p.width // 2, 1), max(p.height // 2, 1))),
  'JPEG of quality 50': _saved_as_jpeg,
  '30 % brighter': lambda p: ImageEnhance.Brightness(p).enhance(1.3),
  '30 % darker': lambda p: ImageEnhance.Brightness(p).enhance(0.7),
  '40 % more contrast': lambda p: ImageEnhance.Contrast(p).enhance(1.4),
  'turned by 3°': lambda p: p.rotate(3, Image.Resampling.BICUBIC),
  'turned by 5°': lambda p: p.rotate(5, Image.Resampling.BICUBIC),
  '3 % cut off': lambda p: p.resize(p.size, box=(0.03 * p.width, 0.03 * p.height, p.width, p.height)),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Copies:
  """What was found of the n pictures of a source.

  Attributes:
    train: the training pictures.
    kind: int [n], 0 is no copy, else the number of one of KINDS, from 1.
    match: int [n], the training picture that is most alike; of no copy, too.
    similarity: float [n], the cosine to it; 1 for the same bytes and pixels.
    mirrored: bool [n], whether it is alike as a mirror image.
    threshold: of the cosine, from which on a picture is a near copy.
    false_alarms: how many pictures are called near copies by mistake, as `Known.find` estimates it.
    found: name of a change -> share of pictures changed so that are still recognised.
  """

  train: Source
  kind: np.ndarray
  match: np.ndarray
  similarity: np.ndarray
  mirrored: np.ndarray
  threshold: float
  false_alarms: int
  found: dict[str, float]

  def figures(self) -> dict[str, Any]:
    """Returns the counts of every kind and how near copies were told, JSON-able."""
    others = len(self.kind) - int(np.isin(self.kind, (1, 2)).sum())
    return {
      **{name: int((self.kind == k).sum()) for k, name in enumerate(KINDS, 1)},
      'mirrored': int((self.mirrored & (self.kind > 0)).sum()),
      'count': len(self.kind),
      'training_pictures': len(self.train),
      'threshold': self.threshold,
      'false_alarms': self.false_alarms,
      'false_alarm_rate': self.false_alarms / max(others, 1),
      'found': self.found,
    }


def told(figures: Mapping[str, Any]) -> str:
  """Returns `Copies.figures()` as a sentence."""
  f = figures
  found = ', '.join(f'{name} {100 * share:.0f} %' for name, share in f['found'].items())
  return (
    f'Of {f["count"]:,} pictures {f["duplicates"]:,} are byte-identical to one of the {f["training_pictures"]:,} training '
    f'pictures, {f["same_pixels"]:,} have the same pixels in another file, {f["near_copies"]:,} are near copies '
    f'({f["mirrored"]:,} mirrored), of which an estimated {f["false_alarms"]:,} are false alarms ({100 * f["false_alarm_rate"]:.2f} % '
    f'of the pictures looked for). Near: cosine of the hashes from {f["threshold"]:.2f} on. Recognised of pictures changed on '
    f'purpose: {found}.'
  )


class Known:
  """Training pictures, to find copies of them elsewhere.

  Args:
    train: those of which copies are looked for; all are decoded once.
  """

  def __init__(self, train: Source) -> None:
    self._train = train
    self._contents = {train.content_hash(i): i for i in reversed(range(len(train)))}
    pixels, coefficients = _read_all(train, lambda picture: [picture])
    coefficients = coefficients[:, 0]
    self._pixels = {pixels[i]: i for i in reversed(range(len(train))) if pixels[i]}
    self._mean, self._spread = _scale(coefficients)
    self._hashes = self._hashed(coefficients)

  def _hashed(self, coefficients: np.ndarray) -> np.ndarray:
    """float32 [n, D] -> the hashes, of length 1; 0 for a picture that can't be read, which is NaN."""
    v = (coefficients - self._mean) / self._spread
    v /= np.maximum(np.linalg.norm(v, axis=-1, keepdims=True), 1e-12)
    return np.nan_to_num(v)

  def find(self, source: Source) -> Copies:
    """Returns which pictures of a source are copies of training pictures.

    A picture that is no copy looks as often like some training picture as like the mirror image of one. So of those
    between the threshold and SURE, about twice as many as in the rarer of the two orientations are false alarms; the
    threshold is the lowest from LEAST on at which these are at most MOST_FALSE of the pictures. Where both
    orientations have copies it is an upper bound.

    Args:
      source: the pictures; what can't be read is no copy, unless its bytes are the same.
    """
    n = len(source)
    pixels, coefficients = _read_all(source, _turned)
    similarity, match, mirrored = self._nearest(coefficients)
    kind = np.zeros(n, np.int64)
    for i in range(n):
      same = self._contents.get(source.content_hash(i)), self._pixels.get(pixels[i])
      if same != (None, None):
        kind[i] = 1 if same[0] is not None else 2
        match[i] = same[kind[i] - 1]
        similarity[i], mirrored[i] = 1.0, False
    others = kind == 0

    def false_alarms(threshold: float) -> int:
      unsure = others & (similarity >= threshold) & (similarity < SURE)
      return 2 * int(min((unsure & mirrored).sum(), (unsure & ~mirrored).sum()))

    steps = np.round(np.arange(LEAST, SURE + 0.005, 0.01), 2)
    # at SURE there are none
    threshold = next(float(t) for t in steps if false_alarms(t) <= MOST_FALSE * others.sum())
    kind[others & (similarity >= threshold)] = 3
    found = self._recognised(source, coefficients, threshold)
    return Copies(self._train, kind, match, similarity, mirrored, threshold, false_alarms(threshold), found)

  def _nearest(self, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float32 [n, T, D] of every turn of n pictures -> cosine to the nearest training picture, its index, whether it is mirrored; [n] each."""
    n = len(coefficients)
    best, match, mirrored = np.full(n, -np.inf, np.float32), np.zeros(n, np.int64), np.zeros(n, bool)
    rows = max(1, 2**24 // len(self._hashes))
    for flipped in (False, True):
      for hashes in self._hashed(_flipped(coefficients) if flipped else coefficients).swapaxes(0, 1):
        for start in range(0, n, rows):
          part = slice(start, start + rows)
          cosines = hashes[part] @ self._hashes.T
          nearest = cosines.argmax(axis=1)
          cosine = cosines[np.arange(len(nearest)), nearest]
          better = cosine > best[part]
          best[part] = np.where(better, cosine, best[part])
          match[part] = np.where(better, nearest, match[part])
          mirrored[part] = np.where(better, flipped, mirrored[part])
    return best, match, mirrored

  def _recognised(self, source: Source, coefficients: np.ndarray, threshold: float) -> dict[str, float]:
    """Returns of each of CHANGES the share of pictures, evenly spread over the source, that are alike before and after it."""
    picks = np.flatnonzero(np.isfinite(coefficients[:, 0, 0]))
    picks = picks[np.linspace(0, len(picks) - 1, min(TRIALS, len(picks))).astype(int)]
    if not len(picks):
      return {}
    # [P, 2 T, D]
    before = np.concatenate([self._hashed(c[picks]) for c in (coefficients, _flipped(coefficients))], axis=1)
    pictures = [Image.fromarray(patiently(lambda i=i: source[int(i)])['image']) for i in picks]
    found = {}
    for name, change in CHANGES.items():
      after = self._hashed(np.stack([coefficients_of(change(p)) for p in pictures]))
      cosines = np.einsum('ptd,pd->pt', before, after).max(axis=1)
      found[name] = float(np.mean(cosines >= threshold))
    return found


def coefficients_of(picture: Image.Image) -> np.ndarray:
  """Returns the lowest coefficients of the 2-D DCT-II (orthonormal) of a picture as a grey square, float32 [D], of length 1.

  Those of a picture of one tone are about 0.
  """
  grey = picture.convert('L').resize((SIDE, SIDE), Image.Resampling.BILINEAR)
  c = (_COSINES @ np.asarray(grey, np.float64) @ _COSINES.T)[_ROWS, _COLUMNS]
  return (c / max(np.linalg.norm(c), 1.0)).astype(np.float32)


def _flipped(coefficients: np.ndarray) -> np.ndarray:
  """Returns the coefficients of the mirror image."""
  return np.where(_ODD, -coefficients, coefficients)


def _scale(coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """float32 [n, D] -> their mean and spread, float32 [D] each, the same for a set and for its mirror image."""
  c = coefficients[np.isfinite(coefficients[:, 0])]
  n = len(c) + _PRIOR
  mean = np.where(_ODD, 0, c.sum(axis=0) / n)
  spread = np.sqrt((((c - mean) ** 2).sum(axis=0) + _PRIOR * _USUAL**2) / n)
  return mean.astype(np.float32), spread.astype(np.float32)


def _turned(picture: Image.Image) -> list[Image.Image]:
  """Returns a grey picture as it is and by each of TURNS, what comes in at the corners black, and drawn out from the edge."""
  small = picture.copy()
  small.thumbnail((_TURNED_SIDE, _TURNED_SIDE))
  m = max(small.size) // 8 + 1  # pixels beyond the edge, more than come in
  wide = Image.fromarray(np.pad(np.asarray(small), m, mode='edge'))
  inside = (m, m, m + small.width, m + small.height)
  found = [picture]
  for degrees in TURNS:
    found.append(small.rotate(degrees, Image.Resampling.BICUBIC))
    found.append(wide.rotate(degrees, Image.Resampling.BICUBIC).crop(inside))
  return found


def _read_all(
  source: Source, turned: Callable[[Image.Image], list[Image.Image]]
) -> tuple[list[str], np.ndarray]:
  """Returns of each picture a hash of its pixels and the coefficients of it `turned`, float32 [n, T, D]; '' and NaN where it can't be read."""

  def read(numbers: Sequence[int]) -> list[tuple[str, np.ndarray]]:
    found = []
    for i in numbers:
      try:
        pixels = patiently(lambda i=i: source[i])['image']
      except BadImage:
        found.append(('', None))
        continue
      ways = turned(Image.fromarray(pixels).convert('L'))
      found.append((array_hash(pixels), np.stack([coefficients_of(way) for way in ways])))
    return found

  found = files.in_chunks(read, range(len(source)), _THREADS)
  ways = max((len(c) for _, c in found if c is not None), default=1)
  unread = np.full((ways, len(_ROWS)), np.nan, np.float32)
  return [pixels for pixels, _ in found], np.stack([unread if c is None else c for _, c in found])

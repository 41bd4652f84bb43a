"""How well features tell whether two pictures are of one person: false alarms and misses of pairs, and where they are equal.

Two pictures are taken for one person when the cosine of their features is at least a threshold. All in float64 NumPy.
"""

import statistics
from typing import Any

import numpy as np

from mimic_jax import uncertainty
from mimic_jax.runtime.errors import UserError

MOST_PICTURES = 3000  # of which all pairs are looked at; of more, so many at random
MOST_PAIRS = 100_000  # of each kind, of one person and of two; of more, so many at random
MOST_POINTS = 200  # of a curve that are kept
EDGE = 1e-4  # shares closer to 0 or 1 lie there on a normal deviate's axis


def pairs(labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns pairs of pictures by their classes.

  Args:
    labels: int [N].
    rng: chooses where there are more than MOST_PICTURES or MOST_PAIRS.

  Returns:
    int [P] and int [P], the places of the two, and bool [P], whether their class is one; no pair stands twice.
  """
  some = np.arange(len(labels))
  if len(some) > MOST_PICTURES:
    some = np.sort(rng.choice(some, MOST_PICTURES, replace=False))
  a, b = (some[k] for k in np.triu_indices(len(some), 1))
  same = labels[a] == labels[b]
  kept = []
  for kind in (True, False):
    places = np.flatnonzero(same == kind)
    kept.append(rng.choice(places, MOST_PAIRS, replace=False) if len(places) > MOST_PAIRS else places)
  kept = np.concatenate(kept)
  return a[kept], b[kept], same[kept]


def rates(ends: np.ndarray, same: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns false alarms and misses at each threshold, both float64 [T + 1], from none taken for one person to all.

  Args:
    ends: int [T], the last of the pairs of each cosine, which are sorted from the largest down.
    same: bool [P], of these pairs.
    weight: float64 [P], how often each counts.
  """
  taken = [np.concatenate([[0.0], np.cumsum(weight * kind)[ends]]) for kind in (~same, same)]
  alarms, hits = (t / t[-1] for t in taken)
  return alarms, 1.0 - hits


def equal(alarms: np.ndarray, misses: np.ndarray) -> tuple[float, float]:
  """Returns the rate at which false alarms and misses are equal, on the line between the two thresholds about it; and at which place that is."""
  gap = alarms - misses  # rises from −1 to 1
  k = int(np.argmax(gap >= 0))
  share = -gap[k - 1] / (gap[k] - gap[k - 1])
  return float(alarms[k - 1] + share * (alarms[k] - alarms[k - 1])), k - 1 + float(share)


def measure(
  features: np.ndarray, labels: np.ndarray, samples: int, seed: int = 0, level: float = 0.95
) -> dict[str, Any]:
  """Returns the equal error rate of a split with its interval and its DET curve, ready for JSON.

  The interval is a percentile bootstrap over persons: a pair of one person counts as often as that one was drawn, a pair of two as often as both. Where no resample has an
  error it is Wilson's of as many persons.

  Args:
    features: float [N, D], or [N, …].
    labels: int [N], the persons.
    samples: resamples; 0 = no interval.
    seed: of pairs and resamples.
    level: of confidence.

  Returns:
    'eer', 'threshold' (a cosine), 'low' and 'high' (None without samples), 'level', 'samples', 'persons', 'pictures', 'pairs_of_one',
    'pairs_of_two', 'det' {'false_alarms', 'misses'}: rates are 0..1.

  Raises:
    UserError: where there are no pairs of one person or none of two, or features are not finite.
  """
  rng = np.random.default_rng(seed)
  x = np.asarray(features, np.float64).reshape(len(labels), -1)
  if not np.isfinite(x).all():
    raise UserError('the features are not finite; expected a model that was trained well')
  x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
  names, persons = np.unique(labels, return_inverse=True)
  a, b, same = pairs(persons, rng)
  if same.all() or not same.any():
    lacks = 'two persons' if same.all() else 'one person'
    raise UserError(
      f'{len(labels):,} pictures of {len(names):,} classes make no pair of {lacks}; expected persons as classes, with two pictures or more'
    )
  cosine = np.einsum('pd,pd->p', x[a], x[b])
  order = np.argsort(-cosine, kind='stable')
  cosine, same, a, b = cosine[order], same[order], persons[a[order]], persons[b[order]]
  ends = np.flatnonzero(np.append(cosine[1:] != cosine[:-1], True))
  alarms, misses = rates(ends, same, np.ones(len(same)))
  rate, place = equal(alarms, misses)
  low = high = None
  if samples:
    drawn = []
    for _ in range(samples):
      times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names)).astype(np.float64)
      weight = np.where(same, times[a], times[a] * times[b])
      if (weight * same).any() and (weight * ~same).any():
        drawn.append(equal(*rates(ends, same, weight))[0])
    low, high = (float(q) for q in np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]))
    if low == high == rate == 0:
      low, high = uncertainty.wilson(0, len(names), level)
  keep = _spread(alarms, misses)
  return {
    'eer': rate,
    'threshold': float(cosine[ends[min(round(place), len(ends)) - 1]]),
    'low': low,
    'high': high,
    'level': level,
    'samples': samples,
    'persons': len(names),
    'pictures': min(len(labels), MOST_PICTURES),
    'pairs_of_one': int(same.sum()),
    'pairs_of_two': int((~same).sum()),
    'det': {'false_alarms': alarms[keep].tolist(), 'misses': misses[keep].tolist()},
  }


def deviates(shares: np.ndarray) -> np.ndarray:
  """Returns normal deviates of shares [T], on whose axes the curve of two normal distributions is a line."""
  inverse = statistics.NormalDist().inv_cdf
  return np.array([inverse(float(s)) for s in np.clip(shares, EDGE, 1 - EDGE)])


def _spread(alarms: np.ndarray, misses: np.ndarray) -> np.ndarray:
  """Returns the places of at most MOST_POINTS operating points that lie evenly along the curve."""
  known = np.unique(np.linspace(0, len(alarms) - 1, 20_000).round().astype(int))
  along = np.abs(np.diff(deviates(alarms[known]))) + np.abs(np.diff(deviates(misses[known])))
  way = np.concatenate([[0.0], np.cumsum(along)])
  return known[np.unique(np.searchsorted(way, np.linspace(0, way[-1], MOST_POINTS)))]


def told(found: dict[str, Any]) -> str:
  """Returns the equal error rate as a line of text."""
  between = f' [{100 * found["low"]:.2f}, {100 * found["high"]:.2f}]' if found['samples'] else ''
  return (
    f'equal error rate {100 * found["eer"]:.2f} %{between} at a cosine of {found["threshold"]:.3f}: {found["pairs_of_one"]:,} pairs of one of '
    f'{found["persons"]:,} persons, {found["pairs_of_two"]:,} of two'
  )

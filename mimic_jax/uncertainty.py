"""How sure a score is: bootstrap intervals, the paired difference of two classifiers, and who is on which picture.

Everything is float64 NumPy over counts. A score depends on how often each cell (true class, predicted class) occurs, so a
resample of the pictures is one multinomial draw over the occupied cells, whatever the number of pictures. Where pictures
come in groups that are alike (several of one person), whole groups are drawn instead: pictures of one person are not as
many independent observations.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from mimic_jax import metrics
from mimic_jax.runtime.errors import UserError

SCORES = ('accuracy', 'mean_class_accuracy', 'macro_f1')
CHUNK = 2**22  # numbers in memory at a time, per array
FEW = 10  # pictures that only one of two gets right; below, their shares are Wilson's and not the bootstrap's
LEAST_SAMPLES = 100  # with fewer, the ends of an interval are those of one or two resamples
LEAST_IDENTITIES = 20  # below, what looks like names is more likely a few kinds of file
NAMED_SHARE = 0.9  # of the file names that have to look like a person's,
FULL_SHARE = 0.5  # and of those, like one with a first and a last name
# Aaron_Eckhart_0001.jpg, Jean-Claude_van_Damme_12.png, Madonna_3.jpg: words without digits, and a number
_PERSON = re.compile(r'([^\W\d_]\D*)_\d+')


def intervals(
  labels: np.ndarray,
  logits: np.ndarray,
  class_names: Sequence[str],
  clusters: np.ndarray | None = None,
  samples: int = 2000,
  seed: int = 0,
  level: float = 0.95,
) -> dict[str, Any]:
  """Returns the scores of a classifier with percentile bootstrap intervals, ready for JSON.

  The scores are those of `metrics.classification`; a resample without an example of some class is scored without that
  class, as a split would be. The interval of a score of exactly 0 or 1 is Wilson's. Intervals over fewer than some thirty
  clusters are too narrow: that is the method's limit, not certainty.

  Args:
    labels: int [N], or float [N, K], whose largest entry counts.
    logits: [N, K].
    class_names: the K classes.
    clusters: int [N], what is drawn as a whole (`identities`); None draws single pictures.
    samples: resamples.
    seed: of the draws; the same seed gives the same interval.
    level: of confidence, between 0 and 1.

  Returns:
    {'accuracy': {'value', 'low', 'high'}, 'mean_class_accuracy': …, 'macro_f1': …, 'method': {'interval', 'level',
    'samples', 'seed', 'over': 'pictures' or 'identities', 'units': how many of these}}; scores are 0..1.

  Raises:
    UserError: on no example, labels out of range, fewer than LEAST_SAMPLES samples, a level that is none, or one cluster.
    ValueError: when shapes do not fit.
  """
  whole = metrics.classification(labels, logits, class_names)
  truth, guess = metrics.dominant(labels), np.asarray(logits).argmax(-1)
  cells, (of_truth, of_guess) = _cells(truth, guess)
  units = _units(clusters, len(truth), samples, level)
  drawn = np.concatenate(
    [
      scores(counts, of_truth, of_guess, len(class_names))
      for counts in _resamples(cells, clusters, samples, seed, len(class_names))
    ]
  )
  low, high = _ends(drawn, level)
  # All right or all wrong, no resample differs: what so few pictures can say is Wilson's, of the scarcest class for means.
  for i, name in enumerate(SCORES):
    if low[i] == high[i] and whole[name] in (0, 1):
      count = _count(whole, name, units)
      low[i], high[i] = wilson(round(whole[name] * count), count, level)
  return {
    **{
      name: {'value': whole[name], 'low': float(low[i]), 'high': float(high[i])}
      for i, name in enumerate(SCORES)
    },
    'method': _method(clusters, units, samples, seed, level),
  }


def paired(
  labels: np.ndarray,
  logits_a: np.ndarray,
  logits_b: np.ndarray,
  class_names: Sequence[str],
  clusters: np.ndarray | None = None,
  samples: int = 2000,
  seed: int = 0,
  level: float = 0.95,
) -> dict[str, Any]:
  """Returns by how much classifier B differs from A on the same pictures, ready for JSON.

  Both are scored on the same resamples, so what the pictures have in common for them cancels: the interval of the
  difference is narrower than two intervals side by side suggest. McNemar's test looks at the pictures that only one of
  the two gets right; it takes pictures as independent, whatever `clusters` says. Where no resample differs, the
  interval is that of `few`, for means over classes of as many pictures as the scarcest has.

  Args:
    labels: int [N] or float [N, K].
    logits_a: [N, K] of A.
    logits_b: [N, K] of B, rows and columns as of A.
    class_names, clusters, samples, seed, level: as for `intervals`.

  Returns:
    {'accuracy': {'a', 'b', 'difference' (B − A), 'low', 'high'}, 'mean_class_accuracy': …, 'macro_f1': …,
    'counts': {'both_right', 'only_a', 'only_b', 'both_wrong', 'count'}, 'mcnemar_p', 'method': as of `intervals`}.

  Raises:
    UserError, ValueError: as `intervals`.
  """
  a, b = (metrics.classification(labels, x, class_names) for x in (logits_a, logits_b))
  truth = metrics.dominant(labels)
  guess_a, guess_b = (np.asarray(x).argmax(-1) for x in (logits_a, logits_b))
  cells, (of_truth, of_a, of_b) = _cells(truth, guess_a, guess_b)
  units = _units(clusters, len(truth), samples, level)
  drawn = []
  for counts in _resamples(cells, clusters, samples, seed, len(class_names)):
    both = (scores(counts, of_truth, of_guess, len(class_names)) for of_guess in (of_b, of_a))
    drawn.append(np.subtract(*both))
  low, high = _ends(np.concatenate(drawn), level)
  for i, name in enumerate(SCORES):
    if low[i] == high[i]:
      more = b[name] - a[name]
      low[i], high[i] = few(max(more, 0), max(-more, 0), _count(a, name, units), level)
  right_a, right_b = guess_a == truth, guess_b == truth
  counts = {
    'both_right': int((right_a & right_b).sum()),
    'only_a': int((right_a & ~right_b).sum()),
    'only_b': int((~right_a & right_b).sum()),
    'both_wrong': int((~right_a & ~right_b).sum()),
    'count': len(truth),
  }
  return {
    **{
      name: {
        'a': a[name],
        'b': b[name],
        'difference': b[name] - a[name],
        'low': float(low[i]),
        'high': float(high[i]),
      }
      for i, name in enumerate(SCORES)
    },
    'counts': counts,
    'mcnemar_p': mcnemar(counts['only_a'], counts['only_b']),
    'method': _method(clusters, units, samples, seed, level),
  }


def of_targets(
  outputs: Mapping[str, np.ndarray],
  clusters: np.ndarray | None = None,
  samples: int = 2000,
  seed: int = 0,
  level: float = 0.95,
) -> dict[str, Any]:
  """Returns the scores of answers that are numbers (`metrics.of_targets`) with percentile bootstrap intervals, ready for JSON.

  A resample draws among the pictures that have the target, or among whole clusters of these.

  Args:
    outputs: of an objective, [N] each.
    clusters, samples, seed, level: as for `intervals`.

  Returns:
    {'ccc_valence': {'value', 'low', 'high'}, …, 'method': as of `intervals`, of the first target}.

  Raises:
    UserError, ValueError: as `intervals`.
  """
  whole, found, method = metrics.of_targets(outputs), {}, {}
  for name, kind in metrics.answered(outputs).items():
    rows = metrics.known(outputs, name)
    of_rows = None if clusters is None else np.asarray(clusters)[rows]
    units = _units(of_rows, len(rows), samples, level)
    each = metrics.moments(kind, outputs[f'true_{name}'][rows], outputs[f'{kind}_{name}'][rows])
    if of_rows is not None:
      of_unit = np.zeros((units, each.shape[1]))
      np.add.at(of_unit, np.unique(of_rows, return_inverse=True)[1], each)
      each = of_unit
    rng, drawn = np.random.default_rng(seed), []
    most = max(1, CHUNK // units)
    for first in range(0, samples, most):
      times = rng.multinomial(units, np.full(units, 1 / units), size=min(most, samples - first))
      drawn.append(metrics.of_moments(kind, times @ each))
    low, high = _ends(np.concatenate(drawn), level)
    for i, score in enumerate(metrics.SCORES_OF[kind]):
      key = f'{score}_{name}'
      found[key] = {'value': whole[key], 'low': float(low[i]), 'high': float(high[i])}
    method = method or _method(clusters, units, samples, seed, level)
  return {**found, 'method': method}


def across_seeds(
  labels: np.ndarray,
  logits_a: np.ndarray,
  logits_b: np.ndarray,
  class_names: Sequence[str],
  clusters: np.ndarray | None = None,
  samples: int = 2000,
  seed: int = 0,
  level: float = 0.95,
) -> dict[str, Any]:
  """Returns by how much B differs from A over the same pictures and the same seeds, ready for JSON.

  Pictures and seeds are both drawn from, crossed: a resample of the pictures is the same for every seed. Of S seeds S − 1
  are drawn, with which the variance of a mean over so few is not too small (Rao and Wu 1988). The interval is the
  difference ± Student's t times the spread of the resamples, with degrees of freedom after Satterthwaite: those of few seeds
  as far as the spread is theirs. What differs between seeds picture by picture is counted more than once (Owen 2007): where
  that is most of the spread, intervals are wider than need be. With one seed they say nothing of others. The interval
  of accuracy is that of `few`, and p McNemar's, where fewer than FEW pictures are right in one only.

  Args:
    labels: int [N] or float [N, K].
    logits_a: [S, N, K] of A, one per seed.
    logits_b: [S, N, K] of B, seeds and pictures as of A.
    class_names, clusters, samples, seed, level: as for `intervals`.

  Returns:
    {'accuracy': {'a', 'b' (means over the seeds), 'a_sd', 'b_sd' (None of one seed), 'difference' (B − A), 'low', 'high',
    'p' (two-sided), 'low_of_seeds', 'high_of_seeds' (None of one seed), 'error' and 'degrees' (of the difference, for `detectable`; None where few pictures decide)}, 'mean_class_accuracy': …, 'macro_f1': …, 'method': as of `intervals`, with 'seeds': S}.

  Raises:
    UserError, ValueError: as `intervals`.
  """
  seeds = len(logits_a)
  whole = [metrics.classification(labels, x, class_names) for x in (*logits_a, *logits_b)]
  truth = metrics.dominant(labels)
  guesses = [np.asarray(x).argmax(-1) for x in (*logits_a, *logits_b)]
  cells, (of_truth, *of_guess) = _cells(truth, *guesses)
  units = _units(clusters, len(truth), samples, level)
  rng, drawn = np.random.default_rng([seed, seeds]), []
  for counts in _resamples(cells, clusters, samples, seed, len(class_names)):
    each = np.stack([scores(counts, of_truth, x, len(class_names)) for x in of_guess], axis=1)
    times = rng.multinomial(max(seeds - 1, 1), np.full(seeds, 1 / seeds), size=len(counts))[..., None]
    drawn.append(((each[:, seeds:] - each[:, :seeds]) * times).sum(1) / max(seeds - 1, 1))
  spread = np.concatenate(drawn).std(0)
  right = np.stack([x == truth for x in guesses])
  only = [(right[:seeds] & ~right[seeds:]).sum(1).mean(), (~right[:seeds] & right[seeds:]).sum(1).mean()]
  found = {}
  for i, name in enumerate(SCORES):
    a, b = (np.array([w[name] for w in part]) for part in (whole[:seeds], whole[seeds:]))
    difference, error = float((b - a).mean()), float(spread[i])
    if error == 0 or (name == 'accuracy' and sum(only) < FEW):
      less, more = max(-difference, 0), max(difference, 0)
      if name == 'accuracy':
        less, more = (x / len(truth) for x in only)
      low, high = few(more, less, _count(whole[0], name, units), level)
      p, degrees = mcnemar(*map(round, only)), None
    else:
      degrees = _degrees(error**2, float(np.var(b - a, ddof=1)) / seeds if seeds > 1 else 0.0, seeds, units)
      t = stats.t(degrees)
      reach = error * float(t.ppf((1 + level) / 2))
      low, high = max(difference - reach, -1.0), min(difference + reach, 1.0)
      p = float(2 * t.sf(abs(difference) / error))
    alone = of_seeds(b - a, level)
    found[name] = {
      'a': float(a.mean()),
      'b': float(b.mean()),
      'a_sd': float(np.std(a, ddof=1)) if seeds > 1 else None,
      'b_sd': float(np.std(b, ddof=1)) if seeds > 1 else None,
      'difference': difference,
      'low': low,
      'high': high,
      'p': p,
      'low_of_seeds': alone[0],
      'high_of_seeds': alone[1],
      'error': None if degrees is None else error,
      'degrees': degrees,
    }
  how = _method(clusters, units, samples, seed, level)
  return {**found, 'method': {**how, 'interval': 'crossed bootstrap, Student’s t', 'seeds': seeds}}


def _degrees(variance: float, of_seeds: float, seeds: int, units: int) -> float:
  """Returns Satterthwaite's degrees of freedom of a variance, part of which is that of a mean over seeds."""
  of_seeds = min(of_seeds, variance)
  parts = of_seeds**2 / max(seeds - 1, 1) + (variance - of_seeds) ** 2 / (units - 1)
  return max(variance**2 / parts, 1.0)


def of_seeds(differences: np.ndarray, level: float = 0.95) -> tuple[float, float] | tuple[None, None]:
  """Returns Student's interval of the mean of differences [S], one per seed, for the pictures at hand alone; None twice for one."""
  if len(differences) < 2:
    return None, None
  reach = stats.t(len(differences) - 1).ppf((1 + level) / 2) * np.std(differences, ddof=1)
  reach = float(reach / np.sqrt(len(differences)))
  return float(np.mean(differences)) - reach, float(np.mean(differences)) + reach


def detectable(error: float, degrees: float, level: float = 0.95, power: float = 0.8) -> float:
  """Returns the smallest true difference that a test at `level` finds with a probability of `power`.

  Args:
    error: standard error of the difference.
    degrees: of freedom of that.
    level: of the test.
    power: how often it is to be found.
  """
  t = stats.t(degrees)
  return error * float(t.ppf((1 + level) / 2) + t.ppf(power))


def few(more: float, less: float, count: int, level: float = 0.95) -> tuple[float, float]:
  """Returns an interval of the difference of two shares that holds where few pictures, or none, make it; never of no width.

  The ends are those of Wilson's intervals of both, squared and added (Newcombe 1998).

  Args:
    more: share of the pictures that only the second of two gets right.
    less: share that only the first does.
    count: of the pictures.
    level: of confidence.
  """
  (low_more, high_more), (low_less, high_less) = (
    wilson(round(x * count), count, level) for x in (more, less)
  )
  low = more - less - np.hypot(max(more - low_more, 0), max(high_less - less, 0))
  high = more - less + np.hypot(max(high_more - more, 0), max(less - low_less, 0))
  return float(max(low, -1.0)), float(min(high, 1.0))


def holm(p: Sequence[float]) -> list[float]:
  """Returns p values of several tests adjusted so that one in all of them is wrong at most as often as said (Holm 1979)."""
  order = np.argsort(p, kind='stable')
  adjusted = np.empty(len(p))
  adjusted[order] = np.minimum(np.maximum.accumulate(np.arange(len(p), 0, -1) * np.asarray(p)[order]), 1.0)
  return adjusted.tolist()


def points(share: float) -> str:
  """Returns a difference of shares in points, with its sign: '+1.20', '−0.31', '0.00'."""
  text = f'{100 * share:+.2f}'
  return '0.00' if float(text) == 0 else text.replace('-', '−')


def _count(whole: Mapping[str, Any], name: str, units: int) -> int:
  """Returns how many independent pictures a score is of: those of the scarcest class for a mean over classes."""
  if name == 'accuracy':
    return units
  return min(units, *(row['support'] for row in whole['per_class'].values() if row['support']))


def scores(counts: np.ndarray, truth: np.ndarray, guess: np.ndarray, classes: int) -> np.ndarray:
  """Returns accuracy, mean-class accuracy and macro F1, float64 [S, 3], of S sets of pictures given as counts.

  Args:
    counts: int [S, M], how many pictures of each set are in each of M cells; every set has at least one picture.
    truth: int [M], the cells' true class.
    guess: int [M], the cells' predicted class.
    classes: how many there are.
  """
  hit = truth == guess
  support, predicted = _sums(counts, truth, classes), _sums(counts, guess, classes)
  hits = _sums(counts[:, hit], truth[hit], classes)
  recall = np.divide(hits, support, out=np.zeros_like(hits), where=support > 0)
  f1 = np.divide(2 * hits, support + predicted, out=np.zeros_like(hits), where=support + predicted > 0)
  accuracy = hits.sum(1) / support.sum(1)
  mean_class = recall.sum(1) / (support > 0).sum(1)
  return np.stack([accuracy, mean_class, f1.sum(1) / (support + predicted > 0).sum(1)], axis=1)


def mcnemar(only_a: int, only_b: int) -> float:
  """Returns the two-sided p of McNemar's exact test: that of `only_a` heads in `only_a + only_b` throws of a fair coin."""
  return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def wilson(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
  """Returns Wilson's score interval of a share of `hits` in `count` independent pictures; (0, 1) when there are none.

  Unlike the bootstrap it has a width at shares of 0 and 1 and holds for a class of few pictures (Wilson 1927).
  """
  low, high = stats.binomtest(hits, count).proportion_ci(level, 'wilson') if count else (0.0, 1.0)
  return float(low), float(high)


def identities(ids: Sequence[str], pattern: str = 'auto', field: str = '--identity') -> np.ndarray | None:
  """Returns who is on each picture as numbers, int64 [N], read off the pictures' ids; None where they don't tell.

  Args:
    ids: of the pictures: paths or names.
    pattern: 'none'; 'auto', which knows names such as 'valid/fear/Aaron_Eckhart_0001.jpg' and returns None unless nine
      in ten are of that kind, most with a first and a last name, and there are at least LEAST_IDENTITIES people (what
      is no such name is a person of its own); or a regular expression with one group, searched for in each id: what
      the group matches is the identity.
    field: what holds the pattern, for errors.

  Raises:
    UserError: on a pattern that is no regular expression with one group, that an id does not match, or by which all
      pictures are of one identity.
  """
  if pattern == 'none':
    return None
  if pattern == 'auto':
    return _people(ids)
  try:
    compiled = re.compile(pattern)
  except re.error as e:
    raise UserError(
      f"{field} is '{pattern}', which is no regular expression ({e}); expected auto, none or one with a group"
    ) from None
  if compiled.groups != 1:
    raise UserError(
      f"{field} is '{pattern}', which has {compiled.groups} groups; expected one, around what names the person"
    )
  found = [compiled.search(name) for name in ids]
  # a group that took no part in the match is None
  missing = [name for name, match in zip(ids, found) if match is None or match[1] is None]
  if missing:
    raise UserError(
      f"{field} '{pattern}' finds no identity in '{missing[0]}' ({len(missing)} of {len(ids)} ids); expected one in each"
    )
  names, numbers = np.unique([match[1] for match in found], return_inverse=True)
  if len(names) < 2:
    raise UserError(
      f"{field} '{pattern}' finds one identity, '{names[0]}', in all {len(ids)} ids; expected several"
    )
  return numbers.astype(np.int64)


def _people(ids: Sequence[str]) -> np.ndarray | None:
  stems = [os.path.splitext(name.replace('\\', '/').rsplit('/', 1)[-1])[0] for name in ids]
  matches = [_PERSON.fullmatch(stem) if stem[:1].isupper() else None for stem in stems]
  people = [match[1] for match in matches if match]
  full = sum('_' in name for name in people)
  named = len(people) >= NAMED_SHARE * len(stems) and full >= FULL_SHARE * len(people)
  if not named or len(set(people)) < LEAST_IDENTITIES:
    return None
  names = [match[1] if match else stem for match, stem in zip(matches, stems)]
  return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _cells(*of_each: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns each picture's cell, int [N], among the M that occur, and what each array has there, int [len, M]."""
  kinds, cells = np.unique(np.stack(of_each), axis=1, return_inverse=True)
  return cells.reshape(-1), kinds


def _resamples(
  cells: np.ndarray, clusters: np.ndarray | None, samples: int, seed: int, classes: int
) -> Iterator[np.ndarray]:
  """Yields counts of the cells, int64 [s, M], in `samples` resamples, some rows at a time so that memory is bounded."""
  rng = np.random.default_rng(seed)
  counts = np.bincount(cells)
  if clusters is not None:
    _, clusters = np.unique(clusters, return_inverse=True)
    drawn = int(clusters.max()) + 1
    # how many pictures each cluster has in each cell it has any in, sorted by cell
    pairs, weight = np.unique(cells.astype(np.int64) * drawn + clusters, return_counts=True)
    cell_of, cluster_of = np.divmod(pairs, drawn)
    starts = np.searchsorted(cell_of, np.arange(len(counts)))
  most = max(1, CHUNK // max(len(counts), classes, 1 if clusters is None else len(pairs)))
  for first in range(0, samples, most):
    rows = min(most, samples - first)
    if clusters is None:
      yield rng.multinomial(len(cells), counts / len(cells), size=rows)
      continue
    picks = rng.integers(drawn, size=(rows, drawn)) + drawn * np.arange(rows)[:, None]
    times = np.bincount(picks.ravel(), minlength=rows * drawn).reshape(rows, drawn)
    yield np.add.reduceat(times[:, cluster_of] * weight, starts, axis=1)


def _sums(counts: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
  """Returns the sums of the columns of counts [S, M] by their group [M], float64 [S, groups]."""
  total = np.zeros((len(counts), groups))
  if len(group):
    order = np.argsort(group, kind='stable')
    there, starts = np.unique(group[order], return_index=True)
    total[:, there] = np.add.reduceat(counts[:, order], starts, axis=1)
  return total


def _ends(drawn: np.ndarray, level: float) -> np.ndarray:
  return np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)


def _units(clusters: np.ndarray | None, count: int, samples: int, level: float) -> int:
  """Returns how many things are drawn from; raises what `intervals` says."""
  if samples < LEAST_SAMPLES:
    raise UserError(f'samples is {samples}; expected at least {LEAST_SAMPLES} resamples')
  if not 0 < level < 1:
    raise UserError(f'level is {level}; expected a share between 0 and 1, such as 0.95')
  if clusters is None:
    return count
  if np.shape(clusters) != (count,):
    raise ValueError(f'clusters {np.shape(clusters)} for {count} pictures; expected one number each')
  units = len(np.unique(clusters))
  if units < 2:
    raise UserError(f'all {count} pictures are of one identity; expected at least two to draw from')
  return units


def _method(clusters: np.ndarray | None, units: int, samples: int, seed: int, level: float) -> dict[str, Any]:
  over = 'pictures' if clusters is None else 'identities'
  kind = {'interval': 'percentile bootstrap', 'level': level, 'samples': samples, 'seed': seed}
  return {**kind, 'over': over, 'units': units}

"""Verification: rates and the equal error rate against scikit-learn, pairs against counting, the interval over persons."""

import numpy as np
import pytest
from scipy.optimize import brentq

from mimic_jax import verification
from mimic_jax.runtime.errors import UserError


def people(rng, persons=12, each=5, spread=1.0, dim=6):
  labels = np.repeat(rng.permutation(100)[:persons], each)
  centres = rng.normal(size=(100, dim))
  return centres[labels] + spread * rng.normal(size=(len(labels), dim)), labels


@pytest.mark.parametrize('spread', [0.3, 1.0, 3.0])
def test_the_equal_error_rate_is_where_scikit_learn_s_curve_crosses_the_diagonal(spread, rng):
  metrics = pytest.importorskip('sklearn.metrics')
  features, labels = people(rng, spread=spread)
  features[rng.integers(len(features), size=9)] = features[0]  # ties
  found = verification.measure(features, labels, samples=0)
  unit = features / np.linalg.norm(features, axis=1, keepdims=True)
  n = len(labels)
  scores = [float(unit[i] @ unit[j]) for i in range(n) for j in range(i)]
  same = [labels[i] == labels[j] for i in range(n) for j in range(i)]
  scores = np.round(scores, 12)  # copies are one value whatever the order of the sum
  far, hits, _ = metrics.roc_curve(same, scores, drop_intermediate=False)
  expected = brentq(lambda x: 1.0 - x - np.interp(x, far, hits), 0.0, 1.0)
  assert found['eer'] == pytest.approx(expected, abs=2 / n**2 + 1e-6)
  assert (found['pairs_of_one'], found['pairs_of_two']) == (sum(same), len(same) - sum(same))
  taken = scores >= found['threshold']
  assert np.mean(taken[~np.array(same)]) == pytest.approx(found['eer'], abs=0.06)
  for alarm, miss in zip(found['det']['false_alarms'], found['det']['misses']):
    assert np.min(np.abs(far - alarm) + np.abs(1 - hits - miss)) < 1e-3
  assert (found['low'], found['high']) == (None, None)


def test_weights_are_copies(rng):
  """A pair of weight k counts as k pairs."""
  score = np.sort(rng.normal(size=40))[::-1]
  same, weight = rng.random(40) < 0.4, rng.integers(0, 4, 40)
  same[:2] = [True, False]
  weight[:2] = 1
  ends = np.arange(40)
  alarms, misses = verification.rates(ends, same, weight.astype(float))
  many = np.repeat(np.arange(40), weight)
  for t in range(40):
    taken = score[many] >= score[t]
    assert alarms[t + 1] == pytest.approx(np.mean(taken[~same[many]]))
    assert misses[t + 1] == pytest.approx(np.mean(~taken[same[many]]))


def test_pairs_are_all_there_are_or_as_many_as_may_be_each_once(rng, monkeypatch):
  labels = rng.integers(0, 4, 30)
  every = {(i, j) for j in range(30) for i in range(j)}
  a, b, same = verification.pairs(labels, rng)
  assert set(zip(a.tolist(), b.tolist())) == every
  np.testing.assert_array_equal(same, labels[a] == labels[b])
  monkeypatch.setattr(verification, 'MOST_PICTURES', 20)
  monkeypatch.setattr(verification, 'MOST_PAIRS', 25)
  a, b, same = verification.pairs(labels, rng)
  assert len(set(zip(a.tolist(), b.tolist()))) == len(a) == 50
  assert same.sum() == 25
  assert len(set(a.tolist()) | set(b.tolist())) <= 20


def test_the_interval_is_of_persons_and_holds_the_rate(rng):
  """Pictures of few persons say little of others: more pictures of each do not make the interval much narrower, more persons do."""
  width = {}
  for persons, each in ((8, 4), (8, 12), (50, 4)):
    features, labels = people(rng, persons, each, spread=1.2)
    found = verification.measure(features, labels, samples=200)
    assert found['low'] <= found['eer'] <= found['high']
    width[persons, each] = found['high'] - found['low']
  assert width[50, 4] < width[8, 4]
  apart, labels = people(rng, spread=1e-6)
  found = verification.measure(apart, labels, samples=100)
  assert found['eer'] == 0
  assert 0 < found['high'] < 0.4  # of 12 persons


def test_chance_is_a_half_and_no_pairs_are_refused(rng):
  features, labels = rng.normal(size=(400, 8)), np.arange(400) % 20
  assert verification.measure(features, labels, samples=0)['eer'] == pytest.approx(0.5, abs=0.05)
  for labels in (np.zeros(5, int), np.arange(5)):
    with pytest.raises(UserError, match='make no pair of'):
      verification.measure(features[:5], labels, samples=0)


def test_deviates_are_the_normal_distribution_s(rng):
  stats = pytest.importorskip('scipy.stats')
  shares = rng.uniform(0.001, 0.999, 20)
  np.testing.assert_allclose(verification.deviates(shares), stats.norm.ppf(shares), rtol=1e-9, atol=1e-9)

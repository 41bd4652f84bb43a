"""Intervals against the exact binomial, loops over resampled pictures and SciPy; whose picture it is, from names."""

import numpy as np
import pytest
from scipy import stats

from mimic_jax import metrics, uncertainty
from mimic_jax.runtime.errors import UserError

NAMES = tuple('abcd')


def case(rng, n=80, classes=4, skill=1.5):
  """Returns labels [n] and logits [n, classes]; the last class is rare."""
  labels = rng.choice(classes, n, p=np.array([8, 6, 5, 1]) / 20)
  return labels, rng.normal(size=(n, classes)) + skill * np.eye(classes)[labels]


def right_at(right, classes=2):
  """Returns labels and logits of a classifier that is right exactly where `right` [n] says so."""
  labels = np.arange(len(right)) % classes
  return labels, np.eye(classes)[np.where(right, labels, (labels + 1) % classes)]


def three(found):
  return [found[name] for name in uncertainty.SCORES]


def test_scores_of_the_identity_resample_are_those_of_the_evaluation(rng):
  for classes in (2, 4, 9):
    truth = rng.integers(
      0, max(classes - 1, 1), 50
    )  # the last class has no example, and may have predictions
    guess = rng.integers(0, classes, 50)
    want = metrics.classification(truth, np.eye(classes)[guess], [str(k) for k in range(classes)])
    everything = uncertainty.scores(np.ones((1, 50), int), truth, guess, classes)
    np.testing.assert_allclose(everything[0], three(want), atol=1e-14)
    found = uncertainty.intervals(
      truth, np.eye(classes)[guess], [str(k) for k in range(classes)], samples=100
    )
    assert [found[name]['value'] for name in uncertainty.SCORES] == three(want)


def test_scores_of_a_resample_are_those_of_the_pictures_drawn_again(rng):
  labels, logits = case(rng)
  guess = logits.argmax(-1)
  times = rng.multinomial(80, np.full(80, 1 / 80), size=30)
  got = uncertainty.scores(times, labels, guess, 4)
  for row, count in zip(got, times):
    again = np.repeat(np.arange(80), count)
    want = metrics.classification(labels[again], logits[again], NAMES)
    np.testing.assert_allclose(row, three(want), atol=1e-14)


def test_the_interval_of_accuracy_is_the_quantiles_of_the_binomial(rng):
  labels, logits = right_at(rng.random(400) < 0.7)
  found = uncertainty.intervals(labels, logits, NAMES[:2], samples=20_000, seed=3)['accuracy']
  want = stats.binom.ppf([0.025, 0.975], 400, found['value']) / 400
  np.testing.assert_allclose([found['low'], found['high']], want, atol=1.01 / 400)


def test_intervals_of_all_scores_agree_with_a_loop_over_resampled_pictures(rng):
  labels, logits = case(rng)
  drawn = []
  for _ in range(3000):
    again = rng.integers(80, size=80)
    drawn.append(three(metrics.classification(labels[again], logits[again], NAMES)))
  want, spread = np.quantile(drawn, [0.05, 0.95], axis=0), np.std(drawn, axis=0)
  found = uncertainty.intervals(labels, logits, NAMES, samples=3000, level=0.9)
  for i, name in enumerate(uncertainty.SCORES):
    # a quantile of 3000 draws is uncertain by 0.04 standard deviations; accuracy moves in steps of 1/80
    got = [found[name]['low'], found[name]['high']]
    np.testing.assert_allclose(got, want[:, i], atol=0.25 * spread[i] + 1 / 80)


def test_clusters_are_drawn_as_wholes(rng):
  labels, logits = case(rng, n=60)
  clusters = rng.integers(0, 12, 60) * 7 - 3  # numbers need not be 0, 1, 2
  there = np.unique(clusters)
  members = [np.flatnonzero(clusters == c) for c in there]
  draws = np.random.default_rng(5)
  drawn = []
  for _ in range(200):
    again = np.concatenate([members[c] for c in draws.integers(len(there), size=len(there))])
    drawn.append(three(metrics.classification(labels[again], logits[again], NAMES)))
  found = uncertainty.intervals(labels, logits, NAMES, clusters, samples=200, seed=5)
  for i, name in enumerate(uncertainty.SCORES):
    want = np.quantile(np.array(drawn)[:, i], [0.025, 0.975])
    np.testing.assert_allclose([found[name]['low'], found[name]['high']], want, atol=1e-12)
  assert found['method']['over'] == 'identities'
  assert found['method']['units'] == len(there)


@pytest.mark.parametrize('clustered', [False, True])
def test_what_is_held_in_memory_at_a_time_changes_nothing(rng, monkeypatch, clustered):
  labels, logits = case(rng)
  clusters = rng.integers(0, 20, 80) if clustered else None
  whole = uncertainty.intervals(labels, logits, NAMES, clusters, samples=150, seed=1)
  monkeypatch.setattr(uncertainty, 'CHUNK', 200)
  sizes = []
  real = uncertainty.scores
  monkeypatch.setattr(
    uncertainty, 'scores', lambda counts, *rest: (sizes.append(len(counts)), real(counts, *rest))[1]
  )
  assert uncertainty.intervals(labels, logits, NAMES, clusters, samples=150, seed=1) == whole
  assert len(sizes) > 5
  assert sum(sizes) == 150


def test_the_same_seed_gives_the_same_interval_and_another_one_another(rng):
  labels, logits = case(rng)
  first, again, other = (
    uncertainty.intervals(labels, logits, NAMES, samples=300, seed=s)['macro_f1'] for s in (0, 0, 1)
  )
  assert first == again
  assert first != other
  assert first['value'] == other['value']


def test_intervals_hold_the_truth_about_as_often_as_they_say(rng):
  held = []
  for _ in range(400):
    labels, logits = right_at(rng.random(150) < 0.7)
    found = uncertainty.intervals(labels, logits, NAMES[:2], samples=300, level=0.9)['accuracy']
    held.append(found['low'] <= 0.7 <= found['high'])
  assert (
    0.84 <= np.mean(held) <= 0.95
  )  # 0.9 ± 4 standard errors of 0.015, the discreteness of 150 pictures besides


def test_intervals_over_people_hold_where_those_over_pictures_are_too_narrow(rng):
  clusters = np.repeat(np.arange(60), 10)
  over_people, over_pictures = [], []
  for _ in range(150):
    labels, logits = right_at(
      np.repeat(rng.random(60) < 0.7, 10)
    )  # a person's pictures are all right or all wrong
    for held, c in ((over_people, clusters), (over_pictures, None)):
      found = uncertainty.intervals(labels, logits, NAMES[:2], c, samples=200)['accuracy']
      held.append(found['low'] <= 0.7 <= found['high'])
  assert np.mean(over_people) >= 0.85
  assert np.mean(over_pictures) <= 0.7


def test_clusters_of_one_picture_give_the_interval_over_pictures(rng):
  labels, logits = right_at(rng.random(300) < 0.6)
  alone = uncertainty.intervals(labels, logits, NAMES[:2], np.arange(300), samples=5000)['accuracy']
  pictures = uncertainty.intervals(labels, logits, NAMES[:2], samples=5000)['accuracy']
  assert alone['low'] == pytest.approx(pictures['low'], abs=0.01)
  assert alone['high'] == pytest.approx(pictures['high'], abs=0.01)


def test_soft_labels_count_by_their_largest_entry(rng):
  soft = rng.dirichlet(np.ones(4), 50)
  logits = rng.normal(size=(50, 4))
  hard = uncertainty.intervals(soft.argmax(1), logits, NAMES, samples=100)
  assert uncertainty.intervals(soft, logits, NAMES, samples=100) == hard


def test_the_interval_of_a_difference_follows_the_formula_for_pairs(rng):
  n = 600
  right_a = rng.random(n) < 0.7
  right_b = np.where(rng.random(n) < 0.8, right_a, rng.random(n) < 0.8)  # the two agree on most
  labels, logits_a = right_at(right_a)
  _, logits_b = right_at(right_b)
  found = uncertainty.paired(labels, logits_a, logits_b, NAMES[:2], samples=10_000)
  counts, accuracy = found['counts'], found['accuracy']
  b, c = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
  assert (counts['only_a'], counts['only_b'], counts['count']) == (b, c, n)
  assert counts['both_right'] + counts['both_wrong'] == n - b - c
  assert accuracy['difference'] == pytest.approx((c - b) / n)
  half = 1.959964 * np.sqrt((b + c - (b - c) ** 2 / n) / n**2)  # of (C − B)/n, the pairs being multinomial
  assert (accuracy['high'] - accuracy['low']) / 2 == pytest.approx(half, rel=0.06)
  assert (accuracy['high'] + accuracy['low']) / 2 == pytest.approx((c - b) / n, abs=0.1 * half + 1 / n)
  assert found['mcnemar_p'] == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-9)


@pytest.mark.parametrize('clustered', [False, True])
def test_differences_of_all_scores_agree_with_a_loop(rng, clustered):
  labels, logits_a = case(rng, n=60)
  logits_b = logits_a + rng.normal(size=logits_a.shape)
  clusters = rng.integers(0, 15, 60) if clustered else np.arange(60)
  members = [np.flatnonzero(clusters == c) for c in np.unique(clusters)]
  draws = np.random.default_rng(0)
  drawn = []
  for _ in range(300):
    again = np.concatenate([members[c] for c in draws.integers(len(members), size=len(members))])
    a, b = (three(metrics.classification(labels[again], x[again], NAMES)) for x in (logits_a, logits_b))
    drawn.append(np.subtract(b, a))
  found = uncertainty.paired(labels, logits_a, logits_b, NAMES, clusters, samples=300, seed=0)
  for i, name in enumerate(uncertainty.SCORES):
    want = np.quantile(np.array(drawn)[:, i], [0.025, 0.975])
    np.testing.assert_allclose([found[name]['low'], found[name]['high']], want, atol=1e-12)
    assert found[name]['a'] == metrics.classification(labels, logits_a, NAMES)[name]
    assert found[name]['b'] == metrics.classification(labels, logits_b, NAMES)[name]


def test_a_classifier_does_not_differ_from_itself(rng):
  labels, logits = case(rng)
  found = uncertainty.paired(labels, logits, 3 * logits, NAMES)
  for name in uncertainty.SCORES:
    most = uncertainty.wilson(0, 80 if name == 'accuracy' else np.bincount(labels).min())[1]
    assert found[name]['difference'] == 0
    assert [found[name]['low'], found[name]['high']] == pytest.approx([-most, most])
  assert found['mcnemar_p'] == 1
  assert found['counts']['only_a'] == found['counts']['only_b'] == 0


def test_mcnemar_is_the_exact_binomial_test(rng):
  pairs = [(0, 0), (0, 1), (5, 5), (0, 12), (30_000, 30_400), (900, 1100)]
  pairs += rng.integers(0, 60, (40, 2)).tolist()
  for b, c in pairs:
    want = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert uncertainty.mcnemar(b, c) == pytest.approx(want, rel=1e-7), (b, c)
    assert uncertainty.mcnemar(c, b) == uncertainty.mcnemar(b, c)


def test_wilson_agrees_with_scipy_and_has_a_width_at_the_ends():
  for hits, count in ((0, 7), (7, 7), (3, 10), (480, 500), (1, 2)):
    for level in (0.8, 0.95):
      want = stats.binomtest(hits, count).proportion_ci(level, method='wilson')
      np.testing.assert_allclose(uncertainty.wilson(hits, count, level), want, atol=1e-12)
  assert uncertainty.wilson(7, 7)[0] < 0.9
  assert uncertainty.wilson(0, 0) == (0.0, 1.0)


FIRST = ('Ann', 'Bob', 'Cem', 'Dora', 'Eve', 'Finn')
LAST = ('Abel', 'Bauer', 'de_Croo', "O'Dowd", 'Smith-Jones')


def people() -> list[str]:
  """Returns ids of 30 people: 3, 4 or 5 pictures of each, in folders by class."""
  names = [f'{first}_{last}' for first in FIRST for last in LAST]
  return [f'valid/c{k % 4}/{name}_{k:04d}.jpg' for i, name in enumerate(names) for k in range(3 + i % 3)]


def test_people_are_known_by_their_names_whatever_the_folder():
  ids = people()
  got = uncertainty.identities(ids)
  want = [name.rsplit('/', 1)[1].rsplit('_', 1)[0] for name in ids]
  assert got.dtype == np.int64
  assert len(set(got.tolist())) == 30
  assert len(set(zip(want, got.tolist()))) == 30


def test_single_names_are_people_and_what_is_no_name_stands_alone():
  ids = [*people(), 'Madonna_0001.jpg', 'x/Madonna_0002.jpg', 'facial-expressions_286k.jpg', 'face.jpg']
  got = uncertainty.identities(ids)
  assert got[-4] == got[-3]
  assert len(set(got[-4:].tolist()) | set(got[:-4].tolist())) == 33


@pytest.mark.parametrize(
  'ids',
  [
    [f'train_{k:05d}' for k in range(200)],
    [f'FER2013Valid/fer{k:07d}.png' for k in range(200)],
    [f'valid/fear/IMG_{k}.jpg' for k in range(200)],
    [f'train/n{k % 40:08d}/n{k % 40:08d}_{k}.JPEG' for k in range(200)],
    [f'{name}_face_{k}.png' for k in range(50) for name in ('Happy', 'Sad')],  # kinds, not people
    [f'Word{k % 50}_{k}.jpg' for k in range(200)],
    people()[:10],
    [],
  ],
)
def test_names_that_do_not_tell_people_give_no_identities(ids):
  assert uncertainty.identities(ids) is None


def test_a_pattern_of_the_users_own_says_who_is_who():
  ids = ['s01/f1.png', 's01/f2.png', 's02/f1.png']
  assert uncertainty.identities(ids, r'(s\d+)/').tolist() == [0, 0, 1]
  assert uncertainty.identities(people(), 'none') is None


@pytest.mark.parametrize(
  ('pattern', 'told'),
  [
    (r'(s\d+', r"--identity is '\(s\\d\+', which is no regular expression"),
    (r's\d+', r'has 0 groups; expected one'),
    (r'(s)(\d)', r'has 2 groups; expected one'),
    (r'(s\d+)/', r"finds no identity in 'x/f1.png' \(1 of 3 ids\); expected one in each"),
    (r'(s\d+)?/', r"finds no identity in 'x/f1.png'"),
    (r'(f)', r"finds one identity, 'f', in all 3 ids; expected several"),
  ],
)
def test_a_pattern_that_can_not_be_is_refused(pattern, told):
  with pytest.raises(UserError, match=told) as caught:
    uncertainty.identities(['s01/f1.png', 's02/f1.png', 'x/f1.png'], pattern)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('changes', 'told'),
  [
    ({'samples': 20}, 'samples is 20; expected at least 100'),
    ({'level': 95}, 'level is 95; expected a share between 0 and 1'),
    ({'clusters': np.zeros(80, int)}, 'all 80 pictures are of one identity; expected at least two'),
  ],
)
def test_settings_that_give_no_interval_are_refused(rng, changes, told):
  labels, logits = case(rng)
  with pytest.raises(UserError, match=told):
    uncertainty.intervals(labels, logits, NAMES, **changes)
  with pytest.raises(UserError, match=told):
    uncertainty.paired(labels, logits, logits, NAMES, **changes)


def test_clusters_of_another_length_are_refused(rng):
  labels, logits = case(rng)
  with pytest.raises(ValueError, match=r'clusters \(79,\) for 80 pictures'):
    uncertainty.intervals(labels, logits, NAMES, np.arange(79))


def seeds_case(rng, seeds=3, n=60, lift=0.4):
  """Returns labels [n] and logits [seeds, n, 4] of two methods, the second better by a little on every picture."""
  labels, base = case(rng, n)
  a, b = (base + rng.normal(0, 0.8, (2, seeds, n, 4)))[:]
  return labels, a, b + lift * np.eye(4)[labels]


def plain(truth, guess):
  """Returns the three scores, class by class."""
  there = [k for k in range(4) if (truth == k).any() or (guess == k).any()]
  hits, support, guessed = (
    np.array([x.sum() for x in y])
    for y in zip(*(((truth == k) & (guess == k), truth == k, guess == k) for k in there))
  )
  recall = (hits[support > 0] / support[support > 0]).mean()
  return (truth == guess).mean(), recall, (2 * hits / (support + guessed)).mean()


def test_over_seeds_the_difference_is_the_mean_of_theirs_and_its_spread_that_of_a_loop_over_both_drawn(rng):
  labels, a, b = seeds_case(rng)
  found = uncertainty.across_seeds(labels, a, b, NAMES, samples=4000)
  each = [[three(metrics.classification(labels, x, NAMES)) for x in part] for part in (a, b)]
  gaps = np.subtract(each[1], each[0])
  drawn = []
  for _ in range(1000):
    again = rng.integers(60, size=60)
    gap = [np.subtract(*(plain(labels[again], x[s].argmax(-1)[again]) for x in (b, a))) for s in range(3)]
    drawn.append(np.mean([gap[s] for s in rng.integers(3, size=2)], axis=0))
  variance = np.var(drawn, axis=0)
  of_seeds = np.minimum(
    np.var(gaps, axis=0, ddof=1) / 3, variance
  )  # a part of the whole, however it was estimated
  degrees = variance**2 / (of_seeds**2 / 2 + (variance - of_seeds) ** 2 / 59)
  for i, name in enumerate(uncertainty.SCORES):
    got = found[name]
    assert [got['a'], got['b']] == pytest.approx(np.mean(each, axis=1)[:, i])
    assert got['difference'] == pytest.approx(gaps[:, i].mean())
    reach = stats.t.ppf(0.975, degrees[i]) * variance[i] ** 0.5
    for end, far in (('low', -reach), ('high', reach)):  # no difference is beyond 1
      want = np.clip(got['difference'] + far, -1, 1) - got['difference']
      assert got[end] - got['difference'] == pytest.approx(want, rel=0.25)
    assert (got['p'] < 0.05) == (got['low'] > 0 or got['high'] < 0)
  assert found['method']['seeds'] == 3


def test_over_seeds_intervals_hold_the_truth_about_as_often_as_they_say():
  rng = np.random.default_rng(4)
  seeds, n, held = 4, 150, []

  def right(sets, pictures):  # [2, sets, pictures]: the second method helps by 0.1, more on some pictures
    base, help_ = rng.normal(0.8, 1, pictures), rng.normal(0.1, 0.3, pictures)
    own = rng.normal(0, 0.2, (2, sets, 1)) + rng.normal(0, 0.5, (2, sets, pictures))
    return base + np.array([0, 1])[:, None, None] * help_ + own > 0

  truth = np.mean([np.subtract(*right(1, 200_000).mean((1, 2))[::-1]) for _ in range(200)])
  labels = np.arange(n) % 2
  for k in range(60):
    a, b = np.eye(2)[np.where(right(seeds, n), labels, 1 - labels)]
    found = uncertainty.across_seeds(labels, a, b, NAMES[:2], samples=200, seed=k)['accuracy']
    held.append(found['low'] <= truth <= found['high'])
  assert np.mean(held) >= 0.88


def test_over_seeds_a_method_does_not_differ_from_itself_and_no_interval_is_without_width(rng):
  labels, logits = case(rng)
  found = uncertainty.across_seeds(labels, np.stack([logits] * 3), np.stack([logits] * 3), NAMES, samples=200)
  for name in uncertainty.SCORES:
    assert found[name]['low'] < found[name]['difference'] == 0 < found[name]['high']
    assert found[name]['p'] == 1


def test_few_pictures_have_wilsons_intervals_squared_and_added():
  low, high = uncertainty.few(0.05, 0.02, 100)
  z = stats.norm.ppf(0.975)

  def ends(p, n=100):
    middle, reach = p + z * z / 2 / n, z * np.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    return (middle - reach) / (1 + z * z / n), (middle + reach) / (1 + z * z / n)

  (l1, u1), (l2, u2) = ends(0.05), ends(0.02)
  want = 0.03 - np.hypot(0.05 - l1, u2 - 0.02), 0.03 + np.hypot(u1 - 0.05, 0.02 - l2)
  assert (low, high) == pytest.approx(want)


def test_holms_p_is_the_least_level_at_which_his_steps_reject(rng):
  p = rng.random(6) ** 3
  adjusted = uncertainty.holm(p)
  for level in [*rng.random(200), 0.05]:
    rejected = set()
    for step, k in enumerate(np.argsort(p)):
      if p[k] > level / (6 - step):
        break
      rejected.add(k)
    assert rejected == {k for k in range(6) if adjusted[k] <= level}

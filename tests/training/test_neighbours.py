"""The votes of the nearest neighbours, against loops in float64 and scikit-learn."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from mimic_jax.training import neighbours

N, K, D, NEIGHBOURS = 37, 4, 6, 5


@pytest.mark.parametrize(
  'block', [8, 5, 64]
)  # with a last block that is not full, with k of a whole block, in one
@pytest.mark.parametrize('soft', [False, True])
def test_votes_are_those_of_the_nearest_by_cosine(block, soft, rng):
  bank, asked = rng.normal(size=(N, D)), rng.normal(size=(9, D))
  label = rng.dirichlet(np.ones(K), N) if soft else rng.integers(0, K, N)
  shares = label if soft else np.eye(K)[label]
  want = np.zeros((9, K))
  for i, q in enumerate(asked):
    cosine = [q @ b / np.sqrt((q @ q) * (b @ b)) for b in bank]
    for j in sorted(range(N), key=lambda j: -cosine[j])[:NEIGHBOURS]:
      want[i] += np.exp((cosine[j] - max(cosine)) / 0.07) * shares[j]
  held = neighbours.Bank(bank, label, K, block)
  found = held.votes(jnp.asarray(asked, jnp.float32), NEIGHBOURS, 0.07)
  np.testing.assert_allclose(found, want, rtol=2e-4)


def test_at_an_infinite_temperature_each_neighbour_has_one_vote_as_in_scikit_learn(rng):
  bank, label, asked = rng.normal(size=(N, D)), rng.integers(0, K, N), rng.normal(size=(9, D))
  theirs = KNeighborsClassifier(NEIGHBOURS, metric='cosine').fit(bank, label)
  found = neighbours.Bank(bank, label, K, 8).votes(jnp.asarray(asked, jnp.float32), NEIGHBOURS, np.inf)
  want = np.zeros((9, K))
  want[:, theirs.classes_] = NEIGHBOURS * theirs.predict_proba(asked)
  np.testing.assert_allclose(found, want, atol=1e-5)


def test_at_a_temperature_near_0_the_nearest_alone_votes(rng):
  bank, label, asked = rng.normal(size=(N, D)), rng.integers(0, K, N), rng.normal(size=(9, D))
  nearest = KNeighborsClassifier(1, metric='cosine').fit(bank, label).predict(asked)
  found = neighbours.Bank(bank, label, K, 8).votes(jnp.asarray(asked, jnp.float32), NEIGHBOURS, 1e-9)
  np.testing.assert_array_equal(found, np.eye(K)[nearest])


def test_of_two_that_are_as_near_the_first_votes():
  bank = neighbours.Bank(np.ones((5, D)), np.array([2, 0, 1, 3, 0]), K, 2)
  assert bank.votes(jnp.ones((1, D)), 1, np.inf).tolist() == [[0, 0, 1, 0]]

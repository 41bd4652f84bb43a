"""Puzzles and what is removed of pictures, against loops in NumPy and counting."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimic_jax import puzzles


@pytest.mark.parametrize(('g', 'gap'), [(2, 0), (3, 0), (4, 0), (2, 3), (3, 2)])
def test_a_puzzle_is_that_of_loops_and_its_inverse_restores_it(g, gap, rng):
  size, side = 12, 12 // g
  x, order = (
    rng.normal(size=(5, size, size, 3)).astype(np.float32),
    np.stack([rng.permutation(g * g) for _ in range(5)]),
  )
  offsets = rng.integers(0, gap + 1, (5, g * g, 2))
  got = np.asarray(
    puzzles.puzzled(jnp.asarray(x), jnp.asarray(order), jnp.asarray(offsets) if gap else None, gap)
  )
  for b in range(5):
    for place in range(g * g):
      tile = order[b, place]
      top, left = tile // g * side, tile % g * side
      piece = x[b, top : top + side, left : left + side]
      if gap:
        i, j = offsets[b, tile]
        around = [(i, gap - i), (j, gap - j), (0, 0)]
        piece = np.pad(piece[i : i + side - gap, j : j + side - gap], around, mode='symmetric')
      top, left = place // g * side, place % g * side
      np.testing.assert_array_equal(got[b, top : top + side, left : left + side], piece)
  if not gap:
    np.testing.assert_array_equal(
      puzzles.puzzled(jnp.asarray(got), jnp.asarray(np.argsort(order, axis=1))), x
    )


def test_orders_are_uniform_over_all_permutations(rng):
  drawn = np.asarray(puzzles.orders(jax.random.key(int(rng.integers(2**31))), 4800, 4, 'all'))
  kinds, counts = np.unique(drawn, axis=0, return_counts=True)
  assert len(kinds) == math.factorial(4)
  assert (abs(counts - 200) < 5 * 200**0.5).all()


@pytest.mark.parametrize('tiles', [4, 9, 16])
def test_the_fixed_list_is_of_different_permutations_far_apart(tiles, rng):
  table = puzzles.far_permutations(tiles)
  assert len(table) == min(100, math.factorial(tiles))
  assert (np.sort(table, axis=1) == np.arange(tiles)).all()
  apart = (table[:, None] != table[None]).sum(-1) + tiles * np.eye(len(table), dtype=int)
  by_chance = np.stack([rng.permutation(tiles) for _ in range(100)])
  least = ((by_chance[:, None] != by_chance[None]).sum(-1) + tiles * np.eye(100, dtype=int)).min()
  assert apart.min() >= (2 if tiles == 4 else least + 1)
  drawn = np.asarray(puzzles.orders(jax.random.key(int(rng.integers(2**31))), 300, tiles, 'far'))
  assert {tuple(row) for row in drawn} <= {tuple(row) for row in table}
  assert len({tuple(row) for row in drawn}) > 15


def test_what_is_removed_is_a_square_anywhere_or_half_of_the_tiles(rng):
  key = jax.random.key(int(rng.integers(2**31)))
  gone = np.asarray(puzzles.holes(key, 600, 16, 'square', 2))
  corners = set()
  for one in gone:
    rows, columns = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
    assert one.sum() == 16 == len(rows) * len(columns)
    assert np.ptp(rows) == np.ptp(columns) == 3
    corners.add((rows[0], columns[0]))
  assert {r for r, _ in corners} == {c for _, c in corners} == set(range(13))
  gone = np.asarray(puzzles.holes(key, 600, 12, 'tiles', 3)).reshape(600, 3, 4, 3, 4)
  assert (gone == gone[:, :, :1, :, :1]).all()
  share = gone[:, :, 0, :, 0].mean(0)
  assert (abs(share - 0.5) < 5 * 0.5 / 600**0.5).all()

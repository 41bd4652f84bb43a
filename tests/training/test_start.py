"""The time to the first step, in parts."""

import time

import jax
import jax.numpy as jnp
import pytest

from mimic_jax.training import start


def test_the_parts_add_up_and_what_is_compiled_within_one_counts_as_compiling():
  clock = start.Clock(time.monotonic() - 5)
  clock.lap('import')
  time.sleep(0.2)
  clock.lap('data')
  began = time.monotonic()
  jax.jit(lambda x: jnp.linalg.svd(x @ x.T)[0] @ jnp.linalg.inv(x))(jnp.eye(7))
  clock.lap('restore')
  took = time.monotonic() - began
  time.sleep(0.1)
  clock.lap('data')
  assert clock.parts['import'] == pytest.approx(5, abs=0.1)
  assert clock.parts['data'] == pytest.approx(0.3, abs=0.1)
  assert 0 < clock.parts['compile'] < took
  assert sum(clock.parts.values()) == pytest.approx(5.3 + took, abs=0.1)

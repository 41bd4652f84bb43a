"""The origin of what is not finite: the first operation that made it, and nothing that is masked on purpose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimic_jax.training import nonfinite


def line_of(origin) -> str:
  """Returns the source that an origin points to."""
  file, number = origin.where.split(' ')[0].rsplit(':', 1)
  assert file == __file__
  with open(file) as source:
    return source.read().split('\n')[int(number) - 1].strip()


def test_what_is_masked_is_no_finding():
  def function(x):
    shown = jnp.where(jnp.arange(4) < 2, x, -jnp.inf)
    return {'sum': jnp.exp(shown).sum(), 'logs': jnp.where(x > 2, jnp.log(x - 2), 0.0)}

  assert nonfinite.find(function, {'x': jnp.arange(4.0)}) == {}


def test_the_operation_in_a_loop_its_line_and_its_operands_are_named():
  def function(x):
    def body(carry, by):
      carry = jnp.sqrt(carry - by)
      return carry, carry

    end, _ = jax.lax.scan(body, 4.0, x)
    return {'end': end + 1, 'fine': x.sum()}

  found = nonfinite.find(function, {'x': jnp.array([0.0, 5.0, 0.0])})
  assert list(found) == ['end']
  origin = found['end']
  assert (origin.made, origin.operation, origin.result) == ('NaN', 'sqrt', 'float32[]')
  assert line_of(origin) == 'carry = jnp.sqrt(carry - by)'
  assert origin.operands == ('float32[] from -3 to -3',)
  assert origin.because is None
  assert str(origin).startswith('NaN first made by sqrt at ')
  assert str(origin).endswith('(body)')


def test_the_infinity_that_a_nan_was_made_of_is_named_too():
  def function(x):
    big = jnp.exp(x)
    return {'difference': (big - big).max()}

  origin = nonfinite.find(function, {'x': jnp.array([1.0, 100.0])})['difference']
  assert (origin.made, origin.operation) == ('NaN', 'sub')
  assert (origin.because.made, origin.because.operation) == ('infinity', 'exp')
  assert line_of(origin.because) == 'big = jnp.exp(x)'


def test_an_infinity_made_beside_a_masks_own_is_found():
  def function(x):
    shown = jnp.where(jnp.arange(2) < 1, x, -jnp.inf)
    return {'sum': jnp.exp(shown).sum()}

  origin = nonfinite.find(function, {'x': jnp.array([100.0, 1.0])})['sum']
  assert (origin.made, origin.operation, origin.because) == ('infinity', 'exp', None)
  assert origin.operands == ('float32[2] from 100 to 100, 1 not finite',)


def test_a_row_that_is_masked_whole_leads_to_the_mask():
  def function(x):
    shown = jnp.where(x > 9, x, -jnp.inf)
    return {'softmax': (shown - shown.max()).sum()}

  origin = nonfinite.find(function, {'x': jnp.ones(3)})['softmax']
  assert (origin.made, origin.operation, str(origin.because)) == ('NaN', 'sub', 'infinity in a constant')


@pytest.mark.parametrize('wrapped', [lambda f: f, jax.checkpoint, jax.jit])
def test_a_gradient_that_is_bad_where_the_value_is_fine(wrapped):
  @wrapped
  def loss(w, x):
    return jnp.where(x > 0, jnp.sqrt(w * x), 0.0).sum()

  def function(w, x):
    value, gradient = jax.value_and_grad(loss)(w, x)
    return {'value': value, 'gradient': gradient}

  found = nonfinite.find(function, {'w': jnp.ones(()), 'x': jnp.array([0.0, 4.0])})
  assert list(found) == ['gradient']
  origin = found['gradient']
  assert (origin.made, origin.operation, origin.backward) == ('NaN', 'mul', True)
  assert line_of(origin) == 'return jnp.where(x > 0, jnp.sqrt(w * x), 0.0).sum()'
  assert origin.because.made == 'infinity'


def test_an_input_that_is_bad_from_the_start_is_named():
  def function(state, key):
    return {'out': (state['params']['w'] * jax.random.uniform(key)).sum(), 'other': state['b'].sum()}

  state = {'params': {'w': jnp.array([1.0, np.nan])}, 'b': jnp.ones(2)}
  found = nonfinite.find(function, {'state': state, 'key': jax.random.key(0)})
  assert {k: str(v) for k, v in found.items()} == {'out': 'NaN in input state/params/w'}


def test_the_earliest_of_several_comes_first():
  def function(x):
    late = jnp.log(-jnp.exp(x)).sum()
    return {'b_early': jnp.sqrt(x).sum(), 'a_late': late * 1.0}

  found = nonfinite.find(function, {'x': jnp.full(2, -1.0)})
  assert [(name, origin.operation) for name, origin in found.items()] == [
    ('a_late', 'log'),
    ('b_early', 'sqrt'),
  ]

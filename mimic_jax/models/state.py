"""A model as plain nested dicts of arrays, and back: what the training loop, the optimiser and the checkpoints hold."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx


class Template(NamedTuple):
  """A model without its arrays. Hashable, so it can be a static argument of jax.jit.

  trained and rest are the paths of the two kinds of arrays, as NNX keys them (a list's items by number); keys are the
  paths of random keys (nnx.Dropout has one), of JAX's default implementation: the dicts hold their data, uint32.
  """

  graphdef: nnx.GraphDef
  trained: tuple[tuple, ...]
  rest: tuple[tuple, ...]
  keys: tuple[tuple, ...] = ()


def split(
  model: nnx.Module, trainable: Callable[[tuple[str, ...]], bool]
) -> tuple[Template, dict[str, Any], dict[str, Any]]:
  """Splits a model into its template, its trained parameters and the rest.

  Trained is every nnx.Param whose path (of strings, such as ('encoder', 'cls_token')) `trainable` accepts; the
  rest are the frozen ones and all other state (batch statistics, …). Both are nested dicts with string keys and arrays
  (or shapes, for a model out of nnx.eval_shape) as leaves.
  """
  graphdef, state = nnx.split(model)
  trained, rest, keys = {}, {}, []
  for path, variable in nnx.to_flat_state(state):
    value = variable.get_value()
    value = value if hasattr(value, 'dtype') else jnp.asarray(value)  # a plain number
    if _is_key(value):
      keys.append(path)
      value = _key_data(value)
    chosen = isinstance(variable, nnx.Param) and trainable(tuple(str(k) for k in path))
    (trained if chosen else rest)[path] = value
  return Template(graphdef, tuple(trained), tuple(rest), tuple(keys)), _nested(trained), _nested(rest)


def merge(template: Template, params: Mapping[str, Any], rest: Mapping[str, Any]) -> nnx.Module:
  """Returns the model with new variables that hold the given arrays; for use inside jax.jit and jax.grad too.

  What the model's call changes (batch statistics) is read back with `rest_of(template, model)`.
  """
  values = [(path, _leaf(params, path)) for path in template.trained]
  for path in template.rest:
    leaf = _leaf(rest, path)
    values.append((path, jax.random.wrap_key_data(leaf) if path in template.keys else leaf))
  return nnx.merge(template.graphdef, nnx.from_flat_state(values), copy=True)


def rest_of(template: Template, model: nnx.Module) -> dict[str, Any]:
  """Returns the arrays of `model` that are not trained, as `split` did: after a loss, its updated state."""
  variables = dict(nnx.to_flat_state(nnx.state(model)))
  values = {path: variables[path].get_value() for path in template.rest}
  return _nested({path: _key_data(value) if _is_key(value) else value for path, value in values.items()})


def _is_key(value: Any) -> bool:
  return jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)


def _key_data(key: Any) -> Any:
  """Returns a random key's data; for a shape, its shape."""
  return (
    jax.eval_shape(jax.random.key_data, key)
    if isinstance(key, jax.ShapeDtypeStruct)
    else jax.random.key_data(key)
  )


def _leaf(tree: Mapping[str, Any], path: tuple) -> jax.Array:
  for key in path:
    tree = tree[str(key)]
  return tree


def _nested(flat: Mapping[tuple, Any]) -> dict[str, Any]:
  tree = {}
  for path, value in flat.items():
    node = tree
    for key in path[:-1]:
      node = node.setdefault(str(key), {})
    node[str(path[-1])] = value
  return tree

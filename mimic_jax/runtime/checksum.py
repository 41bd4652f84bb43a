"""Checksums of arrays, computed where the arrays are: on the devices, whatever mesh they lie on, or in NumPy.

An array's bits are read as 32-bit words x_i, and Σ w_i · x_i modulo 2³² is taken twice with odd weights w_i that depend on
i. A change of one word by d ≠ 0 changes the sum by w_i · d, which an odd w_i keeps from being 0 modulo 2³²: one altered
byte, or several in one word, is always found, and anything else with a chance of 1 − 2⁻⁶⁴ or so. Integers wrap without
rounding, so the order of the sum, and with it the number of devices, makes no difference.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

# odd: the weights of the two sums are 2 · (i · multiplier) + 1, mixed
_MULTIPLIERS = (2654435761, 2246822519)


def of_arrays(arrays: Mapping[str, jax.Array]) -> dict[str, str]:
  """Returns name -> 16 hexadecimal digits of arrays on devices; reads back 8 bytes of each."""
  lies = next((a.sharding for a in arrays.values()), None)
  whole = NamedSharding(lies.mesh, PartitionSpec()) if isinstance(lies, NamedSharding) else None
  sums = np.asarray(jax.device_get(_on_devices(whole)(dict(arrays))))
  return {name: _text(row) for name, row in zip(sorted(arrays), sums, strict=True)}


def of_numpy(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
  """Returns what `of_arrays` does for arrays in memory."""
  with np.errstate(over='ignore'):
    return {name: _text(_sums(np, _words_of_numpy(a))) for name, a in arrays.items()}


@functools.cache
def _on_devices(whole: NamedSharding | None) -> Callable[[dict[str, jax.Array]], jax.Array]:
  """Returns the program whose result every device, and so every process, holds whole."""

  def sums(arrays: dict[str, jax.Array]) -> jax.Array:
    return jnp.stack([_sums(jnp, _words(arrays[name])) for name in sorted(arrays)])

  return jax.jit(sums, out_shardings=whole)


def _words(array: jax.Array) -> jax.Array:
  """Returns an array's bits as uint32 of its own shape; values of 64 bits get an axis of two more."""
  if array.dtype == jnp.bool_:
    return array.astype(jnp.uint32)
  size = array.dtype.itemsize
  kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[size]
  return jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)


def _words_of_numpy(array: np.ndarray) -> np.ndarray:
  size = array.dtype.itemsize
  kind = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}[size]
  shape = (*array.shape, 2) if size == 8 else array.shape
  return np.ascontiguousarray(array).reshape(-1).view(kind).reshape(shape).astype(np.uint32)


def _sums(xp: Any, words: Any) -> Any:
  """Returns uint32 [2], the weighted sums of words of any shape."""
  place = xp.zeros(words.shape, xp.uint32)
  stride = 1
  for axis in reversed(range(words.ndim)):
    along = [1] * words.ndim
    along[axis] = words.shape[axis]
    place = place + xp.arange(words.shape[axis], dtype=xp.uint32).reshape(along) * xp.uint32(stride % 2**32)
    stride *= words.shape[axis]
  sums = []
  for multiplier in _MULTIPLIERS:
    weight = place * xp.uint32(multiplier)
    weight = (weight ^ (weight >> xp.uint32(15))) * xp.uint32(2) + xp.uint32(1)
    sums.append(xp.sum(words * weight, dtype=xp.uint32))
  return xp.stack(sums)


def _text(sums: np.ndarray) -> str:
  return ''.join(f'{int(s):08x}' for s in sums)

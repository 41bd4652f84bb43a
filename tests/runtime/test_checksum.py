"""Checksums: the same on any mesh and in NumPy, and different for every altered byte."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mimic_jax.runtime import checksum, sharding


def arrays(rng):
  return {
    'a': rng.normal(size=(8, 6, 5)).astype(np.float32),
    'b': rng.integers(0, 2, 16).astype(bool),
    'c': np.float32(-0.0).reshape(()),
    'd': rng.integers(-9, 9, (16, 3)).astype(np.int32),
    'e': np.asarray(jnp.asarray(rng.normal(size=(4, 8)), jnp.bfloat16)),
    'f': np.zeros((0, 3), np.float32),
    'g': rng.integers(0, 255, 24).astype(np.uint8),
  }


def slow(array: np.ndarray) -> str:
  """The definition, word by word, with Python's integers."""
  raw, size = array.tobytes(), max(array.dtype.itemsize, 1)
  step = 4 if size == 8 else size
  words = [int.from_bytes(raw[i : i + step], 'little') for i in range(0, len(raw), step)]
  text = ''
  for multiplier in (2654435761, 2246822519):
    total = 0
    for i, word in enumerate(words):
      weight = i * multiplier % 2**32
      total += word * (2 * (weight ^ (weight >> 15)) + 1)
    text += f'{total % 2**32:08x}'
  return text


def test_devices_numpy_and_the_definition_agree(rng):
  held = arrays(rng)
  want = {name: slow(a) for name, a in held.items()}
  assert checksum.of_numpy(held) == want
  assert checksum.of_arrays({k: jnp.asarray(v) for k, v in held.items()}) == want
  assert checksum.of_numpy({'x': np.arange(3, dtype=np.float64)})['x'] == slow(np.arange(3, dtype=np.float64))


@pytest.mark.parametrize('fsdp', [1, 2, 8])
def test_the_mesh_makes_no_difference(fsdp, rng):
  mesh = sharding.make_mesh(-1, fsdp)
  held = {k: v for k, v in arrays(rng).items() if k in 'abd'}
  spec = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
  put = {k: jax.device_put(v, spec) for k, v in held.items()}
  assert checksum.of_arrays(put) == checksum.of_numpy(held)


def test_every_single_altered_byte_is_found(rng):
  held = arrays(rng)
  want = checksum.of_numpy(held)
  for name in 'abdeg':
    array = held[name]
    for at in rng.choice(array.nbytes, min(array.nbytes, 60), replace=False):
      raw = bytearray(array.tobytes())
      raw[at] ^= int(rng.integers(1, 256))
      altered = np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)
      assert checksum.of_numpy({name: altered})[name] != want[name]


def test_swapped_values_are_found(rng):
  array = rng.normal(size=200).astype(np.float32)
  seen = {checksum.of_numpy({'x': array})['x']}
  for i in range(199):
    other = array.copy()
    other[[i, i + 1]] = other[[i + 1, i]]
    seen.add(checksum.of_numpy({'x': other})['x'])
  assert len(seen) == 200

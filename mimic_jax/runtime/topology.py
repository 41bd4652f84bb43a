"""TPU slices that aren't there, by the TPU's own compiler: their chips, the memory of one, and what compiles for them."""

import importlib.util
import os
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from mimic_jax.runtime.errors import UserError

FORMS = 'v5e:XxY or v6e:XxY (2x2 to 16x16), v5p:XxYxZ (2x2x1, 4x4x4, …)'
# A device of these kinds is a chip.
_FORM = re.compile(r'v5e:\d+x\d+|v6e:\d+x\d+|v5p:\d+x\d+x\d+')
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40, 'P': 2**50}
_AMOUNT = r'(\d+(?:\.\d+)?)([KMGTP]?)'
_EXCEEDED = re.compile(rf'Used {_AMOUNT} of {_AMOUNT} hbm|\({_AMOUNT}\) exceeds available HBM \({_AMOUNT}\)')
# What libtpu would otherwise look for: the machine that hosts the chips, whoever else has loaded it, a place for its log.
_NOTHING_THERE = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5p-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_STDERR_LOG_LEVEL': '3',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


class Compiled(NamedTuple):
  """What came of compiling a program for a chip.

  Attributes:
    needed: bytes of a chip's memory; what the compiler last said it needs, where that is too much.
    limit: bytes that a program may use of a chip's memory.
    program: None where it does not fit.
  """

  needed: int
  limit: int
  program: jax.stages.Compiled | None


def devices(name: str) -> list[jax.Device]:
  """Returns the chips of a slice, fit for a mesh and for compiling, not for computing.

  Args:
    name: 'v5p:4x4x4'.

  Raises:
    UserError: when there is no such slice, or no libtpu.
  """
  if not _FORM.fullmatch(name):
    raise UserError(f"--topology is '{name}'; expected {FORMS}")
  if importlib.util.find_spec('libtpu') is None:
    raise UserError(
      "libtpu, the TPU's compiler, is not installed; expected pip install 'mimic-jax[plan]', best in an environment of its own"
    )
  for key, value in _NOTHING_THERE.items():
    os.environ.setdefault(key, value)
  jax.config.update('jax_platforms', 'cpu')
  # a program for what isn't there can't be read back
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    return list(topologies.get_topology_desc(name, platform='tpu').devices)
  except (jax.errors.JaxRuntimeError, ValueError) as e:
    why = ' '.join(str(e).split())
    raise UserError(f"--topology is '{name}' ({why[:200]}); expected {FORMS}") from e


def links(name: str) -> int:
  """Returns how many neighbours the chip of a slice with the fewest is linked to.

  A v5p slice of whole cubes of 4 × 4 × 4 is a torus (cloud.google.com/tpu/docs/v5p); of v5e and v6e an axis of 16 closes
  (jax-ml.github.io/scaling-book/tpus). Elsewhere a corner has one neighbour an axis.

  Args:
    name: 'v5p:4x4x4'.
  """
  chip, sizes = name.split(':')
  axes = [int(n) for n in sizes.split('x')]
  cubes = all(n % 4 == 0 for n in axes)
  return sum((2 if (cubes if chip == 'v5p' else n == 16) else 1) for n in axes if n > 1)


def amounts(said: str) -> tuple[int, int] | None:
  """Returns how many bytes are needed and how many there are, of what the compiler says when they do not fit."""
  if not (found := _EXCEEDED.search(said)):
    return None
  needed, n, limit, m = (x for x in found.groups() if x is not None)
  return round(float(needed) * _UNITS[n]), round(float(limit) * _UNITS[m])


def memory(device: jax.Device) -> int:
  """Returns the bytes that a program may use of a device's memory, as the compiler refuses a program of a terabyte."""
  here = jax.sharding.SingleDeviceSharding(device)
  try:
    jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((2**40,), jnp.int8, sharding=here)).compile()
  except jax.errors.JaxRuntimeError as e:
    if found := amounts(str(e)):
      return found[-1]
    raise
  raise RuntimeError(f'a terabyte fits {device.device_kind}')


def compiled(lowered: jax.stages.Lowered, limit: int) -> Compiled:
  """Compiles a program for the chips it was lowered for.

  Args:
    lowered: the program.
    limit: from `memory`.
  """
  try:
    program = lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e) or not (found := amounts(str(e))):
      raise
    return Compiled(found[0], found[-1], None)
  m = program.memory_analysis()
  needed = (
    m.argument_size_in_bytes
    + m.temp_size_in_bytes
    + m.output_size_in_bytes
    - m.alias_size_in_bytes
    + m.generated_code_size_in_bytes
  )
  return Compiled(needed, limit, program if needed <= limit else None)

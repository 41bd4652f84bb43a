"""What a compiled program says of itself: what it sends between devices, and what it needs beside its arguments."""

import collections
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_CALL = re.compile(rf'= (.+?) ({"|".join(KINDS)})(?:-start)?\(')
_ARRAY = re.compile(r'\b(pred|bf16|[suf]\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]')
_TYPES = {'pred': 'bool', 'bf16': 'bfloat16', 's': 'int', 'u': 'uint', 'f': 'float'}


class Collective(NamedTuple):
  """Arrays of one shape that devices send to each other in one way.

  Attributes:
    kind: of KINDS.
    dtype, shape: of the result on a device.
    bytes: of one.
    count: how many there are in the program; what a loop does is counted once.
  """

  kind: str
  dtype: str
  shape: tuple[int, ...]
  bytes: int
  count: int


def _dtype(name: str) -> jnp.dtype:
  return jnp.dtype(_TYPES[name] if name in _TYPES else _TYPES[name[0]] + name[1:])


def collectives(program: jax.stages.Compiled) -> list[Collective]:
  """Returns what a program sends between devices, most bytes first; of several arrays sent as one, each."""
  found: collections.Counter[tuple[str, str, tuple[int, ...]]] = collections.Counter()
  for result, kind in _CALL.findall(program.as_text()):
    for dtype, sizes in _ARRAY.findall(result):
      found[kind, dtype, tuple(int(n) for n in sizes.split(',') if n)] += 1
  rows = [
    Collective(kind, _dtype(name).name, shape, math.prod(shape) * _dtype(name).itemsize, count)
    for (kind, name, shape), count in found.items()
  ]
  return sorted(rows, key=lambda r: (-r.bytes * r.count, r.kind, r.shape))


def summary(program: jax.stages.Compiled) -> dict[str, Any]:
  """Returns a program's temporaries, arguments and results in bytes on a device, and its collectives, ready for JSON."""
  memory = program.memory_analysis()
  return {
    'temporaries': int(memory.temp_size_in_bytes),
    'arguments': int(memory.argument_size_in_bytes),
    'results': int(memory.output_size_in_bytes),
    'collectives': [row._asdict() for row in collectives(program)],
  }

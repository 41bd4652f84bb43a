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
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\{$')
_CALLED = re.compile(r'\b(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BELOW = re.compile(r'ROOT .* compare\(.*?%([\w.-]+)\), direction=LT')
_TYPES = {'pred': 'bool', 'bf16': 'bfloat16', 's': 'int', 'u': 'uint', 'f': 'float'}


class Collective(NamedTuple):
  """Arrays of one shape that devices send to each other in one way.

  Attributes:
    kind: of KINDS.
    dtype, shape: of the result on a device.
    bytes: of one.
    count: how many there are in the program; what a loop does is counted once.
    times: how often a device does it, loops counted as often as they run.
  """

  kind: str
  dtype: str
  shape: tuple[int, ...]
  bytes: int
  count: int
  times: int


def _dtype(name: str) -> jnp.dtype:
  return jnp.dtype(_TYPES[name] if name in _TYPES else _TYPES[name[0]] + name[1:])


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
  """Returns the name of a program's entry, and the lines of each of its computations."""
  entry, lines, parts = '', [], {}
  for line in text.splitlines():
    if found := _COMPUTATION.match(line):
      lines = parts.setdefault(found[2], [])
      entry = found[2] if found[1] else entry
    else:
      lines.append(line)
  return entry, parts


def _trips(line: str, condition: list[str]) -> int:
  """Returns how often a loop runs: as it says itself, or as the number that its condition counts up to."""
  if found := _TRIPS.search(line):
    return int(found[1])
  if limit := _BELOW.search('\n'.join(condition)):
    number = re.search(rf'%{re.escape(limit[1])} = s\d+\[\].* constant\((\d+)\)', '\n'.join(condition))
    return int(number[1]) if number else 1
  return 1


def _runs(entry: str, parts: dict[str, list[str]]) -> dict[str, int]:
  """Returns how often each computation runs; a loop whose number of rounds is not in the program counts once."""
  runs: collections.Counter[str] = collections.Counter()

  def visit(name: str, times: int) -> None:
    runs[name] += times
    for line in parts[name]:
      called = dict(_CALLED.findall(line))
      rounds = _trips(line, parts[called['condition']]) if 'condition' in called else 1
      for branches in _BRANCHES.findall(line):
        called |= {b: b for b in re.findall(r'[\w.-]+', branches)}
      for other in called.values():
        visit(other, times * rounds)

  visit(entry, 1)
  return runs


def collectives(program: jax.stages.Compiled) -> list[Collective]:
  """Returns what a program sends between devices, most bytes first; of several arrays sent as one, each."""
  entry, parts = _computations(program.as_text())
  runs = _runs(entry, parts)
  counts: collections.Counter[tuple[str, str, tuple[int, ...]]] = collections.Counter()
  times: collections.Counter[tuple[str, str, tuple[int, ...]]] = collections.Counter()
  for part, lines in parts.items():
    for result, kind in _CALL.findall('\n'.join(lines)):
      for dtype, sizes in _ARRAY.findall(result):
        what = (kind, dtype, tuple(int(n) for n in sizes.split(',') if n))
        counts[what] += 1
        times[what] += runs[part]
  rows = [
    Collective(kind, _dtype(name).name, shape, math.prod(shape) * _dtype(name).itemsize, count, times[what])
    for what, count in counts.items()
    for kind, name, shape in [what]
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


def cost(program: jax.stages.Compiled) -> dict[str, float]:
  """Returns a program's `flops`, `bytes` moved and `seconds` on a device as its compiler estimates them; loops count once.

  A compiler that leaves one out has no such key.
  """
  said = program.cost_analysis()
  names = {'flops': 'flops', 'bytes': 'bytes accessed', 'seconds': 'optimal_seconds'}
  return {key: float(said[name]) for key, name in names.items() if name in said}

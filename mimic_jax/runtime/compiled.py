"""What a compiled program says of itself: what it sends between devices, and what it needs beside its arguments."""

import collections
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_CALL = re.compile(rf'= (.+?) ({"|".join(KINDS)})(-start)?\((.*?)\)(?:, (.*))?$', re.MULTILINE)
# The devices of the first group, how many a group has, or the axes of a mesh that it goes along, some of them in part.
_GROUP = re.compile(r'replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]<=|mesh\[(.*?)\].*?\{(.*?)\})')
# when begun apart, the result is operands, results, what else is needed
_WITH_OPERANDS = ('all-gather', 'collective-permute')
_ARRAY = re.compile(r'\b(pred|bf16|[suf]\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\]')
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\{$')
_CALLED = re.compile(r'\b(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_INSTRUCTION = re.compile(r'^ *(ROOT )?%([\w.-]+) = .*? ([a-z][a-z-]*)\((.*?)\)(?:, |$)(.*)')
_TYPES = {'pred': 'bool', 'bf16': 'bfloat16', 's': 'int', 'u': 'uint', 'f': 'float'}


class Collective(NamedTuple):
  """Arrays of one shape that devices send to each other in one way.

  Attributes:
    kind: of KINDS.
    dtype, shape: of the result on a device.
    bytes: of one.
    group: how many devices do it together.
    count: how many there are in the program; what a loop does is counted once.
    times: how often a device does it, loops counted as often as they run.
  """

  kind: str
  dtype: str
  shape: tuple[int, ...]
  bytes: int
  group: int
  count: int
  times: int

  @property
  def sent(self) -> float:
    """Bytes that a device sends for one: a ring's, which sends no more than it must; a permutation's as they are."""
    n = self.group
    shares = {'all-reduce': 2 * (n - 1) / n, 'reduce-scatter': n - 1, 'collective-permute': 1}
    return self.bytes * shares.get(self.kind, (n - 1) / n)


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


class _Instruction(NamedTuple):
  kind: str = ''
  operands: tuple[str, ...] = ()
  how: str = ''


def _instructions(lines: list[str]) -> tuple[_Instruction, dict[str, _Instruction]]:
  """Returns a computation's root, and its instructions by name."""
  root, found = _Instruction(), {}
  for line in lines:
    if m := _INSTRUCTION.match(line):
      found[m[2]] = _Instruction(m[3], tuple(re.findall(r'%?([\w.-]+)(?:, |$)', m[4])), m[5])
      root = found[m[2]] if m[1] else root
  return root, found


def _trips(line: str, condition: list[str], body: list[str]) -> int:
  """Returns how often a loop runs: as it says itself, or as its counter shows, which begins at 0; 1 where neither is there."""
  if found := _TRIPS.search(line):
    return int(found[1])
  test, tests = _instructions(condition)
  after, does = _instructions(body)

  def number(instructions: dict[str, _Instruction], name: str) -> int:
    made = instructions.get(name, _Instruction())
    return int(made.operands[0]) if made.kind == 'constant' and made.operands[0].isdigit() else 0

  if test.kind != 'compare' or 'direction=LT' not in test.how or not (end := number(tests, test.operands[1])):
    return 1
  place = re.search(r'index=(\d+)', tests.get(test.operands[0], _Instruction()).how)
  counted = does.get(after.operands[int(place[1])]) if place and int(place[1]) < len(after.operands) else None
  steps = [number(does, x) for x in counted.operands] if counted and counted.kind == 'add' else []
  return math.ceil(end / max([*steps, 1]))


def _runs(entry: str, parts: dict[str, list[str]]) -> dict[str, int]:
  """Returns how often each computation runs; a loop whose number of rounds is not in the program counts once."""
  runs: collections.Counter[str] = collections.Counter()

  def visit(name: str, times: int) -> None:
    runs[name] += times
    for line in parts[name]:
      called = dict(_CALLED.findall(line))
      rounds = _trips(line, parts[called['condition']], parts[called['body']]) if 'condition' in called else 1
      for branches in _BRANCHES.findall(line):
        called |= {b: b for b in re.findall(r'[\w.-]+', branches)}
      for other in called.values():
        visit(other, times * rounds)

  visit(entry, 1)
  return runs


def _group(how: str, devices: int) -> int:
  """Returns how many devices send to each other; all `devices` where no groups are named."""
  if not (found := _GROUP.search(how)):
    return devices
  members, count, mesh, axes = found.groups()
  if not mesh:
    return int(count or members.count(',') + 1)
  sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh))
  named = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes)
  return math.prod(int(part or sizes[axis]) for axis, part in named)


def collectives(program: jax.stages.Compiled) -> list[Collective]:
  """Returns what a program sends between devices, most bytes first; of several arrays sent as one, each."""
  text = program.as_text()
  entry, parts = _computations(text)
  runs = _runs(entry, parts)
  everyone = re.search(r'num_partitions=(\d+)', text)
  devices = int(everyone[1]) if everyone else 1
  counts: collections.Counter[tuple[str, str, tuple[int, ...], int]] = collections.Counter()
  times: collections.Counter[tuple[str, str, tuple[int, ...], int]] = collections.Counter()
  for part, lines in parts.items():
    for result, kind, begun, operands, how in _CALL.findall('\n'.join(lines)):
      arrays, n = _ARRAY.findall(result), operands.count('%')
      for dtype, sizes in arrays[n : 2 * n] if begun and kind in _WITH_OPERANDS else arrays:
        what = (kind, dtype, tuple(int(n) for n in sizes.split(',') if n), _group(how, devices))
        counts[what] += 1
        times[what] += runs[part]
  rows = [
    Collective(
      kind, _dtype(name).name, shape, math.prod(shape) * _dtype(name).itemsize, group, count, times[what]
    )
    for what, count in counts.items()
    for kind, name, shape, group in [what]
  ]
  return sorted(rows, key=lambda r: (-r.bytes * r.count, r.kind, r.shape))


def loops(program: jax.stages.Compiled) -> int:
  """Returns how many loops a program has that run more than once, which `cost` counts once."""
  entry, parts = _computations(program.as_text())
  runs = _runs(entry, parts)
  called = [dict(_CALLED.findall(line)) for part in runs for line in parts[part]]
  return sum('body' in c and runs[c['body']] > 1 for c in called)


def summary(program: jax.stages.Compiled) -> dict[str, Any]:
  """Returns a program's temporaries, arguments and results in bytes on a device, and its collectives, ready for JSON."""
  memory = program.memory_analysis()
  return {
    'temporaries': int(memory.temp_size_in_bytes),
    'arguments': int(memory.argument_size_in_bytes),
    'results': int(memory.output_size_in_bytes),
    'collectives': [{**row._asdict(), 'sent': row.sent} for row in collectives(program)],
  }


def cost(program: jax.stages.Compiled) -> dict[str, float]:
  """Returns a program's `flops`, `bytes` moved and `seconds` on a device as its compiler estimates them; loops count once.

  A compiler that leaves one out has no such key.
  """
  said = program.cost_analysis()
  names = {'flops': 'flops', 'bytes': 'bytes accessed', 'seconds': 'optimal_seconds'}
  return {key: float(said[name]) for key, name in names.items() if name in said}

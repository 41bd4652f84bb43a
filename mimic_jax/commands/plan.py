"""Says whether a stage's step fits a TPU slice that isn't there, and about how long a run would take.

  mimic plan --config pretrain_imagenet1k:vitb16 --topology v5p:4x4x4 [--batch 4096] [--mesh data=16,fsdp=4]
  mimic plan … --estimate --images 1281167 --price 4.20

Compiles the real step for the slice with the TPU's own compiler (pip install 'mimic-jax[plan]') and prints the memory of a chip
and what chips send each other. For a step that does not fit it tries, in this order, weights split over `fsdp`, blocks computed
anew in the backward pass, a batch in parts and a smaller one, and prints the first that compiles and fits.

--estimate unrolls the blocks and compiles once more, which takes minutes, for what the compiler makes of FLOPs, bytes and
seconds: a loop it counts once. Those are of chips that do everything as fast as they can, with no time for the network: what that
takes at least stands beside it. --images and --price turn the seconds into hours, chip-hours and a cost. No step was run, and reading pictures,
evaluation and checkpoints are not in it. Needs neither the chips nor the data.
"""

import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from mimic_jax.models import vit
from mimic_jax.runtime import chips as chips_lib
from mimic_jax.runtime import cli, compiled, files, sharding, topology
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import planned
from mimic_jax.training import step as step_lib

GIB = 2**30
# Of a chip's memory, what the state may take before splitting it further is no longer worth more traffic.
STATE_SHARE = 1 / 8

Compile = Callable[[Sequence[str]], tuple[step_lib.Program, topology.Compiled]]


def merged(changes: Sequence[str], more: Sequence[str]) -> list[str]:
  """Returns flags that change a config, without those that a later one undoes."""
  last = {re.sub(r'^--?', '', flag.partition('=')[0]): flag for flag in [*changes, *more]}
  return list(last.values())


def advice(
  config: Mapping[str, Any], name: str, chips: int, state: int, limit: int
) -> Iterator[tuple[str, list[str]]]:
  """Yields what may make a step fit, least costly first: in words, and as flags of the config. Each keeps what came before.

  Args:
    config: that does not fit.
    name: of the stage.
    chips: of the slice.
    state: bytes of the whole state.
    limit: bytes that a program may use of a chip's memory.
  """
  stage, words, flags = config[name], [], []
  fsdp, remat = config['mesh']['fsdp'], config['model']['remat']
  wider = [n for k in range(1, chips.bit_length()) if chips % (n := fsdp << k) == 0]
  if wider and state / fsdp > STATE_SHARE * limit:
    enough = [n for n in wider if state / n <= STATE_SHARE * limit]
    n = enough[0] if enough else wider[-1]
    words.append(f'fsdp {n}')
    flags += [f'--config.mesh.data={chips // n}', f'--config.mesh.fsdp={n}']
    yield ', '.join(words), list(flags)
  levels = tuple(vit.REMATS)
  for level in levels[levels.index('dots' if remat == 'auto' else remat) + 1 :]:
    yield ', '.join([*words, f'remat {level}']), [*flags, f'--config.model.remat={level}']
  best = [] if config['model']['preset'].startswith('resnet') else ['--config.model.remat=full']
  words += ['remat full'] if best else []
  flags += best
  rows, parts = stage['batch_images'] // chips, stage['accumulate']
  for n in (2 * parts, 4 * parts, 8 * parts):
    if rows % n == 0:
      yield ', '.join([*words, f'accumulate {n}']), [*flags, f'--config.{name}.accumulate={n}']
  for n in (2, 4, 8):
    if rows % (n * parts) == 0:
      batch = stage['batch_images'] // n
      yield ', '.join([*words, f'batch {batch}']), [*flags, f'--config.{name}.batch_images={batch}']


def first_that_fits(
  rungs: Iterator[tuple[str, list[str]]], compile_: Compile
) -> tuple[list[str] | None, list[dict[str, Any]]]:
  """Tries one after the other.

  Args:
    rungs: from `advice`.
    compile_: flags → what came of compiling; raises UserError where a config is not allowed.

  Returns:
    The flags of the first that fits, None where none does, and what was tried: {'what', 'needed', 'fits'}, where `needed` is
    None for what the config does not allow.
  """
  tried = []
  for what, flags in rungs:
    try:
      _, got = compile_(flags)
    except UserError:
      tried.append({'what': what, 'needed': None, 'fits': False})
      continue
    tried.append({'what': what, 'needed': got.needed, 'fits': got.program is not None})
    if got.program is not None:
      return flags, tried
  return None, tried


def sent(collectives: Sequence[Mapping[str, Any]]) -> dict[str, int]:
  """Returns the bytes of the results of each kind of collective in a step of a chip, loops counted as often as they run."""
  totals: dict[str, int] = {}
  for c in collectives:
    totals[c['kind']] = totals.get(c['kind'], 0) + c['bytes'] * c['times']
  return totals


def sending(collectives: Sequence[Mapping[str, Any]], rate: float) -> float:
  """Returns the seconds that a chip takes at least to send what it does in a step, one after the other.

  Args:
    collectives: of `compiled.summary`.
    rate: bytes per second of all its links, one way; each array is taken to be spread over all.
  """
  return sum(c['sent'] * c['times'] for c in collectives) / rate


def run_of(steps: int, seconds: float, chips: int, price: float) -> dict[str, float]:
  """Returns what a run takes: `steps`, `hours`, `chip_hours` and, where a chip-hour has a price, `cost`."""
  hours = steps * seconds / 3600
  found = {'steps': steps, 'hours': hours, 'chip_hours': hours * chips}
  return {**found, 'cost': found['chip_hours'] * price} if price else found


def _measured(program: step_lib.Program, got: topology.Compiled) -> dict[str, Any]:
  found: dict[str, Any] = {'needed': got.needed, 'limit': got.limit, 'fits': got.program is not None}
  if got.program is not None:
    found |= compiled.summary(got.program)
    found['sent'] = sent(found['collectives'])
  state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.abstract))
  return {**found, 'state': state}


def _said(found: Mapping[str, Any]) -> list[str]:
  """Returns the lines on memory and traffic."""
  needed, limit = found['needed'] / GIB, found['limit'] / GIB
  if not found['fits']:
    return [f'does not fit: {needed:.2f} GiB of {limit:.2f} GiB a chip, {needed - limit:.2f} GiB too much']
  lines = [
    f'fits: {needed:.2f} GiB of {limit:.2f} GiB a chip, {limit - needed:.2f} GiB to spare '
    f'(state and batch {found["arguments"] / GIB:.2f}, temporaries {found["temporaries"] / GIB:.2f})'
  ]
  each = [f'{kind} {total / 1e6:,.1f} MB' for kind, total in found['sent'].items()]
  return [*lines, f'sent in a step, of a chip: {", ".join(each) or "nothing"}']


def _plain(x: float) -> str:
  return f'{x:,.0f}' if x >= 100 else f'{x:.3g}'


def _estimate(whole: topology.Compiled, steps: int, chips: int, price: float, rate: float) -> dict[str, Any]:
  """Prints what a step without loops takes, and a run of `steps` (0 = not known); returns it as `estimate` and `run`.

  Args:
    whole: the step without loops.
    steps: of the run.
    chips: of the slice.
    price: of a chip-hour, 0 = not known.
    rate: bytes per second that a chip sends.
  """
  if whole.program is None:
    print('no estimate: with unrolled blocks it does not fit')
    return {}
  step = compiled.cost(whole.program)
  print(
    f'estimate of the compiler, a step of a chip: {step["seconds"] * 1e3:,.1f} ms, {step["flops"] / 1e12:,.2f} TFLOP, '
    f'{step["bytes"] / 1e9:,.1f} GB moved'
  )
  step['sending_seconds'] = sending(compiled.summary(whole.program)['collectives'], rate)
  step['sending_share'] = step['sending_seconds'] / (step['sending_seconds'] + step['seconds'])
  print(
    f'estimate of the network, a step of a chip: at least {step["sending_seconds"] * 1e3:,.2f} ms at {rate / 1e9:,.0f} GB/s, '
    f'{step["sending_share"]:.1%} of the step if nothing is computed meanwhile'
  )
  if left := compiled.loops(whole.program):
    print(
      f'too low: {left} loops are left in it, which exchange weights while they multiply, and are counted once'
    )
  step['loops'] = left
  if not steps:
    return {'estimate': step}
  run = run_of(steps, step['seconds'], chips, price)
  paid = f', {_plain(run["cost"])} at {price} a chip-hour' if price else ''
  print(
    f'estimate of the run: {steps:,} steps, {_plain(run["hours"])} hours of {chips} chips, {_plain(run["chip_hours"])} chip-hours{paid}'
  )
  return {'estimate': step, 'run': run}


def _unrolled(program: step_lib.Program, config: Mapping[str, Any], name: str) -> list[str]:
  """Returns the flags that leave no loop in a step; raises UserError when there is one that can't be unrolled."""
  if config[name]['accumulate'] > 1:
    raise UserError(
      f'config.{name}.accumulate is {config[name]["accumulate"]}; expected 1 for --estimate: the parts of a batch are a loop, '
      'which the compiler counts once'
    )
  return ['--config.model.scan=False'] if getattr(program.objective.config, 'scan', False) else []


def _mesh_flags(text: str) -> list[str]:
  """Returns the config's flags that --mesh data=16,fsdp=4 stands for."""
  if not text:
    return []
  parts = [re.fullmatch(r'(data|fsdp)=(-?\d+)', part.strip()) for part in text.split(',')]
  if not all(parts):
    raise UserError(f"--mesh is '{text}'; expected data=N,fsdp=M or one of them")
  return [f'--config.mesh.{m[1]}={m[2]}' for m in parts if m]


def _parser() -> cli.Parser:
  parser = planned.parser('plan', __doc__)
  add = parser.add_argument
  add('--topology', required=True, help=topology.FORMS)
  add('--batch', type=int, default=0, help='short for --config.STAGE.batch_images')
  add('--mesh', default='', help='data=N,fsdp=M, short for --config.mesh.data and .fsdp')
  add('--estimate', action='store_true', help='compile with unrolled blocks, too: FLOPs, bytes, seconds')
  add('--images', type=int, default=0, help='of the training set, for the number of steps and hours')
  add('--price', type=float, default=0.0, help='of a chip-hour, in whatever money')
  add('--no-advice', action='store_true', help='try nothing else when it does not fit')
  add('--json', default='', help='file to write all of it to')
  return parser


def _stage(
  given: Any, changes: list[str], name: str, devices: Sequence[jax.Device], limit: int
) -> dict[str, Any]:
  """Plans a stage: prints what is found, returns it."""

  def compile_(flags: Sequence[str]) -> tuple[step_lib.Program, topology.Compiled]:
    config = planned.configured(given.config, merged(changes, flags))
    mesh = sharding.make_mesh(config['mesh']['data'], config['mesh']['fsdp'], devices)
    program = planned.program(config, name, mesh, given.classes, given.images)
    began = time.monotonic()
    print(' '.join(['compiling', *flags, '…']), file=sys.stderr, flush=True)
    got = topology.compiled(program.lower(), limit)
    print(f'compiled in {time.monotonic() - began:.0f} s', file=sys.stderr, flush=True)
    return program, got

  config, chips = planned.configured(given.config, changes), len(devices)
  mesh = sharding.make_mesh(config['mesh']['data'], config['mesh']['fsdp'], devices)
  shape, batch = dict(mesh.shape), config[name]['batch_images']
  print(
    f'stage {name} on {given.topology}: {chips} chips, data={shape["data"]}, fsdp={shape["fsdp"]}, batch {batch:,}'
  )
  program, got = compile_([])
  found = {'topology': given.topology, 'chips': chips, 'mesh': shape, 'batch_images': batch}
  found |= _measured(program, got)
  print('\n'.join(_said(found)), flush=True)
  if found['fits'] and given.estimate:
    flags = _unrolled(program, config, name)
    _, whole = compile_(flags) if flags else (program, got)
    steps = program.total_steps if given.images or config[name]['steps'] else 0
    rate = chips_lib.link(devices[0].device_kind) * topology.links(given.topology)
    found |= _estimate(whole, steps, chips, given.price, rate)
  if not found['fits'] and not given.no_advice:
    flags, found['tried'] = first_that_fits(advice(config, name, chips, found['state'], limit), compile_)
    for t in found['tried']:
      needed = f'{t["needed"] / GIB:.2f} GiB' if t['needed'] else 'this config does not allow it'
      print(f'tried {t["what"]}: {needed}{", fits" if t["fits"] else ""}')
    found['advice'] = None
    if flags is not None:
      command = ['mimic', 'plan', '--config', given.config, '--topology', given.topology, '--stage', name]
      found['advice'] = shlex.join([*command, *merged(changes, flags)])
    print(f'fits: {found["advice"]}' if flags else 'nothing on the list fits; expected a larger slice')
  return found


def main(argv: Sequence[str]) -> None:
  """Runs the command line without the program's name; raises UserError."""
  given, changes, _, names = planned.parsed(_parser(), argv)
  for flag, value in (('--batch', given.batch), ('--images', given.images), ('--price', given.price)):
    if value < 0:
      raise UserError(f'{flag} is {value}; expected a number above 0')
  changes = merged(changes, _mesh_flags(given.mesh))
  if given.batch:
    changes = merged(changes, [f'--config.{name}.batch_images={given.batch}' for name in names])
  devices = topology.devices(given.topology)
  limit = topology.memory(devices[0])
  whole: dict[str, Any] = {'versions': cli.installed('jax', 'libtpu'), 'stages': {}}
  for name in names:
    whole['stages'][name] = _stage(given, changes, name, devices, limit)
    print()
  versions = ', '.join(f'{k} {v}' for k, v in whole['versions'].items())
  print(f'compiled by {versions}; nothing was run, all of this is an estimate')
  if given.json:
    files.write_json(epath.Path(given.json), whole)

"""Plans for slices that are not there: arithmetic, advice and errors with a stand-in compiler, and a small step with the real one."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

from mimic_jax import config as config_lib
from mimic_jax.commands import plan
from mimic_jax.runtime import sharding, topology
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import planned

GIB = 2**30


def config_of(*flags):
  return config_lib.parse(['plan', '--config=pretrain_imagenet1k:vitb16', *flags]).config


def test_hours_and_cost_are_steps_times_seconds_times_chips():
  # 1,600 epochs of 1,281,167 pictures at 4,096 are 500,456 steps; at 25 ms 3.475 hours of 64 chips.
  run = plan.run_of(500_456, 0.025, 64, 4.2)
  assert run['hours'] == pytest.approx(3.47539, abs=1e-4)
  assert run['chip_hours'] == pytest.approx(222.4249, abs=1e-3)
  assert run['cost'] == pytest.approx(934.1845, abs=1e-2)
  assert 'cost' not in plan.run_of(10, 1.0, 4, 0.0)


def test_the_steps_are_those_of_the_epochs():
  program = planned.program(config_of(), 'pretrain', sharding.make_mesh(8, 1), images=1_281_167)
  assert program.total_steps == round(1600 * 1_281_167 / 4096)


def test_what_is_sent_counts_a_loop_as_often_as_it_runs():
  rows = [
    {'kind': 'all-reduce', 'bytes': 10, 'count': 1, 'times': 12},
    {'kind': 'all-gather', 'bytes': 5, 'count': 2, 'times': 2},
    {'kind': 'all-reduce', 'bytes': 1, 'count': 1, 'times': 1},
  ]
  assert plan.sent(rows) == {'all-reduce': 121, 'all-gather': 10}


def test_sending_takes_what_is_sent_over_all_links_as_often_as_the_step_does_it():
  rows = [{'sent': 10e9, 'times': 12}, {'sent': 30e9, 'times': 1}]
  assert plan.sending(rows, 600e9) == pytest.approx(0.25)


@pytest.mark.parametrize(
  ('name', 'links'),
  [
    ('v5p:2x2x1', 2),
    ('v5p:2x2x2', 3),
    ('v5p:2x4x4', 3),  # no whole cube
    ('v5p:4x4x4', 6),
    ('v5p:4x8x8', 6),
    ('v5e:2x4', 2),
    ('v5e:8x16', 3),
    ('v6e:16x16', 4),
  ],
)
def test_a_torus_has_more_links_than_a_mesh(name, links):
  assert topology.links(name) == links


def test_a_later_flag_undoes_an_earlier_one():
  assert plan.merged(['--config.mesh.fsdp=2', '-config.seed=1'], ['--config.seed=2', '--config.x=']) == [
    '--config.mesh.fsdp=2',
    '--config.seed=2',
    '--config.x=',
  ]


def rungs(state, *flags):
  return list(plan.advice(config_of(*flags), 'pretrain', 64, state, 16 * GIB))


def test_advice_goes_from_what_costs_little_to_what_costs_much_and_keeps_what_came_before():
  found = rungs(8 * GIB)
  assert [what for what, _ in found] == [
    'fsdp 4',
    'fsdp 4, remat weight_dots',
    'fsdp 4, remat full',
    *(f'fsdp 4, remat full, accumulate {n}' for n in (2, 4, 8)),
    *(f'fsdp 4, remat full, batch {n}' for n in (2048, 1024, 512)),
  ]
  assert found[3][1] == [
    '--config.mesh.data=16',
    '--config.mesh.fsdp=4',
    '--config.model.remat=full',
    '--config.pretrain.accumulate=2',
  ]
  for _, flags in found:
    config_of(*flags)


def test_advice_leaves_out_what_would_not_help_or_is_there_already():
  assert rungs(GIB)[0][0] == 'remat weight_dots'  # a state that is small enough already
  assert rungs(GIB, '--config.model.remat=full')[0][0] == 'remat full, accumulate 2'
  assert 'fsdp 64' in rungs(10**4 * GIB)[0][0]  # all that there are, though it is not enough
  resnet = rungs(GIB, '--config.model.preset=resnet18')
  assert not any('remat' in flag for what, flags in resnet[2:] for flag in flags)
  last = rungs(GIB, '--config.pretrain.batch_images=64')  # a picture a chip
  assert [what for what, _ in last] == ['remat weight_dots', 'remat full']


def test_the_first_that_fits_is_taken_and_what_is_not_allowed_is_passed_over():
  seen = []

  def compile_(flags):
    seen.append(flags)
    if flags == ['b']:
      raise UserError('not of a pair loss')
    return None, topology.Compiled(30, 20, None) if flags == ['a'] else topology.Compiled(10, 20, object())

  flags, tried = plan.first_that_fits(iter([(k, [k]) for k in 'abcd']), compile_)
  assert flags == ['c']
  assert seen == [['a'], ['b'], ['c']]
  assert tried == [
    {'what': 'a', 'needed': 30, 'fits': False},
    {'what': 'b', 'needed': None, 'fits': False},
    {'what': 'c', 'needed': 10, 'fits': True},
  ]
  assert plan.first_that_fits(iter([('a', ['a'])]), compile_)[0] is None


@pytest.fixture
def stand_in(monkeypatch):
  """Has eight CPU devices for chips, on which only a step with remat fits; programs are not compiled."""
  monkeypatch.setattr(topology, 'devices', lambda name: jax.devices())
  monkeypatch.setattr(topology, 'memory', lambda device: 16 * GIB)
  monkeypatch.setattr(topology, 'compiled', lambda lowered, limit: topology.Compiled(20 * GIB, limit, None))


def test_what_does_not_fit_says_by_how_much_and_gives_a_command_that_can_be_copied(
  stand_in, monkeypatch, capsys, tmp_path
):
  real = planned.program

  def program(config, *rest):
    fits = config['model']['remat'] == 'full'
    one = jax.jit(lambda x: x).lower(1.0).compile()
    got = topology.Compiled(10 * GIB, 16 * GIB, one) if fits else topology.Compiled(20 * GIB, 16 * GIB, None)
    monkeypatch.setattr(topology, 'compiled', lambda lowered, limit: got)
    return real(config, *rest)

  monkeypatch.setattr(planned, 'program', program)
  file = tmp_path / 'plan.json'
  plan.main(['--config', 'quickstart', '--topology', 'v5e:2x4', '--stage', 'pretrain', '--json', str(file)])
  out = capsys.readouterr().out
  assert 'stage pretrain on v5e:2x4: 8 chips, data=8, fsdp=1, batch' in out
  assert 'does not fit: 20.00 GiB of 16.00 GiB a chip' in out
  command = 'mimic plan --config quickstart --topology v5e:2x4 --stage pretrain --config.model.remat=full'
  assert f'fits: {command}' in out
  found = json.loads(file.read_text())['stages']['pretrain']
  assert found['advice'] == command
  assert [t['fits'] for t in found['tried']] == [False, True]


def test_where_nothing_fits_it_says_so(stand_in, capsys):
  plan.main(['--config', 'quickstart', '--topology', 'v5e:2x4', '--stage', 'finetune'])
  out = capsys.readouterr().out
  assert 'does not fit: 20.00 GiB of 16.00 GiB a chip, 4.00 GiB too much' in out
  assert 'accumulate 2: this config does not allow it' in out  # a loss over pairs
  assert 'nothing on the list fits' in out


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--mesh=data=3,fsdp=2'], r'config.mesh is data=3, fsdp=2; expected a product of 8'),
    (['--mesh=rows=3'], r"--mesh is 'rows=3'; expected data=N,fsdp=M"),
    (['--batch=12'], r'config.pretrain.batch_images is 12; expected a multiple of 8'),
    (['--batch=-8'], r'--batch is -8; expected a number above 0'),
    (['--stage=nope'], r"--stage is 'nope'; expected one of"),
    (['--config.model.dims=3'], r"there is no field 'dims'"),
  ],
)
def test_a_wrong_flag_is_named(flags, message, stand_in):
  with pytest.raises(UserError, match=message):
    plan.main(['--config', 'quickstart', '--topology', 'v5e:2x4', *flags])


@pytest.mark.parametrize('name', ['v5p', 'v5p:4x4', 'v9:2x2', 'v5e:2x2x2', '8'])
def test_an_unknown_slice_is_named_with_the_forms_there_are(name):
  with pytest.raises(UserError, match=rf"--topology is '{name}'; expected v5e:XxY"):
    topology.devices(name)


def test_without_libtpu_the_extra_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match=r"libtpu.* is not installed; expected pip install 'mimic-jax\[plan\]'"):
    topology.devices('v5p:4x4x4')


@pytest.mark.parametrize(
  ('said', 'found'),
  [
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (2.00T) exceeds available HBM '
      '(15.75G).',
      (2 * 2**40, 15.75 * GIB),
    ),
    (
      'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 16.90G of 15.75G hbm. '
      'Exceeded hbm capacity by 1.15G.',
      (16.9 * GIB, 15.75 * GIB),
    ),
    ('RESOURCE_EXHAUSTED: of something else', None),
  ],
)
def test_the_compiler_says_what_is_needed_and_what_there_is(said, found):
  assert topology.amounts(said) == (found and tuple(map(round, found)))


def test_the_real_compiler_plans_a_small_step(tmp_path):
  pytest.importorskip('libtpu')
  code = (
    'import sys, json; from mimic_jax.commands import plan; '
    'plan.main(["--config", "quickstart", "--topology", "v5e:2x4", "--stage", "pretrain", "--estimate", "--json", sys.argv[1], '
    '"--config.model.depth=1", "--config.pretrain.mae.decoder_depth=1"])'
  )
  file = tmp_path / 'plan.json'
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  done = subprocess.run([sys.executable, '-c', code, str(file)], capture_output=True, text=True, env=env)
  assert done.returncode == 0, done.stderr
  found = json.loads(file.read_text())['stages']['pretrain']
  assert found['fits']
  assert found['limit'] == 15.75 * GIB
  assert found['chips'] == 8
  assert found['sent']['all-reduce'] > 0
  assert 0 < found['estimate']['seconds'] < 1
  assert 0 < found['estimate']['sending_share'] < 1

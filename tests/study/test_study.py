"""Studies: a design is read and laid out, its runs are carried out whatever stops them, and what came of them is told."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from etils import epath
from scipy import stats

from mimic_jax import config as config_lib
from mimic_jax import objectives
from mimic_jax.commands import study as command
from mimic_jax.report import grid
from mimic_jax.runtime import lease
from mimic_jax.runtime.errors import Preempted, UserError
from mimic_jax.study import cost, design, findings, page, runner
from mimic_jax.study.design import Run
from mimic_jax.training import workdir

DESIGN = """
title = "T"
sets = ["ferplus", "rafdb"]
figure = "sweeps"
[arms]
"CE" = { begins = "mae", method = "ce_two_views" }
"MSCL" = { begins = "mae", method = "mscl", set = { "finetune.head.pool" = "cls" } }
"scratch" = { begins = "scratch", method = "mscl" }
[sweeps]
"λ" = { field = "finetune.contrast.weight", values = [0.1, 1.0] }
[primary]
"MSCL against CE" = ["CE", "MSCL"]
[paper]
"MSCL" = { ferplus = 89.74 }
[quoted]
"SCN" = { rafdb = 87.03 }
"""


@pytest.fixture
def toml(tmp_path):
  def write(text: str = DESIGN) -> str:
    (tmp_path / 't.toml').write_text(text)
    return str(tmp_path / 't.toml')

  return write


@pytest.mark.parametrize('name', design.names())
def test_every_study_can_be_laid_out(name):
  study = design.read(name)
  for scale in design.SCALES:
    where = dict.fromkeys((*study.sets, *(['general'] if scale != 'tiny' else [])), '/data')
    plan = design.plan(study, scale, 'out', where, {}, [0])
    assert not plan.missing
    assert {s: set(arms) for s, arms in plan.arms.items()} == {s: set(study.arms) for s in study.sets}
    for run in plan.runs:
      config_lib.parse(['mimic', '--config', run.config, *run.flags])


def test_runs_come_after_what_they_need_and_seeds_have_pretrainings_of_their_own(toml):
  study = design.read(toml())
  plan = design.plan(study, 'small', 'out', {'ferplus': '/f', 'general': '/g'}, {}, [0, 1])
  names = [r.name for r in plan.runs]
  assert len(set(names)) == len(names)
  for run in plan.runs:
    if 'mae' in run.name and run.stage == 'finetune':
      assert run.needs == f'mae-pretrain/{run.name.rpartition("/")[2]}'
      assert names.index(run.needs) < names.index(run.name)
      assert f'--config.init=out/runs/{run.needs}' in run.flags
    else:
      assert not run.needs
  assert plan.missing == ['rafdb: no folder in --data']
  held = plan.runs[names.index('ferplus-mae-mscl-head.pool=cls-contrast.weight=1.0/seed1')]
  parsed = config_lib.parse(['mimic', '--config', held.config, *held.flags]).config
  assert (parsed.seed, parsed.finetune.contrast.weight, parsed.finetune.head.pool) == (1, 1.0, 'cls')


def test_a_value_that_is_the_configs_own_is_no_run_of_its_own(toml):
  plan = design.plan(design.read(toml()), 'small', 'out', {'ferplus': '/f', 'general': '/g'}, {}, [0])
  arms = plan.arms['ferplus']
  assert arms['scratch'][0] == arms['scratch, λ = 0.1'][0] != arms['scratch, λ = 1.0'][0]


def test_weights_take_the_place_of_pretrainings(toml):
  plan = design.plan(design.read(toml()), 'paper', 'out', {'ferplus': '/f'}, {'mae': '/w.pth'}, [0])
  assert {r.stage for r in plan.runs} == {'finetune'}
  assert '--config.init=/w.pth' in plan.arms['ferplus']['CE'][0].flags


def test_without_general_pictures_the_rest_can_still_be_done(toml):
  plan = design.plan(design.read(toml()), 'small', 'out', {'ferplus': '/f'}, {}, [0])
  assert list(plan.arms['ferplus']) == ['scratch', 'scratch, λ = 0.1', 'scratch, λ = 1.0']
  assert (
    'mae has no weights in --weights, nor general pictures in --data: CE (ferplus), MSCL' in plan.missing[1]
  )


@pytest.mark.parametrize(
  ('old', 'new', 'told'),
  [
    ('[arms]', '[arm]', "'arm' is no part of a study (did you mean 'arms'?)"),
    ('figure = "sweeps"', 'figure = "bar"', "figure is 'bar' (did you mean 'bars'?); expected one of"),
    ('begins = "scratch", ', '', 'arms."scratch" has no \'begins\''),
    ('"MSCL"]', '"MSLC"]', "primary.\"MSCL against CE\" is 'MSLC' (did you mean 'MSCL'?)"),
    ('values = [0.1, 1.0]', 'value = [0.1]', 'sweeps."λ" is '),
    ('values = [0.1, 1.0]', 'values = 3', 'sweeps."λ" is '),
    ('values = [0.1, 1.0]', 'values = ["a"]', 'sweeps."λ".values is'),
    ('begins = "scratch"', 'begins = "mea"', "arms.\"scratch\": begins is 'mea' (did you mean 'mae'?)"),
    ('method = "mscl" }', 'method = "mscl", size = 3 }', 'arms."scratch": size is 3; expected a word'),
    ('"finetune.head.pool"', '"seed"', "set has 'seed', which the study sets itself"),
    ('"rafdb"]', '"rafbd"]', "sets is 'rafbd' (did you mean 'rafdb'?)"),
    ('{ ferplus = 89.74 }', '{ ferplus = "89" }', 'paper."MSCL" is '),
    ('title = "T"', 'title = 3', "title is '3'; expected a str"),
    ('title = "T"', 'title = ', 'no TOML'),
  ],
)
def test_what_is_wrong_with_a_design_is_said_in_one_line(toml, old, new, told):
  with pytest.raises(UserError) as caught:
    design.read(toml(DESIGN.replace(old, new)))
  assert told in str(caught.value)


def test_a_field_that_is_none_is_named(toml):
  study = design.read(toml(DESIGN.replace('finetune.head.pool', 'finetune.head.pol')))
  with pytest.raises(
    UserError, match=r"mscl has no field 'finetune.head.pol' \(did you mean 'finetune.head.pool'"
  ):
    design.plan(study, 'small', 'out', {'ferplus': '/f', 'general': '/g'}, {}, [0])


@pytest.mark.parametrize(
  ('flags', 'told'),
  [
    (['--study=tabel2'], "--study is 'tabel2' (did you mean 'table2'?)"),
    (['--scale=big'], "--scale is 'big'; expected one of tiny, small, paper"),
    (['--seeds=0'], "--seeds is '0'; expected how many, from 1"),
    (['--data=ferpls=/x'], "--data is 'ferpls' (did you mean 'ferplus'?)"),
    (['--data=ferplus'], "--data has 'ferplus'; expected ferplus=PATH"),
    (
      ['--data=ferplus=/nowhere'],
      '--data: ferplus=/nowhere does not exist; without it 30 runs can still be done',
    ),
    (['--weights=mae=/nowhere'], '--weights: mae=/nowhere does not exist'),
    (['--worker=3/3'], "--worker is '3/3'; expected I/N"),
    (['--data=general=/'], '--data has general, and --scale tiny draws'),
    (['--scale=small'], '--data has none of rafdb, ferplus, affectnet'),
  ],
)
def test_what_is_wrong_with_a_command_is_said_in_one_line(tmp_path, flags, told):
  with pytest.raises(UserError) as caught:
    command.main(['--study=table2', f'--out={tmp_path / "out"}', *flags])
  assert told in str(caught.value)
  assert not (tmp_path / 'out').exists()


def test_a_changed_study_is_refused_by_its_field_and_new_arms_are_not(toml, tmp_path):
  out = epath.Path(tmp_path / 'out')
  out.mkdir()

  def begin(text: str = DESIGN, scale: str = 'small', data=None, weights=None) -> int:
    study = design.read(toml(text))
    return command.begin(out, study, scale, data or {}, weights or {}, design.Plan([], {}, []))

  begin(data={'ferplus': '/f'})
  for text, told in (
    (DESIGN.replace('ce_two_views', 'ce'), 'arms."CE".method is ce, and was ce_two_views'),
    (
      DESIGN.replace('["CE", "MSCL"]', '["scratch", "MSCL"]'),
      "primary is {'MSCL against CE': ['scratch', 'MSCL']}",
    ),
    (DESIGN.replace('"scratch" =', '"none" ='), 'arms."scratch".begins is (absent), and was scratch'),
    (
      DESIGN.replace('method = "mscl" }', 'method = "mscl", set = { "finetune.ema" = 0.5 } }'),
      'arms."scratch".set',
    ),
  ):
    with pytest.raises(UserError, match='expected the same, or another --out') as caught:
      begin(text)
    assert told in str(caught.value)
  for changed, told in (
    ({'scale': 'tiny'}, '--scale is tiny, and was small'),
    ({'weights': {'mae': '/w'}}, "--weights is {'mae': '/w'}, and was {}"),
    ({'data': {'ferplus': '/g'}}, '--data: ferplus is /g, and was /f'),
  ):
    with pytest.raises(UserError, match='and was') as caught:
      begin(**changed)
    assert told in str(caught.value)
  begin(
    DESIGN.replace('[sweeps]', '"new" = { begins = "mae", method = "scl" }\n[sweeps]'), data={'rafdb': '/r'}
  )
  assert json.loads((out / 'study.json').read_text())['data'] == {'ferplus': '/f', 'rafdb': '/r'}


def test_what_is_no_study_is_left_alone(toml, tmp_path):
  (tmp_path / 'thesis.tex').write_text('')
  with pytest.raises(UserError, match='is not empty and holds no study'):
    command.begin(epath.Path(tmp_path), design.read(toml()), 'small', {}, {}, design.Plan([], {}, []))


def test_a_run_that_was_made_by_another_config_is_refused(toml, tmp_path):
  plan = design.plan(design.read(toml()), 'small', str(tmp_path), {'ferplus': '/f'}, {}, [0])
  run = plan.runs[0]
  folder = runner.folder(epath.Path(tmp_path), run)
  config = config_lib.parse(
    ['mimic', '--config', run.config, *run.flags, '--config.finetune.optim.lr=0.5']
  ).config
  workdir.begin(folder, config)
  (folder / 'finetune').mkdir()
  (folder / 'finetune' / 'result.json').write_text('{}')
  with pytest.raises(UserError, match=r'is of another config \(finetune.optim.lr: 0.5 →'):
    command._check_done(epath.Path(tmp_path), plan)


# A run that takes no time: its accuracy comes of its name, so that a table of two studies can be compared.
FAKE = """
import pathlib, sys, time, json, zlib
import numpy as np
folder, stage, seconds = pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
(folder / stage).mkdir(parents=True, exist_ok=True)
with open(folder.parent.parent / 'order.txt', 'a') as f:
  f.write(folder.parent.name + '/' + folder.name + '\\n')
if 'bad' in str(folder):
  sys.exit('it went wrong')
time.sleep(seconds)
rng = np.random.default_rng(zlib.crc32('/'.join(folder.parts[-2:]).encode()))
label = np.arange(400) % 4
logits = rng.normal(size=(400, 4)) + 2 * np.eye(4)[label]
np.savez(folder / stage / 'predictions.npz', id=np.array([str(i) for i in range(400)]), split=np.repeat('valid', 400), label=label, logits=logits, class_names=np.array(list('abcd')))
held = {'metrics': {'valid': {'accuracy': float((logits.argmax(1) == label).mean())}}, 'seconds': seconds, 'best_on_valid': {'accuracy': 0.9}}
(folder / stage / 'result.json').write_text(json.dumps(held))
(folder / 'record.json').write_text('{}')
"""


@pytest.fixture
def fake(monkeypatch):
  """Runs that take as many seconds as are set, by themselves."""
  seconds = [0.0]

  def line(out: epath.Path, run: Run) -> list[str]:
    return [sys.executable, '-c', FAKE, str(runner.folder(out, run)), run.stage, str(seconds[0])]

  monkeypatch.setattr(runner, 'command', line)
  monkeypatch.setattr(runner, 'POLL_SECONDS', 0.05)
  return seconds


def order(out: pathlib.Path) -> list[str]:
  return (out / 'runs' / 'order.txt').read_text().split()


def carry_out(out: pathlib.Path, runs, say=str, *worker: int) -> list[str]:
  with runner.Listening() as listening:
    return runner.carry_out(epath.Path(out), runs, say, listening, *worker)


RUNS = [
  Run('p/seed0', 'pretrain', '', ()),
  Run('a/seed0', 'finetune', '', (), 'p/seed0'),
  Run('b/seed0', 'finetune', '', ()),
]


def test_each_run_is_made_once_and_in_order(tmp_path, fake):
  said: list[str] = []
  for _ in range(2):
    assert carry_out(tmp_path, RUNS, said.append) == []
  assert order(tmp_path) == ['p/seed0', 'a/seed0', 'b/seed0']
  assert sum('valid' in line for line in said) == 3


def test_a_failed_run_is_marked_and_the_others_go_on(tmp_path, fake):
  runs = [Run('bad/seed0', 'pretrain', '', ()), Run('a/seed0', 'finetune', '', (), 'bad/seed0'), RUNS[2]]
  assert carry_out(tmp_path, runs) == ['bad/seed0']
  assert [runner.failure(epath.Path(tmp_path), r) for r in runs] == ['it went wrong', '', '']
  assert order(tmp_path) == ['bad/seed0', 'b/seed0']
  carry_out(tmp_path, runs)
  assert order(tmp_path) == ['bad/seed0', 'b/seed0', 'bad/seed0']


def test_a_run_that_another_is_at_is_left_to_it(tmp_path, fake):
  held = lease.Lease(runner.folder(epath.Path(tmp_path), RUNS[0]))
  held.acquire()
  ended: list[list[str]] = []
  threading.Timer(0.7, lambda: (ended.append(order(tmp_path)), held.release())).start()
  carry_out(tmp_path, RUNS)
  assert ended == [['b/seed0']]
  assert order(tmp_path) == ['b/seed0', 'p/seed0', 'a/seed0']


def test_told_to_stop_it_stops_its_run_and_goes_on_later(tmp_path, fake):
  fake[0] = 30.0
  threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
  began = time.monotonic()
  with pytest.raises(Preempted):
    carry_out(tmp_path, RUNS)
  assert time.monotonic() - began < 20
  fake[0] = 0.0
  assert carry_out(tmp_path, RUNS) == []


def test_told_to_stop_while_it_waits_for_another_it_stops_too(tmp_path, fake):
  held = lease.Lease(runner.folder(epath.Path(tmp_path), RUNS[0]))
  held.acquire()
  threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
  try:
    with pytest.raises(Preempted):
      carry_out(tmp_path, RUNS[:2])
  finally:
    held.release()


def test_two_that_share_a_folder_begin_with_different_runs(tmp_path, fake):
  runs = [Run(f'{name}/seed0', 'finetune', '', ()) for name in 'abcd']
  carry_out(tmp_path, runs, str, 1, 2)
  assert order(tmp_path) == ['b/seed0', 'd/seed0', 'a/seed0', 'c/seed0']


@pytest.fixture
def carried_out(tmp_path, toml, fake):
  """A study of fake runs: its folder, design and plan."""
  study = design.read(toml())
  out = epath.Path(tmp_path / 'out')
  plan = design.plan(study, 'small', str(out), {'ferplus': '/f', 'general': '/g'}, {}, [0, 1, 2])
  carry_out(out, plan.runs)
  return out, study, plan


def test_a_table_says_what_the_predictions_do(carried_out):
  out, study, plan = carried_out
  found = findings.splits(out, study, plan)
  table = findings.scores(study, ('ferplus', 'valid'), found['ferplus', 'valid'])
  own = []
  for seed in range(3):
    with np.load(out / f'runs/ferplus-mae-mscl-head.pool=cls/seed{seed}/finetune/predictions.npz') as held:
      own.append(100 * np.mean(held['logits'].argmax(1) == held['label']))
  row = dict(zip(table.head, next(r for r in table.rows if r[0] == 'MSCL')))
  assert row['accuracy (%)'] == f'{np.mean(own):.2f} ± {np.std(own, ddof=1):.2f}'
  assert (row['seeds'], row['best epoch'], row['paper']) == ('3', '90.00 ± 0.00', '89.74')
  best = max(table.rows, key=lambda r: float(r[2].split()[0]))
  assert {table.rows[i][0] for i, _ in table.bold} <= {
    r[0] for r in table.rows if r[2].split()[0] == best[2].split()[0]
  }


def test_contrasts_are_paired_and_adjusted_and_say_what_they_could_have_seen(carried_out):
  out, study, plan = carried_out
  primary, rest = findings.contrasts(study, plan, findings.splits(out, study, plan), 0)
  differences = []
  for seed in range(3):
    each = []
    for name in ('ferplus-mae-ce_two_views', 'ferplus-mae-mscl-head.pool=cls'):
      with np.load(out / f'runs/{name}/seed{seed}/finetune/predictions.npz') as held:
        each.append(np.mean(held['logits'].argmax(1) == held['label']))
    differences.append(each[1] - each[0])
  mean, reach = np.mean(differences), stats.t(2).ppf(0.975) * np.std(differences, ddof=1) / np.sqrt(3)
  row = dict(zip(primary.head, primary.rows[0]))
  assert row['points'] == findings.points(mean)
  assert row['seeds alone'] == f'{findings.points(mean - reach)} to {findings.points(mean + reach)}'
  low, high = (float(x.replace('−', '-')) for x in row['95 %'].split(' to '))
  assert low < 100 * mean < high
  assert float(row['could have seen']) > (high - low) / 2  # power .8 needs more than the interval's reach
  assert row['p (Holm, 1)']
  # Each arm against the first, of a sweep at the same value; what is the same run by another name is not compared.
  assert study.references['MSCL, λ = 1.0'] == 'CE, λ = 1.0'
  assert [r[0] for r in rest.rows] == [f'{b} against {a}' for b, a in study.references.items() if b != 'MSCL']


def test_contrasts_that_came_after_their_runs_are_called_so(carried_out):
  out, study, plan = carried_out
  primary, _ = findings.contrasts(study, plan, findings.splits(out, study, plan), 4)
  assert primary.title == 'Primary contrasts, begun when 4 of the runs were there: exploratory'


def test_holm_counts_the_sets_whose_runs_are_not_there_yet(carried_out):
  out, study, plan = carried_out
  found = findings.splits(out, study, plan)
  wider = plan._replace(arms={**plan.arms, 'rafdb': {}})
  one, two = (findings.contrasts(study, p, found, 0)[0] for p in (plan, wider))
  assert (one.head[6], two.head[6]) == ('p (Holm, 1)', 'p (Holm, 2)')
  assert float(two.rows[0][6]) == pytest.approx(min(2 * float(one.rows[0][6]), 1), rel=0.1)


def test_the_page_and_its_files(carried_out):
  out, study, plan = carried_out
  (out / 'runs/ferplus-scratch-mscl/seed0/finetune/result.json').unlink()
  (out / 'runs/ferplus-scratch-mscl/seed0.failed').write_text('no room')
  told = page.write(out, study, plan, 'small', {}, 0)
  folder = out / study.name
  assert '| MSCL | 3 |' in told
  assert 'Failed: ferplus-scratch-mscl/seed0 (no room); 1 in all' in told
  assert 'rafdb: no folder in --data' in told
  assert (folder / 'table.tex').read_text().count(r'\toprule') == 3
  assert grid.escaped('λ_1') == r'λ\_1'
  html = (folder / 'index.html').read_text()
  assert html.count('<table') == 3
  assert '<svg' in html
  assert {p.suffix for p in (folder / 'figures').iterdir()} == {'.pdf', '.svg'}
  csv = (folder / 'table.csv').read_text().splitlines()
  assert 'FERPlus, valid",MSCL,paper,89.74' in next(x for x in csv if ',MSCL,paper,' in x)


def test_costs_are_those_of_the_steps_and_of_the_pace_of_what_is_done(tmp_path, toml):
  out = epath.Path(tmp_path)
  study = design.read(
    toml(DESIGN.replace('"rafdb"]', '"faces"]').replace('[sweeps]', '[sweep]').split('[sweep]')[0])
  )
  plan = design.plan(study, 'tiny', str(out), {'faces': 'drawn'}, {}, [0])
  needed = cost.operations(plan.runs, out)
  config = design._loaded(('tiny', 'faces', 'scratch', 'mscl', 'base')).finetune
  learned = objectives.make(
    config, design._loaded(('tiny', 'faces', 'scratch', 'mscl', 'base')).model, tuple('abcdefg'), ''
  )
  steps = round(config.epochs * config.data.size / config.batch_images)
  name = 'faces-scratch-mscl/seed0'
  assert needed[name] == steps * config.batch_images * learned.flops_per_image()
  folder = out / 'runs' / name / 'finetune'
  folder.mkdir(parents=True)
  (folder / 'result.json').write_text('{"seconds": 10.0}')
  assert cost.rate(plan.runs, out, needed) == (needed[name] / 10, 'as the 1 that are done')


WHOLE = """
title = "T"
sets = ["faces"]
[arms]
"MSCL" = { begins = "mae", method = "mscl", set = { "finetune.steps" = 12 } }
"scratch" = { begins = "scratch", method = "mscl", set = { "finetune.steps" = 12 } }
[primary]
"MAE against scratch" = ["scratch", "MSCL"]
"""


@pytest.mark.processes
def test_killed_twice_in_the_middle_no_number_changes(toml, tmp_path):
  given = ['-m', 'mimic_jax', 'study', f'--study={toml(WHOLE)}', '--seeds=1']

  def start(out: str) -> subprocess.Popen:
    return subprocess.Popen(
      [sys.executable, *given, f'--out={tmp_path / out}'], stdout=subprocess.PIPE, text=True
    )

  killed = start('a')
  log = tmp_path / 'a/runs/mae-pretrain/seed0/pretrain/metrics.jsonl'
  deadline = time.monotonic() + 300
  while not (log.exists() and log.read_text().count('\n') > 2):
    assert killed.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.2)
  killed.kill()  # its run goes on by itself, and the next runner waits for it
  killed = start('a')
  time.sleep(15)
  killed.send_signal(signal.SIGTERM)
  assert killed.wait(300) in (0, Preempted.code)
  first, second = (start(out) for out in ('a', 'b'))
  assert [p.wait(600) for p in (first, second)] == [0, 0]
  tables = [(tmp_path / out / 't' / 'table.csv').read_text() for out in 'ab']
  assert tables[0] == tables[1]
  assert json.loads((tmp_path / 'a/study.json').read_text())['scale'] == 'tiny'

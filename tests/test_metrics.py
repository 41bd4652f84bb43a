"""Scores by their definitions, and the writers through crashes and resumes."""

import io
import json
import math
import subprocess
import sys
import time
import types

import ml_dtypes
import numpy as np
import pytest
from etils import epath
from tensorboardX.proto import event_pb2

from mimic_jax import metrics
from mimic_jax.runtime import files
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import log

NAMES = tuple('abcdefg')


def expected(truth, guess, names):
  """Returns the scores by their definitions, pair by pair; 0/0 is 0."""
  rows = []
  for k in range(len(names)):
    hits = sum((t, g) == (k, k) for t, g in zip(truth, guess))
    there, called = np.sum(truth == k), np.sum(guess == k)
    recall, precision = hits / max(there, 1), hits / max(called, 1)
    rows.append((recall, precision, 2 * hits / max(there + called, 1), there))
  known = [rows[k][2] for k in range(len(names)) if k in truth or k in guess]
  return {
    'accuracy': np.mean(truth == guess),
    'mean_class_accuracy': np.mean([row[0] for row in rows if row[3]]),
    'macro_f1': np.mean(known),
    'confusion': [
      [int(np.sum((truth == t) & (guess == g))) for g in range(len(names))] for t in range(len(names))
    ],
    'per_class': rows,
  }


def check(got, want, names):
  for name in ('accuracy', 'mean_class_accuracy', 'macro_f1'):
    assert got[name] == pytest.approx(want[name], abs=1e-14), name
  assert got['confusion'] == want['confusion']
  assert list(got['per_class']) == list(names)
  for name, values in zip(names, want['per_class']):
    row = got['per_class'][name]
    np.testing.assert_allclose([row[k] for k in ('recall', 'precision', 'f1', 'support')], values, atol=1e-14)


@pytest.mark.parametrize('absent', [(), (0,), (2, 5), (0, 1, 2, 3, 4)])
def test_classification_is_what_its_definitions_say(rng, absent):
  present = [k for k in range(7) if k not in absent]
  labels = rng.choice(present, 301)
  logits = rng.normal(size=(301, 7)) + 1.5 * np.eye(7)[labels]
  got = metrics.classification(labels, logits, NAMES)
  check(got, expected(labels, logits.argmax(-1), NAMES), NAMES)
  assert got['count'] == 301
  assert got['largest_class'] == np.bincount(labels).max() / 301


def test_classes_neither_present_nor_predicted_do_not_move_the_means(rng):
  labels = rng.integers(0, 3, 50)
  logits = rng.normal(size=(50, 7))
  logits[:, 3:] = -100
  check(metrics.classification(labels, logits, NAMES), expected(labels, logits.argmax(-1), NAMES), NAMES)


def test_soft_labels_are_scored_by_their_dominant_class_and_ties_go_to_the_first(rng):
  labels = rng.dirichlet(np.full(7, 0.5), 120).astype(np.float32)
  labels[:3] = [[0, 0.5, 0, 0.5, 0, 0, 0], [0.25, 0, 0.25, 0.25, 0.25, 0, 0], [0, 0, 0, 0, 0, 0.5, 0.5]]
  truth = np.array([max(range(7), key=lambda k: (row[k], -k)) for row in labels])
  assert truth[:3].tolist() == [1, 0, 5]
  logits = rng.normal(size=(120, 7)).astype(np.float32)
  check(metrics.classification(labels, logits, NAMES), expected(truth, logits.argmax(-1), NAMES), NAMES)


def test_classification_is_json_and_takes_bfloat16(rng):
  logits = rng.normal(size=(20, 7)).astype(ml_dtypes.bfloat16)
  got = metrics.classification(rng.integers(0, 7, 20), logits, NAMES)
  assert json.loads(json.dumps(got)) == got


def test_a_label_out_of_range_is_named():
  with pytest.raises(UserError, match=r'label 7 of example 1 .* 0 to 6'):
    metrics.classification(np.array([0, 7]), np.zeros((2, 7)), NAMES)
  with pytest.raises(UserError, match='label -1 of example 0'):
    metrics.classification(np.array([-1, 2]), np.zeros((2, 7)), NAMES)
  with pytest.raises(UserError, match='no example'):
    metrics.classification(np.zeros(0, int), np.zeros((0, 7)), NAMES)


@pytest.mark.parametrize('soft', [False, True])
def test_calibration_is_the_expected_calibration_error_by_its_definition(rng, soft):
  n, k, bins = 500, 4, 15
  logits = 2.0 * rng.normal(size=(n, k))
  labels = rng.integers(0, k, n)
  found = metrics.calibration(np.eye(k)[labels] * 0.7 if soft else labels, logits, bins)
  chances = np.array([[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in logits])
  ece, counts = 0.0, []
  for b in range(bins):
    mine = [i for i in range(n) if b / bins < chances[i].max() <= (b + 1) / bins]
    counts.append(len(mine))
    if mine:
      right = np.mean([chances[i].argmax() == labels[i] for i in mine])
      ece += len(mine) / n * abs(right - np.mean([chances[i].max() for i in mine]))
  assert found['ece'] == pytest.approx(ece, abs=1e-12)
  assert [x['count'] for x in found['bins']] == counts
  sure = metrics.calibration(
    np.array([1]), np.array([[-np.inf, 0.0]]), bins
  )  # a probability of 1 is in the last bin
  assert sure['ece'] == 0
  assert sure['bins'][-1]['count'] == 1
  assert sure['bins'][0]['accuracy'] is None


def test_jsonl_keeps_lines_up_to_the_step_it_resumes_from(tmp_path):
  path = epath.Path(tmp_path) / 'deep' / 'metrics.jsonl'
  writer = files.JsonlWriter(path)
  for step in range(10):
    writer.write({'step': step, 'loss': step / 2})
    assert len(files.read_jsonl(path)) == step + 1  # on disk at once, before any close
  writer.close()

  writer = files.JsonlWriter(path, resume_step=6)
  writer.write({'step': 7, 'loss': 70})
  writer.close()
  assert [line['loss'] for line in files.read_jsonl(path)] == [0, 0.5, 1, 1.5, 2, 2.5, 3, 70]
  assert [p.name for p in path.parent.iterdir()] == ['metrics.jsonl']

  files.JsonlWriter(path).close()
  assert files.read_jsonl(path) == []


@pytest.mark.parametrize(
  'tail', [b'{"step": 3, "lo', b'{"step": 3, "loss": 1.0', b'\x00\x00\x00', b'{"a": "\xc3']
)
def test_a_torn_last_line_is_left_out_and_healed_on_resume(tmp_path, tail):
  path = epath.Path(tmp_path) / 'metrics.jsonl'
  path.write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail)
  assert files.read_jsonl(path) == [{'step': 1}, {'step': 2}]
  writer = files.JsonlWriter(path, resume_step=5)
  writer.write({'step': 3})
  writer.close()
  assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_a_broken_line_in_the_middle_is_named(tmp_path):
  path = epath.Path(tmp_path) / 'metrics.jsonl'
  path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
  with pytest.raises(UserError, match=r'metrics\.jsonl: line 2'):
    files.read_jsonl(path)


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path):
  path = epath.Path(tmp_path) / 'metrics.jsonl'
  writer = files.JsonlWriter(path)
  writer.write(
    {
      'step': np.int64(1),
      'a': float('nan'),
      'b': np.float32('inf'),
      'c': [float('-inf'), {'d': np.array([1.0, np.nan])}],
      'e': ml_dtypes.bfloat16(0.5),
      'f': True,
    }
  )
  writer.close()
  (line,) = path.read_text().splitlines()
  refuse = pytest.fail
  assert json.loads(line, parse_constant=refuse) == {
    'step': 1,
    'a': None,
    'b': None,
    'c': [None, {'d': [1.0, None]}],
    'e': 0.5,
    'f': True,
  }


def test_remote_lines_are_kept_and_the_whole_file_rewritten(tmp_path, monkeypatch):
  monkeypatch.setattr(files, 'is_remote', lambda path: True)
  path = epath.Path(tmp_path) / 'metrics.jsonl'
  path.write_text('{"step": 1}\n{"step": 2}\n')
  writer = files.JsonlWriter(path, resume_step=1)
  for step in (2, 3, 4):
    writer.write({'step': step, 'new': True})
  writer.flush()
  assert [line['step'] for line in files.read_jsonl(path)] == [1, 2, 3, 4]
  writer.write({'step': 5})
  writer.close()
  assert [line['step'] for line in files.read_jsonl(path)] == [1, 2, 3, 4, 5]


def _events(directory):
  """Reads the TFRecords of event files: length (8 bytes), its checksum (4), the event, its checksum (4)."""
  for path in sorted(directory.iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):
      size = int.from_bytes(data[at : at + 8], 'little')
      yield event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
      at += 16 + size


def test_tensorboard_gets_the_numbers_and_the_purge_step(tmp_path):
  writer = log.TensorBoardWriter(epath.Path(tmp_path) / 'tb', purge_step=7)
  writer.write(
    {
      'step': 8,
      'split': 'valid',
      'loss': np.float32(0.25),
      'bad': float('nan'),
      'note': 'x',
      'total_steps': 9,
    }
  )
  writer.close()
  events = list(_events(tmp_path / 'tb'))
  scalars = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
  assert scalars == [(8, 'valid/loss', 0.25)]
  assert [e.step for e in events if e.HasField('session_log')] == [7]


def test_wandb_gets_the_numbers_of_each_line_and_a_stage_goes_on_in_its_run(tmp_path, monkeypatch):
  heard = []
  fake = types.ModuleType('wandb')
  fake.init = lambda **given: (
    heard.append(given)
    or types.SimpleNamespace(
      log=lambda values, step: heard.append((step, values)), finish=lambda: heard.append('end')
    )
  )
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  for step in (8, 9):
    with progress_log(tmp_path, wandb='faces', progress=False) as lines:
      lines._write(
        {'step': step, 'split': 'valid', 'loss': np.float32(0.25), 'bad': math.nan, 'total_steps': 9}
      )
  first, *told, again = heard[:4]
  assert told == [(8, {'valid/loss': 0.25}), 'end']
  assert first == again
  assert (first['project'], first['group'], first['resume']) == ('faces', tmp_path.name, 'allow')


def test_wandb_that_is_not_installed_is_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  log.check_wandb('')
  with pytest.raises(UserError, match=r"config\.log\.wandb is 'faces', but wandb is not installed"):
    log.check_wandb('faces')


class Terminal(io.StringIO):
  def isatty(self):
    return True


def progress_log(tmp_path, **options) -> log.Log:
  given = {'every': 1, 'progress': True, 'tensorboard': False, 'wandb': '', **options}
  return log.Log(epath.Path(tmp_path / 'run'), 40, given, 'pretrain', 50, [])


def test_the_bar_counts_from_the_first_finished_step_and_says_what_goes_on_beside_steps(
  tmp_path, monkeypatch
):
  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  with progress_log(tmp_path) as bar:
    time.sleep(1.0)
    assert terminal.getvalue().split('\r')[-1].startswith('pretrain, compiling:  80%')
    bar.add(41, {'loss': 1.0})
    time.sleep(0.1)
    bar.add(42, {'loss': 1.0})
    told = bar._bar.format_dict
    assert (told['initial'], told['n']) == (41, 42)
    assert 0.1 <= told['elapsed'] < 0.9
    for what in ('evaluating', 'writing the report'):
      bar.doing(what)
      assert terminal.getvalue().split('\r')[-1].startswith(f'pretrain, {what}:')
    bar.doing('')
    assert terminal.getvalue().split('\r')[-1].startswith('pretrain:')
  assert terminal.getvalue().split('\r')[-1].startswith('pretrain:  84%')


def test_lines_say_what_is_left_by_the_steps_after_the_first_in_seconds_below_two_minutes(
  tmp_path, monkeypatch, capsys
):
  now = [0.0]
  monkeypatch.setattr(log.time, 'monotonic', lambda: now[0])
  monkeypatch.setattr(log, 'SECONDS_BETWEEN_LINES', 0.0)
  with progress_log(tmp_path) as lines:
    for step, at in ((41, 1000.0), (42, 1009.0), (43, 1600.0)):  # a thousand seconds of compiling
      now[0] = at
      lines.add(step, {'loss': 1.0})
      lines.train_line(step, 1.0, 8, at)
  assert capsys.readouterr().err.splitlines() == [
    'pretrain: compiling',
    'pretrain: step 41 of 50, loss 1.0000',
    'pretrain: step 42 of 50, loss 1.0000, 1 img/s, 72 s left',
    'pretrain: step 43 of 50, loss 1.0000, 0 img/s, 35 min left',
  ]


def test_nothing_of_a_run_imports_pytorch_and_it_can_still_be_imported(tmp_path):
  code = (
    'import sys, importlib.util\n'
    'from etils import epath\n'
    'from mimic_jax.training import log, run\n'
    f'writer = log.TensorBoardWriter(epath.Path({str(tmp_path)!r}))\n'
    'writer.write({"step": 1, "loss": 0.5}); writer.close()\n'
    'assert "torch" not in sys.modules\n'
    'if importlib.util.find_spec("torch"): import torch; torch.zeros(1)\n'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, '')
  assert [v.tag for e in _events(tmp_path) for v in e.summary.value] == ['train/loss']


def test_tensorboard_leaves_remote_folders_alone_and_says_so(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(files, 'is_remote', lambda path: True)
  options = {'every': 1, 'progress': False, 'tensorboard': True, 'wandb': ''}
  with caplog.at_level('INFO', logger='absl'), log.Log(epath.Path(tmp_path / 'run'), 0, options, 'a', 5, []):
    pass
  (record,) = caplog.records
  assert str(tmp_path / 'run') in record.getMessage()
  assert not (tmp_path / 'run' / 'tensorboard').exists()

"""The fault campaign's short form, and its own judgement: a run that lost or altered anything is not called the same."""

import json
import pathlib
import shutil

import pytest

from tests.conftest import CACHE
from tests.faults import __main__ as faults
from tests.faults import compare, rows

pytestmark = pytest.mark.processes


@pytest.fixture(scope='module')
def campaign(tmp_path_factory):
  """The short campaign's rows, and the folder of its runs."""
  folder = tmp_path_factory.mktemp('faults')
  return faults.campaign(short=True, cache=CACHE / 'faults', keep=str(folder)), folder


def test_a_run_that_was_killed_preempted_or_damaged_ends_like_one_that_was_not(campaign):
  found, _ = campaign
  assert [row.cells() for row in found if not row.met] == []
  assert sum(row.times for row in found) == 10
  assert len(found) == sum(f.short for f in rows.FAULTS.values())


def harm_log(run: pathlib.Path) -> None:
  """Changes the last digit of a loss."""
  log = run / 'pretrain' / 'metrics.jsonl'
  lines = log.read_text().splitlines(keepends=True)
  line = json.loads(lines[4])
  line['loss'] *= 1 + 2**-50
  log.write_text(''.join([*lines[:4], json.dumps(line) + '\n', *lines[5:]]))


def harm_order(run: pathlib.Path) -> None:
  """Logs a step twice."""
  log = run / 'pretrain' / 'metrics.jsonl'
  lines = log.read_text().splitlines(keepends=True)
  log.write_text(''.join([*lines[:4], lines[3], *lines[4:]]))


def harm_checkpoint(run: pathlib.Path) -> None:
  """Takes the last checkpoint away, so that the one before stands for it."""
  shutil.rmtree(run / 'pretrain' / 'checkpoints' / '24')


def harm_pictures(run: pathlib.Path) -> None:
  """Leaves a picture as it was before the end."""
  (run / 'pretrain' / 'pictures' / 'reconstructions.png').write_bytes(b'an earlier one')


@pytest.mark.parametrize(
  ('harm', 'named'),
  [
    (harm_log, 'metrics.jsonl step 5 train: loss'),
    (harm_order, 'metrics.jsonl has'),
    (harm_checkpoint, 'array opt_state'),
    (harm_pictures, 'pictures/reconstructions.png'),
  ],
)
def test_the_campaign_sees_what_is_not_the_same(harm, named, campaign, tmp_path):
  whole = campaign[1] / 'reference_whole' / 'run'
  shutil.copytree(whole, tmp_path / 'run')
  assert compare.differences(whole, tmp_path / 'run') == []
  harm(tmp_path / 'run')
  assert named in '; '.join(compare.differences(whole, tmp_path / 'run'))


def test_what_was_not_met_fails_the_campaign_and_what_could_not_be_played_is_said():
  def unmet(_):
    raise rows.Unmet('it was lost')

  def not_run(_):
    raise rows.NotRun('needs root')

  found = [rows.played(rows.Fault('name', play, False), None)[0] for play in (unmet, not_run)]
  assert [row.met for row in found] == [False, None]
  shown = rows.table(found)
  assert 'not met:** it was lost' in shown
  assert 'not run: needs root' in shown

"""A run as a zip: all but the checkpoints and the lock, and what is left out is not needed to read it again."""

import zipfile

import pytest

from mimic_jax import main
from mimic_jax.commands import archive
from mimic_jax.runtime.errors import UserError
from tests.commands.test_compare import answers, save


def test_an_archive_holds_a_run_without_its_checkpoints_and_can_be_compared(tmp_path, rng, capsys):
  run = tmp_path / 'runs' / 'seed0'
  save(run / 'finetune', answers(rng))
  (run / 'config.json').write_text('{"stages": "finetune"}')
  for left_out in ('finetune/checkpoints/9/state/d', 'finetune/damaged_checkpoints/4/meta', 'lock.json'):
    (run / left_out).parent.mkdir(parents=True, exist_ok=True)
    (run / left_out).write_text('x')
  out = tmp_path / 'out.zip'
  main.main(['archive', str(tmp_path / 'runs'), str(out)])
  assert '2 files' in capsys.readouterr().out
  with zipfile.ZipFile(out) as held:
    assert held.namelist() == ['runs/seed0/config.json', 'runs/seed0/finetune/predictions.npz']
    held.extractall(tmp_path / 'again')
  main.main(['compare', str(tmp_path / 'again' / 'runs' / 'seed0'), str(run), '--samples', '100'])
  assert 'B and A have the same accuracy' in capsys.readouterr().out
  with pytest.raises(UserError, match=r"out.zip', which is there; expected a new file"):
    archive.main([str(run), str(out)])


def test_what_is_no_run_is_not_packed_and_a_place_that_is_none_is_named(tmp_path):
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(UserError, match=r"'.*nowhere' is not a run's folder"):
    archive.main([str(tmp_path / 'nowhere'), str(tmp_path / 'o.zip')])
  with pytest.raises(
    UserError, match=r"OUT.zip '.*no/o.zip' can not be written \(No such file or directory\)"
  ):
    archive.main([str(tmp_path), str(tmp_path / 'no' / 'o.zip')])
  assert sorted(p.name for p in tmp_path.iterdir()) == ['config.json']

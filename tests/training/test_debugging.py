"""`--debug_step`: the step is the run's own, what is not finite is traced to its line, and the run's folder stays as it is."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import pytest
from etils import epath
from ml_collections import FrozenConfigDict

from mimic_jax.objectives import mimic
from mimic_jax.report import sheets
from mimic_jax.runtime import checkpoint, distributed, sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import debugging, loop, results, workdir
from mimic_jax.training import stage as stage_lib
from tests import small

BAD_STEP = 6


def spoilt(value: jax.Array, step: jax.Array) -> jax.Array:
  """Returns a loss that is not finite at step BAD_STEP, counted from 1."""
  negative = jnp.where(step == BAD_STEP - 1, -1.0, 1.0)
  return value * (1 + jnp.log(negative * (1 + 0 * value)))


def config() -> FrozenConfigDict:
  """Returns that of a run of two stages, of which the second keeps the checkpoints of steps 4 and 7."""
  settings = {
    'steps': 7,
    'init': 'pretrain',
    'max_bad_steps': 1,
    'checkpoint.every_epochs': 0.5,
    'data.workers': 1,
  }
  plain = {'contrast.weight': 0.0, 'mix.probability': 0.0, 'views': 1}  # fewer operations to look at
  return FrozenConfigDict(
    small.run_config(pretrain=small.mae_stage(steps=1), finetune=small.mimic_stage(**settings, **plain))
  )


def one_device():
  return sharding.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The folder of such a run, whose fine-tuning has a bad step; the objective stays as spoilt as it was in the run."""
  folder = epath.Path(tmp_path_factory.mktemp('run'))
  original = mimic.Objective.loss

  def loss(self, model, batch, key, step, total_steps):
    value, parts = original(self, model, batch, key, step, total_steps)
    return spoilt(value, step), parts

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mimic.Objective, 'loss', loss)
    patch.setattr(results, 'show', lambda *_, **__: None)
    patch.setattr(sheets, 'save_contact_sheet', lambda *_, **__: None)
    workdir.begin(folder, config())
    for name, init in (('pretrain', ''), ('finetune', str(folder / 'pretrain'))):
      loop.run_stage(stage_lib.Stage(config(), name, folder, one_device(), init))
    yield folder


def files(folder) -> dict[str, tuple[int, int, bytes]]:
  """Returns everything in a folder: size, time of the last change, content."""
  found = {}
  for path in sorted(pathlib.Path(folder).rglob('*')):
    stat = path.stat()
    found[str(path)] = (stat.st_size, stat.st_mtime_ns, path.read_bytes() if path.is_file() else b'')
  return found


def figures(out: str) -> dict[str, list[str]]:
  """Returns the rows of the printed table of figures by name."""
  part = out.split('\nfigures\n')[1].split('\n\n')[0]
  return {line.split()[0]: line.split()[1:] for line in part.splitlines()[1:]}


def test_a_step_before_the_first_checkpoint_begins_with_the_first_stages_weights_and_is_the_runs_own(
  finished, capsys
):
  before = files(finished)
  assert debugging.run(config(), finished, '2', one_device()) == 0
  assert files(finished) == before
  out = capsys.readouterr().out
  assert 'stage finetune, step 2 of 7, from the beginning' in out
  rows = figures(out)
  assert {'loss', 'ce', 'accuracy', 'grad_norm', 'lr'} <= set(rows)
  for name, row in rows.items():
    assert row[-2:] == ['the', 'same'], name
  assert 'encoder/blocks/attn/qkv/kernel' in out
  assert out.endswith('all is finite\n')


@pytest.mark.processes
def test_a_bad_step_is_traced_to_the_line_that_made_it_and_nothing_is_written(finished, capsys):
  before = files(finished)
  assert debugging.run(config(), finished, f'finetune:{BAD_STEP}', one_device()) == 2
  assert files(finished) == before
  out, err = capsys.readouterr()
  assert 'step 6 of 7, from checkpoint 4' in out
  assert figures(out)['loss'] == ['nan', 'not', 'finite', 'the', 'same']
  number = next(
    k
    for k, line in enumerate(pathlib.Path(__file__).read_text().split('\n'), 1)
    if 'jnp.log(negative' in line
  )
  line = f'NaN first made by log at {__file__}:{number} (spoilt)'
  assert err.splitlines()[-1] == (
    f'mimic: error: stage finetune, step 6: loss is nan; {line}; expected finite numbers'
  )
  assert line in out
  assert 'of float32[] from -1 to -1' in out
  assert '16 of 16' in next(x for x in out.splitlines() if x.strip().startswith('fc_norm/bias'))
  blocks = next(x for x in out.splitlines() if 'blocks/attn/qkv/bias' in x)
  assert '96 of 96, in block 0, 1' in blocks


def test_a_damaged_checkpoint_is_passed_over_and_left_where_it_is(finished, tmp_path, capsys):
  folder = tmp_path / 'run'
  shutil.copytree(finished, folder)
  shutil.rmtree(folder / 'finetune' / checkpoint.FOLDER / '4' / 'meta')
  before = files(folder)
  assert debugging.run(config(), epath.Path(folder), '5', one_device()) == 0
  assert files(folder) == before
  out, err = capsys.readouterr()
  assert 'checkpoints/4 is damaged' in err
  assert 'step 5 of 7, from the beginning' in out
  assert figures(out)['loss'][-2:] == ['the', 'same']


@pytest.mark.parametrize(
  ('where', 'message'),
  [
    ('x', r"--debug_step is 'x'; expected a step, or STAGE:STEP with a stage of pretrain, finetune"),
    ('-1', r"--debug_step is '-1'; expected a step"),
    ('finetine:3', r"--debug_step is 'finetine' \(did you mean 'finetune'\?\)"),
    ('0', r'--debug_step is 0; expected a step from 1 to 7 of stage finetune'),
    ('pretrain:2', r'--debug_step is pretrain:2; expected a step from 1 to 1 of stage pretrain'),
  ],
)
def test_a_step_that_is_none_is_refused(where, message, finished):
  with pytest.raises(UserError, match=message):
    debugging.run(config(), finished, where, one_device())


def test_a_run_that_has_not_begun_has_no_step(tmp_path):
  with pytest.raises(UserError, match='holds no stage that has begun'):
    debugging.run(config(), epath.Path(tmp_path), '1', one_device())


def test_several_processes_are_refused(monkeypatch, tmp_path):
  monkeypatch.setattr(distributed, 'several', lambda: True)
  with pytest.raises(UserError, match='--debug_step is for one process'):
    debugging.run(config(), epath.Path(tmp_path), '1', one_device())

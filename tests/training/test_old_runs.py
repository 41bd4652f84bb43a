"""A run's folder that revision 949db9d made (tests/training/old_run) goes on, is evaluated and reported: what is on disk keeps its meaning.

It was killed in its second stage, after step 3 of 4 and the checkpoint of step 2; the numbers are those of the same run when it was not killed. The first stage's
checkpoint was taken out to keep the file small: a stage that has begun does without.
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest

from mimic_jax import main

HERE = pathlib.Path(__file__).parent / 'old_run'
LOSSES = {3: 1.3909884691238403, 4: 1.3619176149368286}
VALID = {'loss': 1.0978437662124634, 'accuracy': 1 / 3, 'count': 24}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The old run, gone on to its end."""
  folder = tmp_path_factory.mktemp('old')
  with tarfile.open(HERE / '949db9d.tar.xz') as archive:
    archive.extractall(folder, filter='data')
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)  # its config says where the pictures are from there
    main.main(['--config', str(HERE / 'config.py'), '--workdir', 'run'])
    yield folder / 'run'


def test_it_goes_on_to_the_numbers_it_would_have_had(run):
  lines = [json.loads(line) for line in (run / 'finetune' / 'metrics.jsonl').read_text().splitlines()]
  losses = {x['step']: x['loss'] for x in lines if x['split'] == 'train'}
  assert sorted(losses) == [1, 2, 3, 4]
  np.testing.assert_allclose([losses[k] for k in LOSSES], list(LOSSES.values()), rtol=2e-5)
  result = json.loads((run / 'finetune' / 'result.json').read_text())['metrics']['valid']
  assert {k: result[k] for k in VALID} == pytest.approx(VALID, rel=2e-5)


def test_it_is_evaluated_and_reported(run):
  out = run / 'again'
  main.main(['evaluate', '--checkpoint', str(run), '--out', str(out)])
  (found,) = json.loads((out / 'evaluation' / 'result.json').read_text())['metrics'].values()
  assert {k: found[k] for k in VALID} == pytest.approx(VALID, rel=2e-5)
  main.main(['report', str(run)])
  assert 'finetune' in (run / 'report.html').read_text()

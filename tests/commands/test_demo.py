"""`mimic demo`: what it refuses before it loads anything, what it says, and a page that runs. The page: tests/serving."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import types
import urllib.request

import numpy as np
import pytest
from etils import epath
from ml_collections import FrozenConfigDict
from PIL import Image

import mimic_jax
from mimic_jax import data, serving
from mimic_jax.commands import demo
from mimic_jax.data import faces as detectors
from mimic_jax.data import source as sources
from mimic_jax.runtime import sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.serving import Prediction, local_page
from mimic_jax.training import loop, workdir
from mimic_jax.training import stage as stage_lib
from tests import small


@pytest.fixture
def _nothing_loads(monkeypatch):
  monkeypatch.setattr(serving, 'load', lambda *a, **k: pytest.fail('it loaded a model'))


@pytest.mark.parametrize(
  ('flag', 'value', 'said'),
  [
    ('--port', '70000', '--port is 70000; expected 0..65535'),
    ('--host', '192.0.2.1', '--host 192.0.2.1 --port 7860 can not be listened at'),
    ('--host', 'no..host', '--host no..host --port 7860 can not be listened at'),
    ('--max_mb', '0', '--max_mb is 0; expected more than 0'),
    ('--max_mb', 'nan', '--max_mb is nan; expected more than 0'),
    ('--detector', 'mtcn', r"--detector is 'mtcn' \(did you mean 'mtcnn'\?\)"),
    ('--faces', 'bx(1)', "--faces is 'bx"),
  ],
)
@pytest.mark.usefixtures('_nothing_loads')
def test_what_is_wrong_is_said_before_a_model_is_loaded(flag, value, said):
  with pytest.raises(UserError, match=said):
    demo.main(['--checkpoint', 'w', flag, value])


@pytest.mark.usefixtures('_nothing_loads')
def test_a_port_in_use_is_said():
  with (
    socket.create_server(('127.0.0.1', 0)) as taken,
    pytest.raises(UserError, match=r'already in use.*; expected .* a free port'),
  ):
    demo.main(['--checkpoint', 'w', '--port', str(taken.getsockname()[1])])


@pytest.mark.usefixtures('_nothing_loads')
def test_what_is_not_installed_is_said(monkeypatch):
  monkeypatch.delitem(sys.modules, 'mimic_jax.serving.local_page')
  monkeypatch.delattr(serving, 'local_page')
  monkeypatch.setitem(sys.modules, 'uvicorn', None)
  with pytest.raises(UserError, match=r"pip install 'mimic-jax\[demo\]'"):
    demo.main(['--checkpoint', 'w'])


def test_an_open_door_and_a_missing_detector_are_said(monkeypatch, capsys):
  def answers(images, **_):
    return [[Prediction('0', 'calm', 1.0, {'calm': 1.0})] for _ in images]

  def absent():
    raise UserError('finding faces needs x; expected it installed')

  pages = []
  reading = {'align': {'align': 'none'}, 'image_size': 8}
  model = types.SimpleNamespace(
    trained=types.SimpleNamespace(reading=reading), class_names=('calm',), answers=answers
  )
  monkeypatch.setattr(serving, 'load', lambda *a, **k: model)
  monkeypatch.setitem(detectors.DETECTORS, 'mtcnn', absent)
  monkeypatch.setattr(local_page, 'server', lambda app: types.SimpleNamespace(run=lambda sockets: None))
  monkeypatch.setattr(local_page, 'app', lambda answer, about, *_: pages.append(about))
  demo.main(['--checkpoint', 'some/run', '--host', '0.0.0.0', '--port', '0'])
  printed = capsys.readouterr()
  assert 'note: finding faces needs x' in printed.err
  assert 'warning: --host 0.0.0.0 lets in every machine' in printed.err
  assert printed.out.startswith('page: http://0.0.0.0:')
  assert pages == ['some/run · 1 classes · whole pictures, since nothing that finds faces is installed here']


@pytest.mark.processes
def test_a_run_is_shown_on_a_page_that_keeps_nothing_and_ends_in_order(tmp_path):
  folder = epath.Path(tmp_path / 'run')
  config = FrozenConfigDict(small.run_config(finetune=small.mimic_stage(steps=2)))
  workdir.begin(folder, config)
  loop.run_stage(stage_lib.Stage(config, 'finetune', folder, sharding.make_mesh()))
  model = mimic_jax.load(folder)
  drawn = data.build('synthetic_faces', '', 'valid', {'size': 8, 'draw_size': 96, 'draw_seed': 0})[3]['image']
  picture = np.asarray(Image.fromarray(drawn).resize((300, 200)))
  found = sorted(model.predict_faces(picture)[0], key=lambda one: one.box[0])
  expected = found or model.predict(picture)

  (here := tmp_path / 'here').mkdir()
  process = subprocess.Popen(
    [sys.executable, '-m', 'mimic_jax', 'demo', '--checkpoint', str(folder), '--port', '0'],
    cwd=here,
    env={**os.environ, 'TMPDIR': str(here), 'PYTHONPATH': str(pathlib.Path(mimic_jax.__file__).parents[1])},
    stdout=subprocess.PIPE,
    text=True,
  )
  address = process.stdout.readline().split()[1]
  for _ in range(2):
    sent = urllib.request.Request(
      f'{address}/answer', sources.encode_png(picture), {'Content-Type': 'image/png'}
    )
    found = json.load(urllib.request.urlopen(sent, timeout=120))
    assert [a['label'] for a in found['answers']] == [one.label for one in expected]
    for got, one in zip(found['answers'], expected, strict=True):
      assert got['probabilities'] == pytest.approx(one.probabilities, abs=1e-5)
      assert got['box'] == (list(one.box) if one.box else None)
      assert got['attention'].startswith('data:image/jpeg')
  assert list(here.rglob('*')) == []
  process.send_signal(signal.SIGINT)
  assert process.stdout.read() == 'page closed\n'
  assert process.wait() == 0

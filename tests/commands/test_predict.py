"""`mimic predict`: what is asked about, how the answers are written, and what is refused. How they come about: tests/serving."""

import csv
import json
import os
import shutil

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from mimic_jax import serving
from mimic_jax.commands import predict
from mimic_jax.data import faces as detectors
from mimic_jax.data.faces.mtcnn import Face
from mimic_jax.runtime.errors import UserError
from mimic_jax.serving import Prediction, frames

NAMES = ('calm', '=cmd', 'wild, "b"')
READING = {'align': {'align': 'none'}, 'image_size': 8}


class StandIn:
  """Answers by a picture's brightness, so that each answer tells which picture it is of."""

  class_names = NAMES
  answers = serving.Model.answers
  _of_faces = serving.Model._of_faces
  _said = serving.Model._said
  trained = type('Trained', (), {'reading': READING})

  def _outputs(self, step, name, given, ids, batch_images):
    source = serving.pictures.Pictures(given, ids)
    bad = {k: f'{ids[k]}: no picture' for k in range(len(given)) if source.size(k) is None}
    light = np.array([0.0 if k in bad else source[k]['image'].mean() / 255 for k in range(len(given))])
    if name == 'attention':
      return light[:, None, None] * np.ones((1, 2, 2)) + np.eye(2), bad
    return np.stack([light, 0 * light, 1 - light], axis=1), bad

  _answer = _attention = None


@pytest.fixture(autouse=True)
def _model(monkeypatch):
  monkeypatch.setattr(serving, 'load', lambda path, ema, field: StandIn())


@pytest.fixture
def folder(tmp_path):
  """Three pictures, one of them in a folder below and broken, and what is none."""
  (tmp_path / 'in' / 'below').mkdir(parents=True)
  Image.new('RGB', (20, 10), 'white').save(tmp_path / 'in' / 'a [1].png')
  Image.new('L', (9, 9)).save(tmp_path / 'in' / 'b.JPG', 'JPEG')
  (tmp_path / 'in' / 'below' / 'c.png').write_bytes(b'no picture')
  (tmp_path / 'in' / 'notes.txt').write_text('no picture')
  return tmp_path / 'in'


@pytest.fixture
def two_faces(monkeypatch):
  """A detector that finds two faces in pictures 20 pixels wide, none in others."""
  face = Face(np.array([0.0, 0.0, 5.0, 5.0]), np.zeros((5, 2)), 0.9)
  monkeypatch.setitem(
    detectors.DETECTORS, 'mtcnn', lambda: lambda image: [face] * 2 if image.width == 20 else []
  )


def ask(*argv) -> None:
  predict.main(['--checkpoint', 'w', *map(str, argv)])


def test_a_table_is_printed_and_every_answer_written(folder, tmp_path, capsys):
  for ending in ('csv', 'jsonl', 'parquet'):
    ask(folder, '--out', tmp_path / f'p.{ending}')
  said = capsys.readouterr().out
  assert 'a [1].png calm 57.6 % =cmd 21.2 %' in ' '.join(said.split())
  assert 'c.png no picture' in ' '.join(said.split())
  assert '2 answers: calm 1, wild, "b" 1' in said
  of_csv = list(csv.DictReader((tmp_path / 'p.csv').open(newline='')))
  of_json = [json.loads(line) for line in (tmp_path / 'p.jsonl').read_text().splitlines()]
  of_parquet = pyarrow.parquet.read_table(tmp_path / 'p.parquet').to_pylist()
  assert [r['id'] for r in of_csv] == [str(folder / n) for n in ('a [1].png', 'b.JPG', 'below/c.png')]
  assert [r['label'] for r in of_csv] == ['calm', 'wild, "b"', '']
  assert 'no picture' in of_csv[2]['error']
  assert of_csv[2]['probability'] == ''
  e = np.exp([1.0, 0.0, 0.0])
  for rows in (of_csv, of_json, of_parquet):
    np.testing.assert_allclose([float(rows[0][f'p_{n}']) for n in NAMES], e / e.sum(), atol=1e-6)
  assert of_json == of_parquet
  assert of_json[2]['probability'] is None


@pytest.mark.parametrize('ending', ['csv', 'jsonl'])
def test_answers_are_written_as_they_come(ending, folder, tmp_path, monkeypatch):
  monkeypatch.setattr(predict, 'PART', 1)
  every = [str(folder / n) for n in ('a [1].png', 'b.JPG', 'below/c.png')]
  flags = ('--out', tmp_path / f'p.{ending}', '--batch_images=1', '--attention', tmp_path / 'seen')
  ask(folder, *flags)
  whole = (tmp_path / f'p.{ending}').read_text()

  def stopped(self, images, **more):
    if every[2] in images:
      raise KeyboardInterrupt
    return serving.Model.answers(self, images, **more)

  monkeypatch.setattr(StandIn, 'answers', stopped)
  with pytest.raises(KeyboardInterrupt):
    ask(folder, *flags)
  part = (tmp_path / f'p.{ending}').read_text()
  assert whole.startswith(part)
  assert [name in part for name in every] == [name in whole for name in every[:2]] + [False]
  assert sorted(p.name[:6] for p in (tmp_path / 'seen').iterdir()) == ['00000_', '00001_']


@pytest.mark.parametrize(('count', 'lengths'), [(0, []), (2, [2]), (3, [3]), (5, [5]), (7, [3, 4])])
def test_no_part_is_smaller_than_it_should_be_but_one_alone(count, lengths):
  names = [str(k) for k in range(count)]
  found = list(predict.parts(names, 3))
  assert [len(part) for part in found] == lengths
  assert [name for part in found for name in part] == names


def test_files_folders_and_patterns_are_found_once_each(folder):
  every = [str(folder / n) for n in ('a [1].png', 'b.JPG', 'below/c.png')]
  assert predict.find([str(folder)]) == (every, [])
  assert predict.find([str(folder / '*.JPG'), str(folder)]) == ([every[1], every[0], every[2]], [])
  assert predict.find([str(folder / '**' / 'c.*')]) == ([every[2]], [])
  assert predict.find([every[0]]) == ([every[0]], [])  # a name with brackets is first of all a name


@pytest.mark.usefixtures('two_faces')
def test_each_face_has_a_row_and_a_picture_without_one_says_so(folder, tmp_path, capsys):
  ask(folder, '--faces=box(0)', '--out', tmp_path / 'p.jsonl', '--attention', tmp_path / 'seen')
  rows = [json.loads(line) for line in (tmp_path / 'p.jsonl').read_text().splitlines()]
  assert [r['label'] for r in rows] == ['calm', 'calm', '', '']
  assert [r['width'] for r in rows] == [5.0, 5.0, None, None]
  assert rows[2]['error'] == 'no face found'
  assert 'face (left, top, width, height)' in capsys.readouterr().out
  seen = sorted((tmp_path / 'seen').iterdir())
  assert [p.name for p in seen] == ['00000_a_1_.png.png', '00001_a_1_.png.png']
  assert Image.open(seen[0]).size == (10, 5)


def test_a_video_is_asked_frame_by_frame(tmp_path, capsys):
  cv2 = pytest.importorskip('cv2')
  path = str(tmp_path / 'clip.avi')
  out = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*'MJPG'), 10, (32, 24))
  for k in range(30):  # three seconds, dark to light, blue
    out.write(np.full((24, 32, 3), (255 * k // 29, 0, 0), np.uint8))
  out.release()
  found = list(frames.of_video(path, 2.0))
  assert [name for name, _ in found] == [f'{path}@{t / 2:.2f}s' for t in range(6)]
  assert found[-1][1][..., 2].mean() > found[0][1][..., 2].mean() + 100  # blue is last: RGB
  assert found[-1][1][..., 0].mean() < 20
  assert len(list(frames.of_video(path, 0))) == 30
  ask(path, '--fps=1', '--batch_images=2', '--out', tmp_path / 'p.csv')
  assert len((tmp_path / 'p.csv').read_text().splitlines()) == 4
  (tmp_path / 'torn.avi').write_bytes((tmp_path / 'clip.avi').read_bytes()[:3000])
  (tmp_path / 'no.mp4').write_bytes(b'no video' * 100)
  for name in ('torn.avi', 'no.mp4'):
    with pytest.raises(UserError, match=rf"{name}' (is no video|holds no readable frame)"):
      ask(tmp_path / name)


def test_a_camera_is_asked_until_ctrl_c(monkeypatch, tmp_path, capsys):
  def shots(number):
    for k in range(3):
      yield f'camera{number}@{k}', np.full((4, 4, 3), 255, np.uint8)
    raise KeyboardInterrupt

  monkeypatch.setattr(frames, 'of_camera', shots)
  ask('--camera=1', '--out', tmp_path / 'p.jsonl')
  assert len((tmp_path / 'p.jsonl').read_text().splitlines()) == 3
  assert 'camera1@2 calm' in ' '.join(capsys.readouterr().out.split())


@pytest.mark.usefixtures('two_faces')
def test_every_face_that_a_camera_sees_is_printed(monkeypatch, capsys):
  monkeypatch.setattr(frames, 'of_camera', lambda number: [('shot', np.zeros((9, 20, 3), np.uint8))])
  ask('--camera=0', '--faces=box(0)')
  seen, _ = capsys.readouterr().out.split('picture')
  assert seen.count('shot') == 2


def test_a_name_that_is_not_utf8_is_written_all_the_same(folder, tmp_path):
  name = os.fsencode(folder) + b'/\xff.png'
  shutil.copy(folder / 'a [1].png', name)
  for ending in ('csv', 'jsonl', 'parquet'):
    ask(os.fsdecode(name), '--out', tmp_path / f'p.{ending}')
  (row,) = csv.DictReader((tmp_path / 'p.csv').open(newline='', encoding='utf-8'))
  assert row['id'] == f'{folder}/\\udcff.png'
  assert json.loads((tmp_path / 'p.jsonl').read_text())['id'] == row['id']
  assert pyarrow.parquet.read_table(tmp_path / 'p.parquet')['id'].to_pylist() == [row['id']]


def test_no_camera_is_one_line():
  pytest.importorskip('cv2')
  with pytest.raises(UserError, match='--camera is 97, and no camera answers there'):
    ask('--camera=97')


@pytest.mark.parametrize(
  ('argv', 'said'),
  [
    ([], 'IMAGES is empty; expected pictures, folders or videos, or --camera 0'),
    (['/no/such'], "'/no/such' does not exist; expected a picture, a folder, a pattern or a video"),
    (['FOLDER/*.gif'], r"\*\.gif' does not exist"),
    (['FOLDER', '--out=x.xlsx'], "--out is 'x.xlsx'; expected a name that ends in .csv, .jsonl, .parquet"),
    (['FOLDER', '--out=/no/such/x.csv'], "--out '/no/such/x.csv' lies in no folder that exists"),
    (
      ['FOLDER', '--attention=FOLDER/notes.txt'],
      r"--attention '.*notes.txt' can not be made \(File exists\)",
    ),
    (['--faces', 'FOLDER/b.JPG'], r"--faces is '.*b\.JPG'; expected"),
    (['FOLDER', '--faces=bx'], "--faces is 'bx' \\(did you mean 'box'"),
    (['FOLDER', '--detector=dlib'], "--detector is 'dlib'; expected one of mtcnn"),
    (['FOLDER', '--fps=-1'], r'--fps is -1\.0; expected 0 or more'),
    (['FOLDER', '--fps=nan'], '--fps is nan'),
    (['FOLDER/below'], r'c\.png: no picture; expected a picture'),
    (['FOLDER', '--batch_images=0'], '--batch_images is 0; expected at least 1'),
  ],
)
def test_what_is_wrong_is_one_line(folder, argv, said):
  with pytest.raises(UserError, match=said) as e:
    ask(*(a.replace('FOLDER', str(folder)) for a in argv))
  assert '\n' not in str(e.value)


def test_an_empty_folder_is_one_line(tmp_path):
  with pytest.raises(UserError, match='no pictures in'):
    ask(tmp_path)


def test_only_the_first_rows_stand_in_the_table():
  lines = predict.table(
    [Prediction(str(k), 'calm', 1.0, {'calm': 1.0}) for k in range(predict.MOST_ROWS + 5)]
  )
  assert len(lines) == predict.MOST_ROWS + 2
  assert lines[-1] == '… and 5 more (--out keeps all)'

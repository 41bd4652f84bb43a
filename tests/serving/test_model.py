"""A loaded model answers as the evaluation does, whatever form a picture comes in."""

import numpy as np
import pytest
from etils import epath
from ml_collections import FrozenConfigDict
from PIL import Image

import mimic_jax
from mimic_jax import data, models
from mimic_jax.commands import evaluate
from mimic_jax.data import faces as detectors
from mimic_jax.data.faces.mtcnn import Face
from mimic_jax.models import rollout
from mimic_jax.runtime import sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.serving import faces
from mimic_jax.training import loop, workdir
from mimic_jax.training import stage as stage_lib
from tests import small

SIDE = 24  # of the drawn pictures, which the model sees at 16: they are resized, and on the device


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of two stages, whose answers differ from picture to picture."""
  folder = epath.Path(tmp_path_factory.mktemp('run'))
  drawn = {'data.draw_size': SIDE}
  stages = {
    'pretrain': small.mae_stage(steps=1, **drawn),
    'finetune': small.mimic_stage(steps=3, **{**drawn, 'optim.lr': 1e-2}),
  }
  config = FrozenConfigDict(small.run_config(**stages))
  workdir.begin(folder, config)
  for name in stages:
    loop.run_stage(stage_lib.Stage(config, name, folder, sharding.make_mesh()))
  return folder


@pytest.fixture(scope='module')
def model(run):
  return mimic_jax.load(run)


@pytest.fixture(scope='module')
def drawn():
  source = data.build('synthetic_faces', '', 'valid', {'size': 24, 'draw_size': SIDE, 'draw_seed': 0})
  return [source[i]['image'] for i in range(len(source))]


def probabilities(found) -> np.ndarray:
  return np.array([list(one.probabilities.values()) for one in found])


def softmax(logits: np.ndarray) -> np.ndarray:
  e = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


def check_against(predictions, found, ids) -> None:
  """Holds answers against an evaluation's predictions.npz, to float32's rounding."""
  p = dict(np.load(predictions))
  assert [str(i) for i in p['id']] == ids
  np.testing.assert_allclose(probabilities(found), softmax(p['logits']), atol=2e-7)
  assert [one.label for one in found] == [str(p['class_names'][k]) for k in p['logits'].argmax(1)]
  assert np.ptp(p['logits'], axis=0).max() > 1e-3  # else any answer would do


def test_drawn_pictures_are_answered_as_the_run_measured_them(run, model, drawn):
  npz = run / 'finetune' / 'predictions.npz'
  found = model.predict(drawn, batch_images=16)
  check_against(npz, found, [str(i) for i in np.load(npz)['id']])
  # They have the size of the training's pictures: resized by the reader, to whole numbers, they would be others.
  shifted = mimic_jax.load(run)
  shifted.trained.reading['image_shape'] = None
  assert np.abs(probabilities(shifted.predict(drawn)) - probabilities(found)).max() > 1e-5


def test_a_folder_of_many_sizes_is_answered_as_evaluate_measures_it(run, model, drawn, tmp_path, rng):
  root = tmp_path / 'set'
  for k, picture in enumerate(drawn):
    path = root / 'valid' / ('anger' if k % 2 else 'fear') / f'{k:02d}.{"png" if k % 3 else "jpg"}'
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture).resize(tuple(int(v) for v in rng.integers(10, 90, 2)))
    exif = Image.Exif()
    exif[0x0112] = 6 if k % 5 == 0 else 1  # some lie on their side
    image.save(path, exif=exif)
  where = ['--data.source=folder', f'--data.root={root}', '--data.split=valid', '--samples=0']
  evaluate.main(['--checkpoint', str(run), '--out', str(tmp_path / 'e'), '--batch_images=16', *where])
  npz = tmp_path / 'e' / 'evaluation' / 'predictions.npz'
  ids = [str(i) for i in np.load(npz)['id']]
  check_against(npz, model.predict([root / i for i in ids]), ids)


def test_paths_pil_pictures_and_arrays_are_one(model, drawn, tmp_path):
  image = Image.fromarray(drawn[0])
  image.save(tmp_path / 'a.png')
  of_path, of_pil, of_array = (model.predict(x) for x in (str(tmp_path / 'a.png'), image, drawn[0]))
  assert [of_path[0].id, of_pil[0].id] == [str(tmp_path / 'a.png'), '0']
  np.testing.assert_array_equal(probabilities(of_path), probabilities(of_pil))
  np.testing.assert_array_equal(probabilities(of_path), probabilities(of_array))
  assert image.size == (SIDE, SIDE)  # as it was given, open
  large = Image.fromarray(drawn[0]).resize((150, 130))  # large enough for a JPEG to be decoded at an eighth
  large.save(tmp_path / 'b.jpg', quality=20)
  of_file, of_pixels = (
    model.predict(x) for x in (tmp_path / 'b.jpg', np.asarray(Image.open(tmp_path / 'b.jpg')))
  )
  np.testing.assert_array_equal(probabilities(of_file), probabilities(of_pixels))
  together = model.predict([tmp_path / 'a.png', image, drawn[0], drawn[1][:, :, 0]])
  np.testing.assert_allclose(probabilities(together)[:3], probabilities(of_path).repeat(3, 0), atol=1e-6)


def test_features_are_the_evaluations_and_a_model_without_classifier_has_some(run, model, drawn):
  there = np.load(run / 'finetune' / 'features.npz')['features']
  np.testing.assert_allclose(model.embed(drawn, batch_images=16), there, atol=1e-5)
  pretrained = mimic_jax.load(run / 'pretrain')
  t = pretrained.trained
  encoder = models.merge(t.template, t.params, t.rest).encoder

  def resized(channel):
    image = Image.fromarray(channel.astype(np.float32))  # of floats Pillow rounds nothing
    return np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))

  x = np.array([[resized(p[:, :, c]) for c in range(3)] for p in drawn[:4]]).transpose(0, 2, 3, 1) / 255
  x = (x - t.reading['mean']) / np.asarray(t.reading['std'])
  want = np.asarray(encoder(x.astype(np.float32), norm=False))[:, 1:].mean(axis=1)
  np.testing.assert_allclose(pretrained.embed(drawn[:4]), want, atol=1e-4)
  with pytest.raises(
    UserError, match=r'has no classifier \(its objective is masked_autoencoding\); expected a fine'
  ):
    pretrained.predict(drawn)
  with pytest.raises(UserError, match='can not show attention'):
    pretrained.attention(drawn)


def test_attention_is_the_rollout_of_what_the_model_sees(model, drawn):
  found = model.attention(drawn[:8])
  t = model.trained
  encoder = models.merge(t.template, t.params, t.rest).encoder
  x = t.objective._seen(np.stack(drawn[:8]))
  np.testing.assert_allclose(found, rollout.attention_rollout(encoder, x, 'gap'), atol=1e-6)
  (one,), *_ = model.answers(drawn[:2], attention=True)
  np.testing.assert_allclose(one.attention, found[0], atol=1e-6)
  np.testing.assert_array_equal(one.seen, drawn[0])


def test_faces_are_cut_out_as_the_record_says(model, drawn, monkeypatch):
  """A stand-in finds two faces; what is asked about are their boxes and a tenth around."""
  boxes = np.array([[4.0, 6.0, 10.0, 10.0], [0.0, 0.0, 8.0, 12.0]])
  points = np.zeros((5, 2))
  stand_in = lambda image: [Face(b, points, s) for b, s in zip(boxes, (0.9, 0.8))]  # noqa: E731
  monkeypatch.setitem(detectors.DETECTORS, 'mtcnn', lambda: stand_in)
  cutter = faces.Cutter(model.trained.reading)
  assert "says of its faces 'none'" in cutter.note
  ((one, two),) = model.predict_faces(drawn[0], cutter)
  assert (one.box, one.score, two.box) == ((4.0, 6.0, 10.0, 10.0), 0.9, (0.0, 0.0, 8.0, 12.0))
  cut = [drawn[0][5:17, 3:15], drawn[0][0:13, 0:9]]
  np.testing.assert_array_equal(probabilities([one, two]), probabilities(model.predict(cut)))
  recorded = {**model.trained.reading, 'align': {'align': 'five_point(arcface)', 'size': 20}}
  assert faces.Cutter(recorded).note == ''
  assert faces.Cutter(recorded)(Image.fromarray(drawn[0])) == []  # points in one place give no turn
  monkeypatch.setitem(detectors.DETECTORS, 'mtcnn', lambda: lambda image: [])
  assert model.predict_faces(drawn[:2]) == [[], []]


@pytest.mark.parametrize(
  ('images', 'said'),
  [
    ([], 'images is empty; expected at least one picture'),
    ('/no/such.jpg', '/no/such.jpg: does not exist; expected a picture'),
    (7, r'images\[0\] is of type int; expected a path'),
    ([None], r'images\[0\] is of type NoneType'),
    (np.zeros((4, 4, 3), np.float32), r'images\[0\] is an array of float32 \[4, 4, 3\]; expected uint8'),
    (np.zeros((2, 4, 4, 4), np.uint8), r'images\[0\] is an array of uint8 \[4, 4, 4\]'),
    ([np.zeros((0, 4, 3), np.uint8)], r'images\[0\] is an array of uint8 \[0, 4, 3\]'),
    (b'\xff\xd8\xff', r'images\[0\] is of type int'),
  ],
)
def test_what_is_no_picture_is_one_line(model, images, said):
  with pytest.raises(UserError, match=said):
    model.predict(images)
  with pytest.raises(UserError, match=said):
    model.embed(images)


def test_one_that_can_not_be_read_has_an_error_of_its_own(model, drawn, tmp_path):
  (tmp_path / 'b.jpg').write_bytes(b'\xff\xd8\xff\xe0 no more')
  (good,), (bad,), (twice,) = model.answers([drawn[0], tmp_path / 'b.jpg', tmp_path / 'b.jpg'])
  assert good.label
  assert str(tmp_path / 'b.jpg') in bad.error
  assert bad.label == ''
  assert twice.error == bad.error
  with pytest.raises(UserError, match=r'b\.jpg'):
    model.predict([drawn[0], tmp_path / 'b.jpg'])


def test_where_there_is_no_model_it_is_said(tmp_path):
  with pytest.raises(UserError, match=f"path is '{tmp_path}/x', which does not exist"):
    mimic_jax.load(tmp_path / 'x')


def test_a_run_stays_one_whatever_lies_in_its_folder(run):
  for folder in (run, run / 'finetune'):
    (folder / 'w.pth').write_bytes(b'no weights')
    assert mimic_jax.load(folder).trained.step == 3
    (folder / 'w.pth').unlink()


def test_published_weights_with_a_classifier_answer_as_transformers_does(tmp_path, rng):
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  names = ('surprise', 'fear', 'anger')
  config = transformers.ViTConfig(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8,
    id2label=dict(enumerate(names)), label2id={n: k for k, n in enumerate(names)}, layer_norm_eps=1e-3,
  )  # fmt: skip
  torch.manual_seed(int(rng.integers(1 << 30)))
  theirs = transformers.ViTForImageClassification(config).eval()
  for parameter in theirs.parameters():
    torch.nn.init.normal_(parameter, std=0.2)
  theirs.save_pretrained(tmp_path / 'w')
  (tmp_path / 'w' / 'preprocessor_config.json').write_text(
    '{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.6, 0.7]}'
  )
  x = rng.integers(0, 256, (5, 16, 16, 3), np.uint8)
  pixels = (x / 255 - [0.5, 0.4, 0.3]) / [0.5, 0.6, 0.7]
  with torch.no_grad():
    want = theirs(torch.tensor(pixels.transpose(0, 3, 1, 2)).float()).logits.softmax(-1).numpy()
  model = mimic_jax.load(tmp_path / 'w')
  assert model.class_names == names
  np.testing.assert_allclose(probabilities(model.predict(x)), want, atol=1e-6)
  with pytest.raises(UserError, match=r'--ema: path is .*no second set'):
    mimic_jax.load(tmp_path / 'w', ema=True)
  with pytest.raises(
    UserError, match=r"safetensors' does not show how many heads it has; expected a model folder"
  ):
    mimic_jax.load(tmp_path / 'w' / 'model.safetensors')
  transformers.ViTModel(config).save_pretrained(tmp_path / 'bare')
  with pytest.raises(UserError, match='has no classifier; expected fine-tuned weights'):
    mimic_jax.load(tmp_path / 'bare')

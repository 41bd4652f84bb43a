"""What leaves against the libraries that load it, and read back bit by bit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from mimic_jax import models, weights
from mimic_jax.models import masking
from mimic_jax.runtime import checkpoint
from mimic_jax.runtime.errors import UserError
from mimic_jax.weights import writing
from tests.weights import test_weights as given
from tests.weights.test_weights import transformers  # noqa: F401  (a fixture)

PIXELS = {'interpolation': 'bicubic', 'mean': (0.5, 0.4, 0.3), 'std': (0.2, 0.3, 0.25)}
SIZE = given.PATCH * given.GRID
BEIT_LACKS = 'encoder/blocks/attn/qkv/bias'  # the keys' third of it


def objective_of(kind, **fields):
  """An objective by what is exported of it: 'gap' and 'cls' classify, 'mae' has a decoder."""
  section = given.model_section(**fields)
  if kind == 'mae':
    return given.mae_objective(section)
  return given.mimic_objective(section, drop_path=0.0, **{'head.pool': kind})


def random_model(rng, objective):
  """Returns a model with random weights, and what is written of it."""
  template, *trees = models.split(objective.init(jax.random.key(0)), objective.trainable)
  found = {}
  for tree in trees:
    for name, leaf in checkpoint.flatten(tree).items():
      if jnp.issubdtype(leaf.dtype, jnp.floating):
        centre = 1.0 if name.endswith(('scale', 'var')) else 0.0
        found[name] = np.abs(rng.normal(centre, 0.15, leaf.shape)).astype(np.float32)
        found[name] *= np.where(centre or rng.random(leaf.shape) < 0.5, 1, -1).astype(np.float32)
  full = [
    checkpoint.nest({k: jnp.asarray(found.get(k, v)) for k, v in checkpoint.flatten(t).items()})
    for t in trees
  ]
  written = writing.Model(found, objective.config, objective.class_names, objective.facts(), PIXELS)
  return models.merge(template, *full), written


def images_of(rng, count=3, size=SIZE):
  return rng.normal(size=(count, size, size, 3)).astype(np.float32)


def channels_first(torch, images):
  return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


ROUND_TRIPS = [(form, kind) for form in ('hf', 'timm') for kind in ('gap', 'cls', 'mae')]
ROUND_TRIPS += [('mae', 'gap'), ('mae', 'mae')]


@pytest.mark.parametrize(('form', 'kind'), ROUND_TRIPS)
def test_what_is_written_is_read_bit_by_bit_and_written_the_same_again(rng, tmp_path, form, kind):
  if form == 'mae':
    pytest.importorskip('torch')
  objective = objective_of(kind)
  _, m = random_model(rng, objective)
  for name in ('once', 'again'):
    (tmp_path / name).mkdir()
  left_out = writing.write(form, m, epath.Path(tmp_path / 'once'))
  read = weights.read(str(tmp_path / 'once'), 'x')
  gone = (
    'projection/',
    *(['encoder/norm/'] if kind == 'gap' else []),
    *(['decoder/'] if form == 'timm' else []),
  )
  assert sorted(left_out) == sorted(n for n in m.tensors if n.startswith(gone))
  assert not read.unused
  assert set(read.tensors) == set(m.tensors) - set(left_out)
  for name, array in read.tensors.items():
    expected = m.tensors[name].copy()
    if (form, kind, name) == ('hf', 'gap', BEIT_LACKS):
      expected[:, given.DIM : 2 * given.DIM] = 0
    np.testing.assert_array_equal(array, expected)
  assert read.class_names == (m.class_names or None)
  held = {k: read.facts[k] for k in ('heads', 'mean', 'std', 'interpolation')}
  assert held == {'heads': given.HEADS, **PIXELS}
  assert read.facts.get('norm_pix', True)
  # what was read leaves as it came
  again = writing.Model(read.tensors, m.config, m.class_names, m.facts, PIXELS)
  assert writing.write(form, again, epath.Path(tmp_path / 'again')) == []
  for file in (tmp_path / 'once').iterdir():
    if file.suffix != '.pth':  # a zip file of PyTorch's need not be the same
      assert file.read_bytes() == (tmp_path / 'again' / file.name).read_bytes()
  back = weights.read(str(tmp_path / 'again'), 'x').tensors
  for name, array in read.tensors.items():
    np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize(
  ('kind', 'fields'),
  [('gap', {}), ('gap', {'layer_scale': 1.0}), ('cls', {}), ('gap', {'layer_norm_eps': 1e-3})],
)
def test_logits_of_transformers_are_ours(rng, transformers, tmp_path, kind, fields):  # noqa: F811
  import torch

  model, m = random_model(rng, objective_of(kind, **fields))
  writing.write('hf', m, epath.Path(tmp_path))
  named = json.loads((tmp_path / 'config.json').read_text())['architectures'][0]
  theirs, loading = getattr(transformers, named).from_pretrained(tmp_path, output_loading_info=True)
  assert not any(loading.values()), loading
  assert theirs.config.id2label == dict(enumerate(given.NAMES))
  images = images_of(rng)
  with torch.no_grad():
    logits = theirs.eval()(channels_first(torch, images)).logits.numpy()
  np.testing.assert_allclose(model.classifier(model.features(jnp.asarray(images))), logits, atol=1e-5)


def test_the_decoder_of_transformers_predicts_what_ours_does(rng, transformers, tmp_path):  # noqa: F811
  import torch

  objective = objective_of('mae')
  model, m = random_model(rng, objective)
  writing.write('hf', m, epath.Path(tmp_path))
  theirs, loading = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
  assert not any(loading.values()), loading
  images, noise = images_of(rng), rng.uniform(size=(3, given.GRID**2)).astype(np.float32)
  with torch.no_grad():
    found = theirs.eval()(channels_first(torch, images), noise=torch.from_numpy(noise))
  masks = masking.masks_from_noise(jnp.asarray(noise), objective.mask_ratio)
  np.testing.assert_allclose(model(jnp.asarray(images), masks), found.logits.numpy(), atol=1e-5)
  assert (theirs.config.norm_pix_loss, theirs.config.mask_ratio) == (True, 0.75)


def test_transformers_own_processor_sees_what_an_evaluation_sees(rng, transformers, tmp_path):  # noqa: F811
  _, m = random_model(rng, objective_of('cls'))
  writing.write('hf', m, epath.Path(tmp_path))
  processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
  picture = rng.integers(0, 256, (48, 40, 3), np.uint8)
  theirs = processor(picture, return_tensors='np')['pixel_values'].transpose(0, 2, 3, 1)
  resized = np.asarray(
    Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
  )  # as data/crops.py
  seen = (theirs[0] * PIXELS['std'] + PIXELS['mean']) * 255
  assert np.abs(seen - resized).max() < 1.01  # torchvision, where it is installed, rounds otherwise than PIL
  assert np.abs(seen - resized).mean() < 0.1


RESNET = {
  **{'preset': 'resnet18', 'image_size': 64, 'stem': '7x7'},
  **dict.fromkeys(('patch_size', 'dim', 'depth', 'heads'), 0),
}


@pytest.mark.parametrize(
  ('kind', 'fields'), [('gap', {}), ('cls', {}), ('cls', {'layer_scale': 1.0}), ('mae', {}), ('gap', RESNET)]
)
def test_logits_of_timm_are_ours(rng, tmp_path, kind, fields):
  torch = pytest.importorskip('torch')
  timm = pytest.importorskip('timm')
  objective = objective_of(kind, **fields)
  model, m = random_model(rng, objective)
  writing.write('timm', m, epath.Path(tmp_path))
  theirs = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
  images = images_of(rng, size=objective.config.image_size)
  with torch.no_grad():
    found = theirs(channels_first(torch, images)).numpy()
  if kind == 'mae':
    ours = np.asarray(model.encoder.features(jnp.asarray(images), pool='cls'))
  else:
    ours = np.asarray(objective.answers(model, jnp.asarray(images))['logits'])
  np.testing.assert_allclose(found, ours, atol=1e-5 * max(1, np.abs(ours).max()))
  config = timm.data.resolve_data_config({}, model=theirs)
  assert all(tuple(config[k]) == PIXELS[k] for k in ('mean', 'std'))
  assert (config['interpolation'], config['crop_mode'], config['crop_pct']) == ('bicubic', 'squash', 1.0)
  for name, array in weights.read(str(tmp_path), 'x').tensors.items():
    np.testing.assert_array_equal(array, m.tensors[name])


@pytest.mark.parametrize('kind', ['gap', 'cls', 'mae'])
def test_a_pth_has_the_names_and_logits_of_maes_code(rng, tmp_path, kind):
  torch = pytest.importorskip('torch')
  model, m = random_model(rng, objective_of(kind))
  writing.write('mae', m, epath.Path(tmp_path))
  loaded = torch.load(tmp_path / 'model.pth', weights_only=True)
  assert list(loaded) == ['model']
  state = {k: v.numpy() for k, v in loaded['model'].items()}
  as_theirs = given.timm_encoder(rng, norm='' if kind == 'gap' else 'norm')
  if kind == 'mae':
    as_theirs |= given.mae_decoder(rng)
  else:
    as_theirs |= given.pair(rng, 'head', len(given.NAMES), given.DIM)
    as_theirs |= given.pair(rng, 'fc_norm', given.DIM) if kind == 'gap' else {}
  assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in as_theirs.items()}
  if kind != 'mae':
    images = images_of(rng)
    _, logits = given.torch_vit(torch, state, images, kind)
    np.testing.assert_allclose(model.classifier(model.features(jnp.asarray(images))), logits, atol=1e-5)


@pytest.mark.parametrize(
  ('form', 'kind', 'fields', 'said'),
  [
    (
      'hf',
      'cls',
      {'registers': 4, 'layer_scale': 1.0},
      'register tokens .*; expected one of onnx, stablehlo',
    ),
    ('hf', 'cls', {'layer_scale': 1.0}, 'layer scale without global pooling; expected one of timm, onnx'),
    ('mae', 'gap', {'layer_scale': 1.0}, 'layer scale; expected one of hf, timm, onnx'),
    (
      'timm',
      'gap',
      {'layer_norm_eps': 1e-12},
      'layer_norm_eps of 1e-12, it has 1e-06; expected one of hf, onnx',
    ),
    ('hf', 'gap', RESNET, 'ResNet; expected one of timm, onnx'),
    (
      'timm',
      'gap',
      {**RESNET, 'stem': '3x3'},
      r'ResNet with a stem of 3 × 3 .*; expected one of onnx',
    ),
  ],
)
def test_a_form_that_has_no_place_for_a_model_is_refused_and_those_that_have_are_named(
  form, kind, fields, said
):
  objective = objective_of(kind, **fields)
  names = {'classifier/fc/kernel': np.zeros((2, 3), np.float32)}
  m = writing.Model(names, objective.config, objective.class_names, objective.facts(), PIXELS)
  with pytest.raises(UserError, match=f"--format is '{form}', which has no .*{said}"):
    writing.check(form, m, '--format')


def test_a_beit_of_its_own_is_refused_by_name(rng, transformers, tmp_path):  # noqa: F811
  for field in ('use_relative_position_bias', 'use_shared_relative_position_bias'):
    config = {**given.vit_config(), field: True}
    transformers.BeitForImageClassification(transformers.BeitConfig(**config)).save_pretrained(tmp_path)
    given.refused(tmp_path, r'relative_position_bias.*, as BEiT has it')

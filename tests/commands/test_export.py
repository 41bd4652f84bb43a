"""Export as a command: every form of a run's model, its card, what is refused; programs say what the model says."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from ml_collections import FrozenConfigDict

from mimic_jax import augment, models, objectives, weights
from mimic_jax.commands import export
from mimic_jax.runtime import checkpoint, files, sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import trained, workdir
from mimic_jax.weights import programs
from tests import small

NAMES = ('happiness', 'sadness', 'anger')
AUGMENT = {'interpolation': 'bicubic', 'mean': (0.5, 0.4, 0.3), 'std': (0.2, 0.3, 0.25)}
SCORES = {
  'count': 400,
  'accuracy': 0.75,
  'intervals': {'accuracy': {'low': 0.7, 'high': 0.8}},
  'per_class': {n: {'recall': 0.5, 'precision': 0.4, 'f1': 0.44, 'support': 100} for n in NAMES},
}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run's folder as training leaves it, its weights fresh: the last of two checkpoints is measured."""
  folder = epath.Path(tmp_path_factory.mktemp('runs') / 'run')
  stage = small.mimic_stage(ema=0.5, **{f'augment.{k}': v for k, v in AUGMENT.items()})
  config = FrozenConfigDict(small.run_config(finetune=stage))
  workdir.begin(folder, config)
  objective = objectives.make(stage, config.model, NAMES, 'objective')
  meta = {
    'stage': 'finetune',
    'config': workdir.as_dict(config),
    'data': 'x',
    'reading': {**AUGMENT, 'image_size': 16, 'class_names': list(NAMES), 'classifier': 'classifier/fc'},
    'origin': {'origin': 'mae_pretrain_vit_base.pth', 'kind': 'MAE pre-training, encoder alone'},
  }
  with checkpoint.opened(folder / 'finetune', 2) as checkpoints:
    for step in (3, 4):
      model = objective.init(jax.random.key(step))
      _, params, rest = models.split(model, objective.trainable)
      params['classifier']['fc']['kernel'] = jax.random.normal(jax.random.key(step), (16, 3))
      checkpoints.save(
        step, {'params': params, 'rest': rest, 'ema': jax.tree.map(lambda a: a / 2, params)}, meta
      )
  source = {'source': 'ferplus', 'count': 800, 'label_rule': 'majority', 'split_hash': 'abc'}
  align = {'align': 'mtcnn', 'size': 112}
  workdir.update_record(
    folder, data={'finetune': {'train': source, 'valid': source, 'reading': {'align': align}}}
  )
  ema = {**SCORES, 'accuracy': 0.6}
  files.write_json(
    folder / 'finetune' / 'result.json',
    {'objective': 'mimic', 'steps': 4, 'metrics': {'valid': SCORES, 'valid_ema': ema}},
  )
  return folder


def exported(run, out, form, *more):
  export.main(['--checkpoint', str(run), '--format', form, '--out', str(out), *more])
  return out


def ours(run, images, ema=False):
  """What the run's model says of normalised pictures."""
  model = trained.load(str(run), sharding.make_mesh(), ema=ema)
  params, rest = jax.device_get((model.params, model.rest))
  answers = jax.jit(lambda x: model.objective.answers(models.merge(model.template, params, rest), x))
  return jax.device_get(answers(images))


@pytest.mark.parametrize('form', ['hf', 'timm'])
def test_weights_leave_with_what_says_how_to_use_them(run, tmp_path, form, capsys):
  out = exported(run, tmp_path / 'new' / 'x', form)
  assert 'left out: encoder/norm, projection/fc1, projection/fc2' in capsys.readouterr().out
  read = weights.read(str(out), 'x')
  assert read.class_names == NAMES
  assert {k: read.facts[k] for k in AUGMENT} == AUGMENT
  theirs = weights.read(str(run), 'x').tensors
  np.testing.assert_array_equal(read.tensors['classifier/fc/kernel'], theirs['classifier/fc/kernel'])
  assert [p.name for p in out.parent.iterdir()] == ['x']
  assert len({p.stat().st_mode for p in out.iterdir()}) == 1


def test_the_card_says_what_the_run_says(run, tmp_path):
  (tmp_path / 'x').mkdir()  # an empty folder will do
  card = (exported(run, tmp_path / 'x', 'hf') / 'README.md').read_text()
  for said in (
    'pipeline_tag: image-classification',
    "BeitForImageClassification.from_pretrained('x')",
    'data: ferplus, 800 pictures',
    'labels: majority',
    'alignment: mtcnn, 112',
    'mean (0.5, 0.4, 0.3)',
    '| accuracy | 75.00 % | 70.00 – 80.00 % |',
    '| anger | 100 | 50.0 % | 40.4 – 59.6 % | 40.0 % | 44.0 % |',
    'initial weights (MAE pre-training, encoder alone): CC-BY-NC 4.0',
    'data (ferplus): labels MIT',
    'Regulation 2024/1689',
  ):
    assert said in card
  averaged = (exported(run, tmp_path / 'ema', 'hf', '--ema') / 'README.md').read_text()
  assert '| accuracy | 60.00 % |' in averaged
  assert '75.00 %' not in averaged
  earlier = (
    exported(run / 'finetune' / 'checkpoints' / '3', tmp_path / 'earlier', 'hf') / 'README.md'
  ).read_text()
  assert 'Not measured: these are the weights of step 3' in earlier
  assert '75.00 %' not in earlier


def test_weights_that_were_exported_leave_again_as_they_are(run, tmp_path):
  first = exported(run, tmp_path / 'first', 'hf')
  second = exported(first, tmp_path / 'second', 'timm')
  a, b = (weights.read(str(folder), 'x') for folder in (first, second))
  assert a.tensors.keys() == b.tensors.keys()
  for name, tensor in a.tensors.items():
    np.testing.assert_array_equal(tensor, b.tensors[name], err_msg=name)
  assert (b.class_names, {k: b.facts[k] for k in AUGMENT}) == (NAMES, AUGMENT)
  cards = [(folder / 'README.md').read_text() for folder in (first, second)]
  assert 'initial weights (Hugging Face BEiT): not known here' in cards[1]
  counts = [re.search(r'parameters: ([\d,]+)', card)[1] for card in cards]
  assert counts == [f'{sum(t.size for t in a.tensors.values()):,}'] * 2


def test_a_stablehlo_program_says_bit_by_bit_what_the_model_says(run, tmp_path, rng):
  pytest.importorskip('flatbuffers')
  pictures = rng.integers(0, 256, (5, 16, 16, 3), np.uint8)
  normalised = augment.normalise(jnp.asarray(pictures), AUGMENT['mean'], AUGMENT['std'])
  for name, more, images in (('raw', ['--ema'], normalised), ('whole', ['--preprocess'], pictures)):
    out = exported(run, tmp_path / name, 'stablehlo', *more)
    said = json.loads((out / 'model.json').read_text())
    program = jax.export.deserialize(bytearray((out / said['file']).read_bytes()))
    assert program.platforms == ('cpu', 'cuda', 'tpu')
    assert said['inputs'] == {'images': {'shape': ['B', 16, 16, 3], 'dtype': str(images.dtype)}}
    assert (said['class_names'], said['pixels']['normalises']) == (list(NAMES), name == 'whole')
    found, expected = program.call(images), ours(run, normalised, ema=name == 'raw')
    assert list(said['outputs']) == list(found) == ['features', 'logits', 'probabilities']
    for key, value in expected.items():
      if name == 'raw':
        np.testing.assert_array_equal(found[key], value)
      else:  # normalised in one program with the rest, which rounds otherwise
        np.testing.assert_allclose(found[key], value, atol=1e-5)
    np.testing.assert_allclose(found['probabilities'].sum(axis=-1), 1, atol=1e-6)


def test_an_onnx_program_says_what_the_model_says(run, tmp_path, rng, caplog, capsys):
  pytest.importorskip('jax2onnx')
  onnxruntime = pytest.importorskip('onnxruntime')
  pictures = rng.integers(0, 256, (5, 16, 16, 3), np.uint8)
  out = exported(run, tmp_path / 'x', 'onnx', '--preprocess')
  assert not caplog.records  # jax2onnx logs a traceback for each library that it knows and that is not here
  assert re.search(r'largest difference from this model: features \d', capsys.readouterr().out)
  session = onnxruntime.InferenceSession(out / 'model.onnx')
  names = [o.name for o in session.get_outputs()]
  found = dict(zip(names, session.run(None, {'images': pictures})))
  assert names == ['features', 'logits', 'probabilities']
  expected = ours(run, augment.normalise(jnp.asarray(pictures), AUGMENT['mean'], AUGMENT['std']))
  for key, value in expected.items():
    np.testing.assert_allclose(found[key], value, atol=1e-5)


def test_a_program_that_says_otherwise_is_no_export(run, tmp_path, monkeypatch):
  written = programs._stablehlo

  def off(*args):
    run = written(*args)
    return lambda images: {k: v + 1e-3 * np.abs(v).max() for k, v in run(images).items()}

  monkeypatch.setattr(programs, '_stablehlo', off)
  with pytest.raises(UserError, match=r"the stablehlo program's features differ by .* from this model's"):
    exported(run, tmp_path / 'x', 'stablehlo')
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('flags', 'match'),
  [
    (['--format=hg'], r"--format is 'hg' \(did you mean 'hf'\?\); expected one of hf, timm, mae, "),
    (
      ['--format=hf', '--preprocess'],
      "--preprocess is of programs, and --format is 'hf'; expected stablehlo or onnx",
    ),
    (['--format=hf', '--out={full}'], 'which is there already; expected a new or empty folder'),
    (['--format=hf', '--out=gs://b/x'], "--out is 'gs://b/x'; expected a folder on this machine"),
    (['--format=hf', '--out={full}/file/x'], "--out '.*' can not be written"),
    (['--format=hf', '--checkpoint=/nowhere'], "--checkpoint is '/nowhere', which does not exist"),
  ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(run, tmp_path, flags, match):
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'file').write_text('mine')
  usual = ['--checkpoint', str(run), '--out', str(tmp_path / 'x')]
  with pytest.raises(UserError, match=match) as e:
    export.main([*usual, *(f.format(full=tmp_path / 'full') for f in flags)])
  assert '\n' not in str(e.value)
  assert [p.name for p in tmp_path.rglob('*')] == ['full', 'file']


def test_what_a_form_needs_and_is_not_installed_is_named_first(monkeypatch):
  monkeypatch.setattr(programs.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match=r"'onnx', which needs jax2onnx, .* expected `pip install jax2onnx`"):
    export.main(['--checkpoint=/nowhere', '--format=onnx', '--out=x'])

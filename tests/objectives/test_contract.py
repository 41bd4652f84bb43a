"""The contract of an objective (objectives/base.py) carries what it promises: objectives that are defined here run through the front
door, are stopped, go on to the same bits, are evaluated and reported. Nothing of mimic_jax knows them."""

import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx

from mimic_jax import augment, defaults, losses, main, models, objectives, weights
from mimic_jax.data.sets import synthetic_faces
from mimic_jax.objectives import base
from mimic_jax.report import sheets
from mimic_jax.report.drawing import Drawing
from mimic_jax.runtime import checkpoint, files
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import log, results
from tests import small

STEPS = 6


class Plain(base.Objective):
  """A linear classifier on the encoder's class token."""

  labelled = True
  classifier = ('head',)

  def __init__(self, stage, model, class_names):
    self.stage, self.model, self.class_names = stage, model, class_names
    self.config = models.encoder_config(model)

  @classmethod
  def defaults(cls):
    return defaults.stage()

  def init(self, key):
    rngs = nnx.Rngs(key)
    model = nnx.Module()
    model.encoder = models.vit.Encoder(self.config, rngs=rngs)
    model.head = nnx.Linear(self.config.dim, len(self.class_names), rngs=rngs)
    return model

  def augment(self, batch, key):
    x = augment.training_views(
      key, batch['image'], views=1, size=self.config.image_size, **self.stage['augment']
    )
    return {**batch, 'image': x[:, 0]}

  def logits(self, model, x):
    return model.head(model.encoder(x)[:, 0].astype(jnp.float32))

  def loss(self, model, batch, key, step, total_steps):
    y = jax.nn.one_hot(batch['label'], len(self.class_names))
    return losses.soft_cross_entropy(self.logits(model, batch['image']), y), {}

  def evaluate(self, model, batch):
    a = self.stage['augment']
    x = augment.evaluation_view(
      batch['image'], self.config.image_size, a['interpolation'], a['mean'], a['std']
    )
    logits = self.logits(model, x)
    right = (jnp.argmax(logits, axis=-1) == batch['label']) & batch['mask']
    wrong = jnp.sum(batch['mask']) - jnp.sum(right)
    return {
      'sums': {'loss': (wrong, batch['mask'].sum()), 'rightness': (right.sum(), batch['mask'].sum())},
      'outputs': {'logits': logits},
    }


class Stateful(Plain):
  """A momentum encoder, a queue, batch statistics and dropout: state that is not trained, which the loss updates."""

  def init(self, key):
    model = super().init(key)
    rngs = nnx.Rngs(jax.random.fold_in(key, 1))
    model.momentum = models.vit.Encoder(self.config, rngs=rngs)
    model.queue = nnx.Variable(jnp.ones((16, self.config.dim)) / self.config.dim**0.5)
    model.norm = nnx.BatchNorm(self.config.dim, rngs=rngs)
    model.encoder.dropout = nnx.Dropout(0.5, rngs=rngs)  # its random key is no weight that stages hand over
    model.steps = nnx.Variable(0)
    return model

  def trainable(self, path):
    return path[0] != 'momentum'

  def initial(self, path):
    if path[0] == 'momentum':
      return 'needed', ('encoder', *path[1:])
    return super().initial(path)

  def loss(self, model, batch, key, step, total_steps):
    m = 1 - 0.5 * (1 + jnp.cos(jnp.pi * step / total_steps)) * 0.01
    old, new = (nnx.state(e, nnx.Param) for e in (model.momentum, model.encoder))
    nnx.update(
      model.momentum, jax.tree.map(lambda a, b: m * a + (1 - m) * jax.lax.stop_gradient(b), old, new)
    )
    keys = jax.lax.stop_gradient(model.momentum(batch['image'])[:, 0].astype(jnp.float32))
    model.steps[...] += 1
    q = model.encoder.dropout(model.norm(model.encoder(batch['image'])[:, 0].astype(jnp.float32)))
    logits = jnp.concatenate([q @ keys.T, q @ model.queue[...].T], axis=1)
    y = jnp.eye(*logits.shape)
    model.queue[...] = jnp.concatenate([keys, model.queue[...]])[: len(model.queue[...])]
    ce, _ = super().loss(model, batch, key, step, total_steps)
    return ce + 0.1 * losses.soft_cross_entropy(logits, y), {'momentum': m}


class Adversaries(Plain):
  """A generator against a discriminator in two groups; an inner ascent over latent variables that are kept as state."""

  @classmethod
  def defaults(cls):
    s = defaults.stage()
    s.optim_critic = defaults.optimiser()
    return s

  def init(self, key):
    rngs = nnx.Rngs(key)
    model = super().init(key)
    model.generator = nnx.Linear(4, self.config.dim, rngs=rngs)
    model.critic = nnx.Linear(self.config.dim, 1, rngs=rngs)
    model.latent = nnx.Variable(jax.random.normal(rngs.params(), (8, 4)))
    return model

  def group(self, path):
    return 'critic' if path[0] == 'critic' else ''

  def loss(self, model, batch, key, step, total_steps):
    stop = jax.lax.stop_gradient
    fixed = lambda m: nnx.merge(*(stop(t) if i else t for i, t in enumerate(nnx.split(m))))  # noqa: E731
    real = stop(model.encoder(batch['image'])[:, 0].astype(jnp.float32))
    critic, generator = fixed(model.critic), fixed(model.generator)
    rise = jax.grad(lambda z: jnp.sum(critic(generator(z))))(model.latent[...])
    model.latent[...] = stop(model.latent[...] + 0.1 * rise)
    fake = model.generator(model.latent[...])
    critics = jnp.mean(jax.nn.softplus(-model.critic(real))) + jnp.mean(
      jax.nn.softplus(model.critic(stop(fake)))
    )
    generators = jnp.mean(jax.nn.softplus(-critic(fake)))
    ce, _ = super().loss(model, batch, key, step, total_steps)
    return ce + critics + generators, {'critic': critics, 'generator': generators}


class Pairs(Plain):
  """Groups of two pictures with a float target, and a frozen network read from a file."""

  pictures = 2
  teacher = ''

  def inputs(self):
    return {'image': base.Crops(), 'brightness': base.Target(), 'corners': base.Target((2, 2))}

  def frozen(self):
    teacher = Stateful(self.stage, self.model, self.class_names)
    return {'teacher': base.Frozen(self.teacher, 'teacher', teacher.init, lambda path: 'needed')}

  def augment(self, batch, key):
    B, G = batch['label'].shape
    flat = {k: v.reshape(B * G, *v.shape[2:]) for k, v in batch.items()}
    out = super().augment(flat, key)
    return {k: v.reshape(B, G, *v.shape[1:]) for k, v in out.items()}

  def loss(self, model, batch, key, step, total_steps):
    x = batch['image'].reshape(-1, *batch['image'].shape[2:])
    mine, theirs = (m.encoder(x)[:, 0].astype(jnp.float32) for m in (model, model.teacher))
    distilled = jnp.mean((mine - jax.lax.stop_gradient(theirs)) ** 2)
    a, b = (jax.nn.one_hot(batch['label'][:, g], len(self.class_names)) for g in (0, 1))
    brightness = jnp.mean((mine[:, 0].reshape(batch['brightness'].shape) - batch['brightness']) ** 2)
    corners = jnp.sum(batch['corners'], axis=(2, 3)) - 4 * batch['brightness']
    return distilled + brightness, {'same_class': jnp.mean((a * b).sum(-1)), 'corners': jnp.mean(corners)}

  def evaluate(self, model, batch):
    found = super().evaluate(model, batch)
    answer = model.teacher.encoder(batch['image'] / 255.0)[:, 0, 0]
    return {**found, 'outputs': {'answer': answer, 'truth': batch['brightness']}}

  def figures(self, outputs):
    return {'correlation': float(np.corrcoef(outputs['answer'], outputs['truth'])[0, 1])}

  def look(self, model, batch):
    pictures = augment.to_uint8(np.asarray(batch['image'] / 255.0), (0, 0, 0), (1, 1, 1))[:, None]
    title = f'The teacher has {model.teacher.head.kernel.shape[1]} classes'
    return {'seen': Drawing('Seen', title, pictures, ('picture',))}


class Groups:
  """Drawn faces whose groups are their classes, and whose brightness is a target."""

  def __init__(self, source):
    self._source, self.class_names, self.image_shape = source, source.class_names, source.image_shape
    self._labels = np.array([source.label(i) for i in range(len(source))])
    brightness = np.linspace(0, 1, len(source), dtype=np.float32)
    self.targets = {'brightness': brightness, 'corners': np.tile(brightness[:, None, None], (1, 2, 2))}

  def __len__(self):
    return len(self._labels)

  def __getitem__(self, i):
    return {**self._source[i], **{k: v[i] for k, v in self.targets.items()}}

  def __getattr__(self, name):
    if name.startswith('__') or '_source' not in self.__dict__:
      raise AttributeError(name)
    return getattr(self._source, name)

  def group(self, i):
    return np.flatnonzero(self._labels == self._labels[i])


@pytest.fixture(autouse=True)
def house(monkeypatch):
  """The objectives under their dotted names; nothing is drawn."""
  for kind in (Plain, Stateful, Adversaries, Pairs):
    module = types.ModuleType(f'tests_of.{kind.__name__.lower()}')
    module.Objective = kind
    monkeypatch.setitem(sys.modules, module.__name__, module)
  monkeypatch.setitem(sys.modules, 'tests_of', types.ModuleType('tests_of'))
  monkeypatch.setattr(sheets, 'save_contact_sheet', lambda *_: None)
  monkeypatch.setattr(results, 'show', lambda *_, **__: None)
  build = synthetic_faces.build
  monkeypatch.setattr(synthetic_faces, 'build', lambda *a: Groups(build(*a)))


def train(kind, tmp_path, workdir, **changes):
  """Runs the front door on a config of one stage of an objective."""
  file = tmp_path / 'config.py'
  stage = f'tests_of.{kind.__name__.lower()}'
  fields = {
    'data.source': 'synthetic_faces', 'data.size': 32, 'data.draw_size': 16, 'data.cache': False, 'eval.size': 16,
    'eval.batch_images': 16, 'steps': STEPS, 'batch_images': 8, 'checkpoint.every_epochs': 0.5, 'optim.lr': 1e-3,
    'optim.warmup_epochs': 0.0, 'eval.every_epochs': 0.0, 'objective': stage, **changes,
  }  # fmt: skip
  file.write_text(
    'from mimic_jax import objectives\nfrom tests import small\n'
    f'def get_config():\n  s = objectives.defaults({stage!r})\n  s.update_from_flattened_dict({fields!r})\n'
    '  return small.run_config(only=s)\n'
  )
  main.main(['--config', str(file), '--workdir', str(workdir)])
  return json.loads((workdir / 'only' / 'result.json').read_text())


def lines(workdir, split='train'):
  found = files.read_jsonl(epath.Path(workdir) / 'only' / 'metrics.jsonl')
  timed = ('seconds', 'images_per_second')
  return [{k: v for k, v in x.items() if k not in timed} for x in found if x['split'] == split]


def arrays(workdir):
  return checkpoint.read_arrays(
    *checkpoint.find(epath.Path(workdir) / 'only'), ('params', 'rest', 'opt_state')
  )


@pytest.mark.parametrize(
  'kind', [Plain, *(pytest.param(k, marks=pytest.mark.processes) for k in (Stateful, Adversaries, Pairs))]
)
def test_it_trains_is_stopped_goes_on_to_the_same_bits_and_is_reported(kind, tmp_path, monkeypatch):
  changes = {}
  if kind is Stateful:
    train(Plain, tmp_path, tmp_path / 'first')
    changes = {'init': str(tmp_path / 'first')}
  if kind is Pairs:
    train(Stateful, tmp_path, tmp_path / 'first')
    monkeypatch.setattr(Pairs, 'teacher', str(tmp_path / 'first'))
  whole = train(kind, tmp_path, tmp_path / 'whole', **changes)

  class StoppedError(Exception):
    pass

  def stop(self, step, measured):
    if step == 4:
      raise StoppedError
    add(self, step, measured)

  add = log.Log.add
  with monkeypatch.context() as patch:
    patch.setattr(log.Log, 'add', stop)
    with pytest.raises(StoppedError):
      train(kind, tmp_path, tmp_path / 'halves', **changes)
  halves = train(kind, tmp_path, tmp_path / 'halves', **changes)

  assert lines(tmp_path / 'halves') == lines(tmp_path / 'whole')
  assert len(lines(tmp_path / 'whole')) == STEPS
  a, b = arrays(tmp_path / 'whole'), arrays(tmp_path / 'halves')
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].tobytes() == b[name].tobytes(), name
  assert halves['metrics'] == whole['metrics']
  found = whole['metrics']['valid']
  if kind is not Pairs:
    assert found['rightness'] == pytest.approx(found['accuracy'])
    assert found['loss'] == pytest.approx(1 - found['accuracy'])
  assert (tmp_path / 'whole' / 'report.html').stat().st_size > 10_000
  main.main(['evaluate', '--checkpoint', str(tmp_path / 'whole'), '--data.split=valid', '--data.size=16'])

  if kind is Stateful:
    begun = arrays(tmp_path / 'first')
    moved = a['rest/momentum/patch_embed/kernel'] - begun['params/encoder/patch_embed/kernel']
    assert 0 < np.abs(moved).max() < 1e-3  # it began as the encoder and went a little after it
    assert np.abs(a['rest/queue'] - 1 / 4).max() > 0.01
    assert a['rest/norm/mean'].any()
    assert a['rest/encoder/dropout/rngs/count'] == STEPS == a['rest/steps']
    again = train(kind, tmp_path, tmp_path / 'again', init=str(tmp_path / 'whole'))
    assert again['init'] != 'scratch'
    (held,) = json.loads((tmp_path / 'again' / 'record.json').read_text())['weights'].values()
    assert held == {'origin': again['init'], 'kind': 'mimic_jax checkpoint'}
    assert arrays(tmp_path / 'again')['rest/encoder/dropout/rngs/count'] == STEPS
  if kind is Adversaries:
    assert {'lr', 'lr_critic', 'grad_norm', 'grad_norm_critic'} <= lines(tmp_path / 'whole')[0].keys()
    assert {n.split('/')[1] for n in a if n.startswith('opt_state')} != {'0'}
  if kind is Pairs:
    assert not [n for n in a if 'teacher' in n]
    assert [x['same_class'] for x in lines(tmp_path / 'whole')] == [1.0] * STEPS
    assert [x['corners'] for x in lines(tmp_path / 'whole')] == [0.0] * STEPS
    said = np.load(tmp_path / 'whole' / 'only' / 'predictions.npz')
    assert {'id', 'split', 'label', 'answer', 'truth'} == set(said.files)
    assert found['correlation'] == pytest.approx(np.corrcoef(said['answer'], said['truth'])[0, 1])
    assert (tmp_path / 'whole' / 'only' / 'pictures' / 'seen.png').exists()
    main.main(['layout', '--config', str(tmp_path / 'config.py'), '--devices', '8', '--fsdp', '1'])


def test_class_columns_are_matched_by_name_whatever_the_classifier_is_called(tmp_path):
  train(Plain, tmp_path, tmp_path / 'first')
  read = weights.read(str(tmp_path / 'first'), 'init')
  names = read.class_names
  turned = [*names[1:], names[0]]
  fitted, _ = weights.fit(
    read, read.tensors, lambda path: 'needed', 'init', classifier='head', class_names=turned
  )
  for name in ('head/kernel', 'head/bias'):
    np.testing.assert_array_equal(fitted[name], np.roll(read.tensors[name], -1, axis=-1))
  # Into another objective's classifier, by another name.
  renamed = {'classifier/kernel': read.tensors['head/kernel']}
  rule = lambda path: ('needed', ('head', path[-1]))  # noqa: E731
  fitted, _ = weights.fit(read, renamed, rule, 'init', classifier='classifier', class_names=turned)
  np.testing.assert_array_equal(
    fitted['classifier/kernel'], np.roll(read.tensors['head/kernel'], -1, axis=-1)
  )
  with pytest.raises(UserError, match='has a classifier of 7 classes'):
    weights.fit(read, read.tensors, lambda path: 'needed', 'init', classifier='head', class_names=names[1:])


def refused(kind, tmp_path, capsys):
  """Returns the line that the front door says of a config; nothing may be left behind."""
  with pytest.raises(SystemExit) as e:
    train(kind, tmp_path, tmp_path / 'run')
  assert e.value.code == 2
  assert not (tmp_path / 'run').exists()
  (line,) = capsys.readouterr().err.splitlines()
  return line


def test_what_a_source_lacks_is_named_with_what_it_offers(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(Pairs, 'inputs', lambda self: {'image': base.Crops(), 'valence': base.Target()})
  assert (
    "data.source is 'synthetic_faces', which offers brightness, corners; objective 'tests_of.pairs' needs 'valence'"
    in (refused(Pairs, tmp_path, capsys))
  )
  monkeypatch.setattr(Pairs, 'inputs', lambda self: {'image': base.Crops(), 'corners': base.Target((2,))})
  assert "whose 'corners' has shape (2, 2); objective 'tests_of.pairs' needs (2,)" in refused(
    Pairs, tmp_path, capsys
  )


def test_a_frozen_network_without_its_file_is_refused_before_anything_is_computed(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(Pairs, 'teacher', str(tmp_path / 'nowhere'))
  said = refused(Pairs, tmp_path, capsys)
  assert f"config.only.teacher is '{tmp_path}/nowhere', which does not exist" in said


def test_a_group_without_its_optimiser_is_refused(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(Adversaries, 'defaults', Plain.defaults)
  assert "parameters in group 'critic'; expected a section optim_critic" in refused(
    Adversaries, tmp_path, capsys
  )


def test_the_plain_one_is_short():
  import inspect

  assert len(inspect.getsource(Plain).splitlines()) < 60


def test_what_an_objective_refuses_is_named_as_it_is_typed():
  def said(field, **changes):
    with pytest.raises(UserError) as e:
      objectives.make(small.mimic_stage(**changes), small.model_section(), ('a', 'b'), field)
    return str(e.value)

  changes = {'views': 1, 'contrast.labels': 'instance'}
  assert said('config.second.objective', **changes).startswith('config.second.views is 1; expected 2')
  assert said('--checkpoint', **changes).startswith('views is 1')

"""The sizes that a config leaves to its first weights, in runs on pictures of one's own: they stay when the weights are gone."""

import json
import shutil

import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from PIL import Image
from safetensors.numpy import save_file

from mimic_jax import config as config_lib
from mimic_jax import main, objectives, weights
from mimic_jax.commands import evaluate
from mimic_jax.models import resnet
from mimic_jax.report import sheets
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import log, planned, results, run, sizes
from tests import peers, small
from tests.weights.test_weights import hugging_face, timm_encoder


def hugging_face_folder(rng, folder, **config):
  """A model folder as transformers writes it: 2 blocks of 3 heads, an epsilon and pixels that are not ours."""
  folder.mkdir()
  save_file(hugging_face(timm_encoder(rng)), folder / 'model.safetensors')
  config = {'num_attention_heads': 3, 'layer_norm_eps': 1e-12, **config}
  (folder / 'config.json').write_text(json.dumps(config))
  (folder / 'preprocessor_config.json').write_text(
    '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
  )
  return folder


def taken(*flags):
  command = config_lib.parse(['main', '--config=finetune_folder:init', *flags])
  return sizes.resolved(command.config)[0]


@pytest.mark.processes
def test_a_run_on_class_folders_without_a_valid_split_goes_on_and_is_evaluated_when_its_weights_are_gone(
  rng, tmp_path, monkeypatch, capfd
):
  for k in range(40):
    path = tmp_path / 'mine' / ('glad', 'sorry')[k % 2] / f'{k}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
  for module, names in (
    (results, ('show', '_draw')),
    (results.page, ('write',)),
    (evaluate, ('_draw',)),
    (sheets, ('save_contact_sheet',)),
  ):
    for name in names:  # pictures and the report take longer than the training here
      monkeypatch.setattr(module, name, lambda *_, **__: None)
  published = hugging_face_folder(rng, tmp_path / 'published')
  workdir = tmp_path / 'run'
  flags = {
    'model.dtype': 'float32',
    'finetune.steps': 6,
    'finetune.batch_images': 8,
    'finetune.checkpoint.every_epochs': 0.5,
    'finetune.data.held_out': 0.3,
  }
  flags |= {
    'data.root': tmp_path / 'mine',
    'init': published,
    'finetune.eval.every_epochs': 0.0,
  }
  flags |= {'log.progress': False, 'log.tensorboard': False, 'finetune.eval.batch_images': 8, 'log.every': 1}
  command = [
    '--config',
    'finetune_folder:init',
    '--workdir',
    str(workdir),
    *(f'--config.{k}={v}' for k, v in flags.items()),
  ]

  class StoppedError(Exception):
    pass

  def stop(self, step, measured):
    if step == 5:
      raise StoppedError
    original(self, step, measured)

  original = log.Log.add
  with monkeypatch.context() as patch:
    patch.setattr(log.Log, 'add', stop)
    with pytest.raises(StoppedError):
      main.main(command)
  said = capfd.readouterr().err
  assert f'sizes as {published} has them' in said
  assert 'layer_norm_eps 1e-12' in said
  assert 'mean (0.5, 0.5, 0.5)' in said
  assert said.count('no valid split: ') == 1
  shutil.rmtree(published)
  monkeypatch.setattr(weights, 'read', None)  # nor are they looked for
  main.main(command)
  assert 'resumed after step' in capfd.readouterr().err
  with pytest.raises(UserError, match=r'another config \(model.image_size: 32 → 48\)'):
    run.run(config_lib.parse(['main', *command, '--config.model.image_size=48']))

  config = json.loads((workdir / 'config.json').read_text())
  found = {
    k: config['model'][k]
    for k in ('preset', 'image_size', 'patch_size', 'dim', 'depth', 'heads', 'layer_norm_eps')
  }
  assert found == {
    'preset': 'init',
    'image_size': 32,
    'patch_size': 8,
    'dim': 24,
    'depth': 2,
    'heads': 3,
    'layer_norm_eps': 1e-12,
  }
  assert config['finetune']['augment']['mean'] == config['finetune']['augment']['std'] == [0.5, 0.5, 0.5]
  record = json.loads((workdir / 'record.json').read_text())
  assert record['of_init']['model']['dim'] == 24
  parts = {name: record['data']['finetune'][name] for name in ('train', 'valid')}
  about = parts['train']['held_out']
  assert about == parts['valid']['held_out']
  assert {n: parts[n]['count'] for n in parts} == {n: about[n] for n in parts}
  assert about['train'] + about['valid'] == 40

  main.main(['evaluate', '--checkpoint', str(workdir), '--out', str(tmp_path / 'e'), '--batch_images=8'])
  measured, theirs = (
    json.loads((folder / 'result.json').read_text())['metrics']
    for folder in (tmp_path / 'e/evaluation', workdir / 'finetune')
  )
  assert measured['valid'].items() >= theirs['valid'].items()  # and what of it stands in the training set


@pytest.mark.parametrize(
  ('flags', 'field', 'value'),
  [
    ([], 'model.image_size', 32),
    (['--config.model.image_size=48'], 'model.image_size', 48),
    (['--config.model.image_size=224'], 'model.image_size', 224),
    (['--config.finetune.augment.std=(0.2,0.2,0.2)'], 'finetune.augment.std', (0.2, 0.2, 0.2)),
    (['--config.model.depth=1'], 'model.depth', 1),
  ],
)
def test_what_the_config_says_stays(rng, tmp_path, flags, field, value):
  config = taken(f'--config.init={hugging_face_folder(rng, tmp_path / "w")}', *flags)
  assert dict(config_lib.fields(config))[field] == value
  assert config.finetune.augment.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(('preset', 'stem', 'size'), [('resnet18', '3x3', 0), ('resnet50', '7x7', 64)])
def test_a_resnet_is_known_by_its_blocks_and_its_stem(tmp_path, capsys, preset, stem, size):
  net = peers.torch_resnet(pytest.importorskip('torch'), *resnet.PRESETS[preset], stem == '3x3')
  save_file({k: v.numpy() for k, v in net.state_dict().items()}, tmp_path / 'w')
  config = taken(f'--config.init={tmp_path / "w"}', f'--config.model.image_size={size}')
  assert (config.model.preset, config.model.stem, config.model.image_size) == (preset, stem, size or 224)
  objectives.make(config.finetune, config.model, ('a', 'b'), 'objective')
  main.main(['weights', 'inspect', str(tmp_path / 'w')])
  pretraining, *uses = capsys.readouterr().out.split('of a model of these sizes')[1:]
  assert 'can not       config.model.preset' in pretraining
  assert len(uses) == 2
  assert not [told for told in uses if 'can not' in told]
  state = {k: v for k, v in net.state_dict().items() if not k.startswith('layer2.1.')}
  save_file({k: v.numpy() for k, v in state.items()}, tmp_path / 'w')
  with pytest.raises(
    UserError, match='w is a ResNet of other blocks than resnet18 and resnet50 have; expected one'
  ):
    taken(f'--config.init={tmp_path / "w"}')


def test_a_run_of_ours_gives_its_sizes(tmp_path):
  model = small.model_section(layer_norm_eps=1e-5)
  facts = weights.facts_lib.of_checkpoint(
    {'encoder/cls_token': np.zeros((1, 1, 16)), 'encoder/patch_embed/kernel': np.zeros((192, 16))},
    {'config': {'model': model.to_dict()}, 'reading': {'mean': [0.1, 0.2, 0.3]}},
  )
  assert {k: facts[k] for k in ('heads', 'layer_norm_eps', 'mean')} == {
    'heads': 2,
    'layer_norm_eps': 1e-5,
    'mean': (0.1, 0.2, 0.3),
  }
  stem = {'encoder/conv1/kernel': np.zeros((3, 3, 3, 16))}
  facts = weights.facts_lib.of_checkpoint(stem, {'config': {}, 'reading': {'image_size': 42}})
  assert facts['image_size'] == 42  # which no shape of a ResNet says: it was taken for 224


@pytest.mark.parametrize('dim', [28, 44, 1152])
def test_the_ratio_of_an_mlp_makes_its_width(dim):
  for hidden in range(1, 5 * dim):
    ratio = weights.facts_lib.sizes({'dim': dim, 'mlp_hidden': hidden})['mlp_ratio']
    assert int(dim * ratio) == hidden


def test_plans_are_made_of_the_weights_sizes(rng, tmp_path):
  config = planned.configured(
    'finetune_folder:init', [f'--config.init={hugging_face_folder(rng, tmp_path / "w")}']
  )
  assert (config.model.dim, config.model.heads) == (24, 3)


def test_what_is_missing_is_one_line(rng, tmp_path):
  def refused(match, *flags):
    with pytest.raises(UserError, match=match) as e:
      taken(*flags)
    assert '\n' not in str(e.value)

  refused(r"preset is 'init', and config.finetune.init is ''; expected .*--config.init=W")
  refused(r"config.finetune.init is '/nowhere', which does not exist", '--config.init=/nowhere')
  save_file(timm_encoder(rng), tmp_path / 'w')  # no preset's width: nobody can say how many heads
  refused(
    r'w does not show its heads; expected --config.model.heads= with it', f'--config.init={tmp_path / "w"}'
  )
  assert taken(f'--config.init={tmp_path / "w"}', '--config.model.heads=3').model.heads == 3
  zeros = hugging_face_folder(rng, tmp_path / 'zeros')
  (zeros / 'preprocessor_config.json').write_text('{"image_std": [0, 0, 0]}')
  refused(r'config.finetune.augment.std is \(0.0, 0.0, 0.0\); expected', f'--config.init={zeros}')


def test_another_run_is_never_taken_for_this_one(rng, tmp_path):
  """A folder where a run failed before it had saved anything has the sizes of whatever weights that was."""
  first, second = (
    hugging_face_folder(rng, tmp_path / 'a'),
    hugging_face_folder(rng, tmp_path / 'b', num_attention_heads=6),
  )
  kept = taken(f'--config.init={first}')
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run/config.json').write_text(kept.to_json_best_effort())
  config = config_lib.parse(['main', '--config=finetune_folder:init', f'--config.init={second}']).config
  assert sizes.resolved(FrozenConfigDict(config), str(tmp_path / 'run'))[0].model.heads == 6

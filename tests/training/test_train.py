"""The loop: the same run on any number of devices, the same bits after an interruption, nothing lost to a bad step."""

import gzip
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from ml_collections import FrozenConfigDict
from PIL import Image

from mimic_jax import main, models, objectives
from mimic_jax.data import pipeline
from mimic_jax.data.bad_image import BadImage
from mimic_jax.data.sets import synthetic_faces
from mimic_jax.report import sheets
from mimic_jax.runtime import checkpoint, feed, files, sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import log, loop, results, workdir
from mimic_jax.training import run as run_lib
from mimic_jax.training import stage as stage_lib
from mimic_jax.training import step as program
from tests import small

STAGES = {
  'pretrain': small.mae_stage,
  'moco': small.moco_stage,
  'finetune': small.mimic_stage,
  'probe': small.probe_stage,
  'scn': small.scn_stage,
  'regression': small.regression_stage,
  'hmtl': small.hmtl_stage,
  'inpaint': small.inpaint_stage,
  'ssl_fer': small.ssl_fer_stage,
  'amcl_masks': small.amcl_masks_stage,
  'amcl': lambda **changes: small.amcl_stage(**{'amcl.latents': 'table', 'amcl.table': 32, **changes}),
}

METHOD = ('pretrain', 'finetune')


@pytest.fixture(autouse=True)
def no_report(request, monkeypatch):
  """Leaves out pictures and the report, which take longer than the training here, where they are not what is tested."""
  if 'leaves_behind' not in request.node.name:
    monkeypatch.setattr(results, 'show', lambda *_, **__: None)
    monkeypatch.setattr(results, '_draw', lambda *_: None)
    monkeypatch.setattr(results.page, 'write', lambda *_, **__: None)
    monkeypatch.setattr(sheets, 'save_contact_sheet', lambda *_, **__: None)


def run(config, folder, *, devices=8, fsdp=1, init='', name=None) -> dict:
  """Runs one stage of a config in `folder` and returns its result."""
  config = FrozenConfigDict(config)
  name = name or config.stages
  mesh = sharding.make_mesh(-1, fsdp, jax.devices()[:devices])
  folder = epath.Path(folder)
  stage = stage_lib.Stage(config, name, folder, mesh, init)
  workdir.begin(folder, config)
  return loop.run_stage(stage)


def losses(folder, name: str) -> list[float]:
  return [
    x['loss'] for x in files.read_jsonl(epath.Path(folder) / name / 'metrics.jsonl') if x['split'] == 'train'
  ]


def final_arrays(folder, name: str, step: int) -> dict[str, np.ndarray]:
  prefixes = ('params', 'rest', 'opt_state')
  return checkpoint.read_arrays(epath.Path(folder) / name / checkpoint.FOLDER, step, prefixes)


def test_the_record_says_where_the_time_to_the_first_step_went_at_each_start(tmp_path):
  config = small.run_config(finetune=small.mimic_stage(steps=2))
  run(config, tmp_path)
  first = files.read_json(epath.Path(tmp_path) / 'record.json')['start']
  assert list(first['finetune']) == ['data', 'compile', 'restore']
  (tmp_path / 'finetune' / 'result.json').unlink()
  shutil.rmtree(tmp_path / 'finetune' / 'checkpoints' / '2')
  config.log.every = 2
  run(config, tmp_path)
  again = files.read_json(epath.Path(tmp_path) / 'record.json')['start']
  assert list(again) == ['finetune']
  assert again != first


def test_a_run_that_is_stopped_says_which_whole_step_is_on_disk(tmp_path):
  kept = tmp_path / 'pretrain' / 'checkpoints'
  for name in ('3/state', '10/state', '12.orbax-checkpoint-tmp/state', '11'):
    (kept / name).mkdir(parents=True)
  said = run_lib._on_disk(epath.Path(tmp_path), ['pretrain', 'finetune'])
  assert said == f'step 10 of pretrain is on disk ({kept})'
  assert run_lib._on_disk(epath.Path(tmp_path), ['finetune']) == 'there is no checkpoint yet'


def test_the_steps_that_are_asked_for_are_traced_and_others_are_not(tmp_path, capsys):
  config = small.run_config(pretrain=small.mae_stage(steps=6))
  config.profile = 2
  run(config, tmp_path)
  (file,) = (tmp_path / 'pretrain' / 'profile').rglob('*.trace.json.gz')
  events = json.loads(gzip.decompress(file.read_bytes()))['traceEvents']
  traced = {e['args']['step_num'] for e in events if e.get('name') == 'train'}
  assert traced == {'3', '4'}
  assert f'xprof --logdir {tmp_path}/pretrain/profile' in capsys.readouterr().err


@pytest.mark.processes
@pytest.mark.parametrize('name', STAGES)
def test_fifty_losses_are_the_same_however_the_devices_share_the_batch_and_the_parameters(
  name, tmp_path, monkeypatch
):
  monkeypatch.setattr(sharding, 'SMALLEST_SPLIT', 512)  # else nothing of so small a model would be split
  config = FrozenConfigDict(small.run_config(**{name: STAGES[name](steps=50)}))
  found = {}
  every = jax.devices()
  layouts = {'one': (every[:1], 1), 'data': (every, 1), 'both': (every, 4)}
  if name in METHOD:  # what a layout does is much the same for the others
    permuted = [every[k] for k in (5, 2, 7, 0, 3, 6, 1, 4)]
    layouts |= {'fsdp': (every, 8), 'two slices': (every, 4), 'permuted': (permuted, 2)}
  for layout, (devices, fsdp) in layouts.items():
    with monkeypatch.context() as patch:
      if layout == 'two slices':
        patch.setattr(sharding, 'slice_of', lambda device: -device.id % 2)
      mesh = sharding.make_mesh(-1, fsdp, devices)
    stage = stage_lib.Stage(config, name, epath.Path(tmp_path), mesh)
    state, key = stage.program.init(jax.random.key(1)), jax.random.key(2)
    held = (state['rest'], state['opt_state'])  # a linear probe's encoder is not trained
    split = [x for x in jax.tree.leaves(held) if not x.sharding.is_fully_replicated]
    assert bool(split) == (fsdp > 1)
    found[layout] = []
    for batch in feed.on_devices(stage.batches(0), 50, mesh):
      state, measured = stage.program.step(state, batch, key)
      found[layout].append(float(measured['loss']))
  one, *others = found.values()
  assert len(one) == len(set(one)) == 50
  for other in others:
    np.testing.assert_allclose(other, one, rtol=2e-5)


@pytest.mark.parametrize(
  'name',
  [pytest.param(n, marks=() if n in METHOD else pytest.mark.processes) for n in STAGES],
)
def test_a_run_stopped_and_resumed_has_the_same_bits_as_one_that_was_not(name, tmp_path, monkeypatch):
  config = small.run_config(**{name: STAGES[name](**{'checkpoint.every_epochs': 0.5})})  # every 4 of 10 steps
  run(config, tmp_path / 'whole')

  class StoppedError(Exception):
    pass

  def stop(self, step, measured):
    if step == 6:
      raise StoppedError
    original(self, step, measured)

  original = log.Log.add
  with monkeypatch.context() as patch:
    patch.setattr(log.Log, 'add', stop)
    with pytest.raises(StoppedError):
      run(config, tmp_path / 'halves')
  assert losses(tmp_path / 'halves', name) == losses(tmp_path / 'whole', name)[:5]
  run(config, tmp_path / 'halves')

  assert losses(tmp_path / 'halves', name) == losses(tmp_path / 'whole', name)
  whole, halves = (final_arrays(tmp_path / d, name, 10) for d in ('whole', 'halves'))
  assert whole.keys() == halves.keys()
  for key, value in whole.items():
    assert value.tobytes() == halves[key].tobytes(), key


def test_pictures_that_lie_on_the_devices_give_the_same_bits(tmp_path):
  name = 'finetune'
  held = small.run_config(**{name: STAGES[name](**{'data.resident': True})})
  stage = stage_lib.Stage(FrozenConfigDict(held), name, epath.Path(tmp_path), sharding.make_mesh())
  stage.prepare()
  batches = stage.batches(0)
  assert 'image' not in next(batches)
  batch = next(feed.on_devices(batches, 1, stage.mesh, stage.pictures))
  assert len(batch['image'].sharding.device_set) == 8
  for picture, i in zip(np.asarray(batch['image']), np.asarray(batch['index'])):
    np.testing.assert_array_equal(picture, stage.source[int(i)]['image'])
  batches.close()
  run(held, tmp_path / 'held')
  run(small.run_config(**{name: STAGES[name]()}), tmp_path / 'read')
  assert losses(tmp_path / 'held', name) == losses(tmp_path / 'read', name)


def test_pictures_of_many_sizes_or_a_bad_one_can_not_lie_on_the_devices(tmp_path):
  for k, side in enumerate((16, 16, 24)):
    (tmp_path / 'train' / 'ab'[k % 2]).mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (side, side)).save(tmp_path / 'train' / 'ab'[k % 2] / f'{k}.png')
  changes = {'data.resident': True, 'data.source': 'folder', 'data.root': str(tmp_path), 'eval.splits': ''}
  config = small.run_config(finetune=small.mimic_stage(**changes))
  with pytest.raises(UserError, match=r"data.resident is True, and the pictures of 'folder' have many sizes"):
    run(config, tmp_path / 'run')
  source = synthetic_faces.build('', 'train', small.mimic_stage().data)
  bad = BadImage('a.png', 'is empty')
  with pytest.raises(
    UserError, match=r'a.png: is empty; expected pictures that can be read, or data.resident'
  ):
    pipeline.whole(Broken(source, {3: bad}), threads=2)


def test_a_split_is_not_called_as_the_training_itself_is(tmp_path):
  config = small.run_config(finetune=small.mimic_stage(**{'eval.splits': 'valid,train'}))
  with pytest.raises(
    UserError, match=r"^config\.finetune\.eval\.splits is 'valid,train', .* --data\.split=train"
  ):
    run(config, tmp_path / 'run')


class Broken:
  """A source of which some pictures can't be read."""

  def __init__(self, source, bad):
    self.source, self.bad, self.image_shape = source, bad, source.image_shape

  def __len__(self):
    return len(self.source)

  def __getitem__(self, i):
    if i in self.bad:
      raise self.bad[i]
    return self.source[i]


def test_the_second_stage_starts_from_the_firsts_encoder_and_leaves_the_decoder(tmp_path):
  config = small.run_config(pretrain=small.mae_stage(), finetune=small.mimic_stage(init='pretrain'))
  run(config, tmp_path, name='pretrain')
  frozen = FrozenConfigDict(config)
  stage = stage_lib.Stage(frozen, 'finetune', epath.Path(tmp_path), sharding.make_mesh())
  stage.prepare()
  given = program.fitted(stage.program, str(tmp_path / 'pretrain'), 'init')
  state, account = program.initial_state(stage.program, jax.random.key(1), given), given.account
  got = checkpoint.flatten(state['params']['encoder'])
  want = final_arrays(tmp_path, 'pretrain', 10)
  want = {
    k.split('/encoder/', 1)[1]: v for k, v in want.items() if k.startswith(('params/encoder', 'rest/encoder'))
  }
  assert got.keys() == want.keys()
  for key in got:
    np.testing.assert_array_equal(got[key], want[key])
  assert sorted(account['loaded']) == sorted(f'encoder/{key}' for key in got)
  assert account['unused'] == sorted(k for k in account['unused'] if k.startswith('decoder/')) != []
  assert {name.split('/')[0] for name in account['fresh']} == {'classifier', 'fc_norm', 'projection'}


def test_position_embeddings_are_resized_when_the_pictures_are(tmp_path):
  run(small.run_config(pretrain=small.mae_stage(steps=1)), tmp_path)
  config = small.run_config(finetune=small.mimic_stage())
  config.model.image_size = 32
  stage = stage_lib.Stage(FrozenConfigDict(config), 'finetune', epath.Path(tmp_path), sharding.make_mesh())
  stage.prepare()
  given = program.fitted(stage.program, str(tmp_path), 'init')
  state, account = program.initial_state(stage.program, jax.random.key(1), given), given.account
  assert account['resized'] == ['encoder/pos_embed']
  assert state['params']['encoder']['pos_embed'].shape == (1, 17, 16)


def test_weights_of_another_architecture_are_refused_by_the_first_tensor_that_differs(tmp_path):
  run(small.run_config(pretrain=small.mae_stage(steps=1)), tmp_path)
  config = small.run_config(finetune=small.mimic_stage())
  config.model.dim = 32
  stage = stage_lib.Stage(FrozenConfigDict(config), 'finetune', epath.Path(tmp_path), sharding.make_mesh())
  stage.prepare()
  with pytest.raises(
    UserError, match=r"config.finetune.init: .* another architecture, .*: '.*' has shape .*expected"
  ):
    program.fitted(stage.program, str(tmp_path), 'config.finetune.init')


def test_a_checkpoint_of_another_architecture_is_refused_by_name(tmp_path):
  config = small.run_config(finetune=small.mimic_stage(steps=1))
  run(config, tmp_path)
  (tmp_path / 'finetune' / 'result.json').unlink()
  config.model.depth = 3
  with pytest.raises(UserError, match=r"of another architecture: '.*blocks.*' is \[2, .*expected \[3,"):
    run(config, tmp_path)


def test_another_config_on_the_folder_is_refused_with_the_fields_that_differ(tmp_path):
  config = small.run_config(finetune=small.mimic_stage())
  workdir.begin(epath.Path(tmp_path), FrozenConfigDict(config))
  _, resumed = workdir.open_run(str(tmp_path), FrozenConfigDict(config))
  assert resumed
  config.finetune.optim.lr = 0.5
  _, resumed = workdir.open_run(str(tmp_path), FrozenConfigDict(config))
  assert not resumed  # nothing has come of the run yet: it may begin anew
  (tmp_path / 'finetune').mkdir()
  (tmp_path / 'finetune' / 'result.json').write_text('{}')
  with pytest.raises(UserError, match=r'finetune.optim.lr: 0.001 → 0.5'):
    workdir.open_run(str(tmp_path), FrozenConfigDict(config))


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
  (tmp_path / 'thesis.tex').write_text('x')
  with pytest.raises(UserError, match='not empty and holds no run'):
    workdir.open_run(str(tmp_path), FrozenConfigDict(small.run_config(finetune=small.mimic_stage())))


def poison(monkeypatch, steps: set[int]) -> None:
  """Makes the fine-tuning loss NaN at the given steps."""
  from mimic_jax.objectives import mimic

  original = mimic.Objective.loss

  def loss(self, model, batch, key, step, total_steps):
    value, parts = original(self, model, batch, key, step, total_steps)
    bad = jnp.isin(step, jnp.array(sorted(steps)))
    return jnp.where(bad, jnp.nan, value), parts

  monkeypatch.setattr(mimic.Objective, 'loss', loss)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, monkeypatch):
  poison(monkeypatch, {6})
  config = small.run_config(finetune=small.mimic_stage(**{'checkpoint.every_epochs': 0.5}))
  message = r'stage finetune, step 7: loss nan.*\(1 such steps, config.finetune.max_bad_steps is 0\)'
  with pytest.raises(UserError, match=message) as e:
    run(config, tmp_path)
  assert '\n' not in str(e.value)
  _, step = checkpoint.find(epath.Path(tmp_path))
  assert step >= 7
  for name, value in final_arrays(tmp_path, 'finetune', step).items():
    assert np.isfinite(value.astype(np.float64)).all(), name
  with pytest.raises(UserError, match='expected finite numbers'):
    run(config, tmp_path)
  config.finetune.max_bad_steps = 1
  workdir.open_run(str(tmp_path), FrozenConfigDict(config))
  assert run(config, tmp_path)['steps'] == 10


def test_bad_steps_within_the_limit_leave_the_weights_as_they_were(tmp_path, monkeypatch):
  poison(monkeypatch, {0, 1, 2})
  config = small.run_config(finetune=small.mimic_stage(steps=3, max_bad_steps=3))
  result = run(config, tmp_path)
  assert np.isfinite(result['metrics']['valid']['loss'])
  stage = stage_lib.Stage(FrozenConfigDict(config), 'finetune', epath.Path(tmp_path), sharding.make_mesh())
  stage.prepare()
  fresh = stage.program.init(stage.init_key)
  after = final_arrays(tmp_path, 'finetune', 3)
  for name, value in checkpoint.flatten(fresh['params'], 'params/').items():
    np.testing.assert_array_equal(value, after[name], err_msg=name)


def test_a_batch_that_does_not_divide_over_the_devices_names_the_field(tmp_path):
  config = small.run_config(finetune=small.mimic_stage(batch_images=12))
  with pytest.raises(UserError, match=r'config.finetune.batch_images is 12; expected a multiple of 8'):
    run(config, tmp_path)
  assert not (tmp_path / 'config.json').exists()


def test_parameters_are_split_evenly_over_fsdp_but_for_what_can_not_be():
  mesh = sharding.make_mesh(1, 8)
  model = small.model_section(dim=64, depth=2)
  stage = small.mimic_stage()
  objective = objectives.make(stage, model, ('a', 'b'), 'objective')
  made = program.make_program(stage, objective, 64, mesh)
  for name, leaf in checkpoint.flatten(made.abstract).items():
    here = int(np.prod(leaf.sharding.shard_shape(leaf.shape)))
    if leaf.size >= sharding.SMALLEST_SPLIT and any(n % 8 == 0 for n in leaf.shape):
      assert here * 8 == leaf.size, name
    else:
      assert here == leaf.size, name


@pytest.mark.parametrize(
  ('changes', 'field'),
  [
    ({'data': 3}, 'data=3, fsdp=1'),
    ({'fsdp': 3}, 'data=2, fsdp=3'),
    ({'data': 4, 'fsdp': 4}, 'data=4, fsdp=4'),
  ],
)
def test_a_mesh_that_does_not_cover_the_devices_is_refused(changes, field):
  with pytest.raises(UserError, match=field):
    sharding.make_mesh(**changes)


def test_what_a_finished_stage_leaves_behind(tmp_path):
  config = small.run_config(finetune=small.mimic_stage(steps=16, ema=0.5, **{'eval.every_epochs': 1.0}))
  result = run(config, tmp_path)
  folder = tmp_path / 'finetune'
  assert json.loads((folder / 'result.json').read_text()) == files.jsonable(result)
  assert result['metrics']['valid']['count'] == 24
  assert np.sum(result['metrics']['valid']['confusion']) == 24
  lines = [x for x in files.read_jsonl(epath.Path(folder) / 'metrics.jsonl') if x['split'] == 'valid']
  assert [x['step'] for x in lines] == [8, 16]
  assert result['best_on_valid']['accuracy'] == max(x['accuracy'] for x in lines)
  averaged = [x for x in files.read_jsonl(epath.Path(folder) / 'metrics.jsonl') if x['split'] == 'valid_ema']
  assert [x['step'] for x in averaged] == [8, 16]
  assert averaged[-1]['loss'] != lines[-1]['loss']
  for flags, split in (([], 'valid'), (['--ema'], 'valid_ema')):
    main.main(['evaluate', '--checkpoint', str(tmp_path), '--out', str(tmp_path / split), *flags])
    again = json.loads((tmp_path / split / 'evaluation' / 'result.json').read_text())['metrics']['valid']
    assert again['loss'] == pytest.approx(result['metrics'][split]['loss'], rel=1e-5)
  predictions = np.load(folder / 'predictions.npz')
  assert len(set(predictions['id'])) == 24
  assert predictions['logits'].shape == (24, 7)
  assert (
    np.mean(predictions['logits'].argmax(1) == predictions['label']) == result['metrics']['valid']['accuracy']
  )
  record = json.loads((tmp_path / 'record.json').read_text())
  assert record['data']['finetune']['train']['split_hash']
  speed = record['speed']['finetune']
  assert speed == {k: result[k] for k in speed}
  done = (
    speed['images_per_second']
    * objectives.make(config.finetune, config.model, tuple('abcdefg'), '').flops_per_image()
  )
  assert speed['model_tflops_per_second'] == pytest.approx(done / 1e12)
  assert speed['input_overhead'] > 1
  assert speed['mfu'] is None  # of a CPU nobody knows the peak
  shown = f'data-label="model TFLOP/s">{speed["model_tflops_per_second"]:.3g}</td>'
  assert shown in (tmp_path / 'report.html').read_text()
  assert (tmp_path / 'report.html').stat().st_size > 10_000
  shown = {p.stem for p in (folder / 'pictures').glob('*.png')}
  assert shown == {'attention', 'data_train', 'mistakes', 'mixed'}


def test_evaluation_counts_every_example_once_whatever_the_batch(tmp_path):
  found = {}
  for batch in (8, 16, 40):
    config = small.run_config(
      finetune=small.mimic_stage(steps=2, **{'eval.batch_images': batch, 'eval.size': 21})
    )
    found[batch] = run(config, tmp_path / str(batch))['metrics']['valid']
  assert {f['count'] for f in found.values()} == {21}
  assert len({json.dumps(f['confusion']) for f in found.values()}) == 1
  np.testing.assert_allclose([f['loss'] for f in found.values()], found[8]['loss'], rtol=1e-5)


def test_merging_and_splitting_the_model_keeps_its_plain_names():
  stage, model = small.mimic_stage(), small.model_section()
  objective = objectives.make(stage, model, ('a', 'b'), 'objective')
  _, params, rest = models.split(objective.init(jax.random.key(0)), objective.trainable)
  names = set(checkpoint.flatten(params)) | set(checkpoint.flatten(rest))
  assert 'encoder/blocks/attn/qkv/kernel' in names
  assert not any('value' in name for name in names)


def test_initial_weights_are_looked_at_before_anything_is_written_or_computed(tmp_path):
  config = small.run_config(finetune=small.mimic_stage())
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'config.json').write_text('{"model_type": "vit_mae"}')
  for place in ('empty', 'other'):
    with pytest.raises(UserError, match=r'config.finetune.init .* holds no checkpoint of mimic_jax'):
      run(config, tmp_path / 'run', init=str(tmp_path / place))
  assert not (tmp_path / 'run').exists()


def test_a_run_of_several_stages_is_no_initial_weight_until_one_is_named(tmp_path):
  config = small.run_config(pretrain=small.mae_stage(steps=1), finetune=small.mimic_stage(steps=1))
  for name in ('pretrain', 'finetune'):
    run(config, tmp_path, name=name)
  with pytest.raises(UserError, match=r'several stages; expected one of .*finetune.*pretrain'):
    checkpoint.find(epath.Path(tmp_path))
  assert checkpoint.find(epath.Path(tmp_path / 'pretrain'))[1] == 1


def damage(folder, harm: str) -> None:
  """Harms a checkpoint's folder."""
  if harm == 'no meta':
    shutil.rmtree(folder / 'meta')
    return
  for file in sorted(p for p in (folder / 'state').rglob('d/*') if p.is_file()):
    raw = bytearray(file.read_bytes())
    if harm == 'altered':
      raw[len(raw) // 2] ^= 1
    file.write_bytes(bytes(raw) if harm == 'altered' else bytes(raw[:10]))


@pytest.mark.parametrize('harm', ['truncated', 'no meta', 'altered'])
def test_a_damaged_checkpoint_is_named_and_moved_aside_and_the_one_before_it_goes_on_to_the_same_bits(
  harm, tmp_path, capsys
):
  config = small.run_config(finetune=small.mimic_stage(**{'checkpoint.every_epochs': 1.0}))  # at 8 and 10
  run(config, tmp_path)
  want = final_arrays(tmp_path, 'finetune', 10)
  (tmp_path / 'finetune' / 'result.json').unlink()
  damage(tmp_path / 'finetune' / checkpoint.FOLDER / '10', harm)
  capsys.readouterr()
  run(config, tmp_path)
  said = ' '.join(capsys.readouterr().err.split())
  assert 'checkpoints/10 is damaged' in said
  assert 'and the run goes on from step 8' in said
  assert 'Traceback' not in said
  assert (tmp_path / 'finetune' / checkpoint.DAMAGED / '10').is_dir()
  found = final_arrays(tmp_path, 'finetune', 10)
  assert found.keys() == want.keys()
  for name in want:
    np.testing.assert_array_equal(found[name], want[name], err_msg=name)


def test_where_no_checkpoint_is_whole_the_run_stops_and_nothing_is_moved(tmp_path):
  config = small.run_config(finetune=small.mimic_stage(**{'checkpoint.every_epochs': 1.0}))
  run(config, tmp_path)
  (tmp_path / 'finetune' / 'result.json').unlink()
  for step in ('8', '10'):
    damage(tmp_path / 'finetune' / checkpoint.FOLDER / step, 'truncated')
  with pytest.raises(
    UserError, match=r'none of the 2 checkpoints is whole .*10 is damaged .*; .*8 is damaged'
  ) as e:
    run(config, tmp_path)
  assert '\n' not in str(e.value)
  assert sorted(p.name for p in (tmp_path / 'finetune' / checkpoint.FOLDER).iterdir()) == ['10', '8']


def test_too_little_memory_is_one_line_that_says_what_to_make_smaller(tmp_path, monkeypatch):
  def exhausted(*_):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 35131188792 bytes.')

  monkeypatch.setattr(loop, '_loop', exhausted)
  with pytest.raises(
    UserError, match=r'needs more memory than cpu .*config.finetune.batch_images \(is 8\)'
  ) as e:
    run(small.run_config(finetune=small.mimic_stage()), tmp_path)
  assert '\n' not in str(e.value)


def test_a_fraction_and_wrong_labels_are_of_training_alone_and_follow_the_runs_seed_or_their_own(tmp_path):
  def stage(seed=0, **changes):
    config = small.run_config(finetune=small.mimic_stage(**changes))
    config.seed = seed
    made = stage_lib.Stage(
      FrozenConfigDict(config), 'finetune', epath.Path(tmp_path), sharding.make_mesh(-1, 1, jax.devices()[:1])
    )
    made.prepare()
    return made

  some = {'data.fraction': 0.5, 'data.label_noise': 0.2}
  whole, first, other = stage(), stage(**some), stage(1, **some)
  assert first.records['valid'] == whole.records['valid']
  record = first.records['train']
  assert (record['fraction']['of'], record['fraction']['seed']) == (64, 0)
  assert len(first.source) == record['count'] == record['fraction']['count'] < 40
  assert record['label_noise']['count'] > 0
  assert first.program.total_steps == whole.program.total_steps
  assert record == stage(**some).records['train']  # whoever resumes it
  assert record['split_hash'] != other.records['train']['split_hash']
  fixed = {**some, 'data.part_seed': 0}
  assert stage(1, **fixed).records['train'] == record
  with pytest.raises(
    UserError, match=r'--config.finetune.data.part_seed is 3, and neither --config.finetune.data.fraction'
  ):
    stage(**{'data.part_seed': 3})

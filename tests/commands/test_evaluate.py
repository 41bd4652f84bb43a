"""Evaluation of a trained model on any source: the same figures as its run, classes by name, subsets, honest notes."""

import csv
import dataclasses
import json
import shutil
import types

import numpy as np
import pytest
from etils import epath
from ml_collections import FrozenConfigDict
from PIL import Image
from scipy import optimize, special

from mimic_jax import data, serving, uncertainty
from mimic_jax.commands import compare, evaluate
from mimic_jax.data import copies
from mimic_jax.objectives import masked_autoencoding
from mimic_jax.runtime import checkpoint, files, sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import arms, evaluation, loop, trained, workdir
from mimic_jax.training import stage as stage_lib
from tests import small


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of two stages: pre-training of one step, fine-tuning of three."""
  folder = epath.Path(tmp_path_factory.mktemp('run'))
  config = FrozenConfigDict(
    small.run_config(
      pretrain=small.mae_stage(steps=1, **{'eval.without_duplicates': True}),
      finetune=small.mimic_stage(steps=3, **{'eval.without_duplicates': True}),
    )
  )
  workdir.begin(folder, config)
  for name in ('pretrain', 'finetune'):
    loop.run_stage(stage_lib.Stage(config, name, folder, sharding.make_mesh()))
  return folder


def held(out) -> tuple[dict, dict]:
  """Returns result.json's metrics and record.json of an evaluation."""
  result = json.loads((out / 'evaluation' / 'result.json').read_text())
  return result['metrics'], json.loads((out / 'record.json').read_text())


def predictions(folder) -> dict[str, np.ndarray]:
  return dict(np.load(folder / 'predictions.npz'))


def test_on_its_own_split_the_figures_are_those_of_the_run(run, tmp_path, capsys):
  evaluate.main(['--checkpoint', str(run), '--out', str(tmp_path / 'e'), '--batch_images=16', '--csv'])
  found, _ = held(tmp_path / 'e')
  theirs = json.loads((run / 'finetune' / 'result.json').read_text())['metrics']
  assert found == theirs
  ours, there = predictions(tmp_path / 'e' / 'evaluation'), predictions(run / 'finetune')
  for key in ('id', 'label', 'logits', 'class_names'):
    np.testing.assert_array_equal(ours[key], there[key])
  names = there['class_names']
  lines = list(csv.DictReader((tmp_path / 'e' / 'evaluation' / 'predictions.csv').read_text().splitlines()))
  assert [x['id'] for x in lines] == there['id'].tolist()
  assert [x['label'] for x in lines] == names[there['label']].tolist()
  assert [x['answer'] for x in lines] == names[there['logits'].argmax(1)].tolist()
  shares = [[float(x[name]) for name in names] for x in lines]
  np.testing.assert_allclose(shares, special.softmax(there['logits'], axis=1), atol=1e-6)
  printed = capsys.readouterr().out
  assert f'accuracy {100 * found["valid"]["accuracy"]:.2f}' in ' '.join(printed.split())
  assert '2000 resamples of 24 pictures' in printed
  assert (tmp_path / 'e' / 'report.html').stat().st_size > 5_000
  assert (tmp_path / 'e' / 'evaluation' / 'pictures' / 'attention.png').exists()


def test_without_out_it_is_written_into_the_run_and_may_be_repeated(run):
  for _ in range(2):
    evaluate.main(['--checkpoint', str(run / 'finetune'), '--samples=0'])
  folder = run / 'evaluations' / 'finetune-3-synthetic_faces-valid'
  assert 'intervals' not in held(folder)[0]['valid']


def test_pairs_of_one_class_are_told_from_pairs_of_two_by_the_cosine_of_features(run, tmp_path, capsys):
  metrics = pytest.importorskip('sklearn.metrics')
  out = tmp_path / 'e'
  flags = ['--checkpoint', str(run), '--out', str(out), '--verification', '--samples=100']
  evaluate.main([*flags, '--data.size=60'])
  found = held(out)[0]['valid']['verification']
  kept = np.load(out / 'evaluation' / 'features.npz')
  x = kept['features'].astype(np.float64)
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  a, b = np.triu_indices(len(x), 1)
  same = kept['label'][a] == kept['label'][b]
  far, hits, _ = metrics.roc_curve(same, (x[a] * x[b]).sum(1), drop_intermediate=False)
  expected = optimize.brentq(lambda t: 1.0 - t - np.interp(t, far, hits), 0.0, 1.0)
  assert found['eer'] == pytest.approx(expected, abs=2e-3)
  assert found['low'] <= found['eer'] <= found['high']
  assert (found['persons'], found['pictures'], found['pairs_of_one']) == (7, 60, same.sum())
  assert f'equal error rate {100 * found["eer"]:.2f} %' in capsys.readouterr().out
  assert 'Verification on valid' in (out / 'report.html').read_text()
  clips = ['--out', str(tmp_path / 'c'), '--data.source=synthetic_clips', '--data.size=192', '--samples=100']
  evaluate.main(['--checkpoint', str(run), '--verification', *clips])
  found = held(tmp_path / 'c')[0]['valid']['verification']
  counts = np.array([128, 64])  # six clips, four of the first person
  assert (found['persons'], found['pairs_of_one']) == (2, (counts * (counts - 1) // 2).sum())
  with pytest.raises(UserError, match='--knn answers with none of'):
    evaluate.main([*flags, '--knn', '3'])


def test_a_picture_of_nobody_knows_whom_makes_no_pairs(rng):
  person = np.array([4, 9, np.nan, 4, 9, np.nan, np.nan], np.float32)
  source = types.SimpleNamespace(targets={'person': person}, class_names=(), record=dict)
  features, index = rng.normal(size=(6, 3)), np.array([0, 1, 2, 3, 4, 5])  # the last could not be read
  measured = evaluation.Measured({}, index, {'features': features, 'label': np.zeros(6, int)}, {})
  found = evaluate._verified(evaluation.Split('valid', source), measured, evaluate.Options(samples=0))
  assert [found[k] for k in ('persons', 'pictures', 'pairs_of_one', 'pairs_of_two')] == [2, 4, 2, 4]


def test_the_first_persons_of_two_sets_are_not_one(rng):
  options = {'size': 32, 'draw_size': 16, 'draw_seed': 0}
  source = data.build('synthetic_clips,synthetic_clips', ',', 'valid', options)
  outputs = {'features': rng.normal(size=(64, 3)), 'label': np.zeros(64, int)}
  measured = evaluation.Measured({}, np.arange(64), outputs, {})
  with pytest.raises(UserError, match="'valid' is of several sources, each of which numbers its persons"):
    evaluate._verified(evaluation.Split('valid', source), measured, evaluate.Options(samples=0))


@pytest.fixture
def other_set(tmp_path):
  """Drawn faces as class folders by other names and in another order, with a class the model lacks and without one."""
  source = data.build('synthetic_faces', '', 'test', {'size': 28, 'draw_size': 16, 'draw_seed': 0})
  names = {'happiness': 'happy', 'anger': 'angry', 'fear': 'scared'}
  truth = {}
  for i in range(len(source)):
    name = source.class_names[source.label(i)]
    if name == 'disgust':
      continue
    path = (
      tmp_path
      / 'set'
      / 'valid'
      / names.get(name, name)
      / f'Jane_Doe{"abcdefghijklmnopqrstuvwxyz"[i % 26]}_{i:04d}.png'
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(source[i]['image']).save(path)
    truth[f'valid/{names.get(name, name)}/{path.name}'] = source.label(i)
  for i in range(3):
    path = tmp_path / 'set' / 'valid' / 'contempt' / f'Max_Mo_{i}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(source[i]['image']).save(path)
  return tmp_path / 'set', truth


def test_classes_of_another_set_are_matched_by_name_and_what_is_left_out_is_said(
  run, other_set, tmp_path, capsys
):
  root, truth = other_set
  out = tmp_path / 'e'
  evaluate.main(
    [
      '--checkpoint',
      str(run / 'finetune'),
      '--out',
      str(out),
      '--data.source=folder',
      f'--data.root={root}',
      '--data.split=valid',
    ]
  )
  found, record = held(out)
  p = predictions(out / 'evaluation')
  assert dict(zip(p['id'].tolist(), p['label'].tolist())) == truth
  right = p['logits'].argmax(1) == p['label']
  assert found['valid']['accuracy'] == right.mean()
  shared = np.delete(np.arange(7), list(p['class_names']).index('disgust'))
  among = shared[p['logits'][:, shared].argmax(1)] == p['label']
  assert found['valid']['accuracy_among_shared_classes'] == among.mean()
  of = record['data']['evaluation']['valid']
  assert of['classes_left_out'] == {'contempt': 3}
  assert of['classes_absent'] == ['disgust']
  said = ' '.join(capsys.readouterr().err.split())
  assert 'valid: left out, since the model has no such class: contempt (3 pictures)' in said
  assert 'valid: the set has no disgust' in said
  assert any('contempt' in w for w in record['notes']['warnings'])
  # each picture is of a person of its own here, but for the letters that come round again
  clusters = uncertainty.identities(p['id'].tolist(), 'auto')
  assert found['valid']['intervals'] == uncertainty.intervals(
    p['label'], p['logits'], p['class_names'].tolist(), clusters
  )
  assert found['valid']['intervals']['method']['over'] == 'identities'


def test_a_listed_subset_is_a_split_of_its_own(run, tmp_path):
  p = predictions(run / 'finetune')
  chosen = p['id'][[3, 5, 11]]
  (tmp_path / 'occlusion.txt').write_text(''.join(f'{name} 1\n' for name in chosen))
  evaluate.main(
    [
      '--checkpoint',
      str(run / 'finetune'),
      '--out',
      str(tmp_path / 'e'),
      '--subset',
      str(tmp_path / 'occlusion.txt'),
    ]
  )
  found, record = held(tmp_path / 'e')
  assert found['valid']['count'] == 24
  part = found['valid/occlusion']
  assert part['count'] == 3
  assert part['accuracy'] == np.mean((p['logits'].argmax(1) == p['label'])[[3, 5, 11]])
  assert record['data']['evaluation']['valid/occlusion']['subset']['of'] == 24


def test_a_list_may_name_what_the_model_has_no_class_for(run, other_set, tmp_path, capsys):
  root, truth = other_set
  names = [*list(truth)[:4], 'valid/contempt/Max_Mo_1.png', 'valid/fear/nobody.png']
  (tmp_path / 'part.txt').write_text('\n'.join(names))
  flags = ['--data.source=folder', f'--data.root={root}', '--data.split=valid']
  out = tmp_path / 'e'
  evaluate.main(
    ['--checkpoint', str(run / 'finetune'), '--out', str(out), *flags, '--subset', str(tmp_path / 'part.txt')]
  )
  found, record = held(out)
  assert found['valid/part']['count'] == 4
  of = record['data']['evaluation']['valid/part']
  assert of['classes_left_out'] == {'contempt': 1}
  said = ' '.join(capsys.readouterr().err.split())
  assert (
    "valid/part: 1 names of part.txt are not in this split as it was read: 'valid/fear/nobody.png' (line 6)"
    in said
  )
  assert 'valid/part: left out, since the model has no such class: contempt (1 pictures)' in said


def test_another_evaluation_is_never_replaced(run, tmp_path):
  first = ['--checkpoint', str(run / 'finetune'), '--out', str(tmp_path / 'e'), '--samples=0']
  evaluate.main(first)
  with pytest.raises(
    UserError, match=r'holds another evaluation \(data.size: 24 → 12\); expected another --out'
  ):
    evaluate.main([*first, '--data.size=12'])
  with pytest.raises(UserError, match=r'holds a run; expected a new folder'):
    evaluate.main([*first[:2], '--out', str(run)])


def test_a_list_that_changed_is_another_evaluation(run, tmp_path):
  p = predictions(run / 'finetune')
  flags = [
    '--checkpoint',
    str(run / 'finetune'),
    '--out',
    str(tmp_path / 'e'),
    '--subset',
    str(tmp_path / 'a.txt'),
  ]
  (tmp_path / 'a.txt').write_text('\n'.join(p['id'][:2]))
  evaluate.main(flags)
  (tmp_path / 'a.txt').write_text('\n'.join(p['id'][2:4]))
  with pytest.raises(UserError, match=r'holds another evaluation \(split_hashes.valid/a: '):
    evaluate.main(flags)


def test_a_part_of_one_picture_has_no_interval(run, tmp_path, capsys):
  p = predictions(run / 'finetune')
  (tmp_path / 'a.txt').write_text(p['id'][0])
  evaluate.main(
    ['--checkpoint', str(run / 'finetune'), '--out', str(tmp_path / 'e'), '--subset', str(tmp_path / 'a.txt')]
  )
  found, _ = held(tmp_path / 'e')
  assert 'intervals' in found['valid']
  assert 'intervals' not in found['valid/a']
  assert 'no intervals: one picture' in capsys.readouterr().out


def test_a_part_of_classes_that_the_model_lacks_is_one_line_before_anything_is_measured(
  run, other_set, tmp_path
):
  root, _ = other_set
  (tmp_path / 'a.txt').write_text('valid/contempt/Max_Mo_1.png\nvalid/contempt/Max_Mo_2.png')
  flags = [
    '--data.source=folder',
    f'--data.root={root}',
    '--data.split=valid',
    '--subset',
    str(tmp_path / 'a.txt'),
  ]
  with pytest.raises(
    UserError, match=r"'valid/a' of folder: all 2 pictures are of classes .* \(contempt\); expected"
  ):
    evaluate.main(['--checkpoint', str(run / 'finetune'), '--out', str(tmp_path / 'e'), *flags])
  assert not (tmp_path / 'e').exists()


def test_with_another_source_its_reading_is_at_its_default(run):
  model = trained.load(str(run), sharding.make_mesh())
  own = evaluate.data_section(model, ['--data.size=3'])
  assert (own.source, own.size, own.draw_size) == ('synthetic_faces', 3, 16)
  changed = dict(
    model.config.finetune.data.to_dict(), source='tfds', name='mine', align='box(0.2)', root='/a'
  )
  config = model.config.copy_and_resolve_references()
  config = FrozenConfigDict({**config.to_dict(), 'finetune': {**config.finetune.to_dict(), 'data': changed}})
  model = dataclasses.replace(model, config=config)
  assert evaluate.data_section(model, []).name == 'mine'
  other = evaluate.data_section(model, ['--data.source=rafdb', '--data.root=/b'])
  assert (other.name, other.align, other.root) == ('', 'auto', '/b')
  clips = {
    **config.finetune.to_dict(),
    'data': {**changed, 'source': 'synthetic_clips', 'fps': 25.0, 'name': ''},
  }
  model = dataclasses.replace(model, config=FrozenConfigDict({**config.to_dict(), 'finetune': clips}))
  assert evaluate.data_section(model, []).fps == 25
  # a folder does not read it, and would refuse it
  assert data.unread('folder', evaluate.data_section(model, ['--data.source=folder', '--data.root=/b'])) == []


def test_copies_of_training_pictures_are_counted_and_left_out(tmp_path, capsys):
  # A model trained on the five first of thirteen.
  config = small.run_config(
    finetune=small.mimic_stage(steps=1, **{'data.size': 5, 'eval.source': 'synthetic_faces'})
  )
  config.finetune.eval.splits = ''
  config.finetune.eval.size = 13
  folder = epath.Path(tmp_path / 'run')
  config = FrozenConfigDict(config)
  workdir.begin(folder, config)
  loop.run_stage(stage_lib.Stage(config, 'finetune', folder, sharding.make_mesh()))
  evaluate.main(['--checkpoint', str(folder), '--out', str(tmp_path / 'e')])
  found, record = held(tmp_path / 'e')
  found, out = found['train'], tmp_path / 'e' / 'evaluation'
  assert {k: found[f'count_without_{k}'] for k in evaluation.WITHOUT} == {
    'duplicates': 8,
    'same_pixels': 13,
    'near_copies': 13,
    'copies': 8,
  }
  assert (found['copies']['duplicates'], found['copies']['near_copies']) == (5, 0)
  p = predictions(out)
  right = p['logits'].argmax(1) == p['label']
  assert found['accuracy_without_same_pixels'] == found['accuracy'] == right.mean()
  assert found['accuracy_without_copies'] == found['accuracy_without_duplicates'] == right[5:].mean()
  (note,) = record['notes']['warnings']
  assert note.startswith('train: 5 of 13 pictures are copies of training pictures')
  rows = (out / 'copies.csv').read_text().splitlines()
  assert rows[1:] == [f'train,{name},duplicates,1.000,0,{name}' for name in p['id'][:5]]
  assert (out / 'pictures' / 'copies.png').exists()
  printed = capsys.readouterr().out
  told = copies.told(found['copies'])
  assert told in printed
  assert told in (tmp_path / 'e' / 'report.html').read_text()
  assert f'accuracy without copies {100 * right[5:].mean():.2f} % of 8' in ' '.join(printed.split())


@pytest.mark.parametrize('gone', [True, False])
def test_copies_among_many_training_pictures_or_absent_ones_are_looked_for_when_asked(
  run, tmp_path, monkeypatch, capsys, gone
):
  flags = ['--checkpoint', str(run / 'finetune'), '--out', str(tmp_path / 'e'), '--samples=0']

  def absent(*_):
    raise UserError("data.root '/gone' is not a folder")

  if gone:
    monkeypatch.setattr(evaluate.data, 'whole', absent)
  else:
    monkeypatch.setattr(evaluate, 'MOST_TRAINING', 63)
  evaluate.main(flags)
  assert 'copies' not in held(tmp_path / 'e')[0]['valid']
  said = 'are not looked for: data.root' if gone else 'copies of the 64 training pictures are looked for with'
  assert said in capsys.readouterr().err
  flags = [*flags[:2], '--out', str(tmp_path / 'f'), '--samples=0', '--without_duplicates']
  if gone:
    with pytest.raises(UserError, match='/gone'):
      evaluate.main(flags)
  else:
    evaluate.main(flags)
    assert held(tmp_path / 'f')[0]['valid']['copies']['training_pictures'] == 64


def test_a_pretrained_model_is_measured_by_its_loss(run, tmp_path, capsys):
  evaluate.main(['--checkpoint', str(run / 'pretrain'), '--out', str(tmp_path / 'e'), '--batch_images=16'])
  found, _ = held(tmp_path / 'e')
  theirs = json.loads((run / 'pretrain' / 'result.json').read_text())['metrics']
  assert found == theirs
  assert 'valid: loss' in capsys.readouterr().out
  assert (tmp_path / 'e' / 'evaluation' / 'pictures' / 'reconstructions.png').exists()
  with pytest.raises(UserError, match=r'--csv: .* answers with no classes; expected a classifier'):
    evaluate.main(['--checkpoint', str(run / 'pretrain'), '--csv'])


def test_another_alignment_than_the_trainings_is_noted(run):
  model = trained.load(str(run), sharding.make_mesh())
  source = data.build('synthetic_faces', '', 'valid', {'size': 4, 'draw_size': 16, 'draw_seed': 0})
  model.reading['align'] = {'align': 'five_point(arcface)'}
  (note,) = evaluate.notes(model, [evaluation.Split('valid', source)])
  assert note == "valid: pictures are aligned 'none', those of the training were 'five_point(arcface)'"


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--data.split=nowhere'], "'nowhere'"),
    (['--data.source=folder'], "data.root is empty; source 'folder' needs"),
    (['--data.source=folders'], "data.source is 'folders' (did you mean 'folder'?)"),
    (['--data.siz=3'], "there is no field 'siz' in data (did you mean 'size'?)"),
    (['--data.size=0'], 'data.size is 0; expected at least 1'),
    (['--data.size=many'], "--data.size is 'many'; expected a value of the field's own type"),
    (['--sample=3'], "'--sample=3' is not understood"),
    (['--samples=3'], '--samples is 3; expected 0 or at least 100'),
    (['--batch_images=12'], '--batch_images is 12; expected a multiple of 8'),
    (['--seed=-1'], '--seed is -1; expected 0 or more'),
    (['--data.split=valid,valid'], "data.split is 'valid,valid', which names 'valid' twice"),
    (
      ['--subset=a/x.txt', '--subset=b/x.txt'],
      'a/x.txt, b/x.txt have one name; expected file names that differ',
    ),
    (
      ['--subset', __file__],
      'names are in none of the splits valid',
    ),
    (['--out', f'{__file__}/x'], 'can not be written'),
    (['--identity=(a)(b)'], "--identity is '(a)(b)', which has 2 groups"),
    (['--data.fraction=.5'], '--data.fraction is of training pictures; expected none'),
    (['--subset=nowhere.txt'], 'nowhere.txt: is not a readable list of pictures'),
    (['--out', __file__], 'a file; expected a folder'),
  ],
)
def test_a_wrong_command_line_is_one_line(flags, words, run):
  with pytest.raises(UserError) as e:
    evaluate.main(['--checkpoint', str(run / 'finetune'), *flags])
  assert words in str(e.value)
  assert '\n' not in str(e.value)


def test_what_is_no_trained_model_is_named(run, tmp_path):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / 'x.txt').write_text('mine')
  for path, words in (
    ('nowhere', 'does not exist'),
    (str(tmp_path / 'a' / 'x.txt'), 'holds no checkpoint of mimic_jax and no weights'),
    (str(tmp_path / 'a'), 'holds no checkpoint of mimic_jax'),
  ):
    with pytest.raises(UserError, match=words):
      evaluate.main(['--checkpoint', path])
  with pytest.raises(UserError, match='holds something else'):
    evaluate.main(['--checkpoint', str(run), '--out', str(tmp_path / 'a')])


def test_a_run_with_two_fine_tuned_stages_needs_one_named(tmp_path):
  config = FrozenConfigDict(small.run_config(one=small.mimic_stage(steps=1), two=small.mimic_stage(steps=1)))
  folder = epath.Path(tmp_path / 'run')
  workdir.begin(folder, config)
  for name in ('one', 'two'):
    loop.run_stage(stage_lib.Stage(config, name, folder, sharding.make_mesh()))
  with pytest.raises(UserError, match=r'several fine-tuned stages; expected one of .*/one, .*/two'):
    trained.locate(str(folder), '--checkpoint')
  assert trained.locate(str(folder / 'two'), '--checkpoint')[0].parent.name == 'two'


def test_weights_that_are_not_finite_are_refused_by_name(run, tmp_path, monkeypatch):
  whole = checkpoint.read_arrays

  def spoilt(*args):
    arrays = whole(*args)
    arrays['params/classifier/fc/bias'] = arrays['params/classifier/fc/bias'] * np.nan
    return arrays

  monkeypatch.setattr(trained.checkpoint, 'read_arrays', spoilt)
  with pytest.raises(UserError, match=r"'classifier/fc/bias' has values that are not finite"):
    trained.load(str(run), sharding.make_mesh())


def test_a_damaged_checkpoint_is_named(run, tmp_path):
  shutil.copytree(run, tmp_path / 'copy')
  (step,) = (p for p in (tmp_path / 'copy' / 'finetune' / 'checkpoints').iterdir() if p.name.isdigit())
  for path in sorted((step / 'state').rglob('*')):
    if path.is_file():
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  with pytest.raises(UserError, match=r'finetune/checkpoints/3 is damaged') as e:
    trained.load(str(tmp_path / 'copy'), sharding.make_mesh())
  assert '\n' not in str(e.value)


FACES = ['--data.source=synthetic_faces', '--data.split=valid']


def test_the_nearest_training_pictures_answer_by_the_features_of_an_encoder_without_labels(
  run, tmp_path, capsys
):
  out = tmp_path / 'e'
  asked = ['--checkpoint', str(run / 'pretrain'), '--out', str(out), *FACES, '--knn=3', '--samples=100']
  for _ in range(2):  # it may be repeated
    evaluate.main([*asked, '--csv'])
  printed = capsys.readouterr()
  options = {'size': 24, 'draw_size': 16, 'draw_seed': 0}
  bank, valid = (data.build('synthetic_faces', '', split, options) for split in ('train', 'valid'))
  encoder = serving.load(str(run / 'pretrain'))
  b, v = (encoder.embed([s[i]['image'] for i in range(len(s))]).astype(np.float64) for s in (bank, valid))
  b, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (b, v))
  want = np.zeros((len(valid), 7))
  for i, row in enumerate(v @ b.T):
    for j in np.argsort(-row, kind='stable')[:3]:
      want[i, bank.label(int(j))] += np.exp(row[j] / 0.07)
  p = predictions(out / 'evaluation')
  assert p['class_names'].tolist() == list(bank.class_names)
  shares = special.softmax(p['logits'].astype(np.float64), axis=1)
  np.testing.assert_allclose(shares, want / want.sum(1, keepdims=True), atol=1e-4)
  found, record = held(out)
  right = want.argmax(1) == [valid.label(i) for i in range(len(valid))]
  assert found['valid']['accuracy'] == right.mean()
  assert {'mean_class_accuracy', 'macro_f1', 'intervals'} <= found['valid'].keys()
  assert f'accuracy {100 * right.mean():.2f} %' in ' '.join(printed.out.split())
  assert record['data']['evaluation']['train'] == files.jsonable(bank.record())
  assert json.loads((out / 'evaluation' / 'result.json').read_text())['objective'] == '3 nearest neighbours'
  # beside another evaluation, as any two
  evaluate.main(['--checkpoint', str(run / 'finetune'), '--out', str(tmp_path / 'f'), '--samples=0'])
  compare.main([str(out), str(tmp_path / 'f'), '--samples=100'])
  names = [arm.name for arm in arms.read([str(out), str(tmp_path / 'f')])]
  assert names == [f'{run.name}/pretrain (3 neighbours)', f'{run.name}/finetune']


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    (['--knn=25', *FACES], "--knn is 25, and the 'train' pictures of synthetic_faces are 24; expected at most"),
    (['--knn=3', *FACES, '--data.split=valid,train'], "data.split is 'valid,train', and --knn looks for neighbours in"),
    (['--knn=3', *FACES, '--data.split=training'], "data.split is 'training', and --knn looks for neighbours in"),
    (['--knn=3', *FACES, '--data.split=val+train'], "data.split is 'val+train', and --knn looks for neighbours in"),
    (['--knn=-1', *FACES], '--knn is -1; expected a number of neighbours'),
    (['--knn_temperature=1', *FACES], '--knn_temperature has no effect without --knn'),
    (['--knn=3', '--knn_temperature=nan', *FACES], '--knn_temperature is nan; expected a number above 0'),
  ],
)  # fmt: skip
def test_neighbours_that_can_not_be_are_refused(run, flags, said):
  with pytest.raises(UserError) as e:
    evaluate.main(['--checkpoint', str(run / 'pretrain'), *flags])
  assert said in str(e.value)


def test_pictures_without_labels_are_no_neighbours(run, tmp_path):
  for split in ('train', 'valid'):
    (tmp_path / split).mkdir()
    Image.new('RGB', (16, 16)).save(tmp_path / split / 'a.png')
  with pytest.raises(
    UserError, match=r"--knn: the 'train' pictures of folder have no labels; expected a --data"
  ):
    evaluate.main(
      [
        *('--checkpoint', str(run / 'pretrain'), '--knn=1', '--data.split=valid'),
        *('--data.source=folder', f'--data.root={tmp_path}'),
      ]
    )


def test_a_model_without_features_has_no_neighbours(run, tmp_path, monkeypatch):
  monkeypatch.setattr(masked_autoencoding.Objective, 'answers', lambda *_: {})
  with pytest.raises(UserError, match='its objective, masked_autoencoding, gives no features; expected'):
    evaluate.main(['--checkpoint', str(run / 'pretrain'), '--out', str(tmp_path / 'e'), *FACES, '--knn=3'])

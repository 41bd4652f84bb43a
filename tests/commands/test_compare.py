"""Two sets of predictions: what is paired with what, whichever folder, order and class numbering they come in."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mimic_jax import metrics, uncertainty
from mimic_jax.commands import compare
from mimic_jax.runtime import cli, files
from mimic_jax.runtime.errors import UserError

NAMES = ('surprise', 'fear', 'happiness')
ALIASES = ('happy', 'surprised', 'fearful')  # the same three in another order
ORDER = [2, 0, 1]  # of NAMES


def answers(rng, n=60, skill=1.5, split='valid', names=NAMES, labels=None):
  """Returns the arrays of a predictions.npz."""
  labels = rng.integers(0, len(names), n) if labels is None else labels
  logits = rng.normal(size=(n, len(names))) + skill * np.eye(len(names))[labels]
  return {
    'id': np.array([f'{split}/p{k:03d}.png' for k in range(n)]),
    'split': np.array([split] * n),
    'label': labels.astype(np.int32),
    'logits': logits.astype(np.float32),
    'class_names': np.array(names),
  }


def save(folder, arrays, **changes):
  folder.mkdir(parents=True, exist_ok=True)
  np.savez_compressed(folder / 'predictions.npz', **{**arrays, **changes})
  return str(folder)


def rows(arrays, index):
  return {k: v if k == 'class_names' else v[index] for k, v in arrays.items()}


def joined(*parts):
  return {k: parts[0][k] if k == 'class_names' else np.concatenate([p[k] for p in parts]) for k in parts[0]}


@pytest.fixture
def two(rng):
  """Returns the answers of two classifiers on the same 60 pictures."""
  a = answers(rng)
  return a, answers(rng, skill=2.0, labels=a['label'])


def test_the_difference_is_that_of_the_scores_on_the_shared_pictures(tmp_path, two):
  a, b = two
  found = compare.compare(save(tmp_path / 'a', a), save(tmp_path / 'b', b), samples=200, seed=4)
  want = uncertainty.paired(a['label'], a['logits'], b['logits'], NAMES, samples=200, seed=4)
  assert {k: found[k] for k in want} == want
  assert found['split'] == 'valid'
  assert found['pictures']['both'] == 60
  right = [(x['logits'].argmax(1) == a['label']).mean() for x in (a, b)]
  assert found['accuracy']['difference'] == pytest.approx(right[1] - right[0])


def test_order_of_pictures_and_numbering_and_naming_of_classes_change_nothing(tmp_path, two, rng):
  a, b = two
  other = {
    **b,
    'label': np.argsort(ORDER)[b['label']],
    'logits': b['logits'][:, ORDER],
    'class_names': np.array(ALIASES),
  }
  first = save(tmp_path / 'a', a)
  plain = compare.compare(first, save(tmp_path / 'b', b), samples=200)
  turned = compare.compare(first, save(tmp_path / 'c', rows(other, rng.permutation(60))), samples=200)
  assert {**plain, 'b': ''} == {**turned, 'b': ''}


def test_pictures_in_one_only_are_left_out_and_counted(tmp_path, two):
  a, b = two
  found = compare.compare(
    save(tmp_path / 'a', rows(a, np.arange(50))),
    save(tmp_path / 'b', rows(b, np.arange(10, 60))),
    samples=200,
  )
  assert found['pictures'] == {
    'both': 40,
    'only_a': 10,
    'only_b': 10,
    'classes_only_a': [],
    'classes_only_b': [],
  }
  want = metrics.classification(a['label'][10:50], a['logits'][10:50], NAMES)
  assert found['accuracy']['a'] == want['accuracy']
  assert '40 pictures in both, 10 only in A, 10 only in B' in compare.table(found)


def test_a_class_that_one_lacks_is_never_its_answer(tmp_path, two, rng):
  a, b = two
  wide = np.insert(b['logits'], 1, rng.normal(2, 1, 60), axis=1)  # 'contempt' is often B's answer
  other = {**b, 'logits': wide, 'class_names': np.array(['surprise', 'contempt', 'fear', 'happiness'])}
  other['label'] = np.array([0, 2, 3])[b['label']]
  found = compare.compare(save(tmp_path / 'a', a), save(tmp_path / 'b', other), samples=200)
  assert found['pictures']['classes_only_b'] == ['contempt']
  assert found['class_names'] == [*NAMES, 'contempt']
  assert found['accuracy']['a'] == metrics.classification(a['label'], a['logits'], NAMES)['accuracy']
  assert found['accuracy']['b'] == np.mean(wide.argmax(1) == other['label'])
  assert 'only B knows the class contempt' in compare.table(found)
  back = compare.compare(str(tmp_path / 'b'), str(tmp_path / 'a'), samples=200)
  for name in uncertainty.SCORES:
    assert back[name]['difference'] == pytest.approx(-found[name]['difference'], abs=1e-15)
  assert back['pictures']['classes_only_a'] == ['contempt']


def test_soft_labels_are_paired_with_hard_ones_of_the_same_class(tmp_path, two, rng):
  a, b = two
  soft = 0.6 * np.eye(3)[a['label']] + 0.4 * rng.dirichlet(np.ones(3), 60)
  found = compare.compare(save(tmp_path / 'a', a), save(tmp_path / 'b', b, label=soft), samples=200)
  assert found['counts']['count'] == 60


def test_a_run_a_stage_an_evaluation_and_the_file_mean_the_same(tmp_path, two):
  a, b = two
  run = tmp_path / 'run'
  save(run / 'finetune', a)
  (run / 'config.json').write_text(json.dumps({'stages': 'pretrain,finetune'}))
  other = save(tmp_path / 'b', b)
  forms = [run, run / 'finetune', run / 'finetune' / 'predictions.npz']
  found = [compare.compare(str(form), other, samples=200) for form in forms]
  assert found[0] == found[1] == found[2]


def test_the_split_is_named_where_there_are_several(tmp_path, two, rng):
  a, b = two
  test = answers(rng, n=30, split='test')
  pair = [save(tmp_path / n, joined(x, test)) for n, x in (('a', a), ('b', b))]
  with pytest.raises(UserError, match=r"--split is ''; expected one of valid, test, which both have"):
    compare.compare(*pair)
  assert compare.compare(*pair, split='test', samples=200)['counts']['both_wrong'] <= 30
  assert compare.compare(*pair, split='valid', samples=200)['counts']['count'] == 60
  with pytest.raises(UserError, match=r"is 'tset' \(did you mean 'test'\?\); expected one of valid, test"):
    compare.compare(*pair, split='tset')
  only = save(tmp_path / 'c', test)
  assert compare.compare(pair[0], only, samples=200)['split'] == 'test'
  with pytest.raises(UserError, match=r'has split valid, .* test; expected one that both have'):
    compare.compare(save(tmp_path / 'd', a), only)


def test_people_are_drawn_as_wholes_where_the_pattern_names_them(tmp_path, two):
  a, b = (save(tmp_path / n, x) for n, x in zip('ab', two))
  found = compare.compare(a, b, identity=r'p(\d\d)', samples=200)
  assert (found['method']['over'], found['method']['units']) == ('identities', 6)
  assert 'which takes pictures as independent' in compare.verdict(found)
  assert compare.compare(a, b, samples=200)['method']['over'] == 'pictures'


@pytest.mark.parametrize(
  ('accuracy', 'p', 'words'),
  [
    (
      (0.80, 0.82, 0.01, 0.03),
      0.0123,
      'B is 2.00 points better than A in accuracy (95 % interval +1.00 to +3.00',
    ),
    (
      (0.82, 0.80, -0.03, -0.01),
      1e-9,
      'worse than A in accuracy (95 % interval −3.00 to −1.00; McNemar p < 0.0001',
    ),
    (
      (0.8, 0.8, -0.01, 0.01),
      1.0,
      'B and A have the same accuracy (95 % interval −1.00 to +1.00; McNemar p = 1',
    ),
  ],
)
def test_the_verdict_says_direction_interval_and_number(accuracy, p, words):
  a, b, low, high = accuracy
  found = {
    'accuracy': {'a': a, 'b': b, 'difference': b - a, 'low': low, 'high': high},
    'mcnemar_p': p,
    'counts': {'count': 3191},
    'method': {'level': 0.95, 'over': 'pictures'},
  }
  told = compare.verdict(found)
  assert words in told
  assert 'n = 3,191' in told
  assert told.endswith('holds 0.' if low < 0 < high else 'leaves out 0.')


def spoiled(a, kind):
  """Returns what is wrong with B, or with its labels, ids and shapes."""
  label, logits, ids = a['label'].copy(), a['logits'].copy(), a['id'].copy()
  if kind == 'label':
    label[[4, 7]] = (label[[4, 7]] + 1) % 3
  if kind == 'range':
    label[3] = 3
  if kind == 'nan':
    logits[5, 1] = np.nan
  if kind == 'twice':
    ids[6] = ids[2]
  if kind == 'ids':
    ids = np.array([f'other/{k}' for k in range(60)])
  if kind == 'classes':
    return {**a, 'class_names': np.array(['cat', 'dog', 'bird'])}
  if kind == 'names':
    return {**a, 'class_names': np.array(['happy', 'happiness', 'fear'])}
  if kind == 'columns':
    logits = logits[:, :2]
  if kind == 'field':
    return {k: v for k, v in a.items() if k != 'logits'}
  return {**a, 'label': label, 'logits': logits, 'id': ids}


@pytest.mark.parametrize(
  ('kind', 'told'),
  [
    (
      'label',
      r"'valid/p004.png' is \w+ in .*a/predictions.npz and \w+ in .*b/pred.* \(2 of 60 labels differ\)",
    ),
    ('range', r"b/predictions.npz: label 3 of 'valid/p003.png' is out of range; expected 0 to 2"),
    ('nan', r"b/predictions.npz: logits of 'valid/p005.png' are not numbers \(1 of 60\)"),
    ('twice', r"b/predictions.npz: 'valid/p002.png' stands 2 times; expected each picture once"),
    ('ids', r"share no picture; expected the same ids \(such as 'valid/p000.png' and 'other/0'\)"),
    ('classes', r'has the classes surprise, fear, happiness, .* cat, dog, bird; expected at least one'),
    ('names', r"'happy' and 'happiness' are one class by two names"),
    ('columns', r"'logits' is \[60, 2\]; expected \[60, 3\] for 60 ids and 3 classes"),
    ('field', r'b/predictions.npz: has no logits; expected id, split, label, logits, class_names'),
  ],
)
def test_predictions_that_do_not_fit_are_refused_in_one_line(tmp_path, two, kind, told):
  a, b = two
  with pytest.raises(UserError, match=told) as caught:
    compare.compare(save(tmp_path / 'a', a), save(tmp_path / 'b', spoiled(b, kind)))
  assert '\n' not in str(caught.value)


def test_a_file_that_is_no_npz_is_refused(tmp_path, two):
  good = save(tmp_path / 'a', two[0])
  whole = (tmp_path / 'a' / 'predictions.npz').read_bytes()
  np.save(tmp_path / 'array.npy', np.zeros(3))
  np.savez(tmp_path / 'objects.npz', **{**two[0], 'id': np.array([{}] * 60, object)})
  middle = len(whole) // 2
  bad = {'empty': b'', 'text': b'hello', 'cut': whole[:middle], 'lone': (tmp_path / 'array.npy').read_bytes()}
  bad |= {'objects': (tmp_path / 'objects.npz').read_bytes()}
  bad |= {
    'flipped': whole[:middle] + bytes(255 - x for x in whole[middle : middle + 20]) + whole[middle + 20 :]
  }
  for name, data in bad.items():
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=f'{name}: is not an .npz that can be read'):
      compare.compare(good, str(tmp_path / name))


def test_folders_without_predictions_or_with_several_are_named(tmp_path, two):
  good = save(tmp_path / 'a', two[0])
  run = tmp_path / 'run'
  save(run / 'ce', two[0])
  save(run / 'mscl', two[1])
  (run / 'config.json').write_text(json.dumps({'stages': 'pretrain,ce,mscl'}))
  with pytest.raises(UserError, match=r"has 2 stages with predictions; expected one of '.*/ce', '.*/mscl'"):
    compare.compare(good, str(run))
  begun = tmp_path / 'begun'
  begun.mkdir()
  with pytest.raises(UserError, match=r"begun' has no predictions.npz; expected a run that has ended"):
    compare.compare(good, str(begun))
  (begun / 'config.json').write_text(json.dumps({'stages': 'x,y'}))
  with pytest.raises(UserError, match=r'has no predictions.npz in any of its stages \(x, y\)'):
    compare.compare(good, str(begun))
  with pytest.raises(UserError, match=r"nowhere' does not exist; expected a run, a stage"):
    compare.compare(str(tmp_path / 'nowhere'), good)


def test_the_command_prints_a_table_and_writes_json(tmp_path, two, capsys):
  a, b = (save(tmp_path / n, x) for n, x in zip('ab', two))
  compare.main([a, b, '--samples', '200', '--json', str(tmp_path / 'd.json')])
  out = capsys.readouterr().out
  held = json.loads((tmp_path / 'd.json').read_text())
  assert held == files.jsonable(compare.compare(a, b, samples=200))
  for name in uncertainty.SCORES:
    row = held[name]
    (line,) = [x for x in out.splitlines() if x.startswith(compare.WORDS[name])]
    assert f'{100 * row["a"]:.2f} %' in line
    assert f'{100 * row["b"]:.2f} %' in line
  assert out.splitlines()[-1] == compare.verdict(held)


@pytest.mark.parametrize(
  ('arguments', 'told'),
  [
    (['A'], '1 to compare; expected A and B, or methods and --against B'),
    (['A', 'B', 'A'], '3 to compare; expected A and B'),
    (['A', '--against', 'A', 'B'], '--against has 2 methods (a, b); expected one'),
    (['A', 'B', '--samples', 'many'], 'invalid int value'),
    (['A', 'B', '--samples', '5'], 'samples is 5; expected at least 100'),
    (['A', 'B', '--seed', '-1'], '--seed is -1; expected 0 or more'),
    (['A', 'B', '--identity', '('], "--identity is '('"),
    (['A', 'B', '--json', 'A'], 'can not be written'),
    (['A', 'B', '--what'], 'unrecognized arguments: --what'),
  ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(tmp_path, two, capsys, arguments, told):
  paths = {n.upper(): save(tmp_path / n, x) for n, x in zip('ab', two)}
  with pytest.raises(SystemExit) as caught:
    cli.run(compare.main, [paths.get(x, x) for x in arguments])
  assert caught.value.code == 2
  err = capsys.readouterr().err
  assert told in err
  assert len(err.splitlines()) == 1


def test_the_module_runs_as_a_command(tmp_path, two):
  a, b = (save(tmp_path / n, x) for n, x in zip('ab', two))
  command = [sys.executable, '-m', 'mimic_jax', 'compare', a, b, '--samples', '100']
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  assert 'McNemar p' in done.stdout


def seeds_of(folder, rng, labels, skill, seeds=(0, 1, 2), **config):
  """Makes the folder of a method's seeds and returns it, and its answers by seed."""
  held = {}
  for seed in seeds:
    held[seed] = answers(rng, labels=labels, skill=skill)
    run = folder / f'seed{seed}'
    save(run / 'finetune', rows(held[seed], rng.permutation(60)))
    (run / 'config.json').write_text(json.dumps({'stages': 'finetune', 'seed': seed, **config}))
  return str(folder), held


def test_methods_of_several_seeds_are_compared_seed_by_seed_over_the_pictures_that_all_have(
  tmp_path, rng, capsys
):
  labels = rng.integers(0, 3, 60)
  ce, of_ce = seeds_of(tmp_path / 'ce', rng, labels, 1.0)
  mscl, of_mscl = seeds_of(tmp_path / 'mscl', rng, labels, 2.0, seeds=(2, 0, 1, 7), lr=2)
  scl, of_scl = seeds_of(tmp_path / 'scl', rng, labels, 1.1, lr=3)
  flags = ['--samples', '200', '--json', str(tmp_path / 'd.json')]
  compare.main([mscl, scl, '--against', ce, *flags])
  out, found = capsys.readouterr().out, json.loads((tmp_path / 'd.json').read_text())
  assert (found['against'], found['seeds']) == ('ce', [0, 1, 2])
  for row, held in zip(found['arms'], (of_mscl, of_scl)):
    assert (row['seeds'], row['pictures']) == ([0, 1, 2], {'all': 60, 'left_out': 0})
    right = np.array([[(x[s]['logits'].argmax(1) == labels).mean() for s in range(3)] for x in (of_ce, held)])
    cell = row['accuracy']
    assert [cell['a'], cell['b']] == pytest.approx(right.mean(1))
    assert [cell['a_sd'], cell['b_sd']] == pytest.approx(right.std(1, ddof=1))
    stacked = [np.stack([x[s]['logits'] for s in range(3)]) for x in (of_ce, held)]
    want = uncertainty.across_seeds(labels, *stacked, NAMES, samples=200)
    for score in uncertainty.SCORES:
      assert {k: v for k, v in row[score].items() if k != 'p_holm'} == pytest.approx(want[score])
  for score in uncertainty.SCORES:
    p = [row[score]['p'] for row in found['arms']]
    assert [row[score]['p_holm'] for row in found['arms']] == pytest.approx(uncertainty.holm(p))
  first = found['arms'][0]['accuracy']
  line = next(x for x in out.splitlines() if x.startswith('accuracy'))
  assert f'{100 * first["b"]:.2f} ± {100 * first["b_sd"]:.2f} %' in line
  assert f'p = {first["p"]:.2g}, Holm {first["p_holm"]:.2g}' in line


def test_a_folder_of_seeds_its_runs_and_their_stages_are_one_method(tmp_path, rng):
  labels = rng.integers(0, 3, 60)
  for name, skill, lr in (('ce', 1.0, 1), ('mscl', 2.0, 2)):
    seeds_of(tmp_path / name, rng, labels, skill, lr=lr)

  def found(form: str):
    said = []
    for k, name in enumerate(('mscl', 'ce')):
      said += ['--against'] if k else []
      said += [str(p) for p in sorted(tmp_path.glob(f'{name}/{form}'))] or [
        f'{tmp_path}/{name}/{form}'.rstrip('/')
      ]
    compare.main([*said, '--samples', '100', '--json', str(tmp_path / 'd.json')])
    return json.loads((tmp_path / 'd.json').read_text())

  forms = [found(form) for form in ('finetune', 'seed*', 'seed*/finetune')]
  assert forms[0]['arms'][0]['seeds'] == [0, 1, 2]
  assert forms[0] == forms[1] == forms[2]
  compare.main([f'{tmp_path}/ce', f'{tmp_path}/mscl', '--samples', '100', '--json', str(tmp_path / 'd.json')])
  assert json.loads((tmp_path / 'd.json').read_text()) == forms[0]


def test_methods_without_a_seed_in_common_or_that_have_not_ended_are_refused(tmp_path, rng):
  labels = rng.integers(0, 3, 60)
  a, _ = seeds_of(tmp_path / 'a', rng, labels, 1.0)
  b, _ = seeds_of(tmp_path / 'b', rng, labels, 1.0, seeds=(4, 5), lr=2)
  with pytest.raises(UserError, match=r'b has seed 4, 5, a 0, 1, 2; expected some that both have'):
    compare.main([b, '--against', a])
  save(tmp_path / 'begun' / 'seed0', answers(rng))
  (tmp_path / 'begun' / 'seed0' / 'config.json').write_text(json.dumps({'stages': 'finetune'}))
  (tmp_path / 'begun' / 'seed0' / 'predictions.npz').unlink()
  with pytest.raises(UserError, match=r"seed0' has no predictions.npz in any of its stages \(finetune\)"):
    compare.main([str(tmp_path / 'begun'), '--against', a])
  stage = tmp_path / 'begun' / 'seed0' / 'finetune'  # of what is learned without classes
  save(stage, {'id': np.array(['x']), 'split': np.array(['valid'])})
  (stage / 'result.json').write_text(json.dumps({'metrics': {'valid': {'loss': 1.0}}}))
  with pytest.raises(UserError, match=r'finetune/predictions.npz: has no label, logits, class_names'):
    compare.main([str(tmp_path / 'begun'), '--against', a])

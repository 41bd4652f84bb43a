"""Parts of sources, and classes matched by name across sets."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mimic_jax.data import classes, sampling, selection, source
from mimic_jax.data.pipeline import eval_batches
from mimic_jax.runtime.errors import UserError


class Plain:
  """Pictures whose pixels are their number."""

  image_shape = (4, 4, 3)

  def __init__(self, class_names, labels, ids=None):
    self.class_names = tuple(class_names)
    self.labels = labels
    self.ids = ids or [f'train/{i:03d}.png' for i in range(len(labels))]

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, i):
    return {'image': np.full(self.image_shape, i, np.uint8), 'label': self.label(i), 'id': self.id(i)}

  def id(self, i):
    return self.ids[i]

  def label(self, i):
    return self.labels[i]

  def content_hash(self, i):
    return f'hash {i}'

  def record(self):
    return {'source': 'plain', 'count': len(self), 'split_hash': 'x', 'label_rule': 'kept'}


EIGHT = ('neutral', 'happiness', 'surprise', 'sadness', 'anger', 'disgust', 'fear', 'contempt')
SEVEN = ('Surprised', 'scared', 'disgusted', 'happy', 'sad', 'angry', 'neutral')


def test_classes_are_matched_by_name_and_alias_never_by_number():
  assert classes.match(EIGHT, SEVEN) == [2, 6, 5, 1, 3, 4, 0]
  assert classes.match(SEVEN, EIGHT) == [6, 3, 0, 4, 5, 2, 1, -1]
  assert classes.match(('a', 'b'), ('b', 'c')) == [1, -1]


def test_one_class_by_two_names_is_refused():
  with pytest.raises(UserError, match="'happy' and 'Happiness' are one class by two names"):
    classes.match(('happy', 'Happiness'), ('sad',))


def test_a_source_gets_the_models_numbers_and_says_what_it_left_out():
  whole = Plain(EIGHT, [0, 1, 2, 3, 4, 5, 6, 7, 7, 1])
  part = selection.for_classes(whole, SEVEN, 'data')
  assert part.class_names == SEVEN
  assert [part.label(i) for i in range(len(part))] == [6, 3, 0, 4, 5, 2, 1, 3]
  assert [int(part[i]['image'][0, 0, 0]) for i in range(len(part))] == [0, 1, 2, 3, 4, 5, 6, 9]
  assert [part[i]['label'] for i in range(len(part))] == [part.label(i) for i in range(len(part))]
  assert part.id(7) == whole.id(9)
  assert part.content_hash(7) == 'hash 9'
  record = part.record()
  assert record['classes_left_out'] == {'contempt': 2}
  assert record['classes_absent'] == []
  assert record['classes_matched']['scared'] == 'fear'
  assert record['class_counts']['happy'] == 2
  assert (record['count'], record['label_rule']) == (8, 'kept')


def test_classes_that_the_source_lacks_are_named():
  part = selection.for_classes(Plain(SEVEN, [0, 6]), EIGHT, 'data')
  assert part.record()['classes_absent'] == ['contempt']
  assert [part.label(i) for i in range(2)] == [2, 0]


def test_distributions_keep_the_shared_classes_and_add_up_to_one():
  votes = np.array([[0.5, 0.25, 0, 0, 0, 0, 0, 0.25], [0, 0, 0, 0, 0, 0, 0.2, 0.8]], np.float32)
  part = selection.for_classes(Plain(EIGHT, list(votes)), SEVEN, 'data')
  assert len(part) == 1  # the other's dominant class is left out
  np.testing.assert_allclose(part.label(0), np.array([0, 0, 0, 1 / 3, 0, 0, 2 / 3], np.float32))


def test_the_same_classes_change_nothing():
  whole = Plain(SEVEN, [1, 2])
  assert selection.for_classes(whole, SEVEN, 'data') is whole


@pytest.mark.parametrize(
  ('names', 'words'),
  [(('1', '2'), r'set has the classes 1, 2; expected at least one of those of the model, Surprised'), ((), 'set has no labels')],
)  # fmt: skip
def test_a_source_without_a_shared_class_is_refused(names, words):
  with pytest.raises(UserError, match=words):
    selection.for_classes(Plain(names, [0, 1]), SEVEN, 'set')


def test_a_selection_reads_the_same_batches_in_order_and_survives_pickling():
  part = selection.for_classes(Plain(EIGHT, [7, 1, 7, 2, 3]), SEVEN, 'data')
  part = pickle.loads(pickle.dumps(part))
  batch = next(
    iter(
      eval_batches(part, batch_images=4, image_size=4, interpolation='bilinear')
    )
  )  # fmt: skip
  assert batch['label'].tolist() == [3, 0, 4, -1]
  assert batch['image'][:3, 0, 0, 0].tolist() == [1, 3, 4]
  assert isinstance(part.open(0), Image.Image)


def write(path, text):
  path.write_text(text)
  return str(path)


RAF = ['test_0001', 'test_0002', 'test_0003']
FOLDER = ['test/a/x.png', 'test/b/x.png', 'test/b/y.png']


@pytest.mark.parametrize(
  ('ids', 'text', 'chosen'),
  [
    (RAF, 'test_0003.jpg 5\n\n# comment\ntest_0001_aligned.jpg,3\n', [0, 2]),
    (RAF, 'Image/aligned/test_0002_aligned.jpg\n', [1]),
    (FOLDER, 'test/b/x.png 1\ny 2\n', [1, 2]),
    (FOLDER, '"y.png"\t1\n', [2]),
  ],
)
def test_a_list_names_pictures_by_id_file_name_or_stem(ids, text, chosen, tmp_path):
  whole = Plain(('a', 'b', 'c'), [0, 1, 2], ids)
  part = selection.listed({'test': whole}, write(tmp_path / 'list.txt', text))['test']
  assert [part.id(i) for i in range(len(part))] == [ids[k] for k in chosen]
  assert [part.label(i) for i in range(len(part))] == chosen
  assert part.record()['subset'] == {'list': 'list.txt', 'count': len(chosen), 'of': 3}
  assert part.class_names == whole.class_names


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('y\nq 1\nr\ns\nt\n', r"list.txt: 4 of 5 names are in none of the splits test: 'q' \(line 2\), 'r' \(line 3\), 's' \(line 4\), …; expected ids or file names like 'test/a/x.png' \(test\)"),
    ('x\n', r"list.txt:1: 'x' names 2 pictures \(test/a/x.png, test/b/x.png"),
    ('# nothing\n', r'list.txt: names no picture'),
  ],
)  # fmt: skip
def test_a_wrong_list_is_one_line(text, words, tmp_path):
  with pytest.raises(UserError, match=words) as e:
    selection.listed({'test': Plain(('a',), [0, 0, 0], FOLDER)}, write(tmp_path / 'list.txt', text))
  assert '\n' not in str(e.value)


def test_names_that_are_not_there_are_counted(tmp_path):
  whole = Plain(('a', 'b', 'c'), [0, 1, 2], RAF)
  path = write(tmp_path / 'list.txt', 'test_0001\ntest_0009 3\ntest_0002\n')
  part = selection.listed({'test': whole}, path)['test']
  assert [part.id(i) for i in range(len(part))] == RAF[:2]
  about = part.record()['subset']
  assert (about['count'], about['not_there'], about['first_not_there']) == (2, 1, "'test_0009' (line 2)")


def test_a_list_may_name_pictures_of_several_splits(tmp_path):
  train = Plain(('a',), [0] * 4, [f'train_000{k}' for k in range(4)])
  whole = {'train': train, 'test': Plain(('a',), [0] * 3, RAF), 'valid': Plain(('a',), [0], ['valid_1'])}
  path = write(tmp_path / 'list.txt', 'train_0003\ntest_0001\ntrain_0001\nnobody\n')
  parts = selection.listed(whole, path)
  assert {k: [p.id(i) for i in range(len(p))] for k, p in parts.items()} == {
    'train': ['train_0001', 'train_0003'],
    'test': ['test_0001'],
  }
  assert parts['test'].record()['subset']['not_there'] == 1


def test_a_missing_list_is_one_line(tmp_path):
  with pytest.raises(UserError, match=r'nowhere.txt: is not a readable list'):
    selection.listed({'test': Plain(('a',), [0], ['x'])}, str(tmp_path / 'nowhere.txt'))


def test_a_selection_is_a_source():
  assert isinstance(selection.for_classes(Plain(EIGHT, [0]), SEVEN, 'data'), source.Source)


def unbalanced(rng=None, n=(60, 25, 3, 0, 12)):
  """Returns pictures of five classes, so many of each, in any order."""
  labels = np.repeat(range(5), n)
  ids = [f'train/{i}.png' for i in range(len(labels))]
  order = rng.permutation(len(labels)) if rng is not None else range(len(labels))
  return Plain('abcde', [int(labels[i]) for i in order], [ids[i] for i in order])


def labels_of(s):
  return {s.id(i): s.label(i) for i in range(len(s))}


def test_a_fraction_takes_the_same_share_of_every_class_and_one_at_least(rng):
  whole = unbalanced(rng)
  parts = {f: selection.for_training(whole, f, 0.0, 7) for f in (0.2, 0.5)}
  fifth = labels_of(parts[0.2])
  assert np.bincount(list(fifth.values()), minlength=5).tolist() == [12, 5, 1, 0, 2]
  assert fifth.items() <= labels_of(parts[0.5]).items() <= labels_of(whole).items()
  assert [parts[0.2][i]['label'] for i in range(20)] == [parts[0.2].label(i) for i in range(20)]
  record = parts[0.2].record()
  assert record['fraction'] == {'share': 0.2, 'seed': 7, 'count': 20, 'of': 100}
  assert (record['count'], record['class_counts']['a']) == (20, 12)
  assert labels_of(selection.for_training(whole, 0.2, 0.0, 8)) != fifth
  assert selection.for_training(whole, 1.0, 0.0, 7) is whole
  many = selection.for_training(Plain(map(str, range(50)), np.repeat(range(50), 13).tolist()), 0.2, 0.0, 7)
  assert len(many) == 130  # 2.6 of each class
  assert set(np.bincount(list(labels_of(many).values()))) == {2, 3}
  unlabelled = Plain((), [-1] * 50)
  assert len(selection.for_training(unlabelled, 0.1, 0.0, 7)) == 5


def test_noise_flips_the_same_share_of_every_class_to_the_others_alike(rng):
  labels = np.repeat(range(4), (4000, 2000, 1000, 200)).tolist()
  whole = Plain('abcd', [*labels, -1, -1])
  noisy = selection.for_training(whole, 1.0, 0.3, int(rng.integers(2**31)))
  got = np.array([noisy.label(i) for i in range(len(noisy))])
  assert got[-2:].tolist() == [-1, -1]
  table = np.zeros((4, 4), int)
  np.add.at(table, (labels, got[:-2]), 1)
  assert np.diag(table).tolist() == [2800, 1400, 700, 140]
  for row, flipped in zip(table, (1200, 600, 300, 60)):
    others = np.sort(row)[:-1]
    assert np.abs(others - flipped / 3).max() < 5 * np.sqrt(flipped * 2 / 9)
  record = noisy.record()
  assert record['label_noise']['count'] == 2160
  assert record['label_noise']['of'] == 7200
  assert record['class_counts']['d'] == table[:, 3].sum()
  assert '2,160 of 7,200 training labels' in record['warnings'][0]
  assert source.fingerprint(record) != source.fingerprint({**whole.record(), 'split_hash': 'x'})
  drawn = sampling.balanced(noisy, 3)
  of_d = [noisy.label(int(drawn(k, k)[1])) == 3 for k in range(2000)]
  assert abs(np.mean(of_d) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 2000)


def test_both_together_are_the_same_in_another_process_and_in_another_order(rng):
  program = (
    'from tests.data.test_selection import *\n'
    'print(sorted(labels_of(selection.for_training(unbalanced(), 0.5, 0.4, 3)).items()))'
  )
  there = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True).stdout
  here = selection.for_training(unbalanced(rng), 0.5, 0.4, 3)
  assert str(sorted(labels_of(here).items())) == there.strip()
  assert labels_of(pickle.loads(pickle.dumps(here))) == labels_of(here)
  whole = labels_of(unbalanced())
  assert sum(whole[name] != label for name, label in labels_of(here).items()) == 12 + 5 + 1 + 2
  assert here.record()['label_noise'] == {'share': 0.4, 'seed': 3, 'count': 20, 'of': 50}


@pytest.mark.parametrize(
  ('whole', 'words'),
  [
    (Plain('ab', [np.array([0.5, 0.5], np.float32)]), r'data.label_noise is 0.1, and labels are distributions \(data.label_rule=kept\)'),
    (Plain((), [-1]), 'data.label_noise is 0.1, and there are 0 classes; expected 0, or two or more classes'),
  ],
)  # fmt: skip
def test_noise_without_one_class_for_each_picture_is_refused(whole, words):
  with pytest.raises(UserError, match=words):
    selection.for_training(whole, 1.0, 0.1, 0)

"""Labels in tables: what is read, and what is wrong with a table named by file and line."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from mimic_jax import data
from mimic_jax.data import held_out
from mimic_jax.objectives.base import Target
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import evaluation


@pytest.fixture
def root(rng, tmp_path):
  for name in ('a.png', 'b.png', 'deep/c.png', 'deep/d, e.png'):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8)).save(tmp_path / name)
  return tmp_path


def table(root, text, name='train.csv', encoding='utf-8'):
  (root / name).write_bytes(text.encode(encoding))
  return str(root)


def read(root, split='train', **options):
  s = data.build('csv', str(root), split, options)
  return s.class_names, {s[i]['id']: s.class_names[s[i]['label']] for i in range(len(s))}


@pytest.mark.parametrize('ends', ['\n', '\r\n'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
def test_pictures_and_labels_are_read_by_the_names_of_the_columns(root, ends, encoding):
  rows = [
    'Label,note,ID',
    'glad,,./a.png',
    'böse,"two',
    'lines",b.png',
    '',
    'glad,x,"deep/d, e.png"',
    'glad,again,a.png',
  ]
  table(root, ends.join(rows), encoding=encoding)
  assert read(root) == (('böse', 'glad'), {'a.png': 'glad', 'b.png': 'böse', 'deep/d, e.png': 'glad'})
  record = data.build('csv', str(root), 'train', {}).record()
  assert (record['count'], record['class_counts']) == (3, {'böse': 1, 'glad': 2})


def test_copies_are_looked_for_among_all_pictures_of_a_table(root):
  table(root, 'id,label\na.png,x\nb.png,y')
  assert len(data.whole('csv', str(root), 'train', {})) == 2


def test_splits_are_tables_of_their_own_or_a_column(root):
  table(root, 'id,label\na.png,x\nb.png,y', 'Train.csv')
  table(root, 'id,label\ndeep/c.png,y', 'val.csv')
  apart = read(root), read(root, 'valid')
  assert apart == ((('x', 'y'), {'a.png': 'x', 'b.png': 'y'}), (('x', 'y'), {'deep/c.png': 'y'}))
  for name in ('labels.csv', 'any.csv'):
    (root / 'other').mkdir(exist_ok=True)
    table(root / 'other', 'id,label,split\na.png,x,training\nb.png,y,train\ndeep/c.png,y,Val', name)
  for name in ('a.png', 'b.png', 'deep'):
    (root / 'other' / name).symlink_to(root / name)
  for place in (root / 'other', root / 'other' / 'any.csv'):
    assert (read(place), read(place, 'validation')) == apart
  with pytest.raises(
    UserError, match=r"no split 'test' in .*, whose tables have train, valid; expected one of them"
  ):
    read(root / 'other', 'test')


def test_a_table_in_an_object_store_comes_with_its_pictures(root, store):
  table(root, 'id,label\na.png,x\ndeep/c.png,y', 'any.csv')
  expected = read(root / 'any.csv')
  shutil.copytree(root, store.folder / 'bucket')
  assert read('gs://bucket/any.csv') == expected


def test_a_table_without_a_valid_split_has_one_held_out(rng, root):
  for k in range(60):
    Image.fromarray(rng.integers(0, 256, (2, 2, 3), np.uint8)).save(root / f'{k}.png')
  table(root, 'id,label\n' + '\n'.join(f'{k}.png,{"xy"[k % 2]}' for k in range(60)), 'labels.csv')
  train, valid = (read(root, split, held_out=0.3)[1] for split in ('train', 'valid'))
  assert len(train) + len(valid) == len(train | valid) == 60
  assert 0 < len(valid) < 60
  assert data.build('csv', str(root), 'valid', {'held_out': 0.3}).record()['held_out']['valid'] == len(valid)


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('', r'train.csv:1: the first row is empty; expected names of columns, among them id and label'),
    ('a.png,x\nb.png,y', r'train.csv:1: the first row is a.png, x; expected names of columns'),
    ('id;label\na.png;x', r'train.csv:1: the first row is id;label; expected'),
    ('id,label,id\n', r'train.csv:1: .*once each'),
    ('id,label,Age,age\na.png,x,1,2', r'train.csv:1: the first row is id, label, age, age; expected .*once each'),
    ('id,label\n', r'train.csv: has no rows but the first'),
    ('id,label\na.png,x\ngone.png,y', r'gone.png: does not exist, but .*train.csv:3 names it'),
    ('id,label\n\n../a.png,x', r"train.csv:3: the id is '../a.png'; expected the path of a picture in the table's folder"),
    ('id,label\ndeep/../../a.png,x', r"train.csv:2: the id is 'deep/../../a.png'"),
    ('id,label\n/etc/passwd,x', r"train.csv:2: the id is '/etc/passwd'"),
    ('id,label\nC:a.png,x', r"train.csv:2: the id is 'C:a.png'"),
    ('id,label\ndeep\\c.png,x', r"train.csv:2: the id is 'deep\\c.png'"),
    ('id,label\na\0.png,x', r'train.csv:2: '),
    ('id,label\n,x', r"train.csv:2: the id is ''"),
    ('id,label\na.png, ', r"train.csv:2: the label of 'a.png' is empty; expected one"),
    ('id,label\na.png,x\n./a.png,y', r"train.csv:3: 'a.png' is y of train, and x of train in .*train.csv:2; expected each"),
    ('id,label\na.png', r'train.csv:2: has 1 fields; expected the 2 of the first row'),
    ('id,label\na.png,"x', r'train.csv:2: is no row of a table'),
  ],
)  # fmt: skip
def test_a_row_that_can_not_be_meant_is_named_by_file_and_line(root, text, said):
  with pytest.raises(UserError, match=said) as e:
    read(table(root, text))
  assert '\n' not in str(e.value)


def test_another_encoding_is_named_with_its_line(root):
  with pytest.raises(UserError, match=r'train.csv:3: is not UTF-8'):
    read(table(root, 'id,label\na.png,x\nb.png,böse', encoding='latin-1'))


def test_wrong_roots_and_labels_are_one_line(root):
  for place, said in (
    ('', r"data.root is empty; source 'csv' needs a folder with train.csv or labels.csv"),
    (root / 'gone', 'does not exist'),
    (root, r'no table in .*: looked for train.csv or labels.csv; expected one with the columns id and label'),
    (root / 'a.png', r'a.png:1: is not UTF-8'),
  ):
    with pytest.raises(UserError, match=said):
      read(place)
  table(root, 'id,label\na.png,x\nb.png,y')
  table(root, 'id,label\na.png,x\ndeep/c.png,z', 'valid.csv')
  with pytest.raises(UserError, match=r"valid.csv:3: label 'z' has no picture to train on; expected x, y"):
    read(root, 'valid')


def test_columns_of_numbers_are_targets_and_an_empty_cell_is_unknown(root, monkeypatch):
  rows = 'id,label,Valence,note,empty,age\na.png,x,-0.5,fine,,3\nb.png,y,,4,,7\ndeep/c.png,y,1e-1,,,'
  source = data.build('csv', table(root, rows), 'train', {})
  assert list(source.targets) == ['valence', 'age']
  want = {'a.png': (-0.5, 3), 'b.png': (np.nan, 7), 'deep/c.png': (np.float32(0.1), np.nan)}
  for i in range(3):
    item = source[i]
    np.testing.assert_array_equal([item['valence'], item['age']], want[item['id']])
  monkeypatch.setattr(held_out, 'part', lambda *_: (np.array([1, 2]), {}))
  monkeypatch.setattr(held_out, 'note', lambda about: '')
  rest = data.build('csv', str(root), 'train', {'held_out': 0.1})
  assert [rest.id(i) for i in (0, 1)] == ['b.png', 'deep/c.png']
  np.testing.assert_array_equal(rest.targets['age'], [7, np.nan])


def test_no_target_has_the_name_of_what_a_batch_holds_anyway(root):
  source = data.build('csv', table(root, 'id,label,mask,bad,age\na.png,x,1,2,3'), 'train', {})
  assert list(source.targets) == ['age']


@pytest.mark.parametrize(
  ('rows', 'said'),
  [
    ('a.png,x,0.5,1\nb.png,y,n/a,2', r"train.csv:3: the valence of 'b.png' is 'n/a'; expected a number, or nothing"),
    ('a.png,x,0.5,1\nb.png,y,inf,2', r"train.csv:3: the valence of 'b.png' is 'inf'; expected a number"),
    ('a.png,x,0.5,1\nb.png,y,,2\na.png,x,-0.5,1', r"train.csv:4: the valence of 'a.png' is '-0.5', and '0.5' in .*train.csv:2; expected one"),
    ('a.png,x,,1\nb.png,y,,2\na.png,x,0.5,1', r"train.csv:4: the valence of 'a.png' is '0.5', and '' in .*train.csv:2; expected one"),
  ],
)  # fmt: skip
def test_a_column_of_numbers_with_a_cell_that_is_none_or_differs_is_no_target_and_the_cell_is_named(
  root, rows, said
):
  source = data.build('csv', table(root, f'id,label,valence,age\n{rows}'), 'train', {})
  assert [source.id(i) for i in range(len(source))] == ['a.png', 'b.png']
  np.testing.assert_array_equal(source.targets['age'], [1, 2])
  (warning,) = source.record()['warnings']
  assert re.search(f'^without valence: .*{said}', warning)
  with pytest.raises(UserError, match="'regression' needs 'valence'") as e:
    evaluation.check_targets(source, {'valence': Target()}, 'regression', "data.source is 'csv'")
  assert warning in str(e.value)

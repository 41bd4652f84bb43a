"""FERPlus: counts and labels under every rule in both layouts, against the rules written out row by row."""

import csv
import pickle

import numpy as np
import pytest
from PIL import Image

from mimic_jax import data
from mimic_jax.data import copies, source
from mimic_jax.data.sets import ferplus
from mimic_jax.runtime.errors import UserError
from tests import small

REAL = small.DATA / 'ferplus'
real = pytest.mark.skipif(not REAL.is_dir(), reason='MIMIC_TEST_DATA has no ferplus')
FOLDERS = {'train': 'FER2013Train', 'valid': 'FER2013Valid', 'test': 'FER2013Test'}
USAGE = {'train': 'Training', 'valid': 'PublicTest', 'test': 'PrivateTest'}
HEADER = 'neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF'
RULES = ('majority', 'argmax10', 'argmax8', 'soft', 'soft_argmax10', 'soft_argmax8')


def expected_label(votes, rule):
  """The rules of the reference page in plain Python: None (dropped), a class, or a distribution."""
  base = {'soft': 'majority', 'soft_argmax10': 'argmax10', 'soft_argmax8': 'argmax8'}.get(rule, rule)
  counts = list(votes)
  if base == 'majority':
    counts = [0 if c == 1 else c for c in counts]
  field = counts[:8] if base == 'argmax8' else counts
  top = max(field)
  if top == 0:
    return None
  winner = field.index(top)
  if base == 'majority' and not top > sum(counts) / 2:
    return None
  if winner >= 8:
    return None
  return [c / sum(counts[:8]) for c in counts[:8]] if rule.startswith('soft') else winner


def draw_votes(rng, n):
  """Ten votes a row, with ties, winners that are no emotion, single votes, an even split and an empty row."""
  rows = [rng.multinomial(10, rng.dirichlet([0.4] * 10)).tolist() for _ in range(n)]
  rows[:8] = [
    [5, 5, 0, 0, 0, 0, 0, 0, 0, 0],  # tie of two emotions: exactly half is not a majority
    [0, 0, 4, 0, 0, 0, 0, 0, 4, 0],  # tie of an emotion and unknown
    [0, 0, 0, 0, 0, 0, 0, 2, 6, 2],  # unknown wins
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 9],  # no face wins
    [1, 1, 1, 1, 1, 1, 1, 1, 1, 1],  # single votes only
    [1, 0, 3, 1, 1, 1, 1, 1, 1, 0],  # a majority once single votes are gone
    [0, 0, 0, 0, 0, 0, 0, 0, 5, 5],  # no vote for an emotion
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0],  # no vote at all
  ]
  order = rng.permutation(n)
  return [rows[i] for i in order]


def write_official(root, rows_of, pictures_of):
  for split, rows in rows_of.items():
    folder = root / FOLDERS[split]
    folder.mkdir(parents=True)
    with open(folder / 'label.csv', 'w') as f:
      for k, votes in enumerate(rows):
        f.write(f'fer{split}{k:05}.png,"(0, 0, 48, 48)",{",".join(map(str, votes))}\n')
        Image.fromarray(pictures_of[split][k]).save(folder / f'fer{split}{k:05}.png')


def write_raw(root, rows_of, pictures_of, blank=()):
  """Writes both csv files, with a picture-less row after each of the rows counted in `blank`."""
  root.mkdir(parents=True, exist_ok=True)
  with open(root / 'fer2013.csv', 'w') as p, open(root / 'fer2013new.csv', 'w') as v:
    p.write('emotion,pixels,Usage\n')
    v.write(f'Usage,Image name,{HEADER}\n')
    for split, rows in rows_of.items():
      for k, votes in enumerate(rows):
        pixels = ' '.join(map(str, pictures_of[split][k].ravel()))
        p.write(f'{k % 7},{pixels},{USAGE[split]}\n')
        v.write(f'{USAGE[split]},fer{split}{k:05}.png,{",".join(map(str, votes))}\n')
        if k in blank:
          p.write(f'0,{" ".join(["7"] * 2304)},{USAGE[split]}\n')
          v.write(f'{USAGE[split]},,{",".join(["0"] * 10)}\n')


def draw_tree(rng, n=30):
  rows = {s: draw_votes(rng, n) for s in FOLDERS}
  return rows, {s: rng.integers(0, 256, (n, 48, 48), np.uint8) for s in FOLDERS}


@pytest.mark.parametrize('layout', ['official', 'raw'])
def test_labels_counts_and_pictures_under_every_rule(rng, tmp_path, layout):
  rows, pictures = draw_tree(rng)
  if layout == 'official':
    write_official(tmp_path, rows, pictures)
  else:
    write_raw(tmp_path, rows, pictures, blank=(3, 8))
  for rule in RULES:
    for split in ('train', 'valid', 'test', 'train+valid'):
      parts = split.split('+')
      expected = [
        (f'{FOLDERS[s]}/fer{s}{k:05}.png', label, pictures[s][k])
        for s in parts
        for k, label in enumerate(expected_label(votes, rule) for votes in rows[s])
        if label is not None
      ]
      s = data.build('ferplus', str(tmp_path), split, {'label_rule': rule})
      assert len(s) == len(expected) > 0
      for i, (name, label, picture) in enumerate(expected):
        item = s[i]
        assert item['id'] == s.id(i) == name
        np.testing.assert_array_equal(item['image'], np.repeat(picture[:, :, None], 3, 2))
        np.testing.assert_allclose(item['label'], label, rtol=1e-6)
        if rule.startswith('soft'):
          assert item['label'].dtype == np.float32
          assert abs(item['label'].sum() - 1) < 1e-6
        else:
          assert isinstance(item['label'], int)
      record = s.record()
      hard = [
        expected_label(v, rule.replace('soft_', '').replace('soft', 'majority'))
        for p in parts
        for v in rows[p]
      ]
      assert record['class_counts'] == {name: hard.count(k) for k, name in enumerate(HEADER.split(',')[:8])}
      assert (record['layout'], record['label_rule'], record['count']) == (layout, rule, len(expected))
      assert record['dropped'] == 30 * len(parts) - len(expected)
      assert record['split'] == split
      assert (
        'fer2013new.csv' in record['label_file'] if layout == 'raw' else 'label.csv' in record['label_file']
      )
  assert isinstance(s, source.Source)
  assert s.image_shape == (48, 48, 3)


def test_first_column_wins_a_tie():
  votes = np.array(
    [[0, 4, 4, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 3, 0, 0, 0, 0, 3, 0], [0, 0, 0, 0, 0, 0, 0, 0, 3, 3]]
  )
  assert ferplus.targets(votes, 'argmax10')[0].tolist() == [1, 3, -1]
  assert ferplus.targets(votes, 'argmax8')[0].tolist() == [1, 3, -1]
  assert ferplus.targets(votes, 'majority')[0].tolist() == [-1, -1, -1]


def test_soft_labels_use_the_votes_that_their_rule_counts():
  votes = np.array([[6, 1, 2, 0, 0, 0, 0, 0, 1, 0]])
  np.testing.assert_allclose(ferplus.targets(votes, 'soft')[1][0, :3], [6 / 8, 0, 2 / 8])
  np.testing.assert_allclose(ferplus.targets(votes, 'soft_argmax10')[1][0, :3], [6 / 9, 1 / 9, 2 / 9])


def test_a_count_other_than_the_published_is_a_warning_that_states_both(rng, tmp_path):
  rows, pictures = draw_tree(rng)
  write_official(tmp_path, rows, pictures)
  record = data.build('ferplus', str(tmp_path), 'train', {}).record()
  assert record['expected_count'] == 25045
  assert len(record['warnings']) == 1
  assert f' {record["count"]} ' in record['warnings'][0]
  assert '25045' in record['warnings'][0]
  unpublished = data.build('ferplus', str(tmp_path), 'test', {'label_rule': 'argmax8'}).record()
  assert (unpublished['expected_count'], unpublished['warnings']) == (None, [])


def test_the_published_counts_of_other_classes_are_a_warning(rng, tmp_path, monkeypatch):
  counts = (3, 6, 2, 1, 5, 4, 7, 8)
  votes = [[10 if k == c else 0 for k in range(10)] for c, n in enumerate(counts) for _ in range(n)]
  write_official(tmp_path, {'train': votes}, {'train': np.zeros((36, 48, 48), np.uint8)})

  def warned(published):
    monkeypatch.setitem(ferplus.EXPECTED['official']['majority'], 'train', published)
    record = data.build('ferplus', str(tmp_path), 'train', {'label_rule': 'soft'}).record()
    assert record['expected_count'] == 36
    return record['warnings']

  assert warned(counts) == warned(36) == []
  (warning,) = warned((6, 3, 2, 1, 5, 4, 7, 8))
  assert "ferplus train under 'soft' has 36 pictures (3/6/2/1/5/4/7/8), the published release 36" in warning
  assert 'the class order looks wrong; expected neutral, happiness' in warning
  (warning,) = warned((4, 5, 2, 1, 5, 4, 7, 8))
  assert 'order' not in warning


def test_pictures_that_label_csv_does_not_name_are_a_warning(rng, tmp_path):
  rows, pictures = draw_tree(rng)
  write_official(tmp_path, rows, pictures)
  count = data.build('ferplus', str(tmp_path), 'train', {}).record()['count']
  for name in ('stray.png', 'more.jpg', '.hidden.png', 'notes.txt'):
    Image.fromarray(pictures['train'][0]).save(tmp_path / 'FER2013Train' / name, 'PNG')
  record = data.build('ferplus', str(tmp_path), 'train', {}).record()
  assert record['count'] == count
  assert record['warnings'][1:] == [
    f'not read, since FER2013Train/label.csv does not name them: {tmp_path}/FER2013Train/more.jpg and 1 more'
  ]
  assert data.build('ferplus', str(tmp_path), 'valid', {}).record()['warnings'][1:] == []


def test_the_whole_training_split_has_what_the_label_rule_leaves_out(rng, tmp_path):
  rows, pictures = draw_tree(rng)
  write_official(tmp_path, rows, pictures)
  kept = data.build('ferplus', str(tmp_path), 'train', {'label_rule': 'soft'})
  whole = data.whole('ferplus', str(tmp_path), 'train', {'label_rule': 'soft', 'cache': True})
  argmax8 = data.build('ferplus', str(tmp_path), 'train', {'label_rule': 'argmax8'})
  ids = [[s.id(i) for i in range(len(s))] for s in (kept, whole, argmax8)]
  assert ids[1] == ids[2]
  assert len(ids[0]) < len(ids[1])
  joined = data.whole('ferplus,ferplus', f'{tmp_path},{tmp_path}', 'train', {})
  assert len(joined) == 2 * len(whole)


def test_both_layouts_have_the_same_split_hash_and_pickle(rng, tmp_path):
  rows, pictures = draw_tree(rng)
  write_official(tmp_path / 'a', rows, pictures)
  write_raw(tmp_path / 'b', rows, pictures, blank=(2,))
  a, b = (data.build('ferplus', str(tmp_path / x), 'train', {}) for x in 'ab')
  assert source.fingerprint(a.record()) == source.fingerprint(b.record())
  assert (
    a.record()['split_hash'] != data.build('ferplus', str(tmp_path / 'a'), 'valid', {}).record()['split_hash']
  )
  for s in (a, b):
    again = pickle.loads(pickle.dumps(s))
    np.testing.assert_array_equal(again[3]['image'], s[3]['image'])
    assert again.content_hash(3) == s.content_hash(3) != s.content_hash(4)


def test_grey_pictures_of_another_mode_are_read_and_of_another_size_are_bad(rng, tmp_path):
  rows, pictures = draw_tree(rng)
  write_official(tmp_path, rows, pictures)
  s = data.build('ferplus', str(tmp_path), 'train', {'label_rule': 'argmax8'})
  Image.fromarray(pictures['train'][0]).convert('RGBA').save(tmp_path / s.id(0))
  assert s[0]['image'].shape == (48, 48, 3)
  Image.new('L', (50, 48)).save(tmp_path / s.id(1))
  with pytest.raises(source.BadImage, match='is 50x48, expected 48x48'):
    s[1]
  (tmp_path / s.id(2)).write_bytes(b'')
  with pytest.raises(source.BadImage, match='is empty'):
    s[2]


def refused(root, split='train', **options):
  with pytest.raises(UserError) as e:
    data.build('ferplus', str(root), split, options)
  assert '\n' not in str(e.value)
  return str(e.value)


def test_missing_files_are_named(rng, tmp_path):
  assert 'data.root is empty' in refused('')
  assert 'is not a folder' in refused(tmp_path / 'gone')
  text = refused(tmp_path, 'train+valid')
  assert 'FER2013Train/label.csv and FER2013Valid/label.csv' in text
  assert 'fer2013.csv with fer2013new.csv' in text
  (tmp_path / 'fer2013.csv').write_text('emotion,pixels,Usage\n')
  assert 'fer2013.csv is there alone' in refused(tmp_path)
  assert "did you mean 'majority'" in refused(tmp_path, label_rule='majorty')
  assert "split of ferplus is 'trian'" in refused(tmp_path, 'trian')


def test_split_synonyms(rng, tmp_path):
  rows, pictures = draw_tree(rng)
  write_official(tmp_path, rows, pictures)
  assert data.build('ferplus', str(tmp_path), 'val', {}).record()['split'] == 'valid'
  assert data.build('ferplus', str(tmp_path), 'train+validation', {}).record()['split'] == 'train+valid'


def test_a_picture_missing_on_disk_is_named_unless_skipped(rng, tmp_path):
  rows, pictures = draw_tree(rng)
  write_official(tmp_path, rows, pictures)
  s = data.build('ferplus', str(tmp_path), 'train', {})
  (tmp_path / s.id(1)).unlink()
  text = refused(tmp_path)
  assert f'{tmp_path / s.id(1)}: does not exist' in text
  assert 'label.csv:' in text
  s = data.build('ferplus', str(tmp_path), 'train', {'on_bad_image': 'skip'})
  with pytest.raises(source.BadImage, match='does not exist'):
    s[1]
  assert s.content_hash(1).startswith('unreadable')


GOOD = 'fer{}.png,"(0, 0, 48, 48)",4,0,0,1,3,2,0,0,0,0'


@pytest.mark.parametrize(
  ('line', 'why'),
  [
    ('ferX.png,"(0, 0, 48, 48)",4,0,0,1,3,2,0,0,0', '11 columns; expected 12'),
    ('ferX.png,"(0, 0, 48, 48)",4,0,0,1,3,2,0,0,0,0,0', '13 columns; expected 12'),
    ('', '0 columns; expected 12'),
    ('ferX.png,"(0, 0, 48, 48)",4,0,0,1,3,-2,0,0,0,0', "votes for disgust are '-2'"),
    ('ferX.png,"(0, 0, 48, 48)",4,0,0,1,3,2,0,0,0,many', "votes for NF are 'many'"),
    ('ferX.png,"(0, 0, 48, 48)",4,0,0.5,1,3,2,0,0,0,0', "votes for surprise are '0.5'"),
    ('../ferX.png,"(0, 0, 48, 48)",4,0,0,1,3,2,0,0,0,0', "the picture is '../ferX.png'"),
    (',"(0, 0, 48, 48)",4,0,0,1,3,2,0,0,0,0', "the picture is ''"),
    (GOOD.format(0), 'is named a second time'),
  ],
)
def test_a_malformed_official_row_is_named_by_file_and_line(tmp_path, line, why):
  folder = tmp_path / 'FER2013Train'
  folder.mkdir()
  (folder / 'label.csv').write_text('\n'.join([GOOD.format(0), GOOD.format(1), line, GOOD.format(2)]) + '\n')
  text = refused(tmp_path)
  assert text.startswith(f'{folder}/label.csv:3: ')
  assert why in text


def test_an_empty_or_binary_label_file_is_named(tmp_path):
  folder = tmp_path / 'FER2013Train'
  folder.mkdir()
  (folder / 'label.csv').write_text('\n')
  assert 'label.csv: is empty' in refused(tmp_path)
  (folder / 'label.csv').write_bytes(b'\xff\xfe\x00\x01')
  assert 'label.csv: is not a readable csv' in refused(tmp_path)
  (folder / 'label.csv').write_text('a.png,"(0, 0, 48, 48)",0,0,0,0,0,0,0,0,9,1\n')
  assert 'no picture of FER2013Train/label.csv' in refused(tmp_path)


@pytest.mark.parametrize(
  ('name', 'line', 'old', 'new', 'why'),
  [
    ('fer2013.csv', 3, '1,', '7,', "emotion is '7'; expected 0..6"),
    ('fer2013.csv', 3, '1,', 'x,', "emotion is 'x'; expected 0..6"),
    ('fer2013.csv', 3, 'Training', 'Train', "Usage is 'Train'"),
    ('fer2013.csv', 3, ',Training', '', '2 columns; expected 3'),
    ('fer2013.csv', 1, 'pixels', 'pixel', "no column 'pixels'"),
    ('fer2013new.csv', 3, 'Training', 'PublicTest', "Usage is 'PublicTest'; expected 'Training'"),
    ('fer2013new.csv', 3, 'png,', 'png,-', 'the votes for neutral'),
    ('fer2013new.csv', 3, 'png,', 'png,1,', '13 columns; expected 12'),
    ('fer2013new.csv', 1, 'Image name', 'Name', "no column 'Image name'"),
    ('fer2013new.csv', 1, 'NF', 'nf', "no column 'NF'"),
  ],
)
def test_a_malformed_raw_row_is_named_by_file_and_line(rng, tmp_path, name, line, old, new, why):
  rows, pictures = draw_tree(rng, 10)
  write_raw(tmp_path, rows, pictures)
  lines = (tmp_path / name).read_text().splitlines()
  assert old in lines[line - 1]
  lines[line - 1] = lines[line - 1].replace(old, new, 1)
  (tmp_path / name).write_text('\n'.join(lines) + '\n')
  text = refused(tmp_path)
  assert text.startswith(f'{tmp_path / name}:{line}: ')
  assert why in text


def test_raw_files_of_different_length_are_refused(rng, tmp_path):
  rows, pictures = draw_tree(rng, 10)
  write_raw(tmp_path, rows, pictures)
  with open(tmp_path / 'fer2013new.csv', 'a') as f:
    f.write(f'Training,more.png,{",".join("1" * 10)}\n')
  assert 'has 31 rows and' in refused(tmp_path)


@pytest.mark.parametrize(
  ('pixels', 'why'),
  [('1 2 3', 'has 3 pixels; expected 2304'), ('1 256', 'other than whole'), ('1 a', 'other than whole')],
)
def test_broken_pixels_are_a_bad_picture_not_a_bad_file(rng, tmp_path, pixels, why):
  rows, pictures = draw_tree(rng, 10)
  write_raw(tmp_path, rows, pictures)
  kept = next(k for k, v in enumerate(rows['train']) if expected_label(v, 'argmax8') is not None)
  lines = (tmp_path / 'fer2013.csv').read_text().splitlines()
  lines[1 + kept] = f'0,{pixels},Training'
  (tmp_path / 'fer2013.csv').write_text('\n'.join(lines))
  s = data.build('ferplus', str(tmp_path), 'train', {'label_rule': 'argmax8'})
  with pytest.raises(source.BadImage, match=rf'fer2013.csv:{2 + kept}: .*{why}'):
    s[0]
  assert s[1]['image'].shape == (48, 48, 3)
  assert s.content_hash(0) != s.content_hash(1)


@real
@pytest.mark.parametrize(
  ('rule', 'train', 'valid'),
  [('majority', 25045, 3191), ('argmax10', 28385, 3555), ('argmax8', 28556, 3579)],
)
def test_counts_of_the_published_release(rule, train, valid):
  for split, count in (('train', train), ('valid', valid), ('train+valid', train + valid)):
    for name in (rule, 'soft' if rule == 'majority' else f'soft_{rule}'):
      record = data.build('ferplus', str(REAL), split, {'label_rule': name}).record()
      assert (record['count'], record['expected_count'], record['warnings']) == (count, count, [])
  with open(REAL / 'FER2013Valid' / 'label.csv') as f:
    labels = [expected_label([int(v) for v in row[2:]], rule) for row in csv.reader(f)]
  s = data.build('ferplus', str(REAL), 'valid', {'label_rule': rule})
  assert [s.label(i) for i in range(len(s))] == [label for label in labels if label is not None]


@real
def test_copies_of_training_in_the_published_release():
  valid = data.build('ferplus', str(REAL), 'valid', {})
  found = copies.Known(data.whole('ferplus', str(REAL), 'train', {})).find(valid)
  figures = found.figures()
  assert (figures['duplicates'], figures['same_pixels'], figures['near_copies']) == (245, 0, 271)

"""AffectNet: both releases against an independent reading of the same tree, the cached index, and what a user gets wrong."""

import csv
import json
import math
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from mimic_jax import config, data
from mimic_jax.data import pipeline, source
from mimic_jax.data.faces import alignment
from mimic_jax.data.sets import _affectnet_index as affectnet_index
from mimic_jax.data.sets import affectnet
from mimic_jax.runtime.errors import UserError

NAMES = ('neutral', 'happy', 'sad', 'surprise', 'fear', 'disgust', 'anger', 'contempt')
LEFT_OUT = ('none', 'uncertain', 'non-face')
HEADER = (
  'subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal'
)
NEWER = {'train': 'train_set', 'valid': 'val_set'}
TABLE = {'train': 'training.csv', 'valid': 'validation.csv'}
LISTS = 'Manually_Annotated_file_lists'
IMAGES = 'Manually_Annotated_Images'


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
  """An index cache of each test's own; the user's isn't touched."""
  folder = tmp_path_factory.mktemp('cache')
  monkeypatch.setenv('XDG_CACHE_HOME', str(folder))
  return folder


def picture(rng, height=40, width=50):
  return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def draw_face(rng, side=24.0, left=8.0, top=6.0):
  """Returns 68 points of an upright face somewhere in the box: eyes above the nose above the mouth."""
  points = rng.uniform(0.4, 0.6, (68, 2))
  for first, last, centre in ((36, 42, (0.3, 0.35)), (42, 48, (0.7, 0.36))):
    points[first:last] = np.array(centre) + rng.uniform(-0.05, 0.05, (6, 2))
  points[30], points[48], points[54] = (0.5, 0.6), (0.35, 0.8), (0.66, 0.78)
  return points * side + (left, top)


def five_of(points):
  """The five points of iBUG's 68, written out."""
  return [
    sum(points[36:42]) / 6, sum(points[42:48]) / 6, points[30], points[48], points[54]
  ]  # fmt: skip


def write_newer(root, rng, split='train', n=22, first=0, expressions=None, kinds=('val', 'aro', 'lnd')):
  """Writes pictures and annotations in the several ways in which copies of the release spell them."""
  images, annotations = (root / NEWER[split] / name for name in ('images', 'annotations'))
  images.mkdir(parents=True, exist_ok=True)
  annotations.mkdir(exist_ok=True)
  for k in range(n):
    name = str(first + k)
    expression = int(expressions[k]) if expressions is not None else k % 8
    picture(rng).save(images / f'{name}.jpg', quality=90)
    values = {
      'exp': expression,
      'val': round(rng.uniform(-1, 1), 3),
      'aro': round(rng.uniform(-1, 1), 3),
      'lnd': draw_face(rng).round(2),
    }
    as_text = [np.array(expression), np.array(str(expression)), np.array([expression], np.int64)]
    np.save(annotations / f'{name}_exp.npy', as_text[k % 3])
    if 'val' in kinds:
      np.save(annotations / f'{name}_val.npy', np.array(str(values['val'])))
    if 'aro' in kinds:
      np.save(annotations / f'{name}_aro.npy', np.float64(values['aro']))
    if 'lnd' in kinds:
      np.save(annotations / f'{name}_lnd.npy', values['lnd'].reshape(*((136,), (68, 2))[k % 2]))


def read_newer(root, split, classes):
  """Reads the newer release with numpy and Pillow alone, in the order of the numbers."""
  base, items = root / NEWER[split], []
  for name in sorted((p.name[: -len('_exp.npy')] for p in base.glob('annotations/*_exp.npy')), key=int):
    label = int(np.load(base / 'annotations' / f'{name}_exp.npy').reshape(()).item())
    if label < classes:
      lnd = np.load(base / 'annotations' / f'{name}_lnd.npy').reshape(68, 2)
      items.append(
        {
          'id': f'{NEWER[split]}/images/{name}.jpg',
          'label': label,
          'valence': float(np.load(base / 'annotations' / f'{name}_val.npy').item()),
          'arousal': float(np.load(base / 'annotations' / f'{name}_aro.npy').item()),
          'image': Image.open(base / 'images' / f'{name}.jpg'),
          'points': five_of(lnd),
        }
      )
  return items


def older_row(rng, name, expression, box=(8, 6, 24, 20)):
  affect = (-2, -2) if expression >= 8 else rng.uniform(-1, 1, 2).round(4)
  points = ';'.join(f'{v:.2f}' for v in draw_face(rng).ravel())
  return [name, *map(str, box), points, str(expression), *map(str, affect)]


def write_older(root, rng, rows_of=None, lists=LISTS, images=IMAGES, n=22):
  """Writes both tables and the pictures they name; rows are as the csv has them."""
  (root / lists).mkdir(parents=True, exist_ok=True)
  if rows_of is None:
    rows_of = {
      split: [older_row(rng, f'{k % 3}/{split}{k}.jpg', k % 11, (k, k // 2, 20, 15 + k)) for k in range(m)]
      for split, m in (('train', n), ('valid', n // 2))
    }
  for split, rows in rows_of.items():
    write_table(root / lists / TABLE[split], rows)
    for row in rows:
      path = root / images / row[0]
      path.parent.mkdir(parents=True, exist_ok=True)
      picture(rng).save(path, quality=90)
  return rows_of


def write_table(path, rows):
  path.write_text('\n'.join([HEADER, *(','.join(row) for row in rows)]) + '\n')


def read_older(root, split, classes):
  """Reads the older release with csv and Pillow alone."""
  items = []
  with open(root / LISTS / TABLE[split], newline='') as f:
    for row in csv.DictReader(f):
      if int(row['expression']) < classes:
        points = np.array(row['facial_landmarks'].split(';'), float).reshape(68, 2)
        items.append(
          {
            'id': row['subDirectory_filePath'],
            'label': int(row['expression']),
            'valence': float(row['valence']),
            'arousal': float(row['arousal']),
            'image': Image.open(root / IMAGES / row['subDirectory_filePath']),
            'box': [int(row[f'face_{v}']) for v in ('x', 'y', 'width', 'height')],
            'points': five_of(points),
          }
        )
  return items


def cropped(item, margin=0.0):
  """The face's box of a picture, each edge at the nearest whole pixel, halves up; uint8 [H, W, 3]."""
  left, top, width, height = item['box']
  pixels = np.asarray(item['image'])

  def span(first, length, most):
    edges = (first - margin * length, first + length + margin * length)
    return slice(*(min(max(math.floor(edge + 0.5), 0), most) for edge in edges))

  return pixels[span(top, height, pixels.shape[0]), span(left, width, pixels.shape[1])]


def build(root, split='train', **options):
  return data.build('affectnet', str(root), split, options)


def refused(root, split='train', **options):
  with pytest.raises(UserError) as e:
    build(root, split, **options)
  assert '\n' not in str(e.value)
  return str(e.value)


def same(s, expected, pixels):
  """Checks a source against items read by hand; `pixels` turns one into its picture."""
  assert len(s) == len(expected) > 0
  for i, item in enumerate(expected):
    got = s[i]
    assert (got['id'], got['label'], s.id(i), s.label(i)) == (item['id'], item['label']) * 2
    assert isinstance(got['label'], int)
    for name in ('valence', 'arousal'):
      assert got[name].dtype == np.float32
      np.testing.assert_allclose(got[name], item[name], rtol=1e-6)
    np.testing.assert_array_equal(got['image'], pixels(item))
    with s.open(i) as image:
      np.testing.assert_array_equal(np.asarray(image.convert('RGB')), pixels(item))


@pytest.mark.parametrize('split', ['train', 'valid'])
@pytest.mark.parametrize('classes', [7, 8])
def test_the_newer_release_is_read_as_by_hand(rng, tmp_path, split, classes):
  write_newer(tmp_path, rng, split, expressions=rng.permutation(np.arange(22) % 11))
  s = build(tmp_path, split, classes=classes)
  expected = read_newer(tmp_path, split, classes)
  same(s, expected, lambda item: np.asarray(item['image']))
  assert isinstance(s, source.Source)
  assert (s.class_names, s.image_shape) == (NAMES[:classes], None)
  record = s.record()
  assert (record['layout'], record['split'], record['count']) == ('newer', split, len(expected))
  assert record['class_counts'] == dict.fromkeys(NAMES[:classes], 2)
  assert record['left_out'] == dict.fromkeys((*NAMES[classes:], *LEFT_OUT), 2)
  assert record['align'] == {'align': 'none'}
  assert record['label_rule'] == f'expression, {classes} classes'
  assert record['split_hash'] == source.split_hash(
    [e['id'] for e in expected], [e['label'] for e in expected]
  )


@pytest.mark.parametrize('split', ['train', 'valid'])
@pytest.mark.parametrize('classes', [7, 8])
def test_the_older_release_is_read_as_by_hand_and_cropped_by_its_boxes(rng, tmp_path, split, classes):
  write_older(tmp_path, rng)
  s = build(tmp_path, split, classes=classes)
  expected = read_older(tmp_path, split, classes)
  same(s, expected, cropped)
  assert s.class_names == NAMES[:classes]
  assert (s.image_shape, s.cuts) == (None, True)
  record = s.record()
  assert (record['layout'], record['count']) == ('older', len(expected))
  assert record['label_file'] == f'{LISTS}/{TABLE[split]}'
  assert record['left_out'] == {
    name: {'train': 2, 'valid': 1}[split] for name in (*NAMES[classes:], *LEFT_OUT)
  }
  assert record['align'] == {'align': 'box(0)'}
  same(
    build(tmp_path, split, classes=classes, align='none'), expected, lambda item: np.asarray(item['image'])
  )
  wide = build(tmp_path, split, classes=classes, align='box(0.5)')
  same(wide, expected, lambda item: cropped(item, 0.5))
  assert wide.record()['align'] == {'align': 'box(0.5)'}


@pytest.mark.parametrize('release', ['newer', 'older'])
def test_five_point_alignment_goes_by_the_landmarks_of_either_release(rng, tmp_path, release):
  if release == 'newer':
    write_newer(tmp_path, rng)
  else:
    write_older(tmp_path, rng)
  expected = (read_newer if release == 'newer' else read_older)(tmp_path, 'train', 7)
  s = build(tmp_path, align='five_point(arcface)', align_size=32)
  assert (s.image_shape, s.cuts, len(s)) == ((32, 32, 3), True, len(expected))
  assert s.record()['align'] == {'align': 'five_point(arcface)', 'size': 32}
  for i, item in enumerate(expected):
    aligned = alignment.warp(item['image'], np.array(item['points'], np.float32), 'arcface', 32)
    np.testing.assert_array_equal(s[i]['image'], np.asarray(aligned))
  same_again = data.build(
    'affectnet', str(tmp_path), 'train', {'align': 'five_point(arcface)', 'align_size': 32, 'cache': True}
  )
  np.testing.assert_array_equal(same_again[3]['image'], s[3]['image'])
  assert same_again[3]['valence'] == s[3]['valence']


@pytest.mark.parametrize('release', ['newer', 'older'])
def test_the_loader_gives_what_a_reading_by_hand_gives(rng, tmp_path, release):
  if release == 'newer':
    write_newer(tmp_path, rng)
    expected = read_newer(tmp_path, 'train', 7)
    pixels = [np.asarray(item['image']) for item in expected]
  else:
    write_older(tmp_path, rng)
    expected = read_older(tmp_path, 'train', 7)
    pixels = [cropped(item) for item in expected]
  options = {'image_size': 32, 'interpolation': 'bilinear'}
  rows = {}
  for batch in pipeline.eval_batches(build(tmp_path), batch_images=4, **options):
    for image, label, index, there in zip(batch['image'], batch['label'], batch['index'], batch['mask']):
      if there:
        rows[int(index)] = (image, label)
  assert sorted(rows) == list(range(len(expected)))
  for i, item in enumerate(expected):
    resized = Image.fromarray(pixels[i]).resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(rows[i][0], np.asarray(resized))
    assert rows[i][1] == item['label']


def test_affect_is_given_only_where_the_files_have_it(rng, tmp_path):
  write_newer(tmp_path / 'a', rng, n=6, kinds=())
  assert build(tmp_path / 'a')[0].keys() == {'image', 'label', 'id'}
  write_newer(tmp_path / 'b', rng, n=6, kinds=('val',))
  (tmp_path / 'b/train_set/annotations/2_val.npy').unlink()
  np.save(tmp_path / 'b/train_set/annotations/3_val.npy', np.array(-2.0))
  s = build(tmp_path / 'b')
  assert s[0].keys() == {'image', 'label', 'id', 'valence'}
  assert [np.isnan(s[i]['valence']).item() for i in range(6)] == [False, False, True, True, False, False]


def test_files_are_found_in_every_place_that_copies_have_them(rng, tmp_path):
  places = [
    (LISTS, IMAGES),
    ('', IMAGES),
    (f'Manually_Annotated/{LISTS}', f'Manually_Annotated/{IMAGES}'),
    (LISTS, 'Manually_Annotated'),
  ]
  hashes = set()
  rows = write_older(tmp_path / 'rows', rng)
  for k, (lists, images) in enumerate(places):
    write_older(tmp_path / str(k), rng, rows, lists, images)
    s = build(tmp_path / str(k))
    assert s[4]['image'].ndim == 3
    hashes.add(s.record()['split_hash'])
  assert len(hashes) == 1


def test_a_root_with_both_releases_is_read_as_the_newer(rng, tmp_path):
  write_newer(tmp_path, rng)
  write_older(tmp_path, rng)
  assert build(tmp_path).record()['layout'] == 'newer'


def counting(monkeypatch):
  """Returns a list that grows by one whenever label files are read."""
  calls = []
  for name in ('_read_folder', '_read_table'):
    read = getattr(affectnet_index, name)
    monkeypatch.setattr(affectnet_index, name, lambda *a, read=read: calls.append(1) or read(*a))
  return calls


@pytest.mark.parametrize('release', ['newer', 'older'])
def test_labels_are_read_once_until_the_files_change(rng, tmp_path, monkeypatch, cache, release):
  def touch(k):
    if release == 'newer':
      write_newer(tmp_path, rng, n=1, first=100 + k, expressions=[3])
    else:
      with open(tmp_path / LISTS / 'training.csv', 'a') as f:
        f.write(','.join(older_row(rng, f'0/new{k}.jpg', 3)) + '\n')
      picture(rng).save(tmp_path / IMAGES / f'0/new{k}.jpg')

  (write_newer if release == 'newer' else write_older)(tmp_path, rng)
  if release == 'older':
    (tmp_path / LISTS / 'validation.csv').unlink()
  calls = counting(monkeypatch)
  first = build(tmp_path)
  again = build(tmp_path)
  assert len(calls) == 1
  assert again.record() == first.record()
  for i in (0, 5):
    one, two = first[i], again[i]
    assert (one['id'], one['label'], one['valence']) == (two['id'], two['label'], two['valence'])
    np.testing.assert_array_equal(one['image'], two['image'])
  touch(0)
  assert len(build(tmp_path)) == len(first) + 1
  assert len(calls) == 2
  (file,) = (cache / 'mimic_jax').iterdir()
  file.write_bytes(file.read_bytes()[:100])  # a damaged index is no index
  assert len(build(tmp_path)) == len(first) + 1
  assert len(calls) == 3
  monkeypatch.setattr(affectnet_index, '_VERSION', -1)
  build(tmp_path)
  assert len(calls) == 4


def test_an_index_belongs_to_its_folder(rng, tmp_path, monkeypatch):
  write_newer(tmp_path / 'a', rng, n=6)
  write_newer(tmp_path / 'b', rng, n=6, expressions=[0, 0, 0, 0, 0, 1])
  os.symlink(tmp_path / 'a', tmp_path / 'link')
  calls = counting(monkeypatch)
  a, b, link = (build(tmp_path / x) for x in ('a', 'b', 'link'))
  assert len(calls) == 2
  assert [b.label(i) for i in range(6)] == [0, 0, 0, 0, 0, 1]
  assert [link.label(i) for i in range(6)] == [a.label(i) for i in range(6)]


def test_a_cache_that_cannot_be_written_only_costs_time(rng, tmp_path, monkeypatch):
  write_newer(tmp_path, rng, n=6)
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  calls = counting(monkeypatch)
  assert len(build(tmp_path)) == len(build(tmp_path)) == 6
  assert len(calls) == 2
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  build(tmp_path)
  assert [p.suffix for p in (tmp_path / 'home/.cache/mimic_jax').iterdir()] == ['.npz']


BROKEN = [
  (lambda row: row[:5], '5 columns; expected 9'),
  (lambda row: [*row, '1'], '10 columns; expected 9'),
  (lambda row: ['', *row[1:]], "the picture is ''"),
  (lambda row: ['../x.jpg', *row[1:]], "the picture is '../x.jpg'"),
  (lambda row: [row[0], 'left', *row[2:]], "face_x is 'left'; expected a number"),
  (lambda row: [*row[:5], '1;2;3', *row[6:]], 'facial_landmarks are 3 numbers; expected 136'),
  (lambda row: [*row[:5], 'a;b', *row[6:]], "facial_landmarks are 'a;b…'"),
  (lambda row: [*row[:6], '11', *row[7:]], "the expression is '11'; expected 0..10"),
  (lambda row: [*row[:6], '', *row[7:]], "the expression is ''"),
  (lambda row: [*row[:7], 'high', row[8]], "valence is 'high'"),
  (lambda row: [f'"{row[0]}', *row[1:6], 'x', *row[7:]], "the expression is 'x'"),
]


@pytest.mark.parametrize(('damage', 'why'), BROKEN)
def test_a_broken_row_is_named_and_passed_over(rng, tmp_path, damage, why):
  rows = [older_row(rng, f'0/{k}.jpg', k % 7) for k in range(9)]
  write_older(tmp_path, rng, {'train': rows})
  table = tmp_path / LISTS / 'training.csv'
  write_table(table, [*rows[:3], damage(rows[3]), *rows[4:]])
  s = build(tmp_path)
  assert [s.id(i) for i in range(len(s))] == [row[0] for k, row in enumerate(rows) if k != 3]
  named = [w for w in s.record()['warnings'] if w.startswith('passed over a broken row')]
  assert len(named) == 1
  assert f'{table}:5: ' in named[0]
  assert why in named[0]
  assert build(tmp_path).record()['warnings'] == s.record()['warnings']  # from the index, too


def test_more_broken_rows_than_a_release_has_are_refused(rng, tmp_path):
  rows = [older_row(rng, f'0/{k}.jpg', k % 7) for k in range(9)]
  write_older(tmp_path, rng, {'train': rows})
  table = tmp_path / LISTS / 'training.csv'
  write_table(table, [*(row[:5] for row in rows[:4]), *rows[4:]])
  text = refused(tmp_path)
  assert text.startswith(f"{table}:2: 5 columns; expected 9, and 3 more rows can't be read")
  write_table(table, [*(row[:5] for row in rows[:3]), *rows[3:]])
  assert len(build(tmp_path)) == 6


def test_wrong_tables_are_named(rng, tmp_path):
  rows = [older_row(rng, f'0/{k}.jpg', k % 7) for k in range(4)]
  write_older(tmp_path, rng, {'train': rows})
  table = tmp_path / LISTS / 'training.csv'
  write_table(table, [*rows, rows[1]])
  assert f"{table}:6: picture '0/1.jpg' is named a second time (first in line 3)" in refused(tmp_path)
  table.write_text(HEADER.replace('valence', 'valance') + '\n')
  assert f"{table}:1: no column 'valence'" in refused(tmp_path)
  table.write_text(HEADER + '\n')
  assert f'{table}: has no rows' in refused(tmp_path)
  table.write_text('')
  assert f'{table}: has no rows' in refused(tmp_path)
  write_table(table, [[row[0], *row[1:6], '9', '-2', '-2'] for row in rows])
  assert 'has one of the 7 classes' in refused(tmp_path)
  assert 'has one of the 8 classes' in refused(tmp_path, classes=8)


def test_a_table_may_have_other_columns_order_and_windows_line_ends(rng, tmp_path):
  rows = [older_row(rng, f'0/{k}.jpg', k % 7) for k in range(4)]
  write_older(tmp_path, rng, {'train': rows})
  table = tmp_path / LISTS / 'training.csv'
  before = build(tmp_path)
  order = [6, 0, 8, 7, 5, 4, 3, 2, 1]
  lines = [','.join(fields[k] for k in order) for fields in (HEADER.split(','), *rows)]
  table.write_bytes(b'\xef\xbb\xbf' + '\r\n'.join(lines).encode())
  after = build(tmp_path)
  assert after.record()['split_hash'] == before.record()['split_hash']
  np.testing.assert_array_equal(after[1]['image'], before[1]['image'])


@pytest.mark.parametrize(
  ('kind', 'content', 'why'),
  [
    ('exp', np.array(11), 'the expression is 11; expected 0..10'),
    ('exp', np.array(-1), 'the expression is -1; expected 0..10'),
    ('exp', np.array(2.5), 'the expression is 2.5'),
    ('exp', np.array('happy'), 'is not a .npy file of numbers'),
    ('exp', np.arange(3), 'has 3 numbers; expected one'),
    ('val', np.array('?'), 'is not a .npy file of numbers'),
    ('aro', np.zeros(0), 'has 0 numbers; expected one'),
    ('lnd', np.zeros((5, 2)), 'has 10 numbers; expected 68 landmarks'),
    ('exp', b'', 'is not a .npy file of numbers'),
    ('exp', b'\x93NUMPY\x01\x00\x76\x00{', 'is not a .npy file of numbers'),
    ('exp', b'\x80\x04K\x01.', 'is not a .npy file of numbers'),
  ],
)
def test_a_wrong_annotation_is_named(rng, tmp_path, kind, content, why):
  write_newer(tmp_path, rng, n=5)
  path = tmp_path / 'train_set' / 'annotations' / f'3_{kind}.npy'
  if isinstance(content, bytes):
    path.write_bytes(content)
  else:
    np.save(path, content)
  text = refused(tmp_path)
  assert text.startswith(f'{path}: ')
  assert why in text


class Harmful:
  """A pickle of this makes a file when it is loaded."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


def test_code_in_an_annotation_or_in_the_index_does_not_run(rng, tmp_path, cache):
  write_newer(tmp_path, rng, n=5)
  build(tmp_path)
  (index,) = (cache / 'mimic_jax').iterdir()
  trap = np.array([Harmful(tmp_path / 'ran')], object)
  np.savez(index, stamp=trap, names=trap)
  assert len(build(tmp_path)) == 5
  path = tmp_path / 'train_set' / 'annotations' / '3_exp.npy'
  np.save(path, trap, allow_pickle=True)
  index.unlink()
  assert refused(tmp_path).startswith(f'{path}: is not a .npy file of numbers')
  assert not (tmp_path / 'ran').exists()
  np.load(path, allow_pickle=True)  # the trap works
  assert (tmp_path / 'ran').exists()


def test_missing_files_are_named(rng, tmp_path):
  assert 'data.root is empty' in refused('')
  assert 'is not a folder' in refused(tmp_path / 'gone')
  text = refused(tmp_path, 'valid')
  assert 'val_set/annotations and val_set/images, or for validation.csv' in text
  (tmp_path / 'train_set' / 'annotations').mkdir(parents=True)
  assert '(train_set is there, train_set/images is not)' in refused(tmp_path)
  (tmp_path / 'train_set' / 'images').mkdir()
  assert f"no '{{id}}_exp.npy' in '{tmp_path}/train_set/annotations'" in refused(tmp_path)
  rows = [older_row(rng, '0/a.jpg', 3)]
  (tmp_path / 'older' / LISTS).mkdir(parents=True)
  write_table(tmp_path / 'older' / LISTS / 'training.csv', rows)
  text = refused(tmp_path / 'older')
  assert f'no pictures of {LISTS}/training.csv' in text
  assert f'looked for 0/a.jpg in {IMAGES}, ' in text


def test_splits_and_classes_that_do_not_exist(rng, tmp_path):
  write_newer(tmp_path, rng, 'valid')
  assert "'test', but AffectNet's test set has no published labels; expected train or valid" in refused(
    tmp_path, 'test'
  )
  assert "split of affectnet is 'trian' (did you mean 'train'?)" in refused(tmp_path, 'trian')
  assert build(tmp_path, 'val').record()['split'] == 'valid'
  assert build(tmp_path, 'validation').record()['split'] == 'valid'
  assert 'data.classes is 9; expected 7, or 8 with contempt' in refused(tmp_path, 'valid', classes=9)


@pytest.mark.parametrize('release', ['newer', 'older'])
def test_pictures_missing_on_disk_are_named_and_counted_unless_skipped(rng, tmp_path, release):
  (write_newer if release == 'newer' else write_older)(tmp_path, rng)
  whole = build(tmp_path)
  gone = (1, 4) if release == 'newer' else (1, 4, 6, 7)  # of the older release three may be missing
  for i in gone:
    os.unlink(whole.path(i))
  dropped = build(tmp_path, classes=8, on_bad_image='skip')
  os.unlink(next(dropped.path(i) for i in range(len(dropped)) if dropped.label(i) == 7))
  text = refused(tmp_path)  # the one of contempt is not wanted, so not missed
  assert text.startswith(f'{whole.path(1)}: does not exist, but {tmp_path}')
  place = 'annotations/1_exp.npy' if release == 'newer' else 'training.csv:3'
  assert f'{place} names it (and {len(gone) - 1} more)' in text
  s = build(tmp_path, on_bad_image='skip')
  assert len(s) == len(whole)
  with pytest.raises(source.BadImage, match='does not exist'):
    s[1]


def test_few_empty_and_missing_pictures_of_the_older_release_are_left_out_and_named(rng, tmp_path):
  write_older(tmp_path, rng)
  whole = build(tmp_path)
  ids = [whole.id(i) for i in range(len(whole))]
  (tmp_path / IMAGES / ids[2]).write_bytes(b'')
  os.unlink(tmp_path / IMAGES / ids[5])
  for options in ({}, {'on_bad_image': 'skip'}, {'cache': True}):
    s = build(tmp_path, **options)
    assert [s.id(i) for i in range(len(s))] == [name for k, name in enumerate(ids) if k not in (2, 5)]
    record = s.record()
    assert record['left_out']['empty or missing'] == 2
    (warning,) = record['warnings'][1:]
    assert warning == (
      f'left out, 2 pictures that {LISTS}/training.csv names: {tmp_path / IMAGES / ids[2]} is empty (0 bytes), '
      f'{tmp_path / IMAGES / ids[5]} does not exist'
    )
  for i in range(len(s)):
    s[i]
  assert 'empty or missing' not in build(tmp_path, 'valid').record()['left_out']


def test_more_empty_pictures_than_a_copy_of_the_release_has_are_an_error_at_once(rng, tmp_path, cache):
  write_older(tmp_path, rng)
  whole = build(tmp_path)
  for file in (cache / 'mimic_jax').iterdir():
    file.unlink()
  for i in range(1, 5):
    (tmp_path / IMAGES / whole.id(i)).write_bytes(b'')
  text = refused(tmp_path)
  assert text.startswith(f'{whole.path(1)}: is empty (0 bytes), but {tmp_path}')
  assert 'training.csv:3 names it (and 3 more); expected at most 3 such pictures' in text
  s = build(tmp_path, on_bad_image='skip')
  assert len(s) == len(whole)
  with pytest.raises(source.BadImage, match='is empty'):
    s[1]
  picture(rng).save(tmp_path / IMAGES / whole.id(1))
  assert build(tmp_path).record()['left_out']['empty or missing'] == 3
  for i in range(2, 5):
    picture(rng).save(tmp_path / IMAGES / whole.id(i))
  assert build(tmp_path).record() == whole.record()


def test_empty_files_are_looked_for_once_until_pictures_come_or_go(rng, tmp_path, monkeypatch):
  write_older(tmp_path, rng)
  (tmp_path / LISTS / 'validation.csv').unlink()
  looked = []
  ask = affectnet_index._is_empty
  monkeypatch.setattr(affectnet_index, '_is_empty', lambda path: looked.append(path) or ask(path))
  whole = build(tmp_path, classes=8)
  assert sorted(looked) == sorted(whole.path(i) for i in range(len(whole)))
  (tmp_path / IMAGES / whole.id(3)).write_bytes(b'')
  looked.clear()
  assert (len(build(tmp_path, classes=8)), looked) == (
    len(whole),
    [],
  )  # as of any picture damaged later, its reader says
  os.unlink(whole.path(1))
  assert len(build(tmp_path, classes=8)) == len(whole) - 2
  assert len(looked) == len(whole) - 1
  looked.clear()
  assert len(build(tmp_path)) == len(build(tmp_path, classes=8)) - 2
  assert looked == [whole.path(3)] * 2
  calls = counting(monkeypatch)
  build(tmp_path)
  assert calls == []


@pytest.mark.parametrize('split', ['train', 'valid'])
def test_pictures_of_any_ending_that_the_older_table_names_are_found(rng, tmp_path, split):
  rows = [older_row(rng, f'0/{split}{k}.jpg', k % 7) for k in range(7)]
  write_older(tmp_path, rng, {split: rows})
  rows[3][0] = f'0/{split}3.jfif'
  os.rename(tmp_path / IMAGES / f'0/{split}3.jpg', tmp_path / IMAGES / rows[3][0])
  write_table(tmp_path / LISTS / TABLE[split], rows)
  (tmp_path / IMAGES / '0' / 'Thumbs.db').write_bytes(b'x')
  s = build(tmp_path, split)
  assert (len(s), s.id(3), len(s.record()['warnings'])) == (7, rows[3][0], 1)
  assert s[3]['image'].shape == (20, 24, 3)


def test_pictures_without_a_label_are_a_warning(rng, tmp_path):
  write_newer(tmp_path / 'a', rng)
  for name in ('900.jpg', '901.jpg', '902.png'):
    picture(rng).save(tmp_path / 'a/train_set/images' / name)
  (warning,) = build(tmp_path / 'a').record()['warnings'][1:]
  assert f'{tmp_path}/a/train_set/images/900.jpg and 2 more' in warning
  write_older(tmp_path / 'b', rng)
  assert (
    len(build(tmp_path / 'b').record()['warnings']) == 1
  )  # validation's pictures are named by the other table
  picture(rng).save(tmp_path / 'b' / IMAGES / '2' / 'stray.jpg')
  (warning,) = build(tmp_path / 'b').record()['warnings'][1:]
  assert warning.endswith(f'{IMAGES}/2/stray.jpg')
  assert 'training.csv has no label' in warning
  assert len(build(tmp_path / 'b', 'valid').record()['warnings']) == 1


def test_pictures_without_a_box_or_landmarks_are_left_out_where_they_are_needed(rng, tmp_path):
  rows = [older_row(rng, f'0/{k}.jpg', k % 7) for k in range(9)]
  rows[2][1:5] = ['NULL'] * 4
  rows[4][3] = '-1'
  rows[5][5] = 'NULL'
  write_older(tmp_path, rng, {'train': rows})

  def left(align):
    s = build(tmp_path, align=align)
    gone = [k for k in range(9) if f'0/{k}.jpg' not in {s.id(i) for i in range(len(s))}]
    return gone, s.record()['warnings'][1:]

  gone, (warning,) = left('auto')
  assert gone == [2, 4]
  assert warning.startswith('left out under box(0), 2 pictures without box of a face')
  assert warning.endswith('training.csv:4')
  gone, (warning,) = left('five_point(arcface)')
  assert gone == [5]
  assert '1 pictures without landmarks' in warning
  assert left('none') == ([], [])
  write_newer(tmp_path / 'newer', rng, n=6)
  (tmp_path / 'newer/train_set/annotations/3_lnd.npy').unlink()
  s = build(tmp_path / 'newer', align='five_point(arcface)')
  assert len(s) == 5
  assert s.record()['warnings'][1].endswith('annotations/3_exp.npy')


def test_a_box_outside_its_picture_is_a_bad_picture(rng, tmp_path):
  rows = [older_row(rng, f'0/{k}.jpg', k % 7) for k in range(3)]
  rows[1][1] = '400'
  write_older(tmp_path, rng, {'train': rows})
  s = build(tmp_path)
  with pytest.raises(source.BadImage, match=r'1\.jpg: the box .* is outside the picture of 50x40'):
    s[1]
  assert s[2]['image'].shape == (20, 24, 3)
  (tmp_path / IMAGES / '0/2.jpg').write_bytes(b'')
  with pytest.raises(source.BadImage, match=r'2\.jpg: is empty'):
    s[2]


def test_the_newer_release_has_no_boxes(rng, tmp_path):
  write_newer(tmp_path, rng)
  text = refused(tmp_path, align='box(0.2)')
  assert "source 'affectnet' has no boxes" in text
  assert 'mimic align' in text


def test_in_an_aligned_tree_the_tables_boxes_are_not_used(rng, tmp_path):
  write_older(tmp_path, rng)
  whole = build(tmp_path)
  for i in range(len(whole)):
    whole.open(i).resize((32, 32)).save(whole.path(i))
  os.unlink(whole.path(2))
  made = {'made_by': 'mimic_jax.align', 'finished': True, 'align': 'box(0.1)', 'on_missing': 'keep_out'}
  made['pictures_without_face'] = [f'{IMAGES}/{whole.id(2)}']
  (tmp_path / 'align.json').write_text(json.dumps(made))
  s = build(tmp_path)
  assert s[0]['image'].shape == (32, 32, 3)
  assert s.record()['align']['align'] == 'box(0.1)'
  assert s.record()['left_out']['by mimic_jax.align'] == 1
  assert (len(s), s.cuts) == (len(whole) - 1, False)
  assert 'was made by' in refused(tmp_path, align='five_point(arcface)')


@pytest.mark.parametrize('contempt', [500, 499, 450])
def test_published_counts_give_no_warning_and_others_one_that_states_both(rng, tmp_path, contempt):
  counts = [500] * 7 + [contempt] + [500] * 3
  (tmp_path / IMAGES / '0').mkdir(parents=True)
  rows = [
    [f'0/{k}.jpg', '1', '1', '9', '9', '', str(expression), '0.1', '0.2']
    for k, expression in enumerate(np.repeat(np.arange(11), counts))
  ]
  write_table(tmp_path / 'validation.csv', rows)
  seven = build(tmp_path, 'valid', on_bad_image='skip').record()
  assert (seven['count'], seven['expected_count'], seven['warnings']) == (3500, 3500, [])
  assert seven['left_out'] == {'contempt': contempt, 'none': 500, 'uncertain': 500, 'non-face': 500}
  eight = build(tmp_path, 'valid', on_bad_image='skip', classes=8).record()
  if contempt >= 499:
    assert (eight['count'], eight['expected_count'], eight['warnings']) == (
      3500 + contempt,
      3500 + contempt,
      [],
    )
  else:
    (warning,) = eight['warnings']
    assert 'affectnet valid has 3950 pictures (500/500/500/500/500/500/500/450)' in warning
    assert 'the published release 4000 pictures' in warning
    assert 'or 3999 pictures' in warning


def test_the_published_counts_in_another_order_are_said_to_be_a_wrong_class_order(rng, tmp_path, monkeypatch):
  monkeypatch.setitem(affectnet.EXPECTED, 'train', [(4, 5, 2, 1, 3, 6, 7, 2)])
  write_newer(tmp_path, rng, n=28, expressions=np.repeat(np.arange(7), (7, 6, 3, 1, 2, 5, 4)))
  (warning,) = build(tmp_path).record()['warnings']
  assert 'has 28 pictures (7/6/3/1/2/5/4), the published release 28 pictures (4/5/2/1/3/6/7)' in warning
  assert f'the class order looks wrong; expected {", ".join(NAMES[:7])}' in warning
  monkeypatch.setitem(affectnet.EXPECTED, 'train', [(7, 6, 3, 1, 2, 5, 4, 2)])
  assert build(tmp_path).record()['warnings'] == []


def test_published_training_counts_are_those_of_the_literature(rng, tmp_path):
  assert sum(affectnet.EXPECTED['train'][0][:7]) == 283901
  assert [sum(counts) for counts in affectnet.EXPECTED['train']] == [287568, 287651]
  write_newer(tmp_path, rng)
  (warning,) = build(tmp_path, classes=8).record()['warnings']
  assert '287568 pictures (74874/134415/25459/14090/6378/3803/24882/3667) or 287651' in warning


@pytest.mark.parametrize('release', ['newer', 'older'])
def test_a_pickled_and_a_cached_source_give_the_same(rng, tmp_path, release):
  (write_newer if release == 'newer' else write_older)(tmp_path, rng)
  s = build(tmp_path)
  for other in (pickle.loads(pickle.dumps(s)), build(tmp_path, cache=True)):
    assert other.record() == s.record()
    for i in (0, 7):
      assert other[i].keys() == s[i].keys()
      np.testing.assert_array_equal(other[i]['image'], s[i]['image'])
      assert other[i]['arousal'] == s[i]['arousal']
      assert other.content_hash(i) == s.content_hash(i)


def test_affect_stays_beside_the_label_where_sources_are_joined(rng, tmp_path):
  write_newer(tmp_path, rng)
  alone = build(tmp_path)
  joined = data.build('affectnet,affectnet', f'{tmp_path},{tmp_path}', 'train', {})
  item = joined[len(alone) + 2]
  assert (item['id'], item['label']) == (f'1:{alone.id(2)}', alone.label(2))
  assert (item['valence'], item['arousal']) == (alone[2]['valence'], alone[2]['arousal'])


@pytest.mark.parametrize(
  ('variant', 'preset', 'classes', 'drop_path'),
  [('', 'vit_b16', 7, 0.1), ('vitl16,classes8,scl', 'vit_l16', 8, 0.2)],
)
def test_the_config_has_the_papers_hyper_parameters(variant, preset, classes, drop_path):
  args = [f'--config=finetune_affectnet:{variant}', '--config.data.root=/a', '--config.init=W']
  c = config.parse(['main', *args]).config
  f = c.finetune
  assert (c.stages, c.model.preset, c.model.image_size) == ('finetune', preset, 224)
  assert (f.init, f.data.source, f.data.root, f.eval.splits) == ('W', 'affectnet', '/a', 'valid')
  assert (f.data.classes, f.data.sampler, f.data.align) == (classes, 'balanced', 'auto')
  assert (f.epochs, f.optim.warmup_epochs, f.batch_images, f.drop_path) == (10.0, 1.0, 64, drop_path)
  assert (f.optim.name, f.optim.lr, f.optim.weight_decay, f.optim.layer_decay) == ('adam', 1e-4, 5e-4, 0.65)
  assert f.contrast.labels == ('class' if 'scl' in variant else 'mixed')

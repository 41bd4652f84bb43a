"""Preparing data sets in ArrayRecord and reading them: the same batches as their folders, and what can go wrong."""

import csv
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import pickle
import resource
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from mimic_jax import config, data
from mimic_jax.commands import prepare
from mimic_jax.data import bad_image, pipeline
from mimic_jax.data import source as sources
from mimic_jax.data.arrayrecord import builders, prepared, shards
from mimic_jax.runtime import sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import stage as stage_lib
from tests import small
from tests.data import test_ferplus, test_rafdb

ROOT = pathlib.Path(__file__).parents[2]


def draw(rng, path, size=(9, 7), **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(path, **options)


def write_folder(rng, root, train=7, valid=3):
  """Class folders with pictures of several sizes, kinds and modes; 'b' has no validation picture."""
  for k in range(train):
    draw(rng, root / 'train' / 'ab'[k % 2] / f'{k}.{"png" if k % 3 else "jpg"}', (20 + 5 * k, 40))
  for k in range(valid):
    draw(rng, root / 'val' / 'a' / f'v{k}.jpeg')
  grey = Image.fromarray(rng.integers(0, 65536, (11, 12), np.uint16))
  grey.save(root / 'train' / 'a' / 'sixteen.png')
  turned = Image.fromarray(rng.integers(0, 256, (10, 30, 3), np.uint8))
  exif = Image.Exif()
  exif[0x0112] = 6
  turned.save(root / 'train' / 'b' / 'turned.jpg', exif=exif, quality=95)
  Image.fromarray(rng.integers(0, 256, (9, 8, 4), np.uint8)).convert('CMYK').save(
    root / 'train' / 'b' / 'z.jpg'
  )


def write_affectnet_newer(rng, root):
  for split, n in (('train_set', 12), ('val_set', 9)):
    for folder in ('images', 'annotations'):
      (root / split / folder).mkdir(parents=True)
    for k in range(n):
      draw(rng, root / split / 'images' / f'{k}.jpg', (24, 24))
      for name, value in (('exp', str(k % 9)), ('val', str(rng.uniform(-1, 1))), ('aro', str(k / 10))):
        np.save(root / split / 'annotations' / f'{k}_{name}.npy', value)


def write_affectnet_older(rng, root):
  columns = (
    'subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal'
  )
  for split, table, n in (('t', 'training.csv', 10), ('v', 'validation.csv', 8)):
    root.mkdir(exist_ok=True)
    with open(root / table, 'w', newline='') as f:
      rows = csv.writer(f)
      rows.writerow(columns.split(','))
      for k in range(n):
        name = f'{k % 2}/{split}{k}.jpg'
        draw(rng, root / 'Manually_Annotated_Images' / name, (40, 50))
        points = ';'.join(f'{v:.2f}' for v in rng.uniform(10, 30, 136))
        rows.writerow([name, 5 + k, 4, 20, 22, points, k % 8, round(rng.uniform(-1, 1), 3), 0.5])


def write_ferplus(rng, root, layout):
  rows, pictures = test_ferplus.draw_tree(rng, 25)
  if layout == 'official':
    test_ferplus.write_official(root, rows, pictures)
  else:
    test_ferplus.write_raw(root, rows, pictures, blank=(3,))


def write_rafdb(rng, root):
  test_rafdb.write_official(root, test_rafdb.draw(rng))


# name -> (--dataset, what writes its tree, options, splits)
SETS = {
  'folder': ('folder', write_folder, {}, ('train', 'valid')),
  'ferplus_official': (
    'ferplus', functools.partial(write_ferplus, layout='official'), {}, ('train', 'valid', 'test')
  ),
  'ferplus_raw': ('ferplus', functools.partial(write_ferplus, layout='raw'), {}, ('train', 'valid', 'test')),
  'ferplus_soft': (
    'ferplus', functools.partial(write_ferplus, layout='official'), {'label_rule': 'soft_argmax8'}, ('train', 'valid', 'test')
  ),
  'rafdb': ('rafdb', write_rafdb, {}, ('train', 'test')),
  'affectnet_newer': ('affectnet', write_affectnet_newer, {'classes': 8}, ('train', 'valid')),
  'affectnet_older': ('affectnet', write_affectnet_older, {}, ('train', 'valid')),
  'affectnet_box': ('affectnet', write_affectnet_older, {'align': 'box(0.2)'}, ('train', 'valid')),
  'affectnet_points': (
    'affectnet', write_affectnet_older, {'align': 'five_point(arcface)', 'align_size': 32}, ('train', 'valid')
  ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def train_batches(source, **changes):
  options = {
    'batch_images': 4,
    'seed': 3,
    'start_step': 2,
    'threads': 2,
  }
  options |= {'views': 2, 'image_size': 16, 'scale': (0.3, 1.0), 'ratio': (0.75, 1.33), 'prefetch': 1}
  options['interpolation'] = 'bilinear'
  return pipeline.train_batches(source, **{**options, **changes})


def eval_batches(source):
  return pipeline.eval_batches(
    source,
    batch_images=4,
    image_size=16,
    interpolation='bicubic',
    threads=2,
  )


def assert_same_batches(ours, theirs, count):
  for _ in range(count):
    a, b = next(ours), next(theirs)
    assert a.keys() == b.keys()
    for key in a:
      assert a[key].dtype == b[key].dtype
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.parametrize('kind', SETS)
def test_a_prepared_set_gives_the_same_batches_as_the_folder_it_came_from(rng, tmp_path, kind, monkeypatch):
  dataset, write, options, splits = SETS[kind]
  write(rng, tmp_path / 'raw')
  monkeypatch.setattr(builders, 'SHARD_BYTES', 1 << 12)
  assert prepare.prepare(dataset, str(tmp_path / 'raw'), str(tmp_path / 'out'), name='mine', options=options)
  for split in splits:
    a = data.build(dataset, str(tmp_path / 'raw'), split, options)
    b = data.build('tfds', str(tmp_path / 'out'), split, {'name': 'mine', **options})
    assert isinstance(b, sources.Source)
    assert (len(b), b.class_names, b.image_shape) == (len(a), a.class_names, a.image_shape)
    assert len(a) > 0
    for i in range(len(a)):
      mine, theirs = b[i], a[i]
      assert mine.keys() == theirs.keys()
      assert mine['id'] == b.id(i) == theirs['id']
      assert type(b.label(i)) is type(a.label(i))
      for key in theirs:
        np.testing.assert_array_equal(mine[key], theirs[key], err_msg=key)
      assert b.content_hash(i) == a.content_hash(i)
    ours, other = b.record(), a.record()
    for key in ('count', 'class_names', 'class_counts', 'split_hash', 'label_rule', 'align', 'warnings'):
      assert ours.get(key, []) == json.loads(json.dumps(other.get(key, []))), key
    assert (ours['source'], ours['prepared']['source']) == ('tfds', dataset)
    assert sources.fingerprint(ours) == sources.fingerprint(other)
    assert_same_batches(train_batches(b), train_batches(a), 4)
    assert_same_batches(eval_batches(b), eval_batches(a), -(-len(a) // 4))


@pytest.mark.parametrize('kind', ['folder', 'affectnet_box'])
def test_bytes_are_the_files_own_unless_a_face_was_cut_out(rng, tmp_path, kind):
  dataset, write, options, _ = SETS[kind]
  write(rng, tmp_path / 'raw')
  place = prepare.prepare(dataset, str(tmp_path / 'raw'), str(tmp_path / 'out'), options=options)
  # read by TFDS alone, as anybody would
  builder = tfds.builder_from_directory(place)
  examples = builder.as_data_source('train', decoders={'image': tfds.decode.SkipDecoding()})
  source = data.build(dataset, str(tmp_path / 'raw'), 'train', options)
  assert len(examples) == len(source)
  for i, example in enumerate(examples):
    name = example['id'].decode()
    assert (name, example['label']) == (source.id(i), source.label(i))
    if kind == 'folder':
      assert example['image'] == (tmp_path / 'raw' / name).read_bytes()
    else:
      assert example['image'].startswith(b'\x89PNG')
      assert example['valence'] == pytest.approx(source[i]['valence'], abs=1e-6)
  assert list(builder.info.features['label'].names) == list(source.class_names)


def test_preparing_and_reading_need_no_tensorflow(rng, tmp_path):
  write_folder(rng, tmp_path / 'raw')
  code = (
    'import sys; from mimic_jax import data; from mimic_jax.commands import prepare; from mimic_jax.runtime import cli\n'
    'cli.run(prepare.main, sys.argv[1:])\n'
    's = data.build("tfds", sys.argv[-1], "train", {"name": "folder"}); s[0]; s.record()\n'
    'assert "tensorflow" not in sys.modules and "jax" not in sys.modules\n'
    'print("read", len(s))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, '--dataset', 'folder', '--raw', str(tmp_path / 'raw'), '--out', str(tmp_path / 'o')],
    capture_output=True, text=True, cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)},
  )  # fmt: skip
  assert (done.returncode, done.stdout.split()[-2:]) == (0, ['read', '10']), done.stderr
  assert 'valid: 3 pictures in 1 files' in done.stderr


def test_reader_processes_and_a_cache_change_no_batch(rng, tmp_path):
  write_folder(rng, tmp_path / 'raw')
  prepare.prepare('folder', str(tmp_path / 'raw'), str(tmp_path / 'out'))
  s = data.build('tfds', str(tmp_path / 'out'), 'train', {'name': 'folder'})
  s[0]
  copy = pickle.loads(pickle.dumps(s))
  assert len(pickle.dumps(s)) < 4000  # neither open files nor the index
  np.testing.assert_array_equal(copy[5]['image'], s[5]['image'])
  cached = data.build('tfds', str(tmp_path / 'out'), 'train', {'name': 'folder', 'cache': True})
  assert isinstance(cached, sources.Cached)
  assert_same_batches(train_batches(cached), train_batches(s), 3)
  apart = train_batches(s, workers=1)
  assert_same_batches(apart, train_batches(s), 3)
  apart.close()


def test_splits_go_by_synonyms_sums_and_slices(rng, tmp_path, monkeypatch):
  write_folder(rng, tmp_path / 'raw', train=17, valid=5)
  monkeypatch.setattr(builders, 'SHARD_BYTES', 1 << 11)
  place = prepare.prepare('folder', str(tmp_path / 'raw'), str(tmp_path / 'out'))
  assert len(list(pathlib.Path(place).glob('folder-train*'))) > 3
  train, valid = (data.build('folder', str(tmp_path / 'raw'), s, {}) for s in ('train', 'valid'))
  names = {s: [one.id(i) for i in range(len(one))] for s, one in (('train', train), ('valid', valid))}
  for split, expected in {
    'validation': names['valid'],
    'train+val': names['train'] + names['valid'],
    'val+train': names['valid'] + names['train'],
    'train[25%:75%]': names['train'][5:15],
    'train[3:9]+valid[-2:]+train[:1]': names['train'][3:9] + names['valid'][-2:] + names['train'][:1],
  }.items():
    s = data.build('tfds', str(tmp_path / 'out'), split, {'name': 'folder'})
    of = {name: (one, i) for one in (train, valid) for i, name in ((i, one.id(i)) for i in range(len(one)))}
    assert [s.id(i) for i in range(len(s))] == expected, split
    labels = [one.label(i) for one, i in map(of.get, expected)]
    for k, name in enumerate(expected):
      one, i = of[name]
      np.testing.assert_array_equal(s[k]['image'], one[i]['image'])
      assert (s.label(k), s.content_hash(k)) == (one.label(i), one.content_hash(i))
    record = s.record()
    assert (record['count'], record['split_hash']) == (len(expected), sources.split_hash(expected, labels))
    assert record['class_counts'] == {'a': labels.count(0), 'b': labels.count(1)}
  with pytest.raises(IndexError):
    s.label(len(s))


def test_a_set_in_an_object_store_gives_the_same_batches_and_brings_only_its_splits_shards(
  rng, store, monkeypatch
):
  bucket = store.folder / 'bucket'
  write_folder(rng, bucket / 'raw', train=17, valid=5)
  monkeypatch.setattr(builders, 'SHARD_BYTES', 1 << 11)
  for name in ('one', 'another'):
    prepare.prepare('folder', 'gs://bucket/raw', str(bucket / 'sets'), name=name)
  assert {name for name, _ in store.said('read')} == {
    str(p.relative_to(store.folder)) for p in (bucket / 'raw').rglob('*.*')
  }
  theirs = data.build('tfds', str(bucket / 'sets'), 'train', {'name': 'one'})
  ours = data.build('tfds', 'gs://bucket/sets', 'train', {'name': 'one'})
  read = {pathlib.Path(name) for name, _ in store.said('read')}
  shards_read = {p.name for p in read if p.suffix not in ('.json', '.txt')}
  place = bucket / 'sets' / 'one' / '1.0.0'
  assert shards_read == {p.name for p in place.glob('*train*')}
  assert len({p.parent.parent.name for p in read if p.name in shards_read}) == 1
  assert_same_batches(train_batches(ours), train_batches(theirs), 3)
  folders = [data.build('folder', root, 'valid', {}) for root in ('gs://bucket/raw', str(bucket / 'raw'))]
  assert_same_batches(*map(eval_batches, folders), 1)
  again = data.build('tfds', 'gs://bucket/sets', 'train', {'name': 'one'})
  assert (again.record(), store.read()) == (ours.record(), 0)
  sides = [
    data.build('tfds', 'gs://bucket/sets', split, {'name': 'one', 'held_out': 0.4})
    for split in ('train', 'held_out')
  ]
  ids = [side.id(i) for side in sides for i in range(len(side))]
  assert sorted(ids) == sorted(ours.id(i) for i in range(len(ours)))
  assert store.read() == 0


def test_a_picture_that_the_system_fails_to_bring_is_never_left_out(rng, tmp_path, monkeypatch):
  write_folder(rng, tmp_path / 'raw')
  monkeypatch.setattr(bad_image, 'PAUSES', (0, 0))
  taken, arguments = builders.take, ('folder', str(tmp_path / 'raw'), str(tmp_path / 'out'))

  def fails(source, i, *rest):
    if i == 2:
      raise sources.BadImage('x.png', 'could not be read (stale)', transient=True)
    return taken(source, i, *rest)

  with monkeypatch.context() as patched:
    patched.setattr(builders, 'take', fails)
    with pytest.raises(
      UserError, match=r'stale\); tried 3 times; expected a disk or file server that answers'
    ):
      prepare.prepare(*arguments, options={'on_bad_image': 'skip'})
  made = prepared.read_record(prepare.prepare(*arguments, options={'on_bad_image': 'skip'}))
  counts = {split: made['splits'][split]['record']['count'] for split in ('train', 'valid')}
  assert counts == {s: len(data.build('folder', arguments[1], s, {})) for s in ('train', 'valid')}


def test_a_shard_that_the_store_lacks_or_holds_cut_short_is_named(rng, store):
  sets = store.folder / 'bucket' / 'sets'
  write_folder(rng, store.folder / 'raw')
  place = pathlib.Path(prepare.prepare('folder', str(store.folder / 'raw'), str(sets)))
  shard = next(place.glob('*train.array_record*'))
  shard.write_bytes(shard.read_bytes()[:-1])
  assert f'{shard.name}: has {shard.stat().st_size} bytes; expected' in unread(
    'gs://bucket/sets', name='folder'
  )
  shard.unlink()
  assert f'{shard.name}: does not exist' in unread('gs://bucket/sets', name='folder')


def test_a_name_that_is_no_text_survives(rng, tmp_path):
  raw = tmp_path / 'raw'
  draw(rng, raw / 'train' / 'a' / 'x.png')
  strange = os.fsencode(str(raw / 'train' / 'a')) + b'/\xff\xfe\n.png'
  os.rename(os.fsencode(str(raw / 'train' / 'a' / 'x.png')), strange)
  prepare.prepare('folder', str(raw), str(tmp_path / 'out'))
  a = data.build('folder', str(raw), 'train', {})
  b = data.build('tfds', str(tmp_path / 'out'), 'train', {'name': 'folder'})
  assert b.id(0) == a.id(0) == 'train/a/\udcff\udcfe\n.png'
  assert b.record()['split_hash'] == a.record()['split_hash']


def test_a_set_without_classes_has_no_labels(rng, tmp_path):
  for k in range(3):
    draw(rng, tmp_path / 'raw' / f'{k}.png')
  prepare.prepare('folder', str(tmp_path / 'raw'), str(tmp_path / 'out'), name='flat')
  s = data.build('tfds', str(tmp_path / 'out'), 'train', {'name': 'flat'})
  assert (s.class_names, s.label(2), s.id(2)) == ((), -1, '2.png')


# --- what is interrupted, repeated, or in the way


def refused(*args, **kwargs):
  with pytest.raises(UserError) as e:
    prepare.prepare(*map(str, args), **kwargs)
  assert '\n' not in str(e.value)
  return str(e.value)


def unread(out, split='train', **options):
  with pytest.raises(UserError) as e:
    data.build('tfds', str(out), split, options)
  assert '\n' not in str(e.value)
  return str(e.value)


def test_an_interrupted_preparation_reads_as_nothing_and_goes_on(rng, tmp_path, monkeypatch, capfd):
  raw, out = tmp_path / 'raw', tmp_path / 'out'
  write_folder(rng, raw, train=16)
  monkeypatch.setattr(builders, 'SHARD_BYTES', 1 << 11)
  whole = prepare.prepare('folder', str(raw), str(out), name='whole')
  stopped, shard_take = [], shards.take

  def take(source, i, *rest):
    if source.id(i) == 'train/b/5.png':
      stopped.append(i)
      raise KeyboardInterrupt
    return shard_take(source, i, *rest)

  monkeypatch.setattr(builders, 'take', take)
  monkeypatch.setattr(builders.Pictures, '_number_of_files', lambda self, split: 4)
  with pytest.raises(KeyboardInterrupt):
    prepare.prepare('folder', str(raw), str(out), name='cut')
  assert stopped
  assert os.listdir(out / 'cut') == ['unfinished-1.0.0']
  assert "data.name is 'cut'" in unread(out, name='cut')
  done = {p.name: p.stat().st_ino for p in (out / 'cut' / 'unfinished-1.0.0').glob('train-?????')}
  assert 0 < len(done) < 4
  monkeypatch.setattr(builders, 'take', shard_take)
  capfd.readouterr()
  place = pathlib.Path(prepare.prepare('folder', str(raw), str(out), name='cut'))
  assert f'train: {len(done)} of 4 files were written before' in capfd.readouterr().err
  kept = {f'train-{k:05}': place / f'cut-train.array_record-{k:05}-of-00004' for k in range(4)}
  assert {name: kept[name].stat().st_ino for name in done} == done
  assert os.listdir(out / 'cut') == ['1.0.0']
  a = data.build('tfds', str(out), 'train', {'name': 'whole'})
  b = data.build('tfds', str(out), 'train', {'name': 'cut'})
  assert (a.record()['root'], len(a)) == (whole, len(b))
  for i in range(len(a)):
    assert (a.id(i), a.label(i), a.file_bytes(i)) == (b.id(i), b.label(i), b.file_bytes(i))


def test_a_kill_at_the_very_end_reads_as_nothing_and_is_cleaned_up(rng, tmp_path):
  write_folder(rng, tmp_path / 'raw')
  code = (
    'import os, sys; from mimic_jax.commands import prepare; from mimic_jax.data.arrayrecord import prepared\n'
    'prepared.write_record, kept = (lambda path, record: os._exit(9) if "made" in record else kept(path, record)), '
    'prepared.write_record\n'
    'prepare.prepare("folder", *sys.argv[1:])'
  )
  command = [sys.executable, '-c', code, str(tmp_path / 'raw'), str(tmp_path / 'out')]
  done = subprocess.run(command, cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True)
  assert done.returncode == 9, done.stderr
  left = sorted(os.listdir(tmp_path / 'out' / 'folder'))
  assert [name[:10] for name in left] == ['incomplete', 'unfinished']
  assert 'no prepared data set' in unread(tmp_path / 'out', name='folder')
  prepare.prepare('folder', str(tmp_path / 'raw'), str(tmp_path / 'out'))
  assert os.listdir(tmp_path / 'out' / 'folder') == ['1.0.0']
  assert len(data.build('tfds', str(tmp_path / 'out'), 'train', {'name': 'folder'})) == 10


def test_what_was_begun_with_other_pictures_is_begun_anew(rng, tmp_path, capfd):
  raw, work = tmp_path / 'raw', tmp_path / 'out' / 'folder' / 'unfinished-1.0.0'
  write_folder(rng, raw)
  (raw / 'train' / 'a' / '0.jpg').write_bytes(b'no picture')
  text = refused('folder', raw, tmp_path / 'out')
  assert text.startswith(f'{raw / "train/a/0.jpg"}: is not a picture')
  assert '--on_bad_image skip' in text
  (work / 'valid-00000').write_bytes(b'of the pictures before')
  (raw / 'train' / 'a' / '0.jpg').unlink()
  place = prepare.prepare('folder', str(raw), str(tmp_path / 'out'))
  assert 'starting anew' in capfd.readouterr().err
  assert (
    json.loads((pathlib.Path(place) / 'mimic_jax.json').read_text())['splits']['train']['record']['count']
    == 9
  )
  assert len(data.build('tfds', str(tmp_path / 'out'), 'valid', {'name': 'folder'})[0]['image']) == 9


def test_what_was_begun_without_the_targets_of_now_is_begun_anew(rng, tmp_path, monkeypatch):
  raw, rows = tmp_path / 'raw', test_rafdb.draw(rng)
  test_rafdb.write_official(raw, rows)

  def take(source, i, *rest):
    if source.id(i) == 'test_00003':
      raise KeyboardInterrupt
    return shards.take(source, i, *rest)

  with monkeypatch.context() as patched:
    patched.setattr(builders, 'take', take)
    patched.setattr(builders.Pictures, '_number_of_files', lambda self, split: 1)
    with pytest.raises(KeyboardInterrupt):
      prepare.prepare('rafdb', str(raw), str(tmp_path / 'out'))
  held = test_rafdb.write_attributes(raw, rows, rng)
  prepare.prepare('rafdb', str(raw), str(tmp_path / 'out'))
  for split in ('train', 'test'):
    s = data.build('tfds', str(tmp_path / 'out'), split, {'name': 'rafdb'})
    assert s.targets['age'].tolist() == [held[s.id(i)][2] for i in range(len(s))]


def test_a_set_that_is_there_is_used_or_kept(rng, tmp_path, capfd):
  raw, out = tmp_path / 'raw', tmp_path / 'out'
  write_ferplus(rng, raw, 'official')
  place = prepare.prepare('ferplus', str(raw), str(out))
  before = {p: p.stat().st_mtime_ns for p in pathlib.Path(place).iterdir()}
  capfd.readouterr()
  assert prepare.prepare('ferplus', str(raw), str(out)) == place
  assert 'nothing to do' in capfd.readouterr().err
  for options in ({'label_rule': 'argmax8'}, {'label_rule': 'soft'}):
    text = refused('ferplus', raw, out, options=options)
    assert 'is there already and holds something else' in text
    assert f'label_rule is majority, not {options["label_rule"]}' in text
  assert 'its splits are train, valid, test, not train;' in refused('ferplus', raw, out, splits=['train'])
  assert {p: p.stat().st_mtime_ns for p in pathlib.Path(place).iterdir()} == before
  (out / 'theirs' / '1.0.0').mkdir(parents=True)
  assert 'was not made by mimic_jax.prepare' in refused('ferplus', raw, out, name='theirs')


def test_two_processes_do_not_write_one_set(rng, tmp_path):
  write_folder(rng, tmp_path / 'raw')
  work = tmp_path / 'out' / 'folder' / 'unfinished-1.0.0'
  work.mkdir(parents=True)
  with open(work / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert 'another process prepares this data set' in refused('folder', tmp_path / 'raw', tmp_path / 'out')
  prepare.prepare('folder', str(tmp_path / 'raw'), str(tmp_path / 'out'))


def test_a_full_disk_is_one_line_and_what_was_written_is_kept(rng, tmp_path):
  write_folder(rng, tmp_path / 'raw')
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, limits[1]))  # as a full disk: writing beyond it fails
  try:
    text = refused('folder', tmp_path / 'raw', tmp_path / 'out')
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert "train-00000.part: can't be written (" in text
  assert 'the same command goes on' in text
  prepare.prepare('folder', str(tmp_path / 'raw'), str(tmp_path / 'out'))


def test_reading_runs_only_a_little_ahead_of_writing():
  begun = []
  results = shards.in_order(lambda i: begun.append(i) or i, range(1000), 2)
  for k in range(100):
    assert next(results) == k
    assert len(begun) <= k + 1 + 2 * 4
  results.close()
  assert list(shards.in_order(str, range(30), 3)) == [str(i) for i in range(30)]


def test_unreadable_pictures_are_left_out_and_counted(rng, tmp_path, capfd, monkeypatch):
  rows = test_rafdb.draw(rng)
  test_rafdb.write_official(tmp_path / 'raw', rows)
  aligned = tmp_path / 'raw' / 'Image' / 'aligned'
  (aligned / 'train_00002_aligned.jpg').write_bytes(b'')
  (aligned / 'train_00005_aligned.jpg').unlink()
  assert 'train_00005_aligned.jpg: does not exist' in refused('rafdb', tmp_path / 'raw', tmp_path / 'out')
  prepare.prepare('rafdb', str(tmp_path / 'raw'), str(tmp_path / 'out'), options={'on_bad_image': 'skip'})
  assert 'train: 13 pictures in 1 files, 2 left out' in capfd.readouterr().err
  s = data.build('tfds', str(tmp_path / 'out'), 'train', {'name': 'rafdb'})
  expected = [
    key for key in sorted(rows) if key.startswith('train') and key not in ('train_00002', 'train_00005')
  ]
  assert [s.id(i) for i in range(len(s))] == expected
  record = s.record()
  assert record['split_hash'] == sources.split_hash(expected, [rows[key][0] - 1 for key in expected])
  assert (record['count'], record['left_out']['unreadable'], sum(record['class_counts'].values())) == (
    13,
    2,
    13,
  )
  assert any('2 unreadable pictures were left out' in w for w in record['warnings'])
  monkeypatch.setattr(builders, 'SHARD_BYTES', 1)  # a file for each picture, two of them empty
  options = {'on_bad_image': 'skip'}
  place = prepare.prepare(
    'rafdb', str(tmp_path / 'raw'), str(tmp_path / 'out'), name='single', options=options
  )
  single = data.build('tfds', str(tmp_path / 'out'), 'train', {'name': 'single'})
  assert len(list(pathlib.Path(place).glob('single-train*'))) == 15
  for i in range(13):
    assert single.id(i) == expected[i]
    np.testing.assert_array_equal(single[i]['image'], s[i]['image'])
  for file in aligned.glob('test_*'):
    file.write_bytes(b'')
  text = refused('rafdb', tmp_path / 'raw', tmp_path / 'o', splits=['test'], options={'on_bad_image': 'skip'})
  assert "no picture of split 'test'" in text


def test_imagenet_is_held_against_the_release_and_needs_classes(rng, tmp_path, capfd):
  for split in ('train', 'val'):
    for k in range(4):
      draw(rng, tmp_path / 'raw' / split / f'n0{k % 2}' / f'{split}_{k}.JPEG', (30, 20))
  prepare.prepare('imagenet', str(tmp_path / 'raw'), str(tmp_path / 'out'))
  assert (
    'imagenet train has 4 pictures of 2 classes, the published release 1281167 of 1000'
    in capfd.readouterr().err
  )
  s = data.build('tfds', str(tmp_path / 'out'), 'valid', {'name': 'imagenet:1.0.0'})
  assert (s.class_names, s.id(1), len(s)) == (('n00', 'n01'), 'val/n00/val_2.JPEG', 4)
  assert '50000 of 1000' in s.record()['warnings'][0]
  for k in range(2):
    draw(rng, tmp_path / 'flat' / 'train' / f'{k}.JPEG')
  text = refused('imagenet', tmp_path / 'flat', tmp_path / 'out', name='other')
  assert 'has no class folders; expected train/n01440764/*.JPEG' in text


@pytest.mark.parametrize(
  ('args', 'expected'),
  [
    (['--dataset', 'raf', '--raw', '.', '--out', 'o'], "invalid choice: 'raf'"),
    (['--dataset', 'folder', '--raw', 'nowhere', '--out', 'o'], "--raw 'nowhere' is not a folder"),
    (['--dataset', 'folder', '--raw', '.', '--out', 'o', '--name', 'My set'], "--name is 'My set'"),
    (['--dataset', 'folder', '--raw', '.', '--out', 'o', '--threads', '0'], '--threads is 0; expected at least 1'),
    (['--dataset', 'ferplus', '--raw', '.', '--out', 'o', '--splits', 'train+valid'], "names 'train+valid'"),
    (['--dataset', 'rafdb', '--raw', '.', '--out', 'o', '--classes', '8'], "--classes is '8', which only --dataset aff"),
    (['--dataset', 'ferplus', '--raw', '.', '--out', 'o'], 'looked for FER2013Train/label.csv'),
    (['--dataset', 'folder', '--raw', '.', '--out', 'o', '--align', 'box(0.2)'], "data.align is 'box(0.2)'"),
  ],
)  # fmt: skip
def test_a_wrong_command_is_one_line(rng, tmp_path, monkeypatch, args, expected):
  draw(rng, tmp_path / 'a.png')
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError) as e:
    prepare.main(args)
  assert expected in str(e.value)
  assert '\n' not in str(e.value)


def test_splits_of_other_classes_and_an_unwritable_folder_are_refused(rng, tmp_path):
  draw(rng, tmp_path / 'raw' / 'train' / 'a' / '1.png')
  draw(rng, tmp_path / 'raw' / 'val' / '1.png')
  assert "split 'valid' has the classes none; expected those of 'train', a" in refused(
    'folder', tmp_path / 'raw', tmp_path / 'out'
  )
  (tmp_path / 'file').write_text('')
  assert "can't be read or written" in refused(
    'folder', tmp_path / 'raw', tmp_path / 'file', splits=['train']
  )


def test_the_datasets_of_the_command_are_those_that_have_a_builder():
  assert set(prepare.DATASETS) == set(builders.SETS)


# --- reading


@pytest.fixture
def faces(rng, tmp_path):
  write_folder(rng, tmp_path / 'raw')
  return pathlib.Path(prepare.prepare('folder', str(tmp_path / 'raw'), str(tmp_path / 'out'), name='faces'))


def test_a_data_set_that_is_not_there_is_named_with_those_that_are(faces, tmp_path):
  out = tmp_path / 'out'
  assert unread(tmp_path / 'no', name='faces').startswith(f"data.root '{tmp_path / 'no'}' is not a folder")
  assert 'holds no prepared data set' in unread(tmp_path / 'raw', name='faces')
  assert (
    f"data.name is 'face' (did you mean 'faces:1.0.0'?), which isn't prepared: '{out}' holds faces:1.0.0"
    in unread(out, name='face')
  )
  assert 'expected a data set as TFDS names it' in unread(out)
  assert 'expected a data set as TFDS names it' in unread(out, name='faces:newest')
  assert "isn't prepared" in unread(out, name='faces:2.*.*')
  assert "isn't prepared" in unread(out, name='faces/config')
  assert f"no split 'test' in {faces}: it holds train, valid" in unread(out, 'test', name='faces')
  assert 'which has no picture in' in unread(out, 'train[90%:10%]', name='faces')
  for split in ('train[5:x]', 'train[99:]'):
    assert 'expected one as in train[:90%]' in unread(out, split, name='faces')
  assert len(data.build('tfds', str(faces), 'train', {})) == 10  # the set's own folder
  for name in ('faces', 'faces:1.0.0', 'faces:1.*.*'):
    assert len(data.build('tfds', str(out), 'train', {'name': name})) == 10


def test_the_newest_version_is_read_unless_one_is_named(faces, tmp_path):
  newer = faces.parent / '1.10.0'
  subprocess.run(['cp', '-r', faces, faces.parent / '1.9.0'], check=True)
  subprocess.run(['cp', '-r', faces, newer], check=True)
  for place in (newer, faces.parent / '1.9.0'):
    info = json.loads((place / 'dataset_info.json').read_text())
    (place / 'dataset_info.json').write_text(json.dumps({**info, 'version': place.name}))
  found = [
    data.build('tfds', str(tmp_path / 'out'), 'train', {'name': name}).record()['name']
    for name in ('faces', 'faces:1.9.*', 'faces:1.0.0')
  ]
  assert found == ['faces:1.10.0', 'faces:1.9.0', 'faces:1.0.0']


def test_files_that_are_gone_cut_short_or_of_another_format_are_named(faces, tmp_path):
  out, file = tmp_path / 'out', faces / 'faces-train.array_record-00000-of-00001'
  whole = file.read_bytes()
  file.write_bytes(whole[:-100])
  assert unread(out, name='faces') == (
    f'{file}: has {len(whole) - 100} bytes; expected {len(whole)}: prepare the set again'
  )
  file.unlink()
  assert unread(out, name='faces').startswith(f'{file}: does not exist')
  file.write_bytes(whole)
  index = faces / 'mimic_index-train.npz'
  index.write_bytes(index.read_bytes()[:50])
  s = data.build('tfds', str(out), 'train', {'name': 'faces'})
  with pytest.raises(UserError, match='is no index of'):
    s.id(0)
  record = (faces / 'mimic_jax.json').read_text()
  (faces / 'mimic_jax.json').write_text(record.replace('"format": 1', '"format": 99'))
  assert 'is of format 99; expected 1' in unread(out, name='faces')
  (faces / 'mimic_jax.json').write_text('{')
  assert 'mimic_jax.json: is not readable' in unread(out, name='faces')
  (faces / 'mimic_jax.json').write_text(record)


def test_another_format_and_a_broken_description_are_one_line(faces, tmp_path):
  info = faces / 'dataset_info.json'
  text = info.read_text()
  info.write_text(text.replace('array_record', 'tfrecord'))
  assert 'is prepared as tfrecord; expected array_record' in unread(tmp_path / 'out', name='faces')
  info.write_text(text)
  (faces / 'features.json').write_text('{"broken"')
  assert "TFDS can't read this data set" in unread(tmp_path / 'out', name='faces')


def test_a_damaged_record_is_a_bad_picture_that_can_be_skipped(faces, tmp_path):
  s = data.build('tfds', str(tmp_path / 'out'), 'train', {'name': 'faces'})
  file = faces / 'faces-train.array_record-00000-of-00001'
  content = bytearray(file.read_bytes())
  at = content.index(s.file_bytes(3)[-150:-100])  # no header, which pictures share
  content[at : at + 10] = bytes(10)
  file.write_bytes(content)
  damaged = pickle.loads(pickle.dumps(s))
  with pytest.raises(sources.BadImage) as e:
    damaged[3]
  assert str(e.value).startswith(f'{faces}: train 3 ({s.id(3)}): ')
  np.testing.assert_array_equal(damaged[4]['image'], s[4]['image'])
  batches = train_batches(damaged, on_bad_image='skip')
  for _ in range(3):
    next(batches)
  assert list(batches.skipped()) == [s.id(3)]


@pytest.mark.parametrize(
  ('kind', 'wrong', 'right'),
  [
    ('ferplus_soft', {'label_rule': 'argmax10'}, {'label_rule': 'majority'}),
    ('affectnet_box', {'align': 'box(0.3)'}, {'align': 'box(0.20)'}),
    ('affectnet_box', {'align': 'none'}, {'align': 'auto', 'align_size': 48}),
    ('affectnet_points', {'align_size': 48}, {'align_size': 224}),
    ('affectnet_older', {'classes': 8}, {'classes': 7}),
  ],
)
def test_options_that_the_set_was_not_prepared_with_are_refused(rng, tmp_path, kind, wrong, right):
  dataset, write, options, _ = SETS[kind]
  write(rng, tmp_path / 'raw')
  prepare.prepare(dataset, str(tmp_path / 'raw'), str(tmp_path / 'out'), name='mine', options=options)
  (field,) = wrong
  text = unread(tmp_path / 'out', name='mine', **wrong)
  assert f"data.{field} is '{wrong[field]}', but " in text
  assert 'holds pictures prepared with' in text
  data.build('tfds', str(tmp_path / 'out'), 'train', {'name': 'mine', **right})


def test_a_prepared_ferplus_is_compared_whole_under_its_own_label_rule(rng, tmp_path):
  write_ferplus(rng, tmp_path / 'raw', 'official')
  prepare.prepare('ferplus', str(tmp_path / 'raw'), str(tmp_path / 'out'))
  section = small.mimic_stage(
    **{'data.source': 'tfds', 'data.root': str(tmp_path / 'out'), 'data.name': 'ferplus'}
  )
  section.update_from_flattened_dict(
    {'eval.splits': 'valid', 'eval.without_duplicates': True, 'data.cache': False}
  )
  mesh = sharding.make_mesh()
  stage = stage_lib.Stage(small.run_config(only=section), 'only', epath.Path(tmp_path / 'run'), mesh)
  one = data.whole('tfds', str(tmp_path / 'out'), 'train', section.data)
  assert [one.id(i) for i in range(len(one))] == [stage.source.id(i) for i in range(len(stage.source))]
  stage.prepare()
  assert not stage.splits[0].copies.kind.any()


# --- sets that others prepared


def foreign(root, features, examples, name='theirs'):
  """Writes a set with TFDS alone, examples in its own shuffled order."""

  class Theirs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('5.1.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(split) for split in examples}

    def _generate_examples(self, split):
      yield from enumerate(examples[split])

  Theirs.name = name
  builder = Theirs(data_dir=str(root))
  builder.download_and_prepare(file_format='array_record', download_dir=str(root / 'downloads'))
  return pathlib.Path(builder.data_dir)


def encoded(rng, size=(9, 7)):
  return sources.encode_png(rng.integers(0, 256, (*size, 3), np.uint8))


def test_a_set_that_others_prepared_is_read_by_the_types_of_its_features(rng, tmp_path):
  features = {
    'picture': tfds.features.Image(),
    'what': tfds.features.ClassLabel(names=['cat', 'dog', 'eel']),
    'file_name': tfds.features.Text(),
    'mask': tfds.features.Tensor(shape=(2, 2), dtype=np.float32),
  }
  rows = {
    f'{split} {k}.JPEG': {'picture': encoded(rng), 'what': k % 3, 'mask': np.ones((2, 2), np.float32)}
    for split in ('train', 'validation') for k in range(8)
  }  # fmt: skip
  examples = {
    s: [{**row, 'file_name': name} for name, row in rows.items() if name.startswith(s)]
    for s in ('train', 'validation')
  }
  place = foreign(tmp_path / 'out', features, examples)
  for split in ('train', 'valid'):
    s = data.build('tfds', str(tmp_path / 'out'), split, {'name': 'theirs:5.*.*'})
    assert (len(s), s.class_names, s.image_shape) == (8, ('cat', 'dog', 'eel'), None)
    s = pickle.loads(pickle.dumps(s))
    assert sorted(s.id(i) for i in range(8)) == sorted(n for n in rows if n.startswith(split))
    for i in range(8):
      row = rows[s.id(i)]
      assert s.label(i) == row['what']
      assert isinstance(s.label(i), int)
      np.testing.assert_array_equal(s[i]['image'], sources.decode_image('', 10**6, row['picture']))
      assert s.content_hash(i) == hashlib.sha256(row['picture']).hexdigest()
    for batch in (next(eval_batches(s)), next(train_batches(s))):
      assert [rows[s.id(i)]['what'] for i in batch['index']] == batch['label'].tolist()
  record = s.record()
  assert (record['count'], record['name'], record['split']) == (8, 'theirs:5.1.0', 'validation')
  assert record['class_names'] == ['cat', 'dog', 'eel']
  hashes = {
    data.build('tfds', str(tmp_path / 'out'), split, {'name': 'theirs'}).record()['split_hash']
    for split in ('train', 'valid', 'train[:50%]', 'train+valid')
  }
  assert len({*hashes, record['split_hash']}) == 4
  file = next(place.glob('theirs-validation*'))
  file.write_bytes(file.read_bytes() + b'\0' * 10)
  assert (
    data.build('tfds', str(tmp_path / 'out'), 'valid', {'name': 'theirs'}).record()['split_hash']
    not in hashes
  )
  assert "data.align is 'box(0.2)'" in unread(tmp_path / 'out', name='theirs', align='box(0.2)')


def test_a_set_without_names_of_pictures_counts_them(rng, tmp_path):
  features = {'image': tfds.features.Image(shape=(9, 7, 3)), 'label': tfds.features.ClassLabel(num_classes=4)}
  examples = {'train': [{'image': encoded(rng), 'label': k % 4} for k in range(6)]}
  foreign(tmp_path, features, examples)
  s = data.build('tfds', str(tmp_path), 'train[2:]', {'name': 'theirs'})
  assert [s.id(i) for i in range(4)] == [f'train:{k:06}' for k in (2, 3, 4, 5)]
  assert (s.class_names, s.image_shape) == (('0', '1', '2', '3'), (9, 7, 3))
  assert next(train_batches(s))['image'].shape == (4, 9, 7, 3)


def test_ambiguous_features_are_named(rng, tmp_path):
  row = {'image': encoded(rng)}
  classes = {k: tfds.features.ClassLabel(names=['a', 'b']) for k in ('coarse', 'fine')}
  foreign(
    tmp_path, {'image': tfds.features.Image(), **classes}, {'train': [{**row, 'coarse': 0, 'fine': 1}]}, 'two'
  )
  s = data.build('tfds', str(tmp_path), 'train', {'name': 'two'})
  assert (s.class_names, s.label(0)) == ((), -1)
  assert 'several kinds of classes (coarse, fine)' in s.record()['warnings'][0]
  images = {k: tfds.features.Image() for k in ('left', 'right')}
  foreign(tmp_path, images, {'train': [{'left': encoded(rng), 'right': encoded(rng)}]}, 'pair')
  assert 'several (left, right), none of them called image' in unread(tmp_path, name='pair')
  foreign(tmp_path, {'x': tfds.features.Text()}, {'train': [{'x': 'y'}]}, 'text')
  assert 'expected one feature that is a picture' in unread(tmp_path, name='text')


@pytest.mark.parametrize(
  ('variant', 'source', 'name'),
  [('', 'tfds', 'imagenet'), (':vitl16', 'tfds', 'imagenet'), (':vitl16,folder', 'folder', '')],
)
def test_imagenet_pre_training_reads_array_record_or_the_folder(variant, source, name):
  command = config.parse(['main', f'--config=pretrain_imagenet1k{variant}', '--config.data.root=/d'])
  section = command.config.pretrain.data
  assert (section.source, section.name, section.root) == (source, name, '/d')

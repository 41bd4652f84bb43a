"""A valid split held out by content: which pictures, against hashlib alone, and what happens when others come."""

import hashlib
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from mimic_jax import data
from mimic_jax.runtime.errors import UserError

TENTH = {'held_out': 0.1}


def fill(folder, n, rng):
  for k in range(n):
    path = folder / f'c{k % 3}' / f'{k:03}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (2, 2, 3), np.uint8)).save(path)


def sides(root, **options):
  return [
    {s.id(i): s.label(i) for i in range(len(s))}
    for s in (data.build('folder', str(root), split, TENTH | options) for split in ('train', 'valid'))
  ]


@pytest.mark.parametrize('inside', ['', 'train'])
def test_a_picture_is_held_out_by_the_hash_of_its_file(rng, tmp_path, inside):
  fill(tmp_path / inside, 120, rng)
  train, valid = sides(tmp_path)
  whole = data.build('folder', str(tmp_path), 'train', {})
  assert train | valid == {whole.id(i): whole.label(i) for i in range(120)}
  for name in train | valid:
    first = hashlib.sha256(pathlib.Path(tmp_path / name).read_bytes()).digest()
    held = int.from_bytes(first[:8], 'big') < 0.1 * 2**64
    assert (name in valid) == held
  record = data.build('folder', str(tmp_path), 'valid', TENTH).record()
  assert record['held_out'] == {
    'rule': 'SHA-256 of the file',
    'share': 0.1,
    'train': len(train),
    'valid': len(valid),
  }
  assert record['count'] == len(valid)
  assert f'{len(valid)} pictures are held out' in record['warnings'][0]


def test_a_side_does_not_change_when_pictures_come_and_copies_stand_together(rng, tmp_path):
  fill(tmp_path, 90, rng)
  before = sides(tmp_path)
  for k, name in enumerate([*before[0], *before[1]]):
    shutil.copy(tmp_path / name, tmp_path / 'c0' / f'copy of {k:03}.png')
  after = sides(tmp_path)
  for old, new in zip(before, after):
    assert old.keys() <= new.keys()
    assert len(new) == 2 * len(old)


def test_a_changed_picture_is_looked_at_anew(rng, tmp_path):
  fill(tmp_path, 60, rng)
  name = next(iter(sides(tmp_path)[1]))
  shutil.copy(tmp_path / next(iter(sides(tmp_path)[0])), tmp_path / name)
  assert name in sides(tmp_path)[0]


def test_nothing_is_held_out_where_there_is_a_valid_split_or_none_is_wanted(rng, tmp_path):
  fill(tmp_path / 'train', 30, rng)
  assert len(data.build('folder', str(tmp_path), 'train', {})) == 30
  with pytest.raises(UserError, match="no split 'valid'"):
    data.build('folder', str(tmp_path), 'valid', {})
  fill(tmp_path / 'Val', 3, rng)
  assert [len(side) for side in sides(tmp_path)] == [30, 3]


def test_a_share_that_leaves_nothing_is_one_line(rng, tmp_path):
  fill(tmp_path, 60, rng)
  with pytest.raises(
    UserError, match=r'held_out = 1e-09 holds out 0 of its 60 pictures; expected some on both sides'
  ):
    sides(tmp_path, held_out=1e-9)
  (tmp_path / 'rare').mkdir()
  shutil.copy(tmp_path / next(iter(sides(tmp_path)[1])), tmp_path / 'rare')
  with pytest.raises(
    UserError, match=r"holds out all of class 'rare', 1 pictures; expected some left to train on"
  ):
    sides(tmp_path)


def test_a_file_that_can_not_be_read_is_left_to_training(rng, tmp_path):
  fill(tmp_path, 60, rng)
  (tmp_path / 'c0' / 'gone.png').symlink_to(tmp_path / 'nowhere')
  assert 'c0/gone.png' in sides(tmp_path)[0]


def test_a_set_with_a_valid_split_of_its_own_has_held_out_beside_it():
  options = {'size': 60, 'draw_size': 16, 'draw_seed': 0, 'held_out': 0.2}
  whole = data.build('synthetic_faces', '', 'train', {**options, 'held_out': 0})
  train, held, valid = (
    data.build('synthetic_faces', '', split, options) for split in ('train', 'held_out', 'valid')
  )
  hashes = {whole.id(i): int(whole.content_hash(i)[:16], 16) / 2**64 for i in range(60)}
  assert {held.id(i) for i in range(len(held))} == {k for k, x in hashes.items() if x < 0.2}
  assert {train.id(i) for i in range(len(train))} == {k for k, x in hashes.items() if x >= 0.2}
  assert len(valid) == 60
  assert held.record()['held_out']['train'] == len(train)
  with pytest.raises(UserError, match=r'data.held_out is 1e-09 and holds out 0 of 60 pictures'):
    data.build('synthetic_faces', '', 'train', {**options, 'held_out': 1e-9})


@pytest.mark.parametrize(
  ('source', 'options'), [('synthetic_clips', {'size': 64, 'draw_size': 16, 'draw_seed': 0}), ('clips', {})]
)
def test_clips_are_not_torn_apart(rng, tmp_path, source, options):
  if source == 'clips':
    fill(tmp_path / 'ann', 60, rng)
  with pytest.raises(
    UserError, match=r'data.held_out is 0.1, and the pictures are in groups; expected 0 and'
  ):
    data.build(source, str(tmp_path), 'train', TENTH | options)


def test_whatever_the_training_split_is_called_it_lacks_what_is_held_out(rng, tmp_path):
  fill(tmp_path, 60, rng)
  for k in range(3):
    (tmp_path / 'train').mkdir(exist_ok=True)
    (tmp_path / f'c{k}').rename(tmp_path / 'train' / f'{k + 1}')
  held, *trained = (
    {s.id(i) for i in range(len(s))}
    for s in (
      data.build('rafdb', str(tmp_path), split, {'held_out': 0.3})
      for split in ('held_out', 'train', 'training')
    )
  )
  assert trained[0] == trained[1]
  assert held
  assert not held & trained[0]


@pytest.mark.parametrize(
  ('source', 'split'),
  [('ferplus', 'train+valid'), ('tfds', 'train[:90%]'), ('tfds', 'valid+training'), ('tfds', 'all')],
)
def test_a_split_that_holds_training_pictures_and_others_can_not_lack_what_is_held_out(source, split):
  with pytest.raises(UserError) as e:
    data.build(source, '/nowhere', split, TENTH)
  assert str(e.value).startswith(
    f"data.split is '{split}', and data.held_out is 0.1 of split 'train'; expected"
  )

"""Clips: folders of frames, drawn faces that move with their points, which frames come when; points that go along with crops."""

import itertools
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from mimic_jax import clips as arithmetic
from mimic_jax import landmarks
from mimic_jax.clips import Frames
from mimic_jax.data import pipeline, sampling
from mimic_jax.data import source as sources
from mimic_jax.data.drawn import canvas, face
from mimic_jax.data.sets import clips, synthetic_clips
from mimic_jax.runtime.errors import UserError

FPS = 25 / 6


@pytest.fixture(scope='module')
def drawn():
  return synthetic_clips.build('', 'train', {'size': 192, 'draw_size': 16, 'draw_seed': 3})


def tree(root, frames, size=(20, 24), split='train'):
  """Writes <person>/<clip> → number of frames; pixels say where they are: red is x, green is y."""
  y, x = np.mgrid[: size[0], : size[1]]
  picture = np.stack([8 * x, 8 * y, 0 * x], axis=-1).astype(np.uint8)
  for clip, count in frames.items():
    folder = root / split / clip
    folder.mkdir(parents=True)
    for k in range(count):
      Image.fromarray(picture).save(folder / f'{k}.png')
  return root


def batches(source, frames, start=0, **changes):
  fields = {
    'batch_images': 2, 'seed': 5, 'start_step': start, 'views': 1, 'image_size': 12, 'scale': (0.4, 0.9), 'ratio': (0.8, 1.2),
    'interpolation': 'bilinear', 'threads': 2, 'frames': frames, 'group': frames.pictures, **changes,
  }  # fmt: skip
  return pipeline.train_batches(source, **fields)


# ---- which frames


def test_positives_and_second_anchors_are_as_often_where_they_may_be_as_counting_says(rng):
  frames, length = Frames(FPS), 30
  assert frames.offsets == (2, 3, 4, 5, 6)
  assert frames.gap == 12
  assert frames.least == 13
  n = 30_000
  got = np.array([arithmetic.draw(frames, length, u) for u in rng.random((n, arithmetic.UNIFORMS))])
  expected = np.zeros((length, length))  # of (anchor, its positive)
  second = np.zeros((length, length))  # of (anchor, second anchor)
  for a in range(length):
    for offset, weight in zip((2, 3, 4, 5, 6), (5, 4, 3, 2, 1)):
      room = [b for b in (a - offset, a + offset) if 0 <= b < length]
      for b in room:
        expected[a, b] += weight / 15 / len(room) / length
    sides = [[b for b in range(length) if s * (b - a) >= 12] for s in (-1, 1)]
    sides = [side for side in sides if side]
    for side in sides:
      second[a, side] += 1 / len(side) / len(sides) / length
  for columns, share in (((0, 1), expected), ((0, 2), second)):
    counted = np.zeros((length, length))
    np.add.at(counted, tuple(got[:, columns].T), 1)
    np.testing.assert_array_less(np.abs(counted - n * share), 6 * np.sqrt(n * share * (1 - share)) + 1e-9)
  # the second positive stands to the second anchor as the first to the first
  np.testing.assert_array_equal(np.unique(np.abs(got[:, 3] - got[:, 2])), [2, 3, 4, 5, 6])


@pytest.mark.parametrize('weights', arithmetic.WEIGHTS)
def test_the_shortest_clip_has_room_for_all(weights, rng):
  frames = Frames(FPS, weights=weights)
  got = np.array([arithmetic.draw(frames, 13, u) for u in rng.random((2000, arithmetic.UNIFORMS))])
  assert got.min() == 0
  assert got.max() == 12
  assert set(got[:, 0]) == {0, 12}
  counts, shares = np.bincount(np.abs(got[:, 1] - got[:, 0]))[2:], np.array(arithmetic.WEIGHTS[weights])
  shares = shares / shares.sum()
  np.testing.assert_array_less(np.abs(counts - 2000 * shares), 6 * np.sqrt(2000 * shares))


def test_without_second_anchors_twice_the_longest_distance_is_long_enough(rng):
  frames = Frames(FPS, second=False)
  assert frames.least == 12
  got = np.array([arithmetic.draw(frames, 12, u) for u in rng.random((2000, arithmetic.UNIFORMS))])
  assert set(got[:, 0]) == set(range(12))
  assert (got.min(), got.max()) == (0, 11)


def test_without_time_and_second_anchors_an_item_is_one_frame_twice(rng):
  frames = Frames(FPS, time=False, second=False)
  assert frames.least == 1
  for u in rng.random((50, arithmetic.UNIFORMS)):
    a, p = arithmetic.draw(frames, 3, u)
    assert a == p


def test_each_epoch_has_each_clip_once_and_other_frames_of_it_unless_they_are_fixed(drawn):
  for fixed in (False, True):
    order = sampling.clips_of(drawn, Frames(FPS, fixed=fixed), 1)
    assert len(order) == 6
    first, second = (np.stack([order(6 * epoch + k, k) for k in range(6)]) for epoch in (0, 1))
    assert (first[:, :, 1] // 32 == np.arange(6)[:, None]).all()
    assert (first[:, :, 1] == second[:, :, 1]).all() == fixed
    assert (second[:, :, 0] == 1).all()
    assert len(np.unique(first[:, :, 2])) == 24  # crops of their own
  swapped = sampling.clips_of(drawn, Frames(FPS, fixed=True, swap=1.0), 1)
  first, second = (np.stack([swapped(6 * epoch + k, k) for k in range(6)]) for epoch in (0, 1))
  np.testing.assert_array_equal(first[:, :, 1], second[:, :, 1])
  assert (first[:, 1::2, 3] != second[:, 1::2, 3]).any()  # other faces each epoch


def test_batches_are_the_same_from_any_step_and_in_any_number_of_parts(drawn):
  frames = Frames(FPS)
  whole = list(itertools.islice(batches(drawn, frames, targets=['landmarks']), 7))
  assert whole[0]['image'].shape == (2, 4, 16, 16, 3)
  assert whole[0]['landmarks'].shape == (2, 4, 68, 2)
  epoch = np.concatenate([b['index'][:, 0] // 32 for b in whole[:3]])
  assert sorted(epoch) == list(range(6))
  assert not np.array_equal(whole[0]['index'], whole[3]['index'])
  for b in whole:
    np.testing.assert_array_equal(b['landmarks'], drawn.targets['landmarks'][b['index']])
    np.testing.assert_array_equal(b['image'][1, 2], drawn[int(b['index'][1, 2])]['image'])
  later = batches(drawn, frames, start=4)
  np.testing.assert_array_equal(next(later)['index'], whole[4]['index'])
  parts = [batches(drawn, frames, start=2, share=pipeline.Share((k,), 2)) for k in (0, 1)]
  np.testing.assert_array_equal(np.concatenate([next(p)['index'] for p in parts]), whole[2]['index'])


@pytest.mark.processes
def test_reader_processes_bring_the_same(drawn):
  frames = Frames(FPS)
  apart = batches(drawn, frames, start=3, workers=2)
  for here, there in zip(itertools.islice(batches(drawn, frames, start=3), 4), apart, strict=False):
    np.testing.assert_array_equal(here['index'], there['index'])
    np.testing.assert_array_equal(here['image'], there['image'])
  apart.close()


def test_clips_too_short_are_left_out_and_none_long_enough_is_refused(tmp_path):
  source = clips.build(str(tree(tmp_path / 'a', {'x/1': 13, 'x/2': 12, 'y/1': 20})), 'train', {})
  order = sampling.clips_of(source, Frames(FPS), 0)
  assert len(order) == 2
  assert order.left_out == 1
  assert set(order(0, 0)[:, 1]) <= set(range(13))
  assert set(order(1, 1)[:, 1]) <= set(range(25, 45))
  short = clips.build(str(tree(tmp_path / 'b', {'x/1': 12, 'y/1': 3})), 'train', {})
  with pytest.raises(
    UserError, match=r'has 2 clips, the longest of 12 frames; expected one of at least 13 at 4\.167'
  ):
    sampling.clips_of(short, Frames(FPS), 0)
  with pytest.raises(UserError, match=r"data\.sampler is 'balanced', and the pictures are frames of clips"):
    batches(source, Frames(FPS), sampler='balanced')


# ---- folders


def test_a_tree_of_frames_is_read_in_natural_order_with_person_and_clip(tmp_path):
  root = tree(tmp_path, {'p10/c/1': 11, 'p2/c/10': 2, 'p2/c/9': 3, 'p2/d': 1})
  tree(tmp_path, {'q/c': 2}, split='valid')
  source = clips.build(str(root), 'train', {})
  assert isinstance(source, sources.Source)
  names = [source.id(i) for i in range(len(source))]
  assert names[:5] == [
    *(f'train/p2/c/9/{k}.png' for k in range(3)),
    *(f'train/p2/c/10/{k}.png' for k in range(2)),
  ]
  assert names[6:] == [f'train/p10/c/1/{k}.png' for k in range(11)]
  np.testing.assert_array_equal(source.targets['person'], [0] * 6 + [1] * 11)
  np.testing.assert_array_equal(source.targets['clip'], [0] * 3 + [1] * 2 + [2] + [3] * 11)
  for i in range(len(source)):
    np.testing.assert_array_equal(
      source.group(i), np.flatnonzero(source.targets['clip'] == source.targets['clip'][i])
    )
  record = source.record()
  assert (record['persons'], record['clips'], record['count']) == (2, 4, 17)
  assert source[7]['label'] == -1
  assert len(clips.build(str(root), 'valid', {})) == 2
  kept = sources.Cached(pickle.loads(pickle.dumps(source)))
  np.testing.assert_array_equal(kept.group(9), source.group(9))


def test_a_clip_stays_together_whatever_its_neighbours_are_called(tmp_path):
  root = tree(tmp_path, {'p/1': 3, 'p/01': 3, 'p/c\u00b2': 2, 'p/d': 3, 'p/d/sub': 2})
  source = clips.build(str(root), 'train', {})
  assert source.record()['clips'] == 5
  for i in range(len(source)):
    folders = {source.id(int(k)).rpartition('/')[0] for k in source.group(i)}
    assert folders == {source.id(i).rpartition('/')[0]}


def test_of_a_clip_that_cannot_be_read_the_next_one_stands_in(tmp_path):
  root = tree(tmp_path, {'x/1': 14, 'x/2': 13, 'y/1': 14})
  for k in range(14):
    (root / 'train' / 'x' / '1' / f'{k}.png').write_bytes(b'no picture')
  source = clips.build(str(root), 'train', {})
  found = batches(source, Frames(FPS), on_bad_image='skip', batch_images=3)
  rows = np.concatenate([next(found)['index'] for _ in range(3)])
  assert (rows >= 14).all()
  assert [len(set(rows[:, 0] // 27 == second)) for second in (0, 1)] == [2, 2]
  for row in rows:  # an item is of one clip
    assert len(set(source.targets['clip'][row])) == 1
  assert set(found.skipped()) <= {f'train/x/1/{k}.png' for k in range(14)}
  for k in range(13):
    (root / 'train' / 'x' / '2' / f'{k}.png').write_bytes(b'no picture')
    (root / 'train' / 'y' / '1' / f'{k}.png').write_bytes(b'no picture')
  (root / 'train' / 'y' / '1' / '13.png').write_bytes(b'no picture')
  with pytest.raises(UserError, match='none of the 41 pictures can be read'):
    next(batches(source, Frames(FPS), on_bad_image='skip'))


def test_other_points_are_other_data(tmp_path, rng):
  root, prints, joined = tree(tmp_path, {'x/1': 2}), [], []
  for _ in range(2):
    points = rng.uniform(0, 20, (2, 68, 2))
    np.savez(root / landmarks.FILE, id=['train/x/1/0.png', 'train/x/1/1.png'], landmarks=points, maker='m')
    source = clips.build(str(root), 'train', {})
    prints.append(sources.fingerprint(source.record()))
    joined.append(sources.fingerprint(sources.Concat([source, source]).record()))
  (root / landmarks.FILE).unlink()
  assert len({*prints, sources.fingerprint(clips.build(str(root), 'train', {}).record())}) == 3
  assert joined[0] != joined[1]


def test_what_is_no_tree_of_clips_is_refused_in_a_line(tmp_path):
  def said(*args):
    with pytest.raises(UserError) as e:
      clips.build(*args)
    assert '\n' not in str(e.value)
    return str(e.value)

  assert 'data.root is empty' in said('', 'train', {})
  assert 'is not a folder' in said(str(tmp_path / 'none'), 'train', {})
  (tmp_path / 'e' / 'train').mkdir(parents=True)
  assert 'no clips in' in said(str(tmp_path / 'e'), 'train', {})
  loose = tree(tmp_path / 'l', {'x': 1})
  assert "x/0.png' is in no clip of a person" in said(str(loose), 'train', {})
  fine = tree(tmp_path / 'f', {'x/1': 2})
  assert "no split 'test'" in said(str(fine), 'test', {})
  np.savez(fine / landmarks.FILE, id=['train/x/1/0.png'], landmarks=np.zeros((1, 5, 2)), maker='m')
  assert 'shapes (1,) and (1, 5, 2); expected (n,) and (n, 68, 2)' in said(str(fine), 'train', {})
  np.savez(fine / landmarks.FILE, id=['other.png'], landmarks=np.zeros((1, 68, 2)), maker='m')
  assert 'has the points of other pictures' in said(str(fine), 'train', {})
  np.savez(fine / landmarks.FILE, id='train/x/1/0.png', landmarks=np.zeros((1, 68, 2)), maker='m')
  assert 'shapes () and (1, 68, 2); expected' in said(str(fine), 'train', {})
  np.savez(fine / landmarks.FILE, id=['train/x/1/0.png'], landmarks=np.full((1, 68, 2), 'x'), maker='m')
  assert 'is not what `mimic align --landmarks 68` writes' in said(str(fine), 'train', {})
  (fine / landmarks.FILE).write_bytes(b'no')
  assert 'is not what `mimic align --landmarks 68` writes' in said(str(fine), 'train', {})
  with open(fine / landmarks.FILE, 'wb') as f:
    np.save(f, np.zeros(3))  # one array
  assert 'is not what `mimic align --landmarks 68` writes' in said(str(fine), 'train', {})


def test_points_go_along_with_crops_that_the_host_makes(tmp_path, rng):
  root = tree(tmp_path, {'x/1': 4, 'x/2': 5})
  points = rng.uniform(6, 14, (8, 68, 2)).astype(np.float32)
  names = [f'train/x/{c}/{k}.png' for c, count in ((2, 5), (1, 3)) for k in range(count)]
  np.savez(root / landmarks.FILE, id=names, landmarks=points, maker='hand')
  source = clips.build(str(root), 'train', {})
  assert source.record()['without_landmarks'] == 1
  assert source.record()['landmarks'] == 'hand'
  frames = Frames(FPS, time=False, second=False)
  seen = 0
  for batch in itertools.islice(batches(source, frames, targets=['landmarks'], image_size=40), 4):
    assert batch['landmarks'].shape == (2, 2, 1, 68, 2)
    for b, g in np.ndindex(2, 2):
      image, moved = batch['image'][b, g, 0].astype(float), batch['landmarks'][b, g, 0]
      index = batch['index'][b, g]
      if index == 3:  # of the first clip the last, of which there are no points
        assert np.isnan(moved).all()
        continue
      inside = ((moved > 4) & (moved < 36)).all(axis=-1)
      # the nearest pixel there still says where it came from: 8 grey levels for each of the picture's pixels
      x, y = np.floor(moved[inside]).astype(int).T
      there = np.stack([image[y, x, 0], image[y, x, 1]], axis=-1) / 8 + 0.5
      np.testing.assert_allclose(there, source.targets['landmarks'][index][inside], atol=0.6)
      seen += inside.sum()
  assert seen > 200
  whole = next(
    pipeline.eval_batches(
      source, batch_images=4, image_size=40, interpolation='bilinear', targets=['landmarks']
    )
  )
  expected = source.targets['landmarks'][:4] * np.array([40 / 24, 40 / 20])
  np.testing.assert_allclose(whole['landmarks'], expected, rtol=1e-5)


# ---- drawn


def test_a_drawn_clip_is_one_person_whose_expression_changes(drawn):
  again = synthetic_clips.build('', 'train', {'size': 192, 'draw_size': 16, 'draw_seed': 3})
  np.testing.assert_array_equal(drawn[40]['image'], pickle.loads(pickle.dumps(again))[40]['image'])
  labels = np.array([drawn.label(i) for i in range(192)]).reshape(6, 32)
  assert all(len(np.unique(row)) >= 3 for row in labels)
  same = [np.mean(labels[:, k:] == labels[:, : 32 - k]) for k in (1, 4, 12)]
  assert same[0] > same[1] > 0.5 > same[2]
  np.testing.assert_array_equal(drawn.targets['person'].reshape(6, 32)[:, 0], [0, 0, 0, 0, 1, 1])
  shots = [synthetic_clips._clip('train', 3, clip)[0] for clip in (0, 1, 4)]
  kept = ('skin', 'hair', 'width', 'jaw', 'glasses')
  who = [[getattr(p, name) for name in kept] for s in shots for p in (s.persons[0], s.persons[31])]
  assert who[0] == who[1] == who[2] == who[3] != who[4] == who[5]
  assert shots[0].persons[0].yaw != shots[0].persons[31].yaw
  other = synthetic_clips.build('', 'valid', {'size': 32, 'draw_size': 16, 'draw_seed': 3})
  assert not np.array_equal(other[0]['image'], drawn[0]['image'])
  with pytest.raises(UserError, match=r'data\.size is 40; synthetic_clips expected a multiple of 32'):
    synthetic_clips.build('', 'train', {'size': 40, 'draw_size': 16, 'draw_seed': 0})


def test_the_points_of_a_drawn_face_are_where_it_is_drawn(rng):
  size, marked = 240, (0, 255, 0)
  for style in ('bald', 'parted'):
    p = face.person(rng)._replace(style=style, lip=marked, glasses=False, beard=False, roll=0.2, yaw=-0.1)
    fields = rng.uniform(-0.3, 0.5, len(face.FIELDS))
    points = face.points(p, fields, size)
    assert points.shape == (68, 2)
    board = canvas.Canvas(size, np.full((2, 2, 3), 250.0))
    face.draw(board, p, fields)
    ys, xs = np.nonzero(np.abs(board.finish() - marked).sum(-1) < 150)
    lips = points[48:60]
    edges = lambda x, y: np.array([x.min(), x.max(), y.min(), y.max()])  # noqa: E731
    np.testing.assert_allclose(
      edges(xs + 0.5, ys + 0.5), edges(lips[:, 0], lips[:, 1]), atol=4
    )  # between its points the lip bulges
    inside = points[landmarks.INNER]
    assert inside[:, 0].min() > points[0, 0]
    assert inside[:, 0].max() < points[16, 0]
    assert inside[:, 1].max() < points[8, 1]  # the chin is lowest


def test_the_points_of_a_mirrored_face_are_the_mirrored_points(rng):
  p = face.person(rng)
  fields = rng.uniform(-0.5, 0.5, len(face.FIELDS))
  fields[face.FIELDS.index('sneer')] = 0  # lifts one side of the lip more
  mirrored = face.points(p._replace(yaw=-p.yaw, roll=-p.roll, x=-p.x), fields, 100)
  np.testing.assert_allclose(landmarks.mirrored(face.points(p, fields, 100), 100), mirrored, atol=1e-3)
  np.testing.assert_array_equal(landmarks.MIRROR[landmarks.MIRROR], np.arange(68))


# ---- videos


def film(path, frames, rate=25, picture=None):
  """Writes a video whose frame k is a picture, or grey of level 4 k."""
  av = pytest.importorskip('av')
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), 'w') as out:
    stream = out.add_stream('mpeg4', rate=rate)
    stream.width, stream.height, stream.pix_fmt = 32, 48, 'yuv420p'
    stream.bit_rate = 2_000_000
    for k in range(frames):
      shown = np.full((48, 32, 3), 4 * k, np.uint8) if picture is None else picture
      for packet in stream.encode(av.VideoFrame.from_ndarray(shown, format='rgb24')):
        out.mux(packet)
    for packet in stream.encode():
      out.mux(packet)


def test_videos_are_cut_at_the_rate_asked_for(tmp_path):
  film(tmp_path / 'ann' / '10.mp4', 60)
  film(tmp_path / 'ann' / '9.mp4', 50)
  source = clips.build(str(tmp_path), 'train', {'fps': 5.0})
  assert isinstance(source, sources.Source)
  assert len(source) == 10 + 12
  assert source.id(0) == 'ann/9.mp4@0.000s'
  assert source.id(12) == 'ann/10.mp4@0.400s'
  np.testing.assert_array_equal(source.group(13), np.arange(10, 22))
  np.testing.assert_array_equal(source.targets['clip'], [0] * 10 + [1] * 12)
  for i in (3, 0, 9, 21, 14):
    image = source[i]['image']
    assert image.shape == (48, 32, 3)
    # every fifth frame; its grey is 4 k
    assert image.mean() == pytest.approx(20 * (i if i < 10 else i - 10), abs=4)
  assert source.record()['count'] == 22
  batch = next(batches(pickle.loads(pickle.dumps(source)), Frames(5.0, second=False, time=False)))
  assert batch['image'].shape == (2, 2, 1, 12, 12, 3)
  (tmp_path / 'ann' / '10.mp4').unlink()
  faster = clips.build(str(tmp_path), 'train', {'fps': 110.0})  # each frame comes four times or five
  assert len({faster.id(i) for i in range(len(faster))}) == len(faster) == 220
  for i in (0, 5, 107, 219):
    assert faster[i]['image'].mean() == pytest.approx(4 * int(i * 25 / 110 + 1e-6), abs=4)


@pytest.mark.parametrize('matrix', [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
def test_videos_are_turned_as_they_say(tmp_path, rng, matrix):
  cv2 = pytest.importorskip('cv2')
  picture = np.repeat(np.repeat(rng.integers(0, 256, (3, 2), np.uint8), 16, axis=0), 16, axis=1)
  path = tmp_path / 'ann' / '1.mp4'
  film(path, 10, picture=np.repeat(picture[..., None], 3, axis=2))
  content = bytearray(path.read_bytes())
  at = content.index(b'tkhd') + 44  # the matrix that a player shows the track by
  for place, value in zip((0, 1, 3, 4), matrix):
    content[at + 4 * place : at + 4 * place + 4] = (value * 2**16).to_bytes(4, 'big', signed=True)
  path.write_bytes(content)
  (_, expected) = cv2.VideoCapture(str(path)).read()  # turns by itself
  image = clips.build(str(tmp_path), 'train', {})[0]['image']
  assert image.shape == ((32, 48, 3) if matrix[1] else (48, 32, 3))
  np.testing.assert_allclose(image.astype(int), expected, atol=12)


def test_videos_that_end_early_or_are_none_are_one_line(tmp_path):
  film(tmp_path / 'a' / 'ann' / '1.mkv', 60)
  whole = (tmp_path / 'a' / 'ann' / '1.mkv').read_bytes()
  source = clips.build(str(tmp_path / 'a'), 'train', {})
  (tmp_path / 'a' / 'ann' / '1.mkv').write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match=r'1\.mkv: ends before .* s; its header says 2\.40 s'):
    source[len(source) - 1]
  film(tmp_path / 'a' / 'ann' / '2.mp4', 60)
  (tmp_path / 'a' / 'ann' / '3.mp4').write_bytes(b'no video')
  skipping = clips.build(str(tmp_path / 'a'), 'train', {'on_bad_image': 'skip'})
  assert skipping.record()['clips'] == 2
  assert list(skipping.record()['unreadable']) == ['ann/3.mp4']
  assert skipping.id(len(skipping) - 1).startswith('ann/2.mp4@')
  (tmp_path / 'b' / 'ann').mkdir(parents=True)
  (tmp_path / 'b' / 'ann' / '1.mp4').write_bytes(b'no video')
  with pytest.raises(UserError, match=r'1\.mp4: is damaged or of an unknown kind'):
    clips.build(str(tmp_path / 'b'), 'train', {})
  with pytest.raises(UserError, match=r'none of the 1 videos can be read; one of them: .*1\.mp4'):
    clips.build(str(tmp_path / 'b'), 'train', {'on_bad_image': 'skip'})
  root = tree(tmp_path / 'c', {'x/1': 2})
  film(root / 'train' / 'x' / '2.mp4', 5)
  with pytest.raises(UserError, match=r'holds videos .* and pictures'):
    clips.build(str(root), 'train', {})


def test_without_pyav_videos_ask_for_it_by_name(tmp_path, monkeypatch):
  (tmp_path / 'ann').mkdir()
  (tmp_path / 'ann' / '1.mp4').write_bytes(b'')
  monkeypatch.setitem(sys.modules, 'av', None)
  with pytest.raises(
    UserError, match=r"videos need PyAV .*; expected it installed: pip install 'mimic-jax\[clips\]'"
  ):
    clips.build(str(tmp_path), 'train', {})

"""Swapped faces against exact geometry on drawn ones, a linear solver and points in polygons; how they come into batches."""

import itertools

import numpy as np
import pytest
import scipy.ndimage
import scipy.spatial
from PIL import Image

from mimic_jax import landmarks
from mimic_jax.clips import Frames
from mimic_jax.data import sampling
from mimic_jax.data.drawn import canvas, face
from mimic_jax.data.faces import alignment, swap
from mimic_jax.data.sets import clips, synthetic_clips
from mimic_jax.runtime.errors import UserError
from tests.data.test_clips import batches, tree

FPS, SIZE = 25 / 6, 120


def drawn(p, fields):
  board = canvas.Canvas(SIZE, np.full((2, 2, 3), 210.0))
  face.draw(board, p, fields)
  return np.rint(board.finish()).astype(np.uint8), face.points(p, fields, SIZE)


@pytest.fixture
def held(rng):
  """One person with one expression, held in two ways that a similarity takes into one another."""
  plain = {'yaw': 0.0, 'pitch': 0.0, 'style': 'bald', 'glasses': False, 'beard': False}
  p = face.person(rng)._replace(**plain, x=0.02, y=0.03, scale=0.9, roll=0.1)
  return p, p._replace(x=-0.05, y=0.0, scale=0.8, roll=-0.15), rng.uniform(-0.4, 0.6, len(face.FIELDS))


def test_a_face_in_itself_held_otherwise_is_that_face(held):
  p, q, fields = held
  (outer, outer_points), (inner, inner_points) = drawn(p, fields), drawn(q, fields)
  # its exact turn, scale and shift, from how both are held
  scale, turn = p.scale / q.scale, p.roll - q.roll
  rotation = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
  middles = [np.array([1 + r.x, 1 + r.y]) * SIZE / 2 for r in (p, q)]
  expected = np.concatenate([rotation, (middles[0] - rotation @ middles[1])[:, None]], axis=1)
  found = alignment.similarity(inner_points[landmarks.INNER], outer_points[landmarks.INNER])
  np.testing.assert_allclose(found, expected, atol=1e-3)
  picture, points = swap.swap(outer, outer_points, inner, inner_points)
  np.testing.assert_allclose(points, outer_points, atol=1e-3)
  inside = swap.mask((SIZE, SIZE), outer_points)
  away = ~scipy.ndimage.binary_dilation(inside)
  np.testing.assert_array_equal(picture[away], outer[away])
  plain, difference = (np.abs(a.astype(float) - outer)[inside].mean() for a in (inner, picture))
  assert difference < plain / 4  # resampled once more


def test_a_darker_face_takes_the_light_of_the_one_it_is_put_into(held):
  p, q, fields = held
  (outer, outer_points), (inner, inner_points) = drawn(p, fields), drawn(q, fields)
  dark = (inner * 0.5).astype(np.uint8)
  inside = swap.mask((SIZE, SIZE), outer_points)
  corrected = swap.swap(outer, outer_points, dark, inner_points)[0].astype(float)
  assert (
    abs(corrected[inside].mean() - outer[inside].mean()) < (outer[inside].mean() - dark[inside].mean()) / 10
  )
  assert np.abs(corrected - outer)[inside].mean() < np.abs(dark.astype(float) - outer)[inside].mean() / 4


def test_another_expression_comes_with_the_inner_face_and_the_outline_stays(held, rng):
  p, q, fields = held
  other = fields.copy()
  other[face.FIELDS.index('open')], fields[face.FIELDS.index('open')] = 1.0, 0.0
  (outer, outer_points), (inner, inner_points) = drawn(p, fields), drawn(q, other)
  _, points = swap.swap(outer, outer_points, inner, inner_points)
  np.testing.assert_array_equal(points[landmarks.JAW], outer_points[landmarks.JAW])
  gap = lambda s: np.linalg.norm(s[66] - s[62])  # noqa: E731  between the lips
  assert gap(points) > gap(outer_points) + 5
  assert gap(points) == pytest.approx(
    gap(inner_points) * alignment.similarity(inner_points[17:], outer_points[17:])[0, 0] / np.cos(0.25),
    rel=0.1,
  )
  missing = np.full_like(points, np.nan)
  assert swap.swap(outer, missing, inner, inner_points) is None
  assert swap.swap(outer, outer_points, inner, missing) is None
  line = np.stack([np.arange(68.0), np.arange(68.0)], axis=1).astype(np.float32)
  assert swap.swap(outer, line, inner, line) is None


def test_the_mask_is_the_hulls_of_eyes_and_brows_and_of_nose_and_mouth(rng):
  a, b = rng.uniform(10, 70, (2, 68, 2))
  got = swap.mask((80, 90), a, b)
  y, x = np.mgrid[:80, :90] + 0.5
  grid = np.stack([x.ravel(), y.ravel()], axis=1)
  inside = np.zeros(len(grid), bool)
  for points in (a, b):
    for rows in ([*range(17, 27), *range(36, 48)], [*range(27, 36), *range(48, 68)]):
      inside |= scipy.spatial.Delaunay(points[rows]).find_simplex(grid) >= 0
  np.testing.assert_array_equal(got.ravel(), inside)


# ---- in batches


def test_one_other_clip_gives_its_outline_to_positives_as_often_as_asked_for():
  source = synthetic_clips.build('', 'train', {'size': 160, 'draw_size': 16, 'draw_seed': 0})
  order = sampling.clips_of(source, Frames(FPS, swap=0.8), 7)
  plain = sampling.clips_of(source, Frames(FPS), 7)
  rows = np.stack([order(position, position % 5) for position in range(1500)])
  np.testing.assert_array_equal(rows[:40, :, :3], [plain(k, k % 5) for k in range(40)])
  others = rows[:, :, 3]
  assert (others[:, ::2] == -1).all()
  for g in (1, 3):
    assert 0.75 < (others[:, g] >= 0).mean() < 0.85
  both = (others[:, 1] >= 0) & (others[:, 3] >= 0)
  np.testing.assert_array_equal(others[both, 1], others[both, 3])
  counted = np.zeros((5, 5), int)
  for clip, other in zip(np.arange(1500)[both] % 5, others[both, 1] // 32):
    counted[clip, other] += 1
  assert (counted.diagonal() == 0).all()
  assert counted[~np.eye(5, dtype=bool)].min() > 20


def test_swapped_faces_and_their_points_are_in_the_batch_whichever_step_it_begins_with():
  source = synthetic_clips.build('', 'train', {'size': 96, 'draw_size': 48, 'draw_seed': 0})
  frames = Frames(FPS, swap=0.6)
  got = list(itertools.islice(batches(source, frames, targets=['landmarks']), 5))
  later = next(batches(source, frames, start=3, targets=['landmarks']))
  for name in ('image', 'landmarks', 'index'):
    np.testing.assert_array_equal(later[name], got[3][name])
  order = sampling.clips_of(source, frames, 5)
  seen, points = 0, source.targets['landmarks']
  for step, batch in enumerate(got):
    for b, g in np.ndindex(2, 4):
      clip, index = batch['index'][b, 0] // 32, batch['index'][b, g]
      other = order(2 * step + b, clip)[g, 3]
      image = source[index]['image']
      if other >= 0:
        seen += 1
        image, moved = swap.swap(source[other]['image'], points[other], image, points[index])
        np.testing.assert_array_equal(batch['landmarks'][b, g], moved)
        assert not np.array_equal(moved, points[index])
      else:
        np.testing.assert_array_equal(batch['landmarks'][b, g], points[index])
      np.testing.assert_array_equal(batch['image'][b, g], image)
  assert seen > 4
  with pytest.raises(UserError, match=r'data\.resident is True, and the readers swap faces'):
    batches(source, frames, resident=True)


def test_a_frame_without_a_face_stays_as_it_is_in_crops_made_here(tmp_path):
  root = tree(tmp_path, {'x/1': 3, 'x/2': 3})
  names = [f'train/x/{c}/{k}.png' for c in (1, 2) for k in range(3)]
  missing = np.full((6, 68, 2), np.nan, np.float32)
  missing[0] = np.random.default_rng(0).uniform(5, 15, (68, 2))
  np.savez(root / landmarks.FILE, id=names, landmarks=missing, maker='hand')
  source = clips.build(str(root), 'train', {})
  frames = Frames(FPS, time=False, second=False, swap=1.0)
  plain = frames._replace(swap=0.0)
  for a, b in zip(*(itertools.islice(batches(source, f, targets=['landmarks']), 2) for f in (frames, plain))):
    np.testing.assert_array_equal(a['image'], b['image'])
    np.testing.assert_array_equal(a['landmarks'], b['landmarks'])


def test_swapped_faces_are_cropped_with_their_points(tmp_path):
  drawn_clips = synthetic_clips.build('', 'train', {'size': 64, 'draw_size': 48, 'draw_seed': 2})
  root, names = tmp_path, []
  for i in (0, 1, 32, 33):
    folder = root / 'train' / 'p' / str(i // 32)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn_clips[i]['image']).save(folder / f'{i}.png')
    names.append(f'train/p/{i // 32}/{i}.png')
  points = drawn_clips.targets['landmarks'][[0, 1, 32, 33]]
  np.savez(root / landmarks.FILE, id=names, landmarks=points, maker='drawn')
  source = clips.build(str(root), 'train', {})
  frames = Frames(FPS, time=False, second=False, swap=1.0)
  whole = {'scale': (1.0, 1.0), 'ratio': (1.0, 1.0), 'image_size': 48}
  batch = next(batches(source, frames, targets=['landmarks'], **whole))
  order = sampling.clips_of(source, frames, 5)
  for b in range(2):
    index = batch['index'][b]
    other = order(b, int(index[0] // 2))[1, 3]
    image, moved = swap.swap(
      source[other]['image'], points[other], source[index[1]]['image'], points[index[1]]
    )
    np.testing.assert_array_equal(batch['image'][b, 1, 0], image)
    np.testing.assert_allclose(batch['landmarks'][b, 1, 0], moved, atol=1e-4)

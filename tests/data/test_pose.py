"""300W-LP and AFLW2000 on generated trees: angles, faces cut out, what is left out and what a user gets wrong."""

import numpy as np
import pytest
import scipy.io
from PIL import Image

from mimic_jax import data
from mimic_jax.data.sets import pose_300w_lp
from mimic_jax.runtime.errors import UserError


def write(root, folder, rng, names, **more):
  """Writes pictures of 60 × 50 with a .mat each; returns {id: (angles in degrees, points [2, 68])}."""
  held = {}
  for name in names:
    path = root / folder / f'{name}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (50, 60, 3), np.uint8)).save(path)
    angles, points = rng.uniform(-90, 90, 3), rng.uniform([[12], [12]], [[44], [36]], (2, 68))
    para = np.concatenate([np.radians(angles), rng.uniform(0, 100, 4)])[None]
    key = 'pt3d_68' if folder == 'AFLW2000' else 'pt2d'
    spatial = np.concatenate([points, rng.uniform(0, 9, (1, 68))]) if key == 'pt3d_68' else points
    scipy.io.savemat(path.with_suffix('.mat'), {'Pose_Para': para, key: spatial, **more})
    held[f'{folder}/{name}.jpg'] = angles, points
  return held


@pytest.fixture
def tree(rng, tmp_path):
  names = ['AFW/AFW_1_0', 'AFW_Flip/AFW_1_0', 'HELEN/HELEN_7_2']
  held = {
    'train': write(tmp_path, '300W_LP', rng, names),
    'test': write(tmp_path, 'AFLW2000', rng, ['image00002']),
  }
  (tmp_path / '300W_LP' / 'landmarks').mkdir()
  scipy.io.savemat(tmp_path / '300W_LP' / 'landmarks' / 'AFW_1_0_pts.mat', {'pts_2d': np.zeros((68, 2))})
  return tmp_path, held


def build(root, split, **options):
  return data.build('pose_300w_lp', str(root), split, {'threads': 2, **options})


@pytest.mark.parametrize('split', ['train', 'test'])
def test_angles_are_in_degrees_and_faces_are_cut_out_about_their_points(split, tree):
  root, held = tree
  source = build(root, split)
  assert [source.id(i) for i in range(len(source))] == sorted(held[split])
  assert source.class_names == ()
  for i in range(len(source)):
    item = source[i]
    angles, points = held[split][item['id']]
    got = [item[name] for name in ('pitch', 'yaw', 'roll')]
    np.testing.assert_allclose(got, angles, rtol=1e-5)
    assert [source.targets[name][i] for name in ('pitch', 'yaw', 'roll')] == got
    width, height = np.ptp(points[0]), np.ptp(points[1])
    assert max(width, height) <= max(item['image'].shape[:2]) <= 1.4 * max(width, height) + 2
    assert item['label'] == -1
  whole = build(root, split, align='none')
  assert whole[0]['image'].shape == (50, 60, 3)
  (said,) = source.record()['warnings']
  assert said.endswith(f'the published release {pose_300w_lp.PUBLISHED[split]}')


def test_what_is_turned_too_far_is_left_out_and_a_picture_without_angles_named(tree, rng):
  root, _ = tree
  far = root / 'AFLW2000' / 'far.jpg'
  Image.fromarray(rng.integers(0, 256, (50, 60, 3), np.uint8)).save(far)
  para = {'Pose_Para': np.radians([[0.0, 99.5, 0.0, 0, 0, 0, 0]]), 'pt3d_68': rng.uniform(5, 30, (3, 68))}
  scipy.io.savemat(far.with_suffix('.mat'), para)
  far.with_name('alone.jpg').write_bytes(far.read_bytes())
  source = build(root, 'test')
  assert len(source) == 1
  record = source.record()
  assert record['left_out'] == {'an angle beyond 99 degrees': 1}
  assert any('alone.jpg' in said and 'no .mat' in said for said in record['warnings'])


def refused(root, split='test', **options):
  with pytest.raises(UserError) as e:
    build(root, split, **options)
  assert '\n' not in str(e.value)
  return str(e.value)


def test_what_a_user_gets_wrong_is_one_line(tree, rng):
  root, _ = tree
  assert 'data.root is empty' in refused('')
  assert 'looked for a folder AFLW2000 or AFLW2000-3D' in refused(root / '300W_LP')
  assert 'expected one of train, test' in refused(root, 'valid')
  assert 'has no points of faces' in refused(root, align='five_point(arcface)')
  mat = root / 'AFLW2000' / 'image00002.mat'
  scipy.io.savemat(mat, {'pt3d_68': np.zeros((3, 68))})
  assert 'image00002.mat: has no Pose_Para' in refused(root)
  scipy.io.savemat(mat, {'Pose_Para': np.zeros((1, 7)), 'pt2d': np.zeros((2, 21))})
  assert 'has no pt3d_68 or pt2d of 68 points' in refused(root)
  for odd in ({'Pose_Para': 'text'}, {'Pose_Para': np.zeros((1, 7)), 'pt3d_68': {'a': 1}}):
    scipy.io.savemat(mat, odd)
    assert 'image00002.mat: can not be read' in refused(root)
  mat.write_bytes(b'no mat')
  assert 'image00002.mat: can not be read' in refused(root)
  mat.unlink()
  assert 'has a .mat of its name beside it' in refused(root)

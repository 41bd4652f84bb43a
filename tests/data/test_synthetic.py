"""The drawn sources: same numbers, same picture, anywhere; splits apart; labels apart from looks."""

import collections
import hashlib
import itertools
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mimic_jax.data.drawn import canvas, face, synthetic, veins
from mimic_jax.data.sets import synthetic_faces, synthetic_images, synthetic_masks, synthetic_veins
from mimic_jax.runtime.errors import UserError

MODULES = (synthetic_faces, synthetic_images, synthetic_veins, synthetic_masks)
all_of_them = pytest.mark.parametrize('module', MODULES, ids=('faces', 'images', 'veins', 'masks'))


def options(**changes):
  return {'size': 40, 'draw_size': 32, 'draw_seed': 0, 'classes': 7} | changes


def pictures(source, count):
  return np.stack([source[i]['image'] for i in range(count)])


@all_of_them
def test_example_has_the_contract_s_shape_and_types(module):
  source = module.build('', 'train', options(draw_size=48))
  example = source[3]
  assert example['image'].shape == source.image_shape == (48, 48, 3)
  assert example['image'].dtype == np.uint8
  assert example['image'].flags.writeable
  assert type(example['label']) is int
  assert 0 <= example['label'] < len(source.class_names)
  assert example['id'] == source.id(3) == f'{source.name}-train-000003'
  assert len(source) == 40
  assert len(list(source)) == 40


def test_face_classes_are_raf_db_s_in_its_order():
  expected = ('surprise', 'fear', 'disgust', 'happiness', 'sadness', 'anger', 'neutral')
  assert synthetic_faces.build('', 'test', options()).class_names == expected


def test_faces_know_how_they_are_held_and_what_they_wear(rng):
  source = synthetic_faces.build('', 'train', options(size=60, draw_seed=int(rng.integers(1000))))
  assert set(source.targets) == {'valence', 'arousal', 'yaw', 'pitch', 'roll', 'glasses', 'beard'}
  for i in (0, 17, 59):
    example, label = source[i], source.label(i)
    for name, values in source.targets.items():
      assert values.dtype == np.float32
      assert example[name] == values[i]
    who = face.person(synthetic.generator('faces', 'train', source.seed, synthetic.LOOK, i))
    assert source.targets['yaw'][i] == pytest.approx(np.degrees(who.yaw))
    assert source.targets['roll'][i] == pytest.approx(np.degrees(who.roll))
    assert (source.targets['glasses'][i], source.targets['beard'][i]) == (who.glasses, who.beard)
    if source.class_names[label] == 'happiness':
      assert source.targets['valence'][i] > 0.2
  label = np.array([source.label(i) for i in range(60)])
  mean = {name: source.targets['valence'][label == k].mean() for k, name in enumerate(source.class_names)}
  assert mean['happiness'] > 0.5
  assert max(mean['disgust'], mean['sadness'], mean['fear']) < -0.3


@all_of_them
def test_a_fresh_source_draws_the_same_pictures_in_any_order(module, rng):
  seed = int(rng.integers(2**31))
  first = module.build('', 'valid', options(draw_seed=seed))
  second = module.build('', 'valid', options(draw_seed=seed))
  ahead = [first[i] for i in range(12)]
  for i in reversed(range(12)):
    np.testing.assert_array_equal(second[i]['image'], ahead[i]['image'])
    assert second[i]['label'] == ahead[i]['label']


@all_of_them
def test_a_pickled_source_in_another_process_draws_the_same_pixels(module, tmp_path):
  source = module.build('', 'train', options(draw_seed=5))
  path = tmp_path / 'source.pkl'
  path.write_bytes(pickle.dumps(source))
  code = (
    'import pickle,sys; s=pickle.load(open(sys.argv[1],"rb")); print(*[s.content_hash(i) for i in range(10)])'
  )
  there = subprocess.run([sys.executable, '-c', code, str(path)], capture_output=True, text=True, check=True)
  assert there.stdout.split() == [source.content_hash(i) for i in range(10)]


@all_of_them
def test_content_hash_is_of_the_drawn_pixels(module):
  source = module.build('', 'train', options())
  assert source.content_hash(2) == hashlib.sha256(source[2]['image'].tobytes()).hexdigest()


@all_of_them
def test_splits_and_seeds_never_share_a_picture(module):
  seen = collections.Counter(
    module.build('', split, options(draw_seed=seed)).content_hash(i)
    for split in ('train', 'valid', 'test')
    for seed in (0, 1)
    for i in range(30)
  )
  assert len(seen) == 180


@all_of_them
def test_label_without_drawing_is_the_picture_s_and_the_record_counts_it(module, rng):
  size = int(rng.integers(25, 60))
  source = module.build('', 'train', options(size=size, draw_seed=int(rng.integers(1000)), draw_size=16))
  labels = [source.label(i) for i in range(size)]
  assert labels == [source[i]['label'] for i in range(size)]
  counts = collections.Counter(source.class_names[y] for y in labels)
  record = source.record()
  assert record['class_counts'] == {name: counts[name] for name in source.class_names}
  assert record['count'] == size
  assert json.loads(json.dumps(record)) == record


@all_of_them
def test_every_block_holds_every_class_once_in_an_order_of_its_own(module):
  source = module.build('', 'train', options(size=200))
  classes = len(source.class_names)
  blocks = [tuple(source.label(b * classes + k) for k in range(classes)) for b in range(20)]
  assert all(sorted(block) == list(range(classes)) for block in blocks)
  assert len(set(blocks)) > 10


@all_of_them
def test_any_index_can_be_drawn_whatever_the_size(module):
  small, large = (module.build('', 'train', options(size=n)) for n in (1, 10**6))
  np.testing.assert_array_equal(small[123_456]['image'], large[123_456]['image'])
  np.testing.assert_array_equal(small[np.int64(7)]['image'], small[7]['image'])
  with pytest.raises(IndexError):
    small[-1]


@all_of_them
def test_split_hash_follows_everything_that_decides_the_pictures(module):
  hashes = {module.build('', split, options()).record()['split_hash'] for split in ('train', 'valid', 'test')}
  for change in ({'size': 41}, {'draw_size': 33}, {'draw_seed': 1}):
    hashes.add(module.build('', 'train', options(**change)).record()['split_hash'])
  assert len(hashes) == 6
  assert module.build('/elsewhere', 'train', options()).record()['split_hash'] in hashes


@all_of_them
@pytest.mark.parametrize(
  ('split', 'change', 'words'),
  [
    ('trian', {}, ('split', "'trian'", "'train'")),
    ('train', {'size': 0}, ('size', '0', 'at least 1')),
    ('train', {'draw_size': 15}, ('draw_size', '15', 'at least 16')),
    ('train', {'draw_seed': -1}, ('draw_seed', '-1')),
    ('train', {'size': 2.5}, ('size', '2.5')),
  ],
)
def test_a_bad_field_is_one_line_that_names_it(module, split, change, words):
  with pytest.raises(UserError) as caught:
    module.build('', split, options(**change))
  message = str(caught.value)
  assert '\n' not in message
  assert all(word in message for word in words)


@all_of_them
def test_every_kind_differs_within_itself_and_fills_its_range(module):
  source = module.build('', 'train', options(size=300, draw_size=24))
  for label in range(len(source.class_names)):
    same = [i for i in range(60) if source.label(i) == label][:4]
    drawn = [source[i]['image'].astype(np.float64) for i in same]
    for a, b in itertools.combinations(drawn, 2):
      assert np.abs(a - b).mean() > 4.0
    assert np.mean([d.std() for d in drawn]) > 15.0


def test_the_look_of_a_face_does_not_depend_on_its_class():
  # The same look generator with every label: the wall in a corner has the same pixels, light and noise
  # included, and the generator has given the same amount of numbers.
  for index in range(12):
    drawn, after = [], set()
    for label in range(7):
      content = synthetic.generator('faces', 'train', 0, synthetic.CONTENT, index)
      look = synthetic.generator('faces', 'train', 0, synthetic.LOOK, index)
      drawn.append(synthetic_faces.paint(label, content, look, 32))
      after.add(look.random())
    assert len(after) == 1
    corners = np.stack(drawn)[:, :2, :2]
    np.testing.assert_array_equal(corners, np.broadcast_to(corners[:1], corners.shape))
    assert len({d.tobytes() for d in drawn}) == 7


def test_brightness_tells_little_of_the_expression():
  source = synthetic_faces.build('', 'train', options(size=1400, draw_size=16))
  light = np.array([source[i]['image'].mean() for i in range(1400)])
  labels = np.array([source.label(i) for i in range(1400)])
  means = np.array([light[labels == k].mean() for k in range(7)])
  assert means.std() < 0.2 * light.std()


def test_expressions_of_a_class_spread_and_reach_into_its_neighbours():
  rows = {
    k: np.stack(
      [
        synthetic_faces.expression(k, synthetic.generator('faces', 'train', 0, synthetic.CONTENT, i))
        for i in range(300)
      ]
    )
    for k in range(7)
  }
  centres = np.stack([rows[k].mean(axis=0) for k in range(7)])
  nearest = {
    k: np.argmin(((rows[k][:, None, :] - centres[None, :, :]) ** 2).sum(-1), axis=1) for k in range(7)
  }
  right = np.mean([(nearest[k] == k).mean() for k in range(7)])
  assert 0.75 < right < 0.99


def test_expressions_can_be_learned_from_pixels_but_not_perfectly():
  linear_model = pytest.importorskip('sklearn.linear_model')
  splits = {}
  for split, size in (('train', 700), ('test', 350)):
    source = synthetic_faces.build('', split, options(size=size, draw_size=24))
    pixels = pictures(source, size).astype(np.float64).mean(axis=3).reshape(size, -1)
    pixels = (pixels - pixels.mean(1, keepdims=True)) / pixels.std(1, keepdims=True)
    splits[split] = pixels, [source.label(i) for i in range(size)]
  model = linear_model.LogisticRegression(C=0.003, max_iter=200).fit(*splits['train'])
  accuracy = model.score(*splits['test'])
  print(f'logistic regression on pixels: {accuracy:.3f}')
  assert 0.25 < accuracy < 0.95


def test_a_person_takes_the_same_amount_of_random_numbers_whoever_it_is():
  after = set()
  for seed in range(5):
    looks = np.random.Generator(np.random.Philox(seed))
    plain = np.random.Generator(np.random.Philox(seed))
    face.person(looks)
    stream = plain.random(100)
    after.add(int(np.flatnonzero(stream == looks.random())[0]))
  assert len(after) == 1


def test_shapes_land_where_the_transform_puts_them():
  black = np.zeros((2, 2, 3))
  board = canvas.Canvas(20, black)
  board.place(0.5, 0.0, 0.5, np.pi / 2)  # to the right half's middle, half as large, turned by a quarter
  board.rectangle(-1.0, -0.2, 1.0, 0.2, (255, 255, 255))
  drawn = board.finish()[:, :, 0]
  # Long side upright: x from 0.5 − 0.1 to 0.5 + 0.1, y from −0.5 to 0.5, so 14..16 and 5..15 of 20 pixels.
  expected = np.zeros((20, 20))
  expected[5:15, 14:16] = 255
  assert np.abs(drawn - expected).mean() < 5
  assert drawn[7:13, 14:16].min() == 255
  assert drawn[:4].max() == drawn[:, :12].max() == 0


def test_photograph_without_noise_is_its_formula(rng):
  pixels = rng.uniform(0, 255, (6, 6, 3)).astype(np.float32)
  out = canvas.photograph(pixels, light=0.9, slope=(0.1, -0.2), contrast=0.8, grey=False, noise=0.0, rng=rng)
  for row, column, channel in itertools.product(range(6), range(6), range(3)):
    x, y = -1 + 2 * column / 5, -1 + 2 * row / 5
    value = ((float(pixels[row, column, channel]) - 128) * 0.8 + 128) * (0.9 + 0.1 * x - 0.2 * y)
    assert abs(int(out[row, column, channel]) - min(max(value, 0), 255)) <= 0.51


def test_veins_are_a_person_s_in_every_split_and_other_persons_have_others():
  """The nearest picture, with light and noise filtered out, is of the same person; of another seed's persons by chance alone."""

  def shown(split, seed):
    source = synthetic_veins.build('', split, options(size=80, classes=8, draw_seed=seed))
    grey = [Image.fromarray(source[i]['image']).convert('L') for i in range(80)]
    fine, coarse = (
      np.stack([np.asarray(x.filter(ImageFilter.GaussianBlur(r)), float) for x in grey]) for r in (1.5, 5)
    )
    lines = (fine - coarse).reshape(80, -1)
    labels = np.array([source.label(i) for i in range(80)])
    return lines / np.linalg.norm(lines, axis=1, keepdims=True), labels

  known, persons = shown('train', 0)
  right = [
    np.mean(persons[(lines @ known.T).argmax(axis=1)] == labels)
    for lines, labels in (shown('test', 0), shown('test', 1))
  ]
  assert right[0] > 0.8
  assert right[1] < 0.4  # 1 in 8


def test_veins_of_a_person_are_drawn_from_the_seed_and_the_person_alone():
  one, again, other = (synthetic_veins.pattern(seed, person) for seed, person in ((3, 5), (3, 5), (3, 6)))
  for a, b in zip(one, again, strict=True):
    np.testing.assert_array_equal(a.points, b.points)
  assert len(one) != len(other) or any(len(a.points) != len(b.points) for a, b in zip(one, other))
  with pytest.raises(UserError, match=r'data\.classes is 1; synthetic_veins expected at least 2'):
    synthetic_veins.build('', 'train', options(classes=1))


def test_a_bend_moves_no_point_far_and_neighbours_alike(rng):
  points = rng.uniform(-1, 1, 200) + 1j * rng.uniform(-1, 1, 200)
  for _ in range(20):
    moved = veins.bend(rng, 0.06)
    by = moved(points) - points
    assert np.abs(by).max() < 6 * 0.06
    assert np.abs(moved(points + 0.01) - points - 0.01 - by).max() < 0.02
    assert np.abs(by).max() > 0.005


def test_masks_are_binary_and_hide_a_part_of_every_kind():
  source = synthetic_masks.build('', 'train', options(size=80, draw_size=64))
  drawn = pictures(source, 80)
  assert set(np.unique(drawn)) == {0, 255}
  assert (drawn == drawn[:, :, :, :1]).all()
  hidden = (drawn[:, :, :, 0] == 0).mean(axis=(1, 2))
  labels = np.array([source.label(i) for i in range(80)])
  for kind in range(len(source.class_names)):
    share = hidden[labels == kind]
    assert share.min() >= 0.1
    assert share.max() < 0.85
    assert share.std() > 0.03

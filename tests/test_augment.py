"""Crops against torchvision's rule written as a loop, resampling against PIL, and host against device."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from mimic_jax import augment
from mimic_jax.runtime.errors import UserError

SCALE, RATIO = (0.67, 1.0), (3 / 4, 4 / 3)
PIL_KERNELS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}


def torchvision_box(u, height, width, scale, ratio):
  """torchvision's get_params for one picture in float64; also whether rounding could have gone the other way."""
  unsure = False
  for share, aspect, top, left in u:
    area = height * width * (scale[0] + share * (scale[1] - scale[0]))
    r = math.exp(math.log(ratio[0]) + aspect * (math.log(ratio[1]) - math.log(ratio[0])))
    sides = math.sqrt(area / r), math.sqrt(area * r)
    h, w = (round(s) for s in sides)
    unsure |= any(abs(s % 1 - 0.5) < 1e-3 for s in sides)
    if 0 < w <= width and 0 < h <= height:
      places = top * (height - h + 1), left * (width - w + 1)
      unsure |= any(min(p % 1, 1 - p % 1) < 1e-4 for p in places)
      return (int(places[0]), int(places[1]), h, w), unsure
  if width / height < ratio[0]:
    h, w = round(width / ratio[0]), width
  elif width / height > ratio[1]:
    h, w = height, round(height * ratio[1])
  else:
    h, w = height, width
  return ((height - h) // 2, (width - w) // 2, h, w), unsure


def pil_crop(image, box, size, interpolation):
  """float64 [size, size, C] of one picture [H, W, C]: uint8 through PIL's 8-bit path, float through its mode F."""
  top, left, h, w = (int(v) for v in box)
  planes = []
  for c in range(image.shape[-1]):
    plane = Image.fromarray(image[..., c]).crop((left, top, left + w, top + h))
    planes.append(np.asarray(plane.resize((size, size), PIL_KERNELS[interpolation]), np.float64))
  return np.stack(planes, axis=-1)


def random_boxes(rng, n, height, width):
  h, w = rng.integers(1, height + 1, n), rng.integers(1, width + 1, n)
  return np.stack([rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w], axis=-1)


def same_within_errors(a, b, sigmas=5.0):
  """Means of two samples [n, ...] agree within `sigmas` standard errors."""
  error = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b)) + 1e-9
  np.testing.assert_array_less(np.abs(a.mean(0) - b.mean(0)), sigmas * error)


@pytest.mark.parametrize('xp', [np, jnp])
@pytest.mark.parametrize(
  ('height', 'width', 'scale', 'ratio'),
  [
    (48, 48, SCALE, RATIO),
    (100, 100, (0.2, 1.0), RATIO),
    (375, 500, (0.08, 1.0), RATIO),
    (30, 90, (0.67, 1.0), RATIO),  # often nothing fits
    (90, 30, (0.9, 1.0), (0.5, 1.5)),
    (7, 5, (0.001, 0.3), RATIO),  # sides that round to 0
  ],
)
def test_boxes_follow_torchvisions_rule(rng, xp, height, width, scale, ratio):
  u = rng.random((300, 10, 4), dtype=np.float32)
  boxes = augment.crop_boxes(xp, u, height, width, scale, ratio)
  assert boxes.shape == (300, 4)
  assert boxes.dtype == np.int32
  unsure_ones = 0
  for got, numbers in zip(np.asarray(boxes), u):
    expected, unsure = torchvision_box(numbers.astype(np.float64), height, width, scale, ratio)
    unsure_ones += unsure
    assert unsure or tuple(got) == expected
  assert unsure_ones < 30


def test_boxes_of_pictures_of_different_sizes(rng):
  u = rng.random((50, 2, 10, 4), dtype=np.float32)
  heights, widths = rng.integers(20, 200, (2, 50, 1))
  boxes = augment.crop_boxes(np, u, heights, widths, SCALE, RATIO)
  for i in range(50):
    one = augment.crop_boxes(np, u[i], int(heights[i, 0]), int(widths[i, 0]), SCALE, RATIO)
    np.testing.assert_array_equal(boxes[i], one)


@pytest.mark.parametrize('xp', [np, jnp])
def test_boxes_stay_inside_even_for_the_largest_uniform_numbers(xp):
  u = np.full((4, 10, 4), 1 - 1e-12)  # rounds to 1 in float32
  u[1::2, :, 0] = 0.0
  boxes = np.asarray(augment.crop_boxes(xp, u, 224, 200, SCALE, RATIO))
  assert (boxes[:, :2] >= 0).all()
  assert (boxes[:, 0] + boxes[:, 2] <= 224).all()
  assert (boxes[:, 1] + boxes[:, 3] <= 200).all()


@pytest.mark.parametrize(
  ('height', 'width', 'expected'),
  [(10, 100, (0, 43, 10, 13)), (100, 10, (43, 0, 13, 10)), (100, 101, (0, 0, 100, 101))],
)
def test_boxes_fall_back_to_the_clamped_centre(rng, height, width, expected):
  scale = (0.9, 1.0) if height != 100 or width != 101 else (2.0, 3.0)  # nothing can fit
  boxes = augment.crop_boxes(np, rng.random((20, 10, 4)), height, width, scale, RATIO)
  np.testing.assert_array_equal(boxes, np.tile(expected, (20, 1)))


def test_boxes_have_torchvisions_distribution(rng):
  n, height, width = 4000, 60, 100
  got = augment.crop_boxes(np, rng.random((n, 10, 4)), height, width, SCALE, RATIO).astype(np.float64)
  expected = np.array([torchvision_box(u, height, width, SCALE, RATIO)[0] for u in rng.random((n, 10, 4))])
  same_within_errors(got, expected)
  same_within_errors(np.square(got), np.square(expected))
  fallbacks = (got == (0, 10, 60, 80)).all(axis=1).mean()
  assert 0.3 < fallbacks < 0.95  # both ways to a box were compared


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize(('height', 'width', 'size'), [(48, 48, 48), (33, 71, 16), (20, 24, 56)])
def test_resample_agrees_with_pil(rng, interpolation, height, width, size):
  images = rng.integers(0, 256, (6, height, width, 3), dtype=np.uint8)
  boxes = random_boxes(rng, 6, height, width)
  boxes[0] = (0, 0, height, width)
  boxes[1] = (height - 1, width - 1, 1, 1)
  got = np.asarray(augment.resample(jnp.asarray(images), jnp.asarray(boxes), size, interpolation))
  assert got.dtype == np.float32
  assert got.shape == (6, size, size, 3)
  for image, box, mine in zip(images, boxes, got):
    exact = pil_crop(image.astype(np.float32), box, size, interpolation)
    np.testing.assert_allclose(mine, exact, atol=5e-3)
    eight_bit = pil_crop(image, box, size, interpolation)
    # PIL rounds and clips to 8 bits after each direction; clipping matters for bicubic's overshoot only.
    if interpolation == 'bilinear':
      assert np.abs(mine - eight_bit).max() < 1.5
    else:
      assert np.median(np.abs(np.clip(mine, 0, 255) - eight_bit)) < 0.75


def test_resample_agrees_with_8_bit_pil_on_smooth_pictures_in_bicubic(rng):
  phase = rng.random((4, 3)) * 6
  grid = np.add.outer(np.linspace(0, 4, 50), np.linspace(0, 3, 40))
  images = (127 + 100 * np.sin(grid[None, :, :, None] + phase[:, None, None, :])).astype(np.uint8)
  boxes = random_boxes(rng, 4, 50, 40)
  got = np.asarray(augment.resample(jnp.asarray(images), jnp.asarray(boxes), 32, 'bicubic'))
  for image, box, mine in zip(images, boxes, got):
    assert np.abs(mine - pil_crop(image, box, 32, 'bicubic')).max() < 1.5


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_whole_box_of_the_same_size_is_the_picture_itself(rng, interpolation):
  images = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
  boxes = jnp.tile(jnp.array([[0, 0, 32, 32]]), (3, 1))
  np.testing.assert_array_equal(augment.resample(jnp.asarray(images), boxes, 32, interpolation), images)
  np.testing.assert_array_equal(augment.resize(jnp.asarray(images), 32, interpolation), images)


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('size', [20, 30, 64])
def test_resize_agrees_with_pil(rng, interpolation, size):
  images = rng.random((3, 30, 47, 3), dtype=np.float32) * 255
  got = np.asarray(augment.resize(jnp.asarray(images), size, interpolation))
  for image, mine in zip(images, got):
    np.testing.assert_allclose(mine, pil_crop(image, (0, 0, 30, 47), size, interpolation), atol=5e-3)


def test_unknown_interpolation_names_the_nearest():
  with pytest.raises(UserError, match=r"augment.interpolation is 'bicubik'.*'bicubic'"):
    augment.resize(jnp.zeros((1, 4, 4, 3)), 8, 'bicubik')


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_device_crops_are_the_hosts_for_the_same_uniform_numbers(rng, interpolation):
  images = rng.random((16, 40, 52, 3), dtype=np.float32) * 255
  key = jax.random.key(rng.integers(2**31))
  crop = jax.jit(lambda k, x: augment.random_resized_crop(k, x, 2, 36, SCALE, RATIO, interpolation))
  device = np.asarray(crop(key, images))
  assert device.shape == (16, 2, 36, 36, 3)
  u = np.asarray(jax.random.uniform(key, (16, 2, augment.ATTEMPTS, 4)))
  boxes = augment.crop_boxes(np, u, 40, 52, SCALE, RATIO)
  other_rounding = 0
  for i, v in np.ndindex(16, 2):
    host = pil_crop(images[i], boxes[i, v], 36, interpolation)
    other_rounding += np.abs(device[i, v] - host).max() > 5e-3
  assert other_rounding <= 1  # exp and sqrt may differ in the last bit and a side round the other way


def test_host_and_device_paths_have_the_same_distribution(rng):
  # A corner-to-corner ramp: each crop's pixels tell where it was cut and how large it was.
  ramp = np.add.outer(np.arange(40) * 2.0, np.arange(52) * 3.0)[..., None].astype(np.float32)
  n = 1500
  device = augment.random_resized_crop(
    jax.random.key(rng.integers(2**31)),
    jnp.tile(ramp[None], (n // 2, 1, 1, 1)),
    2,
    6,
    SCALE,
    RATIO,
    'bilinear',
  )
  device = np.asarray(device, np.float64).reshape(n, -1)
  boxes = augment.crop_boxes(np, rng.random((n, 10, 4)), 40, 52, SCALE, RATIO)
  host = np.stack([pil_crop(ramp, box, 6, 'bilinear').reshape(-1) for box in boxes])
  same_within_errors(device, host)
  same_within_errors(np.square(device - 100), np.square(host - 100))


def test_views_differ_and_the_key_decides(rng):
  images = jnp.asarray(rng.integers(0, 256, (8, 24, 24, 3), dtype=np.uint8))

  def crop(seed):
    return np.asarray(
      augment.random_resized_crop(jax.random.key(seed), images, 2, 24, (0.2, 1.0), RATIO, 'bilinear')
    )

  np.testing.assert_array_equal(crop(3), crop(3))
  assert (crop(3)[:, 0] != crop(3)[:, 1]).any(axis=(1, 2, 3)).sum() >= 7
  assert (crop(3) != crop(4)).any(axis=(1, 2, 3, 4)).sum() >= 7


def test_crops_and_flips_do_not_depend_on_sharding(rng):
  images = rng.integers(0, 256, (16, 24, 24, 3), dtype=np.uint8)
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  sharded = jax.device_put(images, NamedSharding(mesh, PartitionSpec('data')))

  @jax.jit
  def run(key, x):
    x = augment.random_resized_crop(key, x, 2, 16, SCALE, RATIO, 'bicubic')
    return augment.random_flip(key, x, 0.5)

  key = jax.random.key(rng.integers(2**31))
  np.testing.assert_allclose(run(key, sharded), run(key, images), atol=1e-3)


@pytest.mark.parametrize(('probability', 'low', 'high'), [(0.0, 0, 0), (0.5, 300, 500), (1.0, 800, 800)])
def test_flip_mirrors_each_view_with_its_probability(rng, probability, low, high):
  x = rng.random((400, 2, 3, 5, 1), dtype=np.float32)
  got = np.asarray(augment.random_flip(jax.random.key(rng.integers(2**31)), jnp.asarray(x), probability))
  kept = (got == x).all(axis=(2, 3, 4))
  mirrored = (got == x[:, :, :, ::-1]).all(axis=(2, 3, 4))
  assert (kept ^ mirrored).all()
  assert low <= mirrored.sum() <= high
  if probability == 0.5:
    assert 100 < (mirrored[:, 0] ^ mirrored[:, 1]).sum() < 300  # the views of an image flip independently


def test_normalise_takes_mean_and_deviation_per_channel(rng):
  x = rng.integers(0, 256, (2, 2, 4, 4, 3), dtype=np.uint8)
  mean, std = rng.random(3), rng.random(3) + 0.1
  got = augment.normalise(jnp.asarray(x), mean, std)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, (x / 255.0 - mean) / std, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('cropped', [False, True])
def test_training_views_crop_only_what_the_host_has_not(rng, cropped):
  shape = (4, 2, 16, 16, 3) if cropped else (4, 20, 24, 3)
  images = rng.integers(0, 256, shape, dtype=np.uint8)
  mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
  got = augment.training_views(
    jax.random.key(0),
    jnp.asarray(images),
    views=2,
    size=16,
    scale=SCALE,
    ratio=RATIO,
    interpolation='bilinear',
    flip=0.0,
    mean=mean,
    std=std,
  )
  assert got.shape == (4, 2, 16, 16, 3)
  if cropped:
    np.testing.assert_array_equal(augment.to_uint8(got, mean, std), images)


def test_evaluation_view_is_a_plain_resize(rng):
  images = rng.integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
  got = augment.evaluation_view(jnp.asarray(images), 12, 'bilinear', (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
  for image, mine in zip(images, got):
    expected = pil_crop(image.astype(np.float32), (0, 0, 20, 30), 12, 'bilinear')
    np.testing.assert_allclose(mine, (expected / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4], atol=1e-3)


def test_erasing_puts_noise_into_boxes_of_timms_sizes(rng):
  x = jnp.full((300, 2, 40, 30, 3), 7.0)
  got = np.asarray(augment.random_erase(jax.random.key(rng.integers(2**31)), x, 0.25))
  changed = (got != 7.0).any(axis=-1)  # [300, 2, 40, 30]
  erased = changed.any(axis=(2, 3))
  assert abs(erased.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 600)
  assert (erased[:, 0] ^ erased[:, 1]).sum() > 0
  shares, places = [], []
  for box in changed[erased]:
    rows, columns = np.flatnonzero(box.any(axis=1)), np.flatnonzero(box.any(axis=0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert box.sum() == height * width  # one box, all of it
    shares.append(height * width / 1200)
    places += [rows[0] / max(40 - height, 1), columns[0] / max(30 - width, 1)]
    # timm: height and width are each rounded, their ratio before that is .3 to 1 / .3
    assert (height + 0.5) / (width - 0.5) > 0.3
    assert (height - 0.5) / (width + 0.5) < 1 / 0.3
  assert 0.01 < min(shares) < 0.06
  assert 0.25 < max(shares) < 0.36
  assert abs(np.mean(shares) - (0.02 + 1 / 3) / 2) < 0.04
  assert abs(np.mean(places) - 0.5) < 0.1
  noise = got[changed]
  assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
  assert abs(noise.std() - 1) < 5 / np.sqrt(noise.size)


@pytest.mark.parametrize('cropped', [False, True])
def test_strong_augmentation_of_views_leaves_crops_and_flips_as_they_were(rng, cropped):
  shape = (64, 2, 12, 12, 3) if cropped else (64, 20, 18, 3)
  images = jnp.asarray(rng.integers(0, 256, shape, dtype=np.uint8))
  mean, std, key = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), jax.random.key(rng.integers(2**31))
  usual = {'views': 2, 'size': 12, 'scale': SCALE, 'ratio': RATIO, 'interpolation': 'bicubic', 'flip': 0.5, 'mean': mean, 'std': std}  # fmt: skip

  def views(**strong):
    return np.asarray(jax.jit(lambda key, x: augment.training_views(key, x, **usual, **strong))(key, images))

  off, rand, erased = views(), views(rand_ops=2), views(erasing=0.5)
  np.testing.assert_array_equal(off, views(rand_ops=0, erasing=0.0))
  levels = rand * np.float32(std) * 255 + np.float32(mean) * 255
  np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
  plain, after = (augment.to_uint8(x, mean, std) for x in (off, rand))
  same = (plain == after).all(axis=(2, 3, 4))
  assert 0.1 < same.mean() < 0.5  # a quarter gets no operation, some one that changes nothing
  outside = (erased == off).mean(axis=(2, 3, 4))
  assert (outside > 0.6).all()
  assert 0.3 < (outside == 1).mean() < 0.7

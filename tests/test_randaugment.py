"""RandAugment: each operation against Pillow, what is drawn against the ranges of timm's rand-m9-mstd0.5-inc1, and both together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps

from mimic_jax import randaugment
from mimic_jax.runtime import sharding

FILL = (124, 116, 104)
KERNELS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
APPLY = jax.jit(randaugment.apply, static_argnames='interpolation')


def pillow(name, image, level, other_way, interpolation):
  """One operation as timm's auto_augment.py has it: `level` is its magnitude over 10."""
  signed = -level if other_way else level
  size, how = image.width, {'resample': KERNELS[interpolation], 'fillcolor': FILL}

  def affine(*matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, **how)

  operations = {
    'auto_contrast': lambda: ImageOps.autocontrast(image),
    'equalise': lambda: ImageOps.equalize(image),
    'invert': lambda: ImageOps.invert(image),
    # of no bits nothing is left, which Pillow refuses since 13
    'posterise': lambda: ImageOps.posterize(image, 4 - int(level * 4)) if level < 1 else image.point([0] * 768),
    'solarise': lambda: ImageOps.solarize(image, 256 - int(level * 256)),
    'solarise_add': lambda: image.point([min(255, i + int(level * 110)) if i < 128 else i for i in range(256)] * 3),
    'saturation': lambda: ImageEnhance.Color(image).enhance(max(0.1, 1 + 0.9 * signed)),
    'contrast': lambda: ImageEnhance.Contrast(image).enhance(max(0.1, 1 + 0.9 * signed)),
    'brightness': lambda: ImageEnhance.Brightness(image).enhance(max(0.1, 1 + 0.9 * signed)),
    'sharpness': lambda: ImageEnhance.Sharpness(image).enhance(max(0.1, 1 + 0.9 * signed)),
    'rotate': lambda: image.rotate(30 * signed, **how),
    'shear_x': lambda: affine(1, 0.3 * signed, 0, 0, 1, 0),
    'shear_y': lambda: affine(1, 0, 0, 0.3 * signed, 1, 0),
    'translate_x': lambda: affine(1, 0, 0.45 * signed * size, 0, 1, 0),
    'translate_y': lambda: affine(1, 0, 0, 0, 1, 0.45 * signed * size),
  }  # fmt: skip
  return operations[name]()


def picture(rng, size=31):
  """Returns uint8 [size, size, 3]: smooth or noise, of all grey levels or few."""
  least = rng.integers(0, 120)
  small = rng.integers(least, rng.integers(least + 1, 257), (rng.choice([4, size]),) * 2 + (3,), np.uint8)
  return np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))


@pytest.mark.parametrize('interpolation', KERNELS)
@pytest.mark.parametrize('name', randaugment.OPERATIONS)
def test_an_operation_is_pillows_to_a_grey_level(name, interpolation, rng):
  number = jnp.asarray(randaugment.OPERATIONS.index(name))
  for _ in range(4):
    x, level, other_way = picture(rng), float(np.float32(rng.random())), bool(rng.integers(2))
    got = APPLY(jnp.asarray(x, jnp.float32), number, level, other_way, interpolation=interpolation, fill=jnp.asarray(FILL, jnp.float32))  # fmt: skip
    want = np.asarray(pillow(name, Image.fromarray(x), level, other_way, interpolation), np.float32)
    apart = np.abs(np.asarray(got) - want).max(axis=-1)
    assert (apart > 1).mean() <= 0.004  # a pixel on the very edge may be inside or outside by rounding
    assert (apart > 0).mean() < 0.5  # some that are whole but for rounding, where Pillow loses a level


def test_no_operation_and_pictures_of_one_tone_stay(rng):
  fill = jnp.zeros(3)
  x = jnp.asarray(picture(rng), jnp.float32)
  same = APPLY(x, jnp.asarray(randaugment.NONE), 0.9, True, interpolation='bicubic', fill=fill)
  np.testing.assert_array_equal(same, x)
  plain = jnp.full((31, 31, 3), 77.0)
  for name in ('auto_contrast', 'equalise', 'contrast', 'sharpness', 'saturation'):
    got = APPLY(plain, jnp.asarray(randaugment.OPERATIONS.index(name)), 0.9, True, interpolation='bicubic', fill=fill)  # fmt: skip
    np.testing.assert_array_equal(got, plain)


def test_operations_are_drawn_evenly_and_left_out_half_of_the_time(rng):
  n = 60_000
  key = jax.random.key(int(rng.integers(2**31)))
  operation, level, other_way = (np.asarray(v) for v in randaugment.draw(key, (n, 1), 9.0, 0.5))
  share = np.bincount(operation.ravel(), minlength=16) / n
  want = np.array([1 / 30] * 15 + [1 / 2])
  assert (np.abs(share - want) < 5 * np.sqrt(want * (1 - want) / n)).all()
  # of N(9, .5) cut at 10, the share beyond two deviations lies at the bound
  assert abs((level == 1.0).mean() - 0.02275) < 5 * np.sqrt(0.02275 / n)
  assert abs(np.median(level) - 0.9) < 5 * 1.25 * 0.05 / np.sqrt(n)
  assert abs(np.quantile(level, 0.1587) - 0.85) < 0.002
  assert abs(other_way.mean() - 0.5) < 5 * 0.5 / np.sqrt(n)
  applied = operation.ravel() < randaugment.NONE
  assert abs(np.corrcoef(applied, level.ravel())[0, 1]) < 5 / np.sqrt(n)
  np.testing.assert_array_equal(randaugment.draw(key, (n, 1), 3.0, 0.0)[1], np.float32(0.3))


def test_two_operations_come_one_after_the_other_each_picture_its_own(rng):
  x = np.stack([[picture(rng) for _ in range(2)] for _ in range(12)])
  key = jax.random.key(int(rng.integers(2**31)))
  options = {'count': 2, 'magnitude': 9.0, 'std': 0.5, 'interpolation': 'bilinear', 'fill': FILL}
  got = jax.jit(lambda key, x: randaugment.random_augment(key, x, **options))(key, jnp.asarray(x))
  wanted = x.copy()
  for one in jax.random.split(key, 2):
    drawn = [np.asarray(v) for v in randaugment.draw(one, (12, 2), 9.0, 0.5)]
    for b, v in np.ndindex(12, 2):
      operation, level, other_way = (a[b, v] for a in drawn)
      if operation < randaugment.NONE:
        image = Image.fromarray(wanted[b, v])
        name = randaugment.OPERATIONS[operation]
        wanted[b, v] = np.asarray(pillow(name, image, float(level), other_way, 'bilinear'))
  apart = np.abs(np.asarray(got) - wanted)
  assert np.median(apart) == 0
  assert (
    apart > 3
  ).mean() < 0.01  # a level more or less may become many: solarised at a threshold, equalised


def test_what_a_picture_gets_does_not_depend_on_the_devices_and_nothing_travels(rng):
  mesh = sharding.make_mesh()
  placed = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
  options = {'count': 1, 'magnitude': 9.0, 'std': 0.5, 'interpolation': 'bilinear', 'fill': FILL}
  whole = jax.jit(lambda key, x: randaugment.random_augment(key, x, **options))
  shared = jax.jit(whole, in_shardings=(None, placed), out_shardings=placed)
  x = jnp.asarray(rng.integers(0, 256, (mesh.size, 1, 16, 16, 3)), jnp.float32)
  np.testing.assert_array_equal(whole(jax.random.key(3), x), shared(jax.random.key(3), x))
  program = shared.lower(jax.random.key(3), x).compile().as_text()
  assert not any(
    f' {word}(' in program for word in ('all-gather', 'all-to-all', 'all-reduce', 'collective-permute')
  )

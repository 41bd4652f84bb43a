"""Parts of faces against loops over pixels and PIL: what is covered, what is cut out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mimic_jax import face_parts, landmarks

S = 48


@pytest.fixture
def faces(rng):
  """Returns pictures float32 [5, S, S, 3] and points of them [5, 68, 2]; the last has none."""
  points = rng.uniform(8, 40, (5, 68, 2)).astype(np.float32)
  points[4] = np.nan
  return rng.integers(0, 256, (5, S, S, 3)).astype(np.float32), points


def test_the_ellipse_about_a_part_gets_the_mean_colour_and_nothing_else_does(faces):
  x, points = faces
  part = np.array([0, 1, 2, 1, 2])
  got = np.asarray(face_parts.cover(jnp.asarray(x), jnp.asarray(points), jnp.asarray(part)))
  parts = (range(48, 68), range(36, 42), range(42, 48))
  for k in range(4):
    p = points[k, parts[part[k]]].astype(np.float64)
    (left, top), (right, bottom) = p.min(0), p.max(0)
    margin, mean = 10 / 196 * S, x[k].mean(axis=(0, 1))
    for i in range(S):
      for j in range(S):
        r = ((j + 0.5 - (left + right) / 2) / ((right - left) / 2 + margin)) ** 2
        r += ((i + 0.5 - (top + bottom) / 2) / ((bottom - top) / 2 + margin)) ** 2
        if abs(r - 1) > 1e-4:
          np.testing.assert_allclose(got[k, i, j], mean if r < 1 else x[k, i, j], atol=1e-3)
  np.testing.assert_array_equal(got[4], x[4])


def test_one_of_the_three_is_covered_in_as_many_pictures_as_asked_for(faces):
  x, points = (np.tile(v[:1], (300, *(1,) * (v.ndim - 1))) for v in faces)
  got = np.asarray(face_parts.random_cover(jax.random.key(3), x, points, 0.8))
  each = [np.asarray(face_parts.cover(x[:1], points[:1], np.array([k])))[0] for k in range(3)]
  counts = [sum(np.array_equal(g, e) for g in got) for e in (*each, x[0])]
  assert sum(counts) == 300
  assert 35 < counts[3] < 90
  assert min(counts[:3]) > 45


@pytest.mark.parametrize('part', [landmarks.EYES, landmarks.MOUTH], ids=['eyes', 'mouth'])
def test_a_part_is_cut_out_padded_to_a_square_and_resized_as_pil_does_it(faces, part):
  x, points = faces
  points[0] += 20  # beyond the picture's edge
  got = np.asarray(face_parts.cut(jnp.asarray(x), jnp.asarray(points), part, 16))
  for k in range(5):
    p = points[k, part]
    left, top = (
      np.clip(np.floor(p.min(0)), 0, S - 1) if k < 4 else (0, 0 if part == landmarks.EYES else S // 2)
    )
    right, bottom = (
      np.minimum(np.ceil(p.max(0)), S) if k < 4 else (S, S // 2 if part == landmarks.EYES else S)
    )
    left, top, right, bottom = (int(v) for v in (left, top, right, bottom))
    side = max(right - left, bottom - top)
    square = np.zeros((side, side, 3), np.float32)
    dx, dy = (side - (right - left)) // 2, (side - (bottom - top)) // 2
    square[dy : dy + bottom - top, dx : dx + right - left] = x[k, top:bottom, left:right]
    channels = [
      np.asarray(Image.fromarray(square[..., c], 'F').resize((16, 16), Image.Resampling.BILINEAR))
      for c in range(3)
    ]
    np.testing.assert_allclose(got[k], np.stack(channels, axis=-1), atol=0.02)

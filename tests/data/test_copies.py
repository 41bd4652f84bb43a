"""Copies of training pictures: each kind is told, each change on purpose is seen through, and different pictures are no copies."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import fft

from mimic_jax.data import copies
from mimic_jax.data.sets import folder


def drawn(rng, count, shared=0.0, side=64):
  """Returns random pictures whose amplitudes fall as in photos, uint8 [count, side, side, 3], of which `shared` is the same in all."""
  frequency = np.hypot(*np.mgrid[:side, :side])[..., None]
  waves = rng.normal(size=(count + 1, side, side, 3)) / np.maximum(frequency, 1)
  waves = np.sqrt(1 - shared) * waves[1:] + np.sqrt(shared) * waves[:1]
  waves[:, 0, 0] = 0
  pictures = fft.idctn(waves, axes=(1, 2), norm='ortho')
  return np.clip(128 + 45 * pictures / pictures.std(), 0, 255).astype(np.uint8)


def png(picture, level=6):
  out = io.BytesIO()
  Image.fromarray(np.asarray(picture)).save(out, 'PNG', compress_level=level)
  return out.getvalue()


def written(root, **splits):
  """Writes the files of each split in the order given and returns the splits as sources."""
  for split, files in splits.items():
    for k, content in enumerate(files):
      path = root / split / 'x' / f'{k:04d}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(content)
  return [folder.build(str(root), split, {}) for split in splits]


def test_coefficients_are_those_of_a_cosine_transform(rng):
  picture = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
  grey = np.asarray(picture.convert('L').resize((16, 16), Image.Resampling.BILINEAR), np.float64)
  whole = fft.dctn(grey, norm='ortho')
  want = np.array([whole[u, v] for u in range(16) for v in range(16) if 0 < u + v <= 14])
  got = copies.coefficients_of(picture)
  np.testing.assert_allclose(got, want / np.linalg.norm(want), atol=1e-6)
  assert not copies.coefficients_of(Image.new('L', (9, 9), 200)).round(6).any()


def test_each_kind_is_counted_once_with_what_it_is_a_copy_of(rng, tmp_path):
  train, others = drawn(rng, 40), drawn(rng, 30)
  turned = Image.fromarray(train[4]).rotate(4, Image.Resampling.BICUBIC)
  copied = [
    png(train[0]),
    png(train[1], level=0),  # other bytes, the same pixels
    png(train[2][:, ::-1]),
    png(Image.fromarray(train[3]).resize((30, 30))),
    png(turned),
    png(train[5] // 2 + 60),
    b'no picture',
  ]
  files = [*copied, *map(png, others)]
  ours, known = written(tmp_path, valid=files, train=[b'no picture', *map(png, train)])
  found = copies.Known(known).find(ours)
  assert found.kind.tolist() == [1, 2, 3, 3, 3, 3, 1] + [0] * 30
  assert found.match[:7].tolist() == [1, 2, 3, 4, 5, 6, 0]
  assert found.mirrored[:7].tolist() == [False, False, True, False, False, False, False]
  figures = found.figures()
  assert (figures['duplicates'], figures['same_pixels'], figures['near_copies']) == (2, 1, 4)
  assert (figures['mirrored'], figures['count'], figures['training_pictures']) == (1, 37, 41)


@pytest.mark.parametrize('change', copies.CHANGES)
def test_a_change_on_purpose_is_seen_through(rng, tmp_path, change):
  ours = drawn(rng, 40)
  changed = [copies.CHANGES[change](Image.fromarray(p)) for p in ours[10:30]]
  valid, train = written(tmp_path, valid=map(png, ours), train=map(png, [*changed, *drawn(rng, 40)]))
  found = copies.Known(train).find(valid)
  assert found.kind.tolist() == [0] * 10 + [3] * 20 + [0] * 10
  assert found.match[10:30].tolist() == list(range(20))
  assert found.mirrored[10:30].tolist() == [change == 'mirrored'] * 20
  assert found.found['mirrored'] == 1.0


def test_what_all_pictures_share_makes_no_copies(rng, tmp_path):
  pictures = drawn(rng, 400, shared=0.8)
  ours, known = written(tmp_path, valid=map(png, pictures[:100]), train=map(png, pictures[100:]))
  alike = np.stack([copies.coefficients_of(Image.fromarray(p)) for p in pictures])
  assert np.median((alike[:100] @ alike[100:].T).max(axis=1)) > copies.LEAST
  assert not copies.Known(known).find(ours).kind.any()


def test_where_others_are_as_alike_the_threshold_is_higher_and_false_alarms_are_counted(rng, tmp_path):
  train, noise = drawn(rng, 300), drawn(rng, 60)
  mixed = [
    (0.64 * p + 0.36 * q).astype(np.uint8)[:, :: -1 if k % 3 == 0 else 1]
    for k, (p, q) in enumerate(zip(train, noise))
  ]
  ours, known = written(tmp_path, valid=map(png, [*mixed, train[0] // 2 + 60]), train=map(png, train))
  found = copies.Known(known).find(ours)
  alike = found.similarity[:60] >= copies.LEAST
  assert alike.sum() > 20
  assert copies.LEAST < found.threshold <= copies.SURE
  assert found.kind[60] == 3
  # Of those in doubt, at most MOST_FALSE of the pictures: none of 61.
  left = (found.similarity >= found.threshold) & (found.similarity < copies.SURE)
  assert min((left & found.mirrored).sum(), (left & ~found.mirrored).sum()) == found.false_alarms == 0
  before = np.round(found.threshold - 0.01, 2)
  left = (found.similarity >= before) & (found.similarity < copies.SURE)
  assert min((left & found.mirrored).sum(), (left & ~found.mirrored).sum()) > 0


def test_a_sentence_has_every_count(rng, tmp_path):
  train = list(map(png, drawn(rng, 30)))
  ours, known = written(tmp_path, valid=[train[3], *map(png, drawn(rng, 9))], train=train)
  said = copies.told(copies.Known(known).find(ours).figures())
  assert 'Of 10 pictures 1 are byte-identical to one of the 30 training pictures, 0 have the same' in said
  assert '0 are near copies (0 mirrored), of which an estimated 0 are false alarms (0.00 %' in said
  assert 'turned by 5° 100 %' in said

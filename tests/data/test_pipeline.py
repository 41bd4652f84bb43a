"""Batches: the position is the step, any number of processes sees the same, and nothing is lost or read twice."""

import functools
import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mimic_jax import augment, data
from mimic_jax.data import pipeline, selection, source
from mimic_jax.runtime.errors import UserError

BIG = 10**7
CROPS = {
  'views': 2,
  'image_size': 8,
  'scale': (0.3, 1.0),
  'ratio': (3 / 4, 4 / 3),
  'interpolation': 'bilinear',
}


class Numbers:
  """n pictures of one size, each filled with its own index; `bad` ones can't be read."""

  class_names = ('a', 'b', 'c')
  image_shape = (4, 5, 3)

  def __init__(self, n, bad=(), soft=False):
    self.n, self.bad, self.soft = n, frozenset(bad), soft

  def __len__(self):
    return self.n

  def __getitem__(self, i):
    if i in self.bad:
      raise source.BadImage(f'/somewhere/{i}.png', 'is bad')
    return {'image': np.full(self.image_shape, i, np.uint8), 'label': self.label(i), 'id': self.id(i)}

  def id(self, i):
    return f'n{i}'

  def label(self, i):
    return np.eye(3, dtype=np.float32)[i % 3] if self.soft else i % 3

  def record(self):
    return {'source': 'numbers', 'count': self.n}


def train(s, batch_images=4, start_step=0, process=(0, 1), seed=3, share=None, **options):
  return pipeline.train_batches(
    s,
    batch_images=batch_images,
    seed=seed,
    start_step=start_step,
    share=share or pipeline.Share((process[0],), process[1]),
    **{**CROPS, 'threads': 2, **options},
  )


def evaluate(s, batch_images=4, process=(0, 1), share=None, **options):
  options = {'image_size': 8, 'interpolation': 'bilinear', 'threads': 2, **options}
  return pipeline.eval_batches(
    s, batch_images=batch_images, share=share or pipeline.Share((process[0],), process[1]), **options
  )


def take(batches, count):
  result = [next(batches) for _ in range(count)]
  batches.close()
  return result


def same(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b):
    assert x.keys() == y.keys()
    for name in x:
      np.testing.assert_array_equal(x[name], y[name])
      assert x[name].dtype == y[name].dtype


def joined(parts):
  """Puts the batches of several processes together, process after process."""
  return [{name: np.concatenate([b[name] for b in step]) for name in step[0]} for step in zip(*parts)]


@pytest.fixture
def files(rng, tmp_path):
  """13 pictures of different sizes in two classes, some of them grey."""
  for k in range(13):
    h, w = rng.integers(30, 60, 2)  # never so long that no random crop fits: the central one would repeat
    picture = rng.integers(0, 256, (h, w, 3) if k % 3 else (h, w), np.uint8)
    path = tmp_path / 'train' / 'xy'[k % 2] / f'{k:02}.{"jpg" if k % 4 else "png"}'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
  return tmp_path


def folder(root, **options):
  return data.build('folder', str(root), 'train', options)


def test_batches_are_plain_uint8_arrays_with_labels_and_indices():
  (batch,) = take(train(Numbers(10)), 1)
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    'image': ((4, 4, 5, 3), np.uint8),
    'label': ((4,), np.int32),
    'index': ((4,), np.int32),
  }
  assert batch['image'].flags.c_contiguous
  np.testing.assert_array_equal(batch['image'][:, 0, 0, 0], batch['index'])
  np.testing.assert_array_equal(batch['label'], batch['index'] % 3)


def test_soft_labels_come_as_distributions():
  (batch,) = take(train(Numbers(10, soft=True)), 1)
  assert (batch['label'].shape, batch['label'].dtype) == ((4, 3), np.float32)
  np.testing.assert_array_equal(batch['label'].argmax(1), batch['index'] % 3)


def test_pictures_of_many_sizes_come_as_crops(files):
  (batch,) = take(train(folder(files)), 1)
  assert (batch['image'].shape, batch['image'].dtype) == ((4, 2, 8, 8, 3), np.uint8)
  assert batch['image'].flags.c_contiguous
  assert not np.array_equal(batch['image'][:, 0], batch['image'][:, 1])


@pytest.mark.parametrize('n', [7, 12])
def test_every_epoch_is_a_permutation_and_another_one(n):
  index = np.concatenate([b['index'] for b in take(train(Numbers(n)), 3 * n)]).reshape(-1, n)
  for epoch in index:
    assert sorted(epoch) == list(range(n))
  assert len({tuple(epoch) for epoch in index}) > len(index) // 2


def test_order_depends_on_the_seed_and_no_seed_continues_another():
  epochs = {
    seed: [tuple(b['index']) for b in take(train(Numbers(40), 40, seed=seed), 4)]
    for seed in (0, 1, 2, 2**32 - 1)
  }
  flat = [e for es in epochs.values() for e in es]
  assert len(set(flat)) == len(flat)


@pytest.mark.parametrize('kind', ['one size', 'many sizes', 'bad ones skipped'])
def test_any_number_of_processes_reads_the_same_global_batches(files, kind):
  s = folder(files) if kind == 'many sizes' else Numbers(13, bad={2, 3, 11} if kind.startswith('bad') else ())
  runs = []
  for P in (1, 2, 4):
    runs.append(joined([take(train(s, 8, process=(p, P), on_bad_image='skip'), 6) for p in range(P)]))
  same(runs[0], runs[1])
  same(runs[0], runs[2])


def test_one_picture_per_process_and_step_is_enough():
  whole = take(train(Numbers(7), 2), 9)
  same(joined([take(train(Numbers(7), 2, process=(p, 2)), 9) for p in range(2)]), whole)


@pytest.mark.parametrize('start', [1, 5, 11])
def test_starting_at_a_step_gives_the_rest_of_the_run(files, start):
  whole = take(train(folder(files)), 14)
  same(take(train(folder(files), start_step=start), 14 - start), whole[start:])
  parts = [take(train(folder(files), start_step=start, process=(p, 2)), 14 - start) for p in range(2)]
  same(joined(parts), whole[start:])


def test_threads_prefetch_and_cache_change_nothing(files):
  expected = take(train(folder(files), threads=1, prefetch=1), 8)
  same(take(train(folder(files), threads=5, prefetch=7), 8), expected)
  same(take(train(folder(files, cache=True)), 8), expected)


def test_a_cache_of_a_part_changes_nothing_either(files):
  part = selection.Selected(folder(files), np.arange(1, 12))
  cached = pickle.loads(pickle.dumps(source.Cached(part)))
  same(take(train(cached), 8), take(train(part), 8))
  same(take(evaluate(cached), 3), take(evaluate(part), 3))


def test_worker_processes_change_nothing(files):
  (files / 'train' / 'x' / '00.png').write_bytes(b'')
  s = folder(files)
  here, there = (train(s, on_bad_image='skip', workers=w, start_step=2) for w in (0, 1))
  same([next(here) for _ in range(6)], [next(there) for _ in range(6)])
  assert here.skipped() == there.skipped()
  assert list(there.skipped()) == ['train/x/00.png']
  here.close()
  there.close()


def test_crops_of_a_picture_differ_by_epoch_and_view_but_not_by_run(files):
  batches = take(train(folder(files), 13), 3)
  views = {
    batch['image'][np.flatnonzero(batch['index'] == 5)[0], v].tobytes() for batch in batches for v in range(2)
  }
  assert len(views) == 6
  same(take(train(folder(files), 13), 3), batches)
  other = take(train(folder(files), 13, seed=4), 1)[0]
  pick = lambda b: b['image'][np.flatnonzero(b['index'] == 5)[0]]  # noqa: E731
  assert not np.array_equal(pick(other), pick(batches[0]))


def test_crop_numbers_are_uniform_and_independent_of_their_neighbours():
  u = np.stack([pipeline.crop_uniforms(1, e, i, v) for e in range(8) for i in range(20) for v in range(2)])
  assert u.shape == (320, 10, 4)
  assert 0 <= u.min() < u.max() < 1
  assert abs(u.mean() - 0.5) < 0.02
  assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 0.05
  assert len(np.unique(u)) == u.size


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_host_crops_equal_device_crops_of_the_same_boxes(rng, tmp_path, interpolation):
  # Of little contrast: PIL clips bicubic's overshoot between its two passes, the device doesn't.
  picture = np.asarray(
    Image.fromarray(rng.integers(80, 176, (9, 8, 3), np.uint8)).resize((40, 50), Image.Resampling.BICUBIC)
  )
  Image.fromarray(picture).save(tmp_path / 'x.png')
  (batch,) = take(train(folder(tmp_path), 2, views=3, seed=9, interpolation=interpolation), 1)
  for epoch in range(2):  # one picture: each row of the batch is an epoch of its own
    u = np.stack([pipeline.crop_uniforms(9, epoch, 0, v) for v in range(3)])
    boxes = augment.crop_boxes(np, u, 50, 40, CROPS['scale'], CROPS['ratio'])
    on_device = augment.resample(jnp.asarray(np.stack([picture] * 3)), jnp.asarray(boxes), 8, interpolation)
    assert np.abs(np.clip(on_device, 0, 255) - batch['image'][epoch].astype(np.float32)).max() <= 1.01


@pytest.mark.parametrize(
  ('width', 'height', 'orientation', 'reduced'),
  [(403, 501, 1, True), (400, 504, 6, True), (400, 504, 2, True), (403, 501, 6, False)],
)
def test_jpegs_decoded_at_reduced_scale_show_the_same_crop(
  rng, tmp_path, width, height, orientation, reduced
):
  exif = Image.Exif()
  exif[0x0112] = orientation
  coarse = Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8))
  path = str(tmp_path / 'x.jpg')
  coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=95, exif=exif)
  whole = Image.fromarray(source.decode_image(path, BIG))
  boxes = augment.crop_boxes(
    np, rng.random((20, 10, 4)), whole.height, whole.width, (0.2, 1.0), (3 / 4, 4 / 3)
  )
  sizes = set()
  for box in boxes:
    with source.open_image(path, BIG) as image:
      got = pipeline.read_crops(image, path, box[None], 16, 'bilinear')[0]
      sizes.add(image.size)
    top, left, h, w = box.tolist()
    expected = whole.crop((left, top, left + w, top + h)).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.abs(got.astype(float) - np.asarray(expected)).mean() < 2
  assert (min(sizes) < (width, height)) == reduced


def test_reduced_scale_never_leaves_a_crop_smaller_than_it_is_asked_for(tmp_path):
  Image.new('RGB', (300, 300)).save(tmp_path / 'x.jpg')
  for side, size in ((300, 300), (150, 300), (149, 300), (75, 300), (64, 300)):
    with source.open_image(str(tmp_path / 'x.jpg'), BIG) as image:
      pipeline.read_crops(image, 'x', np.array([[0, 0, 300, 300]]), side, 'bilinear')
      assert side <= image.width <= size


@pytest.mark.parametrize('P', [1, 2, 3])
@pytest.mark.parametrize(('n', 'b'), [(1, 1), (7, 1), (7, 3), (12, 2), (13, 5)])
def test_evaluation_covers_each_example_once(n, b, P):
  parts = [list(evaluate(Numbers(n), b * P, process=(p, P))) for p in range(P)]
  assert len({len(part) for part in parts}) == 1
  for batch in joined(parts):
    assert batch['image'].shape == (b * P, 4, 5, 3)
    np.testing.assert_array_equal(batch['image'][batch['mask']][:, 0, 0, 0], batch['index'][batch['mask']])
    np.testing.assert_array_equal(batch['label'][batch['mask']], batch['index'][batch['mask']] % 3)
    assert (batch['index'][~batch['mask']] == -1).all()
    assert not batch['image'][~batch['mask']].any()
  seen = np.concatenate([batch['index'][batch['mask']] for batch in joined(parts)])
  np.testing.assert_array_equal(seen, np.arange(n))


def test_evaluation_resizes_pictures_of_many_sizes_whole(files):
  s = folder(files)
  (batch,) = evaluate(s, 20, interpolation='bicubic')
  assert batch['image'].shape == (20, 8, 8, 3)
  assert batch['mask'].sum() == 13
  for row in range(13):
    expected = Image.fromarray(s[row]['image']).resize((8, 8), Image.Resampling.BICUBIC)
    tolerance = 0 if s.id(row).endswith('png') else 30  # a JPEG may have been decoded at reduced scale
    assert np.abs(batch['image'][row].astype(int) - np.asarray(expected)).mean() <= tolerance


def test_a_bad_picture_stops_the_run_by_name():
  batches = train(Numbers(8, bad={5}))
  with pytest.raises(
    UserError, match=r"^/somewhere/5.png: is bad; expected a picture \(data.on_bad_image = 'skip'"
  ) as e:
    take(batches, 2)
  assert '\n' not in str(e.value)
  with pytest.raises(UserError, match=r'/somewhere/5.png'):
    list(evaluate(Numbers(8, bad={5})))


@pytest.mark.parametrize('content', [b'', b'not a picture', None])
def test_a_bad_file_is_an_error_or_skipped(files, content):
  path = files / 'train' / 'x' / '04.png'
  whole = Image.open(files / 'train' / 'x' / '02.jpg')
  whole.close()
  path.write_bytes(content if content is not None else (files / 'train' / 'x' / '08.png').read_bytes()[:-300])
  with pytest.raises(UserError, match=r'04\.png'):
    take(train(folder(files), 13), 1)
  batches = train(folder(files), 13, on_bad_image='skip')
  s = folder(files)
  bad = next(i for i in range(13) if s.id(i).endswith('04.png'))
  (batch,) = take(batches, 1)
  assert sorted(batch['index']) == sorted([i for i in range(13) if i != bad] + [bad + 1])
  np.testing.assert_array_equal(batch['label'], [s.label(int(i)) for i in batch['index']])
  assert list(batches.skipped()) == ['train/x/04.png']
  assert str(path) in batches.skipped()['train/x/04.png']


def test_the_next_readable_picture_takes_the_place_of_a_bad_one_in_a_crop_of_its_own(files):
  s = folder(files)
  before = take(train(s, 13), 1)[0]
  (files / s.id(12)).write_bytes(b'')  # the last: its place goes to the first
  (files / s.id(0)).write_bytes(b'')  # which is bad too
  after = take(train(s, 13, on_bad_image='skip'), 1)[0]
  expected = np.where(np.isin(before['index'], [12, 0]), 1, before['index'])
  np.testing.assert_array_equal(after['index'], expected)
  copies = after['image'][after['index'] == 1]
  assert len({c.tobytes() for c in copies}) == 3
  others = ~np.isin(before['index'], [12, 0])
  np.testing.assert_array_equal(after['image'][others], before['image'][others])


def test_evaluation_masks_bad_pictures_and_replaces_none():
  batches = evaluate(Numbers(9, bad={0, 4}), on_bad_image='skip')
  index = np.concatenate([b['index'][b['mask']] for b in batches])
  assert index.tolist() == [1, 2, 3, 5, 6, 7, 8]
  assert set(batches.skipped()) == {'n0', 'n4'}


@pytest.mark.parametrize('workers', [0, 1])
def test_a_source_without_a_readable_picture_ends(files, workers):
  for path in (files / 'train').glob('*/*'):
    path.write_bytes(b'')
  with pytest.raises(UserError, match=r'none of the 13 pictures can be read; one of them: .*is empty'):
    take(train(folder(files), on_bad_image='skip', workers=workers), 1)
  if not workers:
    with pytest.raises(UserError, match='none of the 13 pictures'):
      list(evaluate(folder(files), on_bad_image='skip'))


def test_what_can_not_be_is_refused():
  s = Numbers(8)
  for call, why in (
    (
      lambda: train(s, 6, process=(0, 4)),
      'batch_images is 6; expected a multiple of 4, the number of devices',
    ),
    (
      lambda: evaluate(s, 6, process=(0, 4)),
      'batch_images is 6; expected a multiple of 4, the number of devices',
    ),
    (lambda: train(s, 0), 'batch_images is 0'),
    (lambda: train(Numbers(0)), 'has no pictures'),
    (lambda: evaluate(Numbers(0)), 'has no pictures'),
    (lambda: train(s, seed=-1), 'seed is -1'),
    (lambda: train(s, threads=0), 'data.threads is 0'),
    (lambda: train(s, workers=-1), 'data.workers is -1'),
    (lambda: train(s, prefetch=0), 'data.prefetch 0'),
    (lambda: train(s, on_bad_image='skp'), "did you mean 'skip'"),
    (lambda: train(s, interpolation='bicubc'), "did you mean 'bicubic'"),
  ):
    with pytest.raises(UserError, match=why):
      call()


def test_readers_survive_pickling_for_worker_processes():
  reader = pipeline._Reader(Numbers(3), 8, 'bilinear', 1)
  again = pickle.loads(pickle.dumps(reader))
  np.testing.assert_array_equal(again(np.array([[0, 2]]))['index'], [2])
  parts = functools.partial(pipeline._part_of_pass, 2, 3)
  step = pickle.loads(pickle.dumps(functools.partial(pipeline._share_of, parts, pipeline.Share((0,), 2))))
  assert step(0).tolist() == [[0, 0], [0, 1]]


def test_a_process_reads_the_rows_that_its_devices_own_wherever_they_lie_in_the_mesh():
  whole = take(train(Numbers(9), 8), 5)
  here, there = (
    take(train(Numbers(9), 8, share=pipeline.Share(parts, 8)), 5) for parts in ((6, 0, 3), (1, 2, 4, 5, 7))
  )  # neither in order nor side by side
  for step, batch in enumerate(whole):
    np.testing.assert_array_equal(here[step]['image'], batch['image'][[6, 0, 3]])
    np.testing.assert_array_equal(there[step]['index'], batch['index'][[1, 2, 4, 5, 7]])
  whole = list(evaluate(Numbers(11), 8))
  here = list(evaluate(Numbers(11), 8, share=pipeline.Share((3, 1), 4)))
  for a, b in zip(here, whole, strict=True):
    np.testing.assert_array_equal(a['index'], b['index'][[6, 7, 2, 3]])


def test_the_shuffled_order_and_its_crops_are_those_of_earlier_runs(rng, tmp_path):
  """Pinned: a checkpoint of an earlier run goes on with the very pictures and crops that it would have seen."""
  assert [b['index'].tolist() for b in take(train(Numbers(7), 4, seed=3), 7)] == [
    [6, 2, 3, 5], [1, 4, 0, 5], [4, 2, 6, 3], [0, 1, 2, 4], [0, 6, 1, 3], [5, 0, 6, 2], [1, 5, 4, 3]
  ]  # fmt: skip
  assert [b['index'].tolist() for b in take(train(Numbers(5), 5, seed=2**32 - 1), 2)] == [
    [3, 0, 4, 2, 1], [1, 0, 3, 2, 4]
  ]  # fmt: skip
  u = pipeline.crop_uniforms(3, 1, 5, 1)
  np.testing.assert_array_equal(
    u[0], [0.824412076621002, 0.11956114392990846, 0.8206706481361021, 0.8148448736942991]
  )
  for k in range(5):
    Image.fromarray(rng.integers(0, 256, (20 + k, 30, 3), np.uint8)).save(tmp_path / f'{k}.png')
  batches = take(train(folder(tmp_path), 5, seed=3), 2)
  for epoch, batch in enumerate(batches):
    for row, i in enumerate(batch['index'].tolist()):
      u = np.stack([pipeline.crop_uniforms(3, epoch, i, v) for v in range(2)])
      boxes = augment.crop_boxes(np, u, 20 + i, 30, CROPS['scale'], CROPS['ratio'])
      with source.open_image(str(tmp_path / f'{i}.png'), BIG) as image:
        expected = pipeline.read_crops(image, 'x', boxes, 8, 'bilinear')
      np.testing.assert_array_equal(batch['image'][row], expected)


class Classes(Numbers):
  """Pictures labelled 0, 1, 3 or −1 of four classes; `soft` ones say so as distributions (−1 not among them)."""

  class_names = ('a', 'b', 'c', 'd')

  def __init__(self, classes, soft=False):
    super().__init__(len(classes), soft=soft)
    self.classes = list(classes)

  def label(self, i):
    if self.soft:
      return (np.eye(4, dtype=np.float32)[self.classes[i]] * 0.4 + 0.15).astype(np.float32)
    return self.classes[i]


UNEQUAL = [0] * 40 + [3] * 2 + [1] * 9 + [-1] * 5 + [0] * 4


def drawn(s, epochs, **options):
  """Returns int [epochs, N], the pictures in the order drawn."""
  n = len(s)
  return np.stack([b['index'] for b in take(train(s, n, sampler='balanced', **options), epochs)])


def philox(key, counter):
  """Philox4x64-10 (Salmon et al. 2011) in plain integers: four words of one counter."""
  c, k, mask = list(counter), list(key), 2**64 - 1
  for _ in range(10):
    a, b = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
    c = [(b >> 64) ^ c[1] ^ k[0], b & mask, (a >> 64) ^ c[3] ^ k[1], a & mask]
    k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
  return c


@pytest.mark.parametrize('soft', [False, True])
def test_balanced_draws_are_a_function_of_seed_epoch_and_number_alone(soft):
  labels = [k for k in UNEQUAL if k >= 0] if soft else UNEQUAL
  index = drawn(Classes(labels, soft), 3, seed=11)
  members = [[i for i, k in enumerate(labels) if k == c] for c in (0, 1, 3)]
  for epoch in range(3):
    for k in range(len(labels)):
      # numpy counts up before it draws, and makes 53 bits of each word
      a, b, *_ = (w >> 11 for w in philox((11, 0x64726177), (1, 0, k, epoch)))
      of_class = members[a * 3 >> 53]
      assert index[epoch, k] == of_class[b * len(of_class) >> 53]


def test_balanced_draws_bring_every_class_and_every_picture_of_it_equally_often():
  labels = np.array(UNEQUAL)
  counts = np.bincount(drawn(Classes(UNEQUAL), 300).ravel(), minlength=len(labels))
  total = counts.sum()
  assert total == 300 * len(labels)
  assert (counts[labels < 0] == 0).all()
  for c in (0, 1, 3):
    inside = counts[labels == c]
    assert abs(inside.sum() / total - 1 / 3) < 5 * np.sqrt(2 / 9 / total)
    expected = total / 3 / len(inside)
    assert (abs(inside - expected) < 6 * np.sqrt(expected)).all()


def test_balanced_epochs_and_seeds_differ():
  s = Classes(UNEQUAL)
  epochs = [tuple(e) for seed in (0, 1, 2**32 - 1) for e in drawn(s, 4, seed=seed)]
  assert len(set(epochs)) == 12


@pytest.mark.parametrize('start', [0, 1, 9])
def test_balanced_batches_are_the_same_from_any_start_in_any_number_of_processes(files, start):
  whole = take(train(folder(files), 4, sampler='balanced'), 14)
  for P in (1, 2, 4):
    parts = [
      take(train(folder(files), 4, start_step=start, process=(p, P), sampler='balanced'), 14 - start)
      for p in range(P)
    ]
    same(joined(parts), whole[start:])


def test_balanced_batches_come_from_worker_processes_too(files):
  here, there = (train(folder(files), sampler='balanced', workers=w) for w in (0, 1))
  same([next(here) for _ in range(4)], [next(there) for _ in range(4)])
  here.close()
  there.close()


def test_crops_of_balanced_draws_belong_to_the_draw(files):
  s = folder(files)
  (batch,) = take(train(s, 13, views=1, seed=6, sampler='balanced'), 1)
  assert len(set(batch['index'].tolist())) < 13  # some picture twice
  for k, i in enumerate(batch['index'].tolist()):
    height, width = s[i]['image'].shape[:2]
    u = pipeline.crop_uniforms(6, 0, k, 0)[None]
    boxes = augment.crop_boxes(np, u, height, width, CROPS['scale'], CROPS['ratio'])
    with s.open(i) as image:
      np.testing.assert_array_equal(batch['image'][k], pipeline.read_crops(image, 'x', boxes, 8, 'bilinear'))
  assert len({crop.tobytes() for crop in batch['image']}) == 13


def test_a_bad_picture_in_a_balanced_epoch_is_replaced_in_the_crops_of_its_draw(files):
  s = folder(files)
  before = take(train(s, 13, sampler='balanced'), 2)
  bad = int(before[0]['index'][0])
  (files / s.id(bad)).write_bytes(b'')
  batches = train(s, 13, sampler='balanced', on_bad_image='skip')
  after = take(batches, 2)
  for a, b in zip(after, before):
    hit = b['index'] == bad
    np.testing.assert_array_equal(a['index'], np.where(hit, (bad + 1) % 13, b['index']))
    np.testing.assert_array_equal(a['image'][~hit], b['image'][~hit])
  assert list(batches.skipped()) == [s.id(bad)]


def test_balanced_draws_need_labels_and_a_sampler_needs_a_known_name(tmp_path):
  Image.new('RGB', (9, 9)).save(tmp_path / 'x.png')
  for s in (folder(tmp_path), Classes([-1, -1])):
    with pytest.raises(
      UserError,
      match=r"data\.sampler is 'balanced', but none of the \d pictures has a label; expected 'shuffle'",
    ):
      train(s, 1, sampler='balanced')
  with pytest.raises(UserError, match=r"data\.sampler is 'balance' \(did you mean 'balanced'\?\)"):
    train(Numbers(3), 1, sampler='balance')


class Clips(Numbers):
  """Pictures 0 to 3 and 4 to 7 belong together."""

  def group(self, i):
    return np.array([2, 0, 3, 1]) + i // 4 * 4  # in an order of their own


def test_a_bad_picture_of_a_group_is_replaced_from_its_group_and_a_cache_keeps_groups():
  class Bad(Clips):
    def __getitem__(self, i):
      if i in (3, 4):
        raise source.BadImage('/x', 'torn')
      return super().__getitem__(i)

  for s in (Bad(8), source.Cached(Bad(8))):
    for batch in take(train(s, 2, group=4, on_bad_image='skip'), 8):
      for row in batch['index']:
        assert len(set(row // 4)) == 1
        assert not {3, 4} & set(row.tolist())

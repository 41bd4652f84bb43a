"""RAF-DB: both layouts against an independent reading of the same tree, and what a user gets wrong."""

import json
import pickle

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mimic_jax import config, data
from mimic_jax.data import pipeline, source
from mimic_jax.objectives import base
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import evaluation

NAMES = ('surprise', 'fear', 'disgust', 'happiness', 'sadness', 'anger', 'neutral')
LIST = 'EmoLabel/list_patition_label.txt'
OTHER_SPELLING = 'EmoLabel/list_partition_label.txt'
PUBLISHED = {
  'train': (1290, 281, 717, 4772, 1982, 705, 2524),
  'test': (329, 74, 160, 1185, 478, 162, 680),
}


def picture(rng, side=100):
  return Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))


def draw(rng, train=15, test=9):
  """Returns {'train_00001': (class 1..7, JPEG bytes as a PIL image)} with every class in both splits."""
  rows = {}
  for split, n in (('train', train), ('test', test)):
    classes = rng.permutation(np.arange(n) % 7 + 1)
    rows.update({f'{split}_{k + 1:05}': (int(c), picture(rng)) for k, c in enumerate(classes)})
  return rows


def write_official(root, rows, name=LIST):
  (root / 'EmoLabel').mkdir(parents=True, exist_ok=True)
  (root / 'Image' / 'aligned').mkdir(parents=True, exist_ok=True)
  (root / name).write_text(''.join(f'{key}.jpg {label}\n' for key, (label, _) in rows.items()))
  for key, (_, image) in rows.items():
    image.save(root / 'Image' / 'aligned' / f'{key}_aligned.jpg', quality=90)


def write_folders(root, rows, folder_of=str, suffix='_aligned'):
  for key, (label, image) in rows.items():
    folder = root / key.split('_')[0] / folder_of(label)
    folder.mkdir(parents=True, exist_ok=True)
    image.save(folder / f'{key}{suffix}.jpg', quality=90)


def read_by_hand(root, split):
  """Reads the official layout without the code under test: [(id, label 0..6, pixels)]."""
  path = next(p for p in (root / LIST, root / OTHER_SPELLING) if p.exists())
  items = []
  for line in path.read_text().split('\n'):
    if line.startswith(split):
      file, label = line.split(' ')
      pixels = np.asarray(Image.open(root / 'Image' / 'aligned' / file.replace('.jpg', '_aligned.jpg')))
      items.append((file[: -len('.jpg')], int(label) - 1, pixels))
  return items


def build(root, split='train', **options):
  return data.build('rafdb', str(root), split, options)


def refused(root, split='train', **options):
  with pytest.raises(UserError) as e:
    build(root, split, **options)
  assert '\n' not in str(e.value)
  return str(e.value)


@pytest.mark.parametrize('name', [LIST, OTHER_SPELLING])
@pytest.mark.parametrize('split', ['train', 'test'])
def test_the_official_layout_is_read_as_by_hand(rng, tmp_path, name, split):
  write_official(tmp_path, draw(rng), name)
  expected = read_by_hand(tmp_path, split)
  s = build(tmp_path, split)
  assert isinstance(s, source.Source)
  assert s.class_names == NAMES
  assert s.image_shape == (100, 100, 3)
  assert len(s) == len(expected) > 0
  for i, (key, label, pixels) in enumerate(expected):
    item = s[i]
    assert (item['id'], item['label'], s.id(i), s.label(i)) == (key, label, key, label)
    assert isinstance(item['label'], int)
    np.testing.assert_array_equal(item['image'], pixels)
    with s.open(i) as image:
      np.testing.assert_array_equal(np.asarray(image), pixels)
  record = s.record()
  labels = [label for _, label, _ in expected]
  assert record['class_counts'] == {n: labels.count(k) for k, n in enumerate(NAMES)}
  assert (record['count'], record['split'], record['layout']) == (len(expected), split, 'official')
  assert record['label_file'] == name
  assert record['class_names'] == list(NAMES)
  assert record['split_hash'] == source.split_hash([key for key, _, _ in expected], labels)
  assert record['align']['align'] == 'none'
  assert 'aligned by its authors' in record['align']['of_release']


@pytest.mark.parametrize(
  'folder_of',
  [str, lambda k: NAMES[k - 1], lambda k: ('Surprised', 'scared', 'disgust', 'happy', '5', 'Angry', 'NEUTRAL')[k - 1]],
)  # fmt: skip
def test_class_folders_give_the_same_pictures_in_the_same_order_as_the_official_layout(
  rng, tmp_path, folder_of
):
  rows = draw(rng)
  write_official(tmp_path / 'a', rows)
  write_folders(tmp_path / 'b', rows, folder_of)
  write_folders(tmp_path / 'c', rows, folder_of, suffix='')
  for split in ('train', 'test'):
    a, b, c = (build(tmp_path / x, split) for x in 'abc')
    assert b.record()['layout'] == 'folders'
    assert (b.record()['label_file'], b.record()['label_rule']) == (split, a.record()['label_rule'])
    for other in (b, c):
      assert other.record()['split_hash'] == a.record()['split_hash']
      assert other.image_shape == a.image_shape
      for i in range(len(a)):
        assert (other.id(i), other.label(i)) == (a.id(i), a.label(i))
        assert other.content_hash(i) == a.content_hash(i)
        np.testing.assert_array_equal(other[i]['image'], a[i]['image'])


def test_the_loader_gives_what_a_reading_by_hand_gives(rng, tmp_path):
  write_official(tmp_path, draw(rng))
  expected = read_by_hand(tmp_path, 'test')
  batches = pipeline.eval_batches(
    build(tmp_path, 'test'),
    batch_images=4,
    image_size=32,
    interpolation='bilinear',
  )
  seen = 0
  for batch in batches:
    for image, label, index, there in zip(batch['image'], batch['label'], batch['index'], batch['mask']):
      if there:
        np.testing.assert_array_equal(image, expected[index][2])
        assert label == expected[index][1]
        seen += 1
  assert seen == len(expected)


def test_list_and_folders_in_one_root_are_read_as_official(rng, tmp_path):
  rows = draw(rng)
  write_official(tmp_path, rows)
  write_folders(tmp_path, rows)
  assert build(tmp_path).record()['layout'] == 'official'


def write_list_only(root, counts_of):
  (root / 'EmoLabel').mkdir(parents=True)
  (root / 'Image' / 'aligned').mkdir(parents=True)
  lines = [
    f'{split}_{k + 1:05}.jpg {label}\n'
    for split, counts in counts_of.items()
    for k, label in enumerate(np.repeat(np.arange(1, 8), counts))
  ]
  (root / LIST).write_text(''.join(lines))


def test_the_published_counts_give_no_warning_and_others_one_that_states_both(tmp_path):
  write_list_only(tmp_path / 'a', PUBLISHED)
  for split, count in (('train', 12271), ('test', 3068)):
    record = build(tmp_path / 'a', split, on_bad_image='skip').record()
    assert (record['count'], record['expected_count'], record['warnings']) == (count, count, [])
  moved = {**PUBLISHED, 'test': (328, 75, 160, 1185, 478, 162, 680)}  # as many in all, other classes
  write_list_only(tmp_path / 'b', moved)
  (warning,) = build(tmp_path / 'b', 'test', on_bad_image='skip').record()['warnings']
  assert 'rafdb test has 3068 pictures (328/75/160/1185/478/162/680)' in warning
  assert 'the published release 3068 pictures (329/74/160/1185/478/162/680)' in warning
  assert 'order' not in warning


def test_the_published_counts_in_another_order_are_said_to_be_a_wrong_class_order(tmp_path):
  alphabetical = {'train': [PUBLISHED['train'][k] for k in (5, 2, 1, 3, 6, 4, 0)], 'test': (1,) * 7}
  write_list_only(tmp_path, alphabetical)
  (warning,) = build(tmp_path, on_bad_image='skip').record()['warnings']
  assert 'rafdb train has 12271 pictures (705/717/281/4772/2524/1982/1290)' in warning
  assert f'the class order looks wrong; expected {", ".join(NAMES)}' in warning


def test_pictures_travel_whole_only_where_all_have_one_small_size(rng, tmp_path):
  def shape_with(sizes, name):
    rows = {f'train_{k + 1:05}': (k % 7 + 1, picture(rng, side)) for k, side in enumerate(sizes)}
    write_folders(tmp_path / name, rows)
    return build(tmp_path / name).image_shape

  assert shape_with([40] * 12, 'small') == (40, 40, 3)
  assert shape_with([40] * 11 + [41], 'mixed') is None
  assert shape_with([256] * 2, 'edge') == (256, 256, 3)
  assert shape_with([257] * 2, 'big') is None


def test_a_size_is_that_of_the_upright_picture_and_damaged_ones_have_no_say(rng, tmp_path):
  rows = {f'train_{k + 1:05}': (k + 1, picture(rng, 30)) for k in range(7)}
  write_folders(tmp_path, rows)
  exif = Image.Exif()
  exif[0x0112] = 6
  for k in range(6):
    tall = k % 2 == 0
    image = picture(rng, 30).resize((20, 30) if tall else (30, 20))
    image.save(tmp_path / f'train/{k + 1}/train_{k + 1:05}_aligned.jpg', exif=b'' if tall else exif.tobytes())
  (tmp_path / 'train/7/train_00007_aligned.jpg').write_bytes(b'no picture')
  s = build(tmp_path)
  assert s.image_shape == (30, 20, 3)
  assert s[1]['image'].shape == (30, 20, 3)
  with pytest.raises(source.BadImage, match='train_00007_aligned'):
    s[6]
  picture(rng, 30).save(s.path(0))
  with pytest.raises(source.BadImage, match='is 30x30, expected 20x30'):
    s[0]


def test_there_is_no_validation_split(rng, tmp_path):
  write_official(tmp_path, draw(rng))
  for name in ('valid', 'val', 'validation'):
    assert f"'{name}', but RAF-DB has no validation split; expected one of train, test" in refused(
      tmp_path, name
    )
  assert "split of rafdb is 'tset' (did you mean 'test'?)" in refused(tmp_path, 'tset')
  assert build(tmp_path, 'testing').record()['split'] == 'test'
  assert build(tmp_path, 'training').record()['split'] == 'train'


def test_missing_files_are_named(rng, tmp_path):
  assert 'data.root is empty' in refused('')
  assert 'is not a folder' in refused(tmp_path / 'gone')
  text = refused(tmp_path)
  assert f'{LIST} with Image/aligned' in text
  assert 'train/1..7 and test/1..7' in text
  (tmp_path / 'Image' / 'aligned').mkdir(parents=True)
  assert '(Image/aligned is there alone)' in refused(tmp_path)
  (tmp_path / 'x' / 'EmoLabel').mkdir(parents=True)
  (tmp_path / 'x' / LIST).write_text('train_00001.jpg 5\n')
  assert '(the list is there alone)' in refused(tmp_path / 'x')
  write_official(tmp_path / 'y' / 'basic', draw(rng))
  assert f"did you mean '{tmp_path / 'y' / 'basic'}'" in refused(tmp_path / 'y')


def test_pictures_missing_on_disk_are_named_and_counted_unless_skipped(rng, tmp_path):
  write_official(tmp_path, draw(rng))
  whole = build(tmp_path)
  for i in (2, 5):
    (tmp_path / 'Image' / 'aligned' / f'{whole.id(i)}_aligned.jpg').unlink()
  text = refused(tmp_path)
  assert text.startswith(f'{whole.path(2)}: does not exist, but {tmp_path / LIST}:3 names it (and 1 more)')
  assert build(tmp_path, 'test').record()['count'] == 9
  s = build(tmp_path, on_bad_image='skip')
  assert (len(s), s.image_shape) == (len(whole), (100, 100, 3))
  with pytest.raises(source.BadImage, match='does not exist'):
    s[2]
  assert s.content_hash(2).startswith('unreadable')
  assert s.record()['split_hash'] == whole.record()['split_hash']


def test_pictures_that_the_list_does_not_name_are_a_warning(rng, tmp_path):
  rows = draw(rng)
  write_official(tmp_path, rows)
  count = build(tmp_path).record()['count']
  for name in ('train_99999_aligned', 'train_88888_aligned', 'stray'):
    picture(rng).save(tmp_path / 'Image' / 'aligned' / f'{name}.jpg')
  record = build(tmp_path).record()
  assert record['count'] == count
  warning = record['warnings'][1]
  assert f'{tmp_path}/Image/aligned/stray.jpg and 2 more' in warning
  assert f'{LIST} does not name them' in warning
  (warning,) = build(tmp_path, 'test').record()['warnings'][1:]
  assert warning.endswith('stray.jpg')


@pytest.mark.parametrize(
  ('line', 'why'),
  [
    ('train_00003.jpg 8', "the class is '8'; expected 1..7"),
    ('train_00003.jpg 0', "the class is '0'; expected 1..7"),
    ('train_00003.jpg happy', "the class is 'happy'"),
    ('train_00003.jpg', "the line is 'train_00003.jpg'; expected one like 'train_00001.jpg 5'"),
    ('train_00003.jpg 5 5', 'expected one like'),
    ('valid_00003.jpg 5', "the line is 'valid_00003.jpg 5'"),
    ('../train_00003.jpg 5', 'expected one like'),
    ('', "the line is ''"),
    ('train_00001.jpg 2', "picture 'train_00001' comes a second time"),
  ],
)
def test_a_malformed_line_is_named_whichever_split_is_asked_for(tmp_path, line, why):
  (tmp_path / 'EmoLabel').mkdir()
  (tmp_path / 'Image' / 'aligned').mkdir(parents=True)
  (tmp_path / LIST).write_text(f'train_00001.jpg 5\ntrain_00002.jpg 1\n{line}\ntest_0001.jpg 4\n')
  text = refused(tmp_path)
  assert text.startswith(f'{tmp_path / LIST}:3: ')
  assert why in text
  if 'second time' in why:
    assert f'(first in {tmp_path / LIST}:1)' in text
  else:
    assert refused(tmp_path, 'test') == text


def test_an_empty_or_binary_list_and_an_empty_split_are_named(rng, tmp_path):
  (tmp_path / 'EmoLabel').mkdir()
  (tmp_path / 'Image' / 'aligned').mkdir(parents=True)
  (tmp_path / LIST).write_text('train_00001.jpg 5\n')
  assert "no picture of split 'test'" in refused(tmp_path, 'test')
  (tmp_path / LIST).write_bytes(b'\xff\xfe\x00\x01')
  assert f'{LIST}: is not a readable list' in refused(tmp_path)
  (tmp_path / LIST).write_bytes(
    b'\xef\xbb\xbftrain_00001.jpg 5\r\n\r\n'
  )  # a byte-order mark, Windows line ends
  s = build(tmp_path, on_bad_image='skip')
  assert (s.id(0), s.label(0)) == ('train_00001', 4)


def test_wrong_class_folders_are_named(rng, tmp_path):
  rows = draw(rng)
  write_folders(tmp_path / 'a', rows)
  picture(rng).save(tmp_path / 'a' / 'train' / '1' / 'train_00001.jpg')
  assert "picture 'train_00001' comes a second time (first in" in refused(tmp_path / 'a')
  write_folders(tmp_path / 'b', rows)
  (tmp_path / 'b' / 'train' / 'contempt').mkdir()
  assert build(tmp_path / 'b').record()['count'] == 15  # an empty folder is no class
  picture(rng).save(tmp_path / 'b' / 'train' / 'contempt' / 'x.jpg')
  text = refused(tmp_path / 'b')
  assert (
    f"class folder '{tmp_path}/b/train/contempt' is not of RAF-DB; expected 1..7 or surprise, fear" in text
  )
  write_folders(tmp_path / 'c', rows)
  (tmp_path / 'c' / 'train' / 'happy').mkdir()
  picture(rng).save(tmp_path / 'c' / 'train' / 'happy' / 'x.jpg')
  assert "'4' and 'happy' are one class, happiness" in refused(tmp_path / 'c')
  write_folders(tmp_path / 'd', {k: v for k, v in rows.items() if k.startswith('train')})
  assert "no split 'test'" in refused(tmp_path / 'd', 'test')
  (tmp_path / 'd' / 'test' / '1').mkdir(parents=True)
  assert "no picture of split 'test'" in refused(tmp_path / 'd', 'test')


def test_own_names_and_odd_files_in_class_folders(rng, tmp_path):
  rows = draw(rng)
  write_folders(tmp_path, rows)
  picture(rng, 80).save(tmp_path / 'train' / '4' / 'mine.png')
  picture(rng).save(tmp_path / 'train' / 'loose.jpg')
  picture(rng).save(tmp_path / 'train' / '2' / 'test_00777_aligned.jpg')
  s = build(tmp_path)
  labels = {s.id(i): s.label(i) for i in range(len(s))}
  assert labels['train/4/mine.png'] == 3
  assert labels['test_00777'] == 1
  assert len(s) == 15 + 2
  assert s.image_shape is None
  warnings = s.record()['warnings'][1:]
  assert f'{tmp_path}/train/loose.jpg' in warnings[0]
  assert '1 pictures' in warnings[1]
  assert '2/test_00777_aligned.jpg' in warnings[1]


def test_faces_are_not_cut_out_for_want_of_boxes(rng, tmp_path):
  write_official(tmp_path, draw(rng))
  for align in ('box(0.2)', 'five_point(arcface)'):
    text = refused(tmp_path, align=align)
    assert "source 'rafdb'" in text
    assert 'mimic align' in text
  assert build(tmp_path, align='none').record()['align']['align'] == 'none'
  assert not build(tmp_path).cuts


def test_a_tree_that_was_aligned_anew_says_so_and_lacks_pictures_without_a_face(rng, tmp_path):
  write_official(tmp_path, draw(rng))
  whole = build(tmp_path)
  for path in (tmp_path / 'Image' / 'aligned').iterdir():
    Image.open(path).resize((64, 64)).save(path)
  gone = [f'Image/aligned/{whole.id(i)}_aligned.jpg' for i in (1, 3)]
  for name in gone:
    (tmp_path / name).unlink()

  def made(on_missing):
    about = {'made_by': 'mimic_jax.align', 'finished': True, 'align': 'five_point(arcface)', 'size': 64}
    found = {
      'on_missing': on_missing,
      'pictures_without_face': gone[:1],
      'unreadable': {gone[1]: 'is damaged'},
    }
    (tmp_path / 'align.json').write_text(json.dumps({**about, **found}))

  made('keep_out')
  s = build(tmp_path)
  record = s.record()
  assert record['align']['align'] == 'five_point(arcface)'
  assert 'of_release' not in record['align']
  assert s.image_shape == (64, 64, 3)
  assert record['left_out'] == {'by mimic_jax.align': 2}
  assert [s.id(i) for i in range(len(s))] == [whole.id(i) for i in range(len(whole)) if i not in (1, 3)]
  (tmp_path / 'Image' / 'aligned' / f'{whole.id(5)}_aligned.jpg').unlink()
  text = refused(tmp_path)  # one that the alignment did write is missed
  assert text.startswith(f'{whole.path(5)}: does not exist')
  assert 'more)' not in text
  made('centre')
  assert f'{whole.path(1)}: does not exist' in refused(tmp_path)


def test_a_pickled_and_a_cached_source_give_the_same(rng, tmp_path):
  write_official(tmp_path, draw(rng))
  s = build(tmp_path)
  for other in (pickle.loads(pickle.dumps(s)), build(tmp_path, cache=True)):
    assert other.record() == s.record()
    assert other.image_shape == s.image_shape
    for i in (0, 7):
      np.testing.assert_array_equal(other[i]['image'], s[i]['image'])
      assert other.content_hash(i) == s.content_hash(i)


@pytest.mark.parametrize(
  ('variant', 'preset', 'drop_path', 'weight'),
  [('', 'vit_b16', 0.1, 0.1), ('vitb16', 'vit_b16', 0.1, 0.1), ('vitl16,ce_two_views', 'vit_l16', 0.2, 0.0)],
)
def test_the_config_has_the_papers_hyper_parameters(variant, preset, drop_path, weight):
  c = parsed(f'--config=finetune_rafdb:{variant}', '--config.data.root=/r', '--config.init=W')
  f = c.finetune
  assert (c.stages, c.model.preset, c.model.image_size) == ('finetune', preset, 224)
  assert (f.init, f.data.source, f.data.root, f.eval.splits) == ('W', 'rafdb', '/r', 'test')
  assert (f.epochs, f.batch_images, f.views, f.drop_path) == (50.0, 64, 2, drop_path)
  assert (f.optim.name, f.optim.lr, f.optim.weight_decay, f.optim.layer_decay) == ('adam', 1e-4, 5e-4, 0.65)
  assert (f.head.projection_dim, f.contrast.temperature, f.contrast.threshold) == (128, 0.07, 0.5)
  assert (f.contrast.weight, f.mix.mixup_alpha, f.data.sampler) == (weight, 2.0, 'shuffle')


def parsed(*args) -> ConfigDict:
  return config.parse(['main', *args]).config


def write_attributes(root, rows, rng):
  """Writes the attribute files of all pictures; returns {id: (gender, race, age)}."""
  (root / 'Annotation' / 'manual').mkdir(parents=True)
  held = {}
  for key in rows:
    held[key] = tuple(int(rng.integers(n)) for n in (3, 3, 5))
    points = ''.join(f'{x}\t{y}\n' for x, y in rng.integers(0, 100, (5, 2)))
    text = points + ''.join(f'{v}\n' for v in held[key])
    (root / 'Annotation' / 'manual' / f'{key}_manu_attri.txt').write_text(text)
  return held


def test_gender_race_and_age_are_targets_where_their_files_are_there(rng, tmp_path):
  rows = draw(rng)
  write_official(tmp_path, rows)
  assert build(tmp_path).targets == {}
  held = write_attributes(tmp_path, rows, rng)
  for split in ('train', 'test'):
    s = build(tmp_path, split)
    assert list(s.targets) == ['gender', 'race', 'age']
    for i in range(len(s)):
      gender, race, age = held[s.id(i)]
      got = [float(s.targets[name][i]) for name in s.targets]
      np.testing.assert_array_equal(got, [np.nan if gender == 2 else gender, race, age])
      np.testing.assert_array_equal([s[i][name] for name in s.targets], got)


def test_an_attribute_file_that_is_not_as_the_layout_says_is_named_and_none_are_offered(rng, tmp_path):
  def said():
    source = build(tmp_path)
    assert source.targets == {}
    why = source.record()['warnings'][-1]
    with pytest.raises(UserError) as e:
      evaluation.check_targets(source, {'age': base.Target()}, 'hmtl', "data.source is 'rafdb'")
    lacks = (
      f"data.source is 'rafdb', which offers nothing beside the label ({why}); objective 'hmtl' needs 'age'"
    )
    assert str(e.value) == lacks
    return why

  rows = draw(rng)
  write_official(tmp_path, rows)
  write_attributes(tmp_path, rows, rng)
  file = tmp_path / 'Annotation' / 'manual' / 'train_00003_manu_attri.txt'
  lines = file.read_text().split('\n')
  file.write_text('\n'.join([*lines[:6], '7', lines[7]]))
  assert f"{file}:7: the race is '7'; expected 0..2" in said()
  file.write_text('\n'.join(lines[:5]))
  assert f"{file}:6: the gender is ''" in said()
  file.unlink()
  assert f'{file}: can not be read (No such file' in said()

"""What a stage leaves behind to look at: which pictures a model is most confidently wrong about, and which are sampled."""

import numpy as np
import pytest
from etils import epath
from PIL import Image

from mimic_jax import data
from mimic_jax.data import selection
from mimic_jax.report import sheets
from mimic_jax.training import evaluation, results

NAMES = ('anger', 'fear', 'joy')


@pytest.fixture
def folder(tmp_path):
  """Returns a source of 30 pictures of many sizes, each of one colour, in three class folders."""
  for k in range(30):
    place = tmp_path / 'valid' / NAMES[k // 10]
    place.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (20 + k, 30), (8 * k, 255 - 8 * k, 0)).save(place / f'{k:02d}.png')
  return data.build('folder', str(tmp_path), 'valid', {'max_pixels': 10**6})


def colour(k):
  return [8 * k, 255 - 8 * k, 0]


def test_the_surest_wrong_answers_come_first_with_label_answer_and_probability(folder):
  labels = np.repeat([0, 1, 2], 10)
  logits = 9.0 * np.eye(3)[labels]
  logits[4] = [0, 0, 3]  # wrong, 0.91
  logits[17] = [8, 1, 0]  # wrong and surer
  logits[29] = [1, 1.2, 0.9]  # wrong and unsure
  drawing = sheets.mistakes(folder, np.arange(30), labels, logits, NAMES, 'valid')
  assert drawing.title == 'Confidently wrong on valid'
  assert drawing.cells == [['fear → anger 1.00', 'anger → joy 0.91', 'joy → fear 0.39']]
  for cell, k in zip(drawing.images[0], (17, 4, 29)):
    np.testing.assert_array_equal(cell, np.broadcast_to(colour(k), (96, 96, 3)))
  assert 'The 3 of 3 wrong answers (of 30 pictures)' in drawing.caption
  assert [i.split('/')[-1] for i in drawing.ids] == ['17.png', '04.png', '29.png']


def test_rows_are_found_in_their_source_by_index_and_soft_labels_count_by_their_largest_entry(folder, rng):
  index = rng.permutation(30)[:20]
  soft = np.full((20, 3), 0.2)
  soft[np.arange(20), index // 10] = 0.6
  logits = np.eye(3)[index // 10]
  logits[5] = 4 * np.eye(3)[(index[5] // 10 + 1) % 3]
  drawing = sheets.mistakes(folder, index, soft, logits, NAMES)
  assert drawing.title == 'Confidently wrong'
  assert drawing.images.shape[:2] == (1, 1)
  np.testing.assert_array_equal(drawing.images[0, 0, 0, 0], colour(index[5]))


def test_no_more_than_a_sheet_is_shown_and_pictures_that_can_not_be_read_are_passed_over(folder, tmp_path):
  (tmp_path / 'valid' / 'anger' / '00.png').write_bytes(b'no picture')
  labels = np.repeat([0, 1, 2], 10)
  logits = np.eye(3)[(labels + 1) % 3] * np.linspace(9, 1, 30)[:, None]  # all wrong, less and less sure
  drawing = sheets.mistakes(folder, np.arange(30), labels, logits, NAMES)
  assert drawing.images.shape[:2] == (3, 8)
  np.testing.assert_array_equal(drawing.images[0, 0, 0, 0], colour(1))
  np.testing.assert_array_equal(drawing.images[2, 7, 0, 0], colour(24))
  assert 'The 24 of 30 wrong answers' in drawing.caption


def test_without_mistakes_there_is_nothing_to_draw(folder):
  labels = np.repeat([0, 1, 2], 10)
  assert sheets.mistakes(folder, np.arange(30), labels, np.eye(3)[labels], NAMES) is None


def test_the_sample_to_draw_is_spread_over_the_classes_of_a_folder(folder):
  batch = evaluation.sample_batch(folder, 16, 'bilinear')
  assert batch['image'].shape == (8, 16, 16, 3)
  assert set(batch['label'].tolist()) == {0, 1, 2}
  np.testing.assert_array_equal(batch['image'][-1, 0, 0], colour(29))
  assert batch['mask'].all()


def test_a_source_smaller_than_the_sample_is_padded(folder):
  few = selection.Selected(folder, np.array([3, 25]))
  batch = evaluation.sample_batch(few, 16, 'bilinear')
  assert batch['mask'].tolist() == [True, True] + [False] * 6
  assert batch['label'].tolist() == [0, 2] + [-1] * 6


def test_the_features_that_are_kept_are_of_all_classes_of_a_folder(tmp_path):
  n = 3 * results.MOST_FEATURES
  outputs = {'features': np.arange(n)[:, None], 'label': np.repeat([0, 1, 2], n // 3)}
  split = evaluation.Split('valid', None)
  measured = evaluation.Measured({}, np.arange(n), outputs, {})
  results.save_outputs(epath.Path(tmp_path), [split], {'valid': measured}, NAMES)
  with np.load(tmp_path / 'features.npz') as held:
    assert np.bincount(held['label']) == pytest.approx(results.MOST_FEATURES / 3, abs=1)
    np.testing.assert_array_equal(held['label'], held['features'][:, 0] // results.MOST_FEATURES)

"""Figures of several runs: which there are, what is drawn in them, and that they are vectors."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from etils import epath

from mimic_jax.commands import figures
from mimic_jax.report import vector
from mimic_jax.report.drawing import Drawing, save_drawing
from mimic_jax.runtime.errors import UserError
from tests.commands.test_compare import NAMES, answers, save

EPOCHS = (1.0, 2.0, 3.0)


def finished(run, rng, seed, lr, labels):
  """Makes the folder of a run of two stages, with curves, features and pictures."""
  run.mkdir(parents=True)
  sections = {'pretrain': {'objective': 'masked_autoencoding'}, 'finetune': {'objective': 'mimic', 'lr': lr}}
  (run / 'config.json').write_text(json.dumps({'stages': 'pretrain,finetune', 'seed': seed, **sections}))
  save(run / 'finetune', answers(rng, labels=labels))
  features = rng.normal(size=(60, 5))
  np.savez(run / 'finetune' / 'features.npz', features=features, label=labels, class_names=np.array(NAMES))
  for stage, picture in (('pretrain', 'reconstructions'), ('finetune', 'attention')):
    drawing = Drawing('title', '', rng.integers(0, 255, (1, 2, 8, 8, 3), dtype=np.uint8))
    save_drawing(epath.Path(run / stage / 'pictures'), picture, drawing)
    lines = [{'split': 'train', 'epoch': x, 'step': x, 'loss': seed + x} for x in EPOCHS]
    lines += [{'split': 'valid', 'epoch': x, 'step': x, 'accuracy': (seed + x) / 10} for x in EPOCHS]
    (run / stage / 'metrics.jsonl').write_text(
      '\n'.join(map(json.dumps, lines[: 6 if stage == 'finetune' else 3]))
    )


@pytest.fixture
def two(tmp_path, rng):
  """Returns the folders of two methods, one of three seeds and one of one."""
  labels = rng.integers(0, 3, 60)
  for seed in range(3):
    finished(tmp_path / 'ce' / f'seed{seed}', rng, seed, 1, labels)
  finished(tmp_path / 'mscl', rng, 0, 2, labels)
  return [str(tmp_path / 'ce'), str(tmp_path / 'mscl')]


def test_every_figure_is_a_pdf_and_an_svg_whose_text_is_text(two, tmp_path, capsys):
  figures.main([*two, '--out', str(tmp_path / 'out')])
  found = {p.name for p in (tmp_path / 'out').iterdir()}
  names = ['loss_train_masked_autoencoding', 'loss_train_mimic', 'accuracy_valid', 'recall_valid_3']
  for run in ('ce', 'mscl'):
    names += [f'confusion_{run}_finetune_valid', f'tsne_{run}_finetune']
    names += [f'reconstructions_{run}_pretrain', f'attention_{run}_finetune']
  assert found == {f'{name}.{kind}' for name in names for kind in ('pdf', 'svg')}
  assert len(capsys.readouterr().out.splitlines()) == len(names)
  text = (tmp_path / 'out' / 'accuracy_valid.svg').read_text()
  said = ' '.join(ElementTree.fromstring(text).itertext())
  assert 'ce/finetune' in said
  assert 'accuracy, valid (%)' in said
  assert '<image' not in text
  assert (tmp_path / 'out' / 'accuracy_valid.pdf').read_bytes().startswith(b'%PDF')


def test_curves_are_means_with_a_band_over_the_seeds_and_bars_recalls_with_whiskers(
  two, tmp_path, monkeypatch
):
  drawn = {}
  for name in ('curves', 'bars', 'confusion'):
    real = getattr(vector, name)
    kept = drawn.setdefault(name, [])
    monkeypatch.setattr(vector, name, lambda *a, real=real, kept=kept: (kept.append(a), real(*a))[1])
  figures.main([*two, '--out', str(tmp_path / 'out')])
  (accuracy,) = (bands for bands, _, label in drawn['curves'] if label.startswith('accuracy'))
  ce, mscl = accuracy
  assert (ce.name, mscl.name) == ('ce/finetune', 'mscl/finetune')
  np.testing.assert_allclose(ce.mean, [20, 30, 40])
  np.testing.assert_allclose(ce.sd, [10, 10, 10])
  assert not mscl.sd.any()
  ((names, recall, ends, classes, _),) = drawn['bars']
  each = []
  for seed in range(3):
    held = np.load(tmp_path / 'ce' / f'seed{seed}' / 'finetune' / 'predictions.npz')
    right = held['logits'].argmax(1) == held['label']
    each.append([right[held['label'] == k].mean() for k in range(3)])
  assert (names, tuple(classes)) == (['ce/finetune', 'mscl/finetune'], NAMES)
  np.testing.assert_allclose(recall[0], np.mean(each, axis=0))
  np.testing.assert_allclose(ends[1, 0] - recall[0], np.std(each, axis=0, ddof=1), atol=1e-12)
  assert (ends[0, 1] < recall[1]).all() or (recall[1] == 0).any()
  np.testing.assert_allclose(np.diag(drawn['confusion'][0][0]), recall[0])


def test_pictures_keep_their_pixels_and_their_text_is_text(tmp_path, rng):
  images = rng.integers(0, 255, (2, 3, 8, 10, 3), dtype=np.uint8)
  cells = [['fear 0.62\nanger 0.38', '', 'joy'], ['a', 'b', 'c']]
  drawing = Drawing('title', 'caption', images, ('masked', 'filled', 'whole'), cells)
  figure = vector.pictures(drawing)
  for axes, picture in zip(figure.axes, images.reshape(-1, 8, 10, 3), strict=True):
    np.testing.assert_array_equal(axes.images[0].get_array(), picture)
  vector.save(figure, epath.Path(tmp_path), 'x')
  said = list(ElementTree.fromstring((tmp_path / 'x.svg').read_text()).itertext())
  assert {'masked', 'filled', 'whole', 'joy', 'fear 0.62', 'anger 0.38'} <= {text.strip() for text in said}


def test_a_folder_that_can_not_be_written_is_named(two, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=r"--out '.*file/x' can not be written"):
    figures.main([two[1], '--out', str(tmp_path / 'file' / 'x')])

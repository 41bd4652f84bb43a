"""The pictures and the page of a run, on run folders made up here."""

import base64
import csv
import html
import io
import json
import re
import subprocess
import sys
import xml.etree.ElementTree

import numpy as np
import pytest
from etils import epath
from PIL import Image
from scipy import stats

from mimic_jax import metrics
from mimic_jax.commands.report import main
from mimic_jax.report import figures, page, summary, tables
from mimic_jax.report.drawing import HEAT_OPACITY, Drawing, in_rows, overlay, read_drawing, save_drawing
from mimic_jax.runtime import files
from mimic_jax.runtime.errors import UserError

NAMES = ('surprise', '_fear $x$', '<b>anger</b>')


def test_a_drawing_is_kept_as_its_pictures_side_by_side_and_read_back(tmp_path, rng):
  images = rng.integers(0, 256, (2, 3, 8, 12, 3), dtype=np.uint8)
  cells = [['λ = 0.5', '', 'c'], ['d', 'e', 'f']]
  drawing = Drawing('A title', 'ein Satz über λ', images, ('a', 'b', 'c'), cells, ('x.png',))
  save_drawing(epath.Path(tmp_path) / 'new', 'grid', drawing)
  sheet = np.asarray(Image.open(tmp_path / 'new' / 'grid.png'))
  np.testing.assert_array_equal(sheet[8:, 24:], images[1, 2])
  back = read_drawing(epath.Path(tmp_path) / 'new', 'grid')
  np.testing.assert_array_equal(back.images, images)
  assert back._replace(images=None, columns=('a', 'b', 'c'), ids=('x.png',)) == drawing._replace(images=None)
  (tmp_path / 'new' / 'grid.json').write_text(
    '{"title": "Old", "caption": "with its captions in the picture"}'
  )
  assert read_drawing(epath.Path(tmp_path) / 'new', 'grid').images.shape == (1, 1, 16, 36, 3)


@pytest.mark.parametrize(
  ('images', 'columns', 'cells'),
  [
    (np.zeros((1, 2, 8, 8, 3), np.float32), (), None),
    (np.zeros((2, 8, 8, 3), np.uint8), (), None),
    (np.zeros((1, 2, 8, 8, 3), np.uint8), ('one',), None),
    (np.zeros((1, 2, 8, 8, 3), np.uint8), (), [['a']]),
  ],
)
def test_a_drawing_that_does_not_fit_together_is_refused(tmp_path, images, columns, cells):
  with pytest.raises(ValueError, match="drawing 'T'"):
    save_drawing(epath.Path(tmp_path), 'x', Drawing('T', '', images, columns, cells))


@pytest.mark.parametrize(('n', 'shape'), [(5, (1, 5)), (8, (1, 8)), (13, (2, 8)), (1, (1, 1)), (24, (3, 8))])
def test_pictures_are_laid_out_in_rows_and_none_is_lost(rng, n, shape):
  pictures = rng.integers(0, 255, (n, 4, 6, 3), dtype=np.uint8)
  images, cells = in_rows(pictures, [str(k) for k in range(n)], 8)
  assert images.shape == (*shape, 4, 6, 3)
  flat = images.reshape(-1, 4, 6, 3)
  np.testing.assert_array_equal(flat[:n], pictures)
  assert (flat[n:] == 255).all()
  assert [len(row) for row in cells] == [shape[1]] * shape[0]
  assert [cell for row in cells for cell in row] == [str(k) for k in range(n)] + [''] * (
    shape[0] * shape[1] - n
  )


def test_heat_lies_over_a_grey_picture_in_its_place_and_scale(rng):
  pictures = rng.integers(0, 255, (2, 40, 60, 3), dtype=np.uint8)
  heat = np.zeros((2, 4, 6))
  heat[0, 0, 5] = 1e-3  # a scale of its own: the same picture as with 1
  heat[1, 3, 0] = 7.0
  laid = overlay(pictures, heat)
  assert laid.dtype == np.uint8
  assert laid.shape == pictures.shape
  grey = np.stack([np.asarray(Image.fromarray(p).convert('L')) for p in pictures])[..., None]
  cold = [laid[0, 25:, :35], laid[1, :15, 25:]]
  for got, want in zip(cold, (grey[0, 25:, :35], grey[1, :15, 25:])):
    np.testing.assert_array_equal(got, np.broadcast_to(want, got.shape))
  hottest = np.array([252, 255, 164]) * HEAT_OPACITY  # the end of inferno
  for got, want in ((laid[0, 0, 59], grey[0, 0, 59]), (laid[1, 39, 0], grey[1, 39, 0])):
    np.testing.assert_allclose(got, hottest + (1 - HEAT_OPACITY) * want, atol=2)
  same = overlay(pictures[:1], np.full((1, 4, 6), 0.1))
  np.testing.assert_array_equal(same, np.broadcast_to(grey[:1], same.shape))


def make_run(folder, rng, ended=('pretrain', 'finetune')):
  """Writes a run of three stages, of which `ended` have a result, and returns the results."""
  config = {
    'name': 'my <run> & co',
    'stages': 'pretrain, finetune,scratch',
    'report_note': 'Proves <nothing>.',
  }
  config |= {
    'finetune': {'objective': 'mimic', 'init': 'pretrain'},
    'scratch': {'objective': 'mimic', 'init': ''},
  }
  (folder / 'config.json').write_text(json.dumps(config))
  record = {'versions': {'jax': '0.10.2'}, 'data': {'finetune': {'root': '/<i>', 'warnings': ['24 of <25>']}}}
  (folder / 'record.json').write_text(json.dumps(record))
  held = {}
  for name in ('pretrain', 'finetune'):
    writer = files.JsonlWriter(epath.Path(folder) / name / 'metrics.jsonl')
    for step in range(0, 100, 5):
      line = {
        'step': step,
        'epoch': step / 10,
        'split': 'train',
        'total_steps': 200,
        'loss': float(rng.random()),
      }
      writer.write(line | {'lr': 1e-4, 'same_crop_pairs': float('nan'), 'odd_measure': 1.0})
    writer.write({'step': 95, 'epoch': 9.5, 'split': 'va<l>id', 'loss': 0.5, 'accuracy': 0.4321})
    writer.close()
    scores = {'loss': float(rng.random()), 'count': 60}
    if name == 'finetune':
      labels = rng.integers(0, 3, 60)
      scores |= metrics.classification(labels, rng.normal(size=(60, 3)) + np.eye(3)[labels], NAMES)
      scores |= {'accuracy_without_duplicates': 0.12345, 'count_without_duplicates': 51}
      scores |= {'accuracy_among_shared_classes': 0.54321}
    result = {'stage': name, 'objective': 'o', 'init': '', 'steps': 100, 'total_steps': 100, 'seconds': 90.0}
    result |= {'metrics': {'valid': scores}, 'images_per_second': 321.4}
    if name == 'finetune':
      result |= {'best_on_held_out': {'epoch': 7, 'accuracy': 0.98765}}
    held[name] = result
    if name in ended:
      (folder / name / 'result.json').write_text(json.dumps(result))
  picture = rng.integers(0, 256, (1, 3, 16, 16, 3), dtype=np.uint8)
  picture[0, 2] = 255  # a place left over
  drawing = Drawing('Fa<c>es', 'a "caption"', picture, (), [['', '', '']], ('<x>.png', 'y.png'))
  for name in ('pretrain', 'finetune'):
    save_drawing(epath.Path(folder) / name / 'pictures', 'faces', drawing)
  return held


def text_of(path):
  return (path / 'report.html').read_text(encoding='utf-8')


def test_the_page_has_every_stage_and_its_numbers_and_what_has_a_score_comes_first(tmp_path, rng):
  held = make_run(tmp_path, rng)
  assert page.write(tmp_path) == epath.Path(tmp_path) / 'report.html'
  text = text_of(tmp_path)
  order = [
    'id="results"',
    'id="stage-finetune"',
    'Confusion on valid',
    'id="stage-pretrain"',
    'id="stage-scratch"',
    'id="record"',
  ]
  places = [text.index(x) for x in order]
  assert places == sorted(places)
  scores = held['finetune']['metrics']['valid']
  for name in ('accuracy', 'mean_class_accuracy', 'macro_f1', 'accuracy_without_duplicates'):
    assert f'>{100 * scores[name]:.2f} %</td>' in text
  among = text[text.index('valid with answers among its own classes only') :]
  assert among.index('>54.32 %</td>') < among.index('>60</td>') < among.index('</tr>')
  for result in held.values():
    assert f'>{result["metrics"]["valid"]["loss"]:.4g}</td>' in text
  assert text.count('data-label="time">1 min 30 s</td>') == 4  # in the results, and how it ran
  for row in scores['confusion']:
    for count in filter(None, row):
      assert f'{100 * count / sum(row):.0f} %<small>{count}</small>' in text
  best = text[text.index('Epochs chosen by accuracy') :]
  assert '98.77 %' in best
  assert '98.77 %' not in text[: text.index('Epochs chosen by accuracy')]


def test_a_warning_of_one_of_several_sources_stands_once():
  part = {'source': 'a', 'warnings': ['old']}
  record = {'data': {'finetune': {'train': {'parts': [part, {'source': 'b'}], 'warnings': ['old']}}}}
  assert list(tables.warnings(record)) == ['data / finetune / train: old']


def test_pictures_stand_on_the_page_as_webp_once_each_with_ids_to_copy(tmp_path, rng):
  make_run(tmp_path, rng)
  page.write(tmp_path)
  text = text_of(tmp_path)
  pictures = re.findall('data:image/webp;base64,([^"]+)', text)
  assert len(pictures) == 2  # of two stages that both show both
  sheet = np.asarray(Image.open(tmp_path / 'pretrain/pictures/faces.png'), np.float32)
  for k, data in enumerate(pictures):
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    assert shown.format == 'WEBP'
    assert (
      np.abs(np.asarray(shown, np.float32) - sheet[:, 16 * k : 16 * k + 16]).mean() < 60
    )  # noise, at quality 80
  assert text.count('<use href="#picture-0"/>') == text.count('<use href="#picture-1"/>') >= 1
  assert text.count('<pre class="copy">&lt;x&gt;.png\ny.png</pre>') == 2


def decoded(text, name):
  (data,) = re.findall(f'download="{name}" href="data:[a-z/+]+;base64,([^"]+)"', text)
  return base64.b64decode(data).decode()


def test_tables_and_curves_can_be_kept_as_files(tmp_path, rng):
  held = make_run(tmp_path, rng)
  page.write(tmp_path)
  text = text_of(tmp_path)
  scores = held['finetune']['metrics']['valid']
  rows = list(csv.DictReader(io.StringIO(decoded(text, 'finetune-valid-classes.csv'))))
  assert [row['class'] for row in rows] == list(NAMES)
  for k, row in enumerate(rows):
    assert float(row['recall']) == scores['per_class'][NAMES[k]]['recall']
    assert [int(row[f'taken for {name}']) for name in NAMES] == scores['confusion'][k]
  results = list(csv.DictReader(io.StringIO(decoded(text, 'my-run-co-results.csv'))))
  assert [row['accuracy'] for row in results] == ['', str(scores['accuracy'])]
  curve = list(csv.DictReader(io.StringIO(decoded(text, 'finetune-loss.csv'))))
  logged = [
    x for x in files.read_jsonl(epath.Path(tmp_path) / 'finetune' / 'metrics.jsonl') if x['split'] == 'train'
  ]
  assert [float(row['epoch']) for row in curve if row['series'] == 'train'] == [x['epoch'] for x in logged]
  svg = decoded(text, 'finetune-loss.svg')
  assert xml.etree.ElementTree.fromstring(svg).tag.endswith('svg')
  assert 'var(' not in svg  # stands alone


def test_what_never_changes_is_a_sentence_and_units_stand_on_the_plots(tmp_path, rng):
  make_run(tmp_path, rng)
  record = json.loads((tmp_path / 'record.json').read_text())
  record['figures'] = {'finetune': {'loss': {'title': 'Loss', 'unit': 'nats', 'note': 'on <mixed> samples'}}}
  (tmp_path / 'record.json').write_text(json.dumps(record))
  page.write(tmp_path)
  text = text_of(tmp_path)
  stage = text[text.index('id="stage-finetune"') : text.index('id="stage-pretrain"')]
  assert 'Odd measure: 1 (throughout).' in stage
  assert 'Loss (nats)' in stage
  assert 'on &lt;mixed&gt; samples' in stage
  assert 'aria-label="Loss by epoch: train from ' in stage
  folded = stage.index('<summary>Diagnostics')
  assert stage.index('Loss (nats)') < folded < stage.index('Odd measure')


def test_the_page_says_how_the_run_ran_and_gives_its_command_to_copy(tmp_path, rng):
  held = make_run(tmp_path, rng)
  record = json.loads((tmp_path / 'record.json').read_text())
  record['environment'] = {
    'devices': {'backend': 'gpu', 'kinds': {'NVIDIA X': 8}, 'processes': 2},
    'versions': {'jax': '0.10.2'},
    'command': ['/there/mimic_jax/main.py', '--config', 'a b'],
  }
  record['start'] = {'finetune': {'import': 3.2, 'compile': 75.4}}
  (tmp_path / 'record.json').write_text(json.dumps(record))
  result = {**held['finetune'], 'peak_memory_bytes': 3 * 2**30, 'input_overhead': 1.123, 'mfu': 0.4567}
  (tmp_path / 'finetune' / 'result.json').write_text(json.dumps(result))
  page.write(tmp_path)
  text = text_of(tmp_path)
  ran = html.unescape(text[text.index('How it ran</h2>') : text.index('id="record"')])
  assert '8 × NVIDIA X (gpu), 2 processes' in ran
  assert '<pre class="copy">python -m mimic_jax.main \\\n  --config \'a b\'</pre>' in ran
  (row,) = re.findall('<tr><th scope="row">finetune</th>(.*?)</tr>', ran)
  cells = dict(re.findall('data-label="([^"]*)">([^<]*)<', row))
  wanted = {'time': '1 min 30 s', 'import': '3 s', 'compile': '1 min 15 s', 'input overhead': '1.12'}
  assert cells.items() >= {**wanted, 'img/s': '321', 'MFU': '45.7 %', 'device memory': '3.0 GiB'}.items()


def test_stages_of_one_objective_share_their_plots(tmp_path, rng):
  make_run(tmp_path, rng)
  page.write(tmp_path)
  text = text_of(tmp_path)
  assert 'aria-label="Loss on train by epoch: pretrain from ' in text
  assert 'aria-label="Accuracy on va' not in text  # measured once: nothing to draw
  assert 'Accuracy on va&lt;l&gt;id: pretrain 43.2 %, finetune 43.2 % (at epoch 9.5, logged once).' in text


def test_intervals_stand_under_their_scores_and_say_where_they_are_from(tmp_path, rng):
  held = make_run(tmp_path, rng)
  page.write(tmp_path)
  assert 'Under a score' not in text_of(tmp_path)
  result = held['finetune']
  how = {
    'interval': 'percentile bootstrap',
    'level': 0.9,
    'samples': 2000,
    'over': 'identities',
    'units': 1234,
  }
  result['metrics']['valid']['intervals'] = {
    'accuracy': {'value': 0.5, 'low': 0.41117, 'high': 0.62228},
    'mean_class_accuracy': {'value': 0.5, 'low': 0.31113, 'high': 0.72224},
    'macro_f1': {'value': 0.5, 'low': 0.21119, 'high': 0.82226},
    'method': how,
  }
  (tmp_path / 'finetune' / 'result.json').write_text(json.dumps(result))
  page.write(tmp_path)
  text = text_of(tmp_path)
  scores = result['metrics']['valid']
  for name, ends in (
    ('accuracy', '41.12 – 62.23'),
    ('mean_class_accuracy', '31.11 – 72.22'),
    ('macro_f1', '21.12 – 82.23'),
  ):
    assert f'{100 * scores[name]:.2f} %<small>{ends} %</small></td>' in text
  assert '90 % interval 41.1 – 62.2 %; mean class' in text
  assert (
    'Under a score its 90 % interval (percentile bootstrap, 2,000 resamples), drawn over 1,234 identities '
    '(finetune, valid).' in text
  )


@pytest.mark.parametrize('intervals', [None, 'x', {'accuracy': 3, 'method': []}, {'accuracy': {'low': None}}])
def test_intervals_that_can_not_be_read_are_left_out(tmp_path, rng, intervals):
  held = make_run(tmp_path, rng)
  held['finetune']['metrics']['valid']['intervals'] = intervals
  (tmp_path / 'finetune' / 'result.json').write_text(json.dumps(held['finetune']))
  page.write(tmp_path)
  assert 'interval (' not in text_of(tmp_path)


def test_each_class_has_its_recall_with_interval_precision_f1_and_support(rng):
  labels = np.repeat([0, 1], [40, 25])  # the third class has no picture
  guess = np.where(rng.random(65) < 0.6, labels, rng.integers(0, 3, 65))
  held = metrics.classification(labels, np.eye(3)[guess], NAMES)
  rows = re.findall('<tr>(.*?)</tr>', tables.per_class(held, {NAMES[0]: 1234}))[1:]
  assert len(rows) == 3
  for k, (row, support) in enumerate(zip(rows[:2], (40, 25))):
    scores = held['per_class'][NAMES[k]]
    hits = int((guess[labels == k] == k).sum())
    low, high = stats.binomtest(hits, support).proportion_ci(0.95, method='wilson')
    cells = [html.unescape(re.sub('<[^>]*>', ' ', c)).strip() for c in re.findall('<td[^>]*>(.*?)</td>', row)]
    shares = (scores['precision'], scores['f1'])
    recall = f'{100 * scores["recall"]:.1f} % {100 * low:.1f} – {100 * high:.1f} %'
    assert ' '.join(cells[0].split()) == recall
    assert cells[1:] == [*(f'{100 * share:.1f} %' for share in shares), str(support), ('1,234', '–')[k]]
  assert re.findall('<td[^>]*>([^<]*)</td>', rows[2])[0] == '–'


def test_the_page_escapes_and_asks_for_nothing_from_outside(tmp_path, rng):
  make_run(tmp_path, rng)
  page.write(tmp_path)
  text = text_of(tmp_path)
  for raw in ('<run>', '<nothing>', '<b>anger', '<i>', '<25>', 'va<l>', 'Fa<c>'):
    assert raw not in text, raw
  for told in (
    'my &lt;run&gt; &amp; co',
    'Proves &lt;nothing&gt;.',
    '&lt;b&gt;anger',
    '_fear $x$',
    '24 of &lt;25&gt;',
  ):
    assert told in text, told
  assert not re.search(r'<(script|link|iframe)|@import|url\((?!#)', text)
  for value in re.findall(r'(?:src|href)="([^"]*)"', text):
    assert value.startswith(
      ('#', 'data:image/webp;base64,', 'data:image/svg+xml;base64,', 'data:text/csv;base64,')
    ), value


def test_a_running_stage_shows_its_step_and_no_final_number(tmp_path, rng):
  make_run(tmp_path, rng, ended=('pretrain',))
  page.write(tmp_path, final=False)
  text = text_of(tmp_path)
  assert 'finetune: step 95 of 200 (47 %)' in text
  assert '43.2 % <small>accuracy, va&lt;l&gt;id</small></div><p>after epoch 9.5, not final' in text
  assert 'Epochs chosen' not in text
  assert sorted(p.name for p in tmp_path.iterdir() if 'report' in p.name) == ['report.html']


def test_the_page_of_a_run_that_has_only_begun(tmp_path):
  page.write(tmp_path / 'new')
  assert 'Nothing has been written' in text_of(tmp_path / 'new')
  (tmp_path / 'new' / 'config.json').write_text(json.dumps({'name': 'r', 'stages': 'a,b'}))
  page.write(tmp_path / 'new')
  assert '0 of 2 stages done' in text_of(tmp_path / 'new')


def test_files_that_cannot_be_read_are_named_on_the_page(tmp_path, rng):
  make_run(tmp_path, rng)
  (tmp_path / 'finetune' / 'result.json').write_text('{"half')
  row = '{"step": 1, "split": "train", "loss": 2}\n'
  (tmp_path / 'pretrain' / 'metrics.jsonl').write_text(f'{row}x\n{row}')
  (tmp_path / 'scratch').mkdir()
  (tmp_path / 'scratch' / 'metrics.jsonl').write_text(f'{row}{{"step": 2, "loss": 1}}\n{row}')
  (tmp_path / 'pretrain' / 'features.npz').write_bytes(b'PK junk')
  (tmp_path / 'pretrain' / 'pictures' / 'faces.png').write_bytes(b'junk')
  page.write(tmp_path)
  text = text_of(tmp_path)
  assert 'finetune/result.json is not a JSON object' in text
  assert 'pretrain/pictures/faces.png: not a sheet of pictures' in text
  assert 'pretrain/metrics.jsonl: line 2 is not a JSON object' in text
  assert 'scratch/metrics.jsonl: line 2 has no &#x27;split&#x27;' in text


def test_a_run_ends_with_a_table_where_things_are_and_what_is_next(tmp_path, rng):
  held = make_run(tmp_path, rng)
  result = held['finetune']
  result['metrics']['valid']['intervals'] = {'accuracy': {'value': 0.5, 'low': 0.41117, 'high': 0.62228}}
  (tmp_path / 'finetune' / 'result.json').write_text(json.dumps(result))
  lines = summary.of_run(epath.Path(tmp_path)).splitlines()
  (row,) = [line.split() for line in lines if line.startswith('finetune')]
  scores = result['metrics']['valid']
  accuracy, mean_class, f1 = (
    f'{100 * scores[k]:.2f}' for k in ('accuracy', 'mean_class_accuracy', 'macro_f1')
  )
  assert row[1:] == [
    *('valid', accuracy, '%', '[41.12,', '62.23]', mean_class, '%', f1, '%', f'{scores["loss"]:.4g}', '321'),
    *('1', 'min', '30', 's'),
  ]
  assert ['report', str(tmp_path / 'report.html')] in [line.split() for line in lines]
  assert lines[-1].split(maxsplit=1) == ['next', f'mimic predict --checkpoint {tmp_path}/finetune PICTURES']


def test_tsne_is_kept_until_the_features_change(tmp_path, rng, monkeypatch):
  folder = epath.Path(tmp_path)
  labels = np.repeat([0, 1], 30)
  features = rng.normal(size=(60, 8)).astype(np.float32) + 20 * labels[:, None]
  np.savez(tmp_path / 'features.npz', features=features, label=labels)
  assert figures.tsne(folder, compute=False) is None
  points, got, names = figures.tsne(folder, compute=True)
  np.testing.assert_array_equal(got, labels)
  assert names == []
  distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
  np.fill_diagonal(distance, np.inf)
  assert np.mean(labels[distance.argmin(1)] == labels) > 0.95  # neighbours are of the same cluster

  with monkeypatch.context() as patch:
    patch.setattr('sklearn.manifold.TSNE.fit_transform', lambda *_: pytest.fail('computed again'))
    np.testing.assert_array_equal(figures.tsne(folder, compute=True)[0], points)
  np.savez(tmp_path / 'features.npz', features=features[::-1], label=labels)
  assert figures.tsne(folder, compute=False) is None


@pytest.mark.parametrize(
  'features',
  [np.ones((40, 4)), np.full((40, 4), np.nan), np.zeros((0, 4)), np.arange(12.0).reshape(3, 4)],
)
def test_features_that_cannot_be_drawn_are_left_out(tmp_path, features):
  np.savez(tmp_path / 'features.npz', features=features, label=np.zeros(len(features), int))
  assert figures.tsne(epath.Path(tmp_path), compute=True) is None


def test_any_name_stands_in_the_legend_as_it_is(rng, recwarn):
  names = ('_fear $x$', r'$\nonsense{$', '喜び', '<b>')
  svg = figures.scatter(rng.normal(size=(40, 2)), np.arange(40) % 4, names)
  texts = {
    ''.join(t.itertext()).strip()
    for t in xml.etree.ElementTree.fromstring(svg).iter()
    if t.tag.endswith('text')
  }
  assert set(names) <= texts
  assert not recwarn.list


def test_many_classes_are_listed_rather_than_drawn(rng):
  names = tuple(f'class {k}' for k in range(200))
  held = metrics.classification(rng.integers(0, 200, 2000), rng.normal(size=(2000, 200)), names)
  assert len(tables.confusion(held)) < 10_000


def test_running_mean_and_thin_keep_level_and_length(rng):
  line = np.linspace(0, 5, 200)
  got = figures.running_mean(line, 10)
  np.testing.assert_allclose(got[:190], line[:190], atol=1e-9)  # a straight line is its own mean
  values = rng.normal(size=1000)
  np.testing.assert_allclose(figures.thin(values), [np.mean(values[i : i + 3]) for i in range(0, 1000, 3)])
  assert [figures.tick(v) for v in (0, 2.5e-4, 0.25, 15, -1e-5)] == ['0', '2.5e-4', '0.25', '15', '-1e-5']


def test_the_command_writes_the_page_and_refuses_other_folders(tmp_path, rng, capsys):
  make_run(tmp_path, rng, ended=())
  main([str(tmp_path)])
  assert capsys.readouterr().out.strip() == str(tmp_path / 'report.html')
  for wrong in ([str(tmp_path / 'nowhere')], [str(tmp_path), 'x'], ['--helpp', str(tmp_path)]):
    with pytest.raises(UserError) as e:
      main(wrong)
    assert '\n' not in str(e.value)
    assert capsys.readouterr().out == ''


def test_the_command_ends_with_exit_code_2_on_a_folder_that_is_no_run(tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'mimic_jax', 'report', str(tmp_path)], capture_output=True, text=True, check=False
  )
  assert done.returncode == 2
  assert done.stderr == f"mimic: error: '{tmp_path}' is not a run's folder: it has no config.json\n"

"""The table of several runs, read back from what it prints: which run is in which row, what is bold, what is marked."""

import csv
import io
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from mimic_jax import uncertainty
from mimic_jax.commands import table
from mimic_jax.report import grid, paper
from mimic_jax.runtime.errors import UserError
from tests.commands.test_compare import NAMES, answers, save

ROOT = pathlib.Path(__file__).parents[2]
SIZES = {'ce_50%': 1.0, 'mscl': 3.0, 'scl': 2.9}  # names and skill: mscl and scl hardly differ


@pytest.fixture
def runs(tmp_path, rng):
  """Returns the folders of three methods with three seeds each on RAF-DB's test split, and their answers."""
  labels = rng.integers(0, 3, 200)
  held = {}
  for method, skill in SIZES.items():
    for seed in range(3):
      held[method, seed] = answers(rng, n=200, skill=skill, split='test', labels=labels)
      run = tmp_path / method / f'seed{seed}'
      save(run / 'finetune', held[method, seed])
      section = {'data': {'source': 'rafdb', 'root': f'/data/{seed}'}, 'eval': {'source': '', 'root': ''}}
      config = {'stages': 'finetune', 'seed': seed, 'skill': skill, 'finetune': {**section, 'checkpoint': {}}}
      (run / 'config.json').write_text(json.dumps(config))
  return [str(tmp_path / method) for method in SIZES], held


def printed(capsys, *arguments: str) -> str:
  table.main([*arguments, '--samples', '200'])
  return capsys.readouterr().out


def test_every_cell_is_the_mean_and_spread_of_the_seeds_and_the_best_is_told_from_what_does_not_differ(
  runs, capsys
):
  paths, held = runs
  lines = list(csv.DictReader(io.StringIO(printed(capsys, *paths, '--format', 'csv'))))
  assert len(lines) == 9
  for line in lines:
    assert (line['data'], line['split'], line['seeds']) == ('RAF-DB', 'test', '3')
  for line in (x for x in lines if x['score'] == 'accuracy'):
    right = [
      (h['logits'].argmax(1) == h['label']).mean() for (m, _), h in held.items() if m == line['method']
    ]
    assert float(line['mean']) == pytest.approx(100 * np.mean(right), abs=1e-4)
    assert float(line['sd']) == pytest.approx(100 * np.std(right, ddof=1), abs=1e-4)
  means = {x['method']: float(x['mean']) for x in lines if x['score'] == 'accuracy'}
  best = max(means, key=means.get)
  assert [x['method'] for x in lines if x['score'] == 'accuracy' and x['best'] == '1'] == [best]
  others = [m for m in SIZES if m != best]
  stacked = {m: np.stack([held[m, s]['logits'] for s in range(3)]) for m in SIZES}
  label = held['mscl', 0]['label']
  want = uncertainty.holm(
    [
      uncertainty.across_seeds(label, stacked[best], stacked[m], NAMES, samples=200)['accuracy']['p']
      for m in others
    ]
  )
  p = {x['method']: float(x['p']) for x in lines if x['score'] == 'accuracy' and x['p']}
  assert p == pytest.approx(dict(zip(others, want)), rel=1e-3)
  rows = {
    row.split(' | ')[0].strip('| '): row.strip('| ').split(' | ')
    for row in printed(capsys, *paths).splitlines()
    if row.startswith('| ')
  }
  assert rows['method'][1:3] == ['seeds', 'RAF-DB test: accuracy']
  assert rows[best][2].startswith('**')
  assert rows['ce_50%'][2] == f'{means["ce_50%"]:.2f} ± ' + rows['ce_50%'][2].split(' ± ')[1]
  (second,) = {'mscl', 'scl'} - {best}
  assert rows[second][2].endswith('°') == (p[second] >= 0.05)
  assert not rows['ce_50%'][2].endswith('°')


def test_a_single_run_has_its_interval_and_an_evaluation_stands_in_its_row(runs, tmp_path, rng, capsys):
  paths, held = runs
  run = pathlib.Path(paths[1]) / 'seed0'
  other = answers(rng, n=50, skill=2.0, split='valid')
  evaluation = run / 'evaluations' / 'x'
  save(evaluation / 'evaluation', other)
  section = {
    'checkpoint': f'{run}/finetune/checkpoints/9',
    'data': {'source': 'folder', 'root': '/data/wild/', 'name': ''},
  }
  (evaluation / 'config.json').write_text(json.dumps({'stages': 'evaluation', 'evaluation': section}))
  trained = json.loads((run / 'config.json').read_text())
  record = {'checkpoint': {'path': section['checkpoint'], 'config': trained}}
  (evaluation / 'record.json').write_text(json.dumps(record))
  text = printed(capsys, str(run), str(evaluation), '--format', 'csv')
  lines = list(csv.DictReader(io.StringIO(text)))
  assert {(x['method'], x['data'], x['split']) for x in lines} == {
    ('mscl', 'RAF-DB', 'test'),
    ('mscl', 'folder wild', 'valid'),
  }
  for line, arrays in ((lines[0], held['mscl', 0]), (lines[3], other)):
    want = uncertainty.intervals(arrays['label'], arrays['logits'], NAMES, samples=200)['accuracy']
    got = [float(line[k]) for k in ('mean', 'low', 'high')]
    assert got == pytest.approx([100 * want[k] for k in ('value', 'low', 'high')], abs=1e-4)
    assert (line['sd'], line['best'], line['p']) == ('', '0', '')
  assert 'mscl on folder wild valid: seed 0 alone.' in printed(capsys, paths[1], str(evaluation))


def test_the_papers_figures_stand_under_the_methods_on_the_sets_that_it_reports(runs, capsys):
  paths, _ = runs
  text = printed(capsys, *paths, '--paper')
  (line,) = [x for x in text.splitlines() if x.startswith('| MIMIC, ViT-B (paper)')]
  assert line == '| MIMIC, ViT-B (paper) |  | 89.02 | – | – |'
  config = json.loads((pathlib.Path(paths[0]) / 'seed0' / 'config.json').read_text())
  config['finetune']['data']['source'] = 'synthetic_faces'
  for seed in range(3):
    file = pathlib.Path(paths[0]) / f'seed{seed}' / 'config.json'
    file.write_text(json.dumps({**config, 'seed': seed}))
  with pytest.raises(
    UserError, match=r'--paper: the paper reports RAF-DB test, FERPlus test, .* not on synthetic_faces'
  ):
    table.main([paths[0], '--paper'])


def test_the_papers_figures_are_those_that_the_configs_quote():
  for k, name in enumerate(('rafdb', 'ferplus', 'affectnet')):
    quoted = [paper.ACCURACY[f'MIMIC, ViT-{size}'][k] for size in 'BL']
    assert ' / '.join(f'{x:.2f}' for x in quoted) + ' %' in (ROOT / f'configs/finetune_{name}.py').read_text()


def test_the_latex_is_a_balanced_table_that_compiles(runs, tmp_path, capsys):
  paths, _ = runs
  text = printed(capsys, *paths, '--paper', '--format', 'latex')
  assert text.count(r'\begin{tabular}') == text.count(r'\end{tabular}') == 1
  assert r'ce\_50\% & 3' in text
  body = [x for x in text.splitlines() if x.endswith(r'\\') and not x.startswith(' &')]
  assert {len(re.findall(r'(?<!\\)&', x)) for x in body} == {4}
  assert len(body) == 1 + 3 + len(paper.ACCURACY)
  if not shutil.which('pdflatex'):
    pytest.skip('pdflatex is not installed (apt-get install texlive-latex-recommended): not compiled')
  whole = ['\\documentclass{article}', '\\usepackage{booktabs}', '\\begin{document}', text, '\\end{document}']
  (tmp_path / 'paper.tex').write_text('\n'.join(whole), encoding='utf-8')
  command = ['pdflatex', '-halt-on-error', '-interaction=nonstopmode', 'paper.tex']
  done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stdout


def test_names_are_escaped_for_latex():
  assert grid.escaped(r'a_b&c%$#{x}~^\d') == (
    r'a\_b\&c\%\$\#\{x\}\textasciitilde{}\textasciicircum{}\textbackslash{}d'
  )

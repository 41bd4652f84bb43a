"""What a run stands on, as BibTeX: of its config and its record alone."""

import json

import pytest
from etils import epath

from mimic_jax import objectives
from mimic_jax.commands import cite
from mimic_jax.report import card, citations
from mimic_jax.report import run as runs
from mimic_jax.runtime.errors import UserError


def made(folder, config, record):
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text(json.dumps(config))
  (folder / 'record.json').write_text(json.dumps(record))
  return str(folder)


def cited(text: str) -> list[str]:
  return [line.partition('{')[2].rstrip(',') for line in text.splitlines() if line.startswith('@')]


FINETUNE = {'stages': 'finetune', 'pretrain': {'objective': 'masked_autoencoding'}}
FINETUNE |= {'finetune': {'objective': 'mimic', 'init': '/w.pth'}}


@pytest.mark.parametrize(
  ('config', 'data', 'weights', 'keys', 'comments'),
  [
    (FINETUNE, ['rafdb'], 'MAE pre-training, encoder alone', ['he2022masked'], []),
    (FINETUNE, ['rafdb'], 'Hugging Face DINOv2', ['oquab2024dinov2'], []),
    (FINETUNE, ['affectnet'], 'MoCo v3', ['chen2021empirical'], []),
    (FINETUNE, ['folder'], '', [], ['% no entry is known for data: folder, /data/mine']),
    (FINETUNE, [], 'timm ViT', [], ['% no entry is known for weights: /w.pth (timm ViT)']),
    ({**FINETUNE, 'stages': 'pretrain,finetune'}, ['synthetic_faces'], '', ['he2022masked'], []),
    (
      {**FINETUNE, 'finetune': {'objective': 'mimic', 'init': 'pretrain'}},
      ['ferplus'],
      'mimic_jax checkpoint',
      [],
      [],
    ),
  ],
)
def test_the_paper_the_sets_and_the_weights_are_cited_each_once(
  tmp_path, capsys, config, data, weights, keys, comments
):
  of_stage = {f'split_{name}': {'source': name, 'root': '/data/mine'} for name in [*data, *data]}
  record = {'data': {'finetune': {**of_stage, 'reading': {}}}}
  record['weights'] = {'finetune': {'origin': '/w.pth', **({'kind': weights} if weights else {})}}
  run = made(tmp_path / 'many' / 'seed3', config, record)
  cite.main([run])
  text = capsys.readouterr().out
  of_data = [key for name in data for key in citations.OF_SET.get(name, ())]
  assert sorted(cited(text)) == sorted(['zhang2024mimic', *keys, *of_data])
  assert [line for line in text.splitlines() if line.startswith('%')] == comments
  cite.main([str(tmp_path / 'many')])
  assert capsys.readouterr().out == text


def test_sets_read_through_tfds_or_beside_others_are_known_and_drawn_ones_need_no_entry(tmp_path, capsys):
  parts = [{'source': 'tfds', 'name': 'rafdb:1.0.0'}, {'source': 'ferplus'}, {'source': 'synthetic_veins'}]
  train = {'source': 'tfds,ferplus,synthetic_veins', 'parts': parts}
  record = {'data': {'finetune': {'train': train, 'valid': {'source': 'tfds', 'name': 'imagenet:1.0.0'}}}}
  cite.main([made(tmp_path / 'run', FINETUNE, record)])
  text = capsys.readouterr().out
  of_data = ['li2017reliable', 'barsoum2016training', 'goodfellow2013challenges', 'russakovsky2015imagenet']
  assert sorted(cited(text)) == sorted(['zhang2024mimic', *of_data])
  assert '% no entry' not in text
  run = runs.read(epath.Path(tmp_path / 'run'))
  terms = card._licences(run, run.stages[0], [])
  known = {f'data ({name})': card.DATA_TERMS[name] for name in ('rafdb', 'ferplus')}
  assert terms == {**known, 'data (synthetic_veins)': card.DRAWN}


def test_entries_are_balanced_and_all_of_them_can_be_reached():
  reached = {'zhang2024mimic', *citations.OF_WEIGHTS.values()}
  assert {key for keys in citations.OF_SET.values() for key in keys} | reached == set(citations.ENTRIES)
  of_objectives = {k: v for n in objectives.names() for k, v in objectives.find(n).CITES.items()}
  for key, entry in (citations.ENTRIES | of_objectives).items():
    text = citations.bibtex(key, entry)
    assert text.count('{') == text.count('}')
    assert all(f'\n  {field} = {{' in text for field in ('title', 'author', 'year'))


def test_what_is_no_run_is_named(tmp_path):
  with pytest.raises(UserError, match=f"'{tmp_path}' is not a run's folder"):
    cite.main([str(tmp_path)])

"""What a run stands on, as BibTeX: the paper, its pre-training, the sets, and published weights."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

ENTRIES = {
  'zhang2024mimic': {
    'type': 'article',
    'title': '{MIMIC}: Mask Image Pre-training with Mix Contrastive Fine-tuning for Facial Expression Recognition',
    'author': 'Zhang, Fan and Guo, Xiaobao and Peng, Xiaojiang and Kot, Alex',
    'journal': 'arXiv preprint arXiv:2401.07245',
    'year': '2024',
  },
  'he2022masked': {
    'type': 'inproceedings',
    'title': 'Masked Autoencoders Are Scalable Vision Learners',
    'author': "He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll{\\'a}r, Piotr and Girshick, Ross",
    'booktitle': 'IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)',
    'year': '2022',
    'note': 'arXiv:2111.06377',
  },
  'li2017reliable': {
    'type': 'inproceedings',
    'title': 'Reliable Crowdsourcing and Deep Locality-Preserving Learning for Expression Recognition in the Wild',
    'author': 'Li, Shan and Deng, Weihong and Du, JunPing',
    'booktitle': 'IEEE Conference on Computer Vision and Pattern Recognition (CVPR)',
    'year': '2017',
  },
  'barsoum2016training': {
    'type': 'inproceedings',
    'title': 'Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label Distribution',
    'author': 'Barsoum, Emad and Zhang, Cha and Canton Ferrer, Cristian and Zhang, Zhengyou',
    'booktitle': 'ACM International Conference on Multimodal Interaction (ICMI)',
    'year': '2016',
    'note': 'arXiv:1608.01041',
  },
  'goodfellow2013challenges': {
    'type': 'article',
    'title': 'Challenges in Representation Learning: A report on three machine learning contests',
    'author': 'Goodfellow, Ian J. and others',
    'journal': 'arXiv preprint arXiv:1307.0414',
    'year': '2013',
  },
  'mollahosseini2019affectnet': {
    'type': 'article',
    'title': '{AffectNet}: A Database for Facial Expression, Valence, and Arousal Computing in the Wild',
    'author': 'Mollahosseini, Ali and Hasani, Behzad and Mahoor, Mohammad H.',
    'journal': 'IEEE Transactions on Affective Computing',
    'year': '2019',
    'note': 'arXiv:1708.03985',
  },
  'russakovsky2015imagenet': {
    'type': 'article',
    'title': '{ImageNet} Large Scale Visual Recognition Challenge',
    'author': 'Russakovsky, Olga and others',
    'journal': 'International Journal of Computer Vision',
    'year': '2015',
    'note': 'arXiv:1409.0575',
  },
  'chen2021empirical': {
    'type': 'inproceedings',
    'title': 'An Empirical Study of Training Self-Supervised Vision Transformers',
    'author': 'Chen, Xinlei and Xie, Saining and He, Kaiming',
    'booktitle': 'IEEE/CVF International Conference on Computer Vision (ICCV)',
    'year': '2021',
    'note': 'arXiv:2104.02057',
  },
  'oquab2024dinov2': {
    'type': 'article',
    'title': '{DINOv2}: Learning Robust Visual Features without Supervision',
    'author': 'Oquab, Maxime and others',
    'journal': 'Transactions on Machine Learning Research',
    'year': '2024',
    'note': 'arXiv:2304.07193',
  },
  'touvron2021training': {
    'type': 'inproceedings',
    'title': 'Training Data-Efficient Image Transformers \\& Distillation through Attention',
    'author': 'Touvron, Hugo and others',
    'booktitle': 'International Conference on Machine Learning (ICML)',
    'year': '2021',
    'note': 'arXiv:2012.12877',
  },
  'wang2023masked': {
    'type': 'inproceedings',
    'title': 'Masked Image Modeling with Local Multi-Scale Reconstruction',
    'author': 'Wang, Haoqing and others',
    'booktitle': 'IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)',
    'year': '2023',
    'note': 'arXiv:2303.05251',
  },
}
OF_SET = {
  'rafdb': ('li2017reliable',),
  'ferplus': ('barsoum2016training', 'goodfellow2013challenges'),
  'affectnet': ('mollahosseini2019affectnet',),
  'imagenet': ('russakovsky2015imagenet',),  # of `mimic prepare`
  'imagenet2012': ('russakovsky2015imagenet',),
}
# what stands in the kind of weights (weights/layouts.py), the first that does
OF_WEIGHTS = {
  'MAE': 'he2022masked',
  'MoCo v3': 'chen2021empirical',
  'DINOv2': 'oquab2024dinov2',
  'LocalMIM': 'wang2023masked',
  'DeiT': 'touvron2021training',
}


def sets(record: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns of a source's record, or of each of several, the set's name without a version, and its root; [] of what is no source's."""
  parts = record.get('parts', [record])
  named = ((p.get('name' if p.get('source') == 'tfds' else 'source', ''), p.get('root', '')) for p in parts)
  return [(re.split('[/:]', name)[0], root) for name, root in named if name]


def of_run(
  config: Mapping[str, Any], record: Mapping[str, Any], of_objectives: Iterable[str] = ()
) -> tuple[list[str], list[str]]:
  """Returns the keys of entries that a run calls for, and sentences on what it stands on that no entry is known of.

  Args:
    config: of the run.
    record: its record.json.
    of_objectives: keys that its objectives name.
  """
  keys, unknown = ['zhang2024mimic', *of_objectives], []
  for stage in record.get('data', {}).values():
    for name, root in (one for held in stage.values() for one in sets(held)):
      keys += OF_SET.get(name, ())
      if name not in OF_SET and not name.startswith('synthetic_'):
        unknown.append(f'data: {name}, {root or "no root"}')
  for stage, held in record.get('weights', {}).items():
    kind = held.get('kind', '')
    known = [key for word, key in OF_WEIGHTS.items() if word in kind]
    keys += known[:1]
    if kind and not known and config.get(stage, {}).get('init') not in config:  # not an earlier stage's
      unknown.append(f'weights: {held["origin"]} ({kind})')
  return list(dict.fromkeys(keys)), list(dict.fromkeys(unknown))


def bibtex(key: str, entry: Mapping[str, str]) -> str:
  """Returns an entry in BibTeX."""
  lines = [f'  {name} = {{{value}}},' for name, value in entry.items() if name != 'type']
  return '\n'.join([f'@{entry["type"]}{{{key},', *lines, '}']) + '\n'

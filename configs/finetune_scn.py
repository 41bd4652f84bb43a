"""Fine-tuning with SCN, which weighs samples and relabels those that it doubts (Wang et al. 2020, arXiv 2002.10392).

  python -m mimic_jax.main --config configs/finetune_scn.py:resnet18,rafdb --config.data.root=/data/rafdb --config.init=W

W: a torchvision or timm ResNet-18, for the other sizes as in finetune_folder.py; '' = from scratch (then set finetune.optim.layer_decay=1).
SCN's abstract: 88.14 % on RAF-DB, 89.35 % on FERPlus, 60.23 % on AffectNet (P quotes 87.03, 88.01, 63.40); not measured here.
Words: resnet18 (default), vits16, vitb16 at 224 × 224; `init`, the sizes that W has; then the set: rafdb (default), ferplus, affectnet, folder, csv.
SCN's own fields stand under finetune.scn; optimiser and crops are those of finetune_rafdb with the word ce (one crop, no mixing, no contrast).
predictions.npz holds the `importance` of each picture.
"""

from ml_collections import ConfigDict

from mimic_jax import defaults, objectives

SIZES = {'resnet18': 'resnet18', 'vits16': 'vit_s16', 'vitb16': 'vit_b16', 'init': 'init'}
SPLITS = {'rafdb': 'test', 'ferplus': 'valid,test', 'affectnet': 'valid', 'folder': 'valid', 'csv': 'valid'}


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is a size and a set, as in 'resnet18,rafdb'."""
  size, source = defaults.words(variant, tuple(SIZES), tuple(SPLITS))
  c = defaults.base()
  c.stages = 'finetune'
  c.model.preset = SIZES[size]
  if size == 'init':
    c.model.image_size = 0
  f = objectives.defaults('scn')
  f.init = c.get_ref('init')
  f.data.source = source
  f.data.root = c.data.get_oneway_ref('root')
  f.data.held_out = 0.1 if source in ('folder', 'csv') else 0.0
  f.drop_path = 0.1 if size.startswith('vit') else 0.0
  f.eval.splits = SPLITS[source]
  c.finetune = f
  return c

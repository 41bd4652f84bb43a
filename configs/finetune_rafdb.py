"""Stage two on RAF-DB (7 classes), with the paper's hyper-parameters for ViT-B/16 and ViT-L/16.

  python -m mimic_jax.main --config configs/finetune_rafdb.py:vitb16 --config.data.root=/data/rafdb \\
      --config.init=mae_pretrain_vit_base.pth

init: MAE's published weights (`mae_pretrain_vit_large.pth` for vitl16), other files that `mimic weights
inspect FILE` knows, or the folder of a `pretrain_imagenet1k` run; '' = scratch (then set finetune.optim.layer_decay=1).
Paper, ViT-B / ViT-L: 89.02 / 91.26 % overall accuracy on the test split; not measured here.
Cost: 50 epochs of 12,271 pictures × 2 crops at 224 × 224, 9,587 steps of 64 pictures: a GPU; not measured here. Host
memory: 0.5 GB for the pictures, which are held decoded.

A second word picks what the loss is made of: mscl (the paper's, default), ce, ce_two_views, mixed_ce, sscl, scl,
scl_dominant (mimic_jax/objectives/mimic.py METHODS), as in finetune_rafdb.py:vitb16,scl.
Data: the official layout (EmoLabel/list_patition_label.txt with Image/aligned) or class folders train/1..7, test/1..7;
RAF-DB has no validation split, so the last epoch's result on the test split is the headline.
"""

from ml_collections import ConfigDict

from mimic_jax import defaults, objectives
from mimic_jax.objectives import mimic


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is a size and a method, as in 'vitb16,mscl'."""
  size, method = defaults.words(variant, ('vitb16', 'vitl16'), tuple(mimic.METHODS))
  c = defaults.base()
  c.stages = 'finetune'
  c.model.preset = {'vitb16': 'vit_b16', 'vitl16': 'vit_l16'}[size]
  f = objectives.defaults('mimic')
  f.init = c.get_ref('init')
  f.data.source = 'rafdb'
  f.data.root = c.data.get_oneway_ref('root')
  f.data.cache = True
  f.drop_path = {'vitb16': 0.1, 'vitl16': 0.2}[size]
  f.head.projection_dim = 128
  f.eval.splits = 'test'
  f.eval.without_duplicates = True
  mimic.use_method(f, method)
  c.finetune = f
  return c

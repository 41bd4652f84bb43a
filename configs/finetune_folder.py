"""Stage two on class folders of one's own, with a ViT for a small machine (64 × 64 pixels).

  python -m mimic_jax.main --config configs/finetune_folder.py:small --config.data.root=/data/mine --config.init=W

Data: train/<class>/ and valid/<class>/ with pictures of any size and mode; the classes are the folders' names.
W is the folder of a `pretrain_folder:small` run, which has the same ViT; '' = from scratch (then set
finetune.optim.layer_decay=1). A second word picks the loss, as in finetune_ferplus.py. Cost and what it reaches depend on the folder.
"""

from ml_collections import ConfigDict

from mimic_jax import defaults, objectives
from mimic_jax.objectives import mimic


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is 'small' and a method, as in 'small,mscl'."""
  _, method = defaults.words(variant, ('small',), tuple(mimic.METHODS))
  c = defaults.base()
  c.stages = 'finetune'
  m = c.model
  m.preset = 'vit_ti16'
  m.image_size, m.patch_size = 64, 8
  m.depth = 6
  m.dtype = 'float32'
  f = objectives.defaults('mimic')
  f.init = c.get_ref('init')
  f.data.source = 'folder'
  f.data.root = c.data.get_oneway_ref('root')
  f.drop_path = 0.0
  f.epochs = 20.0
  f.optim.name = 'adamw'
  f.optim.lr = 7e-4
  f.optim.weight_decay = 0.05
  f.optim.layer_decay = 0.85
  f.optim.warmup_epochs = 2.0
  mimic.use_method(f, method)
  c.finetune = f
  return c

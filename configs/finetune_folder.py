"""Stage two on pictures of one's own, from any published weights.

  python -m mimic_jax.main --config configs/finetune_folder.py:vitb16 --config.data.root=/data/mine --config.init=W

Words: vits16, vitb16, vitl16, with the paper's hyper-parameters at 224 × 224; `init`, the same with the sizes, pixel mean and std
that W has, whatever it is (a DINOv2 ViT-B/14, a ResNet-50); `small` (default), a ViT for a small machine at 64 × 64.
W is a weight file that `mimic weights inspect W` knows, or a run's folder (with `small` that of a `pretrain_folder:small` run);
'' = from scratch (then set finetune.optim.layer_decay=1).
Data: train/<class>/ and valid/<class>/ with pictures of any size and mode; the classes are the folders' names. With the word `csv`:
train.csv and valid.csv, or labels.csv, with columns id (a picture's path from there) and label. Without a valid split a tenth
of the training pictures is held out for it (data.held_out). docs/data.md says more of each.
A further word picks the loss, as in finetune_ferplus.py: finetune_folder.py:vitb16,csv,ce. Cost and what it reaches depend on
the data; all but small want a GPU.
"""

from ml_collections import ConfigDict

from mimic_jax import defaults, objectives
from mimic_jax.objectives import mimic

SIZES = ('small', 'vits16', 'vitb16', 'vitl16', 'init')


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is a size, how the labels are stored and a method, as in 'small,folders,mscl'."""
  size, stored, method = defaults.words(variant, SIZES, ('folders', 'csv'), tuple(mimic.METHODS))
  c = defaults.base()
  c.stages = 'finetune'
  f = objectives.defaults('mimic')
  f.init = c.get_ref('init')
  f.data.source = {'folders': 'folder', 'csv': 'csv'}[stored]
  f.data.root = c.data.get_oneway_ref('root')
  f.data.held_out = 0.1
  if size == 'small':
    _small(c, f)
  elif size == 'init':
    c.model.preset, c.model.image_size = 'init', 0
    f.drop_path = 0.0  # a ResNet has none; of ViTs the paper's is 0.1 (B) and 0.2 (L)
  else:
    c.model.preset = {'vits16': 'vit_s16', 'vitb16': 'vit_b16', 'vitl16': 'vit_l16'}[size]
    f.drop_path = 0.2 if size == 'vitl16' else 0.1
  mimic.use_method(f, method)
  c.finetune = f
  return c


def _small(c: ConfigDict, f: ConfigDict) -> None:
  """A ViT of 6 blocks at 64 × 64."""
  m = c.model
  m.preset = 'vit_ti16'
  m.image_size, m.patch_size = 64, 8
  m.depth = 6
  m.dtype = 'float32'
  f.drop_path = 0.0
  f.epochs = 20.0
  f.optim.name = 'adamw'
  f.optim.lr = 7e-4
  f.optim.weight_decay = 0.05
  f.optim.layer_decay = 0.85
  f.optim.warmup_epochs = 2.0

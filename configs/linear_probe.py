"""A linear classifier on frozen features: what the first weights know of a set's classes by themselves.

  python -m mimic_jax.main --config configs/linear_probe.py:vitb16,rafdb --config.data.root=/data/rafdb --config.init=W

W: as in finetune_folder.py; without it the features are those of a random encoder. The encoder is neither trained nor differentiated.
As MAE's probe (arXiv 2111.06377 appendix A.1): BatchNorm without factors before the classifier, no weight decay, 90 epochs with 10 of
warm-up, the class token. Different from it: Adam at 1e-3 with 256 pictures a batch, not LARS at .1 · batch / 256 with 16,384; crops
of .67 to 1 of a picture, not .08 to 1, which would cut the expression off a face.
Words: vits16, vitb16 (default), vitl16 at 224 × 224; `init`, the sizes that W has; then the set: folder (default), csv, rafdb, ferplus, affectnet.
A ResNet has no class token: --config.probe.head.pool=gap. Cost: a third of a fine-tuning step of one crop; not measured here.
`mimic evaluate --knn 20` asks the same of W without training anything.
"""

from ml_collections import ConfigDict

from mimic_jax import defaults, objectives

SIZES = {'vitb16': 'vit_b16', 'vits16': 'vit_s16', 'vitl16': 'vit_l16', 'init': 'init'}
SPLITS = {'folder': 'valid', 'csv': 'valid', 'rafdb': 'test', 'ferplus': 'valid,test', 'affectnet': 'valid'}


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is a size and a set, as in 'vitb16,folder'."""
  size, source = defaults.words(variant, tuple(SIZES), tuple(SPLITS))
  c = defaults.base()
  c.stages = 'probe'
  c.model.preset = SIZES[size]
  if size == 'init':
    c.model.image_size = 0
  p = objectives.defaults('linear_probe')
  p.init = c.get_ref('init')
  p.data.source = source
  p.data.root = c.data.get_oneway_ref('root')
  p.data.held_out = 0.1 if source in ('folder', 'csv') else 0.0
  p.eval.splits = SPLITS[source]
  c.probe = p
  return c

"""Stage two on AffectNet (7 classes, or 8 with contempt), with the paper's hyper-parameters for ViT-B/16 and ViT-L/16.

  python -m mimic_jax.main --config configs/finetune_affectnet.py:vitb16 --config.data.root=/data/affectnet \\
      --config.init=mae_pretrain_vit_base.pth

init: MAE's published weights (`mae_pretrain_vit_large.pth` for vitl16), other files that `mimic weights
inspect FILE` knows, or the folder of a `pretrain_imagenet1k` run; '' = scratch (then set finetune.optim.layer_decay=1).
Paper, 7 classes, ViT-B / ViT-L: 65.35 / 65.62 % overall accuracy on the validation split; not measured here.
Cost: 10 epochs of 283,901 draws × 2 crops at 224 × 224, 44,360 steps of 64 pictures: a GPU; not measured here.

Further words: classes7 (default) or classes8, and what the loss is made of: mscl (the paper's, default), ce,
ce_two_views, mixed_ce, sscl, scl, scl_dominant (mimic_jax/objectives/mimic.py METHODS), as in finetune_affectnet.py:vitb16,classes8,scl.
Data: the newer release (train_set|val_set/images with annotations) or the older (Manually_Annotated_Images with
Manually_Annotated_file_lists/training.csv), whose faces are cut out by its face_* columns. Training draws the classes
equally often; the labels are read once into an index in ~/.cache/mimic_jax.
"""

from ml_collections import ConfigDict

from mimic_jax import defaults, objectives
from mimic_jax.objectives import mimic


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is a size, a number of classes and a method, as in 'vitb16,classes7,mscl'."""
  size, classes, method = defaults.words(
    variant, ('vitb16', 'vitl16'), ('classes7', 'classes8'), tuple(mimic.METHODS)
  )
  c = defaults.base()
  c.stages = 'finetune'
  c.model.preset = {'vitb16': 'vit_b16', 'vitl16': 'vit_l16'}[size]
  f = objectives.defaults('mimic')
  f.init = c.get_ref('init')
  f.data.source = 'affectnet'
  f.data.root = c.data.get_oneway_ref('root')
  f.data.classes = {'classes7': 7, 'classes8': 8}[classes]
  f.data.sampler = 'balanced'
  f.epochs = 10.0
  f.optim.warmup_epochs = 1.0  # a tenth of the epochs [D]
  f.drop_path = {'vitb16': 0.1, 'vitl16': 0.2}[size]
  f.head.projection_dim = 128  # P fig. 6 has none for AffectNet: RAF-DB's [D]
  f.eval.splits = 'valid'
  mimic.use_method(f, method)
  c.finetune = f
  return c

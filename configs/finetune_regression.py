"""Regression of valence and arousal, the angles of a head, or attributes that are 0 or 1.

  python -m mimic_jax.main --config configs/finetune_regression.py:vitb16,affectnet --config.data.root=/data/affectnet --config.init=W
  python -m mimic_jax.main --config configs/finetune_regression.py:resnet18,pose --config.data.root=/data/pose --config.init=W
  python -m mimic_jax.main --config configs/finetune_regression.py:small,drawn

W: as in finetune_affectnet.py; '' = scratch (then set finetune.optim.layer_decay=1).
Words: vitb16 (default), resnet18 at 224 × 224, `init` (the sizes that W has), small (a ViT at 32 × 32); then what is learned: affectnet (valence and
arousal by 1 − CCC), pose (300W-LP, measured on AFLW2000: yaw, pitch and roll by their absolute error in degrees), drawn (valence and arousal of
drawn faces), drawn_pose, drawn_glasses (0 or 1).
Measured: CCC, RMSE, mean absolute error, Pearson's correlation and sign agreement of each target, with intervals over pictures.
Cost: `small,drawn` is 60 epochs of 1,024 pictures. 15 of them took 3 minutes on two busy cores and reached a CCC of .58 (valence) and .64 (arousal),
one seed (2026-12-01). Others need a GPU; not measured here.
"""

from ml_collections import ConfigDict

from mimic_jax import defaults, objectives

SIZES = {'vitb16': 'vit_b16', 'resnet18': 'resnet18', 'init': 'init', 'small': 'vit_ti16'}
# source, split that is measured, targets, loss, scale
WHAT = {
  'affectnet': ('affectnet', 'valid', 'valence,arousal', 'ccc', 1.0),
  'pose': ('pose_300w_lp', 'test', 'yaw,pitch,roll', 'mae', 30.0),
  'drawn': ('synthetic_faces', 'valid', 'valence,arousal', 'ccc', 1.0),
  'drawn_pose': ('synthetic_faces', 'valid', 'yaw,pitch,roll', 'mae', 3.0),
  'drawn_glasses': ('synthetic_faces', 'valid', 'glasses', 'binary', 1.0),
}


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is a size and what is learned, as in 'vitb16,affectnet'."""
  size, what = defaults.words(variant, tuple(SIZES), tuple(WHAT))
  source, split, targets, loss, scale = WHAT[what]
  c = defaults.base()
  c.stages = 'finetune'
  c.model.preset = SIZES[size]
  if size == 'init':
    c.model.image_size = 0
  f = objectives.defaults('regression')
  f.init = c.get_ref('init')
  f.data.source = source
  if source != 'synthetic_faces':
    f.data.root = c.data.get_oneway_ref('root')
  f.eval.splits = split
  f.regression.targets, f.regression.loss, f.regression.scale = targets, loss, scale
  f.drop_path = 0.1 if size == 'vitb16' else 0.0
  f.optim.warmup_epochs = 1.0
  if size == 'small':
    _small(c, f)
  c.finetune = f
  return c


def _small(c: ConfigDict, f: ConfigDict) -> None:
  """A ViT of 160 thousand parameters at 32 × 32, from scratch, for two CPU cores."""
  m = c.model
  m.image_size, m.patch_size = 32, 8
  m.dim, m.depth, m.heads = 64, 3, 4
  m.dtype = 'float32'
  m.scan = False
  f.data.size, f.data.draw_size, f.data.cache = 1024, 32, True
  f.batch_images = 64
  f.epochs = 60.0
  f.augment.scale = (0.9, 1.0)
  f.optim.name = 'adamw'
  f.optim.lr = 2e-3
  f.optim.weight_decay = 0.05
  f.optim.layer_decay = 1.0
  f.eval.every_epochs = 10.0

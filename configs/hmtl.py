"""HMTL (arXiv 2105.06421): in training, a self-supervised task (puzzling or in-painting) beside the supervised one, on the same encoder.

  python -m mimic_jax.main --config configs/hmtl.py:resnet18,affectnet,puzzle --config.data.root=/data/affectnet
  python -m mimic_jax.main --config configs/hmtl.py:small,ferplus,inpaint,fifth --config.data.root=/data/ferplus
  python -m mimic_jax.main --config configs/hmtl.py:small,drawn

Words, at most one of each line:
  size      resnet18 (default), resnet50, vitb16 at 224 × 224; `init` (the sizes that --config.init=W has); small (a ResNet-18 at 48 × 48)
  set       affectnet (8 classes, default), ferplus, rafdb, folder, drawn, pose (300W-LP and AFLW2000), drawn_pose
  task      puzzle (default), inpaint, none (supervised alone)
  share     `fifth`: 20 % of each class's training pictures
  strength  of the augmentation: flips (flips alone), crops (default: zoom, shift, flip), rand (crops and RandAugment: rotation, shear, colours),
            strong (rand, erasing, Mixup and CutMix); with poses only flips or crops
It begins from scratch; with W set finetune.optim.layer_decay (MIMIC's paper has .65 for MAE's ViTs).
Reaches, published, AffectNet-8, EfficientNet-B0 (not built here): supervised 60.34, + puzzling 61.09, + in-painting 61.72; with 20 %: 52.46, + in-painting 55.36.
Cost: not measured; a step costs about twice the supervised one, since plain and puzzled pictures are both encoded.
"""

from ml_collections import ConfigDict

from mimic_jax import defaults, objectives

SIZES = {
  'resnet18': 'resnet18',
  'resnet50': 'resnet50',
  'vitb16': 'vit_b16',
  'init': 'init',
  'small': 'resnet18',
}
SETS = {
  'affectnet': ('affectnet', 'valid'),
  'ferplus': ('ferplus', 'valid,test'),
  'rafdb': ('rafdb', 'test'),
  'folder': ('folder', 'valid'),
  'drawn': ('synthetic_faces', 'valid'),
  'pose': ('pose_300w_lp', 'test'),
  'drawn_pose': ('synthetic_faces', 'valid'),
}
STRENGTHS = ('crops', 'flips', 'rand', 'strong')


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is a size, a set, a task, a share and a strength, as in 'small,ferplus,inpaint,fifth,strong'."""
  size, data, task, share, strength = defaults.words(
    variant, tuple(SIZES), tuple(SETS), ('puzzle', 'inpaint', 'none'), ('all', 'fifth'), STRENGTHS
  )
  source, splits = SETS[data]
  c = defaults.base()
  c.stages = 'finetune'
  c.model.preset = SIZES[size]
  if size == 'init':
    c.model.image_size = 0
  f = objectives.defaults('hmtl')
  f.init = c.get_ref('init')
  f.hmtl.task = task
  f.data.source = source
  if source != 'synthetic_faces':
    f.data.root = c.data.get_oneway_ref('root')
  f.eval.splits = splits
  if data == 'affectnet':
    f.data.classes = 8
    f.data.sampler = 'balanced'
  if data == 'folder':
    f.data.held_out = 0.1
  if data.endswith('pose'):
    f.regression.targets, f.regression.loss = 'yaw,pitch,roll', 'mae'
    f.regression.scale = 30.0 if data == 'pose' else 3.0
  f.data.fraction = 0.2 if share == 'fifth' else 1.0
  f.drop_path = 0.1 if size == 'vitb16' else 0.0
  f.optim.name = 'adamw'
  f.optim.lr = 1e-3
  f.optim.weight_decay = 0.05
  f.optim.layer_decay = 1.0
  f.optim.warmup_epochs = 1.0
  _change(f, strength)
  if size == 'small':
    c.model.image_size, c.model.dtype = 48, 'float32'
    f.data.cache = True
    f.data.size, f.data.draw_size = 2048, 48
    f.epochs = 8.0 if share == 'all' else 40.0  # as many steps
  c.finetune = f
  return c


def _change(f: ConfigDict, strength: str) -> None:
  """Sets how much training pictures are changed: a ladder, each with what the one before has."""
  if strength == 'flips':
    f.augment.scale = f.augment.ratio = (1.0, 1.0)
  if strength in ('rand', 'strong'):
    f.augment.rand_ops = 2
  if strength == 'strong':
    f.augment.erasing = 0.25
    f.mix.probability = 0.5

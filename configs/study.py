"""One run of a study (`mimic study`): a pre-training on general pictures, or a fine-tuning on faces, at one of three scales.

  python -m mimic_jax.main --config study:small,mae,pretrain --config.data.root=/data/photos --workdir W
  python -m mimic_jax.main --config study:small,ferplus,mae,mscl --config.data.root=/data/ferplus --config.init=W

Words: the scale (tiny: 32 × 32 pixels, a study takes minutes on two cores; small: 48 × 48, hours there; paper: the configs of the papers);
the set; how it begins (scratch or a pre-training; mae_faces is MAE on the training faces of the set); `pretrain`, or what it is
fine-tuned with (mimic_jax/objectives/mimic.py METHODS, or an objective: linear_probe, scn); base or large.
At scales tiny and small all pre-trainings see the same pictures in the same number of updates, and fine-tuning mixes half of the batches. Methods with
one crop (`ce`, scn) have twice the pictures a batch in twice the epochs: as many crops and updates as the others.
Cost and results: docs/reproduction.md.
"""

from ml_collections import ConfigDict

from mimic_jax import config as config_lib
from mimic_jax import defaults, objectives
from mimic_jax.objectives import mimic

SETS = {'faces': 'drawn faces', 'ferplus': 'FERPlus', 'rafdb': 'RAF-DB', 'affectnet': 'AffectNet-7'}
# What a run may begin with, and the objective of that; '' = random weights.
PRETRAININGS = {
  'scratch': '',
  'mae': 'masked_autoencoding',
  'mae_faces': 'masked_autoencoding',
  'moco_v3': 'moco_v3',
  'local_mim': 'local_mim',
  'supervised': 'supervised',
}
IN_DOMAIN = ('mae_faces',)  # pre-trained on the pictures of the set itself
METHODS = ('mscl', 'pretrain', *(m for m in mimic.METHODS if m != 'mscl'), 'linear_probe', 'scn')
# Learning rates of the first two scales, by a few hundred steps of each on general pictures (docs/method.md).
LR = {'mae': 2e-3, 'mae_faces': 2e-3, 'local_mim': 2e-3, 'moco_v3': 3e-3, 'supervised': 1e-3}
PAPER = {'base': 'vitb16', 'large': 'vitl16'}


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is the words, such as 'tiny,faces,mae,mscl'."""
  words = defaults.words(
    variant, ('tiny', 'small', 'paper'), tuple(SETS), tuple(PRETRAININGS), METHODS, ('base', 'large')
  )
  scale, _, begins, method, _ = words
  c = _paper(*words[1:]) if scale == 'paper' else _reduced(*words)
  c.name = f'study_{variant}'
  if begins == 'moco_v3':
    c.model.pos_embed = 'sincos2d_moco'
  if method == 'pretrain':
    return c
  f = c.finetune
  if begins == 'scratch':
    f.optim.layer_decay = 1.0
  if scale == 'small' and begins == 'moco_v3':
    f.optim.lr = 3e-4  # the others' 1e-3, of 3e-4, 1e-3 and 3e-3 on a held-out tenth (docs/reproduction.md)
  if method in ('ce', 'scn'):
    f.batch_images *= 2
    f.epochs *= 2
    f.optim.warmup_epochs *= 2
  return c


def _paper(target: str, begins: str, method: str, size: str) -> ConfigDict:
  """The config of the paper's own."""
  if method == 'pretrain':
    name = 'imagenet1k' if begins.startswith('mae') else begins
    c = config_lib.load(*config_lib.find_config(f'pretrain_{name}:{PAPER[size]},folder'))
    if begins in IN_DOMAIN:
      c.pretrain.data.source = target
    return c
  c = config_lib.load(*config_lib.find_config(f'finetune_{target}:{PAPER[size]}'))
  _use(c, method)
  return c


def _use(c: ConfigDict, method: str) -> None:
  """Changes what c.finetune, which has no method yet, learns."""
  if method in mimic.METHODS:
    mimic.use_method(c.finetune, method)
    return
  f = objectives.defaults(method)
  for name in ('data', 'eval', 'augment', 'init', 'batch_images', 'epochs'):
    f[name] = c.finetune[name]
  if method == 'linear_probe':
    f.optim.warmup_epochs = f.epochs / 10
  else:
    f.optim, f.drop_path = c.finetune.optim, c.finetune.drop_path
  c.finetune = f


def _reduced(scale: str, target: str, begins: str, method: str, size: str) -> ConfigDict:
  """A ViT small enough for two CPU cores."""
  c = defaults.base()
  tiny, large = scale == 'tiny', size == 'large'
  m = c.model
  m.preset = 'vit_ti16'
  m.image_size, m.patch_size = (32, 8) if tiny else (48, 12)  # 16 patches
  m.dim, m.depth, m.heads = (96, 4, 3) if large else (64, 3, 4 if tiny else 2)
  m.dtype = 'float32'
  m.scan = False  # a few blocks run faster unrolled on a CPU
  if method == 'pretrain':
    c.stages, c.pretrain = 'pretrain', _pretraining(c, tiny, target, begins)
  else:
    c.stages, c.finetune = 'finetune', _finetuning(c, tiny, target)
    _use(c, method)
    c.finetune.init = c.get_ref('init')
  return c


def _pretraining(c: ConfigDict, tiny: bool, target: str, begins: str) -> ConfigDict:
  p = objectives.defaults(PRETRAININGS[begins])
  if begins in IN_DOMAIN:
    p.data.source = 'synthetic_faces' if target == 'faces' else target
    p.data.draw_seed = 1  # other faces than those with labels
  else:
    p.data.source = 'synthetic_images' if tiny else 'folder'
  p.data.root = c.data.get_oneway_ref('root')
  p.data.size, p.data.draw_size = 2048, 32
  p.data.cache = True
  p.batch_images = 64 if tiny else 128
  p.epochs = 10.0 if tiny else 4.0
  p.drop_path = 0.0
  p.augment.scale = (0.4, 1.0)
  p.optim.warmup_epochs = p.epochs / 10
  p.checkpoint.every_epochs = p.epochs / 5
  p.eval.splits = 'valid' if tiny else ''
  p.eval.every_epochs = 0.0
  p.optim.lr, p.optim.blr = LR[begins], 0.0
  if begins.startswith('mae'):
    p.mae.decoder_dim, p.mae.decoder_depth, p.mae.decoder_heads = 48, 1, 4
    p.mae.mask_ratio = 0.6  # 0.75 would leave 4 patches
  elif begins == 'local_mim':
    p.local_mim.decoder_dim, p.local_mim.decoder_heads = 48, 4
    p.local_mim.mask_ratio = 0.6
    p.local_mim.scales = (4.0, 2.0, 1.0)  # as many as blocks
  elif begins == 'moco_v3':
    p.moco.hidden, p.moco.dim = 256, 64
    p.augment.scale = (0.2, 1.0)
    p.moco.momentum = 0.95  # for runs as short as these
  else:
    p.head.pool = 'gap'  # what fine-tuning reads
    p.augment.rand_ops, p.augment.erasing, p.mix.probability = 0, 0.0, 0.5  # for schedules as short as these
  return p


def _finetuning(c: ConfigDict, tiny: bool, target: str) -> ConfigDict:
  f = objectives.defaults('mimic')
  f.data.source = 'synthetic_faces' if target == 'faces' else target
  f.data.root = c.data.get_oneway_ref('root')
  f.data.size, f.data.draw_size = 512, 32
  f.data.cache = True
  f.batch_images = 32
  f.epochs = 20.0 if tiny else 6.0
  f.drop_path = 0.0
  f.augment.scale = (0.9, 1.0) if tiny else (0.8, 1.0)
  f.mix.probability = 0.5  # with so few steps, half of the batches stay as they are
  f.head.projection_dim = 64
  f.optim.name = 'adamw'
  f.optim.lr = 2e-3 if tiny else 1e-3
  f.optim.weight_decay = 0.05
  f.optim.layer_decay = 1.0 if tiny else 0.9
  f.optim.warmup_epochs = 1.0 if tiny else 0.5
  f.eval.splits = 'test' if target == 'rafdb' else 'valid'
  f.eval.size = 700
  f.eval.every_epochs = 5.0 if tiny else 1.0
  f.eval.without_duplicates = target in ('ferplus', 'rafdb')
  f.checkpoint.every_epochs = 5.0 if tiny else 1.0
  return f

"""Stage two on FERPlus (8 classes), with the paper's hyper-parameters for ViT-B/16 and ViT-L/16, or on a small machine.

  python -m mimic_jax.main --config configs/finetune_ferplus.py:vitb16 --config.data.root=/data/ferplus --config.init=W

W is where the first weights are from: mae_pretrain_vit_base.pth or another file that `mimic weights inspect`
knows, or the folder of a `pretrain_imagenet1k` run; '' = scratch (then set finetune.optim.layer_decay=1).
Paper, ViT-B / ViT-L: 89.74 / 91.14 % overall accuracy; not measured here.
Cost: 50 epochs of 25,045 pictures × 2 crops at 224 × 224: a GPU.

  python -m mimic_jax.main --config configs/finetune_ferplus.py:small --config.data.root=/data/ferplus \\
      --config.data.general=/data/some_general_photos

`small` has both stages: pre-trains a small ViT at 48 × 48 on the training faces and general photos, then fine-tunes it.
Cost and result on two cores: docs/reproduction.md. `ours` needs no outside weights: a ResNet-18 at 48 × 48 from scratch, on the votes of all ten
people (label_rule=soft). `ours,ce` is cross-entropy on one crop, with twice the pictures a batch and twice the epochs: as many crops and steps.
On FER2013Valid 82.8 and 84.3 %, two core-hours each: cross-entropy alone is the better one here (docs/reproduction.md).

A second word picks what the loss is made of: mscl (the paper's, default), ce, ce_two_views, mixed_ce, sscl, scl,
scl_dominant (mimic_jax/objectives/mimic.py METHODS), as in finetune_ferplus.py:vitb16,scl.
Data: the official layout (FER2013Train/label.csv + PNGs, …) or fer2013.csv with fer2013new.csv.
"""

from ml_collections import ConfigDict

from mimic_jax import defaults, objectives
from mimic_jax.objectives import mimic


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is a size and a method, as in 'vitb16,mscl'."""
  size, method = defaults.words(variant, ('vitb16', 'vitl16', 'small', 'ours'), tuple(mimic.METHODS))
  c = defaults.base()
  f = objectives.defaults('mimic')
  f.data.source = 'ferplus'
  f.data.root = c.data.get_oneway_ref('root')
  f.data.cache = True
  f.head.projection_dim = 512
  f.eval.splits = 'valid,test'
  f.eval.without_duplicates = True
  if size == 'small':
    _small(c, f)
    mimic.use_method(f, method)
    return c
  c.stages = 'finetune'
  if size == 'ours':
    _ours(c, f)
    mimic.use_method(f, method)
    if method == 'ce':  # as many crops
      f.batch_images *= 2
      f.epochs *= 2
      f.optim.warmup_epochs *= 2
    return c
  c.model.preset = {'vitb16': 'vit_b16', 'vitl16': 'vit_l16'}[size]
  f.init = c.get_ref('init')
  f.drop_path = {'vitb16': 0.1, 'vitl16': 0.2}[size]
  c.finetune = f
  mimic.use_method(f, method)
  return c


def _ours(c: ConfigDict, f: ConfigDict) -> None:
  """A ResNet-18 with a 3 × 3 stem at 48 × 48, from scratch, two core-hours."""
  c.model.preset, c.model.image_size, c.model.dtype = 'resnet18', 48, 'float32'
  f.init = c.get_ref('init')
  f.data.label_rule = 'soft'
  f.epochs = 6.0
  f.drop_path = 0.0
  f.head.projection_dim = 128
  f.augment.scale = (0.7, 1.0)
  f.mix.probability = 0.5  # with so few epochs, half of the batches stay as they are
  f.optim.name = 'adamw'
  f.optim.lr = 1e-3
  f.optim.weight_decay = 0.05
  f.optim.layer_decay = 1.0
  f.optim.warmup_epochs = 0.5
  f.eval.splits = 'valid'
  c.finetune = f


def _small(c: ConfigDict, f: ConfigDict) -> None:
  """A ViT of 1.3 M parameters at 48 × 48, pre-trained on the same faces and on general photos, for two CPU cores."""
  c.stages = 'pretrain,finetune'
  with c.data.unlocked():
    c.data.general = ''  # folder of general photos for pre-training
  m = c.model
  m.preset = 'vit_ti16'
  m.image_size, m.patch_size = 48, 8
  m.dim, m.depth, m.heads = 160, 4, 5
  m.dtype = 'float32'
  m.scan = False  # a few blocks run faster unrolled on a CPU

  p = objectives.defaults('masked_autoencoding')
  p.init = c.get_ref('init')
  p.data.source = 'ferplus,folder'
  p.data.root = c.data.get_oneway_ref('root') + ',' + c.data.get_oneway_ref('general')
  p.data.cache = True
  p.batch_images = 128
  p.epochs = 8.0
  p.mae.decoder_dim, p.mae.decoder_depth, p.mae.decoder_heads = 96, 2, 3
  p.augment.scale = (0.5, 1.0)
  p.optim.blr = 2e-3
  p.optim.warmup_epochs = 1.0
  p.eval.splits = 'valid'
  p.eval.every_epochs = 2.0
  p.checkpoint.every_epochs = 1.0
  c.pretrain = p

  f.init = 'pretrain'
  f.epochs = 6.0
  f.drop_path = 0.0
  f.head.projection_dim = 128
  f.augment.scale = (0.8, 1.0)
  f.mix.probability = 0.5  # with so few epochs, half of the batches stay as they are
  f.optim.name = 'adamw'
  f.optim.lr = 7e-4
  f.optim.weight_decay = 0.05
  f.optim.layer_decay = 0.85
  f.optim.warmup_epochs = 0.5
  f.eval.splits = 'valid'
  c.finetune = f

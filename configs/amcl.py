"""AMCL (arXiv 2401.08079): a GAN of masks, contrast under masks that make it hard, a classifier; three stages of one run.

  python -m mimic_jax.main --config configs/amcl.py
  python -m mimic_jax.main --config configs/amcl.py:folder --config.data.root=/data/palms
  mimic evaluate --checkpoint runs/amcl --verification --data.split=test

Data: drawn veins by default, 40 persons with four training pictures each. Stages pretrain and finetune see the same pictures, the second with labels.
With the word `folder`: train/<person>/ and valid/<person>/ with pictures of any size (without valid a tenth is held out). The masks are always drawn.
A second word takes what it is compared with: `random_masks` (of the same generator, no latent step), `simclr` (no masks, no first stage).
The networks are small, for two cores: a ResNet-18 of a quarter of the width at 48 × 48, a GAN of an eighth. As published: --config.model.image_size=224
--config.model.dim=0 --config.masks.gan.width=64, and more epochs.
Reaches, published: ahead of SimCLR, VICReg and ADIOS on three sets of palm veins that are not public; on drawn veins: docs/neighbours.md.
Cost, one CPU core with nothing beside (2026-12-01), compiling included: masks 2.8 minutes, pretrain 4.7, finetune 1.
"""

from ml_collections import ConfigDict

from mimic_jax import defaults, objectives
from mimic_jax.objectives import mimic


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is where pictures are from and what is masked, as in 'veins,adversarial' (default)."""
  source, masked = defaults.words(variant, ('veins', 'folder'), ('adversarial', 'random_masks', 'simclr'))
  c = defaults.base()
  c.stages = 'pretrain,finetune' if masked == 'simclr' else 'masks,pretrain,finetune'
  c.log.every = 10
  m = c.model
  m.preset, m.image_size, m.dim = 'resnet18', 48, 128
  m.dtype = 'float32'

  g = objectives.defaults('amcl_masks')
  g.gan.width = 8
  g.data.size = 4096
  g.data.cache = True
  g.batch_images = 64
  g.epochs = 10.0
  for o in (g.optim, g.optim_critic):
    o.lr = o.min_lr = 1.6e-3  # eight times that of width 64: fewer channels add up to less in a step of Adam
  g.checkpoint.every_epochs = 5.0
  c.masks = g

  p = objectives.defaults('amcl')
  p.init = c.get_ref('init')
  p.amcl.dim = 64
  if masked == 'simclr':
    p.amcl.masked = 'none'
  else:
    p.amcl.masks, p.amcl.masks_width = 'masks', g.gan.get_oneway_ref('width')
  if masked == 'random_masks':
    p.amcl.steps = 0
  elif masked == 'adversarial':
    p.amcl.eta = 1.0  # adds more to the loss than .1 does
  p.batch_images = 40  # a fourth of the pictures: none is twice in a batch, its own negative
  p.epochs = 80.0
  p.augment.scale = (0.5, 1.0)  # a vein is told by where it lies
  p.augment.flip = 0.0  # a left hand is no right one
  p.optim.warmup_epochs = 5.0
  p.checkpoint.every_epochs = 20.0
  c.pretrain = p

  f = objectives.defaults('mimic')
  mimic.use_method(f, 'ce')
  f.init = 'pretrain'
  f.drop_path = 0.0
  f.batch_images = 32
  f.epochs = 40.0
  f.augment.scale = (0.7, 1.0)
  f.augment.flip = 0.0
  f.optim.name = 'adamw'
  f.optim.lr = 1e-3
  f.optim.weight_decay = 0.05
  f.optim.layer_decay = 1.0
  f.optim.warmup_epochs = 2.0
  f.eval.every_epochs = 10.0
  f.checkpoint.every_epochs = 20.0
  c.finetune = f

  for s in (p, f):
    if source == 'veins':
      s.data.source = 'synthetic_veins'
      s.data.classes = 40
      s.data.size = 160
      s.data.draw_size = 64
      s.eval.size = 400
    else:
      s.data.source = 'folder'
      s.data.root = c.data.get_oneway_ref('root')
      s.data.held_out = 0.1
    s.data.cache = True
  f.eval.splits = 'test' if source == 'veins' else 'valid'
  return c

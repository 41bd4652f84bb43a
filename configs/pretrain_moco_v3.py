"""MoCo v3 (arXiv 2104.02057) as the paper compares with it (fig. 5): pre-training on ImageNet-1K without labels, 300 epochs.

  mimic prepare --dataset imagenet --raw /data/imagenet --out /data/tfds
  python -m mimic_jax.main --config configs/pretrain_moco_v3.py:vitb16 --config.data.root=/data/tfds
  python -m mimic_jax.main --config configs/pretrain_moco_v3.py:vitb16,folder --config.data.root=/data/imagenet
  python -m mimic_jax.main --config configs/pretrain_moco_v3.py:small,folder --config.data.root=/pictures

Data: as configs/pretrain_imagenet1k.py has it, which says what the first command makes; the second word says how the pictures are stored.
Reaches, published by MoCo v3 with DeiT's fine-tuning on ImageNet: ViT-B 83.2.
Cost: 94,000 steps of 4096 pictures, two views each. The loss is over the whole batch: it is not computed in parts (accumulate), so the batch
must fit on the devices at once. Not measured here. 'small' is a ViT of 64 × 64 pixels for a small machine, on any pictures; --config.pretrain.epochs
sets the time.
"""

from ml_collections import ConfigDict

from mimic_jax import defaults, objectives


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is a size and how the pictures are stored: 'vitb16,arrayrecord' (default), 'small,folder'."""
  size, stored = defaults.words(variant, ('vitb16', 'vits16', 'small'), ('arrayrecord', 'folder'))
  c = defaults.base()
  c.stages = 'pretrain'
  m = c.model
  m.preset = {'vitb16': 'vit_b16', 'vits16': 'vit_s16', 'small': 'vit_ti16'}[size]
  m.pos_embed = 'sincos2d_moco'  # its first half is the row; a table in initial weights replaces it
  p = objectives.defaults('moco_v3')
  defaults.read_imagenet(c, p, stored)
  if size == 'vits16':
    m.heads = 12  # MoCo v3's, twice everybody else's
  if size == 'small':
    m.image_size, m.patch_size, m.depth = 64, 8, 6
    m.dtype = 'float32'
    p.data.threads, p.data.workers, p.data.prefetch = 8, 0, 4
    p.batch_images = 256
    p.epochs = 100.0
    p.moco.hidden, p.moco.dim = 512, 128
    p.augment.scale = (0.2, 1.0)  # .08 of so few pixels leaves little to see
    p.optim.blr = 2e-3  # 1e-3 to 3e-3 were tried on a smaller ViT, for 150 steps: docs/method.md
    p.optim.warmup_epochs = 5.0
  c.pretrain = p
  return c

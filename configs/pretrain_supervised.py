"""Supervised pre-training on ImageNet-1K (or any pictures with labels) by DeiT-B's recipe; the paper's Table II compares with it.

  mimic prepare --dataset imagenet --raw /data/imagenet --out /data/tfds
  python -m mimic_jax.main --config configs/pretrain_supervised.py:vitb16 --config.data.root=/data/tfds

Data: as pretrain_imagenet1k has it, with labels; the second word `folder` reads train/<class>/*.JPEG and val/<class>/ themselves:

  python -m mimic_jax.main --config configs/pretrain_supervised.py:vitb16,folder --config.data.root=/data/imagenet

Reaches, published by DeiT: ViT-B 81.8 % on ImageNet's validation split, on the middle of each picture; here whole pictures are measured.
Fine-tuning takes the encoder: --config=finetune_ferplus --config.init=runs/pretrain_supervised_vitb16. The class token is classified here
(head.pool=cls, as DeiT does). Fine-tuning pools the patch tokens behind a fresh norm, unless --config.finetune.head.pool=cls.
Cost: 375,000 steps of 1024 pictures: for 8 GPUs or a TPU slice; not measured here. `small` is a ViT for 32 × 32 pictures in class folders
on a small machine; --config.pretrain.epochs sets the time. A still smaller one (model.patch_size=8, dim=96, depth=3) took 10 minutes of two busy
cores for 600 steps on general photos of 200 classes and reached 3.9 %, eight times chance:

  python -m mimic_jax.main --config configs/pretrain_supervised.py:small,folder --config.data.root=/pictures
"""

from ml_collections import ConfigDict

from mimic_jax import defaults, objectives


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is a size and how the pictures are stored: 'vitb16,arrayrecord' (default), 'small,folder'."""
  size, stored = defaults.words(variant, ('vitb16', 'small'), ('arrayrecord', 'folder'))
  c = defaults.base()
  c.stages = 'pretrain'
  p = objectives.defaults('supervised')
  defaults.read_imagenet(c, p, stored)
  c.model.preset = {'vitb16': 'vit_b16', 'small': 'vit_ti16'}[size]
  if size == 'small':
    p.data.threads, p.data.workers, p.data.prefetch = 8, 0, 4
    m = c.model
    m.image_size, m.patch_size = 32, 4
    m.dim, m.depth, m.heads = 128, 4, 4
    m.dtype = 'float32'
    m.scan = False  # a few blocks run faster unrolled on a CPU
    p.data.cache = True
    p.data.held_out = 0.05 if stored == 'folder' else 0.0
    p.batch_images = 128
    p.epochs = 10.0
    p.drop_path = 0.0
    p.optim.blr = 2e-3
    p.optim.warmup_epochs = 1.0
    p.checkpoint.every_epochs = 1.0
  c.pretrain = p
  return c

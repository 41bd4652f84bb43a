"""LocalMIM on ImageNet-1K as its authors run it: ViT-B/16, 1600 epochs; or on any folder with a ViT for a small machine.

  mimic prepare --dataset imagenet --raw /data/imagenet --out /data/tfds
  python -m mimic_jax.main --config configs/pretrain_local_mim.py --config.data.root=/data/tfds
  python -m mimic_jax.main --config configs/pretrain_local_mim.py:vitb16,folder --config.data.root=/data/imagenet
  python -m mimic_jax.main --config configs/pretrain_local_mim.py:small,folder --config.data.root=/pictures

Data: as configs/pretrain_imagenet1k.py and configs/pretrain_folder.py; labels are not used. Its authors also run 100 epochs:
--config.pretrain.epochs=100 --config.pretrain.optim.warmup_epochs=10. Reaches, published with its own fine-tuning on ImageNet:
84.0. Their ViT-L has 18 bins, blr 1.5e-4, batch 4096, 800 epochs, and a bias in the Sobel filters, which is not built here.
Cost: 1,000,000 steps of 2048 pictures: for several machines; not measured here. On fewer devices the batch is computed in
parts: --config.pretrain.accumulate=8. `small`: 64 × 64 pixels; --config.pretrain.epochs sets the time.
"""

from ml_collections import ConfigDict

from mimic_jax import defaults, objectives


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is a size and how the pictures are stored: 'vitb16,arrayrecord' (default), 'small,folder'."""
  size, stored = defaults.words(variant, ('vitb16', 'small'), ('arrayrecord', 'folder'))
  c = defaults.base()
  c.stages = 'pretrain'
  p = objectives.defaults('local_mim')
  defaults.read_imagenet(c, p, stored)
  c.model.preset = {'vitb16': 'vit_b16', 'small': 'vit_ti16'}[size]
  if size == 'small':
    p.data.threads, p.data.workers, p.data.prefetch = 8, 0, 4
    c.model.image_size, c.model.patch_size, c.model.depth = 64, 8, 6
    c.model.dtype = 'float32'
    p.batch_images = 128
    p.epochs = 100.0
    p.local_mim.decoder_dim, p.local_mim.decoder_heads = 96, 4
    p.optim.blr = 1.5e-3
    p.optim.warmup_epochs = 5.0
    p.checkpoint.every_epochs = 5.0
  c.pretrain = p
  return c

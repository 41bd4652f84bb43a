"""Stage one as the paper runs it: MAE on ImageNet-1K (or any folder of pictures), ViT-B/16 or ViT-L/16, 1600 epochs.

  python -m mimic_jax.main --config configs/pretrain_imagenet1k.py:vitb16 --config.data.root=/data/imagenet

Data: train/<class>/*.JPEG, or a flat folder; labels are not used. MAE's analysis also reports 400 and 800 epochs:
--config.pretrain.epochs=400. Reaches, published by MAE with its own fine-tuning on ImageNet: ViT-B 83.6, ViT-L 85.9.
Host memory: a batch of 4096 is 0.6 GB as uint8, and each of the 4 reader processes holds a few: 10 GB, with as much /dev/shm.
Cost: 500,000 steps of 4096 pictures: for a TPU pod or several 8-GPU machines; not measured here.
"""

from ml_collections import ConfigDict

from mimic_jax import defaults


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is 'vitb16' (default) or 'vitl16'."""
  (size,) = defaults.words(variant, ('vitb16', 'vitl16'))
  c = defaults.base()
  c.stages = 'pretrain'
  c.model.preset = {'vitb16': 'vit_b16', 'vitl16': 'vit_l16'}[size]
  c.pretrain = defaults.masked_autoencoding()
  c.pretrain.init = c.get_ref('init')
  c.pretrain.data.source = 'folder'
  c.pretrain.data.root = c.data.get_oneway_ref('root')
  c.pretrain.data.on_bad_image = 'skip'
  c.pretrain.data.threads = 32
  c.pretrain.data.workers = 4
  c.pretrain.data.prefetch = 1
  return c

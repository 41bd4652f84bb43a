"""Stage one as the paper runs it: MAE on ImageNet-1K (or any pictures), ViT-B/16 or ViT-L/16, 1600 epochs.

  mimic prepare --dataset imagenet --raw /data/imagenet --out /data/tfds
  python -m mimic_jax.main --config configs/pretrain_imagenet1k.py:vitb16 --config.data.root=/data/tfds

Data: ArrayRecord as TFDS lays it out. The first command makes it of train/<class>/*.JPEG, without TensorFlow, keeping every
byte: it takes as much disk again (147 GB), and the time to read all files once. TFDS's own, prepared in that format, is read
with --config.pretrain.data.name=imagenet2012:5.1.0. The second word `folder` reads the tree itself, in the same batches:

  python -m mimic_jax.main --config configs/pretrain_imagenet1k.py:vitb16,folder --config.data.root=/data/imagenet

The folder may also be flat; labels are not used. MAE's analysis also reports 400 and 800 epochs:
--config.pretrain.epochs=400. Reaches, published by MAE with its own fine-tuning on ImageNet: ViT-B 83.6, ViT-L 85.9.
Host memory: a batch of 4096 is 0.6 GB as uint8, and each of the 4 reader processes holds a few: 10 GB.
Cost: 500,000 steps of 4096 pictures: for a TPU pod or several 8-GPU machines; not measured here. On fewer devices the batch is computed
in parts: --config.pretrain.accumulate=8 on eight, 64 on one, is 64 pictures a device at a time (7.7 GiB on v5e:2x4, by mimic plan).
"""

from ml_collections import ConfigDict

from mimic_jax import defaults, objectives


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is a size and how the pictures are stored: 'vitb16,arrayrecord' (default), 'vitl16,folder'."""
  size, stored = defaults.words(variant, ('vitb16', 'vitl16'), ('arrayrecord', 'folder'))
  c = defaults.base()
  c.stages = 'pretrain'
  c.model.preset = {'vitb16': 'vit_b16', 'vitl16': 'vit_l16'}[size]
  c.pretrain = objectives.defaults('masked_autoencoding')
  defaults.read_imagenet(c, c.pretrain, stored)
  return c

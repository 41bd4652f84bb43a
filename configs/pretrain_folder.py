"""Stage one on any folder of pictures with a ViT for a small machine (64 × 64 pixels).

  python -m mimic_jax.main --config configs/pretrain_folder.py:small --config.data.root=/pictures

Data: pictures of any size and mode, flat or in class folders; labels are not used; unreadable ones are skipped and
counted. Cost and what it reaches depend on the folder; --config.pretrain.epochs sets the time.
"""

from ml_collections import ConfigDict

from mimic_jax import defaults, objectives


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is 'small', the only one."""
  defaults.words(variant, ('small',))
  c = defaults.base()
  c.stages = 'pretrain'
  m = c.model
  m.preset = 'vit_ti16'
  m.image_size, m.patch_size = 64, 8
  m.depth = 6
  m.dtype = 'float32'
  p = objectives.defaults('masked_autoencoding')
  p.init = c.get_ref('init')
  p.data.source = 'folder'
  p.data.root = c.data.get_oneway_ref('root')
  p.data.on_bad_image = 'skip'
  p.batch_images = 128
  p.epochs = 100.0
  p.mae.decoder_dim, p.mae.decoder_depth, p.mae.decoder_heads = 96, 2, 4
  p.optim.blr = 1.5e-3
  p.optim.warmup_epochs = 5.0
  p.checkpoint.every_epochs = 5.0
  c.pretrain = p
  return c

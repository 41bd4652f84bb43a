"""The fault campaign's run: both stages on drawn pictures, small enough that a restart costs seconds.

A model of a few thousand parameters, 24 + 30 steps, a checkpoint every 4 and an evaluation every 8 of them. Not for training: the
campaign (`python -m tests.faults`) plays faults on it and changes single fields on the command line.
"""

from ml_collections import ConfigDict

from mimic_jax import defaults, objectives


def get_config() -> ConfigDict:
  """Returns the config."""
  c = defaults.base()
  c.name = 'faults'
  c.stages = 'pretrain,finetune'
  c.log.every = 1
  c.log.progress = False
  c.log.report_every = 600.0  # drawn once while a stage goes on, and at its end
  m = c.model
  m.preset = 'vit_ti16'
  m.image_size, m.patch_size, m.dim, m.depth, m.heads = 16, 8, 32, 2, 2
  m.dtype = 'float32'

  p = objectives.defaults('masked_autoencoding')
  p.mae.decoder_dim, p.mae.decoder_depth, p.mae.decoder_heads = 16, 1, 2
  p.mae.mask_ratio = 0.5
  p.data.source = 'synthetic_images'
  p.optim.blr = 1e-2
  p.optim.warmup_epochs = 1.0
  p.steps = 24
  c.pretrain = p

  f = objectives.defaults('mimic')
  f.init = 'pretrain'
  f.data.source = 'synthetic_faces'
  f.drop_path = 0.1
  f.head.projection_dim = 8
  f.optim.lr = 1e-3
  f.optim.warmup_epochs = 0.0
  f.steps = 30
  c.finetune = f

  for s in (p, f):
    s.batch_images = 8
    s.data.size = 64  # 8 steps an epoch
    s.data.draw_size = 16
    s.data.threads = 2
    s.eval.splits = 'valid'
    s.eval.size = 24
    s.eval.batch_images = 8
    s.checkpoint.every_epochs = 0.5
    s.eval.every_epochs = 1.0
  return c

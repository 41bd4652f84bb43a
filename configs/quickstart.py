"""Both stages of MIMIC in minutes on a laptop, on drawn pictures: nothing is downloaded.

  python -m mimic_jax.main --config configs/quickstart.py

What it does: pre-trains a small ViT by filling in masked pictures of shapes, textures and scenes; fine-tunes it on drawn
faces of seven expressions with cross-entropy + mix-supervised contrast; fine-tunes the same ViT from scratch with the
same budget; writes report.html. It shows the machinery and proves nothing about the method.
Variant `:minute` is a cut of it for a quick check.
Cost and results: README.md.
"""

from ml_collections import ConfigDict

from mimic_jax import defaults, objectives


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is '' or 'minute'."""
  (length,) = defaults.words(variant, ('full', 'minute'))
  full = length == 'full'
  c = defaults.base()
  c.stages = 'pretrain,finetune,scratch'
  c.report_note = (
    'Drawn pictures and a very small ViT: this page shows the machinery at work and proves nothing about the method. '
    '“finetune” starts from the weights of “pretrain”; “scratch” is the same model and budget with random weights and '
    'no layer-wise decay.'
  )
  c.log.every = 10
  c.log.report_every = 90.0
  m = c.model
  m.preset = 'vit_ti16'
  m.image_size, m.patch_size = 48, 8
  m.dim, m.depth, m.heads = 96, 3, 3
  m.dtype = 'float32'
  m.scan = False  # a few blocks run faster unrolled on a CPU

  p = objectives.defaults('masked_autoencoding')
  p.init = c.get_ref('init')
  p.data.source = 'synthetic_images'
  p.data.size = 4096 if full else 512
  p.batch_images = 64
  p.epochs = 6.0 if full else 1.0
  p.mae.decoder_dim, p.mae.decoder_depth, p.mae.decoder_heads = 64, 2, 4
  p.augment.scale = (0.5, 1.0)
  p.augment.interpolation = 'bilinear'
  p.optim.blr = 4e-3
  p.optim.warmup_epochs = 1.0
  p.eval.splits = 'valid'
  p.eval.every_epochs = 3.0
  c.pretrain = p

  for name in ('finetune', 'scratch'):
    f = objectives.defaults('mimic')
    f.init = 'pretrain' if name == 'finetune' else ''
    f.data.source = 'synthetic_faces'
    f.data.size = 2048 if full else 256
    f.batch_images = 32
    f.epochs = 5.5 if full else 1.0
    f.drop_path = 0.0
    f.augment.scale = (0.9, 1.0)
    f.mix.probability = 0.3  # with so few steps, most batches stay as they are
    f.head.projection_dim = 64
    f.optim.name = 'adamw'
    f.optim.lr = 1e-3
    f.optim.weight_decay = 0.05
    f.optim.layer_decay = 0.9 if name == 'finetune' else 1.0
    f.optim.warmup_epochs = 1.0 if full else 0.5
    f.eval.splits = 'valid'
    f.eval.size = 700 if full else 140
    f.eval.every_epochs = 2.5
    c[name] = f

  for name in ('pretrain', 'finetune', 'scratch'):
    s = c[name]
    s.data.draw_size = 48
    s.data.cache = True
    s.checkpoint.every_epochs = 2.0
  return c

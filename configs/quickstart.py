"""Both stages of MIMIC in minutes on a laptop, on drawn pictures: nothing is downloaded.

  python -m mimic_jax.main --config configs/quickstart.py

What it does: pre-trains a small ViT by filling in masked pictures of 6,144 drawn faces, without labels; fine-tunes it on 640
others with their labels (seven expressions) by cross-entropy + mix-supervised contrast; fine-tunes the same ViT from scratch
with the same budget; writes report.html.
What it shows: stage one helps where labels and steps are few and pictures of the same kind are many. What it doesn't show: the paper
pre-trains on general pictures without faces, and these are cartoons.
Variant `:minute` is a cut of it for a quick check.
Cost and results: README.md, docs/reproduction.md.
"""

from ml_collections import ConfigDict

from mimic_jax import defaults, objectives


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is '' or 'minute'."""
  (length,) = defaults.words(variant, ('full', 'minute'))
  full = length == 'full'
  faces, labelled = (6144, 640) if full else (512, 256)
  c = defaults.base()
  c.stages = 'pretrain,finetune,scratch'
  c.report_note = (
    'Drawn faces and a very small ViT: this page shows the machinery at work and says nothing of real faces. “pretrain” '
    f'sees {faces:,} drawn faces without their labels, “finetune” starts from its weights and sees {labelled} others with labels; '
    '“scratch” is the same fine-tuning from random weights. What stage one gains here, it gains from unlabelled pictures of '
    'the same kind; the paper pre-trains on general pictures, of which this is no test.'
  )
  c.log.every = 10
  c.log.report_every = 90.0
  m = c.model
  m.preset = 'vit_ti16'
  m.image_size, m.patch_size = 32, 8
  m.dim, m.depth, m.heads = 64, 3, 4
  m.dtype = 'float32'
  m.scan = False  # a few blocks run faster unrolled on a CPU

  p = objectives.defaults('masked_autoencoding')
  p.init = c.get_ref('init')
  p.data.source = 'synthetic_faces'
  p.data.size = faces
  p.batch_images = 64
  p.epochs = 30.0 if full else 1.0
  p.mae.mask_ratio = 0.6  # of 16 patches; 0.75 would leave 4
  p.mae.decoder_dim, p.mae.decoder_depth, p.mae.decoder_heads = 48, 1, 4
  p.augment.scale = (0.5, 1.0)
  p.augment.interpolation = 'bilinear'
  p.optim.blr = 8e-3
  p.optim.warmup_epochs = 1.0
  p.eval.splits = 'valid'
  p.eval.every_epochs = 5.0
  c.pretrain = p

  for name in ('finetune', 'scratch'):
    f = objectives.defaults('mimic')
    f.init = 'pretrain' if name == 'finetune' else ''
    f.data.source = 'synthetic_faces'
    f.data.size = labelled
    f.data.draw_seed = 1  # other faces than those of stage one, for training and for measuring
    f.batch_images = 32
    f.epochs = 20.0 if full else 1.0
    f.drop_path = 0.0
    f.augment.scale = (0.9, 1.0)
    f.mix.probability = 0.3  # with so few steps, most batches stay as they are
    f.head.projection_dim = 64
    f.optim.name = 'adamw'
    f.optim.lr = 2e-3
    f.optim.weight_decay = 0.05
    f.optim.layer_decay = 1.0
    f.optim.warmup_epochs = 1.0 if full else 0.5
    f.eval.splits = 'valid'
    f.eval.size = 700 if full else 140
    f.eval.every_epochs = 4.0
    c[name] = f

  for name in ('pretrain', 'finetune', 'scratch'):
    s = c[name]
    s.data.draw_size = 32
    s.data.cache = True
    s.checkpoint.every_epochs = 10.0
  return c

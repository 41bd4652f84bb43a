"""SSL-FER (arXiv 2210.03853) on clips of faces: self-supervised contrast between frames of a video, and each of its four ideas by a word.

  mimic align /data/voxceleb --landmarks 68
  python -m mimic_jax.main --config configs/pretrain_sslfer.py --config.data.root=/data/voxceleb
  python -m mimic_jax.main --config configs/pretrain_sslfer.py:resnet50,mask_fn --config.data.root=/data/voxceleb \\
    --config.pretrain.ssl_fer.mask_fn_weights=resnet18-f37072fd.pth
  python -m mimic_jax.main --config configs/pretrain_sslfer.py:small

Data: clips as root/train/<person>/<clip>/<frame>.jpg, 25/6 frames per second as its authors cut VoxCeleb1 (for researchers); the first command
writes the frames' 68 points beside them. For another rate set --config.pretrain.data.fps. `small` draws its clips.
Words: resnet50 (default), vitb16, small (a narrow ResNet-18 at 56 × 56); `no_time` (a positive is the same frame, as in SimCLR); `no_hard` (no second
pair of a clip, but twice the clips in a step and twice the epochs: as many pictures and steps); `swap` (positives with the outline of another face);
`mask_fn` or `mask_fn_threshold` (negatives that look alike are left out, by a frozen ResNet-18).
Reaches, published, on AffectNet-8 with a linear classifier: 59.3 with all, SimCLR 57.7.
Cost: 300 epochs of all clips, 512 pictures of 112 × 112 in each step; not measured here. `small`: 800 steps of 128 pictures; a step
took 1.5 s of CPU time (2026-12-01). The linear classifier on it, RUN being its folder:

  python -m mimic_jax.main --config linear_probe:init,affectnet --config.data.root=/data/affectnet --config.init=RUN \\
    --config.model.image_size=112 --config.probe.head.pool=gap --config.probe.data.classes=8
"""

from ml_collections import ConfigDict

from mimic_jax import defaults, objectives


def get_config(variant: str = '') -> ConfigDict:
  """Returns the config; `variant` is a size and what is left out or added: 'resnet50' (default), 'small,no_time,no_hard'."""
  size, time, hard, swap, mask = defaults.words(
    variant,
    ('resnet50', 'vitb16', 'small'),
    ('time', 'no_time'),
    ('hard', 'no_hard'),
    ('no_swap', 'swap'),
    ('no_mask_fn', 'mask_fn', 'mask_fn_threshold'),
  )
  c = defaults.base()
  c.stages = 'pretrain'
  m = c.model
  m.preset = {'resnet50': 'resnet50', 'vitb16': 'vit_b16', 'small': 'resnet18'}[size]
  m.image_size = 112
  p = objectives.defaults('ssl_fer')
  p.init = c.get_ref('init')
  f = p.ssl_fer
  f.time_positives = time == 'time'
  f.hard_negatives = hard == 'hard'
  f.face_swap = 0.8 if swap == 'swap' else 0.0
  f.mask_fn = {'no_mask_fn': 'none', 'mask_fn': 'argmax', 'mask_fn_threshold': 'threshold'}[mask]
  p.data.root = c.data.get_oneway_ref('root')
  if size == 'small':
    m.image_size, m.dim = 56, 128  # 7 / 8 of the frames; a quarter of a ResNet-18's width
    m.dtype = 'float32'
    p.data.source = 'synthetic_clips'
    p.data.size = 8192  # frames, of 256 clips
    p.data.cache = True
    p.batch_images = 32
    p.epochs = 100.0
    p.optim.lr = 1e-3
    p.optim.hold_epochs = 3.0
  else:
    p.data.source = 'clips'
    p.data.on_bad_image = 'skip'
    p.data.threads = 32
    p.data.workers = 4
    p.data.prefetch = 1
  if not f.hard_negatives:
    p.batch_images = 2 * p.batch_images  # as many rows, in as many steps
    p.epochs, p.optim.hold_epochs = 2 * p.epochs, 2 * p.optim.hold_epochs
  c.pretrain = p
  return c

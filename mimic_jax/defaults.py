"""Fields that all configs share, with default, unit and where each is from; an objective's own are in objectives/. The files in configs/ start here.

P is the paper (arXiv 2401.07245), MAE is arXiv 2111.06377, [D] marks a reading of ours where P is silent
(docs/method.md says why). Off is written '' or 0, never None: None can't be overridden on the command line. Sections are locked: a config that
misspells a field fails where it does.
"""

from ml_collections import ConfigDict

from mimic_jax.data.options import defaults as data
from mimic_jax.runtime.errors import one_of

INF = float('inf')

# What is common to all stages; what a module's own fields may be stands there (CHOICES, RANGES): data/options.py,
# models/__init__.py, augment.py, objectives.
CHOICES = {'optim.name': ('adam', 'adamw')}
RANGES = {
  'batch_images': (1, INF),
  'epochs': (0, INF),
  'steps': (0, INF),
  'accumulate': (1, INF),
  'ema': (0, 0.9999999),
  'drop_path': (0, 0.99),
  'max_bad_steps': (0, INF),
  'eval.batch_images': (1, INF),
  'eval.every_epochs': (0, INF),
  'eval.size': (1, INF),
  'checkpoint.every_epochs': (0.001, INF),
  'checkpoint.keep': (1, INF),
  'optim.lr': (0, INF),
  'optim.blr': (0, INF),
  'optim.b1': (0, 0.9999),
  'optim.b2': (0, 0.999999),
  'optim.eps': (1e-16, 1),
  'optim.weight_decay': (0, INF),
  'optim.layer_decay': (0.01, 1),
  'optim.warmup_epochs': (0, INF),
  'optim.hold_epochs': (0, INF),
  'optim.cosine_epochs': (0, INF),
  'optim.min_lr': (0, INF),
  'optim.clip_norm': (0, INF),
  'log.every': (1, INF),
  'profile': (0, INF),
  'mesh.fsdp': (1, INF),
}


def base() -> ConfigDict:
  """Returns what belongs to a run as a whole; `stages` names its stages in order, each a section of its own."""
  c = ConfigDict()
  c.name = ''
  c.seed = 0  # of everything: weights, order of the pictures, crops, masks, mixing
  c.stages = ''  # sections to run, in order, comma-separated: 'pretrain,finetune'
  c.init = ''  # of the first stage: a run's folder, a checkpoint, a weight file; '' = from scratch
  c.profile = 0  # steps of each stage to trace, for XProf or Perfetto (docs/performance.md); 0 = none; a resumed run may change it
  c.report_note = ''  # a paragraph for the top of the report
  c.data = ConfigDict({'root': ''})  # where the pictures are; several sources: one path each, comma-separated
  c.model = encoder()
  c.mesh = ConfigDict()  # how the devices are used; a resumed run may change it
  c.mesh.data = -1  # devices that split the batch only; -1 = all that are left
  c.mesh.fsdp = 1  # devices that split batch, parameters and optimiser state
  c.log = ConfigDict()  # a resumed run may change it
  c.log.every = 20  # steps between lines of metrics.jsonl
  c.log.tensorboard = True
  c.log.wandb = ''  # project of Weights & Biases that gets the lines, too (`pip install wandb`); '' = off
  c.log.progress = True  # the bar on standard error
  c.log.report_every = 60.0  # seconds between rewrites of report.html at the least
  c.log.compile_cache = 'auto'  # folder that keeps compiled programs for the next start; auto = ~/.cache/mimic_jax/compile, '' = off
  for section in (c.data, c.mesh, c.log):
    section.lock()
  return c


def encoder() -> ConfigDict:
  """Returns the encoder's section, shared by all stages of a run so that one can hand its weights to the next."""
  m = ConfigDict()
  m.preset = 'vit_b16'  # vit_ti16 | vit_s16 | vit_b16 | vit_l16 | vit_h14, which the sizes below override | resnet18 | resnet50 | init (those of the first weights)
  m.image_size = 224  # pixels (P §IV-B); 0, with preset 'init': as the weights have it
  m.patch_size = 0  # pixels
  m.dim = 0  # of the features; a ResNet's four stages have their share of it
  m.depth = 0
  m.heads = 0
  m.mlp_ratio = 4.0
  m.layer_norm_eps = 1e-6  # Hugging Face's ViTMAE configs say 1e-12
  m.registers = 0  # tokens beside the class token's that are no output; DINOv2 has 4 or none
  m.layer_scale = 0.0  # what the factors of a block's two branches begin with; 0 = none, DINOv2 has some
  m.stem = 'auto'  # resnet: 7x7 (as published) | 3x3 (of stride 1) | auto (3x3 below 96 pixels)
  m.pos_embed = 'sincos2d'  # sincos2d (MAE: first half is the column) | sincos2d_moco (the row)
  m.dtype = 'bfloat16'  # of the arithmetic: bfloat16 | float32; parameters are float32 always
  m.scan = True  # scan over the stacked blocks (compiles fast) or unroll them (may run faster); same result
  m.remat = 'auto'  # kept of a block for the backward pass: all (none) | products (dots) | products with weights (weight_dots) | nothing, the least memory (full); auto: dots where blocks are scanned, else none
  m.attention = 'auto'  # auto | xla | cudnn; auto takes cuDNN on GPUs that run in bfloat16
  return m.lock()


def evaluation() -> ConfigDict:
  """Returns the section that says what a stage is measured on."""
  e = ConfigDict()
  e.splits = 'valid'  # comma-separated; '' = no evaluation
  e.batch_images = 256
  e.every_epochs = 1.0  # 0 = only at the end; the last epoch's result is the headline whatever this is
  e.without_duplicates = False  # also without copies of training pictures: of the same bytes, the same pixels, near ones (mirrored, resized, …)
  e.source = ''  # '' = the same source as data.source (only its first, where there are several)
  e.root = ''
  e.size = 512  # synthetic sources: number of pictures drawn for each split
  return e.lock()


def optimiser() -> ConfigDict:
  """Returns the optimiser's section with the fine-tuning defaults (P §IV-B)."""
  o = ConfigDict()
  o.name = 'adam'  # adam (weight decay as coupled L2, as torch.optim.Adam does [D]) | adamw (decoupled)
  o.lr = 1e-4  # peak learning rate; not scaled by the batch [D]
  o.blr = 0.0  # when not 0: lr = blr · batch_images / 256 (MAE)
  o.b1 = 0.9
  o.b2 = 0.999
  o.eps = 1e-8
  o.weight_decay = 5e-4  # none on biases and norms
  o.decay_tokens = False  # whether class and mask tokens get it, as in MAE's pre-training; [D] not here
  o.layer_decay = 0.65  # lr of block i: lr · layer_decay^(depth − i); 1 = off, right from scratch [D]
  o.warmup_epochs = 5.0  # linear from 0; a tenth of the epochs [D]
  o.hold_epochs = 0.0  # at the peak, before the cosine
  o.cosine_epochs = 0.0  # length of the half cosine, which a stage may end before; 0 = what is left
  o.min_lr = 1e-6  # end of the cosine [D]
  o.clip_norm = 0.0  # global gradient norm; 0 = off
  return o.lock()


def checkpoint() -> ConfigDict:
  """Returns the checkpoint section of a stage; a resumed run may change it."""
  c = ConfigDict()
  c.every_epochs = 1.0
  c.keep = 2
  return c.lock()


def stage() -> ConfigDict:
  """Returns what every stage has, whatever its objective."""
  s = ConfigDict()
  s.objective = ''  # a module of mimic_jax/objectives
  s.init = ''  # an earlier stage's name, a run's folder, a checkpoint, a weight file; '' = from scratch
  s.init_head = False  # also take the classifier (and projection) of `init`; classes are matched by name
  s.epochs = 1.0
  s.steps = 0  # when not 0: the number of steps, instead of epochs
  s.batch_images = 64  # images per step over all devices, not crops
  s.accumulate = 1  # parts that a batch is computed in, one after the other: less memory
  s.ema = 0.0  # decay of a moving average of the weights, measured beside them as <split>_ema; 0 = none
  s.drop_path = 0.0  # of the last block; rises linearly from 0 at the first
  s.max_bad_steps = 0  # steps with non-finite gradients that are left out before the run stops
  s.data = data()
  s.eval = evaluation()
  s.optim = optimiser()
  s.checkpoint = checkpoint()
  s.augment = ConfigDict()
  s.augment.scale = (0.67, 1.0)  # share of the picture's area (SimMIM's pre-training transform, P's [17])
  s.augment.ratio = (3 / 4, 4 / 3)  # width to height
  s.augment.interpolation = 'bilinear'  # bilinear | bicubic
  s.augment.flip = 0.5  # probability
  s.augment.mean = (0.485, 0.456, 0.406)  # ImageNet's, of pixels in 0..1
  s.augment.std = (0.229, 0.224, 0.225)
  s.augment.rand_ops = 0  # RandAugment's operations on each crop (timm's rand-m9-mstd0.5-inc1: 2); 0 = off
  s.augment.rand_magnitude = 9.0  # how strong they are, of 10
  s.augment.rand_std = 0.5  # standard deviation of that, drawn for each
  s.augment.erasing = 0.0  # probability that a crop gets a box of noise (random erasing, pixel mode)
  return s


def read_imagenet(c: ConfigDict, s: ConfigDict, stored: str) -> None:
  """Has a pre-training `s` of config `c` read ImageNet-1K, or any pictures, on a host with many cores; 'arrayrecord' or 'folder'."""
  s.init = c.get_ref('init')
  s.data.source = {'arrayrecord': 'tfds', 'folder': 'folder'}[stored]
  s.data.name = 'imagenet' if stored == 'arrayrecord' else ''
  s.data.root = c.data.get_oneway_ref('root')
  s.data.on_bad_image = 'skip'
  s.data.threads, s.data.workers, s.data.prefetch = 32, 4, 1


def words(variant: str, *groups: tuple[str, ...]) -> list[str]:
  """Reads a config's variant: words after the colon, comma-separated, at most one of each group.

  Args:
    variant: what stood behind the colon.
    groups: the words of each group, its default first.

  Returns:
    One word per group.

  Raises:
    UserError: for a word that is in no group.
  """
  words.groups = groups  # for --help
  chosen = [group[0] for group in groups]
  for word in (w.strip() for w in variant.split(',') if w.strip()):
    one_of("--config: the variant behind ':'", word, [w for group in groups for w in group])
    for i, group in enumerate(groups):
      if word in group:
        chosen[i] = word
  return chosen

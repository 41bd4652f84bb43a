"""SSL-FER (arXiv 2210.03853; docs/method.md): two frames of a clip, half a second to 1.5 seconds apart, agree against all others. No labels.

SimCLR on video, with four ideas that each can be left out: positives from another time (TimeAug), negatives of the same person and clip (HardNeg),
positives in the outline of another face (FaceSwap, made by the readers), negatives left out that look alike about eyes and mouth (MaskFN).
Shapes: b clips of G = 4 frames (anchor, positive, second anchor, its positive; 2 without HardNeg), N = G · b rows z [N, dim] of length 1.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mimic_jax import augment, clips, colour, defaults, face_parts, landmarks, losses, models
from mimic_jax.boxes import ATTEMPTS, crop_boxes
from mimic_jax.models import flops, heads, resnet
from mimic_jax.objectives import base
from mimic_jax.objectives.base import Batch
from mimic_jax.report.drawing import Drawing
from mimic_jax.runtime.errors import UserError

POOL = 'cls'  # what the projector gets of a ViT: its class token behind the last norm
PART_SIZE = 64  # pixels of a crop of eyes or mouth
MASK_FN = ('none', 'argmax', 'threshold')
SAMPLING = ('fresh', 'fixed')
ROWS = 8  # pictures drawn for the report
EVALUATION_SEED = 0  # of the views in evaluation, which are the same in every run
# For base.check_idle.
_WITHOUT_EFFECT = (
  ('ssl_fer.offsets', 'ssl_fer.time_positives', False),
  ('ssl_fer.mask_fn_weights', 'ssl_fer.mask_fn', 'none'),
  ('ssl_fer.mask_fn_share', 'ssl_fer.mask_fn', 'none', 'threshold'),
  ('ssl_fer.mask_fn_threshold', 'ssl_fer.mask_fn', 'none', 'argmax'),
  ('ssl_fer.spare_hard_negatives', 'ssl_fer.mask_fn', 'none', 'threshold'),
  ('ssl_fer.spare_hard_negatives', 'ssl_fer.hard_negatives', False),
  ('augment.blur_sigma', 'augment.blur', 0),
)


class Model(nnx.Module):
  """An encoder and its projector, Linear(D, D)–ReLU–Linear(D, dim)."""

  def __init__(self, config: models.EncoderConfig, dim: int, rngs: nnx.Rngs):
    self.encoder = config.create(rngs)
    self.projector = heads.ProjectionHead('dense', config.dim, dim, rngs)

  def project(self, images: jax.Array, key: jax.Array | None) -> jax.Array:
    """Maps images [N, S, S, 3], normalised, to z, float32 [N, dim] of length 1; with a key as in training: statistics of this batch."""
    return heads.l2_normalise(self.projector(self.encoder.features(images, key=key, pool=POOL)))


class PartsNetwork(nnx.Module):
  """The frozen ResNet-18 that says which eyes and mouths are alike."""

  def __init__(self, config: resnet.Config, rngs: nnx.Rngs):
    self.encoder = config.create(rngs)

  def __call__(self, parts: jax.Array) -> jax.Array:
    """Maps normalised crops [N, 2, 64, 64, 3] to u, float32 [N, 2 · 512] of length 1."""
    each = [self.encoder.features(parts[:, k]) for k in range(parts.shape[1])]
    return jax.lax.stop_gradient(heads.l2_normalise(jnp.concatenate(each, axis=-1)))


class Objective(base.Objective):
  """Contrast over frames of clips; see base.py for the contract."""

  CITES: ClassVar = {
    'shu2022revisiting': {
      'type': 'inproceedings',
      'title': 'Revisiting Self-Supervised Contrastive Learning for Facial Expression Recognition',
      'author': 'Shu, Yuxuan and Gu, Xiao and Yang, Guang-Zhong and Lo, Benny',
      'booktitle': 'British Machine Vision Conference (BMVC)',
      'year': '2022',
      'note': 'arXiv:2210.03853',
    }
  }
  pairs = True
  pool = POOL
  CHOICES: ClassVar = {
    'ssl_fer.offsets': tuple(clips.WEIGHTS),
    'ssl_fer.sampling': SAMPLING,
    'ssl_fer.mask_fn': MASK_FN,
  }
  RANGES: ClassVar = {
    'ssl_fer.dim': (1, float('inf')),
    'ssl_fer.temperature': (1e-4, float('inf')),
    'ssl_fer.face_swap': (0, 1),
    'ssl_fer.mask_fn_share': (0, float('inf')),
    'ssl_fer.mask_fn_threshold': (-1, 1),
    'augment.landmark_mask': (0, 1),
    'augment.grayscale': (0, 1),
    'augment.blur': (0, 1),
  }
  FIGURES: ClassVar = {
    'loss': base.Figure(
      'Loss',
      note='NT-Xent over all frames of the batch. A split is measured on two fixed views of each picture, against the others of its batch '
      '(eval.batch_images), frames of its own clip among them, without MaskFN and with the running batch statistics: not to be compared with the '
      'training figure.',
    ),
    'positives_found': base.Figure(
      'Rows nearest to their positive', share=True, note='Among the rows of the batch.'
    ),
    'alike': base.Figure('Negatives taken for none', share=True, note='By their eyes and mouths (MaskFN).'),
    'likest_in_clip': base.Figure(
      'Likest negative is of the same clip', share=True, note='By eyes and mouth (MaskFN).'
    ),
  }

  @classmethod
  def defaults(cls) -> ConfigDict:
    """Returns a stage with the recipe of the paper's published code, which pre-trains on VoxCeleb1."""
    s = defaults.stage()
    s.objective = 'ssl_fer'
    s.epochs = 300.0  # each of all clips once
    s.batch_images = 128  # clips per step, four frames each
    s.ssl_fer = ConfigDict()
    s.ssl_fer.dim = 128  # of z
    s.ssl_fer.temperature = 0.07  # τ
    s.ssl_fer.time_positives = True  # TimeAug: a positive is a frame .5 to 1.5 s off; else the same frame
    s.ssl_fer.offsets = 'falling'  # which of the five distances: falling (5:4:3:2:1) | uniform | rising
    s.ssl_fer.hard_negatives = True  # HardNeg: a second pair of each clip, 3 s off; else an item is one pair
    s.ssl_fer.sampling = 'fresh'  # fresh (frames drawn each epoch) | fixed (once, as in the published code)
    s.ssl_fer.face_swap = 0.0  # FaceSwap: probability that a positive gets another clip's outline; .8 there
    s.ssl_fer.mask_fn = 'none'  # none | argmax (a row's likest negative) | threshold (all that are like it)
    s.ssl_fer.mask_fn_weights = ''  # of its frozen ResNet-18, stem 7x7: torchvision's for ImageNet
    s.ssl_fer.mask_fn_share = 0.8  # argmax: of the second term, which takes that negative for a positive
    s.ssl_fer.mask_fn_threshold = 0.5  # threshold: a cosine
    s.ssl_fer.spare_hard_negatives = False  # argmax: never a frame of the same clip
    for name in ('rand_ops', 'rand_magnitude', 'rand_std', 'erasing'):  # its views are other ones
      del s.augment[name]
    s.augment.landmark_mask = 0.8  # probability that mouth or an eye is covered; needs landmarks, 0 doesn't
    s.augment.scale = ((7 / 8) ** 2, (7 / 8) ** 2)  # 112 of 128 pixels each way
    s.augment.ratio = (1.0, 1.0)
    s.augment.jitter = (0.4, 0.4, 0.4, 0.2)  # strength of brightness, contrast, saturation, hue
    s.augment.jitter_probability = (1.0, 0.8)  # of an anchor, of a positive
    s.augment.blur = 0.5  # probability; over 3 x 3 pixels
    s.augment.blur_sigma = (0.1, 2.0)  # pixels
    s.augment.grayscale = 0.2  # probability
    s.optim.lr = 3e-4
    s.optim.weight_decay = 1e-4
    s.optim.layer_decay = 1.0
    s.optim.warmup_epochs = 0.0
    s.optim.hold_epochs = 10.0
    s.optim.min_lr = 0.0
    s.eval.splits = ''
    s.checkpoint.every_epochs = 10.0
    return s.lock()

  def __init__(self, stage: Mapping[str, Any], model: Mapping[str, Any], class_names: tuple[str, ...]):
    del class_names
    self.stage = stage
    self.config = models.encoder_config(model, stage['drop_path'])
    f = stage['ssl_fer']
    self.frames = clips.Frames(
      stage['data']['fps'],
      f['time_positives'],
      f['hard_negatives'],
      f['offsets'],
      f['sampling'] == 'fixed',
      f['face_swap'],
    )
    self.pictures = self.frames.pictures
    if stage['batch_images'] < 2:
      raise UserError('batch_images is 1; expected at least 2: a clip is told apart from others')
    if (f['time_positives'] or f['hard_negatives']) and self.frames.fps < 1:
      raise UserError(
        f'data.fps is {self.frames.fps:g}; expected at least 1: else a positive is the same frame, and a second anchor as well'
      )
    base.check_idle(stage, type(self).defaults(), _WITHOUT_EFFECT)
    if f['mask_fn'] != 'none' and not f['mask_fn_weights']:
      raise UserError(
        f"ssl_fer.mask_fn_weights is empty, and ssl_fer.mask_fn '{f['mask_fn']}'; expected weights of a ResNet-18"
      )
    colour.check(stage['augment'], jitter_probability=2)
    self._parts_config = resnet.Config(
      PART_SIZE, *resnet.PRESETS['resnet18'], stem='7x7', dtype=self.config.dtype
    )
    self._drawn_views = jax.jit(self._views)

  @property
  def _masks(self) -> bool:
    return self.stage['ssl_fer']['mask_fn'] != 'none'

  def inputs(self) -> dict[str, base.Crops | base.Target]:
    """One crop of each frame; its points where something is made of them."""
    points = {landmarks.TARGET: base.Target((landmarks.POINTS, 2))}
    return {
      'image': base.Crops(),
      **(points if self.stage['augment']['landmark_mask'] or self.frames.swap or self._masks else {}),
    }

  def flops_per_image(self) -> float:
    """Returns those of a frame: forward and backward, its parts forward, and the products of rows; z_j counts in backward, too."""
    D, dim = self.config.dim, self.stage['ssl_fer']['dim']
    rows = self.pictures * self.stage['batch_images']
    trained = self.config.flops() + flops.linear(1, D, D) + flops.linear(1, D, dim)
    each = flops.TRAINING * (trained + flops.linear(1, dim, rows))
    if self._masks:
      each += 2 * self._parts_config.flops() + flops.linear(1, 2 * self._parts_config.dim, rows)
    return each

  def init(self, key: jax.Array) -> Model:
    """Returns a fresh model."""
    return Model(self.config, self.stage['ssl_fer']['dim'], nnx.Rngs(key))

  def initial(self, path: tuple[str, ...]) -> str:
    """The encoder is needed; the projector is taken of a run of this objective with such a one."""
    return 'needed' if path[0] == 'encoder' else 'if_whole'

  def frozen(self) -> dict[str, base.Frozen]:
    """The network of MaskFN."""
    if not self._masks:
      return {}
    path, config = self.stage['ssl_fer']['mask_fn_weights'], self._parts_config
    network = lambda key: PartsNetwork(config, nnx.Rngs(key))  # noqa: E731
    return {'parts_network': base.Frozen(path, 'ssl_fer.mask_fn_weights', network, measured=False)}

  def augment(self, batch: Batch, key: jax.Array) -> Batch:
    """A view of each frame, and for MaskFN its eyes and mouth before they are covered or coloured.

    Args:
      batch: 'image' uint8 [b, G, H, W, 3], or [b, G, 1, S, S, 3] cropped on the host; 'landmarks' float32 [b, G, 68, 2], or [b, G, 1, 68, 2].
      key: of this step.

    Returns:
      'image' float32 [b, G, S, S, 3], normalised; with MaskFN 'parts' float32 [b, G, 2, 64, 64, 3], normalised.
    """
    lead = batch['image'].shape[:2]
    flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in batch.items()}
    image, parts = self._views(flat['image'], flat.get(landmarks.TARGET), key)
    found = {'image': image.reshape(*lead, *image.shape[1:])}
    return found if parts is None else {**found, 'parts': parts.reshape(*lead, *parts.shape[1:])}

  def loss(
    self, model: Model, batch: Batch, key: jax.Array, step: jax.Array, total_steps: int
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """NT-Xent over the N frames of the global batch; with MaskFN by what `losses.masked_nt_xent` says.

    Returns:
      The loss, float32 [], the share of rows whose positive is the nearest, and with MaskFN what `losses.masked_nt_xent` says.
    """
    del step, total_steps
    x = batch['image']
    z = model.project(x.reshape(-1, *x.shape[2:]), key)
    row, temperature = jnp.arange(len(z)), self.stage['ssl_fer']['temperature']
    measured = {'positives_found': losses.pairs_found(z)}
    if not self._masks:
      loss, _ = losses.contrastive_loss(
        z, row // 2, z, row // 2, row[:, None] == row[None], temperature=temperature
      )
      return loss, measured
    f, parts = self.stage['ssl_fer'], batch['parts']
    u = model.parts_network(parts.reshape(-1, *parts.shape[2:]))
    loss, said = losses.masked_nt_xent(
      z,
      u,
      row // self.pictures,
      temperature=temperature,
      form=f['mask_fn'],
      share=f['mask_fn_share'],
      threshold=f['mask_fn_threshold'],
      spare=f['spare_hard_negatives'],
    )
    return loss, {**measured, **said}

  def evaluate(self, model: Model, batch: Batch) -> dict[str, dict[str, jax.Array]]:
    """Returns the sums of NT-Xent on two views of each picture, which depend on its index alone, and the features of whole pictures."""
    key, mask = jax.random.key(EVALUATION_SEED), batch['mask']
    z = [
      jax.vmap(
        lambda x, p, i, v=v: self._views(
          x[None], None if p is None else p[None], jax.random.fold_in(key, 2 * i + v)
        )[0][0]
      )(batch['image'], batch.get(landmarks.TARGET), batch['index'])
      for v in (0, 1)
    ]
    z = jnp.concatenate([model.project(x, None) for x in z])
    row, kept = jnp.tile(jnp.arange(len(mask)), 2), jnp.tile(mask, 2)
    # no row of the padding is a candidate; one of it, without its positive, adds 0
    left_out = (jnp.arange(len(z))[:, None] == jnp.arange(len(z))[None]) | ~kept[None]
    temperature = self.stage['ssl_fer']['temperature']
    loss, _ = losses.contrastive_loss(z, row, z, row, left_out, temperature=temperature, reduction='sum')
    return {
      'sums': {'loss': (loss, jnp.sum(kept))},
      'outputs': self.answers(model, self._seen(batch['image'])),
    }

  def draw(self, model: Model, batch: Mapping[str, Any], key: jax.Array) -> dict[str, Drawing]:
    """Returns views of a few pictures."""
    del model
    points = batch.get(landmarks.TARGET)
    views = [
      self._drawn_views(batch['image'][:ROWS], None if points is None else points[:ROWS], k)[0]
      for k in jax.random.split(key)
    ]
    a = self.stage['augment']
    drawing = Drawing(
      'Views',
      'What two views of a frame, a row each, may be made into; in training the other one is of another frame of the clip.',
      augment.to_uint8(np.stack(jax.device_get(views), axis=1), a['mean'], a['std']),
      ('view 1', 'view 2'),
    )
    return {'views': drawing}

  def _views(
    self, images: jax.Array, points: jax.Array | None, key: jax.Array
  ) -> tuple[jax.Array, jax.Array | None]:
    """Returns a view of each picture, float32 [N, S, S, 3], and with MaskFN its parts, float32 [N, 2, 64, 64, 3], normalised.

    Anchors and positives take turns. The order is the paper's, but crop and flip come before the covering: the ellipse has the mean colour of
    what is in the crop [D].

    Args:
      images: uint8 [N, H, W, 3], or [N, 1, S, S, 3] cropped already.
      points: float32 [N, 68, 2] or [N, 1, 68, 2], in their pixels; None where they are not used.
      key: of the batch.
    """
    a, S = self.stage['augment'], self.config.image_size
    crop_key, flip_key, mask_key, colour_key = jax.random.split(key, 4)
    if images.ndim == 5:
      x, points = images[:, 0].astype(jnp.float32), None if points is None else points[:, 0]
    else:
      N, H, W, _ = images.shape
      boxes = crop_boxes(jnp, jax.random.uniform(crop_key, (N, ATTEMPTS, 4)), H, W, a['scale'], a['ratio'])
      x = augment.resample(images, boxes, S, a['interpolation'])
      points = None if points is None else landmarks.cropped(points, boxes.astype(jnp.float32), S)
    parts = None
    if self._masks:
      cuts = jnp.stack([face_parts.cut(x, points, part, PART_SIZE) for part in face_parts.CUT], axis=1)
      usual = defaults.stage().augment  # ImageNet's, as the frozen network's are
      parts = augment.normalise(cuts, usual.mean, usual.std)
    flipped = jax.random.bernoulli(flip_key, a['flip'], x.shape[:1])
    x = jnp.where(flipped[:, None, None, None], x[:, :, ::-1], x)
    if a['landmark_mask']:
      points = jnp.where(flipped[:, None, None], landmarks.mirrored(points, S), points)
      x = face_parts.random_cover(mask_key, x, points, a['landmark_mask'])
    return augment.normalise(self._coloured(colour_key, x), a['mean'], a['std']), parts

  def _coloured(self, key: jax.Array, x: jax.Array) -> jax.Array:
    """Returns pictures float32 [N, S, S, 3], 0..255, in other colours: anchors and positives with probabilities of their own."""
    a = self.stage['augment']
    anchor_key, positive_key, blur_key, grey_key = jax.random.split(key, 4)
    if len(x) > 1:
      pairs = x.reshape(-1, 2, *x.shape[1:])
      keys = zip((anchor_key, positive_key), a['jitter_probability'], strict=True)
      each = [colour.random_jitter(k, pairs[:, v], p, a['jitter']) for v, (k, p) in enumerate(keys)]
      x = jnp.stack(each, axis=1).reshape(x.shape)
    else:
      x = colour.random_jitter(positive_key, x, a['jitter_probability'][1], a['jitter'])
    x = colour.random_blur3(blur_key, x, a['blur'], a['blur_sigma'])
    return colour.random_grayscale(grey_key, x, a['grayscale'])

"""Stage two: soft cross-entropy + λ · (mix-supervised) contrastive loss (paper §III-B, eqs. 3–14, algorithm 1).

Plain CE, CE on two views, mixed CE without contrast, SCL (eq. 6), self-supervised contrast (eq. 5) and SCL by the
dominant label of mixed images are settings of this one objective (configs/ shows them); docs/method.md maps the lines.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from ml_collections import ConfigDict

from mimic_jax import augment, defaults, losses, mixing, models
from mimic_jax.models import flops, heads, rollout, vit
from mimic_jax.objectives import base
from mimic_jax.objectives.base import Batch
from mimic_jax.report.drawing import Drawing, in_rows, overlay
from mimic_jax.runtime.errors import UserError

# The fine-tunings that a study of the contrastive loss compares (P table II and method.md §2), as changes to the defaults.
# 'mixed_ce' and 'scl_dominant' are the two controls: the cross-entropy changes, too, when mixing is switched on, and the
# threshold on mixed labels mostly selects the dominant class.
METHODS = {
  'mscl': {},
  'ce': {'views': 1, 'contrast.weight': 0.0, 'mix.probability': 0.0},
  'ce_two_views': {'contrast.weight': 0.0, 'mix.probability': 0.0},
  'mixed_ce': {'contrast.weight': 0.0},
  'sscl': {'contrast.labels': 'instance', 'mix.probability': 0.0},
  'scl': {'contrast.labels': 'class', 'mix.probability': 0.0},
  'scl_dominant': {'contrast.labels': 'dominant'},
}

# For base.check_idle, beside all of a section whose own switch is 0.
_WITHOUT_EFFECT = (
  *((f'contrast.{name}', 'contrast.positives', 'soft', 'argmax') for name in ('threshold', 'distance')),
  *((name, 'mix.probability', 0) for name in ('ce.on', 'contrast.anchors', 'contrast.candidates')),
  *((f'mix.{name}', 'mix.switch_probability', 0) for name in ('cutmix_alpha', 'box', 'cutmix_label')),
  ('mix.mixup_alpha', 'mix.switch_probability', 1),
)

ON_MIXED = (
  'Training figures are on random crops, mixed with the chance of mix.probability and scored against the mixed label; those '
  'of a split are on whole pictures. The two are not to be compared.'
)

ON_CROPS = 'Training figures are on random crops; those of a split are on whole pictures.'


def use_method(s: ConfigDict, name: str) -> None:
  """Changes a fine-tuning stage to one of METHODS."""
  s.update_from_flattened_dict(METHODS[name])


class Pooled(nnx.Module):
  """An encoder with what heads read of it: r = pool(Enc(x))."""

  def __init__(self, config: models.EncoderConfig, pool: str, rngs: nnx.Rngs):
    self.encoder = config.create(rngs)
    self.pool = pool
    # A ViT's global pooling has a norm of its own, the encoder's is for the class token (method.md §1); a ResNet's has none.
    normed = pool == 'gap' and isinstance(config, vit.Config)
    self.fc_norm = vit.layer_norm(config, 'float32', rngs) if normed else None

  def features(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Returns the pooled representation r, float32 [N, D], of images float32 [N, S, S, 3]; drop-path needs a key."""
    features = self.encoder.features(images, key=key, pool=self.pool)
    return features if self.fc_norm is None else self.fc_norm(features)


class Model(Pooled):
  """Encoder with a classifier and, when contrasting, a projection head: r = pool(Enc(x)), Cls(r), z = Proj(r)."""

  def __init__(
    self,
    config: models.EncoderConfig,
    *,
    classes: int,
    pool: str,
    projection: str,
    projection_dim: int,
    rngs: nnx.Rngs,
  ):
    super().__init__(config, pool, rngs)
    self.projection = (
      heads.ProjectionHead(projection, config.dim, projection_dim, rngs=rngs) if projection else None
    )
    self.classifier = heads.Classifier(config.dim, classes, rngs=rngs)

  def embed(self, features: jax.Array) -> jax.Array:
    """Returns z = Proj(r), L2-normalised, float32 [N, k]."""
    return heads.l2_normalise(self.projection(features))


def check_pool(stage: Mapping[str, Any], model: Mapping[str, Any], config: models.EncoderConfig) -> None:
  """Raises UserError where a class token is to be read of an encoder that has none."""
  if stage['head']['pool'] == 'cls' and not isinstance(config, vit.Config):
    raise UserError(f"head.pool is 'cls', and a {model['preset']} has no class token; expected gap")


def initial_of_pooled(stage: Mapping[str, Any], path: tuple[str, ...], head: str) -> str:
  """Returns what a parameter of `Pooled`, or of the layer `head` beside it, takes from initial weights (base.Objective.initial)."""
  if path[0] == head:
    return 'needed' if stage['init_head'] else 'fresh'
  # Global pooling does without the encoder's norm, and weights that were fine-tuned with it have none.
  unused_norm = path[:2] == ('encoder', 'norm') and stage['head']['pool'] == 'gap'
  return 'if_whole' if path[0] == 'fc_norm' or unused_norm else 'needed'


class Objective(base.Objective):
  """Cross-entropy and mix-supervised contrast; see base.py for the contract."""

  labelled = True
  classifier: ClassVar = ('classifier', 'fc')
  network: ClassVar = Model
  CHOICES: ClassVar = {
    'head.pool': heads.POOLS,
    'head.projection': heads.PROJECTIONS,
    'ce.on': ('mixed', 'clean', 'both'),
    'contrast.labels': ('mixed', 'class', 'instance', 'dominant'),
    'contrast.distance': losses.DISTANCES,
    'contrast.positives': losses.POSITIVES,
    'contrast.anchors': ('mixed', 'clean'),
    'contrast.candidates': ('mixed', 'all'),
    'contrast.reduction': losses.REDUCTIONS,
    'mix.partner': mixing.PARTNERS,
    'mix.coefficient': mixing.PER,
    'mix.box': mixing.PER,
    'mix.cutmix_label': mixing.CUTMIX_LABELS,
  }
  RANGES: ClassVar = {
    'views': (1, 2),
    'head.projection_dim': (1, math.inf),
    'ce.smoothing': (0, 0.99),
    'contrast.weight': (0, math.inf),
    'contrast.temperature': (1e-4, math.inf),
    'contrast.base_temperature': (0, math.inf),
    'contrast.threshold': (0, math.inf),
    'contrast.feature_margin': (-1, 1),
    'mix.probability': (0, 1),
    'mix.switch_probability': (0, 1),
    'mix.mixup_alpha': (1e-3, math.inf),
    'mix.cutmix_alpha': (1e-3, math.inf),
  }

  FIGURES: ClassVar = {
    'loss': base.Figure('Loss', unit='nats', note=ON_MIXED),
    'accuracy': base.Figure('Accuracy', share=True, note=ON_MIXED),
    'ce': base.Figure('Cross-entropy', term=True),
    'contrast': base.Figure('Contrast', term=True),
    'anchors_without_positive': base.Figure('Anchors without a positive', share=True),
    'mean_positives': base.Figure('Positives per anchor (mean)'),
    'cross_class_positives': base.Figure('Positives across classes', share=True),
    'same_crop_pairs': base.Figure('Samples that share their pair of crops', share=True),
  }

  @classmethod
  def defaults(cls) -> ConfigDict:
    """Returns stage two: cross-entropy + λ · mix-supervised contrast (P §III-B, eqs. 3–14, algorithm 1; §IV-B)."""
    s = defaults.stage()
    s.objective = 'mimic'
    s.epochs = 50.0  # RAF-DB and FERPlus; 10 for AffectNet (P §IV-B)
    s.batch_images = 64  # 128 crops
    s.drop_path = 0.1
    s.views = 2  # crops per image; 1 needs contrast.weight = 0
    s.head = ConfigDict()
    s.head.pool = 'gap'  # gap (mean of the patch tokens → fc_norm) | cls (P table IV)
    s.head.projection = 'dense'  # dense (Linear–ReLU–Linear) | linear | none (P table III)
    s.head.projection_dim = 128  # 128 for RAF-DB, 512 for FERPlus (P fig. 6)
    s.ce = ConfigDict()
    s.ce.on = 'mixed'  # mixed (algorithm 1 line 12) | clean (needs a second forward) | both (their mean)
    s.ce.smoothing = 0.0  # share of each (mixed) label that is spread over all classes; not for the contrast
    s.contrast = ConfigDict()
    s.contrast.weight = 0.1  # λ; 0 = cross-entropy alone
    s.contrast.labels = 'mixed'  # mixed (eq. 11) | class (eq. 6) | instance (eq. 5) | dominant (arg max)
    s.contrast.temperature = 0.07  # τ
    s.contrast.base_temperature = 0.0  # when not 0: loss · τ / base_temperature (SupContrast)
    s.contrast.threshold = 0.5  # t of eq. 13
    s.contrast.distance = 'tv'  # tv (½·L1 [D]) | l1 | l2 | linf, between labels
    s.contrast.positives = 'hard'  # hard (eq. 13) | soft (labels' overlap) | argmax (same dominant class)
    s.contrast.feature_margin = -1.0  # when above −1: positives must also have cosine(z_i, z_a) ≥ this
    s.contrast.anchors = 'mixed'  # mixed (algorithm 1) | clean (eqs. 11–13 literally: a second forward)
    s.contrast.candidates = 'mixed'  # mixed (eq. 11) | all (mixed and clean together: a second forward)
    s.contrast.reduction = 'mean'  # over anchors: mean | sum | mean_with_positives (of those that have one)
    s.mix = ConfigDict()
    s.mix.probability = 1.0  # that a batch is mixed; 0 = never
    s.mix.switch_probability = 0.5  # that a mixed batch gets CutMix rather than Mixup
    s.mix.mixup_alpha = 2.0  # λ ~ Beta(α, α) (P §IV-B: Beta(2, 2))
    s.mix.cutmix_alpha = 2.0
    s.mix.partner = 'shift'  # shift [D] | flip (timm's) | permutation (for both views) | random (over 2B)
    s.mix.coefficient = 'batch'  # one λ per batch ("we sample a coefficient") | sample
    s.mix.box = 'batch'  # one CutMix box per batch | sample (its own place each)
    s.mix.cutmix_label = 'area'  # area (of the clipped box) | raw (the coefficient as drawn)
    return s.lock()

  def __init__(self, stage: Mapping[str, Any], model: Mapping[str, Any], class_names: tuple[str, ...]):
    if not class_names:
      raise UserError(
        f'objective {stage["objective"]} needs labels; {stage["data"]["source"]} of this stage has none'
      )
    self.stage = stage
    self.class_names = class_names
    self.config = models.encoder_config(model, stage['drop_path'])
    self.views = stage['views']
    self.contrast = dict(stage['contrast'])
    self.weight = self.contrast.pop('weight')
    self._mixed_views = jax.jit(self._mix_for_drawing)
    self._attended = jax.jit(self._attention, static_argnums=0)
    check_pool(stage, model, self.config)
    usual = type(self).defaults()
    if 'contrast' in usual:  # else these fields are not the user's
      switched = (('contrast', 'weight'), ('mix', 'probability'))
      whole = [(f'{s}.{name}', f'{s}.{on}', 0) for s, on in switched for name in usual[s] if name != on]
      base.check_idle(stage, usual, [*whole, *_WITHOUT_EFFECT])
    if self.weight > 0 and self.views < 2 and self.contrast['labels'] == 'instance':
      raise UserError(
        'views is 1; expected 2 for contrast.labels = instance (an image has no other view to be near)'
      )
    self.pairs = self.weight > 0 or stage['mix']['probability'] > 0
    if self.pairs and stage['batch_images'] < 2:
      raise UserError('batch_images is 1; expected at least 2 for mixing or contrast')

  @classmethod
  def uses(cls, facts: Mapping[str, Any], tensors: Mapping[str, Any]) -> list[tuple[str, ConfigDict]]:
    """Fine-tuning with a fresh head and, where the file has one that reads what ours reads, with its own."""
    uses = [('fine-tuning, global pooling', cls.defaults())]
    pool = 'gap' if 'fc_norm/scale' in tensors or facts.get('stem') else 'cls'
    if 'classifier/fc/kernel' in tensors and facts.get('pool', pool) == pool:
      s = cls.defaults()
      s.init_head = True
      s.head.pool = pool
      uses.append((f'fine-tuning with init_head, head.pool={s.head.pool}', s))
    return uses

  def inputs(self) -> dict[str, base.Crops]:
    """Crops of a picture, `views` of them."""
    return {'image': base.Crops(self.views)}

  def flops_per_image(self) -> float:
    """Returns those of its crops, mixed and where it needs them clean; of the heads; and of the products z · z."""
    forms, dim, head = (2 if self._needs_clean else 1), self.config.dim, self.stage['head']
    on_clean = self._needs_clean and self.stage['ce']['on'] != 'mixed'
    forward = forms * self.config.flops()
    forward += (2 if on_clean else 1) * flops.linear(1, dim, len(self.class_names))
    if self.weight > 0:
      out = dim if head['projection'] == 'none' else head['projection_dim']
      layers = {'dense': [dim, out], 'linear': [out], 'none': []}[head['projection']]
      forward += forms * sum(flops.linear(1, dim, width) for width in layers)
      against = 2 if forms == 2 and self.contrast['candidates'] == 'all' else 1
      forward += flops.linear(1, out, against * self.views * self.stage['batch_images'])
    return flops.TRAINING * self.views * forward

  def init(self, key: jax.Array) -> Model:
    """Returns a fresh model."""
    head = self.stage['head']
    return self.network(
      self.config,
      classes=len(self.class_names),
      pool=head['pool'],
      projection=head['projection'] if self.weight > 0 else '',
      projection_dim=head['projection_dim'],
      rngs=nnx.Rngs(key),
    )

  def augment(self, batch: Batch, key: jax.Array) -> Batch:
    """Crops of each image, two by default (P §IV-B), as `augment` says; labels become distributions.

    Args:
      batch: 'image' uint8 [B, H, W, 3], or [B, V, S, S, 3] cropped on the host; 'label' int32 [B] or float32 [B, K].
      key: of this step.

    Returns:
      'image' float32 [B, V, S, S, 3] and 'label' float32 [B, K].
    """
    images = augment.training_views(
      key, batch['image'], views=self.views, size=self.config.image_size, **self.stage['augment']
    )
    return {'image': images, 'label': self._distribution(batch['label'])}

  def loss(
    self, model: Model, batch: Batch, key: jax.Array, step: jax.Array, total_steps: int
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Algorithm 1: mix, one forward of 2B, CE + λ · L (eq. 14).

    Returns:
      The loss, float32 [], and its parts and statistics.
    """
    del step, total_steps
    mix_key, drop_key, clean_key = jax.random.split(key, 3)
    x, y = batch['image'], batch['label']
    mixed = mixing.mix(mix_key, x, y, **self.stage['mix'])
    features = model.features(rearrange(mixed.x, 'b v h w c -> (b v) h w c'), drop_key)
    mixed_y = rearrange(mixed.y, 'b v k -> (b v) k')
    clean_y = jnp.repeat(y, self.views, axis=0)
    clean = None
    if self._needs_clean:
      clean = model.features(rearrange(x, 'b v h w c -> (b v) h w c'), clean_key)

    ce, logits = self._cross_entropy(model, features, mixed_y, clean, clean_y)
    right = jnp.argmax(logits, axis=-1) == jnp.argmax(mixed_y, axis=-1)
    metrics = {'ce': ce, 'accuracy': jnp.mean(right.astype(jnp.float32))}
    if self.stage['mix']['probability'] > 0:
      metrics['same_crop_pairs'] = mixed.same_crop_pairs
    if self.weight <= 0:
      return ce, metrics
    contrast, stats = self._contrast(model, features, mixed_y, clean, clean_y)
    return ce + self.weight * contrast, {**metrics, 'contrast': contrast, **stats}

  @property
  def _needs_clean(self) -> bool:
    contrast = self.weight > 0 and (
      self.contrast['anchors'] == 'clean' or self.contrast['candidates'] == 'all'
    )
    return self.stage['mix']['probability'] > 0 and (contrast or self.stage['ce']['on'] != 'mixed')

  def _distribution(self, label: jax.Array) -> jax.Array:
    if label.ndim == 2:
      return label.astype(jnp.float32)
    return jax.nn.one_hot(label, len(self.class_names), dtype=jnp.float32)

  def _cross_entropy(
    self, model: Model, mixed: jax.Array, mixed_y: jax.Array, clean: jax.Array | None, clean_y: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the cross-entropy and the logits of the mixed samples (algorithm 1 line 12)."""
    logits, smoothing = model.classifier(mixed), self.stage['ce']['smoothing']
    mixed_y, clean_y = losses.smoothed(mixed_y, smoothing), losses.smoothed(clean_y, smoothing)
    ce = losses.soft_cross_entropy(logits, mixed_y)
    if clean is None or self.stage['ce']['on'] == 'mixed':
      return ce, logits
    on_clean = losses.soft_cross_entropy(model.classifier(clean), clean_y)
    return (on_clean if self.stage['ce']['on'] == 'clean' else 0.5 * (ce + on_clean)), logits

  def _contrast(
    self, model: Model, mixed: jax.Array, mixed_y: jax.Array, clean: jax.Array | None, clean_y: jax.Array
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Chooses anchors, candidates and labels for the one contrastive function (eqs. 5, 6, 11)."""
    options = dict(self.contrast)
    kind, anchors, candidates = (options.pop(k) for k in ('labels', 'anchors', 'candidates'))
    n = mixed.shape[0]
    mixed_y, clean_y = self._contrast_labels(kind, mixed_y, clean_y)
    mixed_z = model.embed(mixed)
    clean_z = model.embed(clean) if clean is not None else mixed_z
    anchor_z, anchor_y = (mixed_z, mixed_y) if anchors == 'mixed' else (clean_z, clean_y)
    own = jnp.eye(n, dtype=bool)
    if candidates == 'mixed' or clean is None:
      return losses.contrastive_loss(anchor_z, anchor_y, mixed_z, mixed_y, own, **options)
    # Neither form of a sample may stand among its own candidates: the two share their pixels.
    return losses.contrastive_loss(
      anchor_z,
      anchor_y,
      jnp.concatenate([mixed_z, clean_z]),
      jnp.concatenate([mixed_y, clean_y]),
      jnp.concatenate([own, own], axis=1),
      **options,
    )

  def _contrast_labels(
    self, kind: str, mixed_y: jax.Array, clean_y: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the labels by which positives of (mixed, clean) samples are chosen: ỹ, y, arg max ỹ or instance ids."""
    if kind == 'mixed':
      return mixed_y, clean_y
    if kind == 'class':
      return clean_y, clean_y
    if kind == 'dominant':
      return jnp.argmax(mixed_y, axis=-1), jnp.argmax(clean_y, axis=-1)
    ids = jnp.arange(clean_y.shape[0]) // self.views
    return ids, ids

  def evaluate(self, model: Model, batch: Batch) -> dict[str, dict[str, jax.Array]]:
    """Returns sums over the unmasked examples and, per example, logits and the encoder's pooled features."""
    outputs = self.answers(model, self._seen(batch['image']))
    logits = outputs['logits']
    y = self._distribution(batch['label'])
    ce = -jnp.sum(y * jax.nn.log_softmax(logits, axis=-1), axis=-1)
    sums = {'loss': (jnp.sum(jnp.where(batch['mask'], ce, 0.0)), jnp.sum(batch['mask']))}
    return {'sums': sums, 'outputs': outputs}

  def answers(self, model: Model, images: jax.Array) -> dict[str, jax.Array]:
    """Returns logits and the encoder's pooled features."""
    features = model.features(images)
    return {'logits': model.classifier(features).astype(jnp.float32), 'features': features}

  def notes(self, facts: Mapping[str, Any]) -> list[str]:
    """Says where a classifier was trained on what another pooling gives."""
    own = self.stage['head']['pool']
    if not self.stage['init_head'] or facts.get('pool', own) == own:
      return []
    return [f"its classifier reads '{facts['pool']}', here head.pool is '{own}': its answers begin wrong"]

  def facts(self) -> dict[str, Any]:
    """Returns how it pools."""
    return {'pool': self.stage['head']['pool']}

  def initial(self, path: tuple[str, ...]) -> str:
    """The encoder is needed, the heads with `init_head`: the classifier for certain, the projection where it fits."""
    if path[0] == 'projection':
      return 'if_whole' if self.stage['init_head'] else 'fresh'
    return initial_of_pooled(self.stage, path, 'classifier')

  def draw(self, model: Model, batch: Batch, key: jax.Array) -> dict[str, Drawing]:
    """Returns what `look` does, and the two crops of a few images, what they become when mixed, and the mixed labels."""
    drawings = self.look(model, batch)
    if self.stage['mix']['probability'] == 0:
      return drawings
    rows = 6
    crops, mixed = jax.device_get(self._mixed_views(batch, key))
    a = self.stage['augment']
    pictures = np.concatenate([crops[:rows], mixed.x[:rows]], axis=1)
    captions = [[''] * self.views + [self._caption(y) for y in ys] for ys in mixed.y[:rows]]
    titles = [f'{what} {v + 1}' for what in ('crop', 'mixed') for v in range(self.views)]
    how = 'CutMix' if mixed.is_cutmix else 'Mixup'
    drawings['mixed'] = Drawing(
      'Mixed samples',
      f'The crops of each image and what {how} makes of them in this batch; below, the mixed label that decides '
      'which other samples count as positives.',
      augment.to_uint8(pictures, a['mean'], a['std']),
      tuple(titles),
      captions,
    )
    return drawings

  def look(self, model: Model, batch: Batch) -> dict[str, Drawing]:
    """Returns where the model's attention goes in the images of an evaluation batch, with their classes and its answers.

    Args:
      model: of this objective.
      batch: 'image' uint8 [B, H, W, 3], 'label' int32 [B] or float32 [B, K], 'mask' bool [B], False on padding.
    """
    shown = np.flatnonzero(batch['mask'])
    if not shown.size or not isinstance(self.config, vit.Config):
      return {}
    template, params, rest = models.split(model, self.trainable)
    x, heat, logits = jax.device_get(self._attended(template, params, rest, batch['image']))
    a = self.stage['augment']
    pictures = augment.to_uint8(x[shown], a['mean'], a['std'])
    chances = np.asarray(jax.nn.softmax(logits[shown], axis=-1))
    true = np.argmax(self._distribution(jnp.asarray(batch['label'])), axis=-1)[shown]
    captions = []
    for k, chance in zip(true, chances):
      guess = int(np.argmax(chance))
      captions += [self.class_names[k], f'→ {self.class_names[guess]} {chance[guess]:.2f}']
    pairs = np.stack([pictures, overlay(pictures, heat[shown])], axis=1)
    images, cells = in_rows(rearrange(pairs, 'n two h w c -> (n two) h w c'), captions, columns=4)
    whose = 'the class token' if self.stage['head']['pool'] == 'cls' else 'the mean of the patch tokens'
    return {
      'attention': Drawing(
        'Attention',
        f'Attention rollout: the brighter a patch, the more of it can have reached {whose}; each map has a scale of '
        'its own. Under a picture its class, under the map the answer and its probability. It shows where the model '
        'looks, not why it answers so.',
        images,
        ('picture', 'attention') * (images.shape[1] // 2),
        cells,
      )
    }

  def attention(self, model: Model, images: jax.Array) -> jax.Array | None:
    """Returns a ViT's attention rollout over its patches (models/rollout.py)."""
    if not isinstance(self.config, vit.Config):
      return None
    return rollout.attention_rollout(model.encoder, images, self.stage['head']['pool'])

  def _attention(
    self, template: models.Template, params: Any, rest: Any, images: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the normalised images [B, S, S, 3], their rollouts [B, grid, grid] and logits [B, K], float32."""
    model = models.merge(template, params, rest)
    x = self._seen(images)
    return x, self.attention(model, x), self.answers(model, x)['logits']

  def _mix_for_drawing(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, mixing.Mixed]:
    """Returns the crops of a batch and what mixing makes of them, mixed for certain."""
    crop_key, mix_key = jax.random.split(key)
    seen = self.augment(batch, crop_key)
    return seen['image'], mixing.mix(
      mix_key, seen['image'], seen['label'], **{**self.stage['mix'], 'probability': 1.0}
    )

  def _caption(self, y: np.ndarray) -> str:
    order = [k for k in np.argsort(-y, kind='stable') if y[k] >= 0.005][:2]
    return ' + '.join(f'{y[k]:.2f} {self.class_names[k]}' for k in order)


class Plain(Objective):
  """What objectives begin with that classify one crop of each picture: no mixing, no contrast, none of their fields.

  `stage` is their section with these fields as method 'ce' has them.
  """

  CHOICES: ClassVar = {'head.pool': heads.POOLS}
  RANGES: ClassVar = {}
  FIGURES: ClassVar = {
    'loss': base.Figure('Loss', unit='nats', note=ON_CROPS),
    'accuracy': base.Figure('Accuracy', share=True, note=ON_CROPS),
    'ce': Objective.FIGURES['ce'],
  }
  uses = base.Objective.uses  # a file with a classifier is read by the objective above

  @classmethod
  def defaults(cls) -> ConfigDict:
    """Returns the section of plain cross-entropy, without the fields that have no effect there; not locked."""
    s = Objective.defaults().unlock()
    for field in ('views', 'ce', 'contrast', 'mix'):
      del s[field]
    del s.head['projection'], s.head['projection_dim']
    return s

  def __init__(self, stage: Mapping[str, Any], model: Mapping[str, Any], class_names: tuple[str, ...]):
    whole = Objective.defaults().unlock()
    use_method(whole, 'ce')
    whole.update(stage)
    super().__init__(whole, model, class_names)

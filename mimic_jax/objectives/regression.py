"""Targets that are numbers: valence and arousal, angles of a head, attributes that are 0 or 1. A linear layer on the pooled features.

Valence and arousal by the concordance correlation of a batch, as the field measures them; angles by their absolute error in degrees (HMTL, arXiv
2105.06421); attributes by cross-entropy. What a picture has no target of (NaN) is not learned from and not measured.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mimic_jax import augment, defaults, losses, models
from mimic_jax.models import flops, heads, rollout, vit
from mimic_jax.objectives import base, mimic
from mimic_jax.objectives.base import Batch
from mimic_jax.report.drawing import Drawing, in_rows
from mimic_jax.runtime import sharding
from mimic_jax.runtime.errors import UserError

MIRRORED = ('yaw', 'roll')  # of the mirrored picture they are the negative
NOTE = 'Training figures are on random crops of a batch; those of a split are on whole pictures, all at once.'

NUMBER_FIGURES = {
  'ccc': base.Figure('CCC'),
  'rmse': base.Figure('RMSE'),
  'mae': base.Figure('Mean absolute error'),
  'pearson': base.Figure('Pearson’s correlation'),
  'sign_agreement': base.Figure('Sign agreement', share=True),
}
BINARY_FIGURES = {
  'binary_accuracy': base.Figure('Accuracy', share=True),
  'balanced_accuracy': base.Figure('Mean of both recalls', share=True),
}


class Model(mimic.Pooled):
  """An encoder and a Linear from its pooled features to the targets."""

  def __init__(self, config: models.EncoderConfig, targets: int, pool: str, rngs: nnx.Rngs):
    super().__init__(config, pool, rngs)
    # near zero: answers that begin large and against the targets' order are driven away from them by a concordance
    self.regressor = heads.Classifier(config.dim, targets, rngs)


class Objective(base.Objective):
  """Regression of named targets; see base.py for the contract."""

  CHOICES: ClassVar = {'head.pool': heads.POOLS, 'regression.loss': losses.REGRESSIONS}
  RANGES: ClassVar = {'regression.scale': (1e-6, float('inf'))}

  @classmethod
  def defaults(cls) -> ConfigDict:
    """Returns the regression of valence and arousal in the fine-tuning of `mimic`, one crop of each picture."""
    s = defaults.stage()
    s.objective = 'regression'
    s.epochs = 10.0
    s.batch_images = 128
    s.drop_path = 0.1
    s.head = ConfigDict()
    s.head.pool = 'gap'  # gap (mean of the patch tokens → fc_norm) | cls
    s.regression = ConfigDict()
    s.regression.targets = 'valence,arousal'  # names of what the source offers, comma-separated
    s.regression.loss = 'ccc'  # ccc (1 − concordance over the batch) | mse | mae | binary (cross-entropy, of targets that are 0 or 1)
    s.regression.scale = 1.0  # target units to a unit of the layer's output; of angles in degrees some 30
    return s.lock()

  def __init__(self, stage: Mapping[str, Any], model: Mapping[str, Any], class_names: tuple[str, ...]):
    del class_names
    self.stage = stage
    self.config = models.encoder_config(model, stage['drop_path'])
    mimic.check_pool(stage, model, self.config)
    r = stage['regression']
    self.names = tuple(name.strip() for name in r['targets'].split(',') if name.strip())
    if not self.names or len(set(self.names)) < len(self.names):
      raise UserError(
        f"regression.targets is '{r['targets']}'; expected names of targets, comma-separated, each once"
      )
    self.kind = r['loss']
    if self.kind == 'binary' and r['scale'] != 1:
      raise UserError(
        f"regression.scale is {r['scale']:g}, and regression.loss 'binary'; expected 1, its default, where it has no effect"
      )
    turned = [name for name in self.names if name in MIRRORED]
    if turned and stage['augment']['rand_ops']:
      raise UserError(
        f"augment.rand_ops is {stage['augment']['rand_ops']}, which turns pictures, and regression.targets has '{turned[0]}'; expected 0"
      )
    self.pairs = self.kind == 'ccc'
    if self.pairs and stage['batch_images'] < 2:
      raise UserError('batch_images is 1; expected at least 2: a concordance is of several pictures')
    measured = BINARY_FIGURES if self.kind == 'binary' else NUMBER_FIGURES
    self.FIGURES = {
      'loss': base.Figure('Loss', note=NOTE),
      **{f'{k}_{n}': f._replace(title=f'{f.title}, {n}') for k, f in measured.items() for n in self.names},
    }
    self._seen_answers = jax.jit(self._answered, static_argnums=0)

  def inputs(self) -> dict[str, base.Crops | base.Target]:
    """One crop of a picture, and its targets."""
    return {'image': base.Crops(), **{name: base.Target() for name in self.names}}

  def flops_per_image(self) -> float:
    """Returns those of one crop through encoder and head."""
    return flops.TRAINING * (self.config.flops() + flops.linear(1, self.config.dim, len(self.names)))

  def init(self, key: jax.Array) -> Model:
    """Returns a fresh model."""
    return Model(self.config, len(self.names), self.stage['head']['pool'], nnx.Rngs(key))

  def initial(self, path: tuple[str, ...]) -> str:
    """The encoder is needed, with `init_head` its last layer, too."""
    return mimic.initial_of_pooled(self.stage, path, 'regressor')

  def augment(self, batch: Batch, key: jax.Array) -> Batch:
    """One crop of each picture; what turns round in the mirror goes along.

    Args:
      batch: 'image' uint8 [B, H, W, 3], or [B, 1, S, S, 3] cropped on the host; each target float32 [B].
      key: of this step.

    Returns:
      'image' float32 [B, 1, S, S, 3] and 'targets' float32 [B, T], NaN where there is none.
    """
    view_key, flip_key = jax.random.split(key)
    a = self.stage['augment']
    x = augment.training_views(
      view_key, batch['image'], views=1, size=self.config.image_size, **{**a, 'flip': 0.0}
    )
    mirrored = jax.random.bernoulli(flip_key, a['flip'], x.shape[:1])
    x = jnp.where(mirrored[:, None, None, None, None], x[:, :, :, ::-1], x)
    return {'image': x, 'targets': self.truth(batch, mirrored)}

  def truth(self, batch: Batch, mirrored: jax.Array | bool = False) -> jax.Array:
    """Returns the targets of a batch, float32 [B, T], of pictures that are `mirrored`, bool [B], or not."""
    columns = [
      jnp.where(mirrored, -batch[name], batch[name]) if name in MIRRORED else batch[name]
      for name in self.names
    ]
    return jnp.stack(columns, axis=-1)

  def loss(
    self, model: Model, batch: Batch, key: jax.Array, step: jax.Array, total_steps: int
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The mean over the targets of what `losses.regression` says.

    Args:
      model: of this objective.
      batch: from `augment`.
      key: of this step, for drop-path.
      step, total_steps: not used.

    Returns:
      The loss, float32 [], and that of each target.
    """
    del step, total_steps
    return self.head_loss(model, model.features(batch['image'][:, 0], key), batch)

  def head_loss(
    self, model: Model, features: jax.Array, batch: Batch
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss of features float32 [B, D] and that of each target."""
    each = losses.regression(self.kind, self._outputs(model, features), batch['targets'])
    return jnp.mean(each), {f'{self.kind}_loss_{name}': each[k] for k, name in enumerate(self.names)}

  def evaluate(self, model: Model, batch: Batch) -> dict[str, dict[str, jax.Array]]:
    """Returns answers and targets of each picture, of which scores are made, and but for concordance the sum of the losses.

    Args:
      model: of this objective.
      batch: 'image' uint8 [B, H, W, 3], each target float32 [B], 'mask' bool [B].
    """
    features = model.features(self._seen(batch['image']))
    z, target = self._outputs(model, features), self.truth(batch)
    kind = 'chance' if self.kind == 'binary' else 'predicted'
    answers = self._named(z)
    outputs = {
      **{f'{kind}_{name}': answers[name] for name in self.names},
      **{f'true_{name}': target[:, k] for k, name in enumerate(self.names)},
      'features': features,
    }
    if self.kind == 'ccc':
      return {'sums': {}, 'outputs': outputs}
    known = jnp.isfinite(target) & batch['mask'][:, None]
    total = losses.regression(self.kind, z, jnp.where(known, target, jnp.nan)).sum() * len(z)
    return {'sums': {'loss': (total, jnp.sum(known))}, 'outputs': outputs}

  def figures(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the loss of a split where it is one of all pictures: 1 − concordance."""
    if self.kind != 'ccc':
      return {}
    pairs = [(outputs[f'predicted_{n}'][:, None], outputs[f'true_{n}'][:, None]) for n in self.names]
    return {'loss': float(np.mean([losses.regression('ccc', *map(jnp.asarray, pair)) for pair in pairs]))}

  def answers(self, model: Model, images: jax.Array) -> dict[str, jax.Array]:
    """Returns by the name of each target its answer, float32 [B] (of a binary one the probability of 1), and the features."""
    features = model.features(images)
    return {**self._named(self._outputs(model, features)), 'features': features}

  def attention(self, model: Model, images: jax.Array) -> jax.Array | None:
    """Returns a ViT's attention rollout over its patches (models/rollout.py)."""
    if not isinstance(self.config, vit.Config):
      return None
    return rollout.attention_rollout(model.encoder, images, self.stage['head']['pool'])

  def look(self, model: Model, batch: Mapping[str, Any]) -> dict[str, Drawing]:
    """Returns pictures of an evaluation batch with targets and answers."""
    shown = np.flatnonzero(batch['mask'])
    template, params, rest = models.split(model, self.trainable)
    x, answers, truth = jax.device_get(self._seen_answers(template, params, rest, dict(batch)))
    a = self.stage['augment']
    captions = [
      ' · '.join(f'{name} {truth[i, k]:.2f} → {answers[name][i]:.2f}' for k, name in enumerate(self.names))
      for i in shown
    ]
    images, cells = in_rows(augment.to_uint8(x[shown], a['mean'], a['std']), captions, columns=4)
    columns = ('picture',) * images.shape[1]
    said = 'Pictures of the split; under each its targets and the answers.'
    return {'answers': Drawing('Answers', said, images, columns, cells)}

  def _outputs(self, model: Model, features: jax.Array) -> jax.Array:
    """Returns what the loss takes of features [B, D]: float32 [B, T] in the targets' units, of binary ones logits."""
    return sharding.along_batch(model.regressor(features) * self.stage['regression']['scale'])

  def _named(self, z: jax.Array) -> dict[str, jax.Array]:
    said = jax.nn.sigmoid(z) if self.kind == 'binary' else z
    return {name: said[:, k] for k, name in enumerate(self.names)}

  def _answered(
    self, template: models.Template, params: Any, rest: Any, batch: Batch
  ) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    x = self._seen(batch['image'])
    return x, self.answers(models.merge(template, params, rest), x), self.truth(batch)

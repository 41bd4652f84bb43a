"""SCN: importance weights by self-attention, rank regularisation, relabelling (Wang et al. 2020, arXiv 2002.10392).

α_i = sigmoid(w · r_i) multiplies a sample's logits; a margin is kept between the mean α of the batch's high and low group; samples of the
low group whose label the model holds for wrong are learned with its answer instead.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from mimic_jax import losses, models
from mimic_jax.models import heads, vit
from mimic_jax.objectives import base, mimic
from mimic_jax.objectives.base import Batch
from mimic_jax.runtime import sharding
from mimic_jax.runtime.errors import UserError

# For base.check_idle.
_WITHOUT_EFFECT = (
  ('scn.margin', 'scn.rank_weight', 0),
  ('scn.relabel_margin', 'scn.relabel_from', 1),
)


class Classifier(heads.Classifier):
  """A Linear whose logits are multiplied by the sample's importance (§3.2), in training and in evaluation, as the authors' code has it."""

  def __init__(self, in_features: int, classes: int, rngs: nnx.Rngs):
    super().__init__(in_features, classes, rngs)
    self.attention = vit.linear(in_features, 1, 'float32', rngs)

  def importance(self, features: jax.Array) -> jax.Array:
    """Returns α of features float32 [N, D]: float32 [N], 0..1."""
    return sharding.along_batch(jax.nn.sigmoid(self.attention(features))[:, 0])

  def __call__(self, features: jax.Array) -> jax.Array:
    """Maps float32 [N, D] to logits, float32 [N, classes]."""
    return self.importance(features)[:, None] * super().__call__(features)


class Model(mimic.Model):
  """Encoder and such a classifier."""

  def __init__(self, config: models.EncoderConfig, *, classes: int, rngs: nnx.Rngs, **sizes: Any):
    super().__init__(config, classes=classes, rngs=rngs, **sizes)
    self.classifier = Classifier(config.dim, classes, rngs)


class Objective(mimic.Plain):
  """Logit-weighted cross-entropy + λ · rank regularisation; see base.py for the contract."""

  CITES: ClassVar = {
    'wang2020suppressing': {
      'type': 'inproceedings',
      'title': 'Suppressing Uncertainties for Large-Scale Facial Expression Recognition',
      'author': 'Wang, Kai and Peng, Xiaojiang and Yang, Jianfei and Lu, Shijian and Qiao, Yu',
      'booktitle': 'IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)',
      'year': '2020',
      'note': 'arXiv:2002.10392',
    },
  }
  network: ClassVar = Model
  RANGES: ClassVar = {
    'scn.high': (0.01, 0.99),
    'scn.margin': (0, 1),
    'scn.rank_weight': (0, float('inf')),
    'scn.relabel_from': (0, 1),
    'scn.relabel_margin': (0, 1),
  }
  FIGURES: ClassVar = {
    **mimic.Plain.FIGURES,
    'weighted_ce': base.Figure('Weighted cross-entropy', term=True),
    'rank': base.Figure('Rank regularisation', term=True),
    'importance': base.Figure('Importance (mean)', share=True),
    'relabelled': base.Figure('Samples learned with the answer for a label', share=True),
  }

  @classmethod
  def defaults(cls) -> ConfigDict:
    """Returns SCN's settings in the fine-tuning of `mimic`."""
    s = super().defaults()
    s.objective = 'scn'
    s.scn = ConfigDict()
    s.scn.high = 0.7  # β, share of a batch that is the high group
    s.scn.margin = 0.15  # δ1, between the groups' mean importance
    s.scn.rank_weight = 1.0  # of the rank regularisation, as in the authors' code
    s.scn.relabel_from = 0.14  # share of the steps before relabelling (theirs: epoch 10 of 70); 1 = never
    s.scn.relabel_margin = 0.2  # δ2, by which the answer's probability must exceed the label's
    return s.lock()

  def __init__(self, stage: Mapping[str, Any], model: Mapping[str, Any], class_names: tuple[str, ...]):
    super().__init__(stage, model, class_names)
    self.pairs = True  # the groups are of a batch
    base.check_idle(stage, type(self).defaults(), _WITHOUT_EFFECT)
    high, images = stage['scn']['high'], stage['batch_images']
    if not 1 <= int(high * images) < images:
      raise UserError(
        f'scn.high is {high} with batch_images {images}, which leaves a group empty; expected at least one picture in each'
      )

  def loss(
    self, model: Model, batch: Batch, key: jax.Array, step: jax.Array, total_steps: int
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted cross-entropy + λ · rank regularisation, some labels replaced by the model's answers late in the training.

    Returns:
      The loss, float32 [], and its parts and statistics.
    """
    options, y = self.stage['scn'], batch['label']
    features = model.features(batch['image'][:, 0], key)
    importance, logits = model.classifier.importance(features), model.classifier(features)
    rank, low = losses.rank_regularisation(importance, options['high'], options['margin'])
    doubted = low & (doubt(logits, y) > options['relabel_margin'])
    doubted &= step >= options['relabel_from'] * total_steps
    answer = jax.nn.one_hot(jnp.argmax(logits, axis=-1), y.shape[-1])
    ce = losses.soft_cross_entropy(logits, jnp.where(doubted[:, None], answer, y))
    right = jnp.argmax(logits, axis=-1) == jnp.argmax(y, axis=-1)
    shares = {'accuracy': right, 'importance': importance, 'relabelled': doubted}
    means = {name: jnp.mean(value.astype(jnp.float32)) for name, value in shares.items()}
    return ce + options['rank_weight'] * rank, {'weighted_ce': ce, 'rank': rank, **means}

  def answers(self, model: Model, images: jax.Array) -> dict[str, jax.Array]:
    """Returns logits, features and the importance, float32 [B], of each picture."""
    said = super().answers(model, images)
    return {**said, 'importance': model.classifier.importance(said['features'])}

  def facts(self) -> dict[str, Any]:
    """Returns nothing: no form of published weights has a place for what multiplies the logits."""
    return {}


def doubt(logits: jax.Array, y: jax.Array) -> jax.Array:
  """Returns by how much the likeliest class's probability exceeds the (dominant) label's (§3.4), float32 [N], of logits and labels [N, K]."""
  chances = jax.lax.stop_gradient(jax.nn.softmax(logits, axis=-1))
  given = jnp.take_along_axis(chances, jnp.argmax(y, axis=-1)[:, None], axis=-1)[:, 0]
  return jnp.max(chances, axis=-1) - given

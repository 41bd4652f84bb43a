"""A linear classifier on the features of an encoder that stays as it is: what pre-training alone has learned.

MAE's linear probe (arXiv 2111.06377 appendix A.1 and its released code): a BatchNorm without affine parameters between features and classifier,
no weight decay, crops and flips alone. The encoder is run as an evaluation runs it and is not differentiated.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax import nnx
from ml_collections import ConfigDict

from mimic_jax import models
from mimic_jax.models import flops
from mimic_jax.objectives import mimic
from mimic_jax.report import citations
from mimic_jax.runtime import sharding


class Model(mimic.Model):
  """Encoder, a BatchNorm of its features, classifier."""

  def __init__(self, config: models.EncoderConfig, *, rngs: nnx.Rngs, **sizes: Any):
    super().__init__(config, rngs=rngs, **sizes)
    self.classifier.norm = nnx.BatchNorm(
      config.dim,
      use_scale=False,
      use_bias=False,
      momentum=0.9,
      epsilon=1e-6,
      use_fast_variance=False,
      rngs=rngs,
    )

  def features(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Returns what the classifier sees of images [N, S, S, 3], float32 [N, D]; with a key normalised by this batch, else by the running statistics."""
    pooled = jax.lax.stop_gradient(super().features(images))
    return sharding.along_batch(self.classifier.norm(pooled, use_running_average=key is None))


class Objective(mimic.Plain):
  """Cross-entropy of a linear classifier on frozen features; see base.py for the contract."""

  CITES: ClassVar = {'he2022masked': citations.ENTRIES['he2022masked']}
  network: ClassVar = Model
  RANGES: ClassVar = {
    'batch_images': (2, float('inf')),  # of one picture BatchNorm leaves zeros
    # what acts on an encoder that is trained
    'drop_path': (0, 0),
    'optim.layer_decay': (1, 1),
  }

  @classmethod
  def defaults(cls) -> ConfigDict:
    """Returns MAE's linear probe with what fits smaller sets and faces: Adam for LARS at batches of 16,384, crops as in fine-tuning."""
    s = super().defaults()
    s.objective = 'linear_probe'
    s.epochs = 90.0
    s.batch_images = 256
    s.drop_path = 0.0
    s.head.pool = 'cls'  # cls (MAE's probe) | gap (mean of the patch tokens; of a ResNet the only one)
    s.optim.lr = 1e-3
    s.optim.weight_decay = 0.0
    s.optim.layer_decay = 1.0
    s.optim.warmup_epochs = 10.0
    s.optim.min_lr = 0.0
    return s.lock()

  def __init__(self, stage: Mapping[str, Any], model: Mapping[str, Any], class_names: tuple[str, ...]):
    super().__init__(stage, model, class_names)
    self.pairs = True  # BatchNorm

  def trainable(self, path: tuple[str, ...]) -> bool:
    """The classifier alone."""
    return path[0] == 'classifier'

  def flops_per_image(self) -> float:
    """Returns those of the encoder forward, and of the classifier forward and backward."""
    return self.config.flops() + flops.TRAINING * flops.linear(1, self.config.dim, len(self.class_names))

  def facts(self) -> dict[str, Any]:
    """Returns nothing: no form of published weights has a place for the BatchNorm before the classifier."""
    return {}

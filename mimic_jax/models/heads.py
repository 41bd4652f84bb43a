"""What sits on the encoder's tokens: the projection head of the contrastive loss, the classifier."""

import jax
import jax.numpy as jnp
from flax import nnx

from mimic_jax.models import vit
from mimic_jax.runtime import sharding

POOLS = ('gap', 'cls')
PROJECTIONS = ('dense', 'linear', 'none')
CLASSIFIER_STD = 2e-5


class ProjectionHead(nnx.Module):
  """Projects features for the contrastive loss (P table III); float32 throughout, the result is not normalised.

  'dense': Linear(D, D), ReLU, Linear(D, out); 'linear': Linear(D, out); 'none': the features themselves.
  """

  def __init__(self, kind: str, in_features: int, out_features: int, rngs: nnx.Rngs):
    self.kind = kind
    if kind == 'dense':
      self.fc1 = vit.linear(in_features, in_features, 'float32', rngs)
      self.fc2 = vit.linear(in_features, out_features, 'float32', rngs)
    elif kind == 'linear':
      self.fc1 = vit.linear(in_features, out_features, 'float32', rngs)

  def __call__(self, features: jax.Array) -> jax.Array:
    """Maps float32 [B, D] to float32 [B, out] ([B, D] for 'none')."""
    if self.kind == 'none':
      return features
    hidden = sharding.along_batch(self.fc1(features))
    return hidden if self.kind == 'linear' else sharding.along_batch(self.fc2(jax.nn.relu(hidden)))


class Classifier(nnx.Module):
  """A Linear from features to class logits, in float32, that starts near zero as MAE's fine-tuning does.

  MAE cuts its normal (σ = 2e-5) at ±2, which no draw reaches: it is a plain normal.
  """

  def __init__(self, in_features: int, classes: int, rngs: nnx.Rngs):
    init = nnx.initializers.normal(CLASSIFIER_STD)
    self.fc = nnx.Linear(in_features, classes, dtype=jnp.float32, kernel_init=init, rngs=rngs)

  def __call__(self, features: jax.Array) -> jax.Array:
    """Maps float32 [B, D] to logits, float32 [B, classes]."""
    return sharding.along_batch(self.fc(features))


def l2_normalise(x: jax.Array, epsilon: float = 1e-12) -> jax.Array:
  """Scales rows of x [B, D] to length 1, in float32; a row of zeros stays zero and its gradient finite."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), epsilon))

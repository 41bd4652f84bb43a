"""What sits on the encoder's tokens: the projection heads of the contrastive losses, the classifier."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mimic_jax.models import resnet, vit
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


class NormedMlp(nnx.Module):
  """Linears without bias, a BatchNorm behind each, ReLU between; the last norm has no scale and bias. MoCo v3's heads; float32 throughout.

  Kernels begin as PyTorch's Linear does, uniform within ±1 / √in. Batch statistics are over the whole batch, on any number of devices.

  Args:
    sizes: features in, of each layer between, out.
    rngs: of the kernels.
  """

  def __init__(self, sizes: Sequence[int], rngs: nnx.Rngs):
    init = nnx.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    pairs = list(itertools.pairwise(sizes))
    self.layers = nnx.List(
      [nnx.Linear(a, b, use_bias=False, dtype=jnp.float32, kernel_init=init, rngs=rngs) for a, b in pairs]
    )
    self.norms = nnx.List(
      [resnet.batch_norm(b, 'float32', rngs, affine=n < len(pairs)) for n, (_, b) in enumerate(pairs, 1)]
    )

  def __call__(self, x: jax.Array, running: bool) -> jax.Array:
    """Maps float32 [B, in] to [B, out]; `running`: with the running statistics, else with this batch's, which go into the running ones."""
    for n, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
      x = layer(jax.nn.relu(x) if n else x)
      x = sharding.along_batch(norm(sharding.along_batch(x), use_running_average=running))
    return x


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

"""A generator of masks and its critic, as DCGAN has them (arXiv 1511.06434), for pictures of 64 × 64 with one channel. Arithmetic only.

Kernels are [4, 4, in, out] and begin as a normal of .02. Convolutions are products of shifted slices on every device: XLA's own take ten
times as long on a CPU (models/resnet.py). Float32 throughout.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from mimic_jax.models import decoder, flops, resnet
from mimic_jax.runtime import sharding

SIDE = 64  # pixels of a mask
LATENT = 128  # numbers that a mask is made of
LEAST_SIDE = 4  # of the smallest map
STEPS = 4  # halvings of the side, or doublings
SLOPE = 0.2  # of the critic's leaky ReLU
STD = 0.02
SEEN = 2.0  # the last bias, as it begins: a pixel is seen where no channel hides it


def halved(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Halves the side of x [B, H, W, C] with kernel [4, 4, C, D]: PyTorch's Conv2d of stride 2 and padding 1."""
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  x = rearrange(x, 'b (h r) (w s) c -> b h w (r s c)', r=2, s=2)
  windows = [x[:, i : x.shape[1] - 1 + i, j : x.shape[2] - 1 + j] for i in (0, 1) for j in (0, 1)]
  taps = rearrange(kernel, '(i r) (j s) c d -> (i j r s c) d', r=2, s=2)
  return jnp.concatenate(windows, axis=-1) @ taps


class Kernel(nnx.Module):
  """The kernel of a convolution without bias, [4, 4, in, out]."""

  def __init__(self, in_features: int, out_features: int, rngs: nnx.Rngs):
    init = nnx.initializers.normal(STD)
    self.kernel = nnx.Param(init(rngs.params(), (4, 4, in_features, out_features), jnp.float32))


class Generator(nnx.Module):
  """Five transposed convolutions from z to a mask, 1 → 4 → 8 → 16 → 32 → 64 pixels, of 8, 4, 2 and 1 times `width` channels and one, which has a bias."""

  def __init__(self, width: int, rngs: nnx.Rngs):
    features = [width * 2**k for k in reversed(range(STEPS))]
    self.first = Kernel(LATENT, features[0], rngs)
    self.norms = nnx.List([resnet.batch_norm(f, 'float32', rngs) for f in features])
    pairs = zip(features, [*features[1:], 1], strict=True)
    self.layers = nnx.List([Kernel(a, b, rngs) for a, b in pairs])
    self.bias = nnx.Param(jnp.full(1, SEEN))

  def __call__(self, z: jax.Array, running: bool) -> jax.Array:
    """Maps z, float32 [B, 128], to masks, float32 [B, 64, 64] of 0..1; `running`: with the running statistics, else with this batch's."""
    x = sharding.along_batch(jnp.einsum('bz,hwzc->bhwc', z, self.first.kernel[...]))
    for norm, layer in zip(self.norms, self.layers, strict=True):
      x = jax.nn.relu(norm(x, use_running_average=running))
      x = sharding.along_batch(decoder.doubled(x, layer.kernel[...]))
    return jax.nn.sigmoid(x[..., 0] + self.bias[...][None, None])


class Critic(nnx.Module):
  """The generator's mirror: four convolutions of stride 2 and one over the last 4 × 4 pixels; norms behind all but the first and the last."""

  def __init__(self, width: int, rngs: nnx.Rngs):
    features = [width * 2**k for k in range(STEPS)]
    pairs = zip([1, *features], features)
    self.layers = nnx.List([Kernel(a, b, rngs) for a, b in pairs])
    self.norms = nnx.List([resnet.batch_norm(f, 'float32', rngs) for f in features[1:]])
    self.last = Kernel(features[-1], 1, rngs)

  def __call__(self, masks: jax.Array, running: bool) -> jax.Array:
    """Maps masks, float32 [B, 64, 64], to logits, float32 [B], above 0 for one that was drawn; `running` as the generator's."""
    x = masks[..., None]
    for k, layer in enumerate(self.layers):
      x = sharding.along_batch(halved(x, layer.kernel[...]))
      x = self.norms[k - 1](x, use_running_average=running) if k else x
      x = jax.nn.leaky_relu(x, SLOPE)
    return jnp.einsum('bhwc,hwcd->b', x, self.last.kernel[...])


def generator_flops(width: int) -> int:
  """Returns what a mask takes, forward."""
  total, side, features = flops.linear(LEAST_SIDE**2, LATENT, 8 * width), LEAST_SIDE, 8 * width
  for k in range(STEPS):
    side, out = 2 * side, 1 if k == STEPS - 1 else features // 2
    total += flops.linear(side**2, 4 * features, out)
    features = out
  return total


def critic_flops(width: int) -> int:
  """Returns what a mask takes, forward."""
  total, side, features = flops.linear(1, LEAST_SIDE**2 * 8 * width, 1), SIDE, 1
  for k in range(STEPS):
    side, out = side // 2, width * 2**k
    total += flops.linear(side**2, 16 * features, out)
    features = out
  return total

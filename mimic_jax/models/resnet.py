"""ResNet-18 and -50 as torchvision has them (v1.5: the stride is in the 3 × 3), for pictures of any size, of any width. Arithmetic only.

Batch statistics are over the whole batch: under jax.jit a mean over a sharded axis is the global one. Parameters have torchvision's
names. Differences: the running variance is the biased one (PyTorch's is unbiased, a factor of n / (n − 1)).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mimic_jax.models import flops
from mimic_jax.runtime import sharding

PRESETS = {'resnet18': ((2, 2, 2, 2), False), 'resnet50': ((3, 4, 6, 3), True)}  # blocks, bottlenecks
STEMS = ('auto', '7x7', '3x3')
SMALL = 96  # pixels below which 'auto' takes the 3 × 3 stem, of stride 1: half the published stem's shrinking
STAGES = (1, 2, 4, 8)  # widths of the four, in those of the first
WIDTH = 64  # of the first, as published


class Config(NamedTuple):
  """A ResNet. Hashable; `models.encoder_config` checks the values."""

  image_size: int
  blocks: tuple[int, ...]
  bottleneck: bool
  stem: str
  dtype: str  # of the convolutions; parameters and statistics are float32
  width: int = WIDTH  # of the first stage

  heads = 0  # of attention: it has none
  layer_norm_eps = 0.0  # nor a LayerNorm

  @property
  def dim(self) -> int:
    """Width of the features."""
    return self.width * STAGES[-1] * (4 if self.bottleneck else 1)

  @property
  def layers(self) -> int:
    """The last layer's number: the stem is 0, the stages 1 to 4, what comes after them 5."""
    return len(STAGES) + 1

  def layer_id(self, path: tuple[str, ...]) -> int:
    """Returns the layer of the parameter at a path."""
    return int(path[0].removeprefix('layer')) if path[0].startswith('layer') else 0

  def decays(self, path: tuple[str, ...], ndim: int, tokens: bool) -> bool:
    """Returns whether a parameter gets weight decay: kernels do, biases and norms don't."""
    del path, tokens
    return ndim >= 2

  @property
  def shrinks(self) -> int:
    """Pixels of a picture to a place of the last feature map, along a side."""
    return 32 if self.stem == '7x7' else 16

  def flops(self) -> int:
    """Returns what a picture takes, forward."""
    size, stride = (7, 2) if self.stem == '7x7' else (3, 1)
    side = math.ceil(self.image_size / stride)
    total = flops.linear(side**2, size * size * 3, self.width)
    side, features = math.ceil(side / 2), self.width  # after the pooling
    for n, (times, count) in enumerate(zip(STAGES, self.blocks, strict=True)):
      width = self.width * times
      out = width * (4 if self.bottleneck else 1)
      for k in range(count):
        stride = 2 if n and not k else 1
        small = math.ceil(side / stride)
        if self.bottleneck:
          total += flops.linear(side**2, features, width) + flops.linear(small**2, 9 * width, width)
          total += flops.linear(small**2, width, out)
        else:
          total += flops.linear(small**2, 9 * features, width) + flops.linear(small**2, 9 * width, width)
        if stride > 1 or features != out:
          total += flops.linear(small**2, features, out)
        side, features = small, out
    return total

  def create(self, rngs: nnx.Rngs) -> 'Encoder':
    """Returns a fresh encoder."""
    return Encoder(self, rngs)


class Conv(nnx.Module):
  """A convolution without bias, its kernel [k, k, in, out] from a normal of variance 2 / (k² · out)."""

  def __init__(self, size: int, in_features: int, out_features: int, stride: int, dtype: str, rngs: nnx.Rngs):
    self.stride, self.dtype = stride, dtype
    init = nnx.initializers.variance_scaling(2.0, 'fan_out', 'normal')
    self.kernel = nnx.Param(init(rngs.params(), (size, size, in_features, out_features), jnp.float32))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, in] to [B, ⌈H / stride⌉, ⌈W / stride⌉, out], padded by (k − 1) / 2 as PyTorch's ResNet pads."""
    # split over fsdp, XLA may gather the batch's features rather than a large kernel
    kernel = sharding.everywhere(self.kernel[...].astype(self.dtype))
    strides, padding = (self.stride,) * 2, [(kernel.shape[0] // 2,) * 2] * 2
    return jax.lax.conv_general_dilated(
      x.astype(self.dtype), kernel, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


def batch_norm(features: int, dtype: str, rngs: nnx.Rngs, affine: bool = True) -> nnx.BatchNorm:
  """Returns PyTorch's BatchNorm: epsilon 1e-5, a tenth of each batch's statistics into the running ones; `affine`: scale and bias."""
  # the fast variance, E[x²] − E[x]², cancels when the mean is large beside the spread
  return nnx.BatchNorm(
    features,
    momentum=0.9,
    epsilon=1e-5,
    dtype=jnp.dtype(dtype),
    use_scale=affine,
    use_bias=affine,
    use_fast_variance=False,
    rngs=rngs,
  )


class Block(nnx.Module):
  """Two 3 × 3 convolutions, or 1 × 1, 3 × 3, 1 × 1 to four times the width; the input is added, projected where shapes differ."""

  def __init__(self, config: Config, in_features: int, width: int, stride: int, rngs: nnx.Rngs):
    out = width * (4 if config.bottleneck else 1)
    sizes = (
      [(1, width, 1), (3, width, stride), (1, out, 1)]
      if config.bottleneck
      else [(3, width, stride), (3, width, 1)]
    )
    self.count, features = len(sizes), in_features
    for n, (size, into, step) in enumerate(sizes, 1):
      setattr(self, f'conv{n}', Conv(size, features, into, step, config.dtype, rngs))
      setattr(self, f'bn{n}', batch_norm(into, config.dtype, rngs))
      features = into
    self.projects = stride > 1 or in_features != out
    if self.projects:
      self.downsample_conv = Conv(1, in_features, out, stride, config.dtype, rngs)
      self.downsample_bn = batch_norm(out, config.dtype, rngs)

  def __call__(self, x: jax.Array, running: bool) -> jax.Array:
    """Maps [B, H, W, in] to [B, H / stride, W / stride, out]; `running`: with the running statistics."""
    y = x
    for n in range(1, self.count + 1):
      y = getattr(self, f'bn{n}')(getattr(self, f'conv{n}')(y), use_running_average=running)
      y = jax.nn.relu(y) if n < self.count else y
    if self.projects:
      x = self.downsample_bn(self.downsample_conv(x), use_running_average=running)
    return jax.nn.relu(x.astype(y.dtype) + y)


class Encoder(nnx.Module):
  """A ResNet without its classifier: conv1, bn1, layer1 … layer4, each a list of blocks."""

  def __init__(self, config: Config, rngs: nnx.Rngs):
    self.config = config
    size, stride = (7, 2) if config.stem == '7x7' else (3, 1)
    self.conv1 = Conv(size, 3, config.width, stride, config.dtype, rngs)
    self.bn1 = batch_norm(config.width, config.dtype, rngs)
    features = config.width
    for n, (times, count) in enumerate(zip(STAGES, config.blocks, strict=True), 1):
      width, blocks = config.width * times, []
      for k in range(count):
        blocks.append(Block(config, features, width, 2 if n > 1 and k == 0 else 1, rngs))
        features = width * (4 if config.bottleneck else 1)
      setattr(self, f'layer{n}', nnx.List(blocks))

  def __call__(self, images: jax.Array, running: bool) -> jax.Array:
    """Maps images [B, S, S, 3], normalised, to the last feature map, [B, h, w, dim]; `running`: with the running statistics."""
    return self.maps(images, running)[-1]

  def maps(self, images: jax.Array, running: bool) -> list[jax.Array]:
    """Returns the feature map behind each of the four stages, [B, h, w, C]; arguments as for the call."""
    x = jax.nn.relu(self.bn1(self.conv1(images), use_running_average=running))
    # zeros about what is 0 and above change no maximum; jax2onnx leaves out the padding of a max_pool
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = sharding.along_batch(nnx.max_pool(x, window_shape=(3, 3), strides=(2, 2)))
    found = []
    for n in range(1, len(STAGES) + 1):
      for block in getattr(self, f'layer{n}'):
        x = sharding.along_batch(block(x, running))
      found.append(x)
    return found

  def features(self, images: jax.Array, *, key: jax.Array | None = None, pool: str = 'gap') -> jax.Array:
    """Returns the mean over places, float32 [B, dim]; with a key as in training: statistics of this batch, the running ones updated."""
    del pool
    places = self(images, running=key is None)
    return sharding.along_batch(jnp.mean(places, axis=(1, 2), dtype=jnp.float32))

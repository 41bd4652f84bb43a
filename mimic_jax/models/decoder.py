"""Decoders: MAE's fills in mask tokens where patches were removed and predicts the pixels of every patch, or something else; that of
transposed convolutions paints a picture from a feature map."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from mimic_jax.models import flops, resnet, vit
from mimic_jax.runtime import sharding


class Decoder(nnx.Module):
  """MAE's decoder (arXiv 2111.06377 §3; method.md §1): embed, fill, unshuffle, add positions, blocks, norm, predict.

  `config` describes the decoder's own blocks (dim, depth, heads) over the same patches as the encoder's; `predict` makes the
  module that predicts from patches [B, L, D], by default a Linear to p·p·3 pixels.
  """

  def __init__(
    self,
    encoder_dim: int,
    config: vit.Config,
    rngs: nnx.Rngs,
    predict: Callable[[nnx.Rngs], nnx.Module] | None = None,
  ):
    D, p = config.dim, config.patch_size
    self.config = config
    self.embed = vit.linear(encoder_dim, D, config.dtype, rngs)
    self.mask_token = nnx.Param(vit.TOKEN_STD * jax.random.normal(rngs.params(), (1, 1, D)))
    table = vit.sincos_2d(D, config.grid, config.grid, config.pos_embed)
    self.pos_embed = nnx.Param(jnp.asarray(table[None]))
    self.blocks = vit.stacked_blocks(config, rngs)
    self.norm = vit.layer_norm(config, config.dtype, rngs)
    self.pred = predict(rngs) if predict else vit.linear(D, p * p * 3, config.dtype, rngs)

  def __call__(self, tokens: jax.Array, restore: jax.Array) -> jax.Array:
    """Predicts patches.

    Args:
      tokens: [B, 1 + K, E], the encoder's tokens of the class and the K kept patches.
      restore: int [B, L]; patch l is the restore[l]-th of (kept patches, removed patches).

    Returns:
      [B, L, p·p·3] in the compute dtype, or what else is predicted.
    """
    x = self.embed(tokens)
    B, kept, D = x.shape
    masked = restore.shape[1] + 1 - kept
    fill = jnp.broadcast_to(self.mask_token[...].astype(x.dtype), (B, masked, D))
    patches = vit.gather_tokens(jnp.concatenate([x[:, 1:], fill], axis=1), restore)
    x = jnp.concatenate([x[:, :1], patches], axis=1) + self.pos_embed[...].astype(x.dtype)
    (x,) = vit.tap_blocks(self.blocks, x, self.config, (self.config.depth - 1,))
    return self.pred(self.norm(x)[:, 1:])


def flops_of(encoder_dim: int, config: vit.Config, kept: int) -> int:
  """Returns what a picture takes, forward, of whose patches the encoder saw `kept` (and a class token) in its own width."""
  pixels = flops.linear(config.grid**2, config.dim, 3 * config.patch_size**2)
  return flops_before_prediction(encoder_dim, config, kept) + pixels


def flops_before_prediction(encoder_dim: int, config: vit.Config, kept: int) -> int:
  """Returns what of `flops_of` comes before the prediction."""
  return flops.linear(1 + kept, encoder_dim, config.dim) + config.block_flops(1 + config.grid**2)


def doubled(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Doubles the side of x [B, H, W, C] with kernel [4, 4, C, D]: PyTorch's ConvTranspose2d of stride 2 and padding 1.

  Each output pixel sees 2 × 2 inputs, through every other row and column of the kernel, which one depends on where it lies.
  """
  _, h, w, _ = x.shape
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  found = []
  for a, b in itertools.product((0, 1), (0, 1)):
    windows = [x[:, a + i : a + i + h, b + j : b + j + w] for i in (0, 1) for j in (0, 1)]
    taps = kernel[3 - a :: -2, 3 - b :: -2]
    found.append(jnp.concatenate(windows, axis=-1) @ taps.reshape(-1, taps.shape[-1]))
  return rearrange(jnp.stack(found), '(r s) b h w d -> b (h r) (w s) d', r=2)


class Enlarge(nnx.Module):
  """`doubled` by a kernel [4, 4, in, out], normal of variance 2 / (16 · out); no bias."""

  def __init__(self, in_features: int, out_features: int, dtype: str, rngs: nnx.Rngs):
    self.dtype = dtype
    init = nnx.initializers.variance_scaling(2.0, 'fan_out', 'normal')
    self.kernel = nnx.Param(init(rngs.params(), (4, 4, in_features, out_features), jnp.float32))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, h, w, in] to [B, 2h, 2w, out]."""
    return doubled(x.astype(self.dtype), self.kernel[...].astype(self.dtype))


class Painter(nnx.Module):
  """Transposed convolutions, each with BatchNorm and ReLU, then a convolution of 3 × 3 to RGB: a picture from a feature map.

  Args:
    in_features: of the map.
    widths: channels behind each transposed convolution, which doubles the side.
    dtype: of the convolutions.
    rngs: of the kernels.
  """

  def __init__(self, in_features: int, widths: Sequence[int], dtype: str, rngs: nnx.Rngs):
    sizes = list(itertools.pairwise([in_features, *widths]))
    self.up = nnx.List([Enlarge(a, b, dtype, rngs) for a, b in sizes])
    self.norms = nnx.List([resnet.batch_norm(b, dtype, rngs) for _, b in sizes])
    self.out = resnet.Conv(3, widths[-1], 3, 1, dtype, rngs)
    self.bias = nnx.Param(jnp.zeros(3))

  def __call__(self, x: jax.Array, running: bool) -> jax.Array:
    """Maps [B, h, w, in] to a picture, float32 [B, S, S, 3]; `running`: with the running statistics."""
    for up, norm in zip(self.up, self.norms, strict=True):
      x = sharding.along_batch(jax.nn.relu(norm(sharding.along_batch(up(x)), use_running_average=running)))
    return sharding.along_batch(self.out(x).astype(jnp.float32) + self.bias[...][None, None, None])


def painter_flops(in_features: int, widths: Sequence[int], side: int) -> int:
  """Returns what `Painter` takes for a picture, forward, of a map `side` places wide."""
  total = 0
  for n, (a, b) in enumerate(itertools.pairwise([in_features, *widths])):
    total += flops.linear((side << n) ** 2, 16 * a, b)
  return total + flops.linear((side << len(widths)) ** 2, 9 * widths[-1], 3)

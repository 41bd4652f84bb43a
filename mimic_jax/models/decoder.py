"""MAE's decoder: fills in mask tokens where patches were removed and predicts the pixels of every patch, or something else."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from mimic_jax.models import flops, vit


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
    x = vit.run_blocks(self.blocks, x, self.config)
    return self.pred(self.norm(x)[:, 1:])


def flops_of(encoder_dim: int, config: vit.Config, kept: int) -> int:
  """Returns what a picture takes, forward, of whose patches the encoder saw `kept` (and a class token) in its own width."""
  pixels = flops.linear(config.grid**2, config.dim, 3 * config.patch_size**2)
  return flops_before_prediction(encoder_dim, config, kept) + pixels


def flops_before_prediction(encoder_dim: int, config: vit.Config, kept: int) -> int:
  """Returns what of `flops_of` comes before the prediction."""
  return flops.linear(1 + kept, encoder_dim, config.dim) + config.block_flops(1 + config.grid**2)

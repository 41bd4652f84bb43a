"""MAE's decoder: fills in mask tokens where patches were removed and predicts the pixels of every patch."""

import jax
import jax.numpy as jnp
from flax import nnx

from mimic_jax.models import flops, vit


class Decoder(nnx.Module):
  """MAE's decoder (arXiv 2111.06377 §3; method.md §1): embed, fill, unshuffle, add positions, blocks, norm, predict.

  `config` describes the decoder's own blocks (dim, depth, heads) over the same patches as the encoder's.
  """

  def __init__(self, encoder_dim: int, config: vit.Config, rngs: nnx.Rngs):
    D, p = config.dim, config.patch_size
    self.config = config
    self.embed = vit.linear(encoder_dim, D, config.dtype, rngs)
    self.mask_token = nnx.Param(vit.TOKEN_STD * jax.random.normal(rngs.params(), (1, 1, D)))
    table = vit.sincos_2d(D, config.grid, config.grid, config.pos_embed)
    self.pos_embed = nnx.Param(jnp.asarray(table[None]))
    self.blocks = vit.stacked_blocks(config, rngs)
    self.norm = vit.layer_norm(config, config.dtype, rngs)
    self.pred = vit.linear(D, p * p * 3, config.dtype, rngs)

  def __call__(self, tokens: jax.Array, restore: jax.Array) -> jax.Array:
    """Predicts patches.

    Args:
      tokens: [B, 1 + K, E], the encoder's tokens of the class and the K kept patches.
      restore: int [B, L]; patch l is the restore[l]-th of (kept patches, removed patches).

    Returns:
      [B, L, p·p·3] in the compute dtype.
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
  patches = config.grid**2
  ends = flops.linear(1 + kept, encoder_dim, config.dim) + flops.linear(
    patches, config.dim, 3 * config.patch_size**2
  )
  return ends + config.block_flops(1 + patches)

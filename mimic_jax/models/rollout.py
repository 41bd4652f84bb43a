"""Attention rollout: from which patches a ViT's output drew (Abnar and Zuidema 2020, arXiv 2005.00928)."""

import jax
import jax.numpy as jnp
from flax import nnx

from mimic_jax.models import heads, vit


def attention_probabilities(attention: vit.Attention, x: jax.Array) -> jax.Array:
  """Returns softmax(q·kᵀ/√d), float32 [B, heads, N, N], rows being queries, of normed tokens x [B, N, D].

  `Attention` itself never has them at hand: the fused implementations don't return them.
  """
  B, N, D = x.shape
  qkv = attention.qkv(x).reshape(B, N, 3, attention.heads, D // attention.heads)
  q, k = qkv[:, :, 0].astype(jnp.float32), qkv[:, :, 1].astype(jnp.float32)
  logits = jnp.einsum('bqhd,bkhd->bhqk', q, k, precision=jax.lax.Precision.HIGHEST)
  return jax.nn.softmax(logits * (D // attention.heads) ** -0.5, axis=-1)


def attention_rollout(encoder: vit.Encoder, images: jax.Array, pool: str) -> jax.Array:
  """Returns how much of each patch reaches the pooled feature through attention and residuals.

  Per block the attention is averaged over its heads; the residual counts as much as it: A = ½(mean + I), rows adding up
  to 1; the rollout is the product A_depth ⋯ A_1. What the MLPs do and what a value holds is left out, so this says
  where information could flow from, not which of it decided.

  Args:
    encoder: of the model.
    images: float [B, S, S, 3], normalised.
    pool: 'cls', the class token's row; 'gap', the mean of the patch tokens' rows (the class token is not pooled there).

  Returns:
    float32 [B, grid, grid], row by row as the patches; a map adds up to 1 less the share of the class token and registers.

  Raises:
    ValueError: on another pool.
  """
  if pool not in heads.POOLS:
    raise ValueError(f"pool is '{pool}'; expected one of {', '.join(heads.POOLS)}")
  x = encoder.embed(images)
  B, N, _ = x.shape
  graphdef, stack = nnx.split(encoder.blocks)
  identity = jnp.eye(N, dtype=jnp.float32)[None]

  def body(carry: tuple[jax.Array, jax.Array], parameters: nnx.State) -> tuple[tuple, None]:
    x, rollout = carry
    block = nnx.merge(graphdef, parameters)
    mean = attention_probabilities(block.attn, block.norm1(x)).mean(axis=1)
    mixed = 0.5 * (mean + identity)
    mixed = mixed / mixed.sum(axis=-1, keepdims=True)
    rollout = jnp.einsum('bij,bjk->bik', mixed, rollout, precision=jax.lax.Precision.HIGHEST)
    return (block(x), rollout), None

  start = jnp.broadcast_to(identity, (B, N, N))
  (_, rollout), _ = jax.lax.scan(body, (x, start), stack)
  patches = 1 + encoder.config.registers  # the first of them
  rows = rollout[:, 0] if pool == 'cls' else rollout[:, patches:].mean(axis=1)
  return rows[:, patches:].reshape(B, encoder.config.grid, encoder.config.grid)

"""Learning-rate schedule, layer-wise decay, weight-decay mask and the optimiser's chain."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

Params = Any

TOKENS = ('cls_token', 'mask_token')


def learning_rate(
  step: jax.Array, *, peak: float, warmup_steps: float, total_steps: int, min_lr: float
) -> jax.Array:
  """Linear warm-up from 0, then half a cosine down to `min_lr` (MAE's schedule, per step).

  Args:
    step: int32 [], the step about to be taken, from 0.
    peak: learning rate at the end of the warm-up.
    warmup_steps: length of the warm-up; 0 = none.
    total_steps: of the whole stage.
    min_lr: learning rate at the end.

  Returns:
    float32 [].
  """
  step = step.astype(jnp.float32)
  warm = peak * step / max(warmup_steps, 1e-9)
  progress = jnp.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1e-9), 0.0, 1.0)
  cosine = min_lr + (peak - min_lr) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
  return jnp.where(step < warmup_steps, warm, cosine)


def _names(path: tuple) -> tuple[str, ...]:
  return tuple(str(k.key) for k in path)


def layer_scales(params: Params, depth: int, decay: float) -> Params:
  """Returns what each parameter's learning rate is multiplied by under layer-wise decay (method.md §1).

  With ids 0 for class token, position embedding and patch embedding, i + 1 for block i, and depth + 1 for all else,
  the scale is decay^(depth + 1 − id).

  Args:
    params: nested dicts; the encoder's under 'encoder', its stacked blocks [depth, …] under 'encoder'/'blocks'.
    depth: number of the encoder's blocks.
    decay: 1 = every scale is 1.

  Returns:
    The same structure with float32 arrays that broadcast against the parameters.
  """

  def scale(path: tuple, leaf: jax.Array) -> jax.Array:
    names = _names(path)
    if names[:2] == ('encoder', 'blocks'):
      per_block = decay ** (depth - jnp.arange(depth, dtype=jnp.float32))
      return per_block.reshape((depth,) + (1,) * (leaf.ndim - 1))
    first = names[0] == 'encoder' and names[1] in ('cls_token', 'pos_embed', 'patch_embed')
    value = decay ** (depth + 1) if first else 1.0
    return jnp.full((1,) * leaf.ndim, value, jnp.float32)

  return jax.tree_util.tree_map_with_path(scale, params)


def decays(params: Params, tokens: bool) -> Params:
  """Returns True for each parameter that gets weight decay: matrices, but no bias, norm or position embedding.

  Args:
    params: nested dicts of arrays or shapes.
    tokens: whether class and mask tokens get it, too (MAE's pre-training exempts 1-D parameters only).
  """

  def decay(path: tuple, leaf: jax.Array) -> bool:
    names = _names(path)
    stacked = 'blocks' in names
    return leaf.ndim - stacked >= 2 and names[-1] != 'pos_embed' and (tokens or names[-1] not in TOKENS)

  return jax.tree_util.tree_map_with_path(decay, params)


def make_optimiser(
  params: Params,
  *,
  name: str,
  b1: float,
  b2: float,
  eps: float,
  weight_decay: float,
  decay_tokens: bool,
  clip_norm: float,
) -> optax.GradientTransformation:
  """Returns the chain up to, not including, the learning rate (the step multiplies by −lr · layer scale).

  Args:
    params: for the weight-decay mask; shapes are enough.
    name: 'adam' adds weight_decay · w to the gradient before the moments, as torch.optim.Adam does (coupled L2);
      'adamw' adds it after them (decoupled).
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    weight_decay: factor.
    decay_tokens: whether class and mask tokens get it, too.
    clip_norm: largest global norm of the gradient; 0 = no clipping.
  """
  decay = optax.add_decayed_weights(weight_decay, mask=decays(params, decay_tokens))
  adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
  chain = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  return optax.chain(*chain, *((decay, adam) if name == 'adam' else (adam, decay)))

"""Learning-rate schedule, layer-wise decay, weight-decay mask and the optimiser's chain."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

Params = Any


def learning_rate(
  step: jax.Array,
  *,
  peak: float,
  warmup_steps: float,
  total_steps: int,
  min_lr: float,
  hold_steps: float = 0.0,
  cosine_steps: float = 0.0,
) -> jax.Array:
  """Linear warm-up from 0, then half a cosine down to `min_lr` (MAE's schedule, per step); SSL-FER stays at the peak for a while first.

  Args:
    step: int32 [], the step about to be taken, from 0.
    peak: learning rate at the end of the warm-up.
    warmup_steps: length of the warm-up; 0 = none.
    total_steps: of the whole stage.
    min_lr: learning rate at the end.
    hold_steps: behind the warm-up, at the peak.
    cosine_steps: length of the half cosine, which the stage may end before; 0 = what is left.

  Returns:
    float32 [].
  """
  step = step.astype(jnp.float32)
  warm = peak * step / max(warmup_steps, 1e-9)
  begun = warmup_steps + hold_steps
  progress = jnp.clip((step - begun) / max(cosine_steps or total_steps - begun, 1e-9), 0.0, 1.0)
  cosine = min_lr + (peak - min_lr) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
  return jnp.where(step < warmup_steps, warm, cosine)


def _names(path: tuple) -> tuple[str, ...]:
  return tuple(str(k.key) for k in path)


def named(what: str, group: str) -> str:
  """Returns the name of a group's section or figure: 'optim' and 'optim_x' for groups '' and 'x'."""
  return f'{what}_{group}' if group else what


def labels(params: Params, group: Callable[[tuple[str, ...]], str]) -> Params:
  """Returns the group of each parameter: the same structure with strings."""
  return jax.tree_util.tree_map_with_path(lambda path, _: group(_names(path)), params)


def of_group(tree: Params, group: Params, name: str) -> list[jax.Array]:
  """Returns the leaves of a group."""
  return [leaf for leaf, g in zip(jax.tree.leaves(tree), jax.tree.leaves(group), strict=True) if g == name]


def layer_scales(
  params: Params,
  group: Params,
  layer_id: Callable[[tuple[str, ...]], int | Sequence[int]],
  layers: int,
  decay: Mapping[str, float],
) -> Params:
  """Returns what each parameter's learning rate is multiplied by under layer-wise decay: decay^(layers − id).

  Args:
    params: nested dicts.
    group: of each parameter, from `labels`.
    layer_id: path → its layer, or those of its first axis (stacked blocks), 0..layers.
    layers: the last.
    decay: of each group; 1 = every scale is 1.

  Returns:
    The same structure with float32 arrays that broadcast against the parameters.
  """

  def scale(path: tuple, leaf: jax.Array, name: str) -> jax.Array:
    ids = layer_id(_names(path))
    if isinstance(ids, int):
      return jnp.full((1,) * leaf.ndim, decay[name] ** (layers - ids), jnp.float32)
    each = decay[name] ** (layers - jnp.asarray(ids, jnp.float32))
    return each.reshape((-1,) + (1,) * (leaf.ndim - 1))

  return jax.tree_util.tree_map_with_path(scale, params, group)


Decays = Callable[[tuple[str, ...], int, bool], bool]


def make_optimiser(
  group: Params, sections: Mapping[str, Mapping[str, Any]], decays: Decays
) -> optax.GradientTransformation:
  """Returns the chains of all groups as one, up to, not including, the learning rate.

  Args:
    group: of each parameter, from `labels`.
    sections: group → its section of the config.
    decays: (path, axes, with tokens) → whether a parameter gets weight decay (`Objective.decays`).
  """
  chains = {g: make_chain(o, decays) for g, o in sections.items()}
  # One group is no partition: its state keeps the form that checkpoints have had.
  return next(iter(chains.values())) if len(chains) == 1 else optax.partition(chains, group)


def make_chain(o: Mapping[str, Any], decays: Decays) -> optax.GradientTransformation:
  """Returns a group's chain up to, not including, the learning rate (the step multiplies by −lr · layer scale).

  Args:
    o: its section of the config. With 'adam' weight_decay · w is added to the gradient before the moments, as
      torch.optim.Adam does (coupled L2), with 'adamw' after them (decoupled).
    decays: as for `make_optimiser`.
  """

  def mask(params: Params) -> Params:
    return jax.tree_util.tree_map_with_path(
      lambda path, p: decays(_names(path), p.ndim, o['decay_tokens']), params
    )

  decay = optax.add_decayed_weights(o['weight_decay'], mask=mask)
  adam = optax.scale_by_adam(b1=o['b1'], b2=o['b2'], eps=o['eps'])
  chain = [optax.clip_by_global_norm(o['clip_norm'])] if o['clip_norm'] else []
  return optax.chain(*chain, *((decay, adam) if o['name'] == 'adam' else (adam, decay)))

"""The optimiser's parts against PyTorch and against the formulas written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimic_jax import models
from mimic_jax.models import vit
from mimic_jax.objectives import make
from mimic_jax.runtime import checkpoint
from mimic_jax.training import optim
from tests import small

DECAYS = vit.Config().decays


def chain(**section):
  return optim.make_chain({'decay_tokens': False, 'clip_norm': 0.0, **section}, DECAYS)


def made(depth: int):
  """Returns the fine-tuning objective and its parameters."""
  model = small.model_section(depth=depth)
  objective = make(small.mimic_stage(), model, ('a', 'b', 'c'), 'objective')
  _, params, _ = models.split(objective.init(jax.random.key(0)), objective.trainable)
  return objective, params


def scales_of(depth: int, decay: float):
  objective, params = made(depth)
  group = optim.labels(params, objective.group)
  return optim.layer_scales(params, group, objective.layer_id, objective.layers, {'': decay})


def test_the_learning_rate_warms_up_linearly_and_ends_on_the_cosines_minimum(rng):
  peak, low, warm, total = rng.uniform(1e-4, 1e-2), 1e-6, int(rng.integers(2, 20)), int(rng.integers(50, 200))
  for step in range(total + 1):
    got = float(
      optim.learning_rate(jnp.int32(step), peak=peak, warmup_steps=warm, total_steps=total, min_lr=low)
    )
    if step < warm:
      want = peak * step / warm
    else:
      want = low + (peak - low) * 0.5 * (1 + np.cos(np.pi * (step - warm) / (total - warm)))
    assert got == pytest.approx(
      want, rel=2e-5, abs=1e-6 * peak
    )  # float32 loses digits where the cosine is flat


def test_the_rate_may_stay_at_the_peak_and_the_cosine_be_longer_than_the_stage(rng):
  peak, warm, hold, total = rng.uniform(1e-4, 1e-2), 3, 7, 60
  for step in range(total):
    fields = {'peak': peak, 'warmup_steps': warm, 'total_steps': total, 'min_lr': 0.0, 'hold_steps': hold}
    got = [float(optim.learning_rate(jnp.int32(step), **fields, cosine_steps=n)) for n in (0.0, 200.0)]
    if step < 10:
      want = [peak * min(step / warm, 1)] * 2
    else:
      want = [peak * 0.5 * (1 + np.cos(np.pi * (step - 10) / n)) for n in (total - 10, 200)]
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6 * peak)


def test_without_warm_up_the_first_step_has_the_peak():
  lr = optim.learning_rate(jnp.int32(0), peak=0.1, warmup_steps=0.0, total_steps=10, min_lr=0.0)
  assert float(lr) == pytest.approx(0.1)


@pytest.mark.parametrize('depth', [2, 5])
def test_layer_scales_follow_maes_ids(depth):
  decay = 0.65
  scales = scales_of(depth, decay)
  for path, scale in jax.tree_util.tree_flatten_with_path(scales)[0]:
    names = [k.key for k in path]
    if names[:2] == ['encoder', 'blocks']:
      want = [decay ** (depth + 1 - (i + 1)) for i in range(depth)]
    elif names[0] == 'encoder' and names[1] in ('cls_token', 'pos_embed', 'patch_embed'):
      want = [decay ** (depth + 1)]
    else:
      want = [1.0]
    np.testing.assert_allclose(np.ravel(scale), want, rtol=1e-6, err_msg=str(names))


def test_a_vit_b_trained_with_065_moves_its_patch_embedding_at_0037_of_the_rate():
  scales = scales_of(12, 0.65)
  assert float(scales['encoder']['patch_embed']['kernel'].ravel()[0]) == pytest.approx(0.0037, abs=5e-5)


def test_weight_decay_leaves_out_biases_norms_tokens_and_positions():
  def decayed(tokens: bool) -> set[str]:
    objective, params = made(2)[:2]
    flat = checkpoint.flatten(params)
    return {name for name, p in flat.items() if objective.decays(tuple(name.split('/')), p.ndim, tokens)}

  assert decayed(True) - decayed(False) == {'encoder/cls_token'}
  assert decayed(False) == {
    'encoder/patch_embed/kernel',
    *(f'encoder/blocks/{name}/kernel' for name in ('attn/qkv', 'attn/proj', 'mlp/fc1', 'mlp/fc2')),
    'projection/fc1/kernel',
    'projection/fc2/kernel',
    'classifier/fc/kernel',
  }


@pytest.mark.parametrize('name', ['adam', 'adamw'])
def test_ten_steps_agree_with_pytorch(name, rng):
  torch = pytest.importorskip('torch')
  lr, decay = 1e-2, 0.1
  start = {'kernel': rng.normal(size=(4, 3)), 'bias': rng.normal(size=3)}
  grads = [{k: rng.normal(size=v.shape) for k, v in start.items()} for _ in range(10)]

  tensors = {k: torch.tensor(v, dtype=torch.float32, requires_grad=True) for k, v in start.items()}
  groups = [
    {'params': [tensors['kernel']], 'weight_decay': decay},
    {'params': [tensors['bias']], 'weight_decay': 0.0},
  ]
  reference = {'adam': torch.optim.Adam, 'adamw': torch.optim.AdamW}[name](
    groups, lr=lr, betas=(0.9, 0.95), eps=1e-8
  )
  for g in grads:
    for k, v in g.items():
      tensors[k].grad = torch.tensor(v, dtype=torch.float32)
    reference.step()

  params = {k: jnp.asarray(v, jnp.float32) for k, v in start.items()}
  tx = chain(name=name, b1=0.9, b2=0.95, eps=1e-8, weight_decay=decay)
  state = tx.init(params)
  for g in grads:
    updates, state = tx.update({k: jnp.asarray(v, jnp.float32) for k, v in g.items()}, state, params)
    params = jax.tree.map(lambda p, u: p - lr * u, params, updates)
  for k in start:
    np.testing.assert_allclose(params[k], tensors[k].detach().numpy(), rtol=2e-5, atol=2e-6)


def test_coupled_and_decoupled_decay_differ():
  params = {'kernel': jnp.ones((2, 2))}
  out = {}
  for name in ('adam', 'adamw'):
    tx = chain(name=name, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1)
    out[name], _ = tx.update({'kernel': jnp.full((2, 2), 0.5)}, tx.init(params), params)
  assert float(out['adamw']['kernel'][0, 0]) == pytest.approx(1.1, rel=1e-5)
  assert float(out['adam']['kernel'][0, 0]) == pytest.approx(1.0, rel=1e-5)


def test_clipping_bounds_the_global_norm_before_the_moments(rng):
  params = {'a': jnp.zeros(3), 'b': jnp.zeros((2, 2))}
  grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params)
  norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))

  def first_update(clip: float, factor: float):
    # With a large eps Adam's first step is g / eps: it keeps the size of the gradient.
    tx = chain(name='adam', b1=0.0, b2=0.0, eps=1e6, weight_decay=0.0, clip_norm=clip)
    return tx.update(jax.tree.map(lambda g: factor * g, grads), tx.init(params), params)[0]

  for key in params:
    np.testing.assert_allclose(first_update(1.0, 100.0)[key] * 1e6, grads[key] / norm, rtol=1e-4)
    np.testing.assert_allclose(first_update(0.0, 100.0)[key] * 1e6, 100.0 * grads[key], rtol=1e-3)


def test_groups_have_chains_scales_and_norms_of_their_own(rng):
  params = {k: {'kernel': jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)} for k in ('mine', 'theirs')}
  grads = jax.tree.map(lambda p: p * 100, params)
  group = optim.labels(params, lambda path: 'x' if path[0] == 'theirs' else '')
  usual = {'b1': 0.9, 'b2': 0.999, 'eps': 1e-8, 'weight_decay': 0.1, 'decay_tokens': False}
  sections = {
    '': {**usual, 'name': 'adam', 'clip_norm': 0.0},
    'x': {**usual, 'name': 'adamw', 'clip_norm': 1.0},
  }
  tx = optim.make_optimiser(group, sections, DECAYS)
  got, _ = tx.update(grads, tx.init(params), params)
  for name, section in (('mine', sections['']), ('theirs', sections['x'])):
    alone = optim.make_chain(section, DECAYS)
    want, _ = alone.update({name: grads[name]}, alone.init({name: params[name]}), {name: params[name]})
    np.testing.assert_allclose(got[name]['kernel'], want[name]['kernel'], rtol=1e-6)
  scales = optim.layer_scales(params, group, lambda path: 1, 3, {'': 0.5, 'x': 1.0})
  assert (float(scales['mine']['kernel'][0, 0]), float(scales['theirs']['kernel'][0, 0])) == (0.25, 1.0)
  assert optim.of_group(grads, group, 'x') == [grads['theirs']['kernel']]

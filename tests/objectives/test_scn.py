"""SCN: its loss, parts and gradients against PyTorch in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimic_jax import losses, models, objectives
from mimic_jax.runtime.errors import UserError
from tests import small

B, K = 13, 4


def reference(features, y, fc, attention, s, relabels):
  """Returns the loss, its parts and the gradients of fc and attention (kernel, bias each) from features [B, D]."""
  torch = pytest.importorskip('torch')
  leaves = [torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in (*fc, *attention)]
  w, b, v, c = leaves
  x, target = torch.tensor(features), torch.tensor(y)
  alpha = torch.sigmoid(x @ v + c)[:, 0]
  logits = alpha[:, None] * (x @ w + b)
  high = int(B * s.high)
  order = sorted(range(B), key=lambda i: (-alpha[i].item(), i))
  top, low = order[:high], order[high:]
  rank = torch.clamp(s.margin - (alpha[top].mean() - alpha[low].mean()), min=0)
  p, moved = torch.softmax(logits, 1).detach(), 0
  for i in low if relabels else ():
    if p[i].max() - p[i, target[i].argmax()] > s.relabel_margin:
      target[i], moved = torch.nn.functional.one_hot(p[i].argmax(), K).double(), moved + 1
  ce = torch.nn.functional.cross_entropy(logits, target)
  (ce + s.rank_weight * rank).backward()
  parts = {
    'weighted_ce': ce.item(),
    'rank': rank.item(),
    'importance': alpha.mean().item(),
    'relabelled': moved / B,
  }
  return (ce + s.rank_weight * rank).item(), parts, [leaf.grad.numpy() for leaf in leaves]


@pytest.mark.parametrize(('step', 'relabels'), [(3, False), (4, True)])
@pytest.mark.parametrize('soft', [False, True])
def test_loss_and_gradients_are_pytorchs(step, relabels, soft, rng):
  stage = small.scn_stage(**{'batch_images': B, 'drop_path': 0.0, 'scn.margin': 0.4, 'scn.rank_weight': 0.7})
  objective = objectives.make(stage, small.model_section(), tuple('abcd'), 'objective')
  template, params, rest = models.split(objective.init(jax.random.key(0)), objective.trainable)
  head = params['classifier']
  drawn = lambda like, scale: jnp.asarray(scale * rng.normal(size=like.shape), jnp.float32)  # noqa: E731
  for layer, scale in (('fc', 2.0), ('attention', 0.5)):
    head[layer] = {k: drawn(v, scale) for k, v in head[layer].items()}
  y = rng.dirichlet(np.ones(K), B) if soft else np.eye(K)[rng.integers(0, K, B)]
  batch = {
    'image': jnp.asarray(rng.normal(size=(B, 1, 16, 16, 3)), jnp.float32),
    'label': jnp.asarray(y, jnp.float32),
  }

  def loss_of(params):
    return objective.loss(models.merge(template, params, rest), batch, jax.random.key(1), jnp.int32(step), 10)

  (loss, parts), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
  features = np.asarray(models.merge(template, params, rest).features(batch['image'][:, 0]), np.float64)
  layers = [tuple(head[layer][k] for k in ('kernel', 'bias')) for layer in ('fc', 'attention')]
  want, want_parts, want_grads = reference(features, y.copy(), *layers, stage.scn, relabels)
  assert float(loss) == pytest.approx(want, rel=1e-5)
  for name, value in want_parts.items():
    assert float(parts[name]) == pytest.approx(value, rel=1e-5, abs=1e-6), name
  found = [grads['classifier'][layer][k] for layer in ('fc', 'attention') for k in ('kernel', 'bias')]
  for mine, theirs in zip(found, want_grads):
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_equal_importance_falls_into_groups_by_place():
  loss, low = losses.rank_regularisation(jnp.full(5, 0.25), 0.7, 0.15)
  assert float(loss) == pytest.approx(0.15)
  assert low.tolist() == [False] * 3 + [True] * 2


def test_the_importance_is_an_answer_and_multiplies_the_logits(rng):
  objective = objectives.make(small.scn_stage(), small.model_section(), tuple('abcd'), 'objective')
  model = objective.init(jax.random.key(0))
  said = objective.answers(model, jnp.asarray(rng.normal(size=(3, 16, 16, 3)), jnp.float32))
  f = np.asarray(said['features'], np.float64)
  fc, attention = model.classifier.fc, model.classifier.attention
  alpha = 1 / (1 + np.exp(-(f @ np.asarray(attention.kernel[...]) + np.asarray(attention.bias[...]))))
  np.testing.assert_allclose(said['importance'], alpha[:, 0], rtol=1e-5)
  plain = f @ np.asarray(fc.kernel[...]) + np.asarray(fc.bias[...])
  np.testing.assert_allclose(said['logits'], alpha * plain, rtol=1e-4, atol=1e-8)


def test_a_batch_too_small_for_two_groups_is_refused():
  with pytest.raises(UserError, match=r'scn.high is 0.7 with batch_images 1, which leaves a group empty'):
    objectives.make(small.scn_stage(batch_images=1), small.model_section(), ('a', 'b'), 'objective')


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    (
      {'scn.rank_weight': 0.0, 'scn.margin': 0.3},
      'scn.margin is 0.3, and scn.rank_weight 0.0; expected 0.15',
    ),
    ({'scn.relabel_from': 1.0, 'scn.relabel_margin': 0.1}, 'relabel_margin is 0.1, and scn.relabel_from 1.0'),
  ],
)
def test_what_has_no_effect_is_refused(changes, said):
  with pytest.raises(UserError, match=said):
    objectives.make(small.scn_stage(**changes), small.model_section(), ('a', 'b'), 'objective')

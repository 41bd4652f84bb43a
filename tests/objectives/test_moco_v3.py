"""MoCo v3 against a PyTorch peer on the same weights and float64 NumPy; views, evaluation, what starts and what is trained.

That its steps are the same on any devices and after a stop: tests/training/test_train.py.
"""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimic_jax import augment, defaults, models, objectives
from mimic_jax.objectives import moco_v3
from mimic_jax.runtime import checkpoint, errors, sharding
from mimic_jax.training import step as step_lib
from tests.objectives.test_mae import block, close, norm, photos, stack
from tests.weights.test_weights import pair, timm_encoder

B, DIM, HIDDEN = 6, 12, 20
MODEL = {'image_size': 32, 'patch_size': 8, 'dim': 24, 'depth': 2, 'heads': 3, 'dtype': 'float32'}


def objective(model=MODEL, **fields):
  """Returns a small objective; `fields` go to the section of the stage."""
  stage, section = objectives.defaults('moco_v3'), defaults.encoder()
  section.update(model)
  stage.moco.update({'dim': DIM, 'hidden': HIDDEN})
  stage.update_from_flattened_dict(fields)
  return moco_v3.Objective(stage, section, ())


@pytest.fixture(scope='module')
def learner():
  return objective()


def trees(learner, seed=0):
  """Returns the template of a fresh model, and what is trained and the rest of it with noise added."""
  template, *both = models.split(jax.jit(learner.init)(jax.random.key(seed)), learner.trainable)
  rng = np.random.default_rng(seed)
  shaken = [
    jax.tree.map(lambda x: x + jnp.asarray(rng.uniform(0, 0.2, x.shape), jnp.float32), t) for t in both
  ]
  return template, *shaken


# ---- one step against PyTorch


@pytest.fixture
def peer(monkeypatch):
  """Returns torch and a float64 MoCo v3 of the sizes of `objective`: base and momentum branch, predictor, made from plain modules."""
  torch = pytest.importorskip('torch')
  monkeypatch.setitem(sys.modules, 'torchvision', None)  # test_mae.vit_mae says why
  transformers = pytest.importorskip('transformers', minversion='5.0')
  config = transformers.ViTConfig(
    image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96,
    layer_norm_eps=1e-6, hidden_act='gelu',
  )  # fmt: skip
  nn = torch.nn

  def mlp(*sizes):
    layers = []
    for n, (a, b) in enumerate(itertools.pairwise(sizes), 2):
      layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b, affine=n < len(sizes)), nn.ReLU()]
    return nn.Sequential(*layers[:-1])

  class Branch(nn.Module):
    def __init__(self):
      super().__init__()
      self.vit = transformers.ViTModel(config, add_pooling_layer=False)
      self.projector = mlp(24, HIDDEN, HIDDEN, DIM)

    def forward(self, x):
      return self.projector(self.vit(x).last_hidden_state[:, 0])

  moco = nn.Module()
  moco.base, moco.momentum, moco.predictor = Branch(), Branch(), mlp(DIM, HIDDEN, DIM)
  return torch, moco.double().train()


def mlp_tree(mlp):
  """Returns a peer's head under our names: kernels, norms."""
  linears, norms = list(mlp)[::3], list(mlp)[1::3]
  named = lambda n: {'mean': n.running_mean, 'var': n.running_var, **(norm(n) if n.affine else {})}  # noqa: E731
  return {
    'layers': {str(k): {'kernel': x.weight.T} for k, x in enumerate(linears)},
    'norms': {str(k): named(x) for k, x in enumerate(norms)},
  }


def branch_tree(torch, branch):
  embeddings = branch.vit.embeddings
  projection = embeddings.patch_embeddings.projection
  return {
    'encoder': {
      'patch_embed': {
        'kernel': projection.weight.permute(2, 3, 1, 0).reshape(-1, 24),
        'bias': projection.bias,
      },
      'cls_token': embeddings.cls_token,
      'pos_embed': embeddings.position_embeddings,
      'blocks': stack(torch, [block(torch, layer) for layer in branch.vit.layers]),
      'norm': norm(branch.vit.layernorm),
    },
    'projector': mlp_tree(branch.projector),
  }


def numpy_tree(torch, moco):
  """Returns a peer's arrays by our flat names, float64."""
  tree = {
    **branch_tree(torch, moco.base),
    'predictor': mlp_tree(moco.predictor),
    'momentum': branch_tree(torch, moco.momentum),
  }
  return {k: np.array(v.detach()) for k, v in checkpoint.flatten(tree).items()}


def test_a_step_is_that_of_a_peer_in_pytorch(rng, peer, learner):
  torch, moco = peer
  with torch.no_grad():
    for name, p in moco.named_parameters():
      centre = 1.0 if ('norm' in name or p.ndim == 1) and name.endswith('weight') else 0.0
      p.copy_(torch.from_numpy(rng.normal(centre, 0.2, p.shape).astype(np.float32)))
  before = numpy_tree(torch, moco)
  x = rng.normal(size=(B, 2, 32, 32, 3)).astype(np.float32)
  t, total, tau = 3, 10, 0.2
  m = 1 - 0.5 * (1 + np.cos(np.pi * t / total)) * (1 - 0.99)

  views = [torch.from_numpy(x[:, v].transpose(0, 3, 1, 2)).double() for v in (0, 1)]
  with torch.no_grad():
    for slow, fast in zip(moco.momentum.parameters(), moco.base.parameters(), strict=True):
      slow.copy_(m * slow + (1 - m) * fast)
    keys = [torch.nn.functional.normalize(moco.momentum(v)) for v in views]
  queries = [torch.nn.functional.normalize(moco.predictor(moco.base(v))) for v in views]
  one, two = (
    torch.nn.functional.cross_entropy(q @ k.T / tau, torch.arange(B))
    for q, k in zip(queries, keys[::-1], strict=True)
  )
  expected = 2 * tau * (one + two)
  expected.backward()
  after = numpy_tree(torch, moco)
  with torch.no_grad():  # the same renaming, which is linear, turns its gradients into ours
    for p in moco.parameters():
      p.copy_(torch.zeros_like(p) if p.grad is None else p.grad)
  expected_gradients = numpy_tree(torch, moco)

  template, params, rest = models.split(nnx.eval_shape(learner.init, jax.random.key(0)), learner.trainable)
  fill = lambda tree: jax.tree_util.tree_map_with_path(  # noqa: E731
    lambda path, leaf: jnp.asarray(before['/'.join(k.key for k in path)].reshape(leaf.shape), leaf.dtype),
    tree,
  )

  def loss(params, rest, x):
    model = models.merge(template, params, rest)
    value, said = learner.loss(model, {'image': x}, jax.random.key(0), jnp.asarray(t), total)
    return value, (said, models.rest_of(template, model))

  (value, (said, rest)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
    fill(params), fill(rest), x
  )
  close(value, expected.item(), 1e-4, 'loss')
  assert said['momentum'] == pytest.approx(m)
  found = [int(k) for k in (queries[0] @ keys[1].T).argmax(1)]
  assert said['keys_found'] == pytest.approx(np.mean([k == i for i, k in enumerate(found)]))
  largest = max(np.abs(g).max() for g in expected_gradients.values())
  for name, gradient in checkpoint.flatten(gradients).items():
    want = expected_gradients[name]  # of the last norm's bias: 0, since a BatchNorm follows
    scale = max(np.abs(want).max(), 1e-3 * largest)
    np.testing.assert_allclose(
      gradient, want.reshape(gradient.shape), atol=1e-3 * scale, rtol=0, err_msg=name
    )
  for name, array in checkpoint.flatten(rest).items():
    want = after[name].reshape(array.shape)
    if name.endswith('/var'):  # PyTorch's running variance is the unbiased one; two views went into it
      want = 0.81 + (want - 0.81) * (B - 1) / B
    np.testing.assert_allclose(array, want, rtol=2e-4, atol=2e-5, err_msg=name)
  assert np.abs(after['momentum/encoder/cls_token'] - before['momentum/encoder/cls_token']).max() > 1e-4


def cross_entropy(q, k, tau, left_out):
  """float64: 2τ · CE of each query, keys `left_out` being no candidates."""
  logits = np.where(left_out, -np.inf, q.astype(np.float64) @ k.T.astype(np.float64) / tau)
  top = logits.max(1)
  return 2 * tau * (top + np.log(np.exp(logits - top[:, None]).sum(1)) - np.diag(logits))


def test_the_momentum_goes_along_a_cosine_to_one():
  steps = np.arange(0, 301, 25)
  got = [moco_v3.momentum_rate(jnp.asarray(t), 300, 0.99) for t in steps]
  np.testing.assert_allclose(got, 0.5 * (1 + np.cos(np.pi * steps / 300)) * 0.01, atol=1e-9)


# ---- views


def test_two_views_of_whole_pictures_and_of_cropped_ones(rng, learner):
  key = jax.random.key(int(rng.integers(2**31)))
  for images in (photos(rng, 4, 48, 40), photos(rng, 4, 2, 32, 32)):
    out = np.asarray(jax.jit(lambda x, k: learner.augment({'image': x}, k)['image'])(images, key))
    assert out.shape == (4, 2, 32, 32, 3)
    assert out.dtype == np.float32
    assert np.abs(out).max() < 3
    assert np.abs(out[:, 0] - out[:, 1]).max(axis=(1, 2, 3)).min() > 0.1


def test_each_view_has_its_own_share_of_blur_and_solarising(rng):
  still = {'augment.jitter_probability': 0.0, 'augment.grayscale': 0.0, 'augment.flip': 0.0}
  flat = np.broadcast_to(rng.integers(200, 256, (64, 1, 1, 1, 3)), (64, 2, 32, 32, 3)).astype(np.uint8)
  noisy = rng.integers(0, 100, (64, 2, 32, 32, 3)).astype(np.uint8)
  a = defaults.stage().augment

  def changed(images, **fields):
    out = objective(**still, **fields).augment({'image': jnp.asarray(images)}, jax.random.key(1))['image']
    plain = augment.normalise(jnp.asarray(images), a.mean, a.std)
    return np.abs(np.asarray(out) - np.asarray(plain)).max(axis=(2, 3, 4)) > 1e-3

  none = {'augment.blur': (0.0, 0.0), 'augment.solarise': (0.0, 0.0)}
  assert not changed(noisy, **none).any()
  first, second = changed(flat, **{**none, 'augment.solarise': (0.0, 1.0)}).T
  assert not first.any()
  assert second.all()
  blurred = {**none, 'augment.blur': (1.0, 0.3), 'augment.blur_sigma': (5.0, 6.0)}
  first, second = changed(noisy, **blurred).T
  assert first.all()
  assert 5 < second.sum() < 40  # 19 of 64, and five standard deviations


def test_the_report_shows_both_views(rng, learner):
  drawn = learner.draw(None, {'image': photos(rng, 10, 48, 40)}, jax.random.key(0))['views']
  assert drawn.images.shape == (8, 2, 32, 32, 3)
  assert drawn.images.dtype == np.uint8
  assert drawn.columns == ('view 1', 'view 2')


# ---- evaluation


def test_evaluation_has_views_by_index_leaves_out_padding_and_changes_nothing(rng, learner):
  template, params, rest = trees(learner)

  @jax.jit
  def evaluate(params, rest, batch):
    model = models.merge(template, params, rest)
    found = learner.evaluate(model, batch)
    x = learner._fixed_views(batch['image'], batch['index'])
    q, k = ([f(x[:, v], None) for v in (0, 1)] for f in (model.query, model.key_of))
    return found, q, k, models.rest_of(template, model), learner.answers(model, x[:, 0])

  images, index = photos(rng, 8, 32, 32), rng.permutation(100)[:8].astype(np.int32)
  mask = np.arange(8) < 5
  found, q, k, same, _ = evaluate(params, rest, {'image': images, 'index': index, 'mask': mask})
  total, count = found['sums']['loss']
  assert count == 5
  q, k = np.asarray(q), np.asarray(k)
  np.testing.assert_allclose(np.linalg.norm(q, axis=-1), 1, atol=1e-5)
  want = sum(cross_entropy(q[v, :5], k[1 - v, :5], 0.2, np.zeros((5, 5), bool)).sum() for v in (0, 1))
  np.testing.assert_allclose(total, want, rtol=1e-4)
  for a, b in zip(jax.tree.leaves(rest), jax.tree.leaves(same), strict=True):
    np.testing.assert_array_equal(a, b)

  order = np.array([3, 1, 4, 0, 2])
  again = {'image': np.zeros_like(images), 'index': np.zeros(8, np.int32), 'mask': mask}
  again['image'][:5], again['index'][:5] = images[order], index[order]
  other, *_ = evaluate(params, rest, again)
  np.testing.assert_allclose(other['sums']['loss'][0], total, rtol=1e-4)
  features = np.asarray(found['outputs']['features'])
  assert features.shape == (8, 24)
  np.testing.assert_allclose(other['outputs']['features'][:5], features[order], atol=1e-4)


# ---- what starts, what is trained


def test_the_momentum_branch_starts_as_the_other_and_the_embedding_is_not_trained(learner):
  _, params, rest = models.split(jax.jit(learner.init)(jax.random.key(3)), learner.trainable)
  mine, theirs = checkpoint.flatten({**rest, **params}), checkpoint.flatten(rest['momentum'])
  assert not any(name.startswith('momentum') for name in checkpoint.flatten(params))
  frozen = {'encoder/patch_embed/kernel', 'encoder/patch_embed/bias', 'encoder/pos_embed'}
  assert {n for n in theirs if n not in checkpoint.flatten(params)} - frozen == {
    f'projector/norms/{n}/{which}' for n in range(3) for which in ('mean', 'var')
  }
  for name, array in theirs.items():
    own = params if name in checkpoint.flatten(params) else rest
    np.testing.assert_array_equal(checkpoint.flatten(own)[name], array, err_msg=name)
  bound = np.abs(mine['encoder/blocks/attn/qkv/kernel']).max()
  assert 0.97 * (6 / 48) ** 0.5 < bound <= (6 / 48) ** 0.5 + 1e-6
  assert np.abs(mine['projector/layers/1/kernel']).max() <= HIDDEN**-0.5


def test_published_weights_start_both_encoders(rng, tmp_path):
  torch = pytest.importorskip('torch')
  state = {}
  for which in ('base_encoder', 'momentum_encoder'):
    state |= {f'module.{which}.{k}': v for k, v in timm_encoder(rng).items()}
    state |= pair(rng, f'module.{which}.head.1', 8, norm=True)
  torch.save(
    {'state_dict': {k: torch.from_numpy(np.asarray(v)) for k, v in state.items()}}, tmp_path / 'moco.pth'
  )
  cls = state['module.base_encoder.cls_token']
  patch = state['module.base_encoder.patch_embed.proj.weight'].shape[-1]
  grid = round((state['module.base_encoder.pos_embed'].shape[1] - 1) ** 0.5)
  depth = sum('base_encoder' in n and n.endswith('norm1.weight') for n in state)
  found = objective(
    {
      **MODEL,
      'dim': cls.shape[-1],
      'patch_size': patch,
      'image_size': patch * grid,
      'depth': depth,
      'heads': 2,
    }
  )
  program = step_lib.make_program(found.stage, found, 8192, sharding.make_mesh())
  given = step_lib.fitted(program, str(tmp_path / 'moco.pth'), 'init')
  begun = step_lib.initial_state(program, jax.random.key(0), given)
  np.testing.assert_array_equal(begun['params']['encoder']['cls_token'], cls)
  np.testing.assert_array_equal(begun['rest']['momentum']['encoder']['cls_token'], cls)
  for name, array in checkpoint.flatten(begun['rest']['momentum']).items():
    own = {**checkpoint.flatten(begun['rest']), **checkpoint.flatten(begun['params'])}
    np.testing.assert_array_equal(array, own[name], err_msg=name)


@pytest.mark.processes
def test_of_a_resnet_both_branches_have_batch_statistics_of_their_own(rng):
  found = objective(
    {'preset': 'resnet18', 'image_size': 32, 'patch_size': 0, 'dim': 0, 'depth': 0, 'heads': 0}
  )
  template, params, rest = models.split(jax.jit(found.init)(jax.random.key(0)), found.trainable)

  @jax.jit
  def loss(params, rest, x):
    model = models.merge(template, params, rest)
    value, _ = found.loss(model, {'image': x}, jax.random.key(0), jnp.asarray(0), 10)
    return value, models.rest_of(template, model)

  value, after = loss(params, rest, jnp.asarray(rng.normal(size=(4, 2, 32, 32, 3)), jnp.float32))
  assert np.isfinite(value)
  after, moved = checkpoint.flatten(after), set()
  for name, array in checkpoint.flatten(rest).items():
    assert name.startswith('momentum') or name.endswith(('mean', 'var')), name
    moved |= {name} if np.abs(after[name] - array).max() > 1e-7 else set()
  assert {'encoder/bn1/mean', 'momentum/encoder/bn1/mean', 'momentum/encoder/layer4/1/bn2/var'} <= moved


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'batch_images': 1}, r'batch_images is 1; expected at least 2'),
    ({'augment.blur': (1.0,)}, r'augment\.blur is \(1\.0,\); expected 2 numbers of 0 to 1'),
    ({'augment.solarise': (0.0, 1.2)}, r'augment\.solarise is \(0\.0, 1\.2\); expected 2 numbers'),
    ({'augment.jitter': (0.4, 0.4, 0.2, 0.6)}, r'augment\.jitter is .*; expected at most 0\.5 of a turn'),
    ({'augment.blur_sigma': (2.0, 0.1)}, r'augment\.blur_sigma is \(2\.0, 0\.1\); expected \(low, high\)'),
  ],
)
def test_a_wrong_section_is_refused_in_one_line(fields, expected):
  with pytest.raises(errors.UserError, match=expected) as caught:
    objective(**fields)
  assert '\n' not in str(caught.value)

"""LocalMIM against a peer in PyTorch, in float64 and with the same weights; its taps, evaluation, pictures, refusals."""

import jax
import numpy as np
import pytest
from flax import nnx

from mimic_jax import defaults, losses, models, objectives
from mimic_jax.models import masking
from mimic_jax.objectives import local_mim
from mimic_jax.runtime.errors import UserError


def objective(model=(), **fields):
  """Returns a small objective: 16 patches of 8 × 8, 4 of them kept, 4 blocks; `fields` go to the section stage.local_mim."""
  stage, section = objectives.defaults('local_mim'), defaults.encoder()
  section.update({'image_size': 32, 'patch_size': 8, 'dim': 24, 'depth': 4, 'heads': 3, 'dtype': 'float32'})
  section.update(dict(model))
  stage.local_mim.update({'decoder_dim': 16, 'decoder_heads': 2, **fields})
  return local_mim.Objective(stage, section, ())


def everything(path):
  return True


@pytest.fixture(scope='module')
def small():
  """Returns an objective, its template and the shapes of its parameters."""
  learner = objective()
  template, shapes, _ = models.split(nnx.eval_shape(learner.init, jax.random.key(0)), everything)
  return learner, template, shapes


def random_params(shapes, rng):
  def draw(path, leaf):
    centre = 1.0 if path[-1].key == 'scale' else 0.0
    return rng.normal(centre, 0.15, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def pictures(rng, *shape):
  """Normalised pictures of few levels, whose gradients are exact in float32: none lies near an edge between bins."""
  return (rng.integers(-16, 16, shape) / 8).astype(np.float32)


# ---- a peer in PyTorch


def peer(torch, p, images, noise, scales=(4.0, 2.0, 1.0, 0.5), taps=(0, 1, 2, 3), patch=8):
  """Returns the predictions of each scale and the loss, of images [B, 3, S, S], by the parameters p, our tree as tensors."""
  F = torch.nn.functional
  B, _, S, _ = images.shape
  grid = S // patch

  def linear(x, q):
    return x @ q['kernel'] + q['bias']

  def norm(x, q):
    return F.layer_norm(x, x.shape[-1:], q['scale'], q['bias'], 1e-6)

  def block(x, q, heads):
    B, N, D = x.shape
    qkv = linear(norm(x, q['norm1']), q['attn']['qkv']).reshape(B, N, 3, heads, D // heads)
    attended = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2).reshape(B, N, D)
    x = x + linear(attended, q['attn']['proj'])
    return x + linear(F.gelu(linear(norm(x, q['norm2']), q['mlp']['fc1'])), q['mlp']['fc2'])

  def one(tree, i):
    return {k: one(v, i) if isinstance(v, dict) else v[i] for k, v in tree.items()}

  e = p['encoder']
  weight = e['patch_embed']['kernel'].reshape(patch, patch, 3, -1).permute(3, 2, 0, 1)
  x = F.conv2d(images, weight, e['patch_embed']['bias'], stride=patch).flatten(2).transpose(1, 2)
  x = x + e['pos_embed'][:, 1:]
  order = noise.argsort(dim=1)
  restore, kept = order.argsort(dim=1), grid**2 // 4
  pick = lambda x, ids: torch.gather(x, 1, ids[:, :, None].expand(-1, -1, x.shape[2]))  # noqa: E731
  x = torch.cat([(e['cls_token'] + e['pos_embed'][:, :1]).expand(B, -1, -1), pick(x, order[:, :kept])], dim=1)
  mask = (restore >= kept).double().reshape(B, 1, grid, grid)

  found, loss = [], 0.0
  for i in range(4):
    x = block(x, one(e['blocks'], i), 3)
    if i not in taps:
      continue
    k = taps.index(i)
    d, scale = p['decoders'][str(k)], scales[k]
    y = linear(norm(x, e['norm'] if k == len(taps) - 1 else p['norms'][str(k)]), d['embed'])
    fill = d['mask_token'].expand(B, grid**2 - kept, -1)
    y = torch.cat([y[:, :1], pick(torch.cat([y[:, 1:], fill], dim=1), restore)], dim=1) + d['pos_embed']
    y = norm(block(y, one(d['blocks'], 0), 2), d['norm'])[:, 1:]
    y = y.transpose(1, 2).reshape(B, -1, grid, grid)
    for n in range(len(d['pred'].get('up', ()))):
      q = d['pred']['up'][str(n)]
      if n:
        y = F.gelu(norm(y.permute(0, 2, 3, 1), d['pred']['norms'][str(n - 1)])).permute(0, 3, 1, 2)
      y = F.conv_transpose2d(
        y, q['kernel'].reshape(y.shape[1], 2, 2, -1).permute(0, 3, 1, 2), q['bias'], stride=2
      )
    y = F.avg_pool2d(y, 2) if scale < 1 else y
    y = F.conv2d(y, d['pred']['out']['kernel'].T[:, :, None, None], d['pred']['out']['bias'])
    w = F.interpolate(mask, scale_factor=scale, mode='nearest') if scale >= 1 else F.avg_pool2d(mask, 2)
    error = ((y - histograms(torch, images, round(patch / scale))) ** 2).mean(dim=1)
    loss = loss + (error * w[:, 0]).sum() / w.sum()
    found.append(y.flatten(2).transpose(1, 2))
  return found, loss


def histograms(torch, images, cell, bins=9):
  """Returns [B, 3·bins, h, w] of images [B, 3, S, S]."""
  F = torch.nn.functional
  sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], dtype=torch.float64)
  of_colours = []
  for colour in images.split(1, dim=1):
    g = F.conv2d(F.pad(colour, (1, 1, 1, 1), mode='reflect'), torch.stack([sobel, sobel.T])[:, None])
    k = (torch.atan2(g[:, :1], g[:, 1:]) / torch.pi * bins).floor().long() % bins
    binned = torch.zeros(len(g), bins, *g.shape[2:], dtype=g.dtype).scatter_(
      1, k, g.norm(dim=1, keepdim=True)
    )
    of_colours.append(F.normalize(F.avg_pool2d(binned, cell), dim=1))
  return torch.cat(of_colours, dim=1)


def test_loss_predictions_and_gradients_equal_the_peers_in_pytorch(rng, small):
  torch = pytest.importorskip('torch')
  learner, template, shapes = small
  params = random_params(shapes, rng)
  images, noise = pictures(rng, 2, 32, 32, 3), rng.uniform(size=(2, 16)).astype(np.float32)
  theirs = jax.tree.map(lambda a: torch.from_numpy(a).double().requires_grad_(), params)
  found, expected = peer(
    torch, theirs, torch.from_numpy(images).double().permute(0, 3, 1, 2), torch.from_numpy(noise)
  )
  expected.backward()

  def loss(params, images, noise):
    masks = masking.masks_from_noise(noise, learner.mask_ratio)
    preds = models.merge(template, params, {})(images, masks)
    return sum(map(losses.masked_mse, preds, learner.targets_of(images), learner._weights(masks))), preds

  (value, preds), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, images, noise)
  assert [p.shape for p in preds] == [(2, n * n, 27) for n in (16, 8, 4, 2)]
  for ours, y in zip(preds, found, strict=True):
    np.testing.assert_allclose(ours, y.detach().numpy(), atol=2e-5)
  np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
  for (path, ours), tensor in zip(
    jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(theirs), strict=True
  ):
    grad = tensor.grad.numpy()
    error = np.abs(ours - grad).max() / np.abs(grad).max()
    assert error <= 5e-5, f'{jax.tree_util.keystr(path)} {error:.1e} relative'


# ---- the objective


def test_taps_are_the_published_ones_and_rise_in_shallower_encoders():
  assert local_mim.taps_of(12, 4) == (1, 3, 9, 11)
  assert local_mim.taps_of(24, 4) == (1, 3, 21, 23)
  assert local_mim.taps_of(4, 4) == (0, 1, 2, 3)
  assert local_mim.taps_of(6, 4) == (1, 2, 4, 5)
  for count in range(1, 5):
    for depth in range(count, 33):
      taps = local_mim.taps_of(depth, count)
      assert len(set(taps)) == count
      assert list(taps) == sorted(taps)
      assert (taps[0] >= 0, taps[-1]) == (True, depth - 1)


def test_loss_and_evaluation_are_the_mean_over_removed_cells_whatever_the_padding(rng, small):
  learner, template, shapes = small
  params = random_params(shapes, rng)
  index, key = rng.integers(0, 10_000, 4).astype(np.int32), jax.random.key(int(rng.integers(2**31)))
  raw = rng.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
  there = np.array([True, True, False, True])

  @jax.jit
  def both(params, raw):
    model = models.merge(template, params, {})
    x = learner._seen(raw)
    return (
      learner.evaluate(model, {'image': raw, 'index': index, 'mask': there}),
      learner.loss(model, {'image': x[:, None]}, key, 0, 10),
      [
        (m.mask, learner.targets_of(x), model(x, m))
        for m in (
          masking.fixed_masks(index, 16, 0.75),
          masking.mask_ids(jax.random.split(key)[0], 4, 16, 0.75),
        )
      ],
    )

  evaluated, (loss, parts), raws = both(params, raw)

  def terms(mask, target, pred, rows):
    """Returns the mean over removed cells of each scale, with a cell's share that was removed."""
    for scale, t, y in zip((4, 2, 1, 0.5), target, pred, strict=True):
      n = int(4 * scale)
      total = weight = 0.0
      for b, i, j in [(b, i, j) for b in rows for i in range(n) for j in range(n)]:
        of = np.asarray(mask[b]).reshape(4, 4)
        w = (
          of[int(i / scale), int(j / scale)]
          if scale >= 1
          else of[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean()
        )
        total += w * ((np.asarray(y[b, i * n + j], np.float64) - np.asarray(t[b, i * n + j])) ** 2).mean()
        weight += w
      yield total / weight

  expected = list(terms(*raws[1], range(4)))
  names = ['scale_4', 'scale_2', 'scale_1', 'scale_0.5']
  np.testing.assert_allclose([parts[k] for k in names], expected, rtol=1e-5)
  assert len(parts) == 4
  np.testing.assert_allclose(loss, sum(expected), rtol=1e-5)
  each = np.array([list(terms(*raws[0], [b])) for b in (0, 1, 3)]).sum(axis=0)
  sums = evaluated['sums']
  np.testing.assert_allclose([sums[k][0] for k in names], each, rtol=1e-5)
  np.testing.assert_allclose(sums['loss'][0], each.sum(), rtol=1e-5)
  assert {int(count) for _, count in sums.values()} == {3}
  assert evaluated['outputs'] == {}


def test_position_tables_are_frozen_and_matrices_alone_decay():
  learner = objective()
  _, params, rest = models.split(nnx.eval_shape(learner.init, jax.random.key(0)), learner.trainable)
  assert {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(rest)} == {'pos_embed'}
  assert len(jax.tree.leaves(rest)) == 5
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    names = tuple(k.key for k in path)
    matrix = names[-1] in ('kernel', 'cls_token', 'mask_token')
    assert learner.decays(names, leaf.ndim, True) == matrix, names


def test_pictures_show_visible_cells_as_they_are_and_predictions_elsewhere(rng, small):
  learner, template, shapes = small
  model = models.merge(template, random_params(shapes, rng), {})
  raw = rng.integers(0, 256, (3, 40, 32, 3)).astype(np.uint8)
  key = jax.random.key(int(rng.integers(2**31)))
  drawing = learner.draw(model, {'image': raw}, key)['oriented_gradients']
  assert drawing.images.shape == (3, 4, 32, 32, 3)
  assert len(drawing.columns) == 4
  assert '8 × 8 pixels' in drawing.caption
  assert 'behind block 3' in drawing.caption
  removed = np.asarray(masking.mask_ids(key, 3, 16, 0.75).mask).reshape(3, 4, 4).repeat(8, 1).repeat(8, 2)
  masked, predicted, true, original = drawing.images.swapaxes(0, 1)
  np.testing.assert_array_equal(masked[~removed], original[~removed])
  np.testing.assert_array_equal(np.unique(masked[removed], axis=0), [[124, 116, 104]])
  np.testing.assert_array_equal(predicted[~removed], true[~removed])
  assert (predicted[removed] != true[removed]).any()


@pytest.mark.parametrize(
  ('model', 'fields', 'expected'),
  [
    ({}, {'scales': (4.0, 3.0)}, r'local_mim\.scales is \(4\.0, 3\.0\); expected some of \(4\.0, 2\.0, 1\.0'),
    ({}, {'scales': (1.0, 2.0)}, r'local_mim\.scales is .* falling'),
    ({}, {'scales': (4.0, 'a')}, r"local_mim\.scales is \(4\.0, 'a'\)"),
    ({}, {'scales': ()}, r'local_mim\.scales is \(\)'),
    ({'patch_size': 16, 'image_size': 48}, {}, r'scales has 0\.5, and model\.image_size 48 has 3 patches'),
    ({'patch_size': 14, 'image_size': 56}, {}, r'scales has 4, and model\.image_size 56 has 4 patches of 14'),
    ({'depth': 3}, {}, r'local_mim\.scales has 4, .* has 3 blocks; expected fewer scales or a deeper'),
    ({'preset': 'resnet18', 'patch_size': 0, 'dim': 0, 'depth': 0, 'heads': 0}, {}, r"'resnet18'; expected a ViT"),
    ({}, {'decoder_dim': 18, 'decoder_heads': 4}, r'local_mim\.decoder_dim is 18; expected a positive multiple'),
    ({}, {'mask_ratio': 0.97}, r'local_mim\.mask_ratio is 0\.97; expected a share'),
  ],
)  # fmt: skip
def test_a_wrong_section_is_refused_in_one_line(model, fields, expected):
  with pytest.raises(UserError, match=expected) as caught:
    objective(model, **fields)
  assert '\n' not in str(caught.value)

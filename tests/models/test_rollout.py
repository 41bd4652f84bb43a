"""Attention rollout against a float64 loop over images, blocks and heads, and where the answer can be written down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from mimic_jax import models
from mimic_jax.models import rollout, vit

CONFIG = vit.Config(image_size=24, patch_size=8, dim=24, depth=3, heads=3, dtype='float32')


def encoder(rng, config=CONFIG, spread=0.3):
  """Returns an encoder with random parameters, wide enough for attention to be far from even."""
  template, shapes, _ = models.split(
    nnx.eval_shape(lambda: vit.Encoder(config, nnx.Rngs(0))), lambda path: True
  )

  def draw(path, leaf):
    return jnp.asarray(rng.normal(float(path[-1].key == 'scale'), spread, leaf.shape), leaf.dtype)

  return models.merge(template, jax.tree_util.tree_map_with_path(draw, shapes), {})


def photos(rng, n=2, size=24):
  return rng.normal(size=(n, size, size, 3))


def run(model, images, pool):
  return np.asarray(
    jax.jit(rollout.attention_rollout, static_argnames='pool')(
      model, jnp.asarray(images, jnp.float32), pool=pool
    )
  )


def norm(x, scale, bias):
  return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias


def by_hand(model, image, pool):
  """Returns the rollout of one image [S, S, 3] as float64 [grid, grid]: a plain reading of encoder and paper."""
  _, params, _ = models.split(model, lambda path: True)
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  c = model.config
  side, patches = c.patch_size, []
  for row in range(c.grid):
    for column in range(c.grid):
      cut = image[row * side : (row + 1) * side, column * side : (column + 1) * side]
      patches.append(cut.reshape(-1) @ p['patch_embed']['kernel'] + p['patch_embed']['bias'])
  x = np.concatenate([p['cls_token'][0], np.array(patches)]) + p['pos_embed'][0]
  if c.registers:
    x = np.concatenate([x[:1], p['register_tokens'][0], x[1:]])
  ls1, ls2 = (p['blocks'].get(name, np.ones((c.depth, c.dim))) for name in ('ls1', 'ls2'))
  n, d = len(x), c.dim // c.heads
  total = np.eye(n)
  for block in range(c.depth):
    b = jax.tree.map(lambda a, k=block: a[k], p['blocks'])
    y = norm(x, b['norm1']['scale'], b['norm1']['bias'])
    qkv = y @ b['attn']['qkv']['kernel'] + b['attn']['qkv']['bias']
    mean, out = np.zeros((n, n)), []
    for head in range(c.heads):
      q, k, v = (qkv[:, i * c.dim + head * d : i * c.dim + (head + 1) * d] for i in range(3))
      s = np.exp(q @ k.T / np.sqrt(d))
      a = s / s.sum(1, keepdims=True)
      mean += a / c.heads
      out.append(a @ v)
    x = x + (np.concatenate(out, 1) @ b['attn']['proj']['kernel'] + b['attn']['proj']['bias']) * ls1[block]
    y = norm(x, b['norm2']['scale'], b['norm2']['bias'])
    h = y @ b['mlp']['fc1']['kernel'] + b['mlp']['fc1']['bias']
    h = 0.5 * h * (1 + erf(h / np.sqrt(2)))
    x = x + (h @ b['mlp']['fc2']['kernel'] + b['mlp']['fc2']['bias']) * ls2[block]
    total = (0.5 * mean + 0.5 * np.eye(n)) @ total
  row = total[0] if pool == 'cls' else np.mean(total[1 + c.registers :], axis=0)
  return row[1 + c.registers :].reshape(c.grid, c.grid)


@pytest.mark.parametrize('pool', ['cls', 'gap'])
@pytest.mark.parametrize(
  'extras', [{}, {'registers': 3}, {'layer_scale': 0.5}, {'registers': 1, 'layer_scale': 1.0}]
)
def test_rollout_is_the_papers_product_over_blocks(rng, pool, extras):
  model, images = encoder(rng, CONFIG._replace(**extras)), photos(rng)
  want = np.stack([by_hand(model, image, pool) for image in images])
  got = run(model, images, pool)
  assert got.shape == (2, 3, 3)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, want, rtol=2e-4)
  if pool == 'cls':  # far from even, or a wrong order of blocks would hardly show
    assert want.max() > 1.2 * want.min()


@pytest.mark.parametrize('pool', ['cls', 'gap'])
def test_even_attention_gives_what_can_be_written_down(rng, pool):
  model = encoder(rng)
  model.blocks.attn.qkv.kernel[...] = jnp.zeros_like(model.blocks.attn.qkv.kernel[...])
  model.blocks.attn.qkv.bias[...] = jnp.zeros_like(model.blocks.attn.qkv.bias[...])
  stays = 0.5**CONFIG.depth  # (½I + ½J/N)^depth = stays · I + (1 − stays) · J/N
  want = (1 - stays) / 10 + (stays / 9 if pool == 'gap' else 0)
  np.testing.assert_allclose(run(model, photos(rng), pool), np.full((2, 3, 3), want), rtol=1e-5)


def test_a_patch_that_every_token_looks_at_stands_out_in_its_place(rng):
  model = encoder(rng, spread=0.02)
  bright = np.zeros((1, 24, 24, 3))
  bright[0, 8:16, 16:24] = 1  # row 1, column 2
  kernel = np.zeros(model.patch_embed.kernel.shape, np.float32)
  kernel[:, 0] = 1
  model.patch_embed.kernel[...] = jnp.asarray(kernel)  # brightness is channel 0
  qkv = np.zeros(model.blocks.attn.qkv.kernel.shape, np.float32)
  qkv[:, 0, [24, 32, 40]] = 10  # the first channel of each head's key
  model.blocks.attn.qkv.kernel[...] = jnp.asarray(qkv)
  query = np.zeros(model.blocks.attn.qkv.bias.shape, np.float32)
  query[:, [0, 8, 16]] = 10
  model.blocks.attn.qkv.bias[...] = jnp.asarray(query)
  model.blocks.norm1.scale[...] = jnp.ones_like(model.blocks.norm1.scale[...])
  for pool in ('cls', 'gap'):
    heat = run(model, bright, pool)[0]
    assert np.unravel_index(heat.argmax(), heat.shape) == (1, 2)
    assert heat[1, 2] > 5 * np.median(heat)


@pytest.mark.parametrize('scan', [True, False])
@pytest.mark.parametrize('pool', ['cls', 'gap'])
def test_bfloat16_models_are_read_in_float32(rng, scan, pool):
  config = CONFIG._replace(dtype='bfloat16', scan=scan)
  model, images = encoder(rng, config, spread=0.15), photos(rng)
  got = run(model, images, pool)
  assert got.dtype == np.float32
  assert (got > 0).all()
  assert (got.sum((1, 2)) < 1).all()
  want = np.stack([by_hand(model, image, pool) for image in images])
  np.testing.assert_allclose(got, want, rtol=0.1)


def test_another_pool_is_refused(rng):
  with pytest.raises(ValueError, match="pool is 'max'; expected one of gap, cls"):
    rollout.attention_rollout(encoder(rng), jnp.zeros((1, 24, 24, 3)), 'max')

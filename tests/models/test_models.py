"""The encoder's arithmetic against float64 NumPy and PyTorch, its options of execution, heads, and models as plain dicts."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mimic_jax import defaults, models, objectives
from mimic_jax.models import decoder, heads, vit
from mimic_jax.runtime import checkpoint, checksum, errors
from tests import small

SMALL = vit.Config(image_size=24, patch_size=8, dim=24, depth=2, heads=3, dtype='float32')


def everything(path):
  return True


def randomised(make, rng, spread=0.3):
  """Returns the module that `make(rngs)` makes with random parameters: zero biases and unit scales would hide faults."""
  template, shapes, _ = models.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), everything)

  def draw(path, leaf):
    centre = 1.0 if path[-1].key == 'scale' else 0.0
    return jnp.asarray(rng.normal(centre, spread, leaf.shape), leaf.dtype)

  return models.merge(template, jax.tree_util.tree_map_with_path(draw, shapes), {})


def encoder(rng, config=SMALL):
  return randomised(lambda rngs: vit.Encoder(config, rngs), rng, 0.15)


def with_config(encoder_, config):
  """Returns an encoder of another execution with the same parameters."""
  template, _, _ = models.split(nnx.eval_shape(lambda: vit.Encoder(config, nnx.Rngs(1))), everything)
  _, params, rest = models.split(encoder_, everything)
  return models.merge(template, params, rest)


@functools.partial(jax.jit, static_argnums=0, static_argnames='norm')
def _apply(template, params, images, **options):
  return models.merge(template, params, {})(images, **options)


def apply(model, images, **options):
  """Runs an encoder under jit: traced once for all tests that share a configuration."""
  template, params, _ = models.split(model, everything)
  return _apply(template, params, images, **options)


@functools.partial(jax.jit, static_argnums=0)
def _value_and_gradients(template, params, images, key):
  def loss(params):
    tokens = models.merge(template, params, {})(images, key=key)
    return jnp.sum(jnp.sin(tokens.astype(jnp.float32))), tokens

  (_, tokens), gradients = jax.value_and_grad(loss, has_aux=True)(params)
  return tokens, gradients


def value_and_gradients(model, images, key=None):
  template, params, _ = models.split(model, everything)
  return _value_and_gradients(template, params, images, key)


def pictures(rng, B=2, size=24):
  return jnp.asarray(rng.normal(size=(B, size, size, 3)), jnp.float32)


def close(actual, expected, relative):
  scale = np.abs(np.asarray(expected, np.float64)).max()
  error = np.abs(np.asarray(actual, np.float64) - np.asarray(expected, np.float64)).max()
  assert error <= relative * scale, f'{error / scale:.2e} relative'


# ---- sizes


def test_parameter_counts_of_vit_b_are_those_of_the_reference_page_to_the_unit():
  base = vit.Config()
  encoder_count = small.parameter_count(lambda rngs: vit.Encoder(base, rngs))
  mae = base._replace(dim=512, depth=8, heads=16)
  decoder_count = small.parameter_count(lambda rngs: decoder.Decoder(768, mae, rngs))
  assert encoder_count == 85_798_656
  assert decoder_count == 26_109_184
  assert encoder_count + decoder_count == 111_907_840


@pytest.mark.parametrize(
  ('preset', 'patch', 'dim', 'depth', 'heads_'),
  [
    ('vit_ti16', 16, 192, 12, 3),
    ('vit_s16', 16, 384, 12, 6),
    ('vit_b16', 16, 768, 12, 12),
    ('vit_l16', 16, 1024, 24, 16),
    ('vit_h14', 14, 1280, 32, 16),
  ],
)
def test_presets_have_the_published_shapes(preset, patch, dim, depth, heads_):
  section = defaults.encoder()
  section.preset = preset
  config = models.encoder_config(section, 0.1)
  assert (config.patch_size, config.dim, config.depth, config.heads) == (patch, dim, depth, heads_)
  model = nnx.eval_shape(lambda: vit.Encoder(config, nnx.Rngs(0)))
  _, params, rest = models.split(model, everything)
  L = (224 // patch) ** 2
  assert rest == {}
  assert params['pos_embed'].shape == (1, 1 + L, dim)
  assert params['patch_embed']['kernel'].shape == (patch * patch * 3, dim)
  assert params['blocks']['attn']['qkv']['kernel'].shape == (depth, dim, 3 * dim)
  assert params['blocks']['mlp']['fc1']['kernel'].shape == (depth, dim, 4 * dim)
  tokens = nnx.eval_shape(lambda m, x: m(x), model, jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32))
  assert tokens.shape == (2, 1 + L, dim)
  assert tokens.dtype == jnp.bfloat16


# ---- patches and positions


def test_patches_are_in_row_order_with_values_in_row_column_colour_order(rng):
  h, w, p = 2, 3, 4
  images = rng.normal(size=(2, h * p, w * p, 3)).astype(np.float32)
  expected = np.zeros((2, h * w, p * p * 3), np.float32)
  for b, i, j, r, q, c in np.ndindex(2, h, w, p, p, 3):
    expected[b, i * w + j, (r * p + q) * 3 + c] = images[b, i * p + r, j * p + q, c]
  patches = vit.patchify(jnp.asarray(images), p)
  np.testing.assert_array_equal(patches, expected)
  np.testing.assert_array_equal(vit.unpatchify(patches, p, (h, w)), images)


@pytest.mark.parametrize('kind', ['sincos2d', 'sincos2d_moco'])
def test_sincos_table_equals_the_formula(kind):
  dim, h, w = 16, 3, 5
  table = vit.sincos_2d(dim, h, w, kind)
  assert table.dtype == np.float32
  expected = np.zeros((1 + h * w, dim))
  for i in range(h):
    for j in range(w):
      for half, position in enumerate((j, i) if kind == 'sincos2d' else (i, j)):
        for k in range(dim // 4):
          angle = position * 10000 ** (-k / (dim / 4))
          expected[1 + i * w + j, half * dim // 2 + k] = math.sin(angle)
          expected[1 + i * w + j, half * dim // 2 + dim // 4 + k] = math.cos(angle)
  np.testing.assert_allclose(table, expected, atol=1e-7)


@pytest.mark.parametrize('grid', [(14, 14), (5, 5), (16, 12), (7, 7)])
def test_resized_positions_are_those_of_torch_bicubic(rng, grid):
  torch = pytest.importorskip('torch')
  pos = rng.normal(size=(1, 1 + 49, 12)).astype(np.float32)
  square = torch.from_numpy(pos[:, 1:].reshape(1, 7, 7, 12)).permute(0, 3, 1, 2)
  resized = torch.nn.functional.interpolate(square, size=grid, mode='bicubic', align_corners=False)
  expected = np.concatenate([pos[:, :1], resized.permute(0, 2, 3, 1).reshape(1, -1, 12).numpy()], axis=1)
  np.testing.assert_allclose(vit.resize_pos_embed(jnp.asarray(pos), grid), expected, rtol=2e-6, atol=2e-6)


# ---- blocks and encoder


def numpy_block(x, p, heads_):
  """One pre-norm block in float64, written from the equations."""

  def norm(x, n):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6) * n['scale'] + n['bias']

  def linear(x, n):
    return x @ n['kernel'] + n['bias']

  B, _, D = x.shape
  d = D // heads_
  qkv = linear(norm(x, p['norm1']), p['attn']['qkv'])
  attended = np.zeros_like(x)
  for b in range(B):
    for h in range(heads_):
      q, k, v = (qkv[b, :, part * D + h * d : part * D + (h + 1) * d] for part in range(3))
      logits = q @ k.T / math.sqrt(d)
      weights = np.exp(logits - logits.max(-1, keepdims=True))
      attended[b, :, h * d : (h + 1) * d] = weights / weights.sum(-1, keepdims=True) @ v
  x = x + linear(attended, p['attn']['proj'])
  hidden = linear(norm(x, p['norm2']), p['mlp']['fc1'])
  gelu = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
  return x + linear(gelu, p['mlp']['fc2'])


def test_encoder_equals_the_equations_in_float64(rng):
  model = encoder(rng)
  images = pictures(rng)
  _, params, _ = models.split(model, everything)
  params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  patches = np.asarray(vit.patchify(images, 8), np.float64)
  x = patches @ params['patch_embed']['kernel'] + params['patch_embed']['bias'] + params['pos_embed'][:, 1:]
  cls = np.broadcast_to(params['cls_token'] + params['pos_embed'][:, :1], (2, 1, 24))
  x = np.concatenate([cls, x], axis=1)
  for i in range(SMALL.depth):
    x = numpy_block(x, jax.tree.map(lambda a: a[i], params['blocks']), SMALL.heads)  # noqa: B023
  close(apply(model, images, norm=False), x, 2e-6)
  mean = x.mean(-1, keepdims=True)
  x = (x - mean) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  close(apply(model, images), x * params['norm']['scale'] + params['norm']['bias'], 2e-6)


def test_encoder_of_kept_patches_sees_them_alone_in_their_order(rng):
  model = encoder(rng)
  images = pictures(rng)
  order = jnp.asarray(np.stack([rng.permutation(9) for _ in range(2)]))
  expected = vit.gather_tokens(apply(model, images)[:, 1:], order)
  close(apply(model, images, keep=order)[:, 1:], expected, 1e-5)
  keep = order[:, :4]
  removed = np.ones((2, 9), bool)
  np.put_along_axis(removed, np.asarray(keep), False, axis=1)
  noise = vit.unpatchify(jnp.asarray(removed[:, :, None] * rng.normal(size=(2, 9, 192))), 8, (3, 3))
  np.testing.assert_array_equal(
    model(images, keep=keep), model(images + noise.astype(jnp.float32), keep=keep)
  )
  assert model(images, keep=keep).shape == (2, 5, 24)


@pytest.mark.parametrize('extras', [{}, {'registers': 2, 'layer_scale': 0.3}])
def test_scan_unroll_and_remat_give_the_same_tokens_and_gradients(rng, extras):
  config = SMALL._replace(drop_path=0.4, **extras)
  model = encoder(rng, config)
  images, key = pictures(rng, B=4), jax.random.key(int(rng.integers(2**31)))
  tokens, gradients = value_and_gradients(model, images, key)
  for other in (
    {'scan': False},
    {'remat': 'none'},
    {'remat': 'weight_dots'},
    {'scan': False, 'remat': 'full'},
  ):
    tokens2, gradients2 = value_and_gradients(with_config(model, config._replace(**other)), images, key)
    close(tokens2, tokens, 1e-6)
    jax.tree.map(lambda a, b: close(a, b, 5e-6), gradients2, gradients)


def test_tapped_tokens_are_those_of_an_encoder_that_ends_there_scanned_or_unrolled(rng):
  config = SMALL._replace(depth=4, registers=2, drop_path=0.4)
  model, taps = encoder(rng, config), (0, 2, 3)
  images, keep = pictures(rng, B=2), jnp.asarray([[4, 1, 7], [0, 8, 3]])
  key = jax.random.key(int(rng.integers(2**31)))
  _, params, _ = models.split(model, everything)

  def tapped(config, params, key=None):
    made = models.merge(models.split(with_config(model, config), everything)[0], params, {})
    found = made.tapped(images, taps, key=key, keep=keep)
    return sum(jnp.sum(x * x) for x in found), found

  run = jax.jit(jax.value_and_grad(tapped, argnums=1, has_aux=True), static_argnums=0)
  (_, found), _ = run(config, params)
  for t, tokens in zip(taps, found, strict=True):
    cut = {**params, 'blocks': jax.tree.map(lambda a: a[: t + 1], params['blocks'])}  # noqa: B023
    shorter = config._replace(depth=t + 1, drop_path=0.0)
    graph, _, _ = models.split(nnx.eval_shape(lambda: vit.Encoder(shorter, nnx.Rngs(0))), everything)  # noqa: B023
    close(tokens, models.merge(graph, cut, {})(images, keep=keep, norm=False), 1e-6)
  (_, found), gradients = run(config, params, key)
  for other in ({'scan': False}, {'remat': 'full'}):
    (_, found2), gradients2 = run(config._replace(**other), params, key)
    jax.tree.map(lambda a, b: close(a, b, 1e-6), found2, found)
    jax.tree.map(lambda a, b: close(a, b, 5e-6), gradients2, gradients)


def test_registers_and_layer_scale_are_parameters_of_their_own_and_off_there_are_none():
  made = {}
  for extras in ({}, {'registers': 2}, {'layer_scale': 1e-5}):
    config = SMALL._replace(**extras)
    _, params, _ = models.split(vit.Encoder(config, nnx.Rngs(0)), everything)
    made[tuple(extras)] = checkpoint.flatten(params)
  plain = made[()]
  assert not any('register' in name or 'ls' in name.split('/')[1:] for name in plain)
  for extra, names in (
    (('registers',), {'register_tokens'}),
    (('layer_scale',), {'blocks/ls1', 'blocks/ls2'}),
  ):
    assert set(made[extra]) - set(plain) == names
    for name, value in plain.items():
      np.testing.assert_array_equal(made[extra][name], value)
  scale = made[('layer_scale',)]['blocks/ls2']
  np.testing.assert_array_equal(scale, np.full((SMALL.depth, SMALL.dim), 1e-5, np.float32))
  assert [SMALL.decays(('register_tokens',), 3, tokens) for tokens in (True, False)] == [True, False]
  assert not SMALL.decays(('blocks', 'ls1'), 2, True)
  assert SMALL.layer_id(('register_tokens',)) == SMALL.layer_id(('cls_token',)) == 0
  assert SMALL.layer_id(('blocks', 'ls1')) == range(1, 3)


@pytest.mark.parametrize('kind', [small.mae_stage, small.local_mim_stage, small.mimic_stage])
def test_every_objective_trains_an_encoder_with_registers_and_layer_scale(rng, kind):
  stage, model = kind(), small.model_section(registers=3, layer_scale=0.5)
  objective = objectives.make(stage, model, ('a', 'b') if kind is small.mimic_stage else (), 'objective')
  template, params, rest = models.split(objective.init(jax.random.key(0)), objective.trainable)
  flat = checkpoint.flatten({'params': params, 'rest': rest})
  assert not [name for name in flat if 'decoder' in name and 'ls' in name]

  def loss(params, pictures):
    batch = {'image': pictures, 'label': jnp.arange(8) % 2}
    model = models.merge(template, params, rest)
    return objective.loss(
      model, objective.augment(batch, jax.random.key(1)), jax.random.key(2), jnp.int32(0), 10
    )[0]

  pictures = jnp.asarray(rng.integers(0, 256, (8, 16, 16, 3), np.uint8))
  gradients = checkpoint.flatten(jax.jit(jax.grad(loss))(params, pictures))
  for name in ('register_tokens', 'blocks/ls1', 'blocks/ls2'):
    g = np.asarray(gradients[f'encoder/{name}'])
    assert np.isfinite(g).all()
    assert np.abs(g).max() > 0


def test_bfloat16_is_close_to_float32_with_float32_parameters(rng):
  model = encoder(rng)
  images = pictures(rng)
  half = with_config(model, SMALL._replace(dtype='bfloat16'))
  tokens = apply(half, images)
  assert tokens.dtype == jnp.bfloat16
  expected = np.asarray(apply(model, images), np.float64)
  difference = np.asarray(tokens, np.float64) - expected
  assert 0 < np.sqrt((difference**2).mean()) < 0.03 * expected.std()
  _, gradients = value_and_gradients(half, images)
  assert {str(g.dtype) for g in jax.tree.leaves(gradients)} == {'float32'}


def test_constant_images_and_large_values_give_finite_gradients(rng):
  for value in (0.0, 1e4):
    _, gradients = value_and_gradients(encoder(rng), jnp.full((2, 24, 24, 3), value))
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients))


def test_auto_attention_is_xla_on_cpu_and_a_choice_is_kept():
  assert vit.attention_implementation('auto', 'bfloat16') == 'xla'
  assert vit.attention_implementation('cudnn', 'bfloat16') == 'cudnn'


# ---- drop-path


def test_drop_path_of_rate_zero_and_without_key_is_the_identity(rng):
  model = encoder(rng)
  images, key = pictures(rng), jax.random.key(0)
  tokens = apply(model, images)
  np.testing.assert_array_equal(apply(model, images, key=key), tokens)
  dropping = with_config(model, SMALL._replace(drop_path=0.9))
  np.testing.assert_array_equal(apply(dropping, images), tokens)
  assert not np.array_equal(apply(dropping, images, key=key), tokens)


def test_drop_path_keeps_the_expectation_with_rates_rising_linearly(rng):
  config = SMALL._replace(depth=4, drop_path=0.6)
  draws = 4000
  scales = np.asarray(vit.drop_path_scales(jax.random.key(int(rng.integers(2**31))), config, draws))
  assert scales.shape == (4, 2, draws)
  for layer, rate in enumerate([0.0, 0.2, 0.4, 0.6]):
    found = scales[layer]
    assert np.all((found == 0) | np.isclose(found, 1 / (1 - rate)))
    deviation = math.sqrt(rate * (1 - rate) / (2 * draws))
    assert abs((found == 0).mean() - rate) <= 5 * deviation
    assert abs(found.mean() - 1) <= 5 * deviation / (1 - rate) + 1e-6
  independent = np.mean((scales[3, 0] == 0) & (scales[3, 1] == 0))
  assert abs(independent - 0.36) <= 5 * math.sqrt(0.36 * 0.64 / draws)


def test_drop_path_acts_on_whole_samples(rng):
  block = randomised(lambda rngs: vit.Block(SMALL, rngs), rng)
  x = jnp.asarray(rng.normal(size=(3, 5, 24)), jnp.float32)
  scale = jnp.asarray([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
  out = block(x, scale)
  np.testing.assert_array_equal(out[0], x[0])
  close(out[1], block(x)[1], 1e-6)
  close(out[2], (x + block.attn(block.norm1(x)))[2], 1e-6)


# ---- initialisation


def test_initialisation_is_xavier_for_each_block(rng):
  config = SMALL._replace(dim=64, heads=4, depth=5)
  create = jax.jit(lambda key: models.split(vit.Encoder(config, nnx.Rngs(key)), everything)[1])
  params = create(jax.random.key(int(rng.integers(2**31))))
  blocks = params['blocks']
  fans = {
    ('attn', 'qkv'): (64, 192),
    ('attn', 'proj'): (64, 64),
    ('mlp', 'fc1'): (64, 256),
    ('mlp', 'fc2'): (256, 64),
  }
  linears = [(blocks[a][b], fan) for (a, b), fan in fans.items()]
  linears += [({k: v[None] for k, v in params['patch_embed'].items()}, (192, 64))]
  for layer, (fan_in, fan_out) in linears:
    bound = math.sqrt(6 / (fan_in + fan_out))
    for kernel in np.asarray(layer['kernel']):
      assert kernel.shape == (fan_in, fan_out)
      assert 0.98 * bound < np.abs(kernel).max() <= bound
      # the variance of one block's sample variance gives the tolerance: 5 sigma
      assert abs(kernel.var() / (bound**2 / 3) - 1) < 5 * math.sqrt(0.8 / kernel.size)
    assert not np.any(layer['bias'])
  first, second = np.asarray(blocks['attn']['qkv']['kernel'])[:2]
  assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 5 / math.sqrt(first.size)
  for norm in (blocks['norm1'], blocks['norm2'], params['norm']):
    assert np.all(np.asarray(norm['scale']) == 1)
    assert not np.any(norm['bias'])
  cls = np.asarray(params['cls_token'])
  assert abs(cls.std() / 0.02 - 1) < 5 / math.sqrt(2 * cls.size)
  np.testing.assert_array_equal(params['pos_embed'][0], vit.sincos_2d(64, 3, 3))


# ---- heads


def test_features_are_the_mean_of_the_patch_tokens_or_the_class_token(rng):
  encoder = randomised(lambda rngs: vit.Encoder(SMALL, rngs=rngs), rng)
  images = jnp.asarray(rng.normal(size=(2, 24, 24, 3)), jnp.float32)
  mean = np.asarray(encoder(images, norm=False), np.float64)[:, 1:].mean(1)
  assert encoder.features(images).dtype == jnp.float32
  close(encoder.features(images), mean, 1e-5)
  np.testing.assert_array_equal(encoder.features(images, pool='cls'), encoder(images)[:, 0])


def test_projection_heads_equal_their_equations(rng):
  features = jnp.asarray(rng.normal(size=(3, 8)), jnp.float32)
  x = np.asarray(features, np.float64)
  for kind in heads.PROJECTIONS:
    head = randomised(functools.partial(heads.ProjectionHead, kind, 8, 4), rng)
    _, params, _ = models.split(head, everything)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    expected = {
      'none': lambda p: x,
      'linear': lambda p: x @ p['fc1']['kernel'] + p['fc1']['bias'],
      'dense': lambda p: (
        np.maximum(x @ p['fc1']['kernel'] + p['fc1']['bias'], 0) @ p['fc2']['kernel'] + p['fc2']['bias']
      ),
    }[kind](p)
    close(head(features), expected, 1e-6)


def test_classifier_starts_near_zero():
  classifier = heads.Classifier(512, 7, nnx.Rngs(0))
  kernel = np.asarray(classifier.fc.kernel[...])
  assert kernel.shape == (512, 7)
  assert abs(kernel.std() / 2e-5 - 1) < 5 / math.sqrt(2 * kernel.size)
  assert not np.any(classifier.fc.bias[...])


def test_l2_normalise_gives_unit_rows_and_finite_gradients_at_zero(rng):
  x = jnp.asarray(rng.normal(size=(4, 6)), jnp.float32).at[1].set(0.0)
  z = np.asarray(heads.l2_normalise(x))
  np.testing.assert_allclose(np.linalg.norm(z, axis=-1), [1, 0, 1, 1], atol=1e-6)
  assert bool(jnp.isfinite(jax.grad(lambda x: heads.l2_normalise(x).sum())(x)).all())


# ---- models as plain dicts


class Stateful(nnx.Module):
  """Has trained parameters, a frozen one, batch statistics and a list."""

  def __init__(self, rngs):
    self.frozen = nnx.Param(jnp.ones((3,)))
    self.norm = nnx.BatchNorm(3, use_running_average=False, rngs=rngs)
    self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(2)])

  def __call__(self, x):
    x = self.norm(x * self.frozen[...][None])
    for layer in self.layers:
      x = layer(x)
    return x


def not_frozen(path):
  return path[-1] != 'frozen'


def test_split_gives_plain_dicts_with_string_keys_and_merge_restores_the_model(rng):
  model = Stateful(nnx.Rngs(0))
  template, params, rest = models.split(model, not_frozen)
  assert set(params) == {'norm', 'layers'}
  assert set(params['layers']) == {'0', '1'}
  assert set(params['norm']) == {'scale', 'bias'}
  assert set(rest) == {'frozen', 'norm'}
  assert set(rest['norm']) == {'mean', 'var'}
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((params, rest)))
  again, _, _ = models.split(Stateful(nnx.Rngs(1)), not_frozen)
  assert hash(template) == hash(again)
  assert template == again
  x = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
  np.testing.assert_array_equal(models.merge(template, params, rest)(x), model(x))


def test_batch_statistics_updated_in_a_gradient_are_read_back(rng):
  template, params, rest = models.split(Stateful(nnx.Rngs(0)), not_frozen)
  x = jnp.asarray(rng.normal(2.0, 1.0, size=(64, 3)), jnp.float32)

  @functools.partial(jax.jit, static_argnums=0)
  def step(template, params, rest, x):
    def loss(params):
      model = models.merge(template, params, rest)
      value = jnp.sum(model(x) ** 2)
      return value, models.rest_of(template, model)

    return jax.value_and_grad(loss, has_aux=True)(params)

  (_, after), gradients = step(template, params, rest, x)
  assert jax.tree.structure(gradients) == jax.tree.structure(params)
  assert jax.tree.structure(after) == jax.tree.structure(rest)
  np.testing.assert_allclose(after['norm']['mean'], 0.01 * np.asarray(x).mean(0), rtol=1e-3)
  np.testing.assert_array_equal(after['frozen'], rest['frozen'])
  np.testing.assert_array_equal(rest['norm']['mean'], np.zeros(3))


def test_merging_adds_no_operation_to_the_traced_step():
  template, params, rest = models.split(
    nnx.eval_shape(lambda: vit.Encoder(SMALL, nnx.Rngs(0))), lambda path: path[-1] != 'pos_embed'
  )

  def there_and_back(params, rest):
    return models.split(models.merge(template, params, rest), lambda path: path[-1] != 'pos_embed')[1:]

  assert not jax.make_jaxpr(there_and_back)(params, rest).eqns


# ---- configuration


def section(**fields):
  model = defaults.encoder()
  model.update(fields)
  return model


def test_fields_that_are_not_zero_override_the_preset():
  config = models.encoder_config(
    section(preset='vit_s16', image_size=48, patch_size=8, dim=160, heads=5, dtype='float32', scan=False), 0.1
  )
  assert config == vit.Config(
    48, 8, 160, 12, 5, 4.0, 'sincos2d', 'float32', scan=False, remat='none', attention='auto', drop_path=0.1
  )
  assert config.grid == 6


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'preset': 'vit_b61'}, r"model\.preset is 'vit_b61' \(did you mean 'vit_b16'\?\)"),
    ({'dim': 100}, r'model\.dim is 100; expected a positive multiple of heads, 12'),
    ({'dim': 30, 'heads': 3}, r'model\.dim is 30; expected a multiple of 4'),
    ({'image_size': 100}, r'model\.image_size is 100; expected a multiple of the patch size 16'),
    ({'image_size': 0}, r'model\.image_size is 0; expected a positive'),
    ({'depth': -1}, r'model\.depth is -1; expected a positive'),
    ({'dtype': 'float16'}, r"model\.dtype is 'float16'"),
    ({'attention': 'flash'}, r"model\.attention is 'flash'"),
    ({'pos_embed': 'sincos'}, r"model\.pos_embed is 'sincos' \(did you mean 'sincos2d'\?\)"),
    ({'mlp_ratio': 0.0}, r'model\.mlp_ratio is 0\.0'),
  ],
)
def test_a_wrong_model_section_is_refused_in_one_line(fields, expected):
  with pytest.raises(errors.UserError, match=expected) as caught:
    models.encoder_config(section(**fields), 0.0)
  assert '\n' not in str(caught.value)


def test_a_drop_path_rate_of_one_is_refused():
  with pytest.raises(errors.UserError, match='drop_path is 1'):
    models.encoder_config(section(), 1.0)


class _Dropping(nnx.Module):
  def __init__(self, rngs: nnx.Rngs):
    self.fc = nnx.Linear(4, 4, rngs=rngs)
    self.dropout = nnx.Dropout(0.5, rngs=rngs)


def test_a_models_random_keys_are_plain_arrays_that_are_summed_and_move_on():
  _, shapes, shaped_rest = models.split(nnx.eval_shape(lambda: _Dropping(nnx.Rngs(0))), lambda path: True)
  template, params, rest = models.split(_Dropping(nnx.Rngs(0)), lambda path: True)
  assert jax.tree.map(lambda a: (a.shape, a.dtype), (params, rest)) == jax.tree.map(
    lambda a: (a.shape, a.dtype), (shapes, shaped_rest)
  )
  sums = checksum.of_arrays(checkpoint.flatten(rest))

  @jax.jit
  def draw(params, rest):
    model = models.merge(template, params, rest)
    return model.dropout(jnp.ones((1, 64))), models.rest_of(template, model)

  first, later = draw(params, rest)
  second, _ = draw(params, later)
  again, _ = draw(params, rest)
  np.testing.assert_array_equal(first, again)
  assert (first != second).any()
  assert checksum.of_arrays(checkpoint.flatten(later)) != sums

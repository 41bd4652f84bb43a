"""Masked autoencoding against transformers' ViTMAE in PyTorch and float64 NumPy; evaluation, pictures."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mimic_jax import augment, defaults, losses, models, objectives
from mimic_jax.models import masking, vit
from mimic_jax.objectives import masked_autoencoding as mae
from mimic_jax.runtime import errors


def objective(**fields):
  """Returns a small objective: 16 patches of 8 × 8, 4 of them kept; `fields` go to the section stage.mae."""
  stage, model = objectives.defaults('masked_autoencoding'), defaults.encoder()
  model.update({'image_size': 32, 'patch_size': 8, 'dim': 24, 'depth': 2, 'heads': 3, 'dtype': 'float32'})
  stage.mae.update({'decoder_dim': 16, 'decoder_depth': 1, 'decoder_heads': 2, **fields})
  return mae.Objective(stage, model, ())


def everything(path):
  return True


def shapes(learner):
  template, params, _ = models.split(nnx.eval_shape(learner.init, jax.random.key(0)), everything)
  return template, params


def random_model(learner, rng):
  template, params = shapes(learner)
  draw = lambda leaf: jnp.asarray(rng.normal(0, 0.15, leaf.shape), jnp.float32)  # noqa: E731
  return models.merge(template, jax.tree.map(draw, params), {})


def run(method, model, *args):
  """Calls an objective's method on a model under jit."""
  template, params, rest = models.split(model, everything)
  return jax.jit(lambda params, rest, *a: method(models.merge(template, params, rest), *a))(
    params, rest, *args
  )


def photos(rng, *shape):
  """Smooth random pictures, uint8 [*shape, 3]."""
  small = rng.integers(0, 256, (*shape[:-2], 4, 4, 3)).astype(np.float64)
  large = small.repeat(shape[-2] // 4, -3).repeat(shape[-1] // 4, -2)
  return np.clip(large + rng.normal(0, 12, large.shape), 0, 255).astype(np.uint8)


# ---- targets


def test_targets_are_normalised_by_the_unbiased_variance_of_each_patch(rng):
  learner = objective()
  images = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
  images[0, :8, :8] = 0.5  # a patch without contrast
  patches = np.asarray(vit.patchify(jnp.asarray(images), 8), np.float64)
  expected = np.zeros_like(patches)
  for b, i in np.ndindex(2, 16):
    values = patches[b, i]
    variance = ((values - values.mean()) ** 2).sum() / (len(values) - 1)
    expected[b, i] = (values - values.mean()) / np.sqrt(variance + 1e-6)
  np.testing.assert_allclose(learner.target(jnp.asarray(images)), expected, atol=3e-6)
  np.testing.assert_array_equal(
    objective(norm_pix=False).target(jnp.asarray(images)), patches.astype(np.float32)
  )


# ---- parity with PyTorch


def linear(layer):
  return {'kernel': layer.weight.T, 'bias': layer.bias}


def norm(layer):
  return {'scale': layer.weight, 'bias': layer.bias}


def block(torch, layer):
  """One ViTMAE layer's tensors under our names; query, key and value side by side in one matrix."""
  a = layer.attention
  parts = (a.q_proj, a.k_proj, a.v_proj)
  return {
    'norm1': norm(layer.layernorm_before),
    'attn': {
      'qkv': {
        'kernel': torch.cat([p.weight for p in parts]).T,
        'bias': torch.cat([p.bias for p in parts]),
      },
      'proj': linear(a.o_proj),
    },
    'norm2': norm(layer.layernorm_after),
    'mlp': {'fc1': linear(layer.mlp.fc1), 'fc2': linear(layer.mlp.fc2)},
  }


def stack(torch, blocks):
  return jax.tree.map(lambda *leaves: torch.stack(leaves), *blocks)


def our_tree(torch, model):
  """Returns a ViTMAEForPreTraining's tensors as our tree of parameters."""
  embeddings, dec = model.vit.embeddings, model.decoder
  projection = embeddings.patch_embeddings.projection
  D = projection.weight.shape[0]
  return {
    'encoder': {
      'patch_embed': {
        'kernel': projection.weight.permute(2, 3, 1, 0).reshape(-1, D),
        'bias': projection.bias,
      },
      'cls_token': embeddings.cls_token,
      'pos_embed': embeddings.position_embeddings,
      'blocks': stack(torch, [block(torch, layer) for layer in model.vit.layers]),
      'norm': norm(model.vit.layernorm),
    },
    'decoder': {
      'embed': linear(dec.decoder_embed),
      'mask_token': dec.mask_token,
      'pos_embed': dec.decoder_pos_embed,
      'blocks': stack(torch, [block(torch, layer) for layer in dec.decoder_layers]),
      'norm': norm(dec.decoder_norm),
      'pred': linear(dec.decoder_pred),
    },
  }


@pytest.fixture
def vit_mae(monkeypatch):
  """Returns torch and a float64 ViTMAEForPreTraining of the sizes of `objective`."""
  torch = pytest.importorskip('torch')
  # transformers imports torchvision where there is one; ViTMAE doesn't need it, and one that was built for another torch
  # would break the import.
  monkeypatch.setitem(sys.modules, 'torchvision', None)
  transformers = pytest.importorskip('transformers', minversion='5.0')
  config = transformers.ViTMAEConfig(
    image_size=32,
    patch_size=8,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=96,
    decoder_hidden_size=16,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=64,
    layer_norm_eps=1e-6,
    mask_ratio=0.75,
    norm_pix_loss=True,
  )
  return torch, transformers.ViTMAEForPreTraining(config).double()


def close(actual, expected, relative, what=''):
  expected = np.asarray(expected, np.float64)
  error = np.abs(np.asarray(actual, np.float64) - expected).max() / np.abs(expected).max()
  assert error <= relative, f'{what} {error:.2e} relative'


def numpy_tree(torch, reference):
  return jax.tree.map(lambda t: jnp.asarray(t.detach().numpy(), jnp.float32), our_tree(torch, reference))


def test_loss_predictions_and_gradients_equal_vitmae_in_pytorch(rng, vit_mae):
  torch, reference = vit_mae
  with torch.no_grad():
    for name, parameter in reference.named_parameters():
      centre = 1.0 if 'norm' in name and name.endswith('weight') else 0.0
      parameter.copy_(torch.from_numpy(rng.normal(centre, 0.15, parameter.shape).astype(np.float32)))
  images = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
  noise = rng.uniform(size=(3, 16)).astype(np.float32)
  found = reference(torch.from_numpy(images.transpose(0, 3, 1, 2)).double(), noise=torch.from_numpy(noise))
  found.loss.backward()
  params = numpy_tree(torch, reference)
  with torch.no_grad():  # the same renaming, which is linear, turns its gradients into ours
    for parameter in reference.parameters():
      parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
  expected = numpy_tree(torch, reference)

  learner = objective()
  template, abstract = shapes(learner)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, abstract)

  def loss(params, images, noise):
    masks = masking.masks_from_noise(noise, learner.mask_ratio)
    pred = models.merge(template, params, {})(images, masks)
    return losses.masked_mse(pred, learner.target(images), masks.mask), (pred, masks)

  (value, (pred, masks)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, images, noise)
  np.testing.assert_array_equal(masks.mask, found.mask.detach().numpy().astype(bool))
  np.testing.assert_array_equal(masks.restore, found.ids_restore.numpy())
  close(pred, found.logits.detach().numpy(), 1e-5, 'predictions')
  close(value, found.loss.item(), 1e-5, 'loss')
  compared = 0
  for path, gradient in jax.tree_util.tree_leaves_with_path(expected):
    if path[-1].key == 'pos_embed':  # fixed in PyTorch: it has no gradient
      continue
    ours = gradients
    for k in path:
      ours = ours[k.key]
    close(ours, gradient, 2e-5, jax.tree_util.keystr(path))
    compared += 1
  assert compared == len(jax.tree.leaves(gradients)) - 2


def test_position_table_equals_vitmaes(vit_mae):
  _, reference = vit_mae
  # built without weights, transformers 5.23 leaves its tables zero; the decoder's can be filled in afterwards
  reference.decoder.initialize_weights(16)
  np.testing.assert_allclose(
    reference.decoder.decoder_pos_embed[0].detach().numpy(), vit.sincos_2d(16, 4, 4), atol=1e-7
  )


# ---- the objective


def test_loss_is_the_mean_over_removed_patches_alone(rng):
  learner = objective()
  model = random_model(learner, rng)
  images = jnp.asarray(rng.normal(size=(3, 1, 32, 32, 3)), jnp.float32)
  key = jax.random.key(int(rng.integers(2**31)))
  loss, metrics = run(lambda m, x, k: learner.loss(m, {'image': x}, k, 0, 10), model, images, key)
  masks = masking.mask_ids(jax.random.split(key)[0], 3, 16, 0.75)
  pred = np.asarray(run(lambda m, x: m(x, masks), model, images[:, 0]), np.float64)
  target = np.asarray(learner.target(images[:, 0]), np.float64)
  errors_ = [((pred[b, i] - target[b, i]) ** 2).mean() for b, i in np.argwhere(np.asarray(masks.mask))]
  assert len(errors_) == 3 * 12
  np.testing.assert_allclose(loss, np.mean(errors_), rtol=1e-5)
  assert metrics == {}


def test_position_tables_are_frozen_and_all_else_is_trained():
  learner = objective()
  _, params, rest = models.split(nnx.eval_shape(learner.init, jax.random.key(0)), learner.trainable)
  assert jax.tree.map(jnp.shape, rest) == {
    'encoder': {'pos_embed': (1, 17, 24)},
    'decoder': {'pos_embed': (1, 17, 16)},
  }
  assert 'mask_token' in params['decoder']
  assert 'cls_token' in params['encoder']


def test_augmentation_crops_whole_pictures_and_takes_cropped_ones(rng):
  learner = objective()
  key = jax.random.key(int(rng.integers(2**31)))
  raw = jnp.asarray(photos(rng, 4, 48, 40))
  cropped = jnp.asarray(photos(rng, 4, 1, 32, 32))
  step = jax.jit(lambda x, k: learner.augment({'image': x, 'label': jnp.zeros(4, jnp.int32)}, k)['image'])
  for images in (raw, cropped):
    out = step(images, key)
    assert out.shape == (4, 1, 32, 32, 3)
    assert out.dtype == jnp.float32
    assert bool(jnp.isfinite(out).all())
  mean, std = (np.asarray(defaults.stage().augment[k]) for k in ('mean', 'std'))
  expected = (np.asarray(cropped, np.float64) / 255 - mean) / std
  for image, plain in zip(np.asarray(step(cropped, key)), expected, strict=True):
    assert min(np.abs(image - plain).max(), np.abs(image - plain[:, :, ::-1]).max()) < 1e-5


@pytest.fixture(scope='module')
def evaluation():
  learner = objective()
  evaluate = jax.jit(
    lambda template, params, batch: learner.evaluate(models.merge(template, params, {}), batch),
    static_argnums=0,
  )
  return learner, evaluate


def test_evaluation_does_not_depend_on_batch_size_order_padding_or_devices(rng, evaluation):
  learner, evaluate = evaluation
  template, params, _ = models.split(random_model(learner, rng), everything)
  images, n = photos(rng, 12, 32, 32), 12

  def total(batch_images, order, sharding=None):
    loss, count = 0.0, 0
    for start in range(0, n, batch_images):
      index = order[start : start + batch_images]
      pad = batch_images - len(index)
      batch = {
        'image': np.concatenate([images[index], np.full((pad, 32, 32, 3), 255, np.uint8)]),
        'index': np.concatenate([index, np.zeros(pad, int)]).astype(np.int32),
        'mask': np.arange(batch_images) < len(index),
      }
      found = evaluate(template, params, jax.device_put(batch, sharding))
      assert found['outputs'] == {}
      loss, count = loss + float(found['sums']['loss'][0]), count + int(found['sums']['loss'][1])
    assert count == n
    return loss / n

  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  split = NamedSharding(mesh, PartitionSpec('data'))
  expected = total(4, np.arange(n))
  np.testing.assert_allclose(total(8, np.arange(n)), expected, rtol=1e-6)
  np.testing.assert_allclose(total(8, rng.permutation(n)), expected, rtol=1e-6)
  np.testing.assert_allclose(total(8, np.arange(n), split), expected, rtol=1e-6)


def test_pictures_show_visible_patches_unchanged_and_predictions_with_the_patches_own_statistics(rng):
  learner = objective()
  model = random_model(learner, rng)
  raw = photos(rng, 10, 32, 32)
  key = jax.random.key(int(rng.integers(2**31)))
  drawings = learner.draw(model, {'image': raw}, key)
  assert set(drawings) == {'reconstructions'}
  drawing = drawings['reconstructions']
  assert drawing.columns == ('masked', 'reconstruction', 'original')
  assert drawing.images.shape == (8, 3, 32, 32, 3)
  assert drawing.images.dtype == np.uint8
  assert 'mean' in drawing.caption
  np.testing.assert_array_equal(drawing.images[:, 2], raw[:8])

  masks = masking.mask_ids(key, 8, 16, 0.75)
  removed = np.asarray(masks.mask)
  masked, made, original = (
    np.asarray(vit.patchify(jnp.asarray(drawing.images[:, c]), 8), np.float64) for c in range(3)
  )
  np.testing.assert_array_equal(masked[~removed], original[~removed])
  np.testing.assert_array_equal(made[~removed], original[~removed])
  np.testing.assert_array_equal(np.unique(masked[removed].reshape(-1, 3), axis=0), [[124, 116, 104]])

  a = learner.stage['augment']
  normalised = augment.normalise(jnp.asarray(raw[:8]), a['mean'], a['std'])
  pred = np.asarray(run(lambda m, x: m(x, masks), model, normalised), np.float64)
  patches = np.asarray(vit.patchify(normalised, 8), np.float64)
  scaled = pred * np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6) + patches.mean(-1, keepdims=True)
  pixels = scaled.reshape(8, 16, 64, 3) * np.asarray(a['std']) + np.asarray(a['mean'])
  expected = np.clip(pixels * 255, 0, 255).reshape(8, 16, 192)
  assert np.abs(made[removed] - expected[removed]).max() <= 0.51


def test_pictures_of_another_size_and_unnormalised_targets_are_drawn(rng):
  learner = objective(norm_pix=False)
  drawing = learner.draw(random_model(learner, rng), {'image': photos(rng, 3, 48, 40)}, jax.random.key(0))
  assert drawing['reconstructions'].images.shape == (3, 3, 32, 32, 3)
  assert 'mean' not in drawing['reconstructions'].caption


def test_decoder_has_its_own_sizes_and_no_drop_path():
  stage, model = objectives.defaults('masked_autoencoding'), defaults.encoder()
  stage.drop_path = 0.1
  model.mlp_ratio = 2.0
  learner = mae.Objective(stage, model, ())
  d = learner.decoder_config
  assert (d.dim, d.depth, d.heads, d.mlp_ratio, d.drop_path) == (512, 8, 16, 4.0, 0.0)
  assert (learner.config.mlp_ratio, learner.config.drop_path) == (2.0, 0.1)
  assert learner.inputs() == {'image': (1, 0)}


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    (
      {'decoder_dim': 100, 'decoder_heads': 16},
      r'mae\.decoder_dim is 100; expected a positive multiple of mae',
    ),
    ({'decoder_depth': 0}, r'mae\.decoder_depth is 0; expected at least 1'),
    ({'mask_ratio': 1.0}, r'mae\.mask_ratio is 1\.0; expected a share'),
    ({'mask_ratio': 0.0}, r'mae\.mask_ratio is 0\.0; expected a share'),
    ({'mask_ratio': 0.97}, r'mae\.mask_ratio is 0\.97; expected a share'),
  ],
)
def test_a_wrong_mae_section_is_refused_in_one_line(fields, expected):
  with pytest.raises(errors.UserError, match=expected) as caught:
    objective(**fields)
  assert '\n' not in str(caught.value)

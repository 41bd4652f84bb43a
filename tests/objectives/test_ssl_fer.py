"""SSL-FER: its losses against PyTorch from the formulas, its views on drawn clips, what is refused."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from ml_collections import FrozenConfigDict
from safetensors.numpy import save_file

from mimic_jax import landmarks
from mimic_jax.data.sets import synthetic_clips
from mimic_jax.objectives import ssl_fer
from mimic_jax.runtime import errors, sharding
from mimic_jax.training import stage as stage_lib
from mimic_jax.training import step as step_lib
from tests import peers, small
from tests.data.test_clips import tree

CLIPS, TAU = 5, 0.07


def objective(model=None, **fields):
  stage = small.ssl_fer_stage(**fields)
  return ssl_fer.Objective(stage, model or small.model_section(), ())


def unit(rng, *shape):
  x = rng.normal(size=shape)
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def nt_xent_of_the_paper(torch, z, G):
  """The page's §3: rows r of anchors, then their positives in the other half in the same order; mean cross-entropy over all."""
  clips = z.reshape(-1, G, z.shape[-1])
  anchors = torch.cat([clips[:, g] for g in range(0, G, 2)])
  positives = torch.cat([clips[:, g] for g in range(1, G, 2)])
  rows = torch.cat([anchors, positives])
  n = len(anchors)
  logits = rows @ rows.T / TAU
  logits = logits.masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
  return torch.nn.functional.cross_entropy(logits, (torch.arange(2 * n) + n) % (2 * n))


def masked_of_the_paper(torch, z, u, form, spare):
  """MaskFN row by row, from the page's formulas: G = 4, rows 2k and 2k + 1 positives of each other."""
  N, total = len(z), 0.0
  for i in range(N):
    p = i ^ 1
    negatives = [j for j in range(N) if j not in (i, p)]
    s = {j: z[i] @ z[j] for j in (p, *negatives)}
    if form == 'threshold':
      s = {j: 0 * v if j // 4 != i // 4 and u[i] @ u[j] > 0.1 else v for j, v in s.items()}
      total += -(s[p] / TAU - torch.logsumexp(torch.stack([v / TAU for v in s.values()]), 0))
      continue
    candidates = [j for j in negatives if j // 4 != i // 4] if spare else negatives
    f = max(candidates, key=lambda j: float(u[i] @ u[j]))
    rest = torch.stack([s[j].div(TAU).exp() for j in negatives if j != f]).sum()
    first, second = (-torch.log(s[k].div(TAU).exp() / (s[k].div(TAU).exp() + rest)) for k in (p, f))
    total += first + 0.8 * second
  return total / N


def loss_of(learner, z, u=None):
  """The objective's own loss of rows z, as a model would give them."""
  model = types.SimpleNamespace(project=lambda x, key: z, parts_network=lambda parts: u)
  image = jnp.zeros((len(z) // learner.pictures, learner.pictures, 1, 1, 3))
  return learner.loss(model, {'image': image, 'parts': image}, None, None, 1)


@pytest.mark.parametrize('hard', [True, False])
def test_the_loss_and_its_gradient_are_nt_xent_in_pytorch(hard, rng):
  torch = pytest.importorskip('torch')
  learner = objective(**{'ssl_fer.hard_negatives': hard})
  z = unit(rng, CLIPS * learner.pictures, 6)
  there = torch.tensor(z, dtype=torch.float64, requires_grad=True)
  expected = nt_xent_of_the_paper(torch, there, learner.pictures)
  expected.backward()
  got, gradient = jax.value_and_grad(lambda z: loss_of(learner, z)[0])(jnp.asarray(z))
  assert float(got) == pytest.approx(expected.item(), rel=1e-5)
  np.testing.assert_allclose(gradient, there.grad, atol=2e-5 * float(there.grad.abs().max()))
  measured = loss_of(learner, jnp.asarray(z))[1]
  nearest = np.argmax(z @ z.T - 9 * np.eye(len(z)), axis=1)
  assert float(measured['positives_found']) == pytest.approx(np.mean(nearest == np.arange(len(z)) ^ 1))


@pytest.mark.parametrize(
  ('form', 'spare'), [('argmax', False), ('argmax', True), ('threshold', False)], ids=str
)
def test_masked_negatives_are_those_of_pytorch_row_by_row(form, spare, rng):
  torch = pytest.importorskip('torch')
  fields = {'ssl_fer.mask_fn': form, 'ssl_fer.mask_fn_weights': 'w', 'ssl_fer.spare_hard_negatives': spare}
  if form == 'threshold':
    fields['ssl_fer.mask_fn_threshold'] = 0.1
  learner = objective(**fields)
  z, u = unit(rng, CLIPS * 4, 6), unit(rng, CLIPS * 4, 5)
  u[1] = u[2] + 0.01  # the likest negative of the first row's positive is of its own clip
  u /= np.linalg.norm(u, axis=1, keepdims=True)
  there = torch.tensor(z, dtype=torch.float64, requires_grad=True)
  expected = masked_of_the_paper(torch, there, torch.tensor(u, dtype=torch.float64), form, spare)
  expected.backward()
  (got, said), gradient = jax.value_and_grad(lambda z: loss_of(learner, z, jnp.asarray(u)), has_aux=True)(
    jnp.asarray(z)
  )
  assert float(got) == pytest.approx(expected.item(), rel=1e-5)
  np.testing.assert_allclose(gradient, there.grad, atol=2e-5 * float(there.grad.abs().max()))
  if form == 'argmax':
    assert (float(said['likest_in_clip']) > 0) == (not spare)
  else:
    assert 0 < float(said['alike']) < 1


def test_without_what_is_drawn_a_view_is_the_picture_and_parts_are_where_the_points_say():
  fields = {'ssl_fer.mask_fn': 'argmax', 'ssl_fer.mask_fn_weights': 'w'}
  source = synthetic_clips.build('', 'train', {'size': 32, 'draw_size': 64, 'draw_seed': 1})
  index = np.array([[0, 3, 14, 18], [1, 4, 20, 25]])
  image = np.stack([[source[i]['image'] for i in row] for row in index])
  batch = {'image': image, 'landmarks': source.targets['landmarks'][index]}
  # without crop, flip and colour the view is the picture, and the parts are cut where the points say
  still = {'augment.scale': (1.0, 1.0), 'augment.flip': 0.0, 'augment.jitter_probability': (0.0, 0.0)}
  still |= {'augment.blur': 0.0, 'augment.grayscale': 0.0, 'augment.landmark_mask': 0.0}
  learner = objective(small.model_section(image_size=64), **fields, **still)
  got = learner.augment(batch, jax.random.key(0))
  mean, std = (np.array(learner.stage.augment[k]) for k in ('mean', 'std'))
  np.testing.assert_allclose(got['image'], (image / 255 - mean) / std, atol=1e-4)
  left, top = np.floor(batch['landmarks'][0, 1, landmarks.EYES].min(axis=0)).astype(int)
  right, bottom = np.ceil(batch['landmarks'][0, 1, landmarks.EYES].max(axis=0)).astype(int)
  assert right - left > bottom - top + 4  # wider than high, so that there is black above and below
  part = (np.asarray(got['parts'][0, 1, 0]) * std + mean) * 255
  assert np.abs(part[:3]).max() < 0.05
  scale = 64 / (right - left)
  high = round((bottom - top) * scale / 2)
  shown = part[32 - high + 2 : 32 + high - 2].mean(axis=(0, 1))
  np.testing.assert_allclose(shown, image[0, 1, top:bottom, left:right].mean(axis=(0, 1)), atol=12)


def test_the_frozen_network_sees_pixels_as_imagenet_has_them_whatever_the_encoder_sees(rng):
  batch = {'image': rng.integers(0, 256, (2, 4, 32, 32, 3), np.uint8)}
  batch['landmarks'] = rng.uniform(4, 28, (2, 4, 68, 2)).astype(np.float32)
  half = {'augment.mean': (0.5, 0.5, 0.5), 'augment.std': (0.5, 0.5, 0.5)}
  fields = {'ssl_fer.mask_fn': 'argmax', 'ssl_fer.mask_fn_weights': 'w'}
  a, b = (objective(**fields, **more).augment(batch, jax.random.key(0)) for more in ({}, half))
  np.testing.assert_array_equal(a['parts'], b['parts'])
  assert np.abs(np.asarray(a['image']) - np.asarray(b['image'])).max() > 0.1


def test_the_covered_part_follows_the_flip():
  """A face whose left eye is red: flipped, it is on the right, and the ellipse that covers it with it."""
  learner = objective(
    small.model_section(image_size=64),
    **{'augment.scale': (1.0, 1.0), 'augment.flip': 1.0, 'augment.jitter_probability': (0.0, 0.0)},
    **{'augment.blur': 0.0, 'augment.grayscale': 0.0, 'augment.landmark_mask': 1.0},
  )
  points = np.full((64, 68, 2), np.nan, np.float32)
  points[:] = 50.0  # all but the left eye: the lower right
  points[:, landmarks.LEFT_EYE] = [12, 20]
  image = np.zeros((64, 64, 64, 3), np.uint8)
  image[:, 18:22, 10:14] = [255, 0, 0]
  view, _ = learner._views(image, points, jax.random.key(0))
  mean, std = (np.array(learner.stage.augment[k]) for k in ('mean', 'std'))
  red = ((np.asarray(view) * std + mean)[:, 18:22, 50:54, 0] > 0.5).all(axis=(1, 2))
  gone = ((np.asarray(view) * std + mean)[:, 18:22, 50:54, 0] < 0.5).all(axis=(1, 2))
  assert (red | gone).all()
  assert 8 < gone.sum() < 36  # a third of the pictures: the eye that is covered is the one that was the left


@pytest.mark.processes
def test_the_frozen_network_is_torchvisions_resnet18_and_makes_rows_of_eyes_and_mouth(rng, tmp_path):
  torch = pytest.importorskip('torch')
  net = peers.torch_resnet(torch, (2, 2, 2, 2), False, False)
  with torch.no_grad():
    for name, p in net.state_dict().items():
      if p.is_floating_point():
        low = 0.5 if name.endswith(('running_var', 'weight')) and p.ndim == 1 else -0.05
        p.copy_(torch.from_numpy(rng.uniform(low, low + 0.1, p.shape)))
  path = tmp_path / 'resnet18.safetensors'
  save_file({k: v.numpy() for k, v in net.state_dict().items() if v.ndim}, path)
  learner = objective(**{'ssl_fer.mask_fn': 'argmax', 'ssl_fer.mask_fn_weights': str(path)})
  frozen = step_lib.read_frozen(learner, 'config.pretrain', sharding.make_mesh())
  model = frozen.attached(learner.init(jax.random.key(0)), frozen.arrays)
  parts = rng.normal(size=(3, 2, 64, 64, 3)).astype(np.float32)
  got = nnx.jit(lambda m, x: m(x))(model.parts_network, parts)
  net.eval()
  with torch.no_grad():
    each = [net(torch.from_numpy(parts[:, k].transpose(0, 3, 1, 2).copy())) for k in (0, 1)]
    expected = torch.nn.functional.normalize(torch.cat(each, dim=1))
  np.testing.assert_allclose(got, expected, atol=1e-4)

  fields = {'ssl_fer.mask_fn': 'argmax', 'ssl_fer.mask_fn_weights': str(path), 'batch_images': 4}
  config = FrozenConfigDict(small.run_config(only=small.ssl_fer_stage(**fields)))
  stage = stage_lib.Stage(config, 'only', epath.Path(tmp_path), sharding.make_mesh(devices=jax.devices()[:1]))
  batch = sharding.to_devices(next(stage.batches(0)), stage.mesh)
  state, measured = stage.program.step(stage.program.init(jax.random.key(0)), batch, jax.random.key(1))
  assert np.isfinite(float(measured['loss']))
  assert 0 <= float(measured['likest_in_clip']) <= 1
  assert 'parts_network' not in state['params']


@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    ({'ssl_fer.mask_fn': 'argmax'}, 'ssl_fer.mask_fn_weights is empty'),
    ({'ssl_fer.mask_fn_weights': 'x'}, "ssl_fer.mask_fn_weights is 'x', and ssl_fer.mask_fn 'none'"),
    ({'ssl_fer.spare_hard_negatives': True}, 'ssl_fer.spare_hard_negatives is True'),
    ({'ssl_fer.time_positives': False, 'ssl_fer.offsets': 'rising'}, "ssl_fer.offsets is 'rising'"),
    (
      {
        'ssl_fer.mask_fn': 'argmax',
        'ssl_fer.mask_fn_weights': 'x',
        'ssl_fer.spare_hard_negatives': True,
        'ssl_fer.hard_negatives': False,
      },
      'ssl_fer.spare_hard_negatives is True, and ssl_fer.hard_negatives False',
    ),
    ({'augment.blur': 0.0, 'augment.blur_sigma': (0.1, 1.0)}, 'and augment.blur 0.0; expected (0.1, 2.0)'),
    ({'data.fps': 0.5}, 'data.fps is 0.5; expected at least 1'),
    ({'batch_images': 1}, 'batch_images is 1'),
    ({'augment.jitter_probability': (0.8,)}, 'augment.jitter_probability is'),
    ({'augment.blur_sigma': (2.0, 0.1)}, 'augment.blur_sigma is'),
  ],
)
def test_what_has_no_effect_or_no_meaning_is_refused(fields, said):
  with pytest.raises(errors.UserError) as e:
    objective(**fields)
  assert said in str(e.value)
  assert '\n' not in str(e.value)


def test_points_are_asked_for_only_where_something_is_made_of_them():
  none = {'augment.landmark_mask': 0.0, 'ssl_fer.face_swap': 0.0}
  assert not objective(**none).targets
  for field, value in (('augment.landmark_mask', 0.1), ('ssl_fer.face_swap', 0.1)):
    assert 'landmarks' in objective(**{**none, field: value}).targets


def test_a_stage_on_folders_says_which_clips_it_leaves_out_and_what_they_lack(tmp_path):
  root = tree(tmp_path / 'data', {'x/1': 13, 'x/2': 5, 'y/1': 20, 'y/2': 14})
  fields = {'data.source': 'clips', 'data.root': str(root), 'eval.splits': '', 'batch_images': 2}
  without = {'augment.landmark_mask': 0.0, 'ssl_fer.face_swap': 0.0}

  def stage_of(**more):
    config = FrozenConfigDict(small.run_config(only=small.ssl_fer_stage(**{**fields, **more})))
    return stage_lib.Stage(
      config, 'only', epath.Path(tmp_path), sharding.make_mesh(devices=jax.devices()[:1])
    )

  stage = stage_of(**without)
  stage.prepare()
  record = stage.records['train']
  assert (record['clips'], record['clips_used'], record['clips_too_short']) == (4, 3, 1)
  assert record['warnings'] == ['1 of 4 clips are shorter than 13 frames and not trained on']
  assert stage.program.steps_per_epoch == 1.5
  assert next(stage.batches(0))['image'].shape == (2, 4, 1, 16, 16, 3)
  with pytest.raises(
    errors.UserError, match="which offers person, clip; objective 'ssl_fer' needs 'landmarks'"
  ):
    stage_of()
  with pytest.raises(
    errors.UserError, match='has 4 clips, the longest of 20 frames; expected one of at least 31'
  ):
    stage_of(**without, **{'data.fps': 10.0})

"""Small configs that tests share: a ViT of a few thousand parameters on pictures of 16 × 16."""

import functools
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from mimic_jax import defaults, models, objectives
from mimic_jax.runtime import checkpoint

# Real pictures that some tests want: DATA/ferplus in its official layout, DATA/faces_wild/<split>/<class>/<person>_<n>.jpg.
DATA = pathlib.Path(os.environ.get('MIMIC_TEST_DATA', 'no such folder'))
GENERATOR_WIDTH = 2  # of AMCL's masks


def model_section(**changes: Any) -> ConfigDict:
  """Returns an encoder section of 2 blocks of width 16 with 4 patches, computing in float32."""
  m = defaults.encoder()
  m.preset = 'vit_ti16'
  m.image_size, m.patch_size, m.dim, m.depth, m.heads = 16, 8, 16, 2, 2
  m.dtype = 'float32'
  m.update(changes)
  return m


def _shared(s: ConfigDict, size: int) -> ConfigDict:
  s.data.size = size
  s.data.draw_size = 16
  s.data.cache = True
  s.data.threads = 2
  s.optim.warmup_epochs = 0.0
  s.optim.lr = 1e-3
  s.eval.size = 24
  s.eval.batch_images = 16
  s.eval.splits = 'valid'
  s.eval.every_epochs = 0.0
  s.drop_path = 0.1
  s.batch_images = 8
  s.steps = 10
  return s


def mimic_stage(**changes: Any) -> ConfigDict:
  """Returns a fine-tuning stage of 10 steps of 8 drawn faces."""
  s = _shared(objectives.defaults('mimic'), 64)
  s.data.source = 'synthetic_faces'
  s.head.projection_dim = 8
  s.update_from_flattened_dict(changes)
  return s


def mae_stage(**changes: Any) -> ConfigDict:
  """Returns a pre-training stage of 10 steps of 8 drawn pictures."""
  s = _shared(objectives.defaults('masked_autoencoding'), 64)
  s.data.source = 'synthetic_images'
  s.optim.blr = 0.0
  s.drop_path = 0.0
  s.mae.decoder_dim, s.mae.decoder_depth, s.mae.decoder_heads = 16, 1, 2
  s.mae.mask_ratio = 0.5
  s.update_from_flattened_dict(changes)
  return s


def local_mim_stage(**changes: Any) -> ConfigDict:
  """Returns a LocalMIM stage of 10 steps of 8 drawn pictures."""
  s = _shared(objectives.defaults('local_mim'), 64)
  s.data.source = 'synthetic_images'
  s.optim.blr = 0.0
  s.drop_path = 0.0
  s.local_mim.decoder_dim, s.local_mim.decoder_heads = 16, 2
  s.local_mim.mask_ratio, s.local_mim.scales = 0.5, (2.0, 0.5)  # of two blocks and four patches
  s.update_from_flattened_dict(changes)
  return s


def moco_stage(**changes: Any) -> ConfigDict:
  """Returns a pre-training stage of 10 steps of 16 drawn pictures, two views each."""
  s = _shared(objectives.defaults('moco_v3'), 64)
  s.batch_images = 16
  s.data.source = 'synthetic_images'
  s.optim.blr = 0.0
  s.drop_path = 0.0
  s.moco.dim, s.moco.hidden = 8, 24
  s.update_from_flattened_dict(changes)
  return s


def ssl_fer_stage(**changes: Any) -> ConfigDict:
  """Returns a pre-training stage of 10 steps of 8 drawn clips, four frames each."""
  s = _shared(objectives.defaults('ssl_fer'), 256)
  s.data.source = 'synthetic_clips'
  s.eval.size = 32
  s.drop_path = 0.0
  s.ssl_fer.dim = 8
  s.ssl_fer.face_swap = 0.5
  s.optim.hold_epochs = 2.0
  s.update_from_flattened_dict(changes)
  return s


def amcl_masks_stage(**changes: Any) -> ConfigDict:
  """Returns 10 steps of a GAN of few channels on 8 drawn masks."""
  s = _shared(objectives.defaults('amcl_masks'), 64)
  s.data.source = 'synthetic_masks'
  s.drop_path = 0.0
  s.gan.width = GENERATOR_WIDTH
  s.optim.lr = s.optim_critic.lr = 5e-5  # faster, two adversaries make much of a rounding error in 50 steps
  s.update_from_flattened_dict(changes)
  return s


def amcl_stage(**changes: Any) -> ConfigDict:
  """Returns a pre-training stage of 10 steps of 16 drawn pictures under masks of a generator that is made for it."""
  s = _shared(objectives.defaults('amcl'), 64)
  s.batch_images = 16
  s.data.source = 'synthetic_images'
  s.drop_path = 0.0
  s.amcl.dim, s.amcl.masks_width = 8, GENERATOR_WIDTH
  s.amcl.eta = 1.25  # so that masks change
  s.amcl.masks = changes.pop('amcl.masks') if 'amcl.masks' in changes else generator()
  s.update_from_flattened_dict(changes)
  return s


@functools.cache
def generator(folder: str = '') -> str:
  """Returns a folder, by default a new one, with a checkpoint of `amcl_masks_stage`, its kernels so large that masks differ."""
  folder = folder or tempfile.mkdtemp()
  config = run_config(masks=amcl_masks_stage())
  learner = objectives.make(config.masks, config.model, (), 'objective')
  _, params, rest = models.split(jax.jit(learner.init)(jax.random.key(0)), learner.trainable)
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: x * (20.0 if path[-1].key == 'kernel' else 1.0), params
  )
  with checkpoint.opened(epath.Path(folder)) as checkpoints:
    meta = {'stage': 'masks', 'config': config.to_dict()}
    checkpoints.save(10, {'params': params, 'rest': rest}, meta)
  return folder


def probe_stage(**changes: Any) -> ConfigDict:
  """Returns a linear probe of 10 steps of 8 drawn faces."""
  return _plain('linear_probe', {'drop_path': 0.0, **changes})


def scn_stage(**changes: Any) -> ConfigDict:
  """Returns 10 steps of SCN on 8 drawn faces; relabels from the fifth on."""
  return _plain('scn', {'scn.relabel_from': 0.4, **changes})


def regression_stage(**changes: Any) -> ConfigDict:
  """Returns 10 steps of the regression of valence and arousal on 8 drawn faces."""
  return _plain('regression', changes)


def hmtl_stage(**changes: Any) -> ConfigDict:
  """Returns 10 steps of classification with puzzles on 8 drawn faces."""
  return _plain('hmtl', changes)


def inpaint_stage(**changes: Any) -> ConfigDict:
  """Returns 10 steps of classification with in-painting on 8 drawn faces."""
  sizes = {'hmtl.decoder_dim': 16, 'hmtl.decoder_depth': 1, 'hmtl.decoder_heads': 2}
  return _plain('hmtl', {'hmtl.task': 'inpaint', **sizes, **changes})


def _plain(objective: str, changes: dict[str, Any]) -> ConfigDict:
  s = _shared(objectives.defaults(objective), 64)
  s.data.source = 'synthetic_faces'
  s.update_from_flattened_dict(changes)
  return s


def run_config(**stages: ConfigDict) -> ConfigDict:
  """Returns a whole config with the stages given, in their order."""
  c = defaults.base()
  c.name = 'small'
  c.model = model_section()
  c.stages = ','.join(stages)
  c.log.every = 1
  c.log.progress = False
  c.log.tensorboard = False
  for name, s in stages.items():
    c[name] = s
  return c


def parameter_count(create: Callable[[nnx.Rngs], nnx.Module]) -> int:
  """Counts the parameters of the module that `create` would make, allocating none of them."""
  state = nnx.state(nnx.eval_shape(lambda: create(nnx.Rngs(0))), nnx.Param)
  return sum(leaf.size for leaf in jax.tree.leaves(state))

"""AMCL's first stage (arXiv 2401.08079; docs/method.md): a generator learns to make masks, against a critic that tells them from drawn ones.

Both players move at every step, by optimisers of their own (`optim`, `optim_critic`): one loss, in which each term goes through a fixed
copy of the other player. Shapes: masks m [B, 64, 64], 1 where a picture is seen, 0 where it is hidden; latent variables z [B, 128].
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mimic_jax import augment, defaults, models
from mimic_jax.models import dcgan, flops
from mimic_jax.objectives import base
from mimic_jax.objectives.base import Batch
from mimic_jax.report.drawing import Drawing
from mimic_jax.runtime import sharding

GENERATOR_LOSSES = ('non_saturating', 'saturating')
SHEET = (4, 8)  # rows and columns of masks in the report
EVALUATION_SEED = (
  0  # of the latent variables in evaluation and of the sheet's, which are the same in every run
)


class Model(nnx.Module):
  """The two players."""

  def __init__(self, width: int, rngs: nnx.Rngs):
    self.generator = dcgan.Generator(width, rngs)
    self.critic = dcgan.Critic(width, rngs)


def fixed(module: nnx.Module) -> nnx.Module:
  """Returns a copy of a module through whose parameters no gradient goes and whose changes of state are lost."""
  graph, state = nnx.split(module)
  return nnx.merge(graph, jax.lax.stop_gradient(state), copy=True)


class Objective(base.Objective):
  """A GAN of masks; see base.py for the contract."""

  CITES: ClassVar = {
    'qin2024adversarial': {
      'type': 'article',
      'title': 'Adversarial Masking Contrastive Learning for Vein Recognition',
      'author': 'Qin, Huafeng and Wu, Yiquan and El-Yacoubi, Mounim A. and Wang, Jun and Yang, Guangxiang',
      'journal': 'arXiv preprint arXiv:2401.08079',
      'year': '2024',
    }
  }
  CHOICES: ClassVar = {'gan.generator_loss': GENERATOR_LOSSES}
  RANGES: ClassVar = {'gan.width': (1, float('inf'))}
  FIGURES: ClassVar = {
    'loss': base.Figure(
      'Loss',
      note='Of both players, which pull it opposite ways: that it stays is no sign of a fault. A split is measured with running batch statistics.',
    ),
    'critic': base.Figure('Critic', term=True),
    'generator': base.Figure('Generator', term=True),
    'real_right': base.Figure('Drawn masks that the critic takes for drawn', share=True),
    'fake_right': base.Figure('Generated masks that the critic takes for generated', share=True),
    'hidden': base.Figure('Share of the pixels that generated masks hide', share=True),
  }

  @classmethod
  def defaults(cls) -> ConfigDict:
    """Returns a stage with DCGAN's recipe: Adam, 2e-4 throughout, β₁ = .5."""
    s = defaults.stage()
    s.objective = 'amcl_masks'
    s.epochs = 20.0
    s.batch_images = 128
    s.gan = ConfigDict()
    s.gan.width = 64  # channels of the last map before the mask; 2, 4 and 8 times as many before that
    s.gan.generator_loss = (
      'non_saturating'  # non_saturating (−log D(G(z)) [D]) | saturating (log(1 − D(G(z))))
    )
    s.data.source = 'synthetic_masks'
    s.data.size = 16384
    s.data.draw_size = dcgan.SIDE
    for name in ('rand_ops', 'rand_magnitude', 'rand_std', 'erasing'):  # a mask stays one
      del s.augment[name]
    s.augment.scale = (1.0, 1.0)
    s.augment.ratio = (1.0, 1.0)
    s.augment.mean, s.augment.std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    for name in ('optim', 'optim_critic'):
      s[name] = defaults.optimiser()
      s[name].lr = s[name].min_lr = 2e-4  # constant
      s[name].b1 = 0.5
      s[name].weight_decay = 0.0
      s[name].layer_decay = 1.0
      s[name].warmup_epochs = 0.0
    s.eval.splits = ''
    return s.lock()

  def __init__(self, stage: Mapping[str, Any], model: Mapping[str, Any], class_names: tuple[str, ...]):
    del class_names
    self.stage = stage
    self.config = models.encoder_config(model, stage['drop_path'])  # of the stages that come after

  def inputs(self) -> dict[str, base.Crops]:
    """One crop of the masks' own size."""
    return {'image': base.Crops(1, dcgan.SIDE)}

  def flops_per_image(self) -> float:
    """Returns those of a generated mask forward and backward, of the critic on it and on a drawn one, and once more for the generator's sake."""
    width = self.stage['gan']['width']
    critic = dcgan.critic_flops(width)
    return flops.TRAINING * (dcgan.generator_flops(width) + 2 * critic) + 2 * critic

  def init(self, key: jax.Array) -> Model:
    """Returns a fresh model."""
    return Model(self.stage['gan']['width'], nnx.Rngs(key))

  def initial(self, path: tuple[str, ...]) -> str:
    """Both players go on from a run of this objective."""
    return 'needed'

  def group(self, path: tuple[str, ...]) -> str:
    """The critic has an optimiser of its own."""
    return 'critic' if path[0] == 'critic' else ''

  def decays(self, path: tuple[str, ...], ndim: int, tokens: bool) -> bool:
    """Kernels do, where weight decay is asked for."""
    return ndim >= 2

  def augment(self, batch: Batch, key: jax.Array) -> Batch:
    """Masks out of pictures of them.

    Args:
      batch: 'image' uint8 [B, H, W, 3], or [B, 1, 64, 64, 3] cropped on the host; white where a picture is seen.
      key: of this step.

    Returns:
      'image' float32 [B, 64, 64], 0..1.
    """
    a = self.stage['augment']
    crop_key, flip_key = jax.random.split(key)
    images = batch['image']
    if images.ndim == 4:
      how = (dcgan.SIDE, a['scale'], a['ratio'], a['interpolation'])
      images = augment.random_resized_crop(crop_key, images, 1, *how)
    images = augment.random_flip(flip_key, images.astype(jnp.float32), a['flip'])
    return {'image': images[:, 0].mean(axis=-1) / 255.0}

  def loss(
    self, model: Model, batch: Batch, key: jax.Array, step: jax.Array, total_steps: int
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """−E log D(m) − E log(1 − D(G(z))) for the critic, plus −E log D(G(z)) for the generator, each through a fixed copy of the other.

    Args:
      model: of this objective; its batch statistics are updated, the critic's by drawn and by generated masks.
      batch: from `augment`.
      key: of this step: the latent variables.
      step, total_steps: not used.

    Returns:
      The loss, float32 [], and its parts and statistics.
    """
    del step, total_steps
    real = batch['image']
    z = sharding.along_batch(jax.random.normal(key, (len(real), dcgan.LATENT)))
    fake = model.generator(z, running=False)
    judged = fixed(model.critic)(fake, running=False)
    drawn = model.critic(real, running=False)
    made = model.critic(jax.lax.stop_gradient(fake), running=False)
    critic, generator = (jnp.mean(x) for x in self._losses(drawn, made, judged))
    means = {'real_right': drawn > 0, 'fake_right': made <= 0, 'hidden': 1.0 - fake}
    said = {name: jnp.mean(x.astype(jnp.float32)) for name, x in means.items()}
    return critic + generator, {'critic': critic, 'generator': generator, **said}

  def evaluate(self, model: Model, batch: Batch) -> dict[str, dict[str, jax.Array]]:
    """Returns the sums of both players' losses on the masks of a split and as many generated ones, with the running statistics.

    Args:
      model: of this objective; nothing of it is updated.
      batch: 'image' uint8 [B, H, W, 3], 'index' int [B], which the latent variables depend on alone, 'mask' bool [B], False on padding.
    """
    mask, seed = batch['mask'], jax.random.key(EVALUATION_SEED)
    z = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(seed, i), (dcgan.LATENT,)))(batch['index'])
    made = model.critic(model.generator(z, running=True), running=True)
    drawn = self._score(model, batch['image'].astype(jnp.float32))
    critic, generator = self._losses(drawn, made, made)
    each = {'loss': critic + generator, 'real_right': drawn > 0, 'fake_right': made <= 0}
    count = jnp.sum(mask)
    return {'sums': {k: (jnp.sum(jnp.where(mask, x, 0)), count) for k, x in each.items()}, 'outputs': {}}

  def answers(self, model: Model, images: jax.Array) -> dict[str, jax.Array]:
    """Returns the critic's logit of each picture, taken for a mask."""
    mean, std = (jnp.asarray(self.stage['augment'][k]).reshape(1, 1, 1, -1) for k in ('mean', 'std'))
    return {'score': self._score(model, 255.0 * (images * std + mean))}

  def look(self, model: Model, batch: Mapping[str, Any]) -> dict[str, Drawing]:
    """Returns a sheet of generated masks."""
    del batch
    z = jax.random.normal(jax.random.key(EVALUATION_SEED), (SHEET[0] * SHEET[1], dcgan.LATENT))
    masks = np.asarray(model.generator(z, running=True))
    pictures = np.repeat(np.rint(255 * masks).astype(np.uint8)[..., None], 3, axis=-1)
    text = 'What the generator makes of latent variables that are the same in every report: white is seen, black is hidden.'
    return {'masks': Drawing('Masks', text, pictures.reshape(*SHEET, dcgan.SIDE, dcgan.SIDE, 3))}

  def _losses(self, drawn: jax.Array, made: jax.Array, judged: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns both players' losses of logits [B] of drawn masks and of generated ones, as the critic and as the generator sees them."""
    critic = jax.nn.softplus(-drawn) + jax.nn.softplus(made)
    if self.stage['gan']['generator_loss'] == 'saturating':
      return critic, -jax.nn.softplus(judged)
    return critic, jax.nn.softplus(-judged)

  def _score(self, model: Model, pictures: jax.Array) -> jax.Array:
    """Returns the critic's logits, float32 [B], of pictures float32 [B, H, W, 3], 0..255."""
    masks = augment.resize(pictures, dcgan.SIDE, self.stage['augment']['interpolation'])
    return model.critic(masks.mean(axis=-1) / 255.0, running=True)

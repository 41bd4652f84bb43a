"""MoCo v3 (arXiv 2104.02057; docs/method.md): two views of a picture agree, against all others of the batch. Pictures only, no labels.

A query is made of one view by encoder, projector and predictor, its key of the other view by the momentum encoder and its projector, which
follow the first ones slowly. Shapes: B pictures, two views of S × S pixels, queries and keys [B, dim] of length 1.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from mimic_jax import augment, colour, defaults, losses, models
from mimic_jax.models import flops, heads, vit
from mimic_jax.objectives import base
from mimic_jax.objectives.base import Batch
from mimic_jax.report import citations
from mimic_jax.report.drawing import Drawing
from mimic_jax.runtime.errors import UserError

VIEWS = 2
POOL = 'cls'  # what the projector gets of a ViT: its class token behind the last norm
ROWS = 8  # pictures drawn for the report
EVALUATION_SEED = 0  # of the views in evaluation, which are the same in every run


class Branch(nnx.Module):
  """An encoder and its projector of three layers."""

  def __init__(self, config: models.EncoderConfig, hidden: int, dim: int, rngs: nnx.Rngs):
    self.encoder = config.create(rngs)
    self.projector = heads.NormedMlp((config.dim, hidden, hidden, dim), rngs=rngs)

  def project(self, images: jax.Array, key: jax.Array | None) -> jax.Array:
    """Maps images [B, S, S, 3], normalised, to float32 [B, dim]; with a key as in training: statistics of this batch, drop-path."""
    return self.projector(self.encoder.features(images, key=key, pool=POOL), running=key is None)


class Model(Branch):
  """What is trained, with a predictor of two layers; `momentum` is the branch that follows it."""

  def __init__(
    self, config: models.EncoderConfig, momentum: models.EncoderConfig, hidden: int, dim: int, rngs: nnx.Rngs
  ):
    super().__init__(config, hidden, dim, rngs)
    self.predictor = heads.NormedMlp((dim, hidden, dim), rngs=rngs)
    self.momentum = Branch(momentum, hidden, dim, rngs)

  def query(self, images: jax.Array, key: jax.Array | None) -> jax.Array:
    """Returns q, float32 [B, dim] of length 1; arguments as `project`."""
    return heads.l2_normalise(self.predictor(self.project(images, key), running=key is None))

  def key_of(self, images: jax.Array, key: jax.Array | None) -> jax.Array:
    """Returns k, float32 [B, dim] of length 1, through which no gradient goes; arguments as `project`."""
    return jax.lax.stop_gradient(heads.l2_normalise(self.momentum.project(images, key)))

  def follow(self, rate: jax.Array | float) -> None:
    """Moves the parameters of the momentum branch towards those that are trained, by a share `rate` of the way; statistics are its own."""
    for name in ('encoder', 'projector'):
      mine, theirs = getattr(self, name), getattr(self.momentum, name)
      old, new = (nnx.state(module, nnx.Param) for module in (theirs, mine))
      # in this form what is frozen, and so the same in both, stays so to the bit
      nnx.update(theirs, jax.tree.map(lambda a, b: a + rate * (jax.lax.stop_gradient(b) - a), old, new))


def momentum_rate(step: jax.Array, total_steps: int, momentum: float) -> jax.Array:
  """Returns 1 − m_t = ½ (1 + cos(π t / T)) (1 − m), float32 []: how far the momentum branch goes; m_t rises to 1."""
  return 0.5 * (1.0 + jnp.cos(jnp.pi * step / total_steps)) * (1.0 - momentum)


class Objective(base.Objective):
  """Momentum contrast; see base.py for the contract."""

  CITES: ClassVar = {'chen2021empirical': citations.ENTRIES['chen2021empirical']}
  pairs = True
  pool = POOL
  RANGES: ClassVar = {
    'moco.dim': (1, float('inf')),
    'moco.hidden': (1, float('inf')),
    'moco.temperature': (1e-4, float('inf')),
    'moco.momentum': (0, 1),
    'augment.jitter_probability': (0, 1),
    'augment.grayscale': (0, 1),
  }
  FIGURES: ClassVar = {
    'loss': base.Figure(
      'Loss',
      note='2τ times the cross-entropy of both directions. A split is measured on two fixed views of each picture, against the others of its '
      'batch (eval.batch_images) and with the running batch statistics: not to be compared with the training figure.',
    ),
    'keys_found': base.Figure(
      'Queries nearest to their own key', share=True, note='Among the keys of the batch.'
    ),
    'momentum': base.Figure('Momentum'),
  }

  @classmethod
  def defaults(cls) -> ConfigDict:
    """Returns a stage with MoCo v3's recipe for ViTs on ImageNet-1K (its §4 and appendix; the published main_moco.py)."""
    s = defaults.stage()
    s.objective = 'moco_v3'
    s.epochs = 300.0
    s.batch_images = 4096
    s.moco = ConfigDict()
    s.moco.dim = 256  # of queries and keys
    s.moco.hidden = 4096  # width of the projector and the predictor
    s.moco.temperature = 0.2  # τ
    s.moco.momentum = 0.99  # m at the start; rises to 1 at the end, by a cosine
    for name in ('rand_ops', 'rand_magnitude', 'rand_std', 'erasing'):  # its views are other ones
      del s.augment[name]
    s.augment.scale = (0.08, 1.0)
    s.augment.jitter = (0.4, 0.4, 0.2, 0.1)  # strength of brightness, contrast, saturation, hue
    s.augment.jitter_probability = 0.8
    s.augment.grayscale = 0.2  # probability
    s.augment.blur = (1.0, 0.1)  # probability in the first view, in the second
    s.augment.blur_sigma = (0.1, 2.0)  # pixels of a view 224 wide; as large a share of another width
    s.augment.solarise = (0.0, 0.2)  # probability in the first view, in the second
    s.optim.name = 'adamw'
    s.optim.lr = 0.0
    s.optim.blr = 1.5e-4
    s.optim.weight_decay = 0.1
    s.optim.decay_tokens = True
    s.optim.layer_decay = 1.0
    s.optim.warmup_epochs = 40.0
    s.optim.min_lr = 0.0
    s.eval.splits = ''
    s.checkpoint.every_epochs = 10.0
    return s.lock()

  def __init__(self, stage: Mapping[str, Any], model: Mapping[str, Any], class_names: tuple[str, ...]):
    del class_names
    self.stage = stage
    self.config = models.encoder_config(model, stage['drop_path'])
    self.momentum_config = models.encoder_config(model)  # the keys' branch drops no paths
    if stage['batch_images'] < 2:
      raise UserError(
        'batch_images is 1; expected at least 2: a key is told apart from those of other pictures'
      )
    colour.check(stage['augment'], blur=VIEWS, solarise=VIEWS)
    self._drawn_views = jax.jit(self._views)

  def inputs(self) -> dict[str, base.Crops]:
    """Two crops of a picture."""
    return {'image': base.Crops(VIEWS)}

  def flops_per_image(self) -> float:
    """Returns those of two views through what is trained, forward and backward, and through the momentum branch, forward.

    A ViT's patch embedding, which is frozen, counts once; so do the keys in the products of queries and keys.
    """
    m = self.stage['moco']
    frozen = 0
    if isinstance(self.config, vit.Config):
      frozen = flops.linear(self.config.grid**2, 3 * self.config.patch_size**2, self.config.dim)
    projector = _flops_of((self.config.dim, m['hidden'], m['hidden'], m['dim']))
    predictor = _flops_of((m['dim'], m['hidden'], m['dim']))
    branch = self.config.flops() + projector
    products = flops.linear(1, m['dim'], self.stage['batch_images'])
    trained = flops.TRAINING * (branch - frozen + predictor) + frozen
    return VIEWS * (trained + branch + (flops.TRAINING - 1) * products)

  def init(self, key: jax.Array) -> Model:
    """Returns a fresh model whose momentum branch is as the one that is trained.

    A ViT begins as MoCo v3's, query, key and value being three matrices for Xavier's bound; but for its class token, which is not close to 0.
    """
    m = self.stage['moco']
    model = Model(self.config, self.momentum_config, m['hidden'], m['dim'], rngs=nnx.Rngs(key))
    if isinstance(self.config, vit.Config):
      model.encoder.blocks.attn.qkv.kernel[...] *= 2**0.5  # 6 / (D + 3D) under the root becomes 6 / (D + D)
    for name in ('encoder', 'projector'):
      mine, theirs = getattr(model, name), getattr(model.momentum, name)
      nnx.update(theirs, jax.tree.map(jnp.copy, nnx.state(mine)))
    return model

  def trainable(self, path: tuple[str, ...]) -> bool:
    """All but the momentum branch and a ViT's patch embedding and position table."""
    return path[0] != 'momentum' and path[:2] != ('encoder', 'patch_embed') and path[-1] != 'pos_embed'

  def initial(self, path: tuple[str, ...]) -> str | tuple[str, tuple[str, ...]]:
    """The encoder is needed and starts the momentum encoder, too; heads are taken of a run of this objective with such ones."""
    if path[0] == 'momentum':
      return self.initial(path[1:]), path[1:]
    return 'needed' if path[0] == 'encoder' else 'if_whole'

  def augment(self, batch: Batch, key: jax.Array) -> Batch:
    """Two views of each picture.

    Returns:
      'image' float32 [B, 2, S, S, 3], normalised.
    """
    return {'image': self._views(batch['image'], key)}

  def loss(
    self, model: Model, batch: Batch, key: jax.Array, step: jax.Array, total_steps: int
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """2τ · [CE(q₁ · k₂ / τ) + CE(q₂ · k₁ / τ)] over the global batch; the momentum branch is moved before it makes the keys.

    Returns:
      The loss, float32 [], the share of queries whose own key is the nearest, and the momentum.
    """
    rate = momentum_rate(step, total_steps, self.stage['moco']['momentum'])
    model.follow(rate)
    views = [batch['image'][:, v] for v in range(VIEWS)]
    q = [model.query(x, k) for x, k in zip(views, jax.random.split(key), strict=True)]
    k = [model.key_of(x, key) for x in views]
    # the second product is the loss's own, which the compiler makes once
    loss = sum(self._contrast(q[v], k[1 - v]) for v in range(VIEWS))
    return loss, {'keys_found': jnp.mean(_found(q[0], k[1])), 'momentum': 1.0 - rate}

  def evaluate(self, model: Model, batch: Batch) -> dict[str, dict[str, jax.Array]]:
    """Returns the sums of the loss, under views that depend on a picture's index in its source alone, and the features of whole pictures.

    The keys are those of the batch without its padding; norms use their running statistics, and nothing is updated.
    """
    x, mask = self._fixed_views(batch['image'], batch['index']), batch['mask']
    q, k = ([make(x[:, v], None) for v in range(VIEWS)] for make in (model.query, model.key_of))
    # no key of the padding is a candidate; a query of it, without its own key, adds 0
    left_out = jnp.broadcast_to(~mask[None], (len(mask), len(mask)))
    loss = sum(self._contrast(q[v], k[1 - v], left_out, 'sum') for v in range(VIEWS))
    return {
      'sums': {'loss': (loss, jnp.sum(mask))},
      'outputs': self.answers(model, self._seen(batch['image'])),
    }

  def draw(self, model: Model, batch: Mapping[str, Any], key: jax.Array) -> dict[str, Drawing]:
    """Returns the two views of a few pictures."""
    del model
    a = self.stage['augment']
    pictures = jax.device_get(self._drawn_views(batch['image'][:ROWS], key))
    drawing = Drawing(
      'Views',
      'What the two views of a picture, a row each, have been made into. The query of one is to find the key of the other.',
      augment.to_uint8(pictures, a['mean'], a['std']),
      ('view 1', 'view 2'),
    )
    return {'views': drawing}

  def _contrast(
    self, q: jax.Array, k: jax.Array, left_out: jax.Array | None = None, reduction: str = 'mean'
  ) -> jax.Array:
    """Returns 2τ · CE(q · k / τ) with the key of the same row as the class, float32 []; of keys `left_out`, bool [B, B], none."""
    row, temperature = jnp.arange(len(q)), self.stage['moco']['temperature']
    none = jnp.zeros((len(q), len(k)), bool) if left_out is None else left_out
    ce, _ = losses.contrastive_loss(q, row, k, row, none, temperature=temperature, reduction=reduction)
    return 2.0 * temperature * ce

  def _views(self, images: jax.Array, key: jax.Array) -> jax.Array:
    """Returns the views of uint8 [B, H, W, 3] or [B, 2, S, S, 3], cropped already, as float32 [B, 2, S, S, 3], normalised."""
    a = self.stage['augment']
    return colour.random_views(key, images, self.config.image_size, a, a['blur'], a['solarise'])

  def _fixed_views(self, images: jax.Array, index: jax.Array) -> jax.Array:
    """Returns `_views` of whole pictures in which a row depends on its index alone, whatever the batch."""
    key = jax.random.key(EVALUATION_SEED)
    return jax.vmap(lambda x, i: self._views(x[None], jax.random.fold_in(key, i))[0])(images, index)


def _found(q: jax.Array, k: jax.Array) -> jax.Array:
  """Returns whether each query's nearest key is its own, bool [B]."""
  cosine = jnp.matmul(q, k.T, precision=jax.lax.Precision.HIGHEST)
  return jnp.argmax(cosine, axis=-1) == jnp.arange(len(q))


def _flops_of(sizes: Sequence[int]) -> int:
  return sum(flops.linear(1, a, b) for a, b in itertools.pairwise(sizes))

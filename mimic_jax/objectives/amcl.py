"""AMCL's second stage (arXiv 2401.08079; docs/method.md): SimCLR between a masked view and another, the masks chosen to make it hard.

Masks come out of a generator that was trained on masks alone and is frozen. At each step its latent variables z first go up the gradient of
the contrastive loss, the encoder fixed; then the encoder goes down it, under the new masks. Pictures only, no labels.
Shapes: B pictures, two views of S × S pixels, masks [B, 64, 64] of 0 (hidden) to 1, rows [2B, dim] of length 1.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from mimic_jax import augment, colour, defaults, losses, models
from mimic_jax.models import dcgan, flops, heads
from mimic_jax.objectives import amcl_masks, base
from mimic_jax.objectives.base import Batch
from mimic_jax.report.drawing import Drawing
from mimic_jax.runtime import sharding
from mimic_jax.runtime.errors import UserError

VIEWS = 2
POOL = 'cls'  # what the projector gets of a ViT: its class token behind the last norm
ROWS = 8  # pictures drawn for the report
EVALUATION_SEED = 0  # of the views and masks in evaluation, which are the same in every run
INF = float('inf')
MASKED = ('first', 'both', 'none')
LATENTS = ('fresh', 'table')
EDGES = ('soft', 'hard')
_IDLE = {
  ('masked', 'none'): ('masks', 'masks_width', 'edges', 'latents', 'table', 'steps', 'eta', 'shell', 'share', 'share_weight'),
  ('steps', 0): ('latents', 'table', 'eta', 'shell', 'share', 'share_weight'),
  ('share_weight', 0): ('share',),
  ('latents', 'fresh'): ('table',),
}  # fmt: skip
# For base.check_idle.
_WITHOUT_EFFECT = [
  (f'amcl.{name}', f'amcl.{other}', value) for (other, value), names in _IDLE.items() for name in names
]


class Model(nnx.Module):
  """An encoder and its projector, Linear(D, D)–ReLU–Linear(D, dim); with a table of latent variables, [M, 128], which the loss updates."""

  def __init__(self, config: models.EncoderConfig, dim: int, table: int, rngs: nnx.Rngs):
    self.encoder = config.create(rngs)
    self.projector = heads.ProjectionHead('dense', config.dim, dim, rngs)
    if table:
      self.latents = nnx.Variable(jax.random.normal(rngs.params(), (table, dcgan.LATENT)))


def project(
  encoder: nnx.Module, projector: nnx.Module, images: jax.Array, key: jax.Array | None
) -> jax.Array:
  """Maps images [N, S, S, 3], normalised, to float32 [N, dim] of length 1; with a key as in training: statistics of this batch, drop-path."""
  return heads.l2_normalise(projector(encoder.features(images, key=key, pool=POOL)))


class Objective(base.Objective):
  """Contrast under adversarial masks; see base.py for the contract."""

  CITES: ClassVar = amcl_masks.Objective.CITES
  pairs = True
  pool = POOL
  CHOICES: ClassVar = {'amcl.masked': MASKED, 'amcl.latents': LATENTS, 'amcl.edges': EDGES}
  RANGES: ClassVar = {
    'amcl.dim': (1, INF),
    'amcl.temperature': (1e-4, INF),
    'amcl.masks_width': (1, INF),
    'amcl.steps': (0, 100),
    'amcl.eta': (0, INF),
    'amcl.table': (1, INF),
    'amcl.share_weight': (0, INF),
    'augment.jitter_probability': (0, 1),
    'augment.grayscale': (0, 1),
    'augment.blur': (0, 1),
  }
  FIGURES: ClassVar = {
    'loss': base.Figure(
      'Loss',
      note='NT-Xent over all views of the batch, under the masks that were made to raise it. A split is measured on two fixed views of each '
      'picture without masks, against the others of its batch (eval.batch_images) and with the running batch statistics: not to be compared '
      'with the training figure.',
    ),
    'before': base.Figure('Loss before the latent step'),
    'risen': base.Figure(
      'What the latent step adds to the loss',
      note='The loss after the latent step less that before, on the same views: above 0 on average, or the masks are no adversary.',
    ),
    'hidden': base.Figure('Share of the pixels that the masks hide', share=True),
    'positives_found': base.Figure(
      'Rows nearest to their positive', share=True, note='Among the rows of the batch.'
    ),
  }

  @classmethod
  def defaults(cls) -> ConfigDict:
    """Returns a stage with SimCLR's views and the page's readings of what the paper leaves open."""
    s = defaults.stage()
    s.objective = 'amcl'
    s.epochs = 300.0
    s.batch_images = 256
    s.amcl = ConfigDict()
    s.amcl.dim = 128  # of the rows
    s.amcl.temperature = 0.5  # τ
    s.amcl.masked = 'first'  # which of two views are masked: first | both (by one mask) | none (SimCLR)
    s.amcl.masks = ''  # a run of amcl_masks: the name of an earlier stage of this run, or a path
    s.amcl.masks_width = 64  # gan.width of that run
    s.amcl.edges = 'soft'  # soft | hard (0 or 1, with a straight-through gradient)
    s.amcl.latents = 'fresh'  # fresh (z drawn anew at each step) | table (of those that are kept, drawn from)
    s.amcl.table = 4096  # latent variables that are kept
    s.amcl.steps = 1  # K, of the latent variables before each of the encoder; 0: masks at random
    s.amcl.eta = 0.1  # η, on the gradient of the sum over all rows: a mean's shrinks as the batch grows
    s.amcl.shell = True  # then |z| is set to √128, where the generator was trained
    s.amcl.share = (0.1, 0.6)  # of the pixels that a mask hides: beyond it the latent variables pay
    s.amcl.share_weight = 1.0  # for each share of all pixels
    for name in ('rand_ops', 'rand_magnitude', 'rand_std', 'erasing'):  # its views are other ones
      del s.augment[name]
    s.augment.scale = (0.08, 1.0)
    s.augment.jitter = (0.8, 0.8, 0.8, 0.2)  # strength of brightness, contrast, saturation, hue
    s.augment.jitter_probability = 0.8
    s.augment.grayscale = 0.2  # probability
    s.augment.blur = 0.5  # probability
    s.augment.blur_sigma = (0.1, 2.0)  # pixels of a view 224 wide; as large a share of another width
    s.optim.name = 'adamw'
    s.optim.lr = 1e-3
    s.optim.weight_decay = 1e-4
    s.optim.layer_decay = 1.0
    s.optim.warmup_epochs = 10.0
    s.optim.min_lr = 0.0
    s.eval.splits = ''
    s.checkpoint.every_epochs = 10.0
    return s.lock()

  def __init__(self, stage: Mapping[str, Any], model: Mapping[str, Any], class_names: tuple[str, ...]):
    del class_names
    self.stage = stage
    self.config = models.encoder_config(model, stage['drop_path'])
    f = stage['amcl']
    if stage['batch_images'] < 2:
      raise UserError('batch_images is 1; expected at least 2: a picture is told apart from others')
    base.check_idle(stage, type(self).defaults(), _WITHOUT_EFFECT)
    if self._masking and not f['masks']:
      raise UserError(
        f"amcl.masks is empty, and amcl.masked '{f['masked']}'; expected a run of amcl_masks, or an earlier stage's name"
      )
    low, high = f['share']
    if not 0 <= low <= high <= 1:
      raise UserError(f'amcl.share is {(low, high)}; expected (low, high) with 0 ≤ low ≤ high ≤ 1')
    self.table = f['table'] if self._masking and f['latents'] == 'table' else 0
    if self.table and self.table < stage['batch_images']:
      raise UserError(
        f'amcl.table is {self.table}; expected at least {stage["batch_images"]}, the pictures of a batch, each of which has its own'
      )
    colour.check(stage['augment'])
    self._drawn_views = jax.jit(self._views)

  @property
  def _masking(self) -> bool:
    return self.stage['amcl']['masked'] != 'none'

  def inputs(self) -> dict[str, base.Crops]:
    """Two crops of a picture."""
    return {'image': base.Crops(VIEWS)}

  def flops_per_image(self) -> float:
    """Returns those of two views forward and backward, and for each latent step once more forward and back to the pixels, with a mask each time.

    The rows count in the backward of their products, too.
    """
    f, D = self.stage['amcl'], self.config.dim
    projector = flops.linear(1, D, D) + flops.linear(1, D, f['dim'])
    products = flops.linear(1, f['dim'], VIEWS * self.stage['batch_images'])
    trained = self.config.flops() + projector + products
    if not self._masking:
      return VIEWS * flops.TRAINING * trained
    steps, mask = f['steps'], dcgan.generator_flops(f['masks_width'])
    inner = 2 * (self.config.flops() + projector) + flops.TRAINING * products
    return VIEWS * (flops.TRAINING * trained + steps * inner) + (2 * steps + 1) * mask

  def init(self, key: jax.Array) -> Model:
    """Returns a fresh model."""
    return Model(self.config, self.stage['amcl']['dim'], self.table, nnx.Rngs(key))

  def initial(self, path: tuple[str, ...]) -> str:
    """The encoder is needed; the projector and a table are taken of a run of this objective with such ones."""
    return 'needed' if path[0] == 'encoder' else 'if_whole'

  def frozen(self) -> dict[str, base.Frozen]:
    """The generator of masks."""
    if not self._masking:
      return {}
    f = self.stage['amcl']
    network = lambda key: dcgan.Generator(f['masks_width'], nnx.Rngs(key))  # noqa: E731
    part = lambda path: ('needed', ('generator', *path))  # noqa: E731
    return {'generator': base.Frozen(f['masks'], 'amcl.masks', network, part, measured=False)}

  def augment(self, batch: Batch, key: jax.Array) -> Batch:
    """Two views of each picture.

    Args:
      batch: 'image' uint8 [B, H, W, 3], or [B, 2, S, S, 3] cropped on the host.
      key: of this step.

    Returns:
      'image' float32 [B, 2, S, S, 3], normalised.
    """
    return {'image': self._views(batch['image'], key)}

  def loss(
    self, model: Model, batch: Batch, key: jax.Array, step: jax.Array, total_steps: int
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """NT-Xent over the 2B views of the global batch, masked by what the latent step makes of z.

    The latent step sees copies of encoder and projector that it can't change, in their state of training as the encoder step does, with the same
    drop-path; the encoder step sees masks through which no gradient goes.

    Args:
      model: of this objective; its batch statistics are updated, by the encoder step alone, and its table.
      batch: from `augment`.
      key: of this step.
      step, total_steps: not used.

    Returns:
      The loss, float32 [], and what `FIGURES` says.
    """
    del step, total_steps
    views, f = batch['image'], self.stage['amcl']
    key, z_key = jax.random.split(key)
    said = {}
    if self._masking:
      z, place = self._latents(model, len(views), z_key)
      if f['steps']:
        z, said['before'] = self.latent_steps(model, views, z, key)
      if place is not None:
        model.latents[...] = model.latents[...].at[place].set(z)
      masks = jax.lax.stop_gradient(self.masks(model, z))
      said['hidden'] = 1.0 - jnp.mean(masks)
      views = self.masked(views, masks)
    rows = project(model.encoder, model.projector, views.reshape(-1, *views.shape[2:]), key)
    loss = self._contrast(rows)
    if 'before' in said:
      said['risen'] = loss - said['before']
    return loss, {**said, 'positives_found': losses.pairs_found(rows)}

  def latent_steps(
    self, model: Model, views: jax.Array, z: jax.Array, key: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Moves z [B, 128] up the gradient of 2B times the loss less what masks pay for hiding too little or too much, K times, and back onto the shell.

    Args:
      model: whose encoder and projector stay as they are.
      views: float32 [B, 2, S, S, 3], normalised.
      z: float32 [B, 128].
      key: of the encoder's drop-path.

    Returns:
      The new z, through which no gradient goes, and the loss, float32 [], at the z that was given.
    """
    f = self.stage['amcl']

    def gain(z: jax.Array) -> tuple[jax.Array, jax.Array]:
      masks = self.masks(model, z)
      seen = self.masked(views, masks)
      encoder, projector = amcl_masks.fixed(model.encoder), amcl_masks.fixed(model.projector)
      rows = project(encoder, projector, seen.reshape(-1, *seen.shape[2:]), key)
      loss = self._contrast(rows)
      return loss - f['share_weight'] * share_penalty(masks, f['share']), loss

    before = None
    for _ in range(f['steps']):
      (_, loss), rise = jax.value_and_grad(gain, has_aux=True)(z)
      before = loss if before is None else before
      z = z + f['eta'] * VIEWS * len(z) * rise  # of the sum over rows, from that of the mean
    if f['shell']:
      z = z * (dcgan.LATENT**0.5 * jax.lax.rsqrt(jnp.sum(z * z, axis=-1, keepdims=True)))
    return jax.lax.stop_gradient(z), jax.lax.stop_gradient(before)

  def masks(self, model: Model, z: jax.Array) -> jax.Array:
    """Returns the masks of z [B, 128] in the views' size, float32 [B, S, S]: as they come, or 0 and 1 with the gradient of those that come."""
    masks = model.generator(z, running=True)[..., None]
    m = augment.resize(masks, self.config.image_size, 'bilinear')[..., 0]
    if self.stage['amcl']['edges'] == 'hard':
      m = m + jax.lax.stop_gradient((m > 0.5).astype(m.dtype) - m)
    return sharding.along_batch(m)

  def masked(self, views: jax.Array, masks: jax.Array) -> jax.Array:
    """Returns views [B, 2, S, S, 3] times masks [B, S, S], the first alone or both; what is hidden is the mean colour, 0."""
    m = masks[:, None, :, :, None]
    other = m if self.stage['amcl']['masked'] == 'both' else jnp.ones_like(m)
    return views * jnp.concatenate([m, other], axis=1)

  def evaluate(self, model: Model, batch: Batch) -> dict[str, dict[str, jax.Array]]:
    """Returns the sums of NT-Xent on two views of each picture, which depend on its index alone, and the features of whole pictures.

    Args:
      model: of this objective; nothing of it is updated.
      batch: 'image' uint8 [B, H, W, 3], 'index' int [B], 'mask' bool [B], False on padding.
    """
    key, mask = jax.random.key(EVALUATION_SEED), batch['mask']
    one = lambda x, i: self._views(x[None], jax.random.fold_in(key, i))[0]  # noqa: E731
    x = jax.vmap(one)(batch['image'], batch['index'])
    rows = project(model.encoder, model.projector, x.reshape(-1, *x.shape[2:]), None)
    # no row of the padding is a candidate; one of it, without its positive, adds 0
    kept = jnp.repeat(mask, VIEWS)
    loss = self._contrast(rows, ~kept[None], 'sum')
    return {
      'sums': {'loss': (loss, jnp.sum(kept))},
      'outputs': self.answers(model, self._seen(batch['image'])),
    }

  def draw(self, model: Model, batch: Mapping[str, Any], key: jax.Array) -> dict[str, Drawing]:
    """Returns the two views of a few pictures, masked as in training but by latent variables that no step has moved."""
    views_key, z_key = jax.random.split(key)
    views = self._drawn_views(batch['image'][:ROWS], views_key)
    if self._masking:
      z = jax.random.normal(z_key, (len(views), dcgan.LATENT))
      views = self.masked(views, self.masks(model, z))
    a = self.stage['augment']
    drawing = Drawing(
      'Views',
      'Two views of a picture, a row each, that are to agree; the grey is what a mask hides. The masks are those before the latent step.',
      augment.to_uint8(np.asarray(views), a['mean'], a['std']),
      ('view 1', 'view 2'),
    )
    return {'views': drawing}

  def _latents(self, model: Model, count: int, key: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Returns z, float32 [B, 128], and of a table the places that they are from, int [B], no two alike."""
    if not self.table:
      return sharding.along_batch(jax.random.normal(key, (count, dcgan.LATENT))), None
    place = jax.random.permutation(key, self.table)[:count]
    return sharding.along_batch(model.latents[...][place]), place

  def _contrast(
    self, rows: jax.Array, left_out: jax.Array | None = None, reduction: str = 'mean'
  ) -> jax.Array:
    """Returns NT-Xent of rows [2B, dim], the two of a picture side by side; `left_out`, bool [1, 2B], are no candidates."""
    number = jnp.arange(len(rows))
    not_one = number[:, None] == number[None]
    not_one = not_one if left_out is None else not_one | left_out
    pair, temperature = number // VIEWS, self.stage['amcl']['temperature']
    loss, _ = losses.contrastive_loss(
      rows, pair, rows, pair, not_one, temperature=temperature, reduction=reduction
    )
    return loss

  def _views(self, images: jax.Array, key: jax.Array) -> jax.Array:
    """Returns the views of uint8 [B, H, W, 3] or [B, 2, S, S, 3], cropped already, as float32 [B, 2, S, S, 3], normalised."""
    a = self.stage['augment']
    return colour.random_views(key, images, self.config.image_size, a, [a['blur']] * VIEWS, [0.0] * VIEWS)


def share_penalty(masks: jax.Array, share: tuple[float, float]) -> jax.Array:
  """Returns by how much the share that a mask hides is below or above two bounds, the mean over masks [B, S, S], float32 []."""
  low, high = share
  hidden = 1.0 - jnp.mean(masks, axis=(1, 2))
  return jnp.mean(jnp.maximum(low - hidden, 0.0) + jnp.maximum(hidden - high, 0.0))

"""Stage one: masked autoencoding (MAE, arXiv 2111.06377; P §III-A). Images only, no labels.

Most patches of an image are removed, the encoder sees the rest, a small decoder predicts the pixels of all; the loss is
over the removed ones. Shapes: B images, L patches, K kept, P = p·p·3 values of a patch.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from mimic_jax import augment, defaults, losses, models
from mimic_jax.models import decoder, flops, masking, vit
from mimic_jax.objectives import base
from mimic_jax.objectives.base import Batch
from mimic_jax.report import citations
from mimic_jax.report.drawing import Drawing
from mimic_jax.runtime.errors import UserError

EPSILON = 1e-6  # added to a patch's variance (MAE)
ROWS = 8  # images drawn for the report
DECODER_MLP_RATIO = 4.0  # MAE's, whatever the encoder's


def patch_statistics(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns mean and standard deviation, [B, L, 1] each, of patches [B, L, P]: unbiased variance, + 1e-6 (MAE)."""
  mean = patches.mean(axis=-1, keepdims=True)
  variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
  return mean, jnp.sqrt(variance + EPSILON)


class MaskedAutoencoder(nnx.Module):
  """Encoder and decoder."""

  def __init__(self, config: vit.Config, decoder_config: vit.Config, rngs: nnx.Rngs):
    self.encoder = vit.Encoder(config, rngs=rngs)
    self.decoder = decoder.Decoder(config.dim, decoder_config, rngs=rngs)

  def __call__(self, images: jax.Array, masks: masking.Masks, key: jax.Array | None = None) -> jax.Array:
    """Predicts every patch, float32 [B, L, P], of images [B, S, S, 3] from the kept ones; drop-path needs a key."""
    tokens = self.encoder(images, key=key, keep=masks.keep)
    return self.decoder(tokens, masks.restore).astype(jnp.float32)


class Objective(base.Objective):
  """Masked autoencoding; see base.py for the contract."""

  CITES: ClassVar = {'he2022masked': citations.ENTRIES['he2022masked']}
  section: ClassVar = 'mae'
  title: ClassVar = 'masked autoencoding'
  RANGES: ClassVar = {'mae.mask_ratio': (0.01, 0.99)}
  FIGURES: ClassVar = {'loss': base.Figure('Loss', unit='mean squared error')}

  @classmethod
  def defaults(cls) -> ConfigDict:
    """Returns stage one with MAE's recipe for ImageNet-1K (P §III-A and §IV-B; MAE table 8)."""
    s = defaults.stage()
    s.objective = 'masked_autoencoding'
    s.epochs = 1600.0
    s.batch_images = 4096
    s.mae = ConfigDict()
    s.mae.mask_ratio = 0.75
    s.mae.norm_pix = True  # targets are patches normalised by their own mean and unbiased variance
    s.mae.decoder_dim = 512
    s.mae.decoder_depth = 8
    s.mae.decoder_heads = 16
    s.augment.scale = (0.2, 1.0)
    s.augment.interpolation = 'bicubic'
    s.optim.name = 'adamw'
    s.optim.lr = 0.0
    s.optim.blr = 1.5e-4
    s.optim.b2 = 0.95
    s.optim.weight_decay = 0.05
    s.optim.decay_tokens = True
    s.optim.layer_decay = 1.0
    s.optim.warmup_epochs = 40.0
    s.optim.min_lr = 0.0
    s.eval.splits = ''
    s.checkpoint.every_epochs = 10.0
    return s.lock()

  def __init__(self, stage: Mapping[str, Any], model: Mapping[str, Any], class_names: tuple[str, ...]):
    del class_names
    name, own = self.section, stage[self.section]
    self.stage = stage
    self.mask_ratio = own['mask_ratio']
    self.norm_pix = own.get('norm_pix')
    self.config = models.encoder_config(model, stage['drop_path'])
    if not isinstance(self.config, vit.Config):
      raise UserError(
        f"config.model.preset is '{model['preset']}'; expected a ViT: {self.title} leaves patches out"
      )
    models.check_dim(f'{name}.decoder_dim', own['decoder_dim'], f'{name}.decoder_heads', own['decoder_heads'])
    if own['decoder_depth'] < 1:
      raise UserError(f'{name}.decoder_depth is {own["decoder_depth"]}; expected at least 1')
    L = self.config.grid**2
    if not 1 <= masking.kept_patches(L, self.mask_ratio) < L:
      raise UserError(
        f'{name}.mask_ratio is {self.mask_ratio}; expected a share that removes some of the {L} patches and leaves some'
      )
    sizes = {key: own[f'decoder_{key}'] for key in ('dim', 'depth', 'heads')}
    self.decoder_config = self.config._replace(
      **sizes, mlp_ratio=DECODER_MLP_RATIO, drop_path=0.0, layer_scale=0.0
    )
    self._pictures = jax.jit(self._draw, static_argnums=0)

  @classmethod
  def uses(cls, facts: Mapping[str, Any], tensors: Mapping[str, Any]) -> list[tuple[str, ConfigDict]]:
    """Pre-training with a decoder of the file's own size."""
    del tensors
    s = cls.defaults()
    if 'decoder_dim' in facts:
      s.mae.decoder_dim, s.mae.decoder_depth = facts['decoder_dim'], facts['decoder_depth']
      s.mae.decoder_heads = models.largest_divisor(s.mae.decoder_dim, s.mae.decoder_heads)
    return [('MAE pre-training', s)]

  def flops_per_image(self) -> float:
    """Returns those of the encoder on the kept patches and of the decoder on all."""
    kept = masking.kept_patches(self.config.grid**2, self.mask_ratio)
    forward = self.config.flops(kept) + decoder.flops_of(self.config.dim, self.decoder_config, kept)
    return flops.TRAINING * forward

  def init(self, key: jax.Array) -> MaskedAutoencoder:
    """Returns a fresh model."""
    return MaskedAutoencoder(self.config, self.decoder_config, rngs=nnx.Rngs(key))

  def trainable(self, path: tuple[str, ...]) -> bool:
    """Everything but the fixed sin-cos tables of encoder and decoder."""
    return path[-1] != 'pos_embed'

  def initial(self, path: tuple[str, ...]) -> str:
    """The encoder is needed; a decoder is taken where there is one of this size."""
    return 'needed' if path[0] == 'encoder' else 'if_whole'

  def notes(self, facts: Mapping[str, Any]) -> list[str]:
    """Says where a decoder was trained on other targets."""
    if 'decoder_dim' not in facts or facts.get('norm_pix', self.norm_pix) == self.norm_pix:
      return []
    return [
      f'its decoder was trained with norm_pix {facts["norm_pix"]}, here mae.norm_pix is {self.norm_pix}: its predictions begin '
      'far from the targets'
    ]

  def facts(self) -> dict[str, Any]:
    """Returns the decoder's heads, the targets and how much is removed."""
    heads = self.decoder_config.heads
    return {'decoder_heads': heads, 'norm_pix': self.norm_pix, 'mask_ratio': self.mask_ratio}

  def augment(self, batch: Batch, key: jax.Array) -> Batch:
    """One random crop per image, flip, normalisation.

    Returns:
      'image' float32 [B, 1, S, S, 3].
    """
    size = self.config.image_size
    return {'image': augment.training_views(key, batch['image'], views=1, size=size, **self.stage['augment'])}

  def loss(
    self, model: MaskedAutoencoder, batch: Batch, key: jax.Array, step: jax.Array, total_steps: int
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """MAE's loss (P eq. 2 without its stray minus): squared error per patch, mean over the removed patches.

    Returns:
      The loss, float32 [], and no other metrics.
    """
    del step, total_steps
    mask_key, drop_key = jax.random.split(key)
    images = batch['image'][:, 0]
    masks = masking.mask_ids(mask_key, images.shape[0], self.config.grid**2, self.mask_ratio)
    return losses.masked_mse(model(images, masks, drop_key), self.target(images), masks.mask), {}

  def target(self, images: jax.Array) -> jax.Array:
    """Returns what is to be predicted, float32 [B, L, P]: pixels, by default normalised within each patch."""
    patches = vit.patchify(images, self.config.patch_size)
    if not self.norm_pix:
      return patches
    mean, std = patch_statistics(patches)
    return (patches - mean) / std

  def evaluate(self, model: MaskedAutoencoder, batch: Batch) -> dict[str, dict[str, jax.Array]]:
    """Returns the sum of the images' losses under masks that depend on an image's index in its source alone."""
    images = self._seen(batch['image'])
    masks = masking.fixed_masks(batch['index'], self.config.grid**2, self.mask_ratio)
    pred, target = model(images, masks), self.target(images)
    each = jax.vmap(losses.masked_mse)(pred[:, None], target[:, None], masks.mask[:, None])
    sums = {'loss': (jnp.sum(jnp.where(batch['mask'], each, 0.0)), jnp.sum(batch['mask']))}
    return {'sums': sums, 'outputs': {}}

  def draw(self, model: MaskedAutoencoder, batch: Batch, key: jax.Array) -> dict[str, Drawing]:
    """Returns triptychs of a few images: what the encoder sees, what the decoder makes of it, the original."""
    template, params, rest = models.split(model, self.trainable)
    pictures = jax.device_get(self._pictures(template, params, rest, batch['image'][:ROWS], key))
    a = self.stage['augment']
    how = (
      "; the target is each patch normalised by itself, so the patch's true mean and contrast are given back to the "
      'prediction here'
      if self.norm_pix
      else ''
    )
    drawing = Drawing(
      'Reconstructions',
      f'{self.mask_ratio:.0%} of the patches are removed (grey). The decoder predicts them from the others; visible '
      f'patches are shown as they are{how}.',
      augment.to_uint8(pictures, a['mean'], a['std']),
      ('masked', 'reconstruction', 'original'),
    )
    return {'reconstructions': drawing}

  def look(self, model: MaskedAutoencoder, batch: Batch) -> dict[str, Drawing]:
    """Returns what `draw` does, under masks that are the same every time."""
    return self.draw(model, batch, jax.random.key(masking.EVALUATION_SEED))

  def _draw(
    self, template: models.Template, params: Any, rest: Any, images: jax.Array, key: jax.Array
  ) -> jax.Array:
    """Returns normalised pictures, float32 [B, 3, S, S, 3]: masked, reconstructed, original."""
    model = models.merge(template, params, rest)
    images = self._seen(images)
    p, grid = self.config.patch_size, (self.config.grid, self.config.grid)
    masks = masking.mask_ids(key, images.shape[0], self.config.grid**2, self.mask_ratio)
    patches = vit.patchify(images, p)
    pred = model(images, masks)
    if self.norm_pix:
      mean, std = patch_statistics(patches)
      pred = pred * std + mean
    removed = masks.mask[:, :, None]
    # 0 is the mean colour of the data, a grey
    shown = (jnp.where(removed, 0.0, patches), jnp.where(removed, pred, patches), patches)
    return jnp.stack([vit.unpatchify(x, p, grid) for x in shown], axis=1)

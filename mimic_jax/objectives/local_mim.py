"""LocalMIM: masked pre-training with a task of its own for several blocks (arXiv 2303.05251; method.md §3). Images only, no labels.

MAE's masking; but blocks inside the encoder are tapped, each with a small decoder that predicts histograms of oriented gradients
(hog.py) at a scale of its own, the lower block the finer. Shapes: B images, L patches, K kept, F = 3·bins values of a cell.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from mimic_jax import augment, hog, losses, models
from mimic_jax.models import decoder, flops, masking, vit
from mimic_jax.objectives import base, masked_autoencoding
from mimic_jax.objectives.base import Batch
from mimic_jax.report import citations
from mimic_jax.report.drawing import Drawing
from mimic_jax.runtime.errors import UserError

SCALES = (4.0, 2.0, 1.0, 0.5)  # cells to a patch's side that the published decoders know
PUBLISHED_DEPTH = 7  # from which on the published taps rise
# PyTorch's, of the convolutions that the published decoders end in: uniform within ±1/√n, of n inputs, or in one that enlarges outputs
BY_INPUTS = nnx.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
BY_OUTPUTS = nnx.initializers.variance_scaling(1 / 3, 'fan_out', 'uniform')


def taps_of(depth: int, count: int) -> tuple[int, ...]:
  """Returns the blocks, from 0, behind which tokens are taken: 1, 3, depth − 3 and depth − 1 as published.

  Of fewer than 7 blocks, where these do not rise, and for another count: the last of each of `count` equal parts, so that four
  blocks are all tapped.
  """
  if count == len(SCALES) and depth >= PUBLISHED_DEPTH:
    return 1, 3, depth - 3, depth - 1
  return tuple(math.ceil(depth * k / count) - 1 for k in range(1, count + 1))


def cell_weights(mask: jax.Array, grid: int, scale: float) -> jax.Array:
  """Returns the share of each cell that was removed, float32 [B, L·scale²], by whether each patch was, bool [B, L]."""
  x = mask.astype(jnp.float32).reshape(-1, grid, grid)
  if scale >= 1:
    x = jnp.repeat(jnp.repeat(x, int(scale), axis=1), int(scale), axis=2)
  else:
    side = round(1 / scale)
    x = x.reshape(-1, grid // side, side, grid // side, side).mean(axis=(2, 4))
  return x.reshape(x.shape[0], -1)


class Enlarge(nnx.Module):
  """A transposed convolution of 2 × 2 and stride 2: each place becomes four, by a product of its own for each of them."""

  def __init__(self, in_features: int, out_features: int, dtype: str, rngs: nnx.Rngs):
    self.kernel = nnx.Param(BY_OUTPUTS(rngs.params(), (in_features, 4 * out_features), jnp.float32))
    self.bias = nnx.Param(jnp.zeros(out_features))
    self.dtype = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, h, w, in] to [B, 2·h, 2·w, out]."""
    B, h, w, D = x.shape
    x = x.reshape(B, h * w, D).astype(self.dtype) @ self.kernel[...].astype(self.dtype)
    return vit.unpatchify(x, 2, (h, w)) + self.bias[...][None, None, None].astype(self.dtype)


class Prediction(nnx.Module):
  """From the decoded patches to the cells of a scale: enlarged by transposed convolutions, or averaged; then a Linear.

  Each enlargement halves the width; between two of them stand LayerNorm and GELU.
  """

  def __init__(self, config: vit.Config, scale: float, out_features: int, rngs: nnx.Rngs):
    self.grid, self.side = config.grid, round(1 / min(scale, 1.0))
    D, dtype, eps = config.dim, jnp.dtype(config.dtype), config.layer_norm_eps
    up, norms = [], []
    for _ in range(round(math.log2(max(scale, 1.0)))):
      if up:
        norms.append(nnx.LayerNorm(D, epsilon=eps, dtype=dtype, use_fast_variance=False, rngs=rngs))
      up.append(Enlarge(D, D // 2, config.dtype, rngs))
      D //= 2
    self.up, self.norms = nnx.List(up), nnx.List(norms)
    self.out = nnx.Linear(D, out_features, dtype=dtype, kernel_init=BY_INPUTS, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps patches [B, L, D] to cells [B, L·scale², F], row by row."""
    B = x.shape[0]
    x = x.reshape(B, self.grid, self.grid, -1)
    for n, enlarge in enumerate(self.up):
      x = enlarge(jax.nn.gelu(self.norms[n - 1](x), approximate=False) if n else x)
    if self.side > 1:
      n = self.grid // self.side
      x = x.reshape(B, n, self.side, n, self.side, -1).mean(axis=(2, 4))
    return self.out(x.reshape(B, -1, x.shape[-1]))


def prediction_flops(config: vit.Config, scale: float, out_features: int) -> int:
  """Returns what `Prediction` takes for a picture, forward."""
  D, places, total = config.dim, config.grid**2, 0
  for _ in range(round(math.log2(max(scale, 1.0)))):
    total += flops.linear(places, D, 2 * D)  # four places of half the width
    D, places = D // 2, 4 * places
  return total + flops.linear(round(config.grid * scale) ** 2, D, out_features)


class LocalMaskedModel(nnx.Module):
  """Encoder, a LayerNorm for each tap and a decoder for each.

  The last tap is the last block: its norm is the encoder's own, which later stages know; `norms` are those before it.
  """

  def __init__(
    self,
    config: vit.Config,
    decoder_config: vit.Config,
    taps: Sequence[int],
    scales: Sequence[float],
    features: int,
    rngs: nnx.Rngs,
  ):
    self.taps = tuple(taps)
    self.encoder = vit.Encoder(config, rngs=rngs)
    self.norms = nnx.List([vit.layer_norm(config, config.dtype, rngs) for _ in taps[:-1]])
    self.decoders = nnx.List(
      [
        decoder.Decoder(
          config.dim,
          decoder_config,
          rngs,
          lambda rngs, scale=scale: Prediction(decoder_config, scale, features, rngs),
        )
        for scale in scales
      ]
    )

  def __call__(
    self, images: jax.Array, masks: masking.Masks, key: jax.Array | None = None
  ) -> list[jax.Array]:
    """Predicts the cells of every scale, float32 [B, L·scale², F], of images [B, S, S, 3] from the kept patches."""
    tapped = self.encoder.tapped(images, self.taps, key=key, keep=masks.keep)
    normed = [norm(x) for norm, x in zip([*self.norms, self.encoder.norm], tapped, strict=True)]
    return [
      decode(x, masks.restore).astype(jnp.float32) for decode, x in zip(self.decoders, normed, strict=True)
    ]


class Objective(masked_autoencoding.Objective):
  """LocalMIM: MAE's crops, masks and training with other targets; see base.py for the contract."""

  CITES: ClassVar = {'wang2023masked': citations.ENTRIES['wang2023masked']}
  section: ClassVar = 'local_mim'
  title: ClassVar = 'LocalMIM'
  RANGES: ClassVar = {
    'local_mim.mask_ratio': (0.01, 0.99),
    'local_mim.bins': (1, 360),
    'local_mim.decoder_depth': (1, float('inf')),
  }
  FIGURES: ClassVar = {
    'loss': base.Figure('Loss', unit='sum of mean squared errors'),
    **{f'scale_{s:g}': base.Figure(f"{s:g} cells to a patch's side", term=True) for s in SCALES},
  }

  # of MAE's decoder
  notes = base.Objective.notes
  facts = base.Objective.facts

  @classmethod
  def defaults(cls) -> ConfigDict:
    """Returns LocalMIM's recipe for ViT-B on ImageNet-1K (its repository's README and defaults)."""
    s = super().defaults().unlock()
    del s.mae
    s.objective = 'local_mim'
    s.batch_images = 2048
    s.local_mim = ConfigDict()
    s.local_mim.mask_ratio = 0.75
    s.local_mim.scales = SCALES  # cells to a patch's side, of each decoder; the first: of the lowest block
    s.local_mim.bins = 9  # of orientation
    s.local_mim.decoder_dim = 256
    s.local_mim.decoder_depth = 1
    s.local_mim.decoder_heads = 8
    s.optim.blr = 2e-4
    s.optim.min_lr = 1e-6
    return s.lock()

  def __init__(self, stage: Mapping[str, Any], model: Mapping[str, Any], class_names: tuple[str, ...]):
    super().__init__(stage, model, class_names)
    local = stage['local_mim']
    self.bins = local['bins']
    self.scales = _scales(local['scales'], self.config)
    self.taps = taps_of(self.config.depth, len(self.scales))
    self.cells = [round(self.config.patch_size / scale) for scale in self.scales]

  @classmethod
  def uses(cls, facts: Mapping[str, Any], tensors: Mapping[str, Any]) -> list[tuple[str, ConfigDict]]:
    """Pre-training with decoders of the file's own size, where it has some."""
    del facts
    if 'decoders/0/blocks/mlp/fc1/kernel' not in tensors:
      return []
    s = cls.defaults()
    s.local_mim.decoder_depth, s.local_mim.decoder_dim = tensors['decoders/0/blocks/mlp/fc1/kernel'].shape[:2]
    s.local_mim.decoder_heads = models.largest_divisor(s.local_mim.decoder_dim, s.local_mim.decoder_heads)
    if 'decoders/0/pred/out/bias' in tensors:
      s.local_mim.bins = tensors['decoders/0/pred/out/bias'].size // 3
    return [('LocalMIM pre-training', s)]

  def flops_per_image(self) -> float:
    """Returns those of the encoder on the kept patches and of the decoders on all; the targets have no products."""
    kept, c = masking.kept_patches(self.config.grid**2, self.mask_ratio), self.decoder_config
    before = decoder.flops_before_prediction(self.config.dim, c, kept)
    decoders = [before + prediction_flops(c, scale, 3 * self.bins) for scale in self.scales]
    return flops.TRAINING * (self.config.flops(kept) + sum(decoders))

  def init(self, key: jax.Array) -> LocalMaskedModel:
    """Returns a fresh model."""
    return LocalMaskedModel(
      self.config, self.decoder_config, self.taps, self.scales, 3 * self.bins, rngs=nnx.Rngs(key)
    )

  def loss(
    self, model: LocalMaskedModel, batch: Batch, key: jax.Array, step: jax.Array, total_steps: int
  ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The sum over the scales of squared errors, each the mean over the removed cells; one removed in part counts by its share.

    Returns:
      The loss, float32 [], and that of each scale, 'scale_4' and so on.
    """
    del step, total_steps
    mask_key, drop_key = jax.random.split(key)
    images = batch['image'][:, 0]
    masks = masking.mask_ids(mask_key, images.shape[0], self.config.grid**2, self.mask_ratio)
    terms = [
      losses.masked_mse(pred, target, weights)
      for pred, target, weights in zip(
        model(images, masks, drop_key), self.targets_of(images), self._weights(masks), strict=True
      )
    ]
    return sum(terms), {f'scale_{s:g}': term for s, term in zip(self.scales, terms, strict=True)}

  def targets_of(self, images: jax.Array) -> list[jax.Array]:
    """Returns what is to be predicted of images [B, S, S, 3] at each scale, float32 [B, L·scale², F]; F is (colour, bin)."""
    found = hog.hog(images, self.cells, self.bins)
    return [x.reshape(x.shape[0], -1, 3 * self.bins) for x in found]

  def evaluate(self, model: LocalMaskedModel, batch: Batch) -> dict[str, dict[str, jax.Array]]:
    """Returns the sum of the images' losses under masks that depend on an image's index in its source alone."""
    images, there = self._seen(batch['image']), batch['mask']
    masks = masking.fixed_masks(batch['index'], self.config.grid**2, self.mask_ratio)
    sums = {}
    each = jax.vmap(losses.masked_mse)
    for scale, pred, target, weights in zip(
      self.scales, model(images, masks), self.targets_of(images), self._weights(masks), strict=True
    ):
      term = each(pred[:, None], target[:, None], weights[:, None])
      sums[f'scale_{scale:g}'] = (jnp.sum(jnp.where(there, term, 0.0)), jnp.sum(there))
    total = sum(value for value, _ in sums.values())
    return {'sums': {'loss': (total, jnp.sum(there)), **sums}, 'outputs': {}}

  def draw(self, model: LocalMaskedModel, batch: Batch, key: jax.Array) -> dict[str, Drawing]:
    """Returns of a few images what the encoder sees, the histograms predicted from it, the true ones, the original."""
    template, params, rest = models.split(model, self.trainable)
    pictures = jax.device_get(
      self._pictures(template, params, rest, batch['image'][: masked_autoencoding.ROWS], key)
    )
    n = self._drawn
    drawing = Drawing(
      'Oriented gradients',
      f'{self.mask_ratio:.0%} of the patches are removed (grey). From the others the decoder behind block {self.taps[n] + 1} '
      f'predicts histograms of oriented gradients over cells of {self.cells[n]} × {self.cells[n]} pixels: a stroke for each '
      'direction of edges, as bright as there is of it, red, green and blue by themselves. Visible cells are shown as they are.',
      augment.to_uint8(pictures, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
      ('masked', 'predicted', 'true', 'original'),
    )
    return {'oriented_gradients': drawing}

  @property
  def _drawn(self) -> int:
    """The number of the scale whose cells are nearest to a patch: strokes want some pixels."""
    return min(range(len(self.scales)), key=lambda n: abs(math.log2(self.scales[n])))

  def _weights(self, masks: masking.Masks) -> list[jax.Array]:
    return [cell_weights(masks.mask, self.config.grid, scale) for scale in self.scales]

  def _draw(
    self, template: models.Template, params: Any, rest: Any, images: jax.Array, key: jax.Array
  ) -> jax.Array:
    """Returns pictures, float32 [B, 4, S, S, 3] of 0 to 1: masked, predicted, true, original."""
    model, n, a = models.merge(template, params, rest), self._drawn, self.stage['augment']
    images = self._seen(images)
    B, p, grid = images.shape[0], self.config.patch_size, (self.config.grid, self.config.grid)
    masks = masking.mask_ids(key, B, self.config.grid**2, self.mask_ratio)
    true = self.targets_of(images)[n]
    pred = jnp.where(self._weights(masks)[n][:, :, None] > 0, model(images, masks)[n], true)
    side = self.config.image_size // self.cells[n]
    drawn = [hog.glyphs(x.reshape(B, side, side, 3, self.bins), self.cells[n]) for x in (pred, true)]
    # 0 is the mean colour of the data, a grey
    seen = jnp.where(masks.mask[:, :, None], 0.0, vit.patchify(images, p))
    mean, std = (jnp.asarray(a[k])[None, None, None] for k in ('mean', 'std'))
    masked, original = (x * std + mean for x in (vit.unpatchify(seen, p, grid), images))
    return jnp.stack([masked, *drawn, original], axis=1)


def _scales(given: Sequence[float], config: vit.Config) -> tuple[float, ...]:
  """Checks the scales against the encoder; returns them."""
  scales = tuple(given)
  if not scales or not set(scales) <= set(SCALES) or list(scales) != sorted(set(scales), reverse=True):
    raise UserError(f'local_mim.scales is {scales}; expected some of {SCALES}, falling')
  for scale in scales:
    if config.patch_size % scale or (config.grid * scale) % 1:
      raise UserError(
        f'local_mim.scales has {scale:g}, and model.image_size {config.image_size} has {config.grid} patches of '
        f'{config.patch_size} pixels a side; expected scales that divide a patch, or the patches, into whole cells'
      )
  if config.depth < len(scales):
    raise UserError(
      f'local_mim.scales has {len(scales)}, each for a block of its own, and the encoder has {config.depth} blocks; expected '
      'fewer scales or a deeper model.depth'
    )
  return scales

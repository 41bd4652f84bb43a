"""Mixup and CutMix of the multiview batch on the device (P §III-B, algorithm 1: Mix(x̃), ỹ).

All draws are for the global batch from one key; nothing depends on how the batch is sharded. The views of an image stay
on their own axis, x is [B, V, H, W, C]; a *sample* is one of the V·B crops.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mimic_jax.runtime import errors, sharding

PARTNERS = ('shift', 'flip', 'permutation', 'random')
PER = ('batch', 'sample')
CUTMIX_LABELS = ('area', 'raw')


class Mixed(NamedTuple):
  """A mixed batch.

  Attributes:
    x: [B, V, H, W, C], of the dtype that came in.
    y: float32 [B, V, K], `coefficient` · own label + (1 − `coefficient`) · the partner's.
    coefficient: float32 [B, V], weight of the own image as used in the label; 1 when the batch wasn't mixed.
    partner: int32 [B, V, 2], image and view index of the crop mixed in; the sample itself when the batch wasn't mixed.
    is_cutmix: bool [].
    same_crop_pairs: float32 [], share of the samples for which another one mixes the very same unordered pair of crops.
  """

  x: jax.Array
  y: jax.Array
  coefficient: jax.Array
  partner: jax.Array
  is_cutmix: jax.Array
  same_crop_pairs: jax.Array


def _own(B: int, V: int) -> jax.Array:
  """Returns int32 [B, V, 2]: each sample's own image and view index."""
  return jnp.stack(jnp.meshgrid(jnp.arange(B), jnp.arange(V), indexing='ij'), axis=-1).astype(jnp.int32)


def partners(key: jax.Array, B: int, V: int, kind: str) -> jax.Array:
  """Draws which crop each sample is mixed with; P is silent about it.

  Args:
    key: of the whole batch.
    B: images.
    V: views of each.
    kind: one of
      'shift': image i + s (mod B), same view, with one s uniform in [1, B − 1]: both views of an image get the same mixed
        label, so every anchor has a positive. For even B, s = B/2 (one batch in B − 1) pairs i with i + s both ways.
      'flip': timm's. Over the samples in view-major order, j = v·B + i, sample j takes V·B − 1 − j: image B − 1 − i of view
        V − 1 − v, which takes it in turn. Draws nothing.
      'permutation': one random permutation of the images, same view; may leave images where they are.
      'random': a random permutation of all V·B samples; may leave samples where they are.

  Returns:
    int32 [B, V, 2]: image and view index. With B = 1 'shift' returns the sample itself: there is nothing to mix with.

  Raises:
    errors.UserError: on another kind.
  """
  errors.one_of('mix.partner', kind, PARTNERS)
  own = _own(B, V)
  image, view = own[..., 0], own[..., 1]
  if kind == 'shift':
    image = (image + jax.random.randint(key, (), 1, max(B, 2))) % B
  elif kind == 'flip':
    image, view = B - 1 - image, V - 1 - view
  elif kind == 'permutation':
    image = jax.random.permutation(key, B)[image]
  else:
    j = jax.random.permutation(key, V * B).reshape(B, V)
    image, view = j // V, j % V
  return jnp.stack([image, view], axis=-1).astype(jnp.int32)


def same_crop_pairs(partner: jax.Array) -> jax.Array:
  """Returns the share of samples for which another sample mixes the very same unordered pair of crops.

  Each sample is one of its own pair, so only its partner can have the same pair, and only by taking it in turn. 'flip'
  gives 1; 'shift' gives 0, but 1 for s = B/2, on average 1/(B − 1) for even B.

  Args:
    partner: int [B, V, 2], as from `partners`.

  Returns:
    float32 [], 0..1.
  """
  own = _own(*partner.shape[:2])
  back = partner[partner[..., 0], partner[..., 1]]
  twin = (back == own).all(axis=-1) & (partner != own).any(axis=-1)
  return twin.mean(dtype=jnp.float32)


def _others(x: jax.Array, y: jax.Array, taken: jax.Array, kind: str) -> tuple[jax.Array, jax.Array]:
  """Returns the crops [B, V, H, W, C] and labels [B, V, K] that `taken` names, which is of this kind.

  A shift moves rows between devices; for the other kinds each device gets the whole batch.
  """
  if kind != 'shift':
    return x[taken[..., 0], taken[..., 1]], y[taken[..., 0]]
  shift = taken[0, 0, 0]  # what image 0 is mixed with
  return sharding.rolled(x, shift), jnp.broadcast_to(
    sharding.rolled(y, shift)[:, None], (*x.shape[:2], y.shape[-1])
  )


def cutmix_box(centre: jax.Array, coefficient: jax.Array, height: int, width: int) -> jax.Array:
  """Returns the box that CutMix (arXiv 1905.04899) fills with the partner: sides √(1 − λ) of the picture's, clipped.

  As in its authors' code, sides and centre are rounded down to whole pixels and a half side reaches out on either hand.

  Args:
    centre: [..., 2] uniform numbers in [0, 1): down and across.
    coefficient: [...], λ in 0..1, the share that the own image is to keep.
    height: of the picture in pixels.
    width: likewise.

  Returns:
    int32 [..., 4]: top, left, bottom, right; the last two are exclusive.
  """
  cut = jnp.sqrt(1.0 - coefficient)
  edges = []
  for u, side in ((centre[..., 0], height), (centre[..., 1], width)):
    half = (cut * side).astype(jnp.int32) // 2
    at = jnp.minimum((u * side).astype(jnp.int32), side - 1)  # the product may round up to `side`
    edges.append((jnp.clip(at - half, 0, side), jnp.clip(at + half, 0, side)))
  (top, bottom), (left, right) = edges
  return jnp.stack([top, left, bottom, right], axis=-1)


def _outside(box: jax.Array, height: int, width: int) -> jax.Array:
  """Returns bool [B, V, height, width], False inside each box of int [B, V, 4]."""
  top, left, bottom, right = (box[..., k, None] for k in range(4))
  row, column = jnp.arange(height)[None, None, :], jnp.arange(width)[None, None, :]
  rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
  return ~(rows[..., :, None] & columns[..., None, :])


def _check_alphas(switch_probability: float, mixup_alpha: float, cutmix_alpha: float) -> None:
  """Raises a UserError if a kind of mixing that may be drawn has no Beta distribution."""
  used = {'mixup': switch_probability < 1, 'cutmix': switch_probability > 0}
  for kind, alpha in (('mixup', mixup_alpha), ('cutmix', cutmix_alpha)):
    if used[kind] and not alpha > 0:
      raise errors.UserError(
        f'mix.{kind}_alpha is {alpha}; expected a number above 0 (mix.switch_probability = {switch_probability} '
        f'draws {kind}, mix.probability = 0 switches mixing off)'
      )


def mix(
  key: jax.Array,
  x: jax.Array,
  y: jax.Array,
  *,
  probability: float,
  switch_probability: float,
  mixup_alpha: float,
  cutmix_alpha: float,
  partner: str,
  coefficient: str,
  box: str,
  cutmix_label: str,
) -> Mixed:
  """Mixes the multiview batch: Mix(x̃) and ỹ of algorithm 1, x̃ = λ x_a + (1 − λ) x_b or its CutMix counterpart.

  Readings taken (P: "a combination of Mixup and CutMix", "we sample a coefficient"): a batch is mixed by one of the two,
  drawn for the batch; λ ~ Beta(α, α) is the weight of the own crop. With 'sample' each of the V·B crops has its own λ, or
  its box its own place: the views of an image then have different labels and an anchor may be without a positive.

  Args:
    key: of the whole batch.
    x: float [B, V, H, W, C].
    y: float [B, K] labels of the images, rows sum to 1.
    probability: that the batch is mixed at all (static, as the following three).
    switch_probability: that a mixed batch gets CutMix rather than Mixup.
    mixup_alpha: α of Mixup's coefficient, > 0.
    cutmix_alpha: likewise of CutMix's.
    partner: 'shift', 'flip', 'permutation' or 'random', see `partners`.
    coefficient: one λ per 'batch' or per 'sample'.
    box: the centre of CutMix's box is drawn per 'batch' or per 'sample'; its size always follows λ.
    cutmix_label: 'area' (λ of the label = 1 − pasted pixels / all pixels) or 'raw' (as drawn).

  Returns:
    Mixed; the very input, with λ = 1, when the batch isn't mixed.

  Raises:
    errors.UserError: on another string option, or an α that is not above 0.
  """
  errors.one_of('mix.coefficient', coefficient, PER)
  errors.one_of('mix.box', box, PER)
  errors.one_of('mix.cutmix_label', cutmix_label, CUTMIX_LABELS)
  B, V, H, W, _ = x.shape
  y = y.astype(jnp.float32)
  if probability <= 0:
    views = jnp.broadcast_to(y[:, None, :], (B, V, y.shape[-1]))
    return Mixed(x, views, jnp.ones((B, V)), _own(B, V), jnp.asarray(False), jnp.asarray(0.0))
  _check_alphas(switch_probability, mixup_alpha, cutmix_alpha)
  k_mixed, k_cutmix, k_mixup, k_cut, k_centre, k_partner = jax.random.split(key, 6)
  mixed = jax.random.bernoulli(k_mixed, probability)
  is_cutmix = mixed & jax.random.bernoulli(k_cutmix, switch_probability)
  taken = sharding.everywhere(jnp.where(mixed, partners(k_partner, B, V, partner), _own(B, V)))

  one = {'batch': (1, 1), 'sample': (B, V)}
  lam_mixup = jax.random.beta(k_mixup, mixup_alpha, mixup_alpha, one[coefficient])
  lam_cutmix = jax.random.beta(k_cut, cutmix_alpha, cutmix_alpha, one[coefficient])
  lam_cutmix = jnp.broadcast_to(lam_cutmix, (B, V))
  centre = jnp.broadcast_to(jax.random.uniform(k_centre, (*one[box], 2)), (B, V, 2))
  cut = cutmix_box(centre, lam_cutmix, H, W)
  if cutmix_label == 'area':
    area = (cut[..., 2] - cut[..., 0]) * (cut[..., 3] - cut[..., 1])
    lam_cutmix = 1.0 - area / (H * W)

  lam = jnp.where(is_cutmix, lam_cutmix, jnp.where(mixed, lam_mixup, 1.0))
  # What each pixel keeps of the own crop: λ, or 0 and 1. One pass over the pictures serves all three cases.
  keep = jnp.where(is_cutmix, _outside(cut, H, W), lam[..., None, None]).astype(x.dtype)[..., None]
  other_x, other_y = _others(x, y, taken, partner)
  x = keep * x + (1 - keep) * other_x
  y = lam[..., None] * y[:, None, :] + (1.0 - lam[..., None]) * other_y
  return Mixed(x, y, lam, taken, is_cutmix, same_crop_pairs(taken))

"""The losses, as pure functions on arrays: one contrastive loss for eqs. 5, 6 and 11, MAE's and the soft cross-entropy.

P is the paper (arXiv 2401.07245). Everything is computed in float32 whatever comes in, over the global batch, and works
under jit with the string options static.
"""

import jax
import jax.numpy as jnp
from jax import lax

from mimic_jax.runtime import errors, sharding

DISTANCES = ('tv', 'l1', 'l2', 'linf')
POSITIVES = ('hard', 'soft', 'argmax')
REDUCTIONS = ('mean', 'sum', 'mean_with_positives')
REGRESSIONS = ('ccc', 'mse', 'mae', 'binary')

TOLERANCE = 1e-6  # on the threshold: λ = t must count as "at least" whatever the rounding of the labels


def _are_ids(y: jax.Array) -> bool:
  return jnp.issubdtype(y.dtype, jnp.integer)


def label_distance(a: jax.Array, b: jax.Array, kind: str) -> jax.Array:
  """Returns |y_a − y_i| of P eq. 13 for every pair; P leaves the norm open, ours is total variation.

  Args:
    a: float [A, K] soft labels, or int [A] ids (of classes or of instances).
    b: float [C, K] or int [C], of the same sort as `a`.
    kind: 'tv' (half of L1: the share of label mass that differs), 'l1', 'l2' or 'linf'.

  Returns:
    float32 [A, C]; between ids 0 where they are equal and 1 elsewhere, whatever `kind`.

  Raises:
    errors.UserError: on another kind.
    ValueError: if one side is ids and the other soft labels.
  """
  errors.one_of('contrast.distance', kind, DISTANCES)
  if _are_ids(a) != _are_ids(b):
    raise ValueError(f'labels are {a.dtype} and {b.dtype}: both must be ids or both soft labels')
  if _are_ids(a):
    return (a[:, None] != b[None, :]).astype(jnp.float32)
  # XLA fuses the difference into the reduction: [A, C, K] is never stored.
  gap = jnp.abs(a.astype(jnp.float32)[:, None, :] - b.astype(jnp.float32)[None, :, :])
  if kind == 'l2':
    return jnp.sqrt(jnp.square(gap).sum(axis=-1))
  if kind == 'linf':
    return gap.max(axis=-1)
  return gap.sum(axis=-1) * (0.5 if kind == 'tv' else 1.0)


def _dominant(y: jax.Array) -> jax.Array:
  """Returns the ids [N] themselves, or the arg max of soft labels (ties to the first)."""
  return y if _are_ids(y) else jnp.argmax(y, axis=-1)


def _overlap(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns Σ_k min(y_a, y_i) [A, C], 1 for equal labels and 0 for disjoint ones; for ids whether they are equal."""
  if _are_ids(a):
    return 1.0 - label_distance(a, b, 'tv')
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  return jnp.minimum(a[:, None, :], b[None, :, :]).sum(axis=-1)


def _positive_weights(
  anchor_y: jax.Array, contrast_y: jax.Array, threshold: float, distance: str, positives: str
) -> jax.Array:
  """Returns float32 [A, C]: how much of a positive each candidate is by its label, self included."""
  if positives == 'soft':
    return _overlap(anchor_y, contrast_y)
  if positives == 'argmax':
    same = _dominant(anchor_y)[:, None] == _dominant(contrast_y)[None, :]
    return same.astype(jnp.float32)
  near = label_distance(anchor_y, contrast_y, distance) <= threshold + TOLERANCE
  return near.astype(jnp.float32)


def _log_softmax(cosine: jax.Array, temperature: float, allowed: jax.Array) -> jax.Array:
  """Returns the log-softmax of cosine / τ over each row's allowed entries; finite everywhere, 0 where not allowed.

  What isn't allowed is replaced before the exponential and again after it, so that no gradient ever meets an infinity,
  not even in a row that allows nothing. The maximum is subtracted before the division: after it, a fused multiply-add
  can leave a rounding error above 0 that the exponential turns into an infinity.
  """
  largest = lax.stop_gradient(jnp.where(allowed, cosine, -jnp.inf).max(axis=-1, keepdims=True))
  shifted = jnp.where(allowed, cosine - jnp.where(jnp.isneginf(largest), 0.0, largest), 0.0) / temperature
  total = jnp.where(allowed, jnp.exp(shifted), 0.0).sum(axis=-1, keepdims=True)
  log_total = jnp.log(jnp.where(allowed.any(axis=-1, keepdims=True), total, 1.0))
  return jnp.where(allowed, shifted - log_total, 0.0)


def contrastive_loss(
  anchor_z: jax.Array,
  anchor_y: jax.Array,
  contrast_z: jax.Array,
  contrast_y: jax.Array,
  self_mask: jax.Array,
  *,
  temperature: float = 0.07,
  threshold: float = 0.5,
  distance: str = 'tv',
  positives: str = 'hard',
  feature_margin: float = -1.0,
  base_temperature: float = 0.0,
  reduction: str = 'mean',
  zeroed: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Contrasts every anchor with the candidates: P eqs. 5, 6 and 11 by what is given as labels (algorithm 1 line 13).

  For anchor i with positives P(i) and all candidates a but itself:

    ℓ_i = −1/|P(i)| Σ_{p ∈ P(i)} log( exp(z_i·z_p/τ) / Σ_{a ≠ i} exp(z_i·z_a/τ) )

  With instance ids as labels it is L_sscl (eq. 5), with class ids L_scl (eq. 6), with mixed soft labels L_mscl (eq. 11),
  whose positives have |y_a − y_i| ≤ t (eq. 13). Readings taken where P is silent: the norm is total variation, compared
  with t + 1e-6; label distance alone decides; the loss is the mean over anchors, without a base temperature; an anchor
  without a positive adds 0 and stays in the mean.

  Args:
    anchor_z: float [A, D] unit vectors.
    anchor_y: float [A, K] soft labels that sum to 1, or int [A] ids.
    contrast_z: float [C, D] unit vectors.
    contrast_y: float [C, K] or int [C], of the same sort as `anchor_y`.
    self_mask: bool [A, C], True where the candidate is the anchor itself: neither positive nor in the denominator.
    temperature: τ > 0.
    threshold: t of eq. 13, in units of `distance`; used by 'hard' only.
    distance: 'tv', 'l1', 'l2' or 'linf'; used by 'hard' only.
    positives: 'hard' (by threshold), 'soft' (every candidate, weighted by Σ_k min(y_a, y_i) over the sum of these
      weights) or 'argmax' (same dominant class, ties to the first).
    feature_margin: when above −1, positives must also have cosine(z_i, z_a) ≥ this (the "r_ab ≈ r_i" of P's cases 1–3).
    base_temperature: when not 0, the loss is multiplied by τ / base_temperature (SupContrast).
    reduction: over anchors: 'mean', 'sum', or 'mean_with_positives', the mean of those that have one.
    zeroed: bool [A, C], pairs whose cosine counts as 0, whatever it is (SSL-FER's older way with negatives that are none).

  Returns:
    The loss, float32 [], and float32 scalars: 'anchors_without_positive' (share of the anchors), 'mean_positives' (per
    anchor; soft ones count by weight), 'cross_class_positives' (share of the positive pairs, by weight, whose dominant
    labels differ; 0 when there are none).

  Raises:
    errors.UserError: on another distance, positives or reduction.
    ValueError: if one side is ids and the other soft labels.
  """
  errors.one_of('contrast.distance', distance, DISTANCES)
  errors.one_of('contrast.positives', positives, POSITIVES)
  errors.one_of('contrast.reduction', reduction, REDUCTIONS)
  candidate = ~self_mask
  # each device has its anchors' rows of what follows, and all candidates
  anchor_z = sharding.along_batch(anchor_z)
  # τ multiplies the rounding of the product by 14: TF32 or bfloat16 passes would show.
  cosine = jnp.matmul(
    anchor_z.astype(jnp.float32), contrast_z.astype(jnp.float32).T, precision=lax.Precision.HIGHEST
  )
  if zeroed is not None:
    cosine = jnp.where(zeroed, 0.0, cosine)
  log_probability = _log_softmax(cosine, temperature, candidate)

  weight = _positive_weights(anchor_y, contrast_y, threshold, distance, positives)
  weight = lax.stop_gradient(jnp.where(candidate, weight, 0.0))
  if feature_margin > -1.0:
    weight = jnp.where(cosine >= feature_margin, weight, 0.0)
  total = weight.sum(axis=-1)
  has_positive = total > 0
  per_anchor = -(weight * log_probability).sum(axis=-1) / jnp.where(has_positive, total, 1.0)

  loss = per_anchor.sum()
  if reduction == 'mean':
    loss = loss / per_anchor.size
  elif reduction == 'mean_with_positives':
    loss = loss / jnp.maximum(has_positive.sum(), 1)
  if base_temperature:
    loss = loss * (temperature / base_temperature)

  crosses = _dominant(anchor_y)[:, None] != _dominant(contrast_y)[None, :]
  pairs = total.sum()
  stats = {
    'anchors_without_positive': 1.0 - has_positive.mean(dtype=jnp.float32),
    'mean_positives': total.mean(),
    'cross_class_positives': jnp.where(crosses, weight, 0.0).sum() / jnp.where(pairs > 0, pairs, 1.0),
  }
  return loss, stats


def masked_nt_xent(
  z: jax.Array,
  u: jax.Array,
  clip: jax.Array,
  *,
  temperature: float,
  form: str,
  share: float,
  threshold: float,
  spare: bool,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """NT-Xent without negatives that look like the row: SSL-FER's MaskFN (arXiv 2210.03853).

  'argmax': for row i, f is the negative with the largest u_i · u_j, and N' its other negatives:
  −log s_ip / (s_ip + Σ_N') + share · (−log s_if / (s_if + Σ_N')), s = exp(z · z / τ), the mean over rows of both.
  'threshold': the cosine of a negative with u_i · u_j above it counts as 0, but of frames of the same clip.

  Args:
    z: float32 [N, dim] of length 1; rows 2k and 2k + 1 are each other's positives.
    u: float32 [N, E] of length 1, of eyes and mouth.
    clip: int [N], which clip a row is of.
    temperature: τ.
    form, share, threshold: as above.
    spare: 'argmax': whether f is never of the same clip.

  Returns:
    The loss, float32 [], and of 'threshold' the share 'alike' of the negatives that count as 0, of 'argmax' the share 'likest_in_clip' of rows
    whose f is of their own clip.
  """
  row = jnp.arange(len(z))
  itself, pair = row[:, None] == row[None], row // 2
  negative, near = pair[:, None] != pair[None], clip[:, None] == clip[None]
  alike = jnp.matmul(u, u.T, precision=lax.Precision.HIGHEST)
  if form == 'threshold':
    zeroed = negative & ~near & (alike > threshold)
    loss, _ = contrastive_loss(z, pair, z, pair, itself, temperature=temperature, zeroed=zeroed)
    return loss, {'alike': jnp.sum(zeroed) / jnp.sum(negative)}
  likest = jnp.argmax(jnp.where(negative & ~(near & spare), alike, -jnp.inf), axis=1)
  is_likest = likest[:, None] == row[None]
  first, _ = contrastive_loss(z, pair, z, pair, itself | is_likest, temperature=temperature)
  second, _ = contrastive_loss(z, likest, z, row, ~negative, temperature=temperature)
  return first + share * second, {'likest_in_clip': jnp.mean(jnp.any(is_likest & near, axis=1))}


def masked_mse(pred: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
  """MAE's loss (P eq. 2, read without its stray minus): squared error per patch, averaged over the removed patches.

  Args:
    pred: float [B, L, P].
    target: float [B, L, P].
    mask: bool or float [B, L], 1 where the patch was removed, or the share of it that was.

  Returns:
    float32 []; 0 if nothing was removed.
  """
  error = jnp.square(pred.astype(jnp.float32) - target.astype(jnp.float32)).mean(axis=-1)
  mask = mask.astype(jnp.float32)
  removed = mask.sum()
  return (error * mask).sum() / jnp.where(removed > 0, removed, 1.0)


def smoothed(y: jax.Array, share: float) -> jax.Array:
  """Takes a share of each label [N, K] and spreads it over all K classes, its own too (label smoothing, arXiv 1512.00567)."""
  return (1.0 - share) * y + share / y.shape[-1]


def soft_cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
  """Cross-entropy of soft labels, −Σ_k y_k log softmax(logits)_k, averaged over N (algorithm 1 line 12).

  Args:
    logits: float [N, K].
    y: float [N, K], rows sum to 1; no smoothing is added.

  Returns:
    float32 [].
  """
  log_probability = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  return -(y.astype(jnp.float32) * log_probability).sum(axis=-1).mean()


def rank_regularisation(importance: jax.Array, share: float, margin: float) -> tuple[jax.Array, jax.Array]:
  """SCN's rank regularisation, max(0, δ − (ᾱ_high − ᾱ_low)) (arXiv 2002.10392 §3.3).

  Args:
    importance: float [N], α of each sample, 0..1.
    share: β; the int(β·N) samples with the largest α are the high group (ties to the first), which must leave both
      groups at least one.
    margin: δ ≥ 0 between the means of the groups.

  Returns:
    The loss, float32 [], and which samples are in the low group, bool [N].
  """
  importance = importance.astype(jnp.float32)
  high = int(share * len(importance))
  rank = jnp.argsort(jnp.argsort(-importance))
  low = rank >= high
  gap = jnp.where(low, 0.0, importance).sum() / high - jnp.where(low, importance, 0.0).sum() / (
    len(importance) - high
  )
  return jnp.maximum(0.0, margin - gap), low


def concordance(x: jax.Array, y: jax.Array, known: jax.Array) -> jax.Array:
  """Returns Lin's concordance correlation of each column: 2 s_xy / (s_x² + s_y² + (x̄ − ȳ)²), moments over N (Lin 1989).

  Args:
    x, y: [N, T], finite.
    known: bool [N, T]; other entries do not count.

  Returns:
    float32 [T]; 0 of a column with fewer than two known entries.
  """
  x, y, w = (a.astype(jnp.float32) for a in (x, y, known))
  n = jnp.maximum(w.sum(axis=0, keepdims=True), 1.0)
  mean_x, mean_y = ((a * w).sum(axis=0, keepdims=True) / n for a in (x, y))
  dx, dy = (x - mean_x) * w, (y - mean_y) * w
  spread = (dx * dx + dy * dy).sum(axis=0, keepdims=True) / n + jnp.square(mean_x - mean_y)
  covariance = (dx * dy).sum(axis=0, keepdims=True) / n
  return (2.0 * covariance / jnp.maximum(spread, 1e-12))[0]


def regression(kind: str, answer: jax.Array, target: jax.Array) -> jax.Array:
  """Returns each column's loss of answers to targets, of which NaN are unknown and add 0.

  Args:
    kind: 'ccc': 1 − concordance; 'mse': squared error; 'mae': absolute error; 'binary': cross-entropy of a logit and 0 or 1; the last three
      are sums over what is known, divided by N, so that no picture's weight depends on the others.
    answer: [N, T].
    target: [N, T].

  Returns:
    float32 [T].
  """
  known = jnp.isfinite(target)
  answer, target = answer.astype(jnp.float32), jnp.where(known, target, 0.0).astype(jnp.float32)
  if kind == 'ccc':
    return 1.0 - concordance(answer, target, known)
  each = {
    'mse': lambda: jnp.square(answer - target),
    'mae': lambda: jnp.abs(answer - target),
    'binary': lambda: jax.nn.softplus(answer) - target * answer,
  }[kind]()
  return jnp.where(known, each, 0.0).mean(axis=0)


def pairs_found(rows: jax.Array) -> jax.Array:
  """Returns the share of rows [2B, dim] of length 1, the two of a pair side by side, whose nearest other row is their pair's, float32 []."""
  number = jnp.arange(len(rows))
  cosine = jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
  nearest = jnp.argmax(jnp.where(number[:, None] == number[None], -jnp.inf, cosine), axis=1)
  return jnp.mean((nearest == number ^ 1).astype(jnp.float32))

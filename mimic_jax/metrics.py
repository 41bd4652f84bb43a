"""What a classifier scored, and answers that are numbers, counted exactly."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sklearn.metrics

from mimic_jax.runtime.errors import UserError

# What is measured of a target: of one answered with a number, and of one that is 0 or 1 and answered with the probability of 1. An
# objective's outputs (objectives/base.py) say by these words which it is: predicted_valence or chance_glasses, beside true_….
SCORES_OF = {
  'predicted': ('ccc', 'rmse', 'mae', 'pearson', 'sign_agreement'),
  'chance': ('binary_accuracy', 'balanced_accuracy'),
}


def dominant(labels: np.ndarray) -> np.ndarray:
  """Returns class ids int64 [N] of labels that are ids [N] or distributions [N, K]; ties go to the first class."""
  labels = np.asarray(labels)
  return labels.argmax(-1) if labels.ndim == 2 else labels.astype(np.int64)


def classification(labels: np.ndarray, logits: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
  """Returns the scores of `logits` [N, K] on `labels` (int [N], or float [N, K]) in float64, ready for JSON.

  Ties, in soft labels as in logits, go to the first class. Where a ratio is 0/0 it is 0: the precision of a class
  never predicted, the recall of a class without an example, and the F1 of either. Mean-class accuracy is over the classes that have examples; macro F1 over those that have
  examples or predictions.

  Returns:
    accuracy, mean_class_accuracy, macro_f1 and largest_class (what always answering the most frequent class would
    score), all 0..1; per_class {name: {recall, precision, f1, support}}; confusion [[int]], rows true and columns
    predicted; count.

  Raises:
    UserError: when there is no example, or a label is not one of the K classes.
    ValueError: when the shapes or the number of names do not fit.
  """
  truth, logits = dominant(labels), np.asarray(logits).astype(np.float64)
  classes = len(class_names)
  if logits.ndim != 2 or logits.shape != (len(truth), classes) or truth.ndim != 1:
    raise ValueError(
      f'labels {truth.shape} and logits {logits.shape} for {classes} classes; expected [N] and [N, K]'
    )
  if not len(truth):
    raise UserError(
      'there is no example to measure accuracy on; expected a split with at least one labelled picture'
    )
  wrong = np.flatnonzero((truth < 0) | (truth >= classes))
  if wrong.size:
    raise UserError(
      f'label {truth[wrong[0]]} of example {wrong[0]} is out of range; expected 0 to {classes - 1}'
    )

  guess, ids = logits.argmax(-1), range(classes)
  confusion = sklearn.metrics.confusion_matrix(truth, guess, labels=ids)
  precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(
    truth, guess, labels=ids, zero_division=0
  )
  return {
    'accuracy': float((guess == truth).mean()),
    'mean_class_accuracy': float(recall[support > 0].mean()),
    'macro_f1': float(f1[(support > 0) | (confusion.sum(0) > 0)].mean()),
    'largest_class': float(support.max() / len(truth)),
    'per_class': {
      str(name): {
        'recall': float(recall[k]),
        'precision': float(precision[k]),
        'f1': float(f1[k]),
        'support': int(support[k]),
      }
      for k, name in enumerate(class_names)
    },
    'confusion': confusion.tolist(),
    'count': len(truth),
  }


def calibration(labels: np.ndarray, logits: np.ndarray, bins: int = 15) -> dict[str, Any]:
  """Returns how far the probabilities of the answers are from how often these are right, ready for JSON.

  The expected calibration error of Guo et al. (2017, eq. 3): answers fall by their probability p into bins of equal width,
  (low, high]; ECE = Σ over bins of count / N · |share of right answers − mean p|.

  Args:
    labels: int [N], or float [N, K], whose largest entry counts.
    logits: [N, K].
    bins: how many.

  Returns:
    'ece', 0..1, and 'bins': of each low, high, count, and the means confidence and accuracy, None where count is 0.
  """
  logits = np.asarray(logits).astype(np.float64)
  chances = np.exp(logits - logits.max(axis=1, keepdims=True))
  sure = 1 / chances.sum(axis=1)  # the largest numerator is 1
  right = logits.argmax(axis=1) == dominant(labels)
  place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
  held, ece = [], 0.0
  for k in range(bins):
    mine = place == k
    count = int(mine.sum())
    confidence, accuracy = (float(v[mine].mean()) if count else None for v in (sure, right))
    ece += count / len(sure) * abs(accuracy - confidence) if count else 0.0
    held.append(
      {
        'low': k / bins,
        'high': (k + 1) / bins,
        'count': count,
        'confidence': confidence,
        'accuracy': accuracy,
      }
    )
  return {'ece': ece, 'bins': held}


def answered(outputs: Mapping[str, np.ndarray]) -> dict[str, str]:
  """Returns the targets that outputs answer, each with its kind, a key of SCORES_OF."""
  words = (name.partition('_') for name in outputs)
  return {name: kind for kind, _, name in words if kind in SCORES_OF and f'true_{name}' in outputs}


def scored(figures: Mapping[str, Any]) -> dict[str, str]:
  """Returns the targets whose scores stand among a split's figures (`of_targets`), each with its kind."""
  first = {f'{scores[0]}_': kind for kind, scores in SCORES_OF.items()}
  return {k.removeprefix(f): kind for k in figures for f, kind in first.items() if k.startswith(f)}


def moments(kind: str, truth: np.ndarray, answer: np.ndarray) -> np.ndarray:
  """Returns what each picture adds to the sums that scores are made of, float64 [N, M]; of finite truth and answer [N]."""
  x, y = np.asarray(truth, np.float64), np.asarray(answer, np.float64)
  one = np.ones(len(x))
  if kind == 'chance':
    right = (y > 0.5) == (x > 0.5)
    return np.stack([one, x, right, right * x], axis=1)
  agree = np.sign(x) == np.sign(y)
  centre = x.mean()  # one for both, which changes no score: squares of small numbers cancel less
  dx, dy = x - centre, y - centre
  return np.stack([one, dx, dy, dx * dx, dy * dy, dx * dy, np.abs(x - y), agree], axis=1)


def of_moments(kind: str, sums: np.ndarray) -> np.ndarray:
  """Returns the scores SCORES_OF[kind] of S sets of pictures, float64 [S, …], from sums of their moments [S, M]; 0/0 is 0.

  Concordance and Pearson's correlation have moments over N; sign agreement is the share of answers with the target's sign.
  """

  def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(len(sums)), where=b > 0)

  if kind == 'chance':
    n, ones, right, right_ones = sums.T
    recall = [ratio(right_ones, ones), ratio(right - right_ones, n - ones)]
    there = (ones > 0) * 1.0 + (n > ones)
    return np.stack([ratio(right, n), ratio(recall[0] + recall[1], there)], axis=1)
  n, x, y, xx, yy, xy, off, agree = (ratio(s, sums[:, 0]) if k else s for k, s in enumerate(sums.T))
  var_x, var_y, cov = np.maximum(xx - x * x, 0), np.maximum(yy - y * y, 0), xy - x * y
  ccc = ratio(2 * cov, var_x + var_y + (x - y) ** 2)
  rmse = np.sqrt(np.maximum(xx - 2 * xy + yy, 0))
  return np.stack([ccc, rmse, off, ratio(cov, np.sqrt(var_x * var_y)), agree], axis=1)


def known(outputs: Mapping[str, np.ndarray], name: str) -> np.ndarray:
  """Returns which pictures have a target of that name, int64."""
  return np.flatnonzero(np.isfinite(outputs[f'true_{name}']))


def of_targets(outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns the scores of every target that outputs answer, as ccc_valence, …, with count_valence, the pictures that have it.

  Raises:
    UserError: when no picture has a target.
  """
  found: dict[str, Any] = {}
  for name, kind in answered(outputs).items():
    rows = known(outputs, name)
    if not rows.size:
      raise UserError(f"no picture of the split has '{name}'; expected at least one")
    each = moments(kind, outputs[f'true_{name}'][rows], outputs[f'{kind}_{name}'][rows])
    scores = of_moments(kind, each.sum(axis=0, keepdims=True))[0]
    found |= {f'{score}_{name}': float(v) for score, v in zip(SCORES_OF[kind], scores)}
    found[f'count_{name}'] = len(rows)
  return found

"""What a classifier scored, counted exactly."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import sklearn.metrics

from mimic_jax.runtime.errors import UserError


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

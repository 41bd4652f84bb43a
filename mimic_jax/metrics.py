"""What a classifier scored, counted exactly, and where a run's numbers go: metrics.jsonl and TensorBoard."""

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorboardX
from absl import logging
from etils import epath

from mimic_jax.errors import UserError

REMOTE_SECONDS = 10.0  # between rewrites of a file in an object store, which limits writes to one object


def dominant(labels: np.ndarray) -> np.ndarray:
  """Returns class ids int64 [N] of labels that are ids [N] or distributions [N, K]; ties go to the first class."""
  labels = np.asarray(labels)
  return labels.argmax(-1) if labels.ndim == 2 else labels.astype(np.int64)


def classification(labels: np.ndarray, logits: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
  """Returns the scores of `logits` [N, K] on `labels` (int [N], or float [N, K]) in float64, ready for JSON.

  Ties, in soft labels as in logits, go to the first class. Where a ratio is 0/0 it is 0, as scikit-learn's
  zero_division=0 has it: the precision of a class never predicted, the recall of a class without an example, and the
  F1 of either. Mean-class accuracy is over the classes that have examples; macro F1 over those that have
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

  confusion = np.zeros((classes, classes), np.int64)
  np.add.at(confusion, (truth, logits.argmax(-1)), 1)
  hits = np.diag(confusion).astype(np.float64)
  support, predicted = confusion.sum(1), confusion.sum(0)
  recall, precision = _ratio(hits, support), _ratio(hits, predicted)
  f1 = _ratio(2 * hits, support + predicted)
  return {
    'accuracy': float(hits.sum() / len(truth)),
    'mean_class_accuracy': float(recall[support > 0].mean()),
    'macro_f1': float(f1[(support > 0) | (predicted > 0)].mean()),
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


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
  return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


def jsonable(value: Any) -> Any:
  """Returns `value` as what JSON can hold: arrays and device scalars as numbers or lists, NaN and ±inf as None."""
  if isinstance(value, Mapping):
    return {str(k): jsonable(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [jsonable(v) for v in value]
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if value is None or isinstance(value, (bool, int, str)):
    return value
  if hasattr(value, '__array__'):
    array = np.asarray(value)
    if array.dtype.kind == 'V':  # bfloat16 and its like, which tolist would not turn into numbers
      array = array.astype(np.float64)
    return jsonable(array.tolist())
  return str(value)


def is_remote(path: os.PathLike | str) -> bool:
  """Returns whether `path` lies in an object store (gs://, s3://), which can neither append nor rename cheaply."""
  return '://' in os.fspath(path)


def write_whole(path: epath.Path, text: str) -> None:
  """Writes `text` so that a reader sees the old file or the new one, never a part."""
  if is_remote(path):  # one object, put at once
    path.write_bytes(text.encode())
    return
  beside = path.parent / f'.{path.name}.{os.getpid()}'
  with open(beside, 'wb') as file:
    file.write(text.encode())
    file.flush()
    os.fsync(file.fileno())  # before the name: a machine that dies leaves the old file or the new one, too
  os.replace(beside, path)


def read_jsonl(path: epath.Path) -> list[dict[str, Any]]:
  """Returns the lines of a metrics.jsonl; [] when there is no file. A last line torn by a crash is left out.

  Raises:
    UserError: naming the file and the line, when another line is not a JSON object.
  """
  path = epath.Path(path)
  if not path.exists():
    return []
  rows = path.read_bytes().decode(errors='replace').split('\n')
  while rows and not rows[-1].strip():
    rows.pop()
  lines = []
  for number, row in enumerate(rows, 1):
    try:
      line = json.loads(row)
    except json.JSONDecodeError:
      line = None
    if isinstance(line, dict):
      lines.append(line)
    elif number < len(rows):
      raise UserError(f'{path}: line {number} is not a JSON object; expected one line per logged step')
  return lines


class JsonlWriter:
  """Writes one JSON object per line, each on disk as soon as it is written.

  An object store can't append: there the lines are kept and the file is rewritten at most every REMOTE_SECONDS, by
  `flush` and by `close`. Call `flush` before a checkpoint, so that no line older than it is lost.
  """

  def __init__(self, path: epath.Path, resume_step: int = -1):
    """Opens `path`, keeping its lines up to and with `resume_step`; −1 begins anew."""
    self._path = epath.Path(path)
    self._path.parent.mkdir(parents=True, exist_ok=True)
    kept = read_jsonl(self._path) if resume_step >= 0 else []
    self._rows = [_row(line) for line in kept if line.get('step', 0) <= resume_step]
    self._file, self._written = None, -math.inf
    write_whole(self._path, ''.join(self._rows))
    if not is_remote(self._path):
      self._rows = []
      self._file = open(self._path, 'a', encoding='utf-8')  # noqa: SIM115 (closed by close)

  def write(self, line: Mapping[str, Any]) -> None:
    """Adds `line`; numbers that are not finite become null."""
    if self._file is not None:
      self._file.write(_row(line))
      self._file.flush()
      return
    self._rows.append(_row(line))
    if time.monotonic() - self._written >= REMOTE_SECONDS:
      self.flush()

  def flush(self) -> None:
    """Makes sure that every line so far is in the file."""
    if self._file is not None:
      self._file.flush()
      os.fsync(self._file.fileno())
    else:
      write_whole(self._path, ''.join(self._rows))
      self._written = time.monotonic()

  def close(self) -> None:
    """Flushes and closes."""
    self.flush()
    if self._file is not None:
      self._file.close()


def _row(line: Mapping[str, Any]) -> str:
  return json.dumps(jsonable(line), ensure_ascii=False, allow_nan=False) + '\n'


class TensorBoardWriter:
  """Writes the numbers of a line as scalars '<split>/<name>'. Local folders only: elsewhere it says so and does nothing."""

  def __init__(self, directory: epath.Path, purge_step: int | None = None):
    """Opens `directory`; TensorBoard hides what an interrupted run wrote there at `purge_step` and after."""
    self._writer = None
    if is_remote(directory):
      logging.info(
        'TensorBoard files are not written to %s (local folders only); metrics.jsonl is', directory
      )
      return
    self._writer = tensorboardX.SummaryWriter(os.fspath(directory), purge_step=purge_step)

  def write(self, line: Mapping[str, Any]) -> None:
    """Adds the numbers of `line`, which has 'step' and may have 'split'."""
    if self._writer is None:
      return
    line = jsonable(line)
    split = line.get('split', 'train')
    for name, value in line.items():
      if name in ('step', 'total_steps') or isinstance(value, bool) or not isinstance(value, (int, float)):
        continue
      self._writer.add_scalar(f'{split}/{name}', value, line['step'])

  def flush(self) -> None:
    """Makes sure that every number so far is on disk."""
    if self._writer is not None:
      self._writer.flush()

  def close(self) -> None:
    """Flushes and closes."""
    if self._writer is not None:
      self._writer.close()

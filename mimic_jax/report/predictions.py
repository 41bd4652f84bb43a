"""What classifiers answered, read from their predictions.npz and laid side by side: pictures by id, classes by name."""

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mimic_jax import metrics
from mimic_jax.data import classes
from mimic_jax.report import run as runs
from mimic_jax.runtime import files
from mimic_jax.runtime.errors import READ_ERRORS, UserError, one_of

FILE = 'predictions.npz'
FIELDS = ('id', 'split', 'label', 'logits', 'class_names')


class Predictions(NamedTuple):
  """One classifier's answers: id, split [N] of str; label int [N]; logits float64 [N, K]; the K class names."""

  path: epath.Path
  id: np.ndarray
  split: np.ndarray
  label: np.ndarray
  logits: np.ndarray
  class_names: tuple[str, ...]

  def splits(self) -> list[str]:
    """Returns the names of the splits, in their order."""
    return list(dict.fromkeys(self.split.tolist()))


def find(path: str) -> epath.Path:
  """Returns the predictions.npz that `path` means: the file, or that of a stage's, an evaluation's or a run's folder.

  Raises:
    UserError: when there is none, or a run has several stages with one.
  """
  given = epath.Path(path).expanduser()
  if not given.exists():
    raise UserError(f"'{path}' does not exist; expected a run, a stage, an evaluation or a {FILE}")
  if not given.is_dir():
    return given
  if (given / FILE).exists():
    return given / FILE
  config = given / 'config.json'
  stages = runs.stage_names(files.read_json(config)) if config.exists() else []
  held = [given / name / FILE for name in stages if (given / name / FILE).exists()]
  if len(held) > 1:
    names = ', '.join(f"'{p.parent}'" for p in held)
    raise UserError(f"'{path}' has {len(held)} stages with predictions; expected one of {names}")
  if not held:
    none = f'has no {FILE}' + (f' in any of its stages ({", ".join(stages)})' if stages else '')
    raise UserError(f"'{path}' {none}; expected a run that has ended, a stage of one, or an evaluation")
  return held[0]


def load(path: epath.Path) -> Predictions:
  """Reads a predictions.npz.

  Raises:
    UserError: naming the file, when it is no such file, holds too little, or its arrays or numbers do not fit.
  """
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
      missing = [name for name in FIELDS if name not in file.files]
      if missing:
        raise UserError(f'{path}: has no {", ".join(missing)}; expected {", ".join(FIELDS)}')
      held = {name: file[name] for name in FIELDS}
  except READ_ERRORS:
    raise UserError(
      f'{path}: is not an .npz that can be read; expected {FILE} as mimic_jax writes it'
    ) from None
  names = tuple(str(name) for name in held['class_names'].reshape(-1))
  n = held['id'].size
  shapes = {name: held[name].shape for name in FIELDS[:4]}
  wanted = {'id': [(n,)], 'split': [(n,)], 'label': [(n,), (n, len(names))], 'logits': [(n, len(names))]}
  for name, shape in shapes.items():
    if shape not in wanted[name]:
      raise UserError(
        f"{path}: '{name}' is {list(shape)}; expected {list(wanted[name][0])} for {n} ids and {len(names)} classes"
      )
  label = metrics.dominant(held['label'])
  wrong = np.flatnonzero((label < 0) | (label >= len(names)))
  if wrong.size:
    raise UserError(
      f"{path}: label {label[wrong[0]]} of '{held['id'][wrong[0]]}' is out of range; expected 0 to {len(names) - 1}"
    )
  logits = held['logits'].astype(np.float64)
  bad = np.flatnonzero(np.isnan(logits).any(axis=1))
  if bad.size:
    raise UserError(
      f"{path}: logits of '{held['id'][bad[0]]}' are not numbers ({bad.size} of {n}); expected no NaN"
    )
  return Predictions(path, held['id'].astype(str), held['split'].astype(str), label, logits, names)


def comma_separated(p: Predictions) -> str:
  """Returns CSV, a line for each picture: split, id, label, answer, and the probability of each class, which softmax makes."""
  shifted = np.exp(p.logits - p.logits.max(axis=1, keepdims=True))
  shares = shifted / shifted.sum(axis=1, keepdims=True)
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(['split', 'id', 'label', 'answer', *p.class_names])
  for split, name, label, row in zip(p.split, p.id, p.label, shares):
    answer = p.class_names[row.argmax()]
    writer.writerow([split, name, p.class_names[label], answer, *(f'{x:.6f}' for x in row)])
  return out.getvalue()


def of_split(every: Sequence[Predictions], split: str) -> tuple[list[Predictions], str]:
  """Returns all cut down to one split: the one named, or with '' the only one that is in all.

  Raises:
    UserError: when a split is not in all, or there are several to choose from.
  """
  there = [p.splits() for p in every]
  shared = [name for name in there[0] if all(name in names for names in there)]
  all_ = 'both' if len(every) == 2 else 'all'
  if split:
    for p, names in zip(every, there):
      one_of(f'--split (of {p.path})', split, names)
  elif len(shared) == 1:
    (split,) = shared
  elif shared:
    raise UserError(f"--split is ''; expected one of {', '.join(shared)}, which {all_} have")
  else:
    have = ', '.join(f'{p.path} has split {", ".join(names) or "none"}' for p, names in zip(every, there))
    raise UserError(f'{have}; expected one that {all_} have')
  return [_rows(p, np.flatnonzero(p.split == split)) for p in every], split


def pair(a: Predictions, b: Predictions) -> tuple[Predictions, Predictions, dict[str, Any]]:
  """Returns both on the pictures that both have, in one order, with one numbering of the classes.

  The classes are A's and then those that only B has; what a classifier has no class for it never answers (logit −∞).

  Returns:
    A, B, and {'both', 'only_a', 'only_b': counts; 'classes_only_a', 'classes_only_b': names}.

  Raises:
    UserError: when an id stands twice, none is in both, labels of one picture differ, or no class is in both.
  """
  for p in (a, b):
    names, times = np.unique(p.id, return_counts=True)
    if (times > 1).any():
      raise UserError(
        f"{p.path}: '{names[times > 1][0]}' stands {times.max()} times; expected each picture once"
      )
  _, of_a, of_b = np.intersect1d(a.id, b.id, return_indices=True)
  if not of_a.size:
    raise UserError(
      f"{a.path} and {b.path} share no picture; expected the same ids (such as '{a.id[0]}' and '{b.id[0]}')"
    )
  order = np.argsort(of_a)  # A's own
  about = {'both': of_a.size, 'only_a': len(a.id) - of_a.size, 'only_b': len(b.id) - of_b.size}
  a, b, unlike = _numbered_alike(_rows(a, of_a[order]), _rows(b, of_b[order]))
  differs = np.flatnonzero(a.label != b.label)
  if differs.size:
    i = differs[0]
    raise UserError(
      f"'{a.id[i]}' is {a.class_names[a.label[i]]} in {a.path} and {a.class_names[b.label[i]]} in {b.path} "
      f'({differs.size} of {len(a.id)} labels differ); expected predictions on the same labels (the same label rule)'
    )
  return a, b, about | unlike


def aligned(every: Sequence[Predictions]) -> list[Predictions]:
  """Returns all on the pictures that all have, in one order, with one numbering of the classes, as `pair` does with two.

  Raises:
    UserError: as `pair`.
  """
  first = every[0]
  for other in every[1:]:
    first, _, _ = pair(first, other)
  return [pair(first, p)[1] for p in every]


def _rows(p: Predictions, index: np.ndarray) -> Predictions:
  return p._replace(id=p.id[index], split=p.split[index], label=p.label[index], logits=p.logits[index])


def _numbered_alike(a: Predictions, b: Predictions) -> tuple[Predictions, Predictions, dict[str, Any]]:
  """Returns A and B with the classes of A and then those of B alone, and which classes only one has."""
  places = classes.match(a.class_names, b.class_names)
  if all(k < 0 for k in places):
    raise UserError(
      f'{a.path} has the classes {", ".join(a.class_names)}, {b.path} {", ".join(b.class_names)}; '
      'expected at least one in common'
    )
  only_b = [name for name, k in zip(b.class_names, places) if k < 0]
  only_a = [name for k, name in enumerate(a.class_names) if k not in places]
  names = (*a.class_names, *only_b)
  later = iter(range(len(a.class_names), len(names)))
  column = np.array([k if k >= 0 else next(later) for k in places])
  unlike = {'classes_only_a': only_a, 'classes_only_b': only_b}
  wide_a, wide_b = (np.full((len(p.id), len(names)), -np.inf) for p in (a, b))
  wide_a[:, : len(a.class_names)] = a.logits
  wide_b[:, column] = b.logits
  a = a._replace(logits=wide_a, class_names=names)
  return a, b._replace(logits=wide_b, label=column[b.label], class_names=names), unlike

"""Says by how much two models differ on the same pictures, and how sure that is.

  mimic compare runs/mscl/finetune runs/ce/finetune --split valid --json difference.json

A and B are runs, stages, evaluations or predictions.npz. Pictures are paired by id and classes by name; both are scored on
the same resamples of what is in both (uncertainty.py).
"""

import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mimic_jax import metrics, uncertainty
from mimic_jax.data import classes
from mimic_jax.report import run as runs
from mimic_jax.runtime import cli, files
from mimic_jax.runtime.errors import READ_ERRORS, UserError, one_of

FILE = 'predictions.npz'
FIELDS = ('id', 'split', 'label', 'logits', 'class_names')
WORDS = {
  'accuracy': 'accuracy',
  'mean_class_accuracy': 'mean-class accuracy',
  'macro_f1': 'macro F1',
}


class Predictions(NamedTuple):
  """One classifier's answers: id, split [N] of str; label int [N]; logits float64 [N, K]; the K class names."""

  path: epath.Path
  id: np.ndarray
  split: np.ndarray
  label: np.ndarray
  logits: np.ndarray
  class_names: tuple[str, ...]


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


def of_split(a: Predictions, b: Predictions, split: str) -> tuple[Predictions, Predictions, str]:
  """Returns both cut down to one split: the one named, or with '' the only one that is in both.

  Raises:
    UserError: when a split is in one only, or there are several to choose from.
  """
  there = [list(dict.fromkeys(p.split.tolist())) for p in (a, b)]
  both = [name for name in there[0] if name in there[1]]
  if split:
    for p, names in zip((a, b), there):
      one_of(f'--split (of {p.path})', split, names)
  elif len(both) == 1:
    (split,) = both
  elif both:
    raise UserError(f"--split is ''; expected one of {', '.join(both)}, which both have")
  else:
    raise UserError(
      f'{a.path} has split {", ".join(there[0]) or "none"}, {b.path} {", ".join(there[1]) or "none"}; '
      'expected one that both have'
    )
  return *(_rows(p, np.flatnonzero(p.split == split)) for p in (a, b)), split


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


def compare(
  path_a: str, path_b: str, split: str = '', identity: str = 'auto', samples: int = 2000, seed: int = 0
) -> dict[str, Any]:
  """Compares two sets of predictions picture by picture.

  Args:
    path_a: a run, a stage, an evaluation or a predictions.npz.
    path_b: likewise.
    split: of both; '' = the only one that both have.
    identity: 'auto', 'none' or a regular expression (uncertainty.identities).
    samples: of the bootstrap.
    seed: of the bootstrap.

  Returns:
    What `uncertainty.paired` does, with 'a', 'b' (paths), 'split', 'identity', 'class_names' and 'pictures' (`pair`).

  Raises:
    UserError: for whatever does not fit, in one line.
  """
  a, b, split = of_split(*(load(find(path)) for path in (path_a, path_b)), split)
  a, b, pictures = pair(a, b)
  clusters = uncertainty.identities(a.id.tolist(), identity)
  found = uncertainty.paired(a.label, a.logits, b.logits, a.class_names, clusters, samples, seed)
  return {
    'a': str(a.path),
    'b': str(b.path),
    'split': split,
    'identity': identity,
    'class_names': list(a.class_names),
    'pictures': pictures,
    **found,
  }


def table(found: dict[str, Any]) -> str:
  """Returns a comparison as lines of text: what was compared, the scores, the counts, and the verdict."""
  pictures, counts, how = (found[k] for k in ('pictures', 'counts', 'method'))
  lines = [f'A  {found["a"]}', f'B  {found["b"]}']
  lines.append(
    f'{found["split"]}: {pictures["both"]:,} pictures in both, {pictures["only_a"]:,} only in A, '
    f'{pictures["only_b"]:,} only in B'
  )
  for which in 'ab':
    if names := pictures[f'classes_only_{which}']:
      lines.append(f'only {which.upper()} knows the class {", ".join(names)}')
  level = f'{100 * how["level"]:g} % interval'
  lines += ['', f'{"":<21}{"A":>9}{"B":>11}{"B − A":>9}   {level}']
  for name, words in WORDS.items():
    row = found[name]
    scores = f'{100 * row["a"]:9.2f} %{100 * row["b"]:9.2f} %'
    lines.append(f'{words:<21}{scores}{_points(row["difference"]):>7}   {_between(row)}')
  lines += [
    '',
    f'right: both {counts["both_right"]:,}, only A {counts["only_a"]:,}, only B {counts["only_b"]:,}, '
    f'neither {counts["both_wrong"]:,}',
    f'intervals: {how["interval"]}, {how["samples"]:,} resamples of {how["units"]:,} {how["over"]}',
    '',
    verdict(found),
  ]
  return '\n'.join(lines)


def verdict(found: dict[str, Any]) -> str:
  """Returns one sentence: the difference of accuracy, its interval, McNemar's p, and on how many pictures."""
  row, n = found['accuracy'], found['counts']['count']
  how, p = found['method'], found['mcnemar_p']
  points = 100 * row['difference']
  told = f'B is {abs(points):.2f} points {"better" if points > 0 else "worse"} than A in accuracy'
  if not points:
    told = 'B and A have the same accuracy'
  sure = 'the interval leaves out 0' if row['low'] > 0 or row['high'] < 0 else 'the interval holds 0'
  value = 'p < 0.0001' if p < 1e-4 else f'p = {p:.2g}'
  # McNemar's test knows nothing of people; where the interval does, the reader must be told
  alone = ', which takes pictures as independent' if how['over'] == 'identities' else ''
  interval = f'{100 * how["level"]:g} % interval {_between(row)}'
  return f'{told} ({interval}; McNemar {value}{alone}; n = {n:,}): {sure}.'


def _points(share: float) -> str:
  """Returns a difference of shares in points, with its sign: '+1.20', '−0.31', '0.00'."""
  text = f'{100 * share:+.2f}'
  return '0.00' if float(text) == 0 else text.replace('-', '−')


def _between(row: dict[str, float]) -> str:
  return f'{_points(row["low"])} to {_points(row["high"])}'


def _parser() -> cli.Parser:
  parser = cli.Parser('compare', __doc__)
  add = parser.add_argument
  add('a', metavar='A', help="a run, a stage's or an evaluation's folder, or a predictions.npz")
  add('b', metavar='B', help='likewise')
  add('--split', default='', help='which one, where both have several')
  add('--identity', default='auto', help='who is on a picture: auto | none | a regular expression')
  add('--samples', type=int, default=2000, help='of the bootstrap')
  add('--seed', type=int, default=0, help='of the bootstrap')
  add('--json', default='', help='file to write the figures to')
  return parser


def main(argv: Sequence[str]) -> None:
  """Runs the command line without the program's name; raises UserError."""
  given = _parser().parse_args(list(argv))
  if given.seed < 0:
    raise UserError(f'--seed is {given.seed}; expected 0 or more')
  found = compare(given.a, given.b, given.split, given.identity, given.samples, given.seed)
  if given.json:
    _write(given.json, found)
  print(table(found))


def _write(path: str, found: dict[str, Any]) -> None:
  text = json.dumps(files.jsonable(found), indent=2, ensure_ascii=False) + '\n'
  try:
    files.write_whole(epath.Path(path), text)
  except OSError as e:
    raise UserError(f"--json '{path}' can not be written ({e.strerror or e})") from e

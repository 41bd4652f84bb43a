"""Says by how much models differ on the same pictures, and how sure that is.

  mimic compare runs/mscl/finetune runs/ce/finetune --split valid --json difference.json
  mimic compare runs/mscl runs/scl --against runs/ce

A and B are runs, stages, evaluations or predictions.npz. Pictures are paired by id and classes by name; both are scored on
the same resamples of what is in both (uncertainty.py). A folder of --seeds counts as one method, and so do runs whose configs
differ in their seed alone; with --against, or where A or B is such a folder, each method is compared with B's over the
pictures and the seeds that both have, and p is adjusted for the number of methods (Holm).
"""

from collections.abc import Sequence
from typing import Any

from etils import epath

from mimic_jax import uncertainty
from mimic_jax.report.predictions import find, load, of_split, pair
from mimic_jax.runtime import cli, files
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import arms as arms_lib
from mimic_jax.training.arms import Arm
from mimic_jax.uncertainty import points

WORDS = {
  'accuracy': 'accuracy',
  'mean_class_accuracy': 'mean-class accuracy',
  'macro_f1': 'macro F1',
}


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
  (a, b), split = of_split([load(find(path)) for path in (path_a, path_b)], split)
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


def compare_arms(
  arms: Sequence[Arm],
  against: Arm,
  split: str = '',
  identity: str = 'auto',
  samples: int = 2000,
  seed: int = 0,
) -> dict[str, Any]:
  """Compares methods with one, over the pictures and seeds that both have.

  Args:
    arms: the methods.
    against: what they are compared with.
    split, identity, samples, seed: as for `compare`.

  Returns:
    {'against': name, 'seeds', 'identity', 'split', 'arms': [{'name', … as of `arms.compared`, each score with 'p_holm'}]}:
    A is `against`, B the arm.

  Raises:
    UserError: for whatever does not fit, in one line.
  """
  reference, found = arms_lib.by_seed(against), []
  for arm in arms:
    held = arms_lib.by_seed(arm)
    cut, split = of_split([*reference.values(), *held.values()], split)
    a, b = dict(zip(reference, cut)), dict(zip(held, cut[len(reference) :]))
    if not a.keys() & b.keys():
      raise UserError(
        f'{arm.name} has seed {", ".join(map(str, b))}, {against.name} {", ".join(map(str, a))}; expected some that '
        'both have'
      )
    found.append({'name': arm.name, **arms_lib.compared(a, b, identity, samples, seed)})
  for name in WORDS:
    for row, p in zip(found, uncertainty.holm([row[name]['p'] for row in found])):
      row[name]['p_holm'] = p
  return {
    'against': against.name,
    'seeds': list(reference),
    'split': split,
    'identity': identity,
    'arms': found,
  }


def table_of_arms(found: dict[str, Any]) -> str:
  """Returns a comparison of methods with one as lines of text."""
  lines = [f'A  {found["against"]}']
  many = len(found['arms']) > 1
  for row in found['arms']:
    how, pictures = row['method'], row['pictures']
    left_out = f', {pictures["left_out"]:,} not in all' if pictures['left_out'] else ''
    several = f'seeds {", ".join(map(str, row["seeds"]))}' if len(row['seeds']) > 1 else 'one seed'
    lines += ['', f'B  {row["name"]}', f'{found["split"]}: {pictures["all"]:,} pictures{left_out}; {several}']
    spread = ' ± sd' if len(row['seeds']) > 1 else ''
    lines.append(
      f'{"":<21}{"A" + spread:>16}{"B" + spread:>16}{"B − A":>9}   {100 * how["level"]:g} % interval'
    )
    for name, words in WORDS.items():
      cell = row[name]
      scores = ''.join(f'{_spread(cell[k], cell[f"{k}_sd"]):>16}' for k in 'ab')
      p = f'p = {cell["p"]:.2g}' + (f', Holm {cell["p_holm"]:.2g}' if many else '')
      lines.append(f'{words:<21}{scores}{points(cell["difference"]):>9}   {_between(cell):<17}  {p}')
    p = row['accuracy']['p_holm']
    sure = 'differ' if p < 0.05 else 'do not differ'
    lines.append(f'B and A {sure} in accuracy at 5 % (p = {p:.2g}; n = {pictures["all"]:,}).')
  how, several = found['arms'][0]['method'], any(len(row['seeds']) > 1 for row in found['arms'])
  over = how['over'] + (' and seeds' if several else '; they say nothing of other seeds')
  lines += ['', f'intervals: {how["interval"]}, {how["samples"]:,} resamples of {over}']
  return '\n'.join(lines)


def _spread(mean: float, sd: float | None) -> str:
  return f'{100 * mean:.2f}' + (f' ± {100 * sd:.2f}' if sd is not None else '') + ' %'


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
    lines.append(f'{words:<21}{scores}{points(row["difference"]):>7}   {_between(row)}')
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


def _between(row: dict[str, float]) -> str:
  return f'{points(row["low"])} to {points(row["high"])}'


def _parser() -> cli.Parser:
  parser = cli.Parser('compare', __doc__)
  add = parser.add_argument
  add(
    'a',
    metavar='A',
    help="a run, a stage's or an evaluation's folder, a folder of --seeds, or a predictions.npz",
  )
  add('b', metavar='B', nargs='*', help='likewise; with --against, more methods')
  add('--against', metavar='B', nargs='+', default=[], help='the method that all others are compared with')
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
  options = (given.split, given.identity, given.samples, given.seed)
  paths, against = [given.a, *given.b], given.against
  if not against and len(paths) != 2:
    raise UserError(f'{len(paths)} to compare; expected A and B, or methods and --against B')
  if against or any(arms_lib.folders(path) != [epath.Path(path).expanduser()] for path in paths):
    paths, against = (paths, against) if against else (paths[1:], paths[:1])
    reference = arms_lib.read(against)
    if len(reference) > 1:
      names = ', '.join(arm.name for arm in reference)
      raise UserError(f'--against has {len(reference)} methods ({names}); expected one')
    found = compare_arms(arms_lib.read(paths), reference[0], *options)
    text = table_of_arms(found)
  else:
    found = compare(*paths, *options)
    text = table(found)
  if given.json:
    try:
      files.write_json(epath.Path(given.json), found)
    except OSError as e:
      raise UserError(f"--json '{given.json}' can not be written ({e.strerror or e})") from e
  print(text)

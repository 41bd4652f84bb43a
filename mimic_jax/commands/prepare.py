"""Writes a data set as TFDS has it, in ArrayRecord, for source 'tfds'; without TensorFlow.

  mimic prepare --dataset rafdb --raw /data/rafdb --out /data/tfds
  python -m mimic_jax.main --config finetune_rafdb --config.data.root=/data/tfds
      --config.finetune.data.source=tfds --config.finetune.data.name=rafdb

A few large files instead of many small ones: for file systems that are slow at opening files, and for moving a data set. The
bytes of the pictures are kept as they are, and so are order, ids and labels: batches are those of the original folder, bit
for bit. A call that was interrupted goes on with the files of the set that were not finished.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mimic_jax import config as config_lib
from mimic_jax import defaults
from mimic_jax.data.arrayrecord import prepared
from mimic_jax.data.sets import folder
from mimic_jax.runtime import cli, remote
from mimic_jax.runtime.errors import UserError, one_of

DATASETS = ('rafdb', 'ferplus', 'affectnet', 'imagenet', 'folder')


def prepare(
  dataset: str,
  raw: str,
  out: str,
  *,
  name: str = '',
  splits: Sequence[str] = (),
  options: Mapping[str, Any] | None = None,
) -> str:
  """Writes a data set, or finds it there already.

  Args:
    dataset: one of DATASETS.
    raw: the folder with its pictures; on an object store, too.
    out: the folder of TFDS data sets that it goes to; made where it isn't there.
    name: of the data set; '' = `dataset`.
    splits: to write; () = the release's, or of a folder those that are there.
    options: fields of the data section that differ from their defaults: classes, label_rule, align, …

  Returns:
    The data set's own folder, <out>/<name>/<version>.

  Raises:
    UserError: on whatever is wrong with the pictures, a name that isn't TFDS's kind, another data set by that name.
  """
  from mimic_jax.data.arrayrecord import builders

  one_of('--dataset', dataset, DATASETS)
  name = name or dataset
  if not re.fullmatch(r'[a-z][a-z0-9_]*', name):
    raise UserError(f"--name is '{name}'; expected small letters, digits and '_', a letter first")
  raw = remote.fetched(raw, '--raw')
  if not raw or not os.path.isdir(raw):
    raise UserError(f"--raw '{raw}' is not a folder; expected the one that holds the pictures of {dataset}")
  splits = [_canonical(s) for s in splits] or builders.splits_of(dataset, raw)
  goal = os.path.join(os.path.abspath(out), name, str(builders.Pictures.VERSION))
  found = _found(goal)
  builder = builders.Pictures(dataset, raw, splits, options or {}, os.path.abspath(out), name)
  if found is not None:
    _refuse_other(goal, found, builder.plan())
    _say(f"{goal}: prepared on {found['made']['on']} from '{found['made']['raw']}'; nothing to do")
    return goal
  for warning in [w for record in builder.records.values() for w in record['warnings']]:
    _say(f'note: {warning}')
  builder.prepare(_say)
  _say(f'{goal}: data.source=tfds data.root={out} data.name={name}')
  return goal


def _canonical(split: str) -> str:
  """Returns the name by which a split is stored; a sum of splits is asked for when it is read."""
  if '+' in split:
    raise UserError(
      f"--splits names '{split}'; expected single splits, comma-separated (data.split='{split}' joins them when read)"
    )
  return folder.canonical(split)


def _found(goal: str) -> dict[str, Any] | None:
  """Returns the record of what is there; None where nothing is."""
  if not os.path.lexists(goal):
    return None
  found = prepared.read_record(goal)
  if found is None:
    raise UserError(
      f"'{goal}' is there already and was not made by mimic_jax.prepare; expected another --name or --out"
    )
  return found


def _refuse_other(goal: str, found: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
  """Raises UserError unless a data set that is there was made by the same plan; names what differs."""
  old, new = ({k: str(v) for k, v in config_lib.fields(p)} for p in (found['plan'], plan))
  splits = [', '.join(p['splits']) for p in (found['plan'], plan)]
  if splits[0] != splits[1]:
    differs = [f'its splits are {splits[0]}, not {splits[1]}']
  else:
    differs = [
      f'{key} is {old.get(key, "none")}, not {new.get(key, "none")}'
      for key in sorted({*old, *new})
      if old.get(key) != new.get(key)
    ]
  if differs:
    raise UserError(
      f"'{goal}' is there already and holds something else: {'; '.join(differs[:3])}; expected another --name, or the "
      'folder removed'
    )


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> None:
  """Runs the command line without the program's name; raises UserError."""
  usual = defaults.data()
  parser = cli.Parser('prepare', __doc__.split('\n\n', 1)[1])
  parser.add_argument('--dataset', required=True, choices=DATASETS)
  parser.add_argument('--raw', required=True, metavar='DIR', help='where the pictures are')
  parser.add_argument('--out', required=True, metavar='DIR', help='the folder of TFDS data sets to write to')
  parser.add_argument('--name', default='', help="the data set's name; default: that of --dataset")
  parser.add_argument('--splits', default='', help='comma-separated; default: all')
  parser.add_argument('--classes', type=int, default=usual.classes, help='affectnet: 7, or 8 with contempt')
  parser.add_argument('--label_rule', default=usual.label_rule, help='ferplus: as data.label_rule')
  parser.add_argument(
    '--align', default=usual.align, help='as data.align; faces that are cut out become PNGs'
  )
  parser.add_argument('--align_size', type=int, default=usual.align_size, help='as data.align_size')
  parser.add_argument(
    '--on_bad_image', default='error', choices=('error', 'skip'), help='skip: leave unreadable pictures out'
  )
  parser.add_argument('--max_pixels', type=int, default=usual.max_pixels, help='a picture with more is bad')
  parser.add_argument('--threads', type=int, default=usual.threads, help='that read pictures')
  flags = vars(parser.parse_args(argv))
  own = {name: flags.pop(name) for name in ('dataset', 'raw', 'out', 'name')}
  splits = [s.strip() for s in flags.pop('splits').split(',') if s.strip()]
  for field, only in (('classes', 'affectnet'), ('label_rule', 'ferplus')):
    if flags[field] != usual[field] and own['dataset'] != only:
      raise UserError(
        f"--{field} is '{flags[field]}', which only --dataset {only} reads; expected it left out"
      )
  for field in ('align_size', 'max_pixels', 'threads'):
    if flags[field] < 1:
      raise UserError(f'--{field} is {flags[field]}; expected at least 1')
  prepare(**own, splits=splits, options=flags)

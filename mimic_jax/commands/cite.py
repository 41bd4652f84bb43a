"""Prints BibTeX for what a run stands on: the paper, the data sets and the weights: `mimic cite RUN`.

What no entry is known of is named in a comment.
"""

from collections.abc import Sequence

from mimic_jax import objectives
from mimic_jax.report import citations
from mimic_jax.report import run as runs
from mimic_jax.runtime import cli
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import arms


def main(argv: Sequence[str]) -> None:
  """Runs the command line without the program's name; raises UserError."""
  parser = cli.Parser('cite', __doc__)
  parser.add_argument('run', metavar='RUN', help="a run's folder, an evaluation's, or one of --seeds")
  given = parser.parse_args(list(argv)).run
  folder = arms.folders(given)[0]
  held = runs.read(folder)
  if not held.config:
    raise UserError(f"'{given}' is not a run's folder: it has no config.json")
  trained = held.record.get('checkpoint', {}).get('config')  # of what an evaluation measured
  config = trained or held.config
  learned = [
    objectives.find(config[name]['objective']).CITES for name in runs.stage_names(config) if name in config
  ]
  entries = {**citations.ENTRIES, **{k: v for cites in learned for k, v in cites.items()}}
  keys, unknown = citations.of_run(config, held.record, [k for cites in learned for k in cites])
  told = [f'% no entry is known for {what}' for what in unknown]
  print('\n'.join([*told, *(citations.bibtex(k, entries[k]) for k in keys)]), end='')

"""Rewrites the page of a run: `mimic report W`."""

from collections.abc import Sequence

from etils import epath

from mimic_jax.report import page
from mimic_jax.runtime import cli
from mimic_jax.runtime.errors import UserError


def main(argv: Sequence[str]) -> None:
  """Writes the page of the one folder in `argv` and prints its path; raises UserError."""
  parser = cli.Parser('report', __doc__)
  parser.add_argument('workdir', metavar='W', help="a run's folder, or an evaluation's")
  workdir = epath.Path(parser.parse_args(list(argv)).workdir)
  if not (workdir / 'config.json').exists():
    raise UserError(f"'{workdir}' is not a run's folder: it has no config.json")
  print(page.write(workdir))

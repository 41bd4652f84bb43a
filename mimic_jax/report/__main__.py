"""`python -m mimic_jax.report W` rewrites the page of the run in folder W."""

from collections.abc import Sequence

from etils import epath

from mimic_jax import cli
from mimic_jax.errors import UserError
from mimic_jax.report import page


def main(argv: Sequence[str]) -> None:
  """Writes the page of the one folder in `argv` and prints its path; raises UserError."""
  parser = cli.Parser('report', __doc__)
  parser.add_argument('workdir', metavar='W', help="a run's folder, or an evaluation's")
  workdir = epath.Path(parser.parse_args(list(argv)).workdir)
  if not (workdir / 'config.json').exists():
    raise UserError(f"'{workdir}' is not a run's folder: it has no config.json")
  print(page.write(workdir))


if __name__ == '__main__':
  cli.run(main)

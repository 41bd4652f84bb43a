"""`python -m mimic_jax.report W` rewrites the page of the run in folder W."""

import sys

from etils import epath

from mimic_jax.errors import UserError
from mimic_jax.report import page


def main(arguments: list[str]) -> int:
  """Writes the page of the one folder in `arguments`, prints its path and returns 0; 2 when the user went wrong."""
  try:
    if len(arguments) != 1 or arguments[0].startswith('-'):
      raise UserError("expected one argument, a run's folder: python -m mimic_jax.report W")
    workdir = epath.Path(arguments[0])
    if not (workdir / 'config.json').exists():
      raise UserError(f"'{workdir}' is not a run's folder: it has no config.json")
    print(page.write(workdir))
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))

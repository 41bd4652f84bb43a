"""Packs a run into a zip without its checkpoints: `mimic archive RUN OUT.zip`.

What is in it is what the report, `mimic compare`, `table` and `figures` read. RUN may be a folder of --seeds.
"""

import os
import zipfile
from collections.abc import Iterator, Sequence

from etils import epath

from mimic_jax.report import run as runs
from mimic_jax.runtime import checkpoint, cli, lease
from mimic_jax.runtime.errors import UserError

LEFT_OUT = (checkpoint.FOLDER, checkpoint.DAMAGED)


def contents(folder: epath.Path) -> Iterator[epath.Path]:
  """Yields the files of a run's folder that go into its archive, in a fixed order."""
  for path in sorted(folder.iterdir()):
    if path.is_dir():
      if path.name not in LEFT_OUT:
        yield from contents(path)
    elif lease.FILE not in path.name:
      yield path


def main(argv: Sequence[str]) -> None:
  """Runs the command line without the program's name; raises UserError."""
  parser = cli.Parser('archive', __doc__)
  parser.add_argument('run', metavar='RUN', help="a run's folder, or one of --seeds")
  parser.add_argument('out', metavar='OUT.zip', help='the file to write; must not be there yet')
  given = parser.parse_args(list(argv))
  folder = epath.Path(given.run).expanduser()
  if not (folder / 'config.json').exists() and not runs.seeds(folder):
    raise UserError(f"'{given.run}' is not a run's folder: it has no config.json")
  if os.path.exists(given.out):
    raise UserError(f"OUT.zip is '{given.out}', which is there; expected a new file")
  name = os.path.basename(os.path.abspath(str(folder)))
  files = list(contents(folder))
  beside = f'{given.out}.{os.getpid()}'
  try:
    with zipfile.ZipFile(beside, 'w', zipfile.ZIP_DEFLATED) as archive:
      for path in files:
        archive.writestr(f'{name}/{path.relative_to(folder)}', path.read_bytes())
    os.replace(beside, given.out)
  except OSError as e:
    raise UserError(f"OUT.zip '{given.out}' can not be written ({e.strerror or e})") from e
  finally:
    if os.path.exists(beside):
      os.unlink(beside)
  print(f'{given.out}: {len(files)} files, {os.path.getsize(given.out) / 1e6:.1f} MB, without checkpoints')

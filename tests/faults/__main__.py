"""The fault campaign: plays faults on real runs and prints a table; exit code 1 when one of them did not end as promised.

Every row's runs are processes `python -m mimic_jax.main` of tests/faults/config.py. A run under faults is started again by the same
command until it is done, and is then compared with an uninterrupted one: every line of metrics.jsonl but its times, every byte of
every array of the last checkpoints, result.json, predictions and pictures.
"""

import argparse
import concurrent.futures
import contextlib
import datetime
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

from mimic_jax.runtime import cli
from tests.faults import data, disk, kills, preemptions  # noqa: F401  (they register what they play)
from tests.faults.harness import ROOT, Campaign
from tests.faults.rows import FAULTS, Row, played, table

PACKAGES = ('jax', 'jaxlib', 'orbax-checkpoint', 'grain', 'numpy')


def campaign(
  *,
  short: bool,
  only: Sequence[str] = (),
  seed: int = 0,
  cache: pathlib.Path | None = None,
  keep: str = '',
  jobs: int = 2,
) -> list[Row]:
  """Plays the faults.

  Args:
    short: the short form of those that have one.
    only: names of faults; () = all.
    seed: of everything random.
    cache: compilation cache; None = one of this campaign's own.
    keep: folder in which the runs are left; '' = in a temporary one.
    jobs: faults played at a time.

  Returns:
    The rows, in the faults' order.
  """
  names = [f.name for f in FAULTS.values() if (f.name in only) or (not only and (f.short or not short))]
  with _folder(keep) as root, concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    began = time.monotonic()

    def say(text: str) -> None:
      print(f'{time.monotonic() - began:6.0f} s  {text}', file=sys.stderr, flush=True)

    shared = Campaign(root, seed, short, cache or root / 'cache', say)

    def play(name: str) -> list[Row]:
      say(f'{name} …')
      rows = played(FAULTS[name], shared)
      for row in rows:
        say(' | '.join(row.cells()))
      return rows

    try:
      shared.reference()  # first, and alone: it fills the cache
      return [row for rows in pool.map(play, names) for row in rows]
    finally:
      pool.shutdown(wait=False, cancel_futures=True)
      shared.close()


@contextlib.contextmanager
def _folder(keep: str) -> Iterator[pathlib.Path]:
  if keep:
    pathlib.Path(keep).mkdir(parents=True, exist_ok=True)
    yield pathlib.Path(keep).resolve()
  else:
    with tempfile.TemporaryDirectory(prefix='mimic_faults_', ignore_cleanup_errors=True) as folder:
      yield pathlib.Path(folder)


def heading(argv: Sequence[str], seconds: float) -> str:
  """Returns the Markdown lines above the table: command, date, machine, versions."""
  versions = ', '.join(f'{k} {v}' for k, v in cli.installed(*PACKAGES).items())
  git = subprocess.run(
    ('git', '-C', str(ROOT), 'describe', '--always', '--dirty'), capture_output=True, text=True, check=False
  )
  return (
    f'    {shlex.join(["python", "-m", "tests.faults", *argv])}\n\n'
    f'{datetime.date.today()}, revision {git.stdout.strip() or "unknown"}, {seconds / 60:.0f} minutes on {os.cpu_count()} cores, '
    f'{platform.platform()}; Python {platform.python_version()}, {versions}.\n'
  )


def main(argv: Sequence[str]) -> int:
  """Plays what the command line asks for, prints the table and returns the exit code."""
  parser = argparse.ArgumentParser(prog='python -m tests.faults', description=__doc__.split('\n\n')[0])
  parser.add_argument('--short', action='store_true', help='the short form, about two minutes')
  parser.add_argument(
    '--only', nargs='+', default=(), choices=sorted(FAULTS), metavar='NAME', help=', '.join(FAULTS)
  )
  parser.add_argument('--seed', type=int, default=0, help='of random times, places and bytes')
  parser.add_argument('--out', default='', help='file for the table, Markdown')
  parser.add_argument('--keep', default='', help='folder in which the runs are left, to be looked at')
  parser.add_argument('--jobs', type=int, default=2, help='faults played at a time')
  parser.add_argument('--cache', default='', help='compilation cache (a new one without)')
  flags = parser.parse_args(argv)
  began = time.monotonic()
  rows = campaign(
    short=flags.short,
    only=flags.only,
    seed=flags.seed,
    cache=pathlib.Path(flags.cache).resolve() if flags.cache else None,
    keep=flags.keep,
    jobs=flags.jobs,
  )
  text = heading(argv, time.monotonic() - began) + '\n' + table(rows) + '\n'
  print(text)
  if flags.out:
    pathlib.Path(flags.out).write_text(text)
  unmet = [row.fault for row in rows if row.met is False]
  print(f'not met: {"; ".join(unmet)}' if unmet else 'all met')
  return 1 if unmet else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))

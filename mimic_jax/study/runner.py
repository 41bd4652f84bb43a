"""Runs what a study lacks, each run as a process of its own, so that none can spoil another.

Several runners may share a folder, on one machine or on many: each takes the next run that nobody is at (runtime/lease.py).
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from etils import epath

from mimic_jax.runtime import files, lease
from mimic_jax.runtime.errors import Preempted
from mimic_jax.study.design import Run

POLL_SECONDS = 5.0  # between looks at runs that others are at
TOLD = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class Ended(NamedTuple):
  """What came of the runs: names of those that failed with their last line, and of those that wait for one of them."""

  failed: dict[str, str]
  left_out: list[str]


def folder(out: epath.Path, run: Run) -> epath.Path:
  """Returns the folder of a run."""
  return out / 'runs' / run.name


def done(out: epath.Path, run: Run) -> bool:
  """Returns whether a run has its result."""
  return (folder(out, run) / run.stage / 'result.json').exists()


def command(out: epath.Path, run: Run) -> list[str]:
  """Returns the command line that is the run."""
  flags = ['--config', run.config, '--workdir', str(folder(out, run)), *run.flags]
  return [sys.executable, '-m', 'mimic_jax.main', *flags]


def carry_out(
  out: epath.Path, runs: Sequence[Run], say: Callable[[str], None], worker: int = 0, workers: int = 1
) -> Ended:
  """Runs those of `runs` that are not done, until all are or have failed.

  Args:
    out: the study's folder.
    runs: each after what it needs.
    say: gets a line for each.
    worker: which of `workers` this is: it begins with its share, and then takes what is left.
    workers: that share the folder.

  Raises:
    Preempted: when told to stop; the run at hand has saved, and the same command goes on.
  """
  todo = [*runs[worker::workers], *(r for k, r in enumerate(runs) if k % workers != worker)]
  failed: dict[str, str] = {}
  while todo := [r for r in todo if not done(out, r) and r.name not in failed]:
    ready = [r for r in todo if not r.needs or r.needs not in {t.name for t in todo}]
    if not any(r.needs not in failed for r in ready):
      break
    free = [r for r in ready if r.needs not in failed and not lease.holder(folder(out, r))]
    if not free:
      time.sleep(POLL_SECONDS)
      continue
    run, began = free[0], time.monotonic()
    of = f'[{sum(done(out, r) for r in runs) + 1}/{len(runs)}] {run.name}'
    say(f'{of} …')
    code = _run(command(out, run), folder(out, run))
    if code == 0:
      say(f'{of}: {_result(out, run)} ({time.monotonic() - began:.0f} s)')
    elif not lease.holder(folder(out, run)):  # else another runner was a moment earlier
      failed[run.name] = _last_line(_log(folder(out, run)))
      say(f'{of} failed ({_log(folder(out, run))}): {failed[run.name]}')
  return Ended(failed, [r.name for r in todo if r.needs in failed])


def _log(workdir: epath.Path) -> epath.Path:
  return workdir.parent / f'{workdir.name}.log'


def _run(line: Sequence[str], workdir: epath.Path) -> int:
  """Runs a command line to its end, its output in a log beside its folder; returns its exit code, raises Preempted."""
  workdir.parent.mkdir(parents=True, exist_ok=True)
  with open(_log(workdir), 'ab') as log:
    log.write(f'$ {shlex.join(line)}\n'.encode())
    log.flush()
    # A session of its own: Ctrl-C reaches this process alone, which passes it on.
    child = subprocess.Popen(
      [*line, '--config.log.progress=False'],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
    with _passed_on(child):
      code = child.wait()
  if code == Preempted.code:
    raise Preempted(
      f'told to stop; {workdir.name} of {workdir.parent.name} is saved, and the same command goes on'
    )
  return code


@contextlib.contextmanager
def _passed_on(child: subprocess.Popen) -> Iterator[None]:
  """Passes on what tells this process to stop; a second time the run is killed, which loses what it did since it saved."""

  def tell(signum: int, frame: object) -> None:
    del signum, frame
    if told:
      child.kill()
    told.append(True)
    os.write(2, b'\nmimic: the run at hand stops at its next step and saves; once more kills it\n')
    child.terminate()

  told: list[bool] = []
  before = {s: signal.signal(s, tell) for s in TOLD if signal.getsignal(s) != signal.SIG_IGN}
  try:
    yield
  finally:
    for signum, handler in before.items():
      signal.signal(signum, handler)
  if told:
    raise Preempted('told to stop; the same command goes on')


def _result(out: epath.Path, run: Run) -> str:
  held = files.read_json(folder(out, run) / run.stage / 'result.json').get('metrics', {})
  scores = [f'{split} {100 * m["accuracy"]:.2f} %' for split, m in held.items() if 'accuracy' in m]
  return ', '.join(scores) or 'done'


def _last_line(log: epath.Path) -> str:
  lines = log.read_bytes().decode(errors='replace').strip().splitlines()
  return lines[-1] if lines else 'it said nothing'

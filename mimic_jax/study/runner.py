"""Runs what a study lacks, each run as a process of its own, so that none can spoil another.

Several runners may share a folder, on one machine or on many: each takes the next run that nobody is at (runtime/lease.py).
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType

from etils import epath

from mimic_jax.runtime import files, lease
from mimic_jax.runtime.errors import Preempted
from mimic_jax.study.design import Run

POLL_SECONDS = 5.0  # between looks at runs that others are at
TOLD = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def folder(out: epath.Path, run: Run) -> epath.Path:
  """Returns the folder of a run."""
  return out / 'runs' / run.name


def done(out: epath.Path, run: Run) -> bool:
  """Returns whether a run has its result."""
  return (folder(out, run) / run.stage / 'result.json').exists()


def failure(out: epath.Path, run: Run) -> str:
  """Returns why a run failed the last time, '' if it did not."""
  mark = _beside(folder(out, run), 'failed')
  return '' if done(out, run) or not mark.exists() else mark.read_text()


def command(out: epath.Path, run: Run) -> list[str]:
  """Returns the command line that is the run."""
  flags = ['--config', run.config, '--workdir', str(folder(out, run)), *run.flags]
  return [sys.executable, '-m', 'mimic_jax.main', *flags]


class Listening:
  """Hears what tells this process to stop while the context lasts, and passes it on to the run at hand.

  The first time the run stops at its next step and saves; the second time it is killed, which loses what it did since it saved.
  """

  def __init__(self) -> None:
    self.told = 0
    self.child: subprocess.Popen | None = None

  def __enter__(self) -> 'Listening':
    self._before = {s: signal.signal(s, self._tell) for s in TOLD if signal.getsignal(s) != signal.SIG_IGN}
    return self

  def _tell(self, signum: int, frame: FrameType | None) -> None:
    del signum, frame
    self.told += 1
    os.write(2, b'\nmimic: the run at hand stops at its next step and saves; once more kills it\n')
    self.pass_on()

  def pass_on(self) -> None:
    """Tells the run at hand, if there is one and there is something to tell."""
    if self.child is not None and self.told:
      (self.child.terminate if self.told == 1 else self.child.kill)()

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    for signum, handler in self._before.items():
      signal.signal(signum, handler)


def carry_out(
  out: epath.Path,
  runs: Sequence[Run],
  say: Callable[[str], None],
  listening: Listening,
  worker: int = 0,
  workers: int = 1,
) -> list[str]:
  """Runs those of `runs` that are not done, until all are, have failed or wait for one that has.

  Args:
    out: the study's folder.
    runs: each after what it needs.
    say: gets a line for each.
    listening: hears what tells to stop.
    worker: which of `workers` this is: it begins with its share, and then takes what is left.
    workers: that share the folder.

  Returns:
    The names of those that failed; `failure` says why.

  Raises:
    Preempted: when told to stop; the run at hand has saved, and the same command goes on.
  """
  todo = [*runs[worker::workers], *(r for k, r in enumerate(runs) if k % workers != worker)]
  failed: list[str] = []
  while todo := [r for r in todo if not done(out, r) and r.name not in failed]:
    waits_for = {r.name for r in todo} | set(failed)
    ready = [r for r in todo if r.needs not in waits_for]
    if not ready:
      break
    if listening.told:
      raise Preempted('told to stop; the same command goes on')
    free = [r for r in ready if not lease.holder(folder(out, r))]
    if not free:
      time.sleep(POLL_SECONDS)
      continue
    run, began = free[0], time.monotonic()
    of = f'[{sum(done(out, r) for r in runs) + 1}/{len(runs)}] {run.name}'
    say(f'{of} …')
    code = _run(command(out, run), folder(out, run), listening)
    if listening.told or code == Preempted.code:
      raise Preempted(f'told to stop; {run.name} is saved, and the same command goes on')
    if done(out, run):
      say(f'{of}: {_result(out, run)} ({time.monotonic() - began:.0f} s)')
    elif not lease.holder(folder(out, run)):  # else another runner was a moment earlier
      failed.append(run.name)
      why = f'killed by signal {-code}' if code < 0 else _last_line(_beside(folder(out, run), 'log'))
      files.write_whole(_beside(folder(out, run), 'failed'), why)
      say(f'{of} failed ({_beside(folder(out, run), "log")}): {why}')
  return failed


def _beside(workdir: epath.Path, ending: str) -> epath.Path:
  return workdir.parent / f'{workdir.name}.{ending}'


def _run(line: Sequence[str], workdir: epath.Path, listening: Listening) -> int:
  """Runs a command line to its end, its output in a log beside its folder; returns its exit code."""
  workdir.parent.mkdir(parents=True, exist_ok=True)
  _beside(workdir, 'failed').unlink(missing_ok=True)
  with open(_beside(workdir, 'log'), 'ab') as log:
    log.write(f'$ {shlex.join(line)}\n'.encode())
    log.flush()
    # A session of its own: Ctrl-C reaches this process alone, which passes it on.
    listening.child = subprocess.Popen(
      [*line, '--config.log.progress=False'],
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      start_new_session=True,
    )
    listening.pass_on()  # what was heard before there was a run
    try:
      return listening.child.wait()
    finally:
      listening.child = None


def _result(out: epath.Path, run: Run) -> str:
  held = files.read_json(folder(out, run) / run.stage / 'result.json').get('metrics', {})
  scores = [f'{split} {100 * m["accuracy"]:.2f} %' for split, m in held.items() if 'accuracy' in m]
  return ', '.join(scores) or 'done'


def _last_line(log: epath.Path) -> str:
  lines = log.read_bytes().decode(errors='replace').strip().splitlines()
  return lines[-1] if lines else 'it said nothing'

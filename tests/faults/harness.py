"""Real processes on a run's folder: start them, wait for a moment, stop them, and keep account of what was lost."""

import collections
import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from mimic_jax.runtime import checkpoint
from tests.faults import compare
from tests.faults.rows import Unmet

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = pathlib.Path(__file__).with_name('config.py')
STEPS = {'pretrain': 24, 'finetune': 30}  # as the config has them
PRETRAIN = ('--config.stages=pretrain',)  # one stage, for half of the time
FINETUNE = ('--config.stages=finetune', '--config.finetune.init=')
LIMIT = 900.0  # seconds that nothing here may last, on a machine that does other things, too
EXIT_LIMIT = 30.0  # a pre-empted run must have ended after
PREEMPTED = 75
POLL = 0.002
Moment = Callable[['Run'], bool]  # whether it has come
BEGUN = re.compile(
  r'^(\w+): \w+, [\d,]+ parameters(?:(?!\n\w).)*?(?:resumed after step ([\d,]+)|weights from)', re.M | re.S
)


class Campaign:
  """What the faults share: a folder, the uninterrupted runs that others are compared with, random numbers by name."""

  def __init__(
    self, root: pathlib.Path, seed: int, short: bool, cache: pathlib.Path, say: Callable[[str], None]
  ):
    self.root, self.seed, self.short, self.cache, self.say = root, seed, short, cache, say
    self.base = PRETRAIN if short else ()
    self.stages = list(STEPS)[:1] if short else list(STEPS)
    self.runs: list[Run] = []
    self._made: dict[str, Run] = {}
    self._locks: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)
    self._one = threading.Lock()

  def rng(self, name: str) -> np.random.Generator:
    """Returns random numbers that depend on the campaign's seed and the name only."""
    return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

  def run(self, name: str, flags: Sequence[str] | None = None, **options: object) -> 'Run':
    """Returns a run in a folder of its own that has not begun; `flags` default to the campaign's."""
    return Run(self, name, self.base if flags is None else tuple(flags), **options)

  def reference(self, name: str = 'whole', flags: Sequence[str] | None = None, **options: object) -> 'Run':
    """Returns an uninterrupted run of this name, made on the first call."""

    def make() -> Run:
      run = self.run(f'reference_{name}', flags, **options)
      began = time.monotonic()
      run.finish()
      run.seconds = time.monotonic() - began
      return run

    return self.once(f'reference_{name}', make)

  def close(self) -> None:
    """Ends whatever is still running, with its readers."""
    for run in self.runs:
      run.signal(signal.SIGKILL, group=True)

  def once(self, name: str, make: Callable[[], 'Run']) -> 'Run':
    """Returns what `make` returned when a run of this name was first asked for; others wait for it."""
    with self._one:
      lock = self._locks[name]
    with lock:
      if name not in self._made:
        self._made[name] = make()
      return self._made[name]


class Run:
  """A run of the campaign's config.

  Attributes:
    folder: the run's --workdir.
    processes, devices: of the next start; devices are those of each process.
    lost: steps done again, an entry per start that went on from before.
    seconds: that an uninterrupted one took.
  """

  def __init__(
    self,
    campaign: Campaign,
    name: str,
    flags: Sequence[str],
    *,
    processes: int = 1,
    devices: int = 1,
    module: str = 'mimic_jax.main',
    environ: dict[str, str] | None = None,
    folder: pathlib.Path | None = None,
  ):
    self.campaign, self.name, self.flags = campaign, name, tuple(flags)
    self.processes, self.devices, self.module = processes, devices, module
    self.environ = environ or {}
    self.folder = folder or campaign.root / name / 'run'
    self.lost: list[int] = []
    self.seconds = 0.0
    self._logs = campaign.root / name / 'stderr'
    self._logs.mkdir(parents=True, exist_ok=True)
    campaign.runs.append(self)
    self._running: list[subprocess.Popen] = []
    self._starts = 0
    self._before: dict[str, int] = {}

  def command(self) -> list[str]:
    """Returns what is started, without what tells processes of each other."""
    return [
      sys.executable,
      '-m',
      self.module,
      '--config',
      str(CONFIG),
      '--workdir',
      str(self.folder),
      *self.flags,
    ]

  def _environ(self) -> dict[str, str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(('XLA_', 'JAX_', 'SLURM_', 'OMPI_'))}
    return environ | {
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': str(self.devices),
      'JAX_COMPILATION_CACHE_DIR': str(self.campaign.cache),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
      'PYTHONPATH': str(ROOT),
      **self.environ,
    }

  def start(self) -> None:
    """Starts the run, or lets it go on; each process in a process group of its own."""
    self._starts += 1
    self._before = {s: self.logged(s) for s in STEPS if self.logged(s)}
    several = [f'--coordinator_address=127.0.0.1:{free_port()}', f'--num_processes={self.processes}']
    for i in range(self.processes):
      extra = [*several, f'--process_id={i}'] if self.processes > 1 else []
      with open(self.log(i), 'wb') as f:
        self._running.append(
          subprocess.Popen(
            [*self.command(), *extra],
            stdout=f,
            stderr=f,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=self._environ(),
            start_new_session=True,
          )
        )

  def log(self, process: int = 0) -> pathlib.Path:
    """Returns the file with what a process of the last start writes on stdout and stderr."""
    return self._logs / f'{self._starts}.{process}.txt'

  def said(self, process: int = 0) -> str:
    """Returns what a process of the last start wrote on stdout and stderr so far."""
    return self.log(process).read_text(errors='replace')

  def logged(self, stage: str) -> int:
    """Returns the last step that stage's metrics.jsonl has; 0 when none."""
    try:
      found = re.findall(
        rb'^\{"step": (\d+),.*"split": "train".*\}$',
        (self.folder / stage / 'metrics.jsonl').read_bytes(),
        re.M,
      )
    except FileNotFoundError:
      return 0
    return int(found[-1]) if found else 0

  def begun(self) -> dict[str, int]:
    """Returns the step after which each stage was begun by the last start, as it said itself."""
    return {m[1]: int((m[2] or '0').replace(',', '')) for m in BEGUN.finditer(self.said())}

  def stage(self) -> str:
    """Returns the stage that the last start is at; '' when it is at none yet."""
    return next(reversed(self.begun()), '')

  def done(self) -> bool:
    """Returns whether every stage has its result."""
    return all((self.folder / s / 'result.json').exists() for s in compare.stages(self.folder))

  def checkpoints(self, stage: str) -> list[int]:
    """Returns the steps of a stage's finished checkpoints, rising."""
    folder = self.folder / stage / checkpoint.FOLDER
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []

  def pids(self) -> list[int]:
    """Returns the ids of the processes that were started last."""
    return [p.pid for p in self._running]

  def readers(self) -> list[int]:
    """Returns the ids of the reader processes of process 0."""
    return [pid for pid in children(self._running[0].pid) if 'resource_tracker' not in command_line(pid)]

  def ended(self) -> bool:
    """Returns whether any of the run's processes has ended."""
    return any(p.poll() is not None for p in self._running)

  def until(self, condition: Moment, seconds: float = LIMIT) -> bool:
    """Waits for a moment.

    Args:
      condition: run → whether it has come.
      seconds: to wait at most.

    Returns:
      True when it came while all processes were running, False when one of them ended before.

    Raises:
      Unmet: when neither happens in time; the processes are ended.
    """
    limit = time.monotonic() + seconds
    while not self.ended():
      if condition(self):
        return not self.ended()
      if time.monotonic() > limit:
        self.kill()
        raise Unmet(f'{self.name}: nothing happened in {seconds:.0f} s; it had said: {self._tail()}')
      time.sleep(POLL)
    return False

  def signal(
    self, number: signal.Signals, which: Sequence[int] | None = None, *, group: bool = False
  ) -> None:
    """Sends a signal to the processes numbered `which` (all), or to each one's process group."""
    for i, p in enumerate(self._running):
      if which is None or i in which:
        with contextlib.suppress(ProcessLookupError):
          (os.killpg if group else os.kill)(p.pid, number)

  def kill(self, which: Sequence[int] | None = None) -> None:
    """Ends processes numbered `which` (all, then nothing of the run is left) with SIGKILL."""
    self.signal(signal.SIGKILL, which)
    if which is None:
      self.wait()

  def wait(self, seconds: float = LIMIT) -> list[int]:
    """Waits for all processes to end and returns their exit codes.

    Raises:
      Unmet: when they do not in time; they are ended then.
    """
    limit = time.monotonic() + seconds
    try:
      codes = [p.wait(max(limit - time.monotonic(), 0.01)) for p in self._running]
    except subprocess.TimeoutExpired:
      said = self._tail()
      self.signal(signal.SIGKILL, group=True)
      for p in self._running:
        p.wait()
      self._account()
      raise Unmet(f'{self.name}: still running after {seconds:.0f} s; it had said: {said}') from None
    self._account()
    return codes

  def _account(self) -> None:
    """Notes how many steps the start that has just ended had to do again."""
    self._running = []
    begun = self.begun()
    stage = next((s for s in self._before if s in begun), None)
    if stage is not None:
      self.lost.append(max(self._before[stage] - begun[stage], 0))

  def _tail(self) -> str:
    return ' '.join(self.said().split())[-300:]

  def finish(self) -> None:
    """Starts the run and waits for its end; raises Unmet unless every process ends with code 0."""
    self.start()
    codes = self.wait()
    if any(codes):
      raise Unmet(f'{self.name}: exit codes {codes}; it said: {self._tail()}')

  def refused(self, *words: str, seconds: float = LIMIT) -> str:
    """Starts the run, which must end with code 2 and one line that holds all words; returns the line.

    Raises:
      Unmet: when it does not.
    """
    self.start()
    return self.stopped(*words, seconds=seconds)

  def stopped(self, *words: str, seconds: float = LIMIT) -> str:
    """Waits for process 0 to end with code 2 and one line that holds all words; returns the line; raises Unmet."""
    codes = self.wait(seconds)
    errors = re.findall(r'^mimic: error: (.*)$', self.said(), re.M)
    if codes[0] != 2 or len(errors) != 1:
      raise Unmet(
        f'{self.name}: exit code {codes[0]} and {len(errors)} lines of error, not 2 and 1: {self._tail()}'
      )
    if 'Traceback' in self.said():
      raise Unmet(f'{self.name}: a traceback beside the one line: {errors[0]}')
    missing = [w for w in words if w not in errors[0]]
    if missing:
      raise Unmet(f'{self.name}: the error does not say {missing}: {errors[0]}')
    return errors[0]

  def same_as(self, reference: 'Run') -> list[str]:
    """Returns what differs from an uninterrupted run, [] when nothing does."""
    return compare.differences(reference.folder, self.folder)

  def copied(self, name: str) -> 'Run':
    """Returns a run that stands where this one does, in a folder of its own."""
    run = Run(
      self.campaign,
      name,
      self.flags,
      processes=self.processes,
      devices=self.devices,
      module=self.module,
      environ=self.environ,
    )
    shutil.copytree(self.folder, run.folder)
    return run


def verdict(differing: Sequence[str]) -> str:
  """Returns what the table says of differences."""
  return 'yes' if not differing else 'no: ' + '; '.join(differing[:3])


def free_port() -> int:
  """Returns a port that nothing listens on now."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def children(pid: int) -> list[int]:
  """Returns the ids of a process's living children; [] when it is gone."""
  found = []
  for stat in pathlib.Path('/proc').glob('[0-9]*/stat'):
    with contextlib.suppress(OSError):
      fields = stat.read_text().rpartition(')')[2].split()
      if int(fields[1]) == pid and fields[0] != 'Z':
        found.append(int(stat.parent.name))
  return found


def command_line(pid: int) -> str:
  """Returns a process's command line; '' when it is gone."""
  with contextlib.suppress(OSError):
    return pathlib.Path(f'/proc/{pid}/cmdline').read_bytes().replace(b'\0', b' ').decode(errors='replace')
  return ''


def alive(pid: int) -> bool:
  """Returns whether a process is there and no zombie."""
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
  except OSError:
    return False

"""Pre-emption: SIGTERM or SIGUSR1, to a process, to its group with the readers, to one of two."""

import time
from signal import SIGTERM, SIGUSR1

from tests.faults import harness, moments
from tests.faults.harness import EXIT_LIMIT, PREEMPTED, Campaign, Moment, Run, verdict
from tests.faults.rows import Row, Unmet, fault

READERS = ('--config.pretrain.data.workers=1', '--config.finetune.data.workers=1')
MOST_LOST = 1  # the step in flight


def preempted(
  run: Run, moment: Moment, number: int, which: list[int] | None = None, *, group: bool = False
) -> float:
  """Starts the run, sends a signal at a moment and returns the seconds until its end.

  Raises:
    Unmet: when it ends in another way than by code 75 within EXIT_LIMIT, or was done before.
  """
  run.start()
  if not run.until(moment):
    raise Unmet(f'{run.name}: ended with {run.wait()} before it could be pre-empted')
  readers = run.readers()
  run.signal(number, which, group=group)
  began = time.monotonic()
  codes = run.wait()
  seconds = time.monotonic() - began
  if set(codes) != {PREEMPTED} or 'Traceback' in run.said():
    raise Unmet(
      f'{run.name}: exit codes {codes} after the signal, not {PREEMPTED}: {" ".join(run.said().split())[-300:]}'
    )
  if seconds > EXIT_LIMIT:
    raise Unmet(
      f'{run.name}: took {seconds:.0f} s to end after the signal; expected {EXIT_LIMIT:.0f} at most'
    )
  if left := [pid for pid in readers if harness.alive(pid)]:
    raise Unmet(f'{run.name}: reader processes {left} were left behind')
  return seconds


@fault('preemptions', short=True)
def preemptions(campaign: Campaign) -> list[Row]:
  """One process is told to stop: in the middle of steps, before the first one, during an evaluation; and goes on."""
  reference = campaign.reference()
  if campaign.short:
    run = campaign.run('preempted')
    seconds = preempted(run, moments.after_step('pretrain', 6), SIGTERM)
    return [_row('SIGTERM', [seconds], run, reference)]
  run = campaign.run('preempted')
  term = [
    preempted(run, moments.after_step('pretrain', 6), SIGTERM),
    preempted(run, moments.evaluating('pretrain'), SIGTERM),
    preempted(run, lambda r: 'finetune' in r.begun(), SIGTERM),  # before the first step, which compiles
  ]
  rows = [_row('SIGTERM: after a step, during an evaluation, before the first step', term, run, reference)]
  run = campaign.run('preempted_usr1')
  usr1 = [
    preempted(run, moments.after_step('pretrain', 3), SIGUSR1),
    preempted(run, moments.after_step('finetune', 11), SIGUSR1),
  ]
  return [*rows, _row('SIGUSR1', usr1, run, reference)]


@fault('preemptions-readers')
def with_readers(campaign: Campaign) -> list[Row]:
  """The whole process group gets the signal, as Slurm and a terminal send it, reader processes with it."""
  reference = campaign.reference()
  run = campaign.run('preempted_readers', [*campaign.base, *READERS])
  seconds = [
    preempted(run, moments.after_step('pretrain', 6), SIGTERM, group=True),
    preempted(run, moments.after_step('finetune', 14), SIGUSR1, group=True),
  ]
  return [_row('SIGTERM and SIGUSR1 to the process group, with reader processes', seconds, run, reference)]


@fault('preemptions-two')
def of_two(campaign: Campaign) -> list[Row]:
  """Two processes agree on the step, whichever of them gets the signal."""
  reference = campaign.reference('two', processes=2)
  run = campaign.run('preempted_two', processes=2)
  seconds = [
    preempted(run, moments.after_step('pretrain', 6), SIGTERM),
    preempted(run, moments.after_step('pretrain', 15), SIGTERM, [1]),
    preempted(run, moments.after_step('finetune', 9), SIGUSR1),
  ]
  return [
    _row('two processes: SIGTERM to both, to the second only, SIGUSR1 to both', seconds, run, reference)
  ]


def _row(what: str, seconds: list[float], run: Run, reference: Run) -> Row:
  """Finishes a pre-empted run and returns its row."""
  run.finish()
  differing = run.same_as(reference)
  outcome = f'checkpoint and exit code {PREEMPTED} within {max(seconds):.1f} s'
  met = not differing and max(run.lost, default=0) <= MOST_LOST
  return Row(f'pre-emption, {what}', len(seconds), outcome, run.lost, verdict(differing), met)

"""SIGKILL: at random moments and aimed ones, to one process and to two, and going on with other numbers of devices."""

import time
from collections.abc import Callable

import numpy as np

from tests.faults import compare, moments
from tests.faults.harness import STEPS, Campaign, Moment, Run, verdict
from tests.faults.rows import Row, Unmet, fault

KILLS, KILLS_SHORT = 20, 3
KILLS_OF_TWO = 5
MOST_IN_ONE_RUN = 5
PASSES = 2  # over the aimed moments
MOST_LOST = 8  # a checkpoint every 4 steps, and the one being written may be lost, too
ABORTED = -6  # SIGABRT: how JAX's runtime ends a process whose run has lost one
GONE_SECONDS = 180.0  # in which a process must notice that another of its run is gone
ROUNDING = 2e-4  # of a loss after 30 steps in another order of summation


def random_moment(campaign: Campaign, rng: np.random.Generator, seconds: float) -> Moment:
  """Returns a random moment: of the clock, from a run's start to its end; or shortly after a random step."""
  if rng.random() < 0.5:
    return moments.after_seconds(rng.uniform(0.0, seconds))
  stage = campaign.stages[rng.integers(len(campaign.stages))]
  return moments.later(moments.after_step(stage, int(rng.integers(1, STEPS[stage]))), rng.uniform(0.0, 0.3))


def killed(run: Run, moment: Moment) -> bool:
  """Starts the run and kills all of it at a moment; returns False when it was done before."""
  run.start()
  if not run.until(moment):
    codes = run.wait()
    if any(codes):
      raise Unmet(f'{run.name}: ended by itself with {codes}: {" ".join(run.said().split())[-300:]}')
    return False
  run.kill()
  return True


def many_kills(
  campaign: Campaign, name: str, kills: int, reference: Run, each: Callable[[Run, int], bool]
) -> Row:
  """Kills runs `kills` times in all, each run up to MOST_IN_ONE_RUN times, and compares each with the reference.

  Args:
    campaign: it is part of.
    name: of the runs.
    kills: how many.
    reference: the uninterrupted run.
    each: (run, number of the kill) → whether it was killed before its end; starts it.
  """
  done, lost, differing, runs = 0, [], [], 0
  while done < kills:
    runs += 1
    run = campaign.run(f'{name}_{runs}', reference.flags, processes=reference.processes)
    for _ in range(min(MOST_IN_ONE_RUN, kills - done)):
      if not each(run, done):
        break
      done += 1
    run.finish()
    differing += [f'run {runs}: {d}' for d in run.same_as(reference)]
    lost += run.lost
  met = not differing and max(lost, default=0) <= MOST_LOST
  outcome = f'{runs} runs went on to their end' + (
    '' if max(lost, default=0) <= MOST_LOST else f'; more than {MOST_LOST} steps lost'
  )
  return Row('', done, outcome, lost, verdict(differing), met)


@fault('two-processes', short=True)
def two_processes(campaign: Campaign) -> list[Row]:
  """One process of two is killed, or both; the other must notice; both are started again."""
  rng = campaign.rng('two-processes')
  kills = 1 if campaign.short else KILLS_OF_TWO
  left_over: list[tuple[int, float]] = []
  # The short form compares with one process, to rounding, and is spared an uninterrupted run.
  if campaign.short:
    reference = campaign.reference()
    run = campaign.run('two_1', processes=2)
    _kill_of_two(run, moments.after_step('pretrain', 10), None, left_over)  # both: JAX notices one late
    run.finish()
    worst = furthest(reference, run)
    row = Row(
      '', 1, '1 run went on to its end', run.lost, f'to {worst:.0e} of one process', worst <= ROUNDING
    )
  else:
    reference = campaign.reference('two', processes=2)

    def each(run: Run, number: int) -> bool:
      which = ([0], [1], None)[number % 3]
      return _kill_of_two(run, random_moment(campaign, rng, reference.seconds), which, left_over)

    row = many_kills(campaign, 'two', kills, reference, each)
  row.fault = 'SIGKILL of one or both of two processes'
  if left_over:
    codes = ', '.join(f'{c}' for c in sorted({c for c, _ in left_over}))
    row.outcome += (
      f'; the one left over ended by itself within {max(s for _, s in left_over):.0f} s (codes {codes})'
    )
  return [row]


def _kill_of_two(
  run: Run, moment: Moment, which: list[int] | None, left_over: list[tuple[int, float]]
) -> bool:
  """Starts two processes and kills those numbered `which` (None = both) at a moment.

  Args:
    run: of two processes.
    moment: to kill at.
    which: one process, or None.
    left_over: gets the exit code of the other one, and the seconds it took to end by itself.

  Returns:
    False when the run was done before.

  Raises:
    Unmet: when the other one ends in another way than by code 1 and one line, or by JAX's runtime (docs/reliability.md).
  """
  run.start()
  if not run.until(moment):
    if any(codes := run.wait()):
      raise Unmet(f'{run.name}: ended by itself with {codes}')
    return False
  if which is None:
    run.kill()
    return True
  left = 1 - which[0]
  run.kill(which)
  began = time.monotonic()
  code = run.wait(GONE_SECONDS)[left]
  left_over.append((code, time.monotonic() - began))
  said = run.said(left)
  lines = [x for x in said.splitlines() if x.startswith('mimic: ')]
  in_words = code == 1 and len(lines) == 1 and 'is gone' in lines[0]
  if not in_words and code != ABORTED and not (code == 0 and run.done()):
    raise Unmet(f'{run.name}: the process left over ended with {code}: {" ".join(said.split())[-300:]}')
  return True


@fault('kills', short=True)
def random_kills(campaign: Campaign) -> list[Row]:
  """SIGKILL at random moments of a two-stage run."""
  rng = campaign.rng('kills')
  reference = campaign.reference()
  row = many_kills(
    campaign,
    'kills',
    KILLS_SHORT if campaign.short else KILLS,
    reference,
    lambda run, _: killed(run, random_moment(campaign, rng, reference.seconds)),
  )
  row.fault = 'SIGKILL at a random moment'
  return [row]


AIMS: dict[str, Callable[[], Moment]] = {
  'while a checkpoint is being written': lambda: moments.writing('pretrain'),
  'during an evaluation': lambda: moments.evaluating('pretrain'),
  'between the stages': lambda: moments.exists('pretrain/result.json'),
  'while a checkpoint is being written, stage 2': lambda: moments.writing('finetune'),
  'during an evaluation, stage 2': lambda: moments.evaluating('finetune'),
  'after the last evaluation, before the result': lambda: moments.exists('finetune/predictions.npz'),
  'during the report': lambda: moments.exists('finetune/result.json'),
}


@fault('aimed')
def aimed_kills(campaign: Campaign) -> list[Row]:
  """SIGKILL at moments that chance would seldom hit; each run meets all of them."""
  rng = campaign.rng('aimed')
  reference = campaign.reference()
  rows = {aim: Row(f'SIGKILL {aim}', 0, 'went on to its end', [], 'yes') for aim in AIMS}
  for n in range(1, PASSES + 1):
    run = campaign.run(f'aimed_{n}')
    done, lost = [], [0]  # lost[i]: up to and with the start after the i-th kill
    for aim, moment in AIMS.items():
      # The first pass kills as soon as the moment has come, the next ones a little later.
      if not killed(run, moments.later(moment(), rng.uniform(0.0, 0.3) if n > 1 else 0.0)):
        break
      done.append(aim)
      lost.append(sum(run.lost))
    run.finish()
    lost = [*lost[2:], sum(run.lost)]
    differing = run.same_as(reference)
    for aim, after, before in zip(done, lost, [0, *lost], strict=False):
      row, steps = rows[aim], after - before
      row.times, row.lost = row.times + 1, [*row.lost, steps]
      if differing or steps > MOST_LOST:
        row.identical, row.met = verdict(differing), False
  for row in rows.values():
    if not row.times:
      row.outcome, row.met = 'the moment was never hit', False
  return list(rows.values())


@fault('counts')
def other_counts(campaign: Campaign) -> list[Row]:
  """A run goes on with other numbers of processes and devices than it was killed on."""
  reference = campaign.reference()
  run = campaign.run('counts')
  counts = [(1, 1), (2, 1), (1, 4), (2, 2)]
  when = [
    moments.after_step('pretrain', 10),
    moments.after_step('finetune', 6),
    moments.after_step('finetune', 18),
  ]
  for (run.processes, run.devices), moment in zip(counts, when, strict=False):
    if not killed(run, moment):
      raise Unmet(f'{run.name}: was done before it could be killed on {run.processes} × {run.devices}')
  run.processes, run.devices = counts[-1]
  run.finish()
  worst = furthest(reference, run)
  shown = ' → '.join(f'{p} × {d}' for p, d in counts)
  outcome = 'every step and picture once; the losses differ by rounding'
  return [
    Row(
      f'SIGKILL, then on with other processes × devices: {shown}',
      3,
      outcome,
      run.lost,
      f'losses to {worst:.0e}',
      worst <= ROUNDING,
    )
  ]


def furthest(reference: Run, run: Run) -> float:
  """Returns the largest relative difference of two runs' losses; raises Unmet when they did not log the same steps."""
  try:
    return compare.furthest(reference.folder, run.folder)
  except ValueError as e:
    raise Unmet(f'{run.name}: {e}') from e

"""Faults in what is read and in the numbers: bad and vanishing pictures, killed readers, losses that are not finite."""

import json
import os
import pathlib
import signal
import time

import numpy as np
from PIL import Image

from tests.faults import harness, moments, poisoned
from tests.faults.harness import FINETUNE, Campaign, Run, verdict
from tests.faults.kills import killed
from tests.faults.preemptions import READERS
from tests.faults.rows import Row, Unmet, fault

CLASSES, OF_EACH = 4, {'train': 16, 'valid': 6}
GONE_SECONDS = 10.0  # in which readers must be gone after their run
BAD_STEPS = {poisoned.VARIABLE: '5,13'}  # of 30; the seventh and the fourteenth


def pictures(campaign: Campaign, name: str) -> tuple[pathlib.Path, tuple[str, ...]]:
  """Draws a folder of small pictures, the same whatever its name; returns it and the flags of a run on it."""
  root = campaign.root / name / 'pictures'
  rng = campaign.rng('pictures')
  for split, count in OF_EACH.items():
    for k in range(CLASSES):
      folder = root / split / f'class{k}'
      folder.mkdir(parents=True)
      for i in range(count):
        pixels = rng.integers(0, 160, (20, 20, 3), np.uint8) + np.uint8(20 * k)
        Image.fromarray(pixels).save(folder / f'{i:02d}.png')
  data = [('source', 'folder'), ('root', root), ('size', 2048), ('draw_size', 64)]
  return root, (*FINETUNE, *(f'--config.finetune.data.{k}={v}' for k, v in data))


def skips(run: Run) -> dict[str, str]:
  """Returns the training pictures that a run says it skipped."""
  record = json.loads((run.folder / 'record.json').read_text())
  return record.get('skipped', {}).get('finetune', {}).get('train', {})


@fault('bad-picture')
def bad_picture(campaign: Campaign) -> list[Row]:
  """Pictures that can't be decoded: the run stops and names one, or goes on without them."""
  root, flags = pictures(campaign, 'bad_pictures')
  reference = campaign.reference('folder', flags)
  files = [root / 'train' / 'class1' / '03.png', root / 'train' / 'class2' / '11.png']
  whole = [f.read_bytes() for f in files]
  for f in files:
    f.write_bytes(b'no picture')
  run = campaign.run('bad_picture_error', flags)
  said = run.refused('.png', 'expected a picture')
  if not any(str(f) in said for f in files):
    raise Unmet(f'the error names neither bad picture: {said}')
  skip = [*flags, '--config.finetune.data.on_bad_image=skip']
  skipping = campaign.reference('folder_skip', skip)
  again = campaign.run('bad_picture_skip', skip)
  killed(again, moments.after_step('finetune', 13))
  again.finish()
  differing = again.same_as(skipping)
  if len(skips(skipping)) != len(files) or skips(again).keys() != skips(skipping).keys():
    differing.append(f'record.json names {sorted(skips(skipping))} and {sorted(skips(again))} as skipped')
  rows = [
    Row(
      'two bad pictures, on_bad_image=skip, with a SIGKILL',
      1,
      'replaced and counted in record.json',
      again.lost,
      verdict(differing),
      not differing,
    )
  ]
  for f, content in zip(files, whole, strict=True):
    f.write_bytes(content)
  run.finish()
  differing = run.same_as(reference)
  outcome = 'exit code 2 and one line that names the file; mended, the run goes on'
  return [
    Row('two bad pictures, on_bad_image=error', 1, outcome, run.lost, verdict(differing), not differing),
    *rows,
  ]


@fault('vanishing-file')
def vanishing_file(campaign: Campaign) -> list[Row]:
  """A picture disappears while the run goes on."""
  root, flags = pictures(campaign, 'vanishing')
  reference = campaign.reference('vanishing_whole', flags)
  file = root / 'train' / 'class3' / '07.png'
  aside = campaign.root / 'vanishing' / 'aside.png'

  def vanishes(run: Run) -> None:
    run.start()
    if not run.until(moments.after_step('finetune', 6)):
      raise Unmet(f'{run.name}: ended with {run.wait()} before the file was taken away')
    file.rename(aside)

  run = campaign.run('vanishing_error', flags)
  vanishes(run)
  run.stopped(str(file))
  run.refused('no longer holds the data')
  aside.rename(file)
  run.finish()
  differing = run.same_as(reference)
  outcome = (
    'exit code 2 and one line that names the file; refuses to go on without it; put back, the run goes on'
  )
  rows = [
    Row('a picture vanishes, on_bad_image=error', 1, outcome, run.lost, verdict(differing), not differing)
  ]
  run = campaign.run('vanishing_skip', [*flags, '--config.finetune.data.on_bad_image=skip'])
  vanishes(run)
  if codes := [c for c in run.wait() if c]:
    raise Unmet(f'vanishing_skip: exit codes {codes}')
  if len(skips(run)) != 1:
    raise Unmet(
      f'vanishing_skip: record.json names {sorted(skips(run))} as skipped, not the one that vanished'
    )
  return [
    *rows,
    Row('a picture vanishes, on_bad_image=skip', 1, 'the run goes on to its end; counted in record.json'),
  ]


@fault('killed-reader', short=True)
def killed_reader(campaign: Campaign) -> list[Row]:
  """Reader processes are killed: at work, at their start; more often than allowed; and left alone by their run."""
  reference = campaign.reference()
  flags = [*campaign.base, *READERS]
  run = campaign.run('reader', flags)
  when = [moments.after_step('pretrain', 5)]
  if not campaign.short:
    when = [lambda r: bool(r.readers()), *when, moments.after_step('finetune', 4)]
  run.start()
  for moment in when:
    _kill_reader(run, moment)
  if any(codes := run.wait()):
    raise Unmet(f'reader: exit codes {codes}; it said: {" ".join(run.said().split())[-300:]}')
  if run.said().count('started again') != len(when):
    raise Unmet(f'reader: it did not say {len(when)} times that a reader was started again')
  differing = run.same_as(reference)
  row = Row(
    'SIGKILL of a reader process',
    len(when),
    'started again, the run goes on',
    [0],
    verdict(differing),
    not differing,
  )
  return (
    [row]
    if campaign.short
    else [row, _too_many(campaign, flags, reference), _orphans(campaign, flags, reference)]
  )


def _kill_reader(run: Run, moment: harness.Moment) -> None:
  """Kills the reader processes that a run has at a moment."""
  if not run.until(moment) or not run.until(lambda r: bool(r.readers())):
    raise Unmet(f'{run.name}: ended with {run.wait()} before its reader could be killed')
  for pid in run.readers():
    os.kill(pid, signal.SIGKILL)


def _too_many(campaign: Campaign, flags: list[str], reference: Run) -> Row:
  """A reader dies once more than allowed."""
  run = campaign.run('reader_limit', [*flags, '--config.finetune.data.worker_restarts=0'])
  run.start()
  _kill_reader(run, moments.after_step('finetune', 4))
  began = time.monotonic()
  run.stopped('worker_restarts')
  seconds = time.monotonic() - began
  run.flags = tuple(flags)
  run.finish()
  differing = run.same_as(reference)
  outcome = f'exit code 2 and one line after {seconds:.0f} s; the same command goes on'
  return Row(
    'SIGKILL of a reader process, worker_restarts=0', 1, outcome, run.lost, verdict(differing), not differing
  )


def _orphans(campaign: Campaign, flags: list[str], reference: Run) -> Row:
  """The run is killed: its readers must not be left."""
  run = campaign.run('reader_orphans', flags)
  run.start()
  if not run.until(moments.after_step('finetune', 9)):
    raise Unmet(f'reader_orphans: ended with {run.wait()}')
  readers = run.readers()
  run.kill()
  began = time.monotonic()
  while any(map(harness.alive, readers)):
    if time.monotonic() - began > GONE_SECONDS:
      for pid in filter(harness.alive, readers):
        os.kill(pid, signal.SIGKILL)
      raise Unmet(
        f'reader_orphans: reader processes were there {GONE_SECONDS:.0f} s after their run was killed'
      )
    time.sleep(0.05)
  seconds = time.monotonic() - began
  run.finish()
  differing = run.same_as(reference)
  outcome = f'{len(readers)} reader(s) gone after {seconds:.1f} s'
  return Row(
    'SIGKILL of a run with reader processes', 1, outcome, run.lost, verdict(differing), not differing
  )


@fault('not-finite')
def not_finite(campaign: Campaign) -> list[Row]:
  """The loss is NaN at two steps: within max_bad_steps, and past it."""
  within = [*FINETUNE, '--config.finetune.max_bad_steps=2']
  past = [*FINETUNE, '--config.finetune.max_bad_steps=1']
  options = {'module': 'tests.faults.poisoned', 'environ': BAD_STEPS}
  reference = campaign.reference('poisoned', within, **options)
  run = campaign.run('not_finite', within, **options)
  killed(run, moments.after_step('finetune', 15))
  run.finish()
  differing = run.same_as(reference)
  counted = json.loads((run.folder / 'finetune' / 'metrics.jsonl').read_text().splitlines()[-2])['bad_steps']
  if counted != len(BAD_STEPS[poisoned.VARIABLE].split(',')):
    differing.append(f'{counted:g} bad steps were counted')
  rows = [
    Row(
      'NaN at two steps, max_bad_steps=2, with a SIGKILL',
      1,
      'left out and counted',
      run.lost,
      verdict(differing),
      not differing,
    )
  ]
  run = campaign.run('not_finite_past', past, **options)
  run.refused('step 14', 'max_bad_steps')
  run.flags = tuple(within)
  run.finish()
  differing = run.same_as(reference)
  outcome = 'exit code 2 and one line at the second; a higher max_bad_steps goes on'
  return [
    *rows,
    Row('NaN at two steps, max_bad_steps=1', 1, outcome, run.lost, verdict(differing), not differing),
  ]

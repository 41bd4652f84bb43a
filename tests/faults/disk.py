"""The disk: damaged checkpoints, flipped bytes, no room, no right to write, and two programs in one folder."""

import contextlib
import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable, Iterator

import jax
import numpy as np
from etils import epath

from mimic_jax.runtime import checkpoint
from tests.faults import compare, moments
from tests.faults.harness import Campaign, Run, verdict
from tests.faults.kills import killed
from tests.faults.rows import NotRun, Row, Unmet, fault

FLIPS, FLIPS_SHORT = 40, 3


def halfway(campaign: Campaign) -> Run:
  """Returns a run that was killed with two whole checkpoints in its last stage; to be copied."""

  def make() -> Run:
    run = campaign.run('halfway')
    if not killed(run, lambda r: len(r.checkpoints(campaign.stages[-1])) == 2):
      raise Unmet('halfway: was done before it could be killed')
    return run

  return campaign.once('halfway', make)


def largest(folder: pathlib.Path) -> pathlib.Path:
  """Returns the largest file in a checkpoint, which holds arrays."""
  return max((p for p in (folder / 'state').rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)


def cut(folder: pathlib.Path) -> None:
  """Cuts the largest file in half."""
  file = largest(folder)
  os.truncate(file, file.stat().st_size // 2)


def altered(folder: pathlib.Path) -> None:
  """Flips a byte in the middle of the largest file."""
  file = largest(folder)
  raw = bytearray(file.read_bytes())
  raw[len(raw) // 2] ^= 0x10
  file.write_bytes(raw)


DAMAGES: dict[str, Callable[[pathlib.Path], None]] = {
  'a file cut in half': cut,
  'a file missing': lambda folder: largest(folder).unlink(),
  'its meta data missing': lambda folder: shutil.rmtree(folder / 'meta'),
  'its arrays missing': lambda folder: shutil.rmtree(folder / 'state'),
  'a byte altered': altered,
}


@fault('damage', short=True)
def damage(campaign: Campaign) -> list[Row]:
  """The newest checkpoint is damaged: it is named and moved aside, and the run goes on from the one before."""
  reference = campaign.reference()
  template, stage = halfway(campaign), campaign.stages[-1]
  rows = []
  for n, (what, harm) in enumerate(DAMAGES.items()):
    if campaign.short and n:
      break
    run = template.copied(f'damage_{n}')
    first, last = run.checkpoints(stage)
    harm(run.folder / stage / checkpoint.FOLDER / str(last))
    run.finish()
    differing = run.same_as(reference)
    said = ' '.join(run.said().split())
    if f'{checkpoint.FOLDER}/{last} is damaged' not in said or run.begun().get(stage) != first:
      differing.append('the damage was not named, or another checkpoint than the one before was used')
    if not (run.folder / stage / checkpoint.DAMAGED / str(last)).is_dir():
      differing.append('the damaged checkpoint was not moved aside')
    outcome = 'named, moved aside; the one before was used'
    rows.append(Row(f'newest checkpoint: {what}', 1, outcome, run.lost, verdict(differing), not differing))
  if not campaign.short:
    rows.append(_all_damaged(template, stage))
  return rows


def _all_damaged(template: Run, stage: str) -> Row:
  """Every checkpoint is damaged: the run stops and moves nothing."""
  run = template.copied('damage_all')
  steps = run.checkpoints(stage)
  for step in steps:
    cut(run.folder / stage / checkpoint.FOLDER / str(step))
  run.refused('is damaged', 'none of the 2 checkpoints')
  if run.checkpoints(stage) != steps:
    raise Unmet('damage_all: checkpoints were moved although none is whole')
  return Row('every checkpoint: a file cut in half', 1, 'one line, exit code 2, nothing moved or begun anew')


@fault('flips', short=True)
def flips(campaign: Campaign) -> list[Row]:
  """Single bytes at random places of a checkpoint's files are flipped; restored in this process as a run would."""
  rng = campaign.rng('flips')
  run, stage = halfway(campaign).copied('flips'), campaign.stages[-1]
  folder = run.folder / stage
  *others, step = run.checkpoints(stage)
  for other in others:
    shutil.rmtree(folder / checkpoint.FOLDER / str(other))
  like = _like(folder, step)
  want, said = _restored(folder, like)
  if want is None:
    raise Unmet(f'the checkpoint that was not touched is not restored: {said}')
  files = [
    p for p in sorted((folder / checkpoint.FOLDER / str(step)).rglob('*')) if p.is_file() and p.stat().st_size
  ]
  sizes = np.array([p.stat().st_size for p in files])
  detected, wrong, times = 0, [], FLIPS_SHORT if campaign.short else FLIPS
  for k in range(times):
    # Half of them anywhere, as disks have it: the arrays are the most. Half in a file drawn first: the small ones, too.
    file = files[rng.choice(len(files), p=sizes / sizes.sum() if k % 2 else None)]
    whole = file.read_bytes()
    at, flip = int(rng.integers(len(whole))), int(rng.integers(1, 256))
    file.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
    got, said = _restored(folder, like)
    file.write_bytes(whole)
    if got is None:
      detected += 1
      if f'{checkpoint.FOLDER}/{step}' not in said or '\n' in said:
        wrong.append(f'byte {at} of {file.name}: the message does not name the checkpoint: {said}')
    elif got.keys() != want.keys() or any(got[k].tobytes() != want[k].tobytes() for k in want):
      wrong.append(f'byte {at} of {file.relative_to(folder)}: wrong values were restored')
  outcome = (
    f'{detected} detected and named, {times - detected - len(wrong)} harmless, {len(wrong)} restored wrong'
  )
  return [
    Row('a byte flipped at a random place of a checkpoint', times, outcome, None, verdict(wrong), not wrong)
  ]


def _like(folder: pathlib.Path, step: int) -> dict:
  """Returns what a checkpoint's arrays are restored as, onto one device."""
  where = epath.Path(folder) / checkpoint.FOLDER
  with compare.ONE:
    shapes = checkpoint.read_meta(where, step)['shapes']
    kinds = {k: v.dtype for k, v in checkpoint.read_arrays(where, step, compare.ARRAYS).items()}
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return checkpoint.nest(
    {k: jax.ShapeDtypeStruct(s, kinds.get(k, np.int32), sharding=place) for k, s in shapes.items()}
  )


def _restored(folder: pathlib.Path, like: dict) -> tuple[dict[str, np.ndarray] | None, str]:
  """Returns the arrays that a run would go on from, or None and what it says."""
  try:
    with compare.ONE, checkpoint.opened(epath.Path(folder), 2) as checkpoints:
      found = checkpoints.restore_newest(like, lambda _: None)
  except checkpoint.Damaged as e:
    return None, str(e)
  if found is None:
    return None, f'{checkpoint.FOLDER}: none found at all'
  return {k: np.asarray(v) for k, v in checkpoint.flatten(found[1]).items()}, ''


@contextlib.contextmanager
def mounted(folder: pathlib.Path, *arguments: str) -> Iterator[None]:
  """Mounts something on a folder for as long as the context lasts; raises NotRun where that may not be done."""
  if os.geteuid():
    raise NotRun('needs root, to mount')
  folder.mkdir(parents=True, exist_ok=True)
  _mount(*arguments, str(folder))
  try:
    yield
  finally:
    subprocess.run(('umount', '--lazy', str(folder)), check=False)


def _mount(*arguments: str) -> None:
  done = subprocess.run(('mount', *arguments), capture_output=True, text=True, check=False)
  if done.returncode:
    raise NotRun(f'mounting is not allowed here: {done.stderr.strip()}')


def fill(folder: pathlib.Path) -> pathlib.Path:
  """Fills the file system that a folder is on to its last byte; returns the file to delete."""
  file = folder / 'ballast'
  with open(file, 'ab', buffering=0) as f:
    for size in (2**20, 2**12, 1):
      with contextlib.suppress(OSError):
        while True:
          f.write(b'\0' * size)
  return file


def intact(run: Run) -> None:
  """Raises Unmet unless every checkpoint that a run has can be read."""
  for stage in compare.stages(run.folder):
    for step in run.checkpoints(stage):
      try:
        with compare.ONE:
          checkpoint.read_arrays(epath.Path(run.folder / stage / checkpoint.FOLDER), step, compare.ARRAYS)
      except checkpoint.Damaged as e:
        raise Unmet(f'{run.name}: an earlier checkpoint is not whole: {e}') from e


@fault('full-disk')
def full_disk(campaign: Campaign) -> list[Row]:
  """The disk becomes full during each stage; the run stops with a clear line and goes on once there is room."""
  reference = campaign.reference()
  disk = campaign.root / 'full_disk' / 'disk'
  with mounted(disk, '-t', 'tmpfs', '-o', 'size=64m', 'tmpfs'):
    run = campaign.run('full_disk', folder=disk / 'run')
    said = ''
    for stage, step in (('pretrain', 9), ('finetune', 13)):
      run.start()
      if not run.until(moments.after_step(stage, step)):
        raise Unmet(f'full_disk: ended with {run.wait()} before the disk was full')
      ballast = fill(disk)
      said = run.stopped('No space left')
      intact(run)
      ballast.unlink()
    run.finish()
    differing = run.same_as(reference)
    lost = run.lost
    ballast = fill(disk)
    campaign.run('full_disk_new', folder=disk / 'new').refused('No space left', str(disk / 'new'))
  outcome = (
    f'exit code 2 and one line (“{said[:60]}…”), earlier checkpoints whole; with room again the run goes on'
  )
  return [
    Row('the disk becomes full (tmpfs)', 2, outcome, lost, verdict(differing), not differing),
    Row('the disk is full from the start', 1, 'exit code 2 and one line that names the folder'),
  ]


@fault('read-only')
def read_only(campaign: Campaign) -> list[Row]:
  """A run's folder can't be written any more, or never could."""
  reference = campaign.reference()
  run = halfway(campaign).copied('read_only')
  with mounted(run.folder, '--bind', str(run.folder)):
    _mount('-o', 'remount,ro,bind', str(run.folder))
    run.refused('Read-only file system', str(run.folder))
    intact(run)
  run.finish()
  differing = run.same_as(reference)
  disk = campaign.root / 'read_only_new' / 'disk'
  with mounted(disk, '-t', 'tmpfs', '-o', 'size=1m,ro', 'tmpfs'):
    campaign.run('read_only_new', folder=disk / 'run').refused('Read-only file system', str(disk / 'run'))
  outcome = 'exit code 2 and one line that names the folder; writable again, the run goes on'
  return [
    Row(
      'the folder is read-only when a run is to go on',
      1,
      outcome,
      run.lost,
      verdict(differing),
      not differing,
    ),
    Row('the folder is read-only from the start', 1, 'exit code 2 and one line that names the folder'),
  ]


@fault('second-program')
def second_program(campaign: Campaign) -> list[Row]:
  """The same command twice on one folder: later, and at the same moment."""
  reference = campaign.reference()
  first = campaign.run('second_later')
  second = Run(campaign, 'second_later_2', first.flags, folder=first.folder)
  first.start()
  if not first.until(moments.exists('config.json')):
    raise Unmet(f'second_later: ended with {first.wait()}')
  second.refused(str(first.folder))
  if first.ended():
    raise Unmet('second_later: the first was done before the second was refused')
  codes = first.wait()
  differing = [f'exit code {codes[0]}'] if codes[0] else first.same_as(reference)
  rows = [
    Row(
      'a second program on the folder of a running one',
      1,
      'the second refuses, exit code 2',
      None,
      verdict(differing),
      not differing,
    )
  ]

  pair = [campaign.run('second_same_time')]
  pair.append(Run(campaign, 'second_same_time_2', pair[0].flags, folder=pair[0].folder))
  for run in pair:
    run.start()
  codes = [run.wait()[0] for run in pair]
  if sorted(codes) != [0, 2]:
    raise Unmet(f'two programs begun at the same moment ended with {codes}; expected one 0 and one 2')
  differing = pair[0].same_as(reference)
  return [
    *rows,
    Row(
      'two programs begun at the same moment',
      1,
      'one runs, one refuses',
      None,
      verdict(differing),
      not differing,
    ),
  ]

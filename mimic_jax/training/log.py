"""Where a run's numbers go while it runs: metrics.jsonl, TensorBoard, W&B, the progress bar and standard error."""

import hashlib
import importlib.util
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from tqdm import tqdm

from mimic_jax import weights
from mimic_jax.objectives.base import Crops
from mimic_jax.report import run as runs
from mimic_jax.runtime import distributed, files
from mimic_jax.runtime.errors import UserError
from mimic_jax.training import evaluation
from mimic_jax.training.stage import Stage

SECONDS_BETWEEN_LINES = 30.0  # of progress, where there is no terminal for a bar


def say(text: str) -> None:
  """Prints to standard error without breaking the progress bar, on the main process only."""
  if not distributed.is_main():
    return
  try:
    tqdm.write(text, file=sys.stderr)
  except BrokenPipeError:  # a `tee` or a connection that has gone: no reason to stop training
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class Log:
  """Lines of metrics.jsonl, TensorBoard, W&B and the progress bar; averages what is added between lines.

  Use as a context manager around the loop.
  """

  def __init__(
    self,
    folder: epath.Path,
    step: int,
    options: Mapping[str, Any],
    stage: str,
    total_steps: int,
    pending: list[dict[str, float]],
  ):
    self._every, self._total, self._stage = options['every'], total_steps, stage
    self._main = distributed.is_main()
    self.pending = list(pending)  # figures since the last line; a checkpoint carries them
    self._start, self._began, self._done = step, None, step
    self._first: tuple[float, int] | None = None  # when the first step of this start was finished, and which
    self._bar_wanted = options['progress'] and self._main
    self._bar, self._said = None, time.monotonic()
    self._writers: list[Any] = []
    self._measured: set[tuple[int, str]] = set()
    if self._main:
      folder.mkdir(parents=True, exist_ok=True)
      self._writers.append(files.JsonlWriter(folder / 'metrics.jsonl', step))
      kept = runs.logged(folder)
      self._measured = {(x['step'], x['split']) for x in kept if x['split'] != 'train'}
      if options['tensorboard'] and files.is_remote(folder):
        logging.info('TensorBoard files are not written to %s (local folders only); metrics.jsonl is', folder)
      elif options['tensorboard']:
        self._writers.append(TensorBoardWriter(folder / 'tensorboard', step + 1))
      if options['wandb']:
        self._writers.append(WandbWriter(folder, options['wandb']))

  def __enter__(self) -> 'Log':
    if self._bar_wanted and sys.stderr.isatty():
      self._bar = self._bar_from(self._start)
      self.doing('')
    elif self._bar_wanted and self._start < self._total:
      say(f'{self._stage}: compiling')
    return self

  def _bar_from(self, step: int) -> tqdm:
    return tqdm(
      total=self._total, initial=step, desc=self._stage, unit='step', file=sys.stderr, mininterval=1.0
    )

  def __exit__(self, *_: Any) -> None:
    if self._bar is not None:
      self._bar.set_description(self._stage)
      self._bar.close()
    for writer in self._writers:
      writer.close()

  def doing(self, what: str) -> None:
    """Has the bar say what goes on instead of a step; '' = steps again."""
    what = what or ('compiling' if self._first is None else '')
    if self._bar is not None:
      self._bar.set_description(f'{self._stage}, {what}' if what else self._stage)

  def add(self, step: int, measured: dict[str, jax.Array]) -> None:
    """Takes the figures of a step that has finished."""
    self.pending.append({k: float(v) for k, v in jax.device_get(measured).items()})
    if self._first is None:  # the first step compiles: rates are of those after it
      self._first = self._began, self._done = time.monotonic(), step
      if self._bar is not None:
        self._bar.leave = False
        self._bar.close()
        self._bar = self._bar_from(step)
    if self._bar is not None:
      self._bar.update(step - self._bar.n)

  def train_line(self, step: int, epoch: float, images: int, seconds: float) -> None:
    """Writes a line of the means since the last one, when it is due; `images` are those of a step."""
    if step % self._every and step != self._total:
      return
    mean = {k: float(np.mean([p[k] for p in self.pending])) for k in self.pending[0]}
    mean |= {k: v for k, v in self.pending[-1].items() if k == 'bad_steps' or k.split('_')[0] == 'lr'}
    mean['seconds'] = seconds
    now = time.monotonic()
    rate = ''
    if step > self._done:
      mean['images_per_second'] = (step - self._done) * images / max(now - self._began, 1e-9)
      rate = f', {mean["images_per_second"]:.0f} img/s'
    self._began, self._done, self.pending = now, step, []
    self._write({'step': step, 'epoch': epoch, 'split': 'train', 'total_steps': self._total, **mean})
    if self._bar is not None:
      self._bar.set_postfix_str(f'loss {mean["loss"]:.4f}{rate}')
    elif self._bar_wanted and now - self._said >= SECONDS_BETWEEN_LINES:
      self._said = now
      say(
        f'{self._stage}: step {step} of {self._total}, loss {mean["loss"]:.4f}{rate}{self._left(step, now)}'
      )

  def _left(self, step: int, now: float) -> str:
    """Returns how long the steps that are left take, by those since the first of this start; '' when there is none yet."""
    began, first = self._first
    if step == first:
      return ''
    seconds = (self._total - step) * (now - began) / (step - first)
    return f', {seconds:.0f} s left' if seconds < 120 else f', {seconds / 60:.0f} min left'

  def evaluated(self, step: int, epoch: float, found: Mapping[str, evaluation.Measured]) -> None:
    """Writes a line per split."""
    for name, measured in found.items():
      scalars = {k: v for k, v in measured.metrics.items() if isinstance(v, (int, float))}
      if (step, name) not in self._measured:  # a run resumed at its end measures once more
        self._write({'step': step, 'epoch': epoch, 'split': name, **scalars})
      accuracy = f', accuracy {100 * scalars["accuracy"]:.2f} %' if 'accuracy' in scalars else ''
      say(f'{self._stage}: step {step}, epoch {epoch:.1f}, {name}: loss {scalars["loss"]:.4f}{accuracy}')

  def restart_clock(self, step: int) -> None:
    """Leaves what was done since the last step, evaluating and drawing, out of the images per second."""
    self._began, self._done = time.monotonic(), step

  def flush(self) -> None:
    """Makes sure that every line so far is on disk: before a checkpoint, so that none older than it is lost."""
    for writer in self._writers:
      writer.flush()

  def _write(self, line: dict[str, Any]) -> None:
    for writer in self._writers:
      writer.write(line)


class TensorBoardWriter:
  """Writes the numbers of a line as scalars '<split>/<name>'; to local folders only."""

  def __init__(self, directory: epath.Path, purge_step: int | None = None):
    """Opens `directory`; TensorBoard hides what an interrupted run wrote there at `purge_step` and after."""
    # tensorboardX imports PyTorch where it is installed, for types alone: a second, and a second CUDA in a GPU's process.
    hidden = sys.modules.setdefault('torch', None) is None
    try:
      import tensorboardX
    finally:
      if hidden:
        del sys.modules['torch']
    writer = tensorboardX.SummaryWriter(os.fspath(directory), purge_step=purge_step)
    self._writer, self.flush, self.close = writer, writer.flush, writer.close

  def write(self, line: Mapping[str, Any]) -> None:
    """Adds the numbers of `line`, which has 'step' and may have 'split'."""
    for name, value in _scalars(line).items():
      self._writer.add_scalar(name, value, line['step'])


class WandbWriter:
  """Sends the numbers of a line to Weights & Biases as '<split>/<name>', a stage being a run of a group."""

  def __init__(self, folder: epath.Path, project: str):
    """Opens the stage's run, or goes on with it where the stage does: W&B leaves out steps that it has.

    Raises:
      UserError: when W&B will not have it.
    """
    import wandb

    place = str(folder.resolve())
    try:
      self._run = wandb.init(
        project=project,
        group=folder.parent.name,
        name=f'{folder.parent.name}/{folder.name}',
        id=hashlib.sha256(place.encode()).hexdigest()[:16],
        resume='allow',
        dir=None if files.is_remote(folder) else place,
      )
    except wandb.Error as e:
      raise UserError(f"config.log.wandb is '{project}': {e}") from e
    self.close = self._run.finish

  def write(self, line: Mapping[str, Any]) -> None:
    """Sends the numbers of `line`."""
    self._run.log(_scalars(line), step=line['step'])

  def flush(self) -> None:
    """Does nothing: a process of W&B's own sends."""


def check_wandb(project: str) -> None:
  """Raises UserError where lines are to be sent to Weights & Biases and its package is not installed."""
  if project and importlib.util.find_spec('wandb') is None:
    raise UserError(
      f"config.log.wandb is '{project}', but wandb is not installed; expected `pip install wandb` before, or ''"
    )


def _scalars(line: Mapping[str, Any]) -> dict[str, float]:
  """Returns the numbers of a line of metrics.jsonl as '<split>/<name>', but its steps."""
  split = line.get('split', 'train')
  return {
    f'{split}/{name}': value
    for name, value in files.jsonable(line).items()
    if name not in ('step', 'total_steps') and isinstance(value, (int, float)) and not isinstance(value, bool)
  }


def introduction(run: Stage, meta: Mapping[str, Any], step: int) -> str:
  """Returns the lines that say what is about to run."""
  program, stage = run.program, run.stage
  parameters = sum(
    int(np.prod(s.shape)) for t in ('params', 'rest') for s in jax.tree.leaves(program.abstract[t])
  )
  record = run.records['train']
  crops = sum(c.views for c in run.objective.inputs().values() if isinstance(c, Crops))
  sizes = ', '.join(f'{s.name} {len(s.source):,}' for s in run.splits)
  G = run.objective.pictures
  images = 'images' if G == 1 else f'groups of {G} images'
  lines = [
    f'{run.name}: {stage["objective"]}, {parameters:,} parameters, {jax.device_count()} × '
    f'{jax.devices()[0].device_kind}, {jax.default_backend()}',
    f'  data   {record["source"]} {record.get("split", "")}: {len(run.source):,} pictures'
    + (f', {len(run.class_names)} classes' if run.class_names else '')
    + (f'; measured on {sizes}' if sizes else ''),
    f'  steps  {program.total_steps:,} of {stage["batch_images"]} {images} × {crops} crop(s), '
    f'{program.total_steps / program.steps_per_epoch:.1f} epochs'
    + (f'; resumed after step {step:,}' if step else f'; weights from {meta["origin"]["origin"]}'),
  ]
  warned = dict.fromkeys(w for r in run.records.values() for w in r.get('warnings', ()))  # each once
  lines += [f'  note   {w}' for w in warned]
  o = stage['optim']
  if o['warmup_epochs'] * program.steps_per_epoch >= program.total_steps:
    lines.append(
      f'  note   the warm-up of {o["warmup_epochs"]} epochs is as long as the stage: lr never reaches its peak'
    )
  if meta['origin']['origin'] == 'scratch' and o['layer_decay'] < 1:
    lines.append(
      f'  note   from scratch with optim.layer_decay {o["layer_decay"]}: the first blocks hardly learn; 1 is fairer'
    )
  for key, what in (
    ('resized', 'resized'),
    ('fresh', 'started anew'),
    ('unused', 'not used of these weights'),
  ):
    if not step and meta['origin'].get(key):
      lines.append(f'  note   {what}: {weights.summary(meta["origin"][key])}')
  lines += [f'  note   {note}' for note in meta['origin'].get('notes', ()) if not step]
  return '\n'.join(lines)

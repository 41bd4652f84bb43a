"""What a stage leaves behind: metrics.jsonl and TensorBoard, pictures, predictions.npz, result.json, the report."""

import io
import os
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath
from PIL import Image
from tqdm import tqdm

from mimic_jax import distributed, evaluation, metrics, sharding, weights, workdir
from mimic_jax.data import pipeline, selection
from mimic_jax.data.source import BadImage
from mimic_jax.report import page
from mimic_jax.report.drawing import Drawing, in_rows, save_drawing

if TYPE_CHECKING:
  from mimic_jax.train import Stage

MOST_FEATURES = 2000  # rows kept for the t-SNE
SECONDS_BETWEEN_LINES = 30.0  # of progress, where there is no terminal for a bar
MOST_MISTAKES = 24  # pictures shown of those that a classifier is most confidently wrong about
SHEET_COLUMNS, SHEET_SIDE = 8, 96  # pictures in a row of a sheet, and their side in pixels


def say(text: str) -> None:
  """Prints to standard error without breaking the progress bar, on the main process only."""
  if not distributed.is_main():
    return
  try:
    tqdm.write(text, file=sys.stderr)
  except BrokenPipeError:  # a `tee` or a connection that has gone: no reason to stop training
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def number_of(name: str) -> int:
  """Returns a stage name's own number for its random keys."""
  return zlib.crc32(name.encode())


class Log:
  """Lines of metrics.jsonl, TensorBoard and the progress bar; averages what is added between lines.

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
    self._bar_wanted = options['progress'] and self._main
    self._bar, self._said = None, time.monotonic()
    self._writers: list[Any] = []
    self._measured: set[tuple[int, str]] = set()
    if self._main:
      folder.mkdir(parents=True, exist_ok=True)
      self._writers.append(metrics.JsonlWriter(folder / 'metrics.jsonl', step))
      kept = metrics.read_jsonl(folder / 'metrics.jsonl')
      self._measured = {(x['step'], x['split']) for x in kept if x['split'] != 'train'}
      if options['tensorboard']:
        self._writers.append(metrics.TensorBoardWriter(folder / 'tensorboard', step + 1))

  def __enter__(self) -> 'Log':
    if self._bar_wanted and sys.stderr.isatty():
      self._bar = tqdm(
        total=self._total,
        initial=self._start,
        desc=self._stage,
        unit='step',
        file=sys.stderr,
        mininterval=1.0,
      )
    return self

  def __exit__(self, *_: Any) -> None:
    if self._bar is not None:
      self._bar.close()
    for writer in self._writers:
      writer.close()

  def add(self, step: int, measured: dict[str, jax.Array]) -> None:
    """Takes the figures of a step that has finished."""
    self.pending.append({k: float(v) for k, v in jax.device_get(measured).items()})
    if self._began is None:  # the first step compiles: the rate is of those after it
      self._began, self._done = time.monotonic(), step
    if self._bar is not None:
      self._bar.update(step - self._bar.n)

  def train_line(self, step: int, epoch: float, batch_images: int, seconds: float) -> None:
    """Writes a line of the means since the last one, when it is due."""
    if step % self._every and step != self._total:
      return
    mean = {k: float(np.mean([p[k] for p in self.pending])) for k in self.pending[0]}
    mean |= {k: self.pending[-1][k] for k in ('lr', 'bad_steps')}
    mean['seconds'] = seconds
    now = time.monotonic()
    rate = ''
    if step > self._done:
      mean['images_per_second'] = (step - self._done) * batch_images / max(now - self._began, 1e-9)
      rate = f', {mean["images_per_second"]:.0f} img/s'
    self._began, self._done, self.pending = now, step, []
    self._write({'step': step, 'epoch': epoch, 'split': 'train', 'total_steps': self._total, **mean})
    if self._bar is not None:
      self._bar.set_postfix_str(f'loss {mean["loss"]:.4f}{rate}')
    elif self._bar_wanted and now - self._said >= SECONDS_BETWEEN_LINES:
      self._said = now
      left = (self._total - step) * (seconds / step)
      say(
        f'{self._stage}: step {step} of {self._total}, loss {mean["loss"]:.4f}{rate}, {left / 60:.0f} min left'
      )

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


def introduction(run: 'Stage', meta: Mapping[str, Any], step: int) -> str:
  """Returns the lines that say what is about to run."""
  program, stage = run.program, run.stage
  parameters = sum(
    int(np.prod(s.shape)) for t in ('params', 'rest') for s in jax.tree.leaves(program.abstract[t])
  )
  record = run.records['train']
  sizes = ', '.join(f'{s.name} {len(s.source):,}' for s in run.splits)
  lines = [
    f'{run.name}: {stage["objective"]}, {parameters:,} parameters, {jax.device_count()} × '
    f'{jax.devices()[0].device_kind}, {jax.default_backend()}',
    f'  data   {record["source"]} {record.get("split", "")}: {len(run.source):,} pictures'
    + (f', {len(run.class_names)} classes' if run.class_names else '')
    + (f'; measured on {sizes}' if sizes else ''),
    f'  steps  {program.total_steps:,} of {stage["batch_images"]} images × {run.objective.views} crop(s), '
    f'{program.total_steps / program.steps_per_epoch:.1f} epochs'
    + (f'; resumed after step {step:,}' if step else f'; weights from {meta["origin"]["origin"]}'),
  ]
  lines += [f'  note   {w}' for r in run.records.values() for w in r.get('warnings', ())]
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


def sample_batch(source: Any, image_size: int, interpolation: str, rows: int = 8) -> dict[str, np.ndarray]:
  """Returns pictures evenly spread over a source as an evaluation batch, for drawing: a folder's first are of one class."""
  picks = np.linspace(0, len(source) - 1, min(rows, len(source))).astype(int)
  batches = pipeline.eval_batches(
    selection.Selected(source, picks),
    batch_images=rows,
    image_size=image_size,
    interpolation=interpolation,
    process_index=0,
    process_count=1,
    on_bad_image='skip',
  )
  return next(iter(batches))


def save_contact_sheet(folder: epath.Path, source: Any, rows: int = 3) -> None:
  """Saves a sheet of a source's pictures, evenly spread over it, with their classes."""
  pictures, captions = [], []
  picks = np.linspace(0, len(source) - 1, min(rows * SHEET_COLUMNS, len(source))).astype(int)
  for i in picks:
    try:
      pictures.append(_square(source, int(i)))
    except BadImage:
      continue
    label = source.label(int(i))
    k = int(label) if np.ndim(label) == 0 else int(np.argmax(label))
    captions.append(source.class_names[k] if source.class_names else '')
  if not pictures:
    return
  images, cells = in_rows(np.stack(pictures), captions, SHEET_COLUMNS)
  about = f'{len(pictures)} of the {len(source):,} pictures.'
  sheet = Drawing('Training pictures', about, images, (), cells if source.class_names else None)
  save_drawing(folder / 'pictures', 'data_train', sheet)


def _square(source: Any, i: int) -> np.ndarray:
  """Returns a picture as a sheet shows it and a model sees it: squeezed into a square, uint8 [SIDE, SIDE, 3]."""
  image = Image.fromarray(source[i]['image'])
  return np.asarray(image.resize((SHEET_SIDE, SHEET_SIDE), Image.Resampling.BICUBIC))


def mistakes(
  source: Any,
  index: np.ndarray,
  labels: np.ndarray,
  logits: np.ndarray,
  class_names: Sequence[str],
  split: str = '',
) -> Drawing | None:
  """Draws the pictures that a classifier is most confidently wrong about: a look at labels and model alike.

  Args:
    source: of the pictures; those that can't be read are passed over.
    index: int [N], the position of each row in `source`.
    labels: int [N], or float [N, K], whose largest entry counts.
    logits: [N, K].
    class_names: the K classes.
    split: its name, for the title.

  Returns:
    Up to MOST_MISTAKES pictures, the surest first, with 'true → answer probability'; None when nothing is wrong.
  """
  truth, logits = metrics.dominant(labels), np.asarray(logits).astype(np.float64)
  chances = np.exp(logits - logits.max(axis=1, keepdims=True))
  guess, surest = logits.argmax(axis=1), 1 / chances.sum(axis=1)  # the largest numerator is 1
  wrong = np.flatnonzero(guess != truth)
  pictures, captions = [], []
  for row in wrong[np.argsort(-surest[wrong], kind='stable')]:
    try:
      pictures.append(_square(source, int(index[row])))
    except BadImage:
      continue
    captions.append(f'{class_names[truth[row]]} → {class_names[guess[row]]} {surest[row]:.2f}')
    if len(pictures) == MOST_MISTAKES:
      break
  if not pictures:
    return None
  images, cells = in_rows(np.stack(pictures), captions, SHEET_COLUMNS)
  return Drawing(
    f'Confidently wrong on {split}' if split else 'Confidently wrong',
    f'The {len(pictures)} of {len(wrong):,} wrong answers (of {len(truth):,} pictures) given with the highest '
    'probability: label → answer, and its probability. Labels that are wrong themselves end up here, too.',
    images,
    (),
    cells,
  )


def show(run: 'Stage', state: dict[str, Any], *, every: float = 0.0) -> None:
  """Draws what the objective shows and rewrites the report, unless it was rewritten less than `every` seconds ago."""
  path = run.run_folder / 'report.html'
  if distributed.agree(lambda: path.exists() and time.time() - path.stat().mtime < every):
    return
  _draw(run, state)
  if distributed.is_main():
    page.write(run.run_folder, final=False)


def _draw(run: 'Stage', state: dict[str, Any]) -> None:
  """Saves what the objective shows of its model; every process must call it, one draws."""
  state = {**state, **{k: sharding.local(state[k], run.mesh) for k in ('params', 'rest')}}
  if distributed.is_main():
    for name, drawing in run.draw(state).items():
      save_drawing(run.folder / 'pictures', name, drawing)


def _best(folder: epath.Path, split: str) -> dict[str, Any] | None:
  """Returns the epoch with the highest accuracy on a split, over all lines of metrics.jsonl."""
  lines = [x for x in metrics.read_jsonl(folder / 'metrics.jsonl') if x['split'] == split and 'accuracy' in x]
  if not lines:
    return None
  best = max(lines, key=lambda x: x['accuracy'])
  return {k: best[k] for k in ('epoch', 'step', 'accuracy')}


def _usual_rate(folder: epath.Path) -> float | None:
  """Returns the median of the logged images per second, which compiling and evaluating do not count in."""
  rates = [
    x['images_per_second'] for x in metrics.read_jsonl(folder / 'metrics.jsonl') if 'images_per_second' in x
  ]
  return float(np.median(rates)) if rates else None


def finish(
  run: 'Stage', state: dict[str, Any], meta: Mapping[str, Any], found: Mapping[str, evaluation.Measured]
) -> dict[str, Any]:
  """Writes predictions.npz, features.npz, result.json and the report of a stage that has run to its end.

  Args:
    run: the stage.
    state: its last.
    meta: what its checkpoints carry.
    found: the last evaluation; the headline is this one, never the best epoch's.

  Returns:
    What result.json holds; {} in a process that writes nothing.
  """
  _draw(run, state)
  if not distributed.is_main():
    return {}
  steps = run.program.total_steps
  result = {
    'stage': run.name,
    'objective': run.stage['objective'],
    'init': meta['origin']['origin'],
    'steps': steps,
    'total_steps': steps,
    'epochs': steps / run.program.steps_per_epoch,
    'seconds': meta['seconds'],
    'images_per_second': _usual_rate(run.folder),
    'metrics': {name: m.metrics for name, m in found.items()},
  }
  for split in found:
    best = _best(run.folder, split)
    if best:
      result[f'best_on_{split}'] = best
  save_outputs(run.folder, run.splits, found, run.class_names)
  _save_mistakes(run, found)
  skipped = {'train': meta.get('skipped', {}), **{k: m.skipped for k, m in found.items()}}
  workdir.update_record(run.run_folder, skipped={run.name: {k: v for k, v in skipped.items() if v}})
  # Last: a stage that has it is not run again, so that whatever is missing when a run is killed here is made anew.
  workdir.write_json(run.folder / 'result.json', result)
  page.write(run.run_folder)
  return result


def _save_mistakes(run: 'Stage', found: Mapping[str, evaluation.Measured]) -> None:
  """Draws the mistakes on the first split, where the objective classifies."""
  if not run.splits or 'logits' not in found[run.splits[0].name].outputs:
    return
  split = run.splits[0]
  m = found[split.name]
  drawing = mistakes(
    split.source, m.index, m.outputs['label'], m.outputs['logits'], run.class_names, split.name
  )
  if drawing is not None:
    save_drawing(run.folder / 'pictures', 'mistakes', drawing)


def save_outputs(
  folder: epath.Path,
  splits: Sequence[evaluation.Split],
  found: Mapping[str, evaluation.Measured],
  class_names: Sequence[str],
) -> None:
  """Writes what a classifier said of every picture: predictions.npz, and features.npz of the first split for t-SNE.

  predictions.npz holds id [N], split [N], label int [N] or float [N, K], logits float32 [N, K] and class_names [K].
  """
  with_logits = {s: found[s.name] for s in splits if 'logits' in found[s.name].outputs}
  if not with_logits:
    return
  ids = [s.source.id(int(i)) for s, m in with_logits.items() for i in m.index]
  save_npz(
    folder / 'predictions.npz',
    id=np.array(ids),
    split=np.repeat([s.name for s in with_logits], [len(m.index) for m in with_logits.values()]),
    label=np.concatenate([m.outputs['label'] for m in with_logits.values()]),
    logits=np.concatenate([m.outputs['logits'] for m in with_logits.values()]),
    class_names=np.array(class_names),
  )
  first = next(iter(with_logits.values()))
  if 'features' in first.outputs:
    label = first.outputs['label']
    save_npz(
      folder / 'features.npz',
      features=first.outputs['features'][:MOST_FEATURES],
      label=(label if label.ndim == 1 else np.argmax(label, axis=1))[:MOST_FEATURES],
      class_names=np.array(class_names),
    )


def save_npz(path: epath.Path, **arrays: np.ndarray) -> None:
  """Writes a compressed .npz to any path that epath knows."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  path.write_bytes(buffer.getvalue())

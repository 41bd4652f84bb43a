"""Asks a trained model about pictures, folders, videos or a camera.

  mimic predict --checkpoint runs/mine photo.jpg more/ 'shots/*.png' [--faces] [--out answers.csv]

Pictures are read and resized as in an evaluation. A video or camera is looked at frame by frame (--fps), and needs OpenCV.
"""

import contextlib
import csv
import dataclasses
import functools
import glob
import io
import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from mimic_jax import serving
from mimic_jax.data import files as files_lib
from mimic_jax.data.faces import DETECTORS, alignment
from mimic_jax.data.videos import is_video
from mimic_jax.report.drawing import overlay
from mimic_jax.runtime import cli, files
from mimic_jax.runtime.errors import UserError, one_of
from mimic_jax.serving import faces, frames
from mimic_jax.serving.model import BATCH_IMAGES, Model, Prediction
from mimic_jax.training import log

MOST_ROWS = 40  # of the table on the terminal
NO_FACE = 'no face found'
OUT = ('.csv', '.jsonl', '.parquet')
WHOLE = '.parquet'  # of OUT what is written at the end
PART = 8  # batches of pictures that are read ahead and answered before their answers are written


def find(names: Sequence[str]) -> tuple[list[str], list[str]]:
  """Returns the pictures and the videos that are meant: files, those in folders and below, those that a pattern fits.

  Raises:
    UserError: for a name that means nothing, and a folder without pictures or videos.
  """
  found: list[str] = []
  for name in names:
    if os.path.isdir(name):
      inside = [os.path.join(name, f) for f in files_lib.files(name)]
      inside = [f for f in inside if files_lib.is_picture(f) or is_video(f)]
      if not inside:
        raise UserError(f"no pictures in '{name}' or below; expected files such as .jpg, .png or .mp4")
      found += inside
    elif os.path.exists(name):
      found.append(name)
    elif matches := sorted(f for f in glob.glob(name, recursive=True) if os.path.isfile(f)):
      found += matches
    else:
      raise UserError(f"'{name}' does not exist; expected a picture, a folder, a pattern or a video")
  found = list(dict.fromkeys(found))
  return [f for f in found if not is_video(f)], [f for f in found if is_video(f)]


def parts(given: Sequence[str], size: int) -> Iterator[Sequence[str]]:
  """Yields a row in parts of `size`, the last with what is left over: a smaller one would be compiled for."""
  starts = range(0, len(given) - size + 1, size) or range(min(1, len(given)))
  for start in starts:
    yield given[start : None if start == starts[-1] else start + size]


def rows(answers: Iterable[Sequence[Prediction]], ids: Sequence[str]) -> list[Prediction]:
  """Returns the answers one after the other; a picture without faces has one that says so."""
  return [
    one
    for name, of_picture in zip(ids, answers, strict=True)
    for one in of_picture or [Prediction(name, '', float('nan'), {}, error=NO_FACE)]
  ]


def table(answers: Sequence[Prediction]) -> list[str]:
  """Returns answers as lines of text: the picture, the face's place, the class, its probability and the next one's."""
  boxed = any(one.box for one in answers)
  head = ['picture', *(['face (left, top, width, height)'] if boxed else []), 'answer', '', 'then', '']
  lines = [head]
  for one in answers[:MOST_ROWS]:
    box = [', '.join(f'{v:.0f}' for v in one.box) if one.box else ''] if boxed else []
    order = sorted(one.probabilities, key=one.probabilities.get, reverse=True)[:2]
    said = [part for name in order for part in (name, f'{100 * one.probabilities[name]:.1f} %')]
    why = one.error.removeprefix(f'{one.id}: ')
    lines.append([one.id, *box, *(said or ['', '', '', why])])
  more = len(answers) - MOST_ROWS
  return cli.aligned(lines) + ([f'… and {more:,} more (--out keeps all)'] if more > 0 else [])


def write(path: str, answers: Sequence[Prediction], class_names: Sequence[str], more: bool = False) -> None:
  """Writes answers as a CSV, a line of JSON each, or Parquet; raises UserError where that can't be done.

  Args:
    path: of a file, whose name's end says which it is.
    answers: one or more.
    class_names: of the model.
    more: whether they come after those that are there, which Parquet has no way to.
  """
  made = [_row(one, class_names) for one in answers]
  ending = os.path.splitext(path)[1].lower()
  if ending == '.jsonl':
    text = ''.join(json.dumps(files.jsonable(row), ensure_ascii=False) + '\n' for row in made)
    return _save(path, text.encode(), more)
  if ending == '.csv':
    out = io.StringIO(newline='')
    writer = csv.DictWriter(out, list(made[0]))
    if not more:
      writer.writeheader()
    writer.writerows({k: '' if v is None else v for k, v in row.items()} for row in made)
    return _save(path, out.getvalue().encode(), more)
  import pyarrow.parquet

  out = io.BytesIO()
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(made), out)
  return _save(path, out.getvalue())


def _save(path: str, data: bytes, more: bool = False) -> None:
  try:
    if not more:
      return files.write_whole(epath.Path(path), data)
    with open(path, 'ab') as file:
      file.write(data)
  except OSError as e:
    raise UserError(f"--out '{path}' can not be written ({e.strerror or e}); expected a path that can") from e


def _text(name: str) -> str:
  """Returns a text without what stands for bytes of a file's name that are not UTF-8, which no table holds."""
  return name.encode('utf-8', 'backslashreplace').decode()


def _row(one: Prediction, class_names: Sequence[str]) -> dict[str, Any]:
  box = one.box or (None,) * 4
  chances = {f'p_{name}': one.probabilities.get(name) for name in class_names}
  return {
    'id': _text(one.id),
    'label': one.label,
    'probability': None if one.error else one.probability,
    **dict(zip(('left', 'top', 'width', 'height'), box)),
    'score': one.score,
    **chances,
    'error': _text(one.error),
  }


def save_attention(folder: str, answers: Sequence[Prediction], first: int = 0) -> None:
  """Writes a PNG for each answer, numbered from `first`, into a folder that is there: what the model was shown, and beside it the attention laid over."""
  for k, one in enumerate(answers, first):
    if one.attention is not None:
      pair = np.concatenate([one.seen, overlay(one.seen[None], one.attention[None])[0]], axis=1)
      name = re.sub(r'[^\w.@-]+', '_', os.path.basename(one.id))
      Image.fromarray(pair).save(os.path.join(folder, f'{k:05d}_{name}.png'))


def _parser() -> cli.Parser:
  parser = cli.Parser('predict', __doc__)
  add = parser.add_argument
  add('images', nargs='*', metavar='IMAGES', help='pictures, folders, patterns, videos')
  add('--checkpoint', required=True, help="a run's folder, a checkpoint, an exported folder or a weight file")
  add('--out', default='', help='file for the answers: .csv, .jsonl or .parquet')
  add(
    '--faces',
    nargs='?',
    const='auto',
    default='',
    metavar='ALIGN',
    help='the faces in each picture, cut out as the run recorded, or as box(0.2), five_point(arcface), …',
  )
  add('--detector', default='mtcnn', help=f'what finds the faces: {", ".join(DETECTORS)}')
  add('--attention', default='', metavar='DIR', help='folder for pictures of where the model looked')
  add('--camera', type=int, default=-1, metavar='N', help='number of a camera, looked through until Ctrl-C')
  add('--fps', type=float, default=2.0, help='frames of a second of a video; 0 = all')
  add('--ema', action='store_true', help='the moving average of the weights instead of the last ones')
  add('--batch_images', type=int, default=BATCH_IMAGES)
  return parser


def main(argv: Sequence[str]) -> None:
  """Runs the command line without the program's name; raises UserError."""
  a = _parser().parse_args(list(argv))
  if a.out and os.path.splitext(a.out)[1].lower() not in OUT:
    raise UserError(f"--out is '{a.out}'; expected a name that ends in {', '.join(OUT)}")
  if a.out and not os.path.isdir(os.path.dirname(a.out) or '.'):
    raise UserError(f"--out '{a.out}' lies in no folder that exists; expected one that does")
  one_of('--detector', a.detector, DETECTORS)
  if a.faces:  # it may have taken a picture's name for its own
    alignment.parse(a.faces, '--faces')
  if a.batch_images < 1:
    raise UserError(f'--batch_images is {a.batch_images}; expected at least 1')
  if not (a.images or a.camera >= 0):
    raise UserError('IMAGES is empty; expected pictures, folders or videos, or --camera 0')
  if not (math.isfinite(a.fps) and a.fps >= 0):
    raise UserError(f'--fps is {a.fps}; expected 0 or more')
  stills, videos = find(a.images)
  model = serving.load(a.checkpoint, ema=a.ema, field='--checkpoint')
  cutter = faces.Cutter(model.trained.reading, a.faces, a.detector) if a.faces else None
  if cutter is not None and cutter.note:
    log.say(f'note: {cutter.note}')
  if a.attention:
    try:
      os.makedirs(a.attention, exist_ok=True)
    except OSError as e:
      raise UserError(f"--attention '{a.attention}' can not be made ({e.strerror}); expected a folder") from e
  ask = functools.partial(
    model.answers, cutter=cutter, attention=bool(a.attention), batch_images=a.batch_images
  )
  answers: list[Prediction] = []

  def take(new: list[Prediction]) -> None:
    """Writes what can be written as it comes, so that little is lost of a long row of pictures that is stopped."""
    if a.out and new and not a.out.lower().endswith(WHOLE):
      write(a.out, new, model.class_names, more=bool(answers))
    if a.attention:
      save_attention(a.attention, new, len(answers))
    answers.extend(dataclasses.replace(one, seen=None, attention=None) for one in new)

  for part in parts(stills, PART * a.batch_images):
    take(rows(ask(part), part))
  moving = [frames.of_video(path, a.fps) for path in videos]
  moving += [frames.of_camera(a.camera)] if a.camera >= 0 else []
  size = 1 if a.camera >= 0 else a.batch_images
  every = itertools.chain.from_iterable(moving)
  # a camera has no end of its own; of a video what came is written
  with contextlib.suppress(KeyboardInterrupt):
    while some := list(itertools.islice(every, size)):
      ids = [name for name, _ in some]
      new = rows(ask([frame for _, frame in some], ids=ids), ids)
      take(new)
      if a.camera >= 0:
        print('\n'.join(table(new)[1:]), flush=True)
  _report(a.out, a.attention, answers, model)


def _report(out: str, attention: str, answers: Sequence[Prediction], model: Model) -> None:
  if not answers:
    raise UserError('no picture came; expected at least one')
  print('\n'.join(table(answers)))
  bad = [one for one in answers if one.error and one.error != NO_FACE]
  counts = Counter(one.label for one in answers if one.label)
  said = ', '.join(f'{name} {counts[name]:,}' for name in model.class_names if counts[name])
  print(f'{sum(counts.values()):,} answers: {said}' if counts else 'no answers')
  if out:
    if out.lower().endswith(WHOLE):
      write(out, answers, model.class_names)
    print(f'answers: {out}')
  if attention:
    print(f'attention: {attention}')
  if bad and len(bad) == len(answers):
    raise UserError(f'{bad[0].error}; expected a picture')

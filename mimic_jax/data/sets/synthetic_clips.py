"""Source `synthetic_clips`: drawn faces that move. A clip is one person whose expression changes while pose and light drift.

What is drawn, and from what expressions, is as in synthetic_faces. Four clips in a row are of one person, before other walls, in other
light, held otherwise. A frame knows its 68 points. `data.size` counts frames; a clip has FRAMES of them.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from mimic_jax import landmarks
from mimic_jax.data.drawn import canvas, face, moving, synthetic
from mimic_jax.data.sets import synthetic_faces
from mimic_jax.runtime.errors import UserError

# nothing is drawn by it: whoever draws the frames of an item takes them to be so many a second
READS = ('fps',)

VERSION = 1  # of everything that decides a pixel here; raise it whenever a picture changes

CLASS_NAMES = synthetic_faces.CLASS_NAMES
FRAMES = 32  # of a clip: at SSL-FER's 25/6 a second, 7.7 seconds
CLIPS = 4  # of a person


@dataclasses.dataclass(frozen=True)
class DrawnClips:
  """A source of groups; the i-th frame is frame i mod FRAMES of clip i div FRAMES.

  Attributes:
    split, size, draw_size, seed: as in the config's data section.
  """

  split: str
  size: int
  draw_size: int
  seed: int
  class_names = CLASS_NAMES

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Returns {'image': uint8 [S, S, 3], 'label', 'id', 'person', 'clip', 'landmarks': float32 [68, 2]}."""
    clip, frame = self._place(i)
    shot, _, fields = self._clip(clip)
    noise = synthetic.generator('clips', self.split, self.seed, _NOISE, clip, frame)
    image = moving.paint(shot, fields[frame], frame, noise, self.draw_size)
    targets = {name: values[i] for name, values in self.targets.items()}
    return {'image': image, 'label': self.label(i), 'id': self.id(i), **targets}

  @property
  def image_shape(self) -> tuple[int, int, int]:
    return (self.draw_size, self.draw_size, 3)

  @functools.cached_property
  def targets(self) -> dict[str, np.ndarray]:
    """The number of each frame's person and clip, float32 [n], and its points, float32 [n, 68, 2]."""
    clip = np.arange(self.size) // FRAMES
    points = np.stack([self._points(i) for i in range(self.size)])
    return {
      'person': (clip // CLIPS).astype(np.float32),
      'clip': clip.astype(np.float32),
      landmarks.TARGET: points,
    }

  def group(self, i: int) -> np.ndarray:
    """Returns the frames of i's clip, int64 [FRAMES], in order."""
    return self._place(i)[0] * FRAMES + np.arange(FRAMES)

  def id(self, i: int) -> str:
    """Returns the frame's stable name, such as 'clips-train-00003-17'."""
    clip, frame = self._place(i)
    return f'clips-{self.split}-{clip:05d}-{frame:02d}'

  def label(self, i: int) -> int:
    """Returns the expression that the face has or comes nearest to in its change, without drawing it."""
    clip, frame = self._place(i)
    return int(self._clip(clip)[1][frame])

  def content_hash(self, i: int) -> str:
    """Returns the sha256 of the drawn pixels, in hexadecimal."""
    return hashlib.sha256(self[i]['image'].tobytes()).hexdigest()

  def record(self) -> dict[str, Any]:
    """Returns what the source is, as JSON can hold it."""
    clips = self.size // FRAMES
    labels = np.concatenate([self._clip(clip)[1] for clip in range(clips)])
    identity = f'clips {VERSION} {self.seed} {self.split} {self.size} {self.draw_size}'
    return {
      'source': 'synthetic_clips',
      'root': '',
      'split': self.split,
      'label_rule': 'drawn',
      'align': {'align': 'none'},
      'count': self.size,
      'clips': clips,
      'persons': -(-clips // CLIPS),
      'class_counts': {name: int((labels == k).sum()) for k, name in enumerate(CLASS_NAMES)},
      'draw_seed': self.seed,
      'draw_size': self.draw_size,
      'draw_version': VERSION,
      'split_hash': hashlib.sha256(identity.encode()).hexdigest(),
    }

  def _place(self, i: int) -> tuple[int, int]:
    if not 0 <= i < self.size:
      raise IndexError(i)
    return divmod(int(i), FRAMES)

  def _clip(self, clip: int) -> tuple[moving.Shot, np.ndarray, np.ndarray]:
    return _clip(self.split, self.seed, clip)

  def _points(self, i: int) -> np.ndarray:
    clip, frame = self._place(i)
    shot, _, fields = self._clip(clip)
    return face.points(shot.persons[frame], fields[frame], self.draw_size)


_PERSON, _SHOT, _STORY, _NOISE = range(4)  # what a generator is for


@functools.lru_cache(64)
def _clip(split: str, seed: int, clip: int) -> tuple[moving.Shot, np.ndarray, np.ndarray]:
  """Returns a clip's shot, its labels, int [FRAMES], and its expressions, float64 [FRAMES, 13]."""

  def drawn(*counters: int) -> np.random.Generator:
    return synthetic.generator('clips', split, seed, *counters)

  person = face.person(drawn(_PERSON, clip // CLIPS))
  told = moving.story(drawn(_STORY, clip), FRAMES, len(CLASS_NAMES), synthetic_faces.expression)
  return moving.shot(person, drawn(_SHOT, clip), FRAMES), *told


def build(root: str, split: str, options: Mapping[str, Any]) -> DrawnClips:
  """Returns the source of `options['size']` frames of `options['draw_size']` pixels; `root` is not used.

  Raises:
    UserError: as synthetic.drawn, and on a size that is no multiple of FRAMES.
  """
  del root
  synthetic.drawn('clips', CLASS_NAMES, canvas.photograph, VERSION, split, options)  # checks the fields
  if options['size'] % FRAMES:
    raise UserError(
      f'data.size is {options["size"]}; synthetic_clips expected a multiple of {FRAMES}, the frames of a clip'
    )
  return DrawnClips(split, options['size'], options['draw_size'], options['draw_seed'])

"""Clips of faces as folders of frames, without labels, for what learns from video.

    root/<split>/<person>/<clip>/<frame>.jpg    a clip may lie deeper, as VoxCeleb's <person>/<video>/<clip>/<frame>.jpg
    root/<person>/<clip>/<frame>.jpg            the same without splits; this is split 'train'
    root/landmarks.npz                          the frames' 68 points, by `mimic align ROOT --landmarks 68`; without, none are offered
    root/<person>/<clip>.mp4                    videos in place of folders, cut at data.fps frames per second (data/videos.py); without points

A clip is a folder that holds pictures; its frames are taken in the natural order of their names: 9.jpg before 10.jpg.
"""

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mimic_jax import landmarks
from mimic_jax.data import options as options_lib
from mimic_jax.data import source as sources
from mimic_jax.data import videos
from mimic_jax.data.faces import alignment, points
from mimic_jax.data.files import Files, is_picture, need_folder, prefix_of, walk
from mimic_jax.data.sets import folder
from mimic_jax.runtime.errors import UserError

READS = ('fps',)

_FPS = options_lib.defaults().fps


class Clips(Files):
  """Frames of clips (a Source of groups)."""

  def __init__(self, *args: Any, ends: np.ndarray, **kwargs: Any) -> None:
    super().__init__(*args, **kwargs)
    self._ends = ends  # int64 [C], behind the last frame of each clip

  def group(self, i: int) -> np.ndarray:
    """Returns the frames of i's clip, int64 [m], in their order."""
    clip = int(np.searchsorted(self._ends, i, side='right'))
    return np.arange(self._ends[clip - 1] if clip else 0, self._ends[clip])


def build(root: str, split: str, options: Mapping[str, Any]) -> Clips | videos.Videos:
  """Returns the frames of `split` under `root`, clip after clip; ids are paths relative to `root`.

  They offer 'person' and 'clip', their numbers in this order, and 'landmarks' where their file is there.

  Raises:
    UserError: on a missing or empty folder, on pictures that are in no clip of a person.
  """
  need_folder(root, 'clips', 'the path of a folder of <person>/<clip>/<frame>', '<person>/<clip>/<frame>')
  _, align = alignment.choose(options, root, 'clips')
  base = folder.split_folder(root, split)
  found = list(walk(base))
  paths = [path for path in found if is_picture(path)]
  if filmed := [path for path in found if videos.is_video(path)]:
    if paths:
      raise UserError(
        f"'{base}' holds videos ('{filmed[0]}') and pictures ('{paths[0]}'); expected the one or the other"
      )
    return _of_videos(root, base, split, filmed, options)
  for path in paths:
    if path.count('/') < 2:
      raise UserError(
        f"'{os.path.join(base, path)}' is in no clip of a person; expected <person>/<clip>/<frame>"
      )
  if not paths:
    raise UserError(
      f"no clips in '{base}': looked for pictures as <person>/<clip>/<frame>, and videos as <person>/<clip>.mp4"
    )
  paths.sort(key=_place)
  clips = [(name, list(frames)) for name, frames in itertools.groupby(paths, os.path.dirname)]
  ids = [prefix_of(root, base) + path for path in paths]
  targets, about = _about(split, root, [name for name, _ in clips], [len(frames) for _, frames in clips])
  if (known := points.read(root, ids)) is not None:
    targets[landmarks.TARGET], about['landmarks'] = known
    about['landmarks_hash'] = sources.array_hash(known[0])
    about['without_landmarks'] = int(np.isnan(known[0]).any(axis=(1, 2)).sum())
  return Clips(
    root,
    ids,
    ids,
    np.full(len(ids), -1, np.int32),
    (),
    {**about, 'fps': options.get('fps', _FPS), 'align': align},
    options.get('max_pixels', 50_000_000),
    targets=targets,
    ends=np.cumsum([len(frames) for _, frames in clips]),
  )


def _of_videos(
  root: str, base: str, split: str, paths: list[str], options: Mapping[str, Any]
) -> videos.Videos:
  """Returns the frames of videos, paths relative to `base`."""
  for path in paths:
    if '/' not in path:
      raise UserError(f"'{os.path.join(base, path)}' is of no person; expected <person>/<clip>.mp4")
  paths.sort(key=_place)
  names = [prefix_of(root, base) + path for path in paths]
  fps = options.get('fps', _FPS)
  counts, bad = videos.counted(
    root, names, fps, options.get('threads', 8), options.get('on_bad_image', 'error')
  )
  kept = [k for k, count in enumerate(counts) if count]
  names, counts = [names[k] for k in kept], [counts[k] for k in kept]
  targets, about = _about(split, root, [paths[k] for k in kept], counts)
  about |= {'fps': fps, 'align': {'align': 'none'}, 'unreadable': bad}
  return videos.Videos(root, names, counts, fps, targets, about, options.get('max_pixels', 50_000_000))


def _about(
  split: str, root: str, clips: Sequence[str], counts: Sequence[int]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Returns the targets 'person' and 'clip' of all frames, and the record, from clips' names as '<person>/…' and their numbers of frames."""
  names = [name.split('/')[0] for name in clips]
  number = {name: k for k, name in enumerate(dict.fromkeys(names))}
  targets = {
    'person': np.repeat([number[name] for name in names], counts).astype(np.float32),
    'clip': np.repeat(np.arange(len(clips)), counts).astype(np.float32),
  }
  record = {
    'source': 'clips',
    'root': root,
    'split': split,
    'label_rule': 'none',
    'count': int(np.sum(counts)),
    'persons': len(number),
    'clips': len(clips),
    'class_names': [],
    'class_counts': {},
  }
  return targets, record


def _place(path: str) -> tuple[Any, ...]:
  """Returns what a path is sorted by: its folder first, so that a clip stays together, and numbers as numbers."""
  clip, name = os.path.split(path)
  return [_natural(part) for part in clip.split('/')], clip, _natural(name), name


def _natural(name: str) -> list[tuple[int, int | str]]:
  return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r'(\d+)', name) if part]

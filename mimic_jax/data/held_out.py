"""A share of the training pictures, each by its own content: the valid split of a set that comes without one, or what to choose on."""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mimic_jax.data import files, selection
from mimic_jax.data import source as sources
from mimic_jax.runtime.errors import UserError


def part(
  kind: str,
  root: str,
  paths: Sequence[str],
  labels: np.ndarray,
  class_names: Sequence[str],
  options: Mapping[str, Any],
) -> tuple[np.ndarray, dict[str, Any]]:
  """Divides the pictures of a training split.

  A picture is held out if the first 64 bits of its file's SHA-256, as a fraction of 2^64, are below the share. So copies stand
  on one side, and no picture changes sides when others come or go.

  Args:
    kind: 'valid', what is held out, or 'train', the rest.
    root: the folder that the paths are relative to.
    paths: of all pictures of the training split.
    labels: int [n], −1 is none.
    class_names: of the labels.
    options: the data section; held_out is the share, above 0.

  Returns:
    int [m], the pictures of that side in their order, and the entry 'held_out' of a record.

  Raises:
    UserError: where nothing is held out, or of all or of a class everything.
  """
  share = options['held_out']
  full = [os.path.join(root, path) for path in paths]
  held = np.array(_fractions(tuple(map(_stamp, full)), options.get('threads', 8))) < share
  count = int(held.sum())
  said = f"'{root}' has no valid split, and data.held_out = {share:g} holds out"
  if not count or count == len(held):
    raise UserError(
      f'{said} {count} of its {len(held)} pictures; expected some on both sides: another share, or a split of your own'
    )
  whole, left = (sources.class_counts(of, class_names) for of in (labels, labels[~held]))
  if gone := [name for name in class_names if whole[name] and not left[name]]:
    raise UserError(
      f"{said} all of class '{gone[0]}', {whole[gone[0]]} pictures; expected some left to train on: another share, or a split of "
      'your own'
    )
  about = {'rule': 'SHA-256 of the file', 'share': share, 'train': len(held) - count, 'valid': count}
  return np.flatnonzero(held if kind == 'valid' else ~held), about


def of_source(source: sources.Source, kind: str, share: float, threads: int) -> selection.Selected:
  """Returns a side of any source, divided as `part` does it.

  Args:
    source: the training split.
    kind: 'held_out', or 'train', the rest.
    share: that is held out, above 0.
    threads: to read with.

  Raises:
    UserError: on groups of pictures, which a share would tear apart, and where nothing is held out, or all.
  """
  if hasattr(source, 'group'):
    raise UserError(
      f'data.held_out is {share:g}, and the pictures are in groups; expected 0 and a split of other persons'
    )
  hashes = files.in_chunks(lambda those: [source.content_hash(i) for i in those], range(len(source)), threads)
  held = np.array([_fraction(h) for h in hashes]) < share
  if held.all() or not held.any():
    raise UserError(
      f'data.held_out is {share:g} and holds out {held.sum()} of {len(held)} pictures; expected some on both sides'
    )
  about = {
    'rule': 'SHA-256 of the content',
    'share': share,
    'train': int((~held).sum()),
    'held_out': int(held.sum()),
  }
  return selection.Selected(
    source, np.flatnonzero(held if kind == 'held_out' else ~held), about={'held_out': about, 'split': kind}
  )


def note(about: Mapping[str, Any]) -> str:
  """Returns what is to be said of a split that was made so."""
  return (
    f'no valid split: {about["valid"]} pictures are held out of training for it, {about["train"]} are left, each by its own content '
    f'(data.held_out = {about["share"]:g}; 0 = none)'
  )


def _stamp(path: str) -> tuple[str, int, int]:
  """Returns what changes when a file does: path, size, time of change."""
  try:
    stat = os.stat(path)
  except OSError:
    return path, -1, -1
  return path, stat.st_size, stat.st_mtime_ns


@functools.lru_cache(maxsize=2)  # both sides are asked for, one after the other
def _fractions(stamps: tuple[tuple[str, int, int], ...], threads: int) -> list[float]:
  """Returns where each file's hash stands in 0..1; a file that can't be read is at 1, to be found by whoever trains on it."""

  def of(chunk: Sequence[tuple[str, int, int]]) -> list[float]:
    hashes = [sources.file_hash(path, '') for path, *_ in chunk]
    return [_fraction(h) for h in hashes]

  return files.in_chunks(of, stamps, threads)


def _fraction(content_hash: str) -> float:
  return 1.0 if content_hash.startswith('unreadable') else int(content_hash[:16], 16) / 2.0**64

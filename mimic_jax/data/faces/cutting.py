"""What the readers of published face sets share: a tree held against its lists."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mimic_jax.data.faces import alignment
from mimic_jax.runtime.errors import UserError


def unread(paths: Sequence[str], why: str) -> list[str]:
  """Returns a warning that pictures on disk are not read, with their number and the first; [] where there are none."""
  more = f' and {len(paths) - 1} more' if len(paths) > 1 else ''
  return [f'not read, since {why}: {paths[0]}{more}'] if paths else []


def columns(path: str, header: Sequence[str], names: Sequence[str]) -> list[int]:
  """Returns where the named columns are; raises UserError where one is missing."""
  header = [h.strip() for h in header]
  for name in names:
    if name not in header:
      raise UserError(f"{path}:1: no column '{name}'; expected {', '.join(names)}")
  return [header.index(name) for name in names]


def to_keep(
  root: str, paths: Sequence[str], on_disk: Sequence[bool], place: Callable[[int], str], on_bad_image: str
) -> tuple[np.ndarray, dict[str, int]]:
  """Decides which of the pictures that label files name are kept, though not all of them may be on disk.

  Those that `mimic align` left out of a folder that it made are left out here. Of others that are missing
  none may be, unless they are left to whoever reads them.

  Args:
    root: the source's folder.
    paths: of the pictures, relative to it, with '/'.
    on_disk: which of them are there.
    place: says of picture k what names it, as 'file:line'.
    on_bad_image: 'skip' keeps those that are missing.

  Returns:
    The kept ones' numbers, and {'by mimic_jax.align': number left out}, {} where that is none.

  Raises:
    UserError: on a missing picture, with the number of others.
  """
  missing = [k for k, here in enumerate(on_disk) if not here]
  known = left_out(root) if missing else frozenset()
  without = [k for k in missing if paths[k] in known]
  others = [k for k in missing if paths[k] not in known]
  if others and on_bad_image == 'error':
    more = f' (and {len(others) - 1} more)' if len(others) > 1 else ''
    raise UserError(
      f'{os.path.join(root, paths[others[0]])}: does not exist, but {place(others[0])} names it{more}; expected a '
      "picture (data.on_bad_image = 'skip' goes on without)"
    )
  kept = np.delete(np.arange(len(paths)), without)
  return kept, {f'by {alignment.MADE_BY}': len(without)} if without else {}


def left_out(root: str) -> frozenset[str]:
  """Returns the pictures that `mimic align` did not write into a folder that it made."""
  if alignment.of_root(root)['align'] == 'none':
    return frozenset()
  with open(os.path.join(root, alignment.FILE), encoding='utf-8') as f:
    made = json.load(f)
  without_face = made.get('pictures_without_face', []) if made.get('on_missing') == 'keep_out' else []
  return frozenset([*without_face, *made.get('unreadable', {})])


def held_against(
  what: str, counts: Mapping[str, int], published: Sequence[Mapping[str, int]]
) -> dict[str, Any]:
  """Compares the number of pictures of each class with the published ones.

  Args:
    what: 'rafdb train', for the warning.
    counts: class -> number of pictures here.
    published: the same of the release; several where its versions differ, the first being the usual one.

  Returns:
    {'expected_count': int, 'warnings': []}, or with one warning that states both, and says so where the numbers are the
    published ones in another order of the classes.
  """
  expected = [sum(p.values()) for p in published]
  if any(dict(counts) == dict(p) for p in published):
    return {'expected_count': sum(counts.values()), 'warnings': []}

  def said(numbers: Mapping[str, int]) -> str:
    return f'{sum(numbers.values())} pictures ({"/".join(map(str, numbers.values()))})'

  differs = f'{what} has {said(counts)}, the published release {" or ".join(map(said, published))}'
  if any(sorted(counts.values()) == sorted(p.values()) for p in published):
    differs += (
      f': the same numbers of other classes, so the class order looks wrong; expected {", ".join(counts)}'
    )
  return {'expected_count': expected[0], 'warnings': [differs]}

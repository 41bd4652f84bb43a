"""Where pictures come from: sources by name, alone or several joined."""

import importlib
import pkgutil
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any

from mimic_jax.data import classes, held_out, selection, sets
from mimic_jax.data.options import OF_SOME, defaults
from mimic_jax.data.sets import folder
from mimic_jax.data.source import Cached, Concat, Source
from mimic_jax.runtime import remote
from mimic_jax.runtime.errors import UserError, one_of
from mimic_jax.runtime.files import is_remote

# Those of data/sets: each has `build(root, split, options) -> Source` and is imported when its name is asked for, since one
# source's needs are not another's. It may have READS, fields of options.OF_SOME that it reads, or held_out; WHOLE, see `whole`; and
# `fetch(root, split, options) -> str`, which brings what a split needs of a remote root here, where that is less than all of it.
SOURCES = sorted(m.name for m in pkgutil.iter_modules(sets.__path__) if not m.name.startswith('_'))


def build(source: str, root: str, split: str, options: Mapping[str, Any]) -> Source:
  """Returns the source of that name, or several of them one after the other.

  Several with the same classes by other names or in another order ('happy' is 'happiness') get the names and the order of
  the first; where the classes differ there are no labels (Concat.why_unlabelled).

  Args:
    source: one of SOURCES, or several, comma-separated.
    root: its path ('' for drawn pictures), or one for each source, comma-separated.
    split: 'train', 'valid', …; the same for all sources.
    options: the data section of the config (defaults()); each of several sources gets all of it.

  Raises:
    UserError: on an unknown name, on paths that don't match the names in number, on a field that none of the sources
      reads, and on whatever a source finds wrong.
  """
  for field in unread(source, options):
    raise UserError(
      f"data.{field} is '{options[field]}', which source '{source}' does not read; expected '{defaults()[field]}', its default"
    )
  parts = [_one(name, path, split, options) for name, path in _named(source, root)]
  return parts[0] if len(parts) == 1 else Concat(_by_name(parts))


def whole(source: str, root: str, split: str, options: Mapping[str, Any]) -> Source:
  """Returns all pictures of a training split that anything may have been trained on, to find copies of them elsewhere.

  Those that a label rule leaves out are there, too: pre-training may have seen them. A set in ArrayRecord is
  what was written when it was prepared, no more: what a label rule left out then is not looked at. All other sources are
  as `build` gives them. Labels are of no concern here.

  Args:
    source, root, split, options: as for `build`, which the same has been given to.

  Raises:
    UserError: on whatever a source finds wrong.
  """
  parts = []
  for name, path in _named(source, root):
    most = getattr(_module(name), 'WHOLE', {})
    parts.append(_one(name, path, split, {**options, **most, 'cache': False}))
  return parts[0] if len(parts) == 1 else Concat(parts)


def first(source: str, value: str) -> str:
  """Returns what of a field belongs to the first of several sources; of one source all of it, commas included."""
  return value.split(',')[0].strip() if ',' in source else value


def unread(source: str, options: Mapping[str, Any]) -> list[str]:
  """Returns the fields of a data section that are not at their defaults though none of the sources reads them."""
  usual, modules = defaults(), map(_module, source.split(','))
  read = {field for module in modules for field in getattr(module, 'READS', ())}
  return [f for f in OF_SOME if f not in read and options.get(f, usual[f]) != usual[f]]


def _module(name: str) -> types.ModuleType:
  return importlib.import_module(f'{sets.__name__}.{one_of("data.source", name.strip(), SOURCES)}')


def _named(source: str, root: str) -> list[tuple[str, str]]:
  """Returns the (name, path) of each source."""
  names = [name.strip() for name in source.split(',')]
  roots = [path.strip() for path in root.split(',')] if len(names) > 1 else [root]
  if len(names) != len(roots):
    raise UserError(
      f"data.root '{root}' has {len(roots)} comma-separated paths, but data.source '{source}' has {len(names)} "
      'names; expected as many (a path may be empty)'
    )
  return list(zip(names, roots))


def _one(name: str, path: str, split: str, options: Mapping[str, Any]) -> Source:
  module = _module(name)
  share = options.get('held_out', 0) if 'held_out' not in getattr(module, 'READS', ()) else 0
  side = folder.canonical(split)
  divided = share and side in ('train', 'held_out')
  if share and not divided and re.search(r'\b(train|training|all)\b', split):
    raise UserError(
      f"data.split is '{split}', and data.held_out is {share:g} of split 'train'; expected 'train', or data.held_out=0"
    )
  split = 'train' if divided else split
  if is_remote(path):
    if hasattr(module, 'fetch'):
      path = module.fetch(path, split, options)
    else:
      path = remote.fetched(path, 'data.root')
  part = module.build(path, split, options)
  if divided:
    part = held_out.of_source(part, side, share, options.get('threads', 8))
  return Cached(part) if options.get('cache', False) else part


def _by_name(parts: Sequence[Source]) -> list[Source]:
  """Returns sources that have the same classes with the names and the order of the first's; others as they are."""
  first = tuple(parts[0].class_names)
  wanted = {classes.canonical(name) for name in first}
  sets = [[classes.canonical(name) for name in part.class_names] for part in parts]
  if not first or any(set(names) != wanted or len(names) != len(wanted) for names in sets):
    return list(parts)
  return [selection.for_classes(part, first, f'data.source: number {k}') for k, part in enumerate(parts, 1)]

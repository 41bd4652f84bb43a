"""Where pictures come from: sources by name, alone or several joined."""

import importlib
from collections.abc import Mapping
from typing import Any

from mimic_jax.data.source import Cached, Concat, Source
from mimic_jax.errors import UserError, one_of

# A module with `build(root, split, options) -> Source`, imported when its name is asked for: one source's needs are not
# another's.
SOURCES = {
  'synthetic_images': 'mimic_jax.data.synthetic_images',
  'synthetic_faces': 'mimic_jax.data.synthetic_faces',
  'folder': 'mimic_jax.data.folder',
  'rafdb': 'mimic_jax.data.rafdb',
  'ferplus': 'mimic_jax.data.ferplus',
  'affectnet': 'mimic_jax.data.affectnet',
  'tfds': 'mimic_jax.data.tfds',
}


def build(source: str, root: str, split: str, options: Mapping[str, Any]) -> Source:
  """Returns the source of that name, or several of them one after the other.

  Args:
    source: a key of SOURCES, or several, comma-separated.
    root: its path ('' for drawn pictures), or one for each source, comma-separated.
    split: 'train', 'valid', …; the same for all sources.
    options: the data section of the config (defaults.data()).

  Raises:
    UserError: on an unknown name, on paths that don't match the names in number, and on whatever a source finds wrong.
  """
  names = [name.strip() for name in source.split(',')]
  roots = [path.strip() for path in root.split(',')] if len(names) > 1 else [root]
  if len(names) != len(roots):
    raise UserError(
      f"data.root '{root}' has {len(roots)} comma-separated paths, but data.source '{source}' has {len(names)} "
      'names; expected as many (a path may be empty)'
    )
  parts: list[Source] = []
  for name, path in zip(names, roots):
    module = importlib.import_module(SOURCES[one_of('data.source', name, SOURCES)])
    part = module.build(path, split, options)
    parts.append(Cached(part) if options.get('cache', False) else part)
  return parts[0] if len(parts) == 1 else Concat(parts)

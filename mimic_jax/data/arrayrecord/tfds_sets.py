"""TFDS's side of source 'tfds': which data sets a folder holds, their splits, files and features."""

import functools
import os
import re
import resource
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf import json_format

from mimic_jax.data.sets.folder import SPLITS
from mimic_jax.runtime.errors import READ_ERRORS, UserError, nearest

INFO = 'dataset_info.json'
DESCRIBING = ('.json', '.txt')  # endings of what stands beside the shards: features, names of classes
ARRAY_RECORD = 'array_record'
ID_FEATURES = ('id', 'file_name', 'filename', 'image/filename', 'image_id')  # text that may name a picture
_MOST_LISTED = 12  # data sets in a message
_SPARE_FILES = 256  # open files for everything but the data
_NAME = re.compile(r'(\w+)(?:/([\w.+-]+))?(?::((?:\d+|\*)\.(?:\d+|\*)\.(?:\d+|\*)))?')
_TERM = re.compile(r'\s*(\w+)\s*(\[[^\]]*\])?\s*')  # of a split: 'train', 'train[:90%]'


class Part(NamedTuple):
  """Consecutive pictures of one split: `count` of them from number `first` on."""

  split: str
  first: int
  count: int


class Features(NamedTuple):
  """Which features of a set are what; '' where there is none."""

  image: str
  label: str
  id: str


@functools.lru_cache(maxsize=16)
def builder_of(place: str) -> Any:
  """Returns TFDS's reader of a data set; raises UserError where it can't be read or isn't in ArrayRecord."""
  try:
    builder = tfds.builder_from_directory(place)
    formats = {f.value for f in builder.info.available_file_formats()}
    if ARRAY_RECORD in formats and builder.info.file_format.value != ARRAY_RECORD:
      builder = tfds.builder_from_directory(place, file_format=ARRAY_RECORD)
  except (
    *READ_ERRORS,
    AttributeError,
    AssertionError,
    ImportError,
    json_format.Error,
  ) as e:  # a folder that isn't as TFDS left it
    why = f'{type(e).__name__}: {" ".join(str(e).split())[:200]}'
    raise UserError(f"{place}: TFDS can't read this data set ({why}); prepare it again") from None
  if ARRAY_RECORD not in formats:
    raise UserError(
      f'{place}: is prepared as {", ".join(sorted(formats)) or "nothing"}; expected {ARRAY_RECORD}, as by '
      f"tfds.builder('{builder.info.name}').download_and_prepare(file_format='{ARRAY_RECORD}')"
    )
  files = sum(s.num_shards for s in builder.info.splits.values())
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if files + _SPARE_FILES > soft:  # each file of the set stays open
    hard = files + _SPARE_FILES if hard == resource.RLIM_INFINITY else min(hard, files + _SPARE_FILES)
    resource.setrlimit(
      resource.RLIMIT_NOFILE, (max(soft, hard), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
  return builder


@functools.lru_cache(maxsize=64)
def only(place: str, names: tuple[str, ...]) -> Any:
  """Returns only the features named: what else is in a record isn't decoded."""
  features = builder_of(place).info.features
  return tfds.features.FeaturesDict({name: features[name] for name in names})


def find(root: str, name: str) -> str:
  """Returns the folder of a data set's version; raises UserError saying what is there instead."""
  root = os.path.expanduser(root) or os.path.expanduser(str(tfds.core.constants.DATA_DIR))
  if not os.path.isdir(root):
    raise UserError(f"data.root '{root}' is not a folder; source 'tfds' looks for prepared data sets there")
  if not name and os.path.isfile(os.path.join(root, INFO)):
    return os.path.abspath(root)
  here = _sets(root)
  listed = ', '.join(list(here)[:_MOST_LISTED]) + (', …' if len(here) > _MOST_LISTED else '')
  holds = f"'{root}' holds {listed or 'no prepared data set'}"
  parsed = _NAME.fullmatch(name)
  if parsed is None:
    raise UserError(
      f"data.name is '{name}'; expected a data set as TFDS names it, as in imagenet2012:5.1.0; {holds}"
    )
  base = '/'.join(part for part in parsed.groups()[:2] if part)
  matching = [
    place
    for key, place in here.items()
    if key.rpartition(':')[0] == base
    and (parsed[3] is None or tfds.core.Version(key.rpartition(':')[2]).match(parsed[3]))
  ]
  if not matching:
    raise UserError(f"data.name is '{name}'{nearest(name, here)}, which isn't prepared: {holds}")
  return os.path.abspath(matching[-1])


def _sets(root: str) -> dict[str, str]:
  """Returns the prepared data sets in a folder, 'name:version' or 'name/config:version' -> folder; versions rise."""
  found = {}

  def versions(key: str, place: str) -> None:
    for version in tfds.core.utils.version.list_all_versions(place):
      if os.path.isfile(os.path.join(place, str(version), INFO)):
        found[f'{key}:{version}'] = os.path.join(place, str(version))

  for name in _folders(root):
    place = os.path.join(root, name)
    versions(name, place)
    for config in _folders(place):
      versions(f'{name}/{config}', os.path.join(place, config))
  return found


def _folders(place: str) -> list[str]:
  with os.scandir(place) as entries:
    return sorted(e.name for e in entries if not e.name.startswith('.') and e.is_dir())


def parts_of(info: Any, split: str, place: str) -> tuple[str, list[Part]]:
  """Returns a split as the set names it, and what it is."""
  here = list(info.splits)
  terms = []
  for text in split.split('+'):
    parsed = _TERM.fullmatch(text)
    name = parsed[1] if parsed else text
    synonyms = next((names for names in SPLITS.values() if name in names), ())
    known = next((n for n in (name, *synonyms) if n in here), None)
    if parsed is None or known is None:
      raise UserError(f"no split '{name}' in {place}: it holds {', '.join(here) or 'none'}")
    terms.append(known + (parsed[2] or ''))
  expression = '+'.join(terms)
  try:
    files = info.splits[expression].file_instructions
  except (ValueError, AssertionError) as e:
    raise UserError(
      f"data.split is '{split}': {' '.join(str(e).split())}; expected one as in train[:90%]"
    ) from None
  starts = {}
  for name, one in info.splits.items():
    ends = np.cumsum([0, *one.shard_lengths])
    starts |= {path.name: (name, int(end)) for path, end in zip(one.filepaths, ends)}
  parts: list[Part] = []
  for file in files:
    name, start = starts[os.path.basename(file.filename)]
    last = parts[-1] if parts else None
    if last and (last.split, last.first + last.count) == (name, start + file.skip):
      parts[-1] = last._replace(count=last.count + file.take)
    else:
      parts.append(Part(name, start + file.skip, file.take))
  if not parts or min(file.take for file in files) < 1:  # of 'train[90%:10%]' TFDS makes a negative number
    raise UserError(f"data.split is '{split}', which has no picture in {place}")
  return expression, parts


def check_files(info: Any, parts: Sequence[Part], place: str, sizes: Mapping[str, int]) -> None:
  """Looks for the files of a split.

  Args:
    info: of the data set.
    parts: those of the split.
    place: the data set's folder.
    sizes: file name -> bytes, of those files where it is known.

  Raises:
    UserError: on the first file that is missing or has another size.
  """
  for name in dict.fromkeys(part.split for part in parts):
    split = info.splits[name]
    for path in (p for p, length in zip(split.filepaths, split.shard_lengths) if length):
      if not os.path.isfile(path):
        raise UserError(f'{path}: does not exist, but {os.path.join(place, INFO)} names it; prepare it again')
      size = os.path.getsize(path)
      if size != sizes.get(path.name, size):
        raise UserError(f'{path}: has {size} bytes; expected {sizes[path.name]}: prepare the set again')


def features_of(features: Any, place: str) -> tuple[Features, str]:
  """Finds picture, label and id by type, and of several by name; returns also what a user should know."""
  # as stored, their order varies
  kinds = dict(sorted(features.items())) if hasattr(features, 'items') else {}
  images = [k for k, f in kinds.items() if type(f) is tfds.features.Image]
  labels = [k for k, f in kinds.items() if isinstance(f, tfds.features.ClassLabel)]
  texts = [k for k, f in kinds.items() if isinstance(f, tfds.features.Text)]
  image = 'image' if 'image' in images else images[0] if len(images) == 1 else ''
  label = 'label' if 'label' in labels else labels[0] if len(labels) == 1 else ''
  if not image:
    what = f'several ({", ".join(images)}), none of them called image' if images else 'none'
    raise UserError(f'{place}: expected one feature that is a picture; its features have {what}')
  if np.dtype(features[image].np_dtype) != np.uint8:
    raise UserError(f'{place}: pictures are {np.dtype(features[image].np_dtype)}; expected uint8')
  note = ''
  if labels and not label:
    note = f'{place} has several kinds of classes ({", ".join(labels)}), none of them called label: read without labels'
  return Features(image, label, next((k for k in ID_FEATURES if k in texts), '')), note

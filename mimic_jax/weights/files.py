"""Opens weight files by what is in them, never by their name: PyTorch's (zip and the older pickle) and safetensors.

Nothing in a file is run (pytorch.py).
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from mimic_jax.runtime import remote
from mimic_jax.runtime.errors import UserError, short
from mimic_jax.weights import pytorch

SAFETENSORS = 'safetensors'
MODEL_FILES = ('model.safetensors', 'pytorch_model.bin')
CONFIG_FILES = ('config.json', 'preprocessor_config.json')
# what an interrupted or mistaken download leaves under a weight file's name
MISTAKEN = {
  b'version https://git-lfs': 'a pointer of Git LFS (`git lfs pull` fetches the file itself)',
  b'<': 'a web page or XML (the download was of the page, not of the file)',
}


@dataclasses.dataclass(frozen=True)
class Contents:
  """What a weight file holds.

  Attributes:
    path: the file, or the model folder.
    container: the file format.
    tensors: name in the file -> array of any shape and of the file's own dtype; bfloat16 may have become float32.
    dtypes: name in the file -> dtype in the file, 'float16', 'bfloat16', …
    place: the key under which the tensors stood in a PyTorch file, '' = at its top.
    beside: what else stood at its top, name -> whether there are tensors in it.
    args: a training checkpoint's command line.
    config: config.json and preprocessor_config.json of a model folder, in one.
    said_in: its fields -> the file.
  """

  path: epath.Path
  container: str
  tensors: dict[str, np.ndarray]
  dtypes: dict[str, str]
  place: str = ''
  beside: Mapping[str, bool] = dataclasses.field(default_factory=dict)
  args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  said_in: Mapping[str, epath.Path] = dataclasses.field(default_factory=dict)


def open_weights(path: epath.Path, field: str) -> Contents | None:
  """Reads a weight file or a model folder.

  Args:
    path: exists.
    field: the config's field or the flag that holds it, for errors.

  Returns:
    None for a folder that holds no weight file, and a file that is none.

  Raises:
    UserError: when it is one but truncated or damaged, holds code, or needs PyTorch and there is none.
  """
  if path.is_dir():
    return _open_folder(path, field)
  container = _container(path, field)
  if container is None:
    return None
  if container == SAFETENSORS:
    return _open_safetensors(path, [path], field)
  return _open_pytorch(path, container, field)


def _container(path: epath.Path, field: str) -> str | None:
  """Returns a file's format by its first bytes; None when it is none of those read here."""
  here = remote.fetched(str(path), field)
  if not os.path.isfile(here):  # a pipe, say: reading it might wait for ever
    raise UserError(f"{field} is '{path}', which is no file; expected weights")
  with open(here, 'rb') as f:
    head = f.read(32)
  if not head:
    raise UserError(f"{field} is '{path}', which is empty; expected weights")
  for start, what in MISTAKEN.items():
    if head.lstrip().startswith(start):
      raise UserError(f"{field} is '{path}', which is {what}; expected weights")
  if head.startswith(b'PK\x03\x04'):
    return pytorch.ZIP
  if head[:2] in (b'\x80\x02', b'\x80\x03', b'\x80\x04', b'\x80\x05'):
    return pytorch.PICKLE
  # eight bytes of the header's length, then its JSON
  if len(head) > 8 and head[8:9] == b'{' and struct.unpack('<Q', head[:8])[0] < 1 << 27:
    return SAFETENSORS
  return None


def _open_folder(path: epath.Path, field: str) -> Contents | None:
  """Reads a model folder: an index of shards, or the one weight file in it."""
  names = sorted(p.name for p in path.iterdir())
  index = [n for n in names if n.endswith('.index.json')]
  # a folder often holds the same model in both forms: safetensors need no PyTorch
  for end in ('.safetensors', ('.bin', '.pth', '.pt')):
    found = [n for n in names if n.endswith(end)]
    # beside a model's own file there may be others of its training's, such as training_args.bin
    found = [n for n in found if n in MODEL_FILES] or found
    listed = [n for n in index if n.removesuffix('.index.json').endswith(end)]
    if listed:
      contents = _open_shards(path / listed[0], field)
    elif len(found) == 1:
      contents = open_weights(path / found[0], field)
    elif found:
      raise UserError(
        f"{field} is '{path}', which holds several weight files; expected one of {', '.join(found)}"
      )
    else:
      continue
    if contents is not None:
      config, said_in = _config(path, field)
      return dataclasses.replace(contents, path=path, config=config, said_in=said_in)
  return None


def _config(folder: epath.Path, field: str) -> tuple[dict[str, Any], dict[str, epath.Path]]:
  """Returns what a model folder's config files say, in one, and which of them says it."""
  config, said_in = {}, {}
  for file in (folder / name for name in CONFIG_FILES):
    if file.exists():
      read = _json(file, field)
      if isinstance(read, Mapping):
        for nested in ('model_args', 'pretrained_cfg'):  # timm's
          read = {**read, **(read[nested] if isinstance(read.get(nested), Mapping) else {})}
        config |= read
        said_in |= dict.fromkeys(read, file)
  return config, said_in


def _json(file: epath.Path, field: str) -> Any:
  try:
    return json.loads(pathlib.Path(remote.fetched(str(file), field)).read_text('utf-8'))
  except (ValueError, RecursionError) as e:  # ValueError also for what is not UTF-8
    raise UserError(
      f'{file} is no JSON ({short(e)}); expected the file that was saved with the weights'
    ) from e


def _open_shards(index: epath.Path, field: str) -> Contents:
  """Reads the files that an index names; every tensor that it lists must be there."""
  listed = _listed(index, field)
  files = [index.parent / name for name in sorted(set(listed.values()))]
  for file in files:
    if not file.exists():
      raise UserError(f'{file} does not exist; {index.name} lists it')
    if file.is_dir():
      raise UserError(f'{file} is a folder; {index.name} lists it, expected a weight file')
  kinds = {file.name: _container(file, field) for file in files}
  if set(kinds.values()) == {SAFETENSORS}:
    contents = _open_safetensors(index.parent, files, field)
  else:
    parts = [open_weights(file, field) for file in files]
    if None in parts:
      raise UserError(f'{files[parts.index(None)]} is no weight file; {index.name} lists it as one')
    tensors = {k: v for p in parts for k, v in p.tensors.items()}
    contents = dataclasses.replace(
      parts[0], tensors=tensors, dtypes={k: v for p in parts for k, v in p.dtypes.items()}
    )
  absent = sorted(set(listed) - set(contents.tensors))
  if absent:
    raise UserError(
      f"{index.parent / listed[absent[0]]} has no '{absent[0]}', which {index.name} lists for it"
    )
  return contents


def _listed(index: epath.Path, field: str) -> dict[str, str]:
  """Returns an index's tensor -> file; the files stand beside it."""
  read = _json(index, field)
  if not isinstance(read, Mapping):
    raise UserError(f"{index} is a JSON {type(read).__name__}; expected an object with a 'weight_map'")
  if not read.get('weight_map'):
    raise UserError(f"{index} has no 'weight_map'; expected an index of weight files")
  listed = read['weight_map']
  if not isinstance(listed, Mapping):
    raise UserError(
      f"{index}: 'weight_map' is a JSON {type(listed).__name__}; expected an object, tensor name: file name"
    )
  for name, file in listed.items():
    if not isinstance(file, str) or file in ('', '.', '..') or re.search(r'[/\\\0]', file):
      raise UserError(
        f"{index}: 'weight_map' has {shown(file)} for '{name}'; expected the name of a file in this folder"
      )
  return listed


def shown(value: Any) -> str:
  """Returns a value out of a JSON file as it stands there, shortened."""
  text = json.dumps(value)
  return text if len(text) < 60 else f'{text[:57]}…'


def _open_safetensors(path: epath.Path, files: list[epath.Path], field: str) -> Contents:
  tensors, dtypes = {}, {}
  for file in files:
    name = ''
    try:
      with safetensors.safe_open(remote.fetched(str(file), field), framework='np') as f:
        for name in f.keys():  # noqa: SIM118  (it is no dict)
          tensors[name] = f.get_tensor(name)
          dtypes[name] = tensors[name].dtype.name
    except safetensors.SafetensorError as e:
      raise UserError(
        f"{field}: '{file}' is truncated or damaged ({short(e)}); expected a whole safetensors file"
      ) from e
    except (AttributeError, TypeError) as e:  # a dtype that NumPy has not
      raise UserError(
        f"{field}: '{file}': '{name}' is of an unknown type ({short(e)}); expected floats of 16 to 64 bits"
      ) from e
  return Contents(path, SAFETENSORS, tensors, dtypes)


def _open_pytorch(path: epath.Path, container: str, field: str) -> Contents:
  if importlib.util.find_spec('torch') is None:
    raise UserError(
      f"{field}: '{path}' is a PyTorch file, and PyTorch is not installed; expected `pip install torch` (its CPU build "
      'will do), or the same weights as safetensors'
    )
  return Contents(
    path, container, **_in_pytorch(f"{field}: '{path}'", remote.fetched(str(path), field), container, field)
  )


def convert(path: epath.Path, to: epath.Path, field: str) -> Contents:
  """Writes a PyTorch file's tensors as safetensors, under their names and in their own dtypes.

  Args:
    path: the file, which is there.
    to: a new file on this machine.
    field: what holds the path on the command line, for errors.

  Returns:
    What was read.

  Raises:
    UserError: when it is no such file, `to` is there already, or a tensor can't be written.
  """
  container = _container(path, field) if path.is_file() else None
  if container in (None, SAFETENSORS):
    what = 'already safetensors' if container else 'no such file'
    raise UserError(f"{field} is '{path}', which is {what}; expected a file of PyTorch's (.pth, .bin)")
  if to.exists():
    raise UserError(f"'{to}' is there already; expected a new file")
  read = _open_pytorch(path, container, field)
  tensors = {n: a.astype(_dtype(read.dtypes[n]), copy=False) for n, a in read.tensors.items()}
  beside = to.parent / f'.{to.name}.{os.getpid()}'
  try:
    beside.write_bytes(safetensors.numpy.save(tensors, {'format': 'pt'}))
    os.replace(beside, to)
  except (safetensors.SafetensorError, KeyError) as e:
    raise UserError(
      f"{field}: '{path}' holds what safetensors has no place for ({short(e)}); expected numbers"
    ) from e
  except OSError as e:
    raise UserError(f"'{to}' can not be written ({e.strerror or e})") from e
  finally:
    beside.unlink(missing_ok=True)
  return read


def _dtype(name: str) -> np.dtype:
  """Returns PyTorch's dtype, by its name, in NumPy; bfloat16 and its like are ml_dtypes'."""
  return np.dtype(getattr(ml_dtypes, name, name))


def write_pytorch(path: str, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes {'model': tensors} as a PyTorch file.

  Raises:
    UserError: when there is no PyTorch, or it fails.
  """
  if importlib.util.find_spec('torch') is None:
    raise UserError(
      f"'{path}' is to be a PyTorch file, and PyTorch is not installed; expected `pip install torch` (its CPU build will do)"
    )
  _in_pytorch(f"'{path}'", path, given=tensors)


def _in_pytorch(where: str, *arguments: str, given: Any = None) -> Any:
  """Has a process of its own run pytorch.py, so that this one, which may hold a GPU, never imports PyTorch; returns its answer.

  Args:
    where: begins an error.
    arguments: of the command line.
    given: what it reads on standard input.
  """
  command = [sys.executable, '-P', pytorch.__file__, *arguments]
  paths = os.pathsep.join(os.path.abspath(p) for p in sys.path)
  pipes = {'stdin': None if given is None else subprocess.PIPE, 'stdout': subprocess.PIPE}
  with subprocess.Popen(command, env={**os.environ, 'PYTHONPATH': paths}, **pipes) as process:
    try:
      if given is not None:
        with process.stdin:
          pickle.dump(given, process.stdin, protocol=5)
      error, found = pickle.load(process.stdout)
    except (EOFError, pickle.UnpicklingError, BrokenPipeError):
      code = process.wait()
      raise UserError(
        f'{where}: PyTorch ended with code {code} as it {"read" if given is None else "wrote"} this file; expected one that works here, and memory for '
        'all tensors'
      ) from None
  if error:
    raise UserError(error)
  return found

"""Reads and writes PyTorch's files, as a program of its own, which writes a pickle to standard output.

  python pytorch.py FILE CONTAINER FIELD    reads
  python pytorch.py FILE                    writes what stands on standard input, a pickle of NumPy arrays by name

Nothing in a file is run: it is read with weights_only=True. One class is allowed beside tensors, argparse.Namespace, which
MAE's training checkpoints hold and which is data alone; for NumPy scalars and paths, which stand in many, a value is put that
holds nothing.
"""

import argparse
import os
import pickle
import re
import signal
import sys
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from mimic_jax.runtime.errors import READ_ERRORS, UserError, short

ZIP, PICKLE = 'PyTorch', 'PyTorch before 1.6'
# where a state dict stands in a PyTorch file, in the order looked for; else the file itself may be one
STATE_KEYS = ('model', 'state_dict', 'model_state_dict', 'model_state', 'module', 'net')
# of a moving average of the weights (DeiT's and MAE's forks write it beside 'model'); taken where it is the only state
EMA_KEYS = ('model_ema', 'ema', 'teacher')  # DINO's teacher is its student's moving average
# What may stand beside tensors: the arguments of a training, and NumPy's numbers.
HARMLESS = [
  argparse.Namespace,
  (np._core.multiarray.scalar, 'numpy.core.multiarray.scalar'),
  np._core.multiarray.scalar,
  np.dtype,
  *(type(np.dtype(kind)) for kind in ('float64', 'float32', 'int64', 'int32', 'bool')),
]
# what people know as something else
CALLED = {f'numpy.{core}.multiarray._reconstruct': ' (a NumPy array)' for core in ('core', '_core')}


def read(path: str, container: str, field: str) -> dict[str, Any]:
  """Reads a PyTorch file with weights_only=True.

  Args:
    path: the file.
    container: ZIP or PICKLE.
    field: the config's field or the flag that holds it, for errors.

  Returns:
    tensors, dtypes, place, beside and args of files.Contents.

  Raises:
    UserError: when it is damaged, holds code or no weights, or PyTorch can't be imported.
  """
  try:
    import torch
  except ImportError as e:
    raise UserError(
      f"{field}: '{path}' is a PyTorch file, and PyTorch can't be imported ({short(e)}); expected one that can, or the "
      'same weights as safetensors'
    ) from e
  try:
    if container == ZIP and zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as z:
        if not any(n.endswith('data.pkl') for n in z.namelist()):
          raise UserError(f"{field} is '{path}', a zip file without PyTorch's data.pkl; expected weights")
    with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
      warnings.simplefilter('ignore')
      # mapped, so that an optimiser's state, twice as large as the model, is never read
      loaded = torch.load(path, map_location='cpu', weights_only=True, mmap=container == ZIP)
  except (*READ_ERRORS, pickle.UnpicklingError, AttributeError, AssertionError) as e:
    code = re.search(r'GLOBAL ([\w.]+)', str(e))
    if code:
      raise UserError(
        f"{field}: '{path}' holds more than weights, '{code[1]}'{CALLED.get(code[1], '')}, which was not run or made; expected "
        "tensors alone (if you trust the file: torch.save(torch.load('FILE', weights_only=False)['model'], 'NEW') saves "
        "them alone, with the key of its state dict for 'model')"
      ) from e
    raise UserError(
      f"{field}: '{path}' is truncated, damaged or no PyTorch file ({short(e)}); expected a whole one"
    ) from e
  return _state(path, loaded, torch, field)


def _state(path: str, loaded: Any, torch: Any, field: str) -> dict[str, Any]:
  """Finds the state dict in what PyTorch loaded and turns its tensors to NumPy."""
  if not isinstance(loaded, Mapping):
    raise UserError(
      f"{field}: '{path}' holds a {type(loaded).__name__}; expected a state dict, or one under 'model' or 'state_dict'"
    )
  place = _place(path, loaded, torch, field)
  if place is None:
    keys = ', '.join(f"'{k}'" for k in list(loaded)[:6]) or 'nothing'
    raise UserError(
      f"{field}: '{path}' holds {keys}; expected a state dict, or one under 'model' or 'state_dict'"
    )
  state = loaded[place] if place else loaded
  tensors, dtypes = {}, {}
  for name, value in state.items():
    if not isinstance(value, torch.Tensor):
      continue
    dtypes[str(name)] = str(value.dtype).removeprefix('torch.')
    if value.layout is not torch.strided or value.is_quantized:
      raise UserError(
        f"{field}: '{path}': '{name}' is sparse or quantised; expected a dense tensor of floats"
      )
    if value.is_meta:
      raise UserError(
        f"{field}: '{path}': '{name}' has a shape and no values (it was saved on PyTorch's meta device); expected a dense "
        'tensor of floats'
      )
    value = value.detach()
    try:
      tensors[str(name)] = (value if hasattr(np, dtypes[str(name)]) else value.float()).numpy()
    except (RuntimeError, TypeError) as e:  # a dtype or a view that NumPy has not
      raise UserError(
        f"{field}: '{path}': '{name}' can't be had as numbers ({short(e)}); expected a dense tensor of floats"
      ) from e
  args = loaded.get('args') if place else None
  return {
    'tensors': tensors,
    'dtypes': dtypes,
    'place': place,
    'beside': {str(k): _holds_tensors(v, torch) for k, v in loaded.items() if k != place} if place else {},
    'args': {k: _plain(v) for k, v in vars(args).items()} if isinstance(args, argparse.Namespace) else {},
  }


def _plain(value: Any) -> Any:
  """Returns a value, or what it is in words where only PyTorch may know what it is."""
  return value if value is None or type(value) in (str, int, float, bool) else str(value)


def _place(path: str, loaded: Mapping[str, Any], torch: Any, field: str) -> str | None:
  """Returns the key of the state dict, '' where the file itself is one, None where there is none."""

  def is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, torch.Tensor) and v.ndim for v in value.values())

  states = [k for k, v in loaded.items() if is_state(v)]
  if (place := next((k for k in STATE_KEYS if k in states), None)) is not None:
    return place
  if {'student', 'teacher'} <= set(states):  # DINO
    return 'teacher'
  if any(k in states for k in EMA_KEYS):
    if len(states) > 1:
      names = ', '.join(f"'{k}'" for k in states)
      raise UserError(
        f"{field}: '{path}' holds the states {names}; expected one, or one under 'model' or 'state_dict'"
      )
    return states[0]
  return '' if is_state(loaded) else None


def _holds_tensors(value: Any, torch: Any) -> bool:
  if isinstance(value, Mapping):
    return any(_holds_tensors(v, torch) for v in value.values())
  if isinstance(value, list | tuple):
    return any(_holds_tensors(v, torch) for v in value)
  return isinstance(value, torch.Tensor)


def write(path: str) -> None:
  """Writes arrays as MAE's repository loads them, {'model': {name: tensor}}; raises UserError where PyTorch can't be imported."""
  try:
    import torch
  except ImportError as e:
    raise UserError(f"'{path}': PyTorch can't be imported ({short(e)}); expected one that can") from e
  state = {name: torch.from_numpy(np.array(array)) for name, array in pickle.load(sys.stdin.buffer).items()}
  torch.save({'model': state}, path)


def main() -> None:
  """Answers the process that started this one: (what is wrong, None), or ('', what `read` found or None)."""
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  for told_to_stop in (signal.SIGTERM, signal.SIGUSR1):  # which is for the run, and it decides when
    signal.signal(told_to_stop, signal.SIG_IGN)
  with os.fdopen(os.dup(1), 'wb') as out:
    os.dup2(2, 1)  # whatever PyTorch prints
    try:
      answer = ('', (read if len(sys.argv) > 2 else write)(*sys.argv[1:]))
    except UserError as e:
      answer = (str(e), None)
    pickle.dump(answer, out, protocol=5)


if __name__ == '__main__':
  main()

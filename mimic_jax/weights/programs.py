"""Writes what a model computes as a program that needs none of this code: StableHLO (jax.export) and ONNX (jax2onnx).

The batch is symbolic; the weights are in the program. Each is checked against the function that it was made from.
"""

import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from mimic_jax.runtime.errors import UserError, short

PLATFORMS = ('cpu', 'cuda', 'tpu')
INPUT = 'images'
# packages that are no requirements
NEEDS = {'stablehlo': ('flatbuffers',), 'onnx': ('jax2onnx', 'onnxruntime')}
FILES = {form: f'model.{form}' for form in NEEDS}
CHECKED = 3  # random pictures
TOLERANCE = 1e-4  # of what a program says, beside the largest of ours

Forward = Callable[[jax.Array], dict[str, jax.Array]]  # images [B, S, S, 3] → {name: [B, …]}


def check_installed(form: str) -> None:
  """Raises UserError where a package is missing that a form needs."""
  for package in NEEDS.get(form, ()):
    if importlib.util.find_spec(package) is None:
      raise UserError(
        f"--format is '{form}', which needs {package}, and it is not installed; expected `pip install {package}`, or the "
        f"extra '{form}' of this package"
      )


def write(form: str, forward: Forward, size: int, dtype: Any, folder: epath.Path) -> dict[str, Any]:
  """Writes a program into a folder and runs it once beside its function.

  Args:
    form: 'stablehlo' or 'onnx'.
    forward: traced; of images [B, size, size, 3].
    size: side in pixels.
    dtype: of the images, uint8 or float32.
    folder: on this machine.

  Returns:
    {'file', 'inputs', 'outputs': name → {shape, dtype}, in the program's order, 'largest_difference': name → of
    CHECKED random pictures}.

  Raises:
    UserError: when the program can't be written, or says other than its function.
  """
  path = os.fspath(folder / FILES[form])
  spec = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f'B, {size}, {size}, 3'), dtype)
  shapes = dict(sorted(jax.eval_shape(forward, spec).items()))
  run = {'stablehlo': _stablehlo, 'onnx': _onnx}[form](forward, spec, list(shapes), path)
  rng = np.random.default_rng(0)
  shape = (CHECKED, size, size, 3)
  images = rng.integers(0, 256, shape, np.uint8) if dtype == np.uint8 else rng.normal(size=shape)
  images = images.astype(dtype)
  ours, theirs = jax.device_get(jax.jit(forward)(images)), run(images)
  differences = {name: float(np.abs(ours[name] - theirs[name]).max()) for name in shapes}
  for name, difference in differences.items():
    most = TOLERANCE * max(1.0, float(np.abs(ours[name]).max()))
    if not difference <= most:  # NaN, too
      raise UserError(
        f"the {form} program's {name} differ by {difference:.2g} from this model's, of {CHECKED} random pictures; expected "
        f'at most {most:.2g} (another version of what --format {form} needs may do better)'
      )
  return {
    'file': FILES[form],
    'inputs': {INPUT: _described(spec)},
    'outputs': {name: _described(s) for name, s in shapes.items()},
    'largest_difference': differences,
  }


def _described(spec: jax.ShapeDtypeStruct) -> dict[str, Any]:
  return {'shape': [s if isinstance(s, int) else str(s) for s in spec.shape], 'dtype': str(spec.dtype)}


def _stablehlo(
  forward: Forward, spec: jax.ShapeDtypeStruct, names: list[str], path: str
) -> Callable[..., Mapping]:
  exported = jax.export.export(jax.jit(forward), platforms=PLATFORMS)(spec)
  with open(path, 'wb') as file:
    file.write(exported.serialize())
  with open(path, 'rb') as file:
    back = jax.export.deserialize(bytearray(file.read()))
  return lambda images: jax.device_get(back.call(jnp.asarray(images)))


def _onnx(
  forward: Forward, spec: jax.ShapeDtypeStruct, names: list[str], path: str
) -> Callable[..., Mapping]:
  import jax2onnx
  import onnxruntime

  def in_order(images: jax.Array) -> tuple[jax.Array, ...]:
    found = forward(images)
    return tuple(found[name] for name in names)

  # a traceback for each library that it could work with and that is not here
  logging.disable(logging.WARNING)
  try:
    jax2onnx.to_onnx(
      in_order, [spec], return_mode='file', output_path=path, input_names=[INPUT], output_names=names
    )
  except Exception as e:  # whatever it has no rule for
    raise UserError(
      f'jax2onnx has no way to write this model ({short(e)}); expected --format stablehlo'
    ) from e
  finally:
    logging.disable(logging.NOTSET)
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3  # it warns of what it leaves out
  session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
  return lambda images: dict(zip(names, session.run(names, {INPUT: images}), strict=True))

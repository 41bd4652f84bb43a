"""The device mesh, and how parameters and batches lie on it."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mimic_jax.runtime.errors import UserError

AXES = ('data', 'fsdp')
# A parameter smaller than this is kept whole on every device: splitting it would cost more than it saves.
SMALLEST_SPLIT = 2**14


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns a mesh with axes ('data', 'fsdp').

  Args:
    data: devices along 'data'; −1 = all that `fsdp` leaves.
    fsdp: devices along 'fsdp', over which parameters and optimiser state are split.
    devices: default all.

  Raises:
    UserError: when the devices can't be laid out so.
  """
  devices = list(devices or jax.devices())
  if data == -1:
    data = max(len(devices) // fsdp, 1)
  if data < 1 or data * fsdp != len(devices):
    raise UserError(
      f'config.mesh is data={data}, fsdp={fsdp}; expected a product of {len(devices)}, the number of devices'
    )
  return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that splits an array's first axis over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def state_shardings(state: Any, mesh: Mesh) -> Any:
  """Returns a sharding per leaf: the longest axis that 'fsdp' divides is split over it, the rest is replicated.

  Args:
    state: a pytree of arrays or jax.ShapeDtypeStruct.
    mesh: with axis 'fsdp'.
  """
  n = mesh.shape['fsdp']

  def one(leaf: Any) -> NamedSharding:
    axes = [i for i, size in enumerate(leaf.shape) if size % n == 0]
    if n == 1 or not axes or int(np.prod(leaf.shape)) < SMALLEST_SPLIT:
      return replicated(mesh)
    longest = max(axes, key=lambda i: (leaf.shape[i], i))
    return NamedSharding(mesh, PartitionSpec(*('fsdp' if i == longest else None for i in range(leaf.ndim))))

  return jax.tree.map(one, state)


def to_devices(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Puts this process's rows of a batch on its devices as its part of the global batch."""
  sharding = over_batch(mesh)
  return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
  """Puts an array that every process has whole onto the devices of all."""
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def local(tree: Any, mesh: Mesh) -> Any:
  """Returns a tree's arrays whole on a device of this process, where other processes hold a part of them."""
  if mesh.is_multi_process:
    whole = jax.jit(lambda t: t, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), whole)
  return tree


def check_divides(field: str, images: int, mesh: Mesh) -> None:
  """Raises UserError unless `images` divides evenly over the mesh's devices."""
  if images % mesh.size:
    raise UserError(
      f'{field} is {images}; expected a multiple of {mesh.size}, the number of devices '
      f'(nearest: {max(images // mesh.size, 1) * mesh.size})'
    )


@contextlib.contextmanager
def enough_memory(what: str, remedy: str) -> Iterator[None]:
  """Turns running out of a device's memory into a UserError.

  Args:
    what: needs it.
    remedy: what to set smaller.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    device = jax.devices()[0]
    raise UserError(
      f'{what} needs more memory than {device.platform} ({device.device_kind}) has; expected a smaller {remedy}'
    ) from e

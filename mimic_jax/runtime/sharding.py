"""The device mesh, and how parameters and batches lie on it."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mimic_jax.runtime.errors import UserError

AXES = ('data', 'fsdp')
AUTO = (AxisType.Auto,) * 2
# A parameter smaller than this is kept whole on every device: splitting it would cost more than it saves.
SMALLEST_SPLIT = 2**14


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns a mesh with axes ('data', 'fsdp').

  Args:
    data: devices along 'data'; −1 = all that `fsdp` leaves. Slices of a TPU and GPU machines lie along it.
    fsdp: devices along 'fsdp', over which parameters and optimiser state are split; within one slice or machine.
    devices: default all.

  Raises:
    UserError: when the devices can't be laid out so.
  """
  devices = list(devices or _all_devices())
  if data == -1:
    data = max(len(devices) // max(fsdp, 1), 1)
  if data < 1 or fsdp < 1 or data * fsdp != len(devices):
    raise UserError(
      f'config.mesh is data={data}, fsdp={fsdp}; expected a product of {len(devices)}, the number of devices'
    )
  slices: dict[int, list[jax.Device]] = {}
  for device in devices:
    slices.setdefault(slice_of(device), []).append(device)
  counts = sorted({len(part) for part in slices.values()})
  if len(counts) > 1 or counts[0] % fsdp:
    raise UserError(
      f'config.mesh.fsdp is {fsdp}, and each of {len(slices)} slices or machines has {" to ".join(map(str, counts))} '
      'devices; expected a divisor of their number, alike in each: weights are split within one'
    )
  # jax.make_mesh takes one slice only, and most kinds of TPU only as products of a slice's sides: 64 chips are no 8 × 8 for it.
  laid = [
    mesh_utils.create_device_mesh((counts[0] // fsdp, fsdp), slices[k], allow_split_physical_axes=True)
    for k in sorted(slices)
  ]
  return Mesh(np.concatenate(laid), AXES, axis_types=AUTO)


def _all_devices() -> list[jax.Device]:
  try:
    return jax.devices()
  except (RuntimeError, AssertionError) as e:  # the latter of a platform that is named and not there
    wanted = os.environ.get('JAX_PLATFORMS', '') or jax.config.jax_platforms
    raise UserError(
      f'JAX finds no device ({" ".join(str(e).split())[:200] or "none of its platforms"}); expected one of JAX_PLATFORMS, '
      f"which is '{wanted or ''}'"
    ) from e


def slice_of(device: jax.Device) -> int:
  """Returns the number of a device's TPU slice, or of its GPU machine."""
  return getattr(device, 'slice_index', 0)


def share(mesh: Mesh, process: int | None = None) -> tuple[tuple[int, ...], int]:
  """Returns which of the equal parts of a batch, one for each device, a process's devices own, and how many there are.

  Args:
    mesh: of the devices.
    process: its number; default this one.
  """
  me = jax.process_index() if process is None else process
  return tuple(k for k, d in enumerate(mesh.devices.flat) if d.process_index == me), mesh.size


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def over_batch(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that splits an array's first axis over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def in_mesh(mesh: Mesh | AbstractMesh) -> contextlib.AbstractContextManager[Any]:
  """Returns the context in which what is traced knows the mesh: `along_batch` and `rolled` ask for it."""
  return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def along_batch(x: jax.Array) -> jax.Array:
  """Returns x, held to its place: its first axis over all devices, the others whole.

  Without it XLA spreads the shardings of parameters into activations and gathers the whole batch's. Outside `in_mesh`, and
  where the devices do not divide the axis, it does nothing.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or x.shape[0] % mesh.size:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(AXES))


def everywhere(x: jax.Array) -> jax.Array:
  """Returns x, whole on every device where it is used: a kernel, or what is small and made of a key."""
  mesh = jax.sharding.get_abstract_mesh()
  return x if mesh.empty else jax.lax.with_sharding_constraint(x, PartitionSpec())


def in_parts(x: jax.Array, parts: int) -> jax.Array:
  """Returns x [B, …] as [parts, B / parts, …]; each part has as many rows of every device, which stay there."""
  mesh = jax.sharding.get_abstract_mesh()
  each = 1 if mesh.empty else mesh.size
  x = x.reshape(each, parts, -1, *x.shape[1:]).swapaxes(0, 1).reshape(parts, -1, *x.shape[1:])
  return x if mesh.empty else jax.lax.with_sharding_constraint(x, PartitionSpec(None, AXES))


def rolled(x: jax.Array, shift: jax.Array) -> jax.Array:
  """Returns x with row (i + shift) mod B at place i, as x[(jnp.arange(B) + shift) % B], of x [B, …] split over the devices.

  No device ever holds more than two devices' rows: those of a whole number of devices further on come in ⌈log₂ n⌉ steps, each
  from the device 1, 2, 4, … further on, and the rest from the next one.

  Args:
    x: [B, …].
    shift: int32 [], 0..B − 1.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or x.shape[0] % mesh.size:
    return jnp.roll(x, -shift, axis=0)
  n = mesh.size

  def move(part: jax.Array, shift: jax.Array) -> jax.Array:
    def further(part: jax.Array, by: int) -> jax.Array:
      return jax.lax.ppermute(part, AXES, [((i + by) % n, i) for i in range(n)])

    devices, rows = shift // len(part), shift % len(part)
    for k in range((n - 1).bit_length()):
      part = jnp.where(devices >> k & 1, further(part, 1 << k), part)
    return jax.lax.dynamic_slice_in_dim(jnp.concatenate([part, further(part, 1)]), rows, len(part))

  spec = PartitionSpec(AXES)
  return jax.shard_map(move, in_specs=(spec, PartitionSpec()), out_specs=spec)(x, shift)


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
  """Puts this process's rows of a batch, those of `share` in its order, on its devices as its part of the global batch."""
  sharding = over_batch(mesh)
  if not mesh.is_multi_process:
    return jax.device_put(batch, sharding)
  parts, n = share(mesh)
  devices = [mesh.devices.flat[k] for k in parts]

  def whole(rows: np.ndarray) -> jax.Array:
    shape = (len(rows) // len(parts) * n, *rows.shape[1:])
    pieces = [jax.device_put(piece, d) for piece, d in zip(np.split(rows, len(parts)), devices, strict=True)]
    return jax.make_array_from_single_device_arrays(shape, sharding, pieces)

  return {name: whole(rows) for name, rows in batch.items()}


def put(array: np.ndarray, like: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
  """Puts an array that every process has whole onto the devices of all, in the type and the place of another."""
  array = np.asarray(array, like.dtype)
  return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


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

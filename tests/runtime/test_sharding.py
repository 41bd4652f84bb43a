"""The mesh over devices that are not there, and how rows move in it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from mimic_jax.runtime import sharding
from mimic_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Device:
  """Stands in for a device."""

  id: int
  process_index: int
  slice_index: int
  platform: str
  device_kind: str
  coords: tuple[int, int, int] = (0, 0, 0)
  core_on_chip: int = 0


def gpus(machines: int, each: int) -> list[Device]:
  return [Device(i, i // each, i // each, 'gpu', 'NVIDIA H100') for i in range(machines * each)]


def v5e(slices: int) -> list[Device]:
  """Slices of 4 × 4 chips, four chips of a slice to a process, in squares."""
  place = [(x, y, 0) for y in range(4) for x in range(4)]
  return [
    Device(16 * s + i, 4 * s + y // 2 * 2 + x // 2, s, 'tpu', 'TPU v5 lite', (x, y, 0))
    for s in range(slices)
    for i, (x, y, _) in enumerate(place)
  ]


def v5p() -> list[Device]:
  """A slice of 4 × 4 × 4 chips."""
  place = [(x, y, z) for z in range(4) for y in range(4) for x in range(4)]
  return [Device(i, i // 4, 0, 'tpu', 'TPU v5', at) for i, at in enumerate(place)]


@pytest.mark.parametrize(
  ('devices', 'fsdp'),
  [
    (gpus(2, 8), 1),
    (gpus(2, 8), 4),
    (gpus(2, 8), 8),
    (v5e(2), 4),
    (v5e(2), 16),
    (gpus(3, 4), 2),
    (v5e(1), 4),
    (v5p(), 4),
    (v5p(), 8),
    (v5p(), 32),
  ],
)
def test_weights_are_split_within_a_slice_and_every_device_is_there_once(devices, fsdp):
  mesh = sharding.make_mesh(-1, fsdp, devices)
  assert mesh.axis_names == sharding.AXES
  assert mesh.devices.shape == (len(devices) // fsdp, fsdp)
  assert sorted(d.id for d in mesh.devices.flat) == [d.id for d in devices]
  for row in mesh.devices:
    assert len({d.slice_index for d in row}) == 1


@pytest.mark.parametrize(
  ('devices', 'data', 'fsdp', 'message'),
  [
    (
      gpus(2, 8),
      -1,
      16,
      r'config.mesh.fsdp is 16, and each of 2 slices or machines has 8 devices; expected a divisor',
    ),
    (gpus(2, 8)[:12], -1, 2, 'each of 2 slices or machines has 4 to 8 devices'),
    (gpus(1, 8), 3, 2, 'data=3, fsdp=2; expected a product of 8'),
    (gpus(1, 8), -1, 3, 'data=2, fsdp=3; expected a product of 8'),
    (gpus(1, 8), -1, 0, 'fsdp=0; expected a product of 8'),
  ],
)
def test_a_layout_that_can_not_be_is_one_line(devices, data, fsdp, message):
  with pytest.raises(UserError, match=message) as e:
    sharding.make_mesh(data, fsdp, devices)
  assert '\n' not in str(e.value)


def test_a_process_owns_the_parts_of_a_batch_at_which_its_devices_lie():
  devices = v5e(2)
  mesh = sharding.make_mesh(-1, 4, devices)
  owned = [sharding.share(mesh, process) for process in range(8)]
  assert sorted(k for parts, _ in owned for k in parts) == list(range(32))
  assert {n for _, n in owned} == {32}
  for process, (parts, _) in enumerate(owned):
    assert {mesh.devices.flat[k].process_index for k in parts} == {process}
  assert any(np.ptp(parts) > 3 for parts, _ in owned)  # a square of chips is no row of the mesh


@pytest.mark.parametrize('order', [range(8), (5, 2, 7, 0, 3, 6, 1, 4)])
@pytest.mark.parametrize('rows', [8, 24])
def test_rolled_is_numpys_for_every_shift(order, rows, rng):
  devices = np.array([jax.devices()[k] for k in order]).reshape(4, 2)
  mesh = Mesh(devices, sharding.AXES, axis_types=sharding.AUTO)
  x = rng.normal(size=(rows, 3, 2)).astype(np.float32)

  def move(x, shift):
    with sharding.in_mesh(mesh):
      return sharding.rolled(x, shift)

  program = jax.jit(
    move, in_shardings=(sharding.over_batch(mesh), None), out_shardings=sharding.over_batch(mesh)
  )
  for shift in range(rows):
    np.testing.assert_array_equal(program(x, jnp.int32(shift)), x[(np.arange(rows) + shift) % rows])
    np.testing.assert_array_equal(
      sharding.rolled(jnp.asarray(x), jnp.int32(shift)), np.roll(x, -shift, axis=0)
    )


def test_outside_a_mesh_nothing_is_held_to_a_place():
  x = jnp.ones((6, 2))
  assert sharding.along_batch(x) is x
  assert sharding.everywhere(x) is x

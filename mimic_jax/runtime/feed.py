"""Batches on the devices, each sent there one step before it is needed."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mimic_jax.runtime import distributed, sharding
from mimic_jax.runtime.errors import UserError


class _Sent(NamedTuple):
  """A batch on its way.

  Attributes:
    batch: on the devices; None where it could not be made.
    error: why not.
    failed: int32 [], in how many processes it could not be; None in a run of one.
  """

  batch: dict[str, jax.Array] | None
  error: UserError | None
  failed: jax.Array | None


def on_devices(
  batches: Iterator[dict[str, np.ndarray]], steps: int, mesh: Mesh, pictures: jax.Array | None = None
) -> Iterator[dict[str, jax.Array]]:
  """Yields batches on the devices; reads one ahead, and none beyond the last.

  Args:
    batches: this process's rows of each.
    steps: how many to yield, the same in every process.
    mesh: of the devices.
    pictures: uint8 [n, H, W, 3] of all, on every device; where given, a batch takes its own by 'index'.

  Raises:
    UserError: when its turn comes, for a batch that could not be made, in every process of the run alike: those that
      could make their part must not begin a step that the others can't take part in.
  """
  taken = jax.jit(lambda every, index: every[index], out_shardings=sharding.over_batch(mesh))
  count = _sum_over(mesh) if distributed.several() else None
  waiting: _Sent | None = None
  for _ in range(steps):
    batch, error = None, waiting and waiting.error
    if error is None:
      try:
        batch = sharding.to_devices(next(batches), mesh)
        if pictures is not None:
          batch['image'] = taken(pictures, batch['index'])
      except UserError as e:
        error = e
    # Sent off before the step in front of it, so that reading it later waits for no more than that step's beginning.
    ready, waiting = waiting, _Sent(batch, error, count and count(error is not None))
    if ready is not None:
      yield _checked(ready)
  if waiting is not None:
    yield _checked(waiting)


def _sum_over(mesh: Mesh) -> Callable[[bool], jax.Array]:
  over = sharding.over_batch(mesh)
  add = jax.jit(jnp.sum, out_shardings=sharding.replicated(mesh))
  here = len(mesh.local_devices)

  def count(failed: bool) -> jax.Array:
    flags = np.zeros(here, np.int32)
    flags[0] = failed
    return add(jax.make_array_from_process_local_data(over, flags))

  return count


def _checked(sent: _Sent) -> dict[str, jax.Array]:
  if sent.failed is None:
    if sent.error is not None:
      raise sent.error
  elif int(sent.failed):
    distributed.raise_first(sent.error)
  return sent.batch

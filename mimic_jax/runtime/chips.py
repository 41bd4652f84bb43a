"""What a chip can do at most: its peak rate in matrix products, by its maker's data sheet, or measured, and that of its links."""

import re
import statistics
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp

# Operations per second of one device in dense matrix products of bfloat16 with float32 sums, by JAX's device_kind. NVIDIA's
# sheets of Hopper, Ada and Blackwell print twice that, "with sparsity".
PEAKS = {
  r'(NVIDIA )?A100\b': 312e12,  # NVIDIA A100 Tensor Core GPU datasheet
  r'NVIDIA H100 PCIe': 756e12,  # NVIDIA H100 datasheet, 1,513 with sparsity
  r'NVIDIA H100 NVL': 835e12,  # likewise, 1,671
  r'NVIDIA H100 80GB HBM3': 989e12,  # likewise, the SXM, 1,979
  r'NVIDIA H200 NVL': 835e12,  # NVIDIA H200 datasheet, 1,671 with sparsity
  r'NVIDIA H200': 989e12,  # likewise, the SXM, 1,979
  r'NVIDIA B200': 2250e12,  # NVIDIA HGX B200 datasheet, 36,000 with sparsity of eight
  r'NVIDIA L4': 121e12,  # NVIDIA L4 datasheet, 242 with sparsity
  r'NVIDIA GeForce RTX 4090': 165.2e12,  # NVIDIA Ada GPU Architecture whitepaper, appendix A
  r'TPU v4': 275e12,  # cloud.google.com/tpu/docs/v4
  r'TPU v5 lite|TPU v5e': 197e12,  # cloud.google.com/tpu/docs/v5e
  r'TPU v5|TPU v5p': 459e12,  # cloud.google.com/tpu/docs/v5p
  r'TPU v6 lite|TPU v6e': 918e12,  # cloud.google.com/tpu/docs/v6e
}
# Bytes per second that one link to a neighbour carries one way, by JAX's device_kind: what Google's pages give of a chip, "bidirectional", ÷ 2 ÷
# its links.
LINKS = {
  r'TPU v5 lite|TPU v5e': 400e9 / 2 / 4,  # cloud.google.com/tpu/docs/v5e
  r'TPU v5|TPU v5p': 1200e9 / 2 / 6,  # cloud.google.com/tpu/docs/v5p
  r'TPU v6 lite|TPU v6e': 800e9 / 2 / 4,  # cloud.google.com/tpu/docs/v6e
}
# What may follow a name: memory and form. A part of a chip (MIG), a laptop's or a slower cut of it is another chip.
_REST = r'([ -](SXM\d?|PCIe|PCIE|HBM\d?e?|\d+GB))*'


def peak(kind: str) -> float | None:
  """Returns the peak of one device in operations per second, None where it is not in the table.

  Args:
    kind: its device_kind.
  """
  return next((rate for name, rate in PEAKS.items() if re.fullmatch(f'({name}){_REST}', kind)), None)


def link(kind: str) -> float | None:
  """Returns what a link of a device carries one way in bytes per second, None where it is not in the table.

  Args:
    kind: its device_kind.
  """
  return next((rate for name, rate in LINKS.items() if re.fullmatch(name, kind)), None)


def peak_of(devices: Sequence[jax.Device]) -> float | None:
  """Returns the peak of devices together, None where one's is not known."""
  each = [peak(d.device_kind) for d in devices]
  return None if None in each else sum(each)


def measured_peak(side: int = 2048, times: int = 5) -> float:
  """Returns the rate of a square matrix product in float32 on the default device: the median of several."""
  a = jnp.ones((side, side), jnp.float32)
  product = jax.jit(jnp.matmul)
  product(a, a).block_until_ready()
  seconds = []
  for _ in range(times):
    began = time.perf_counter()
    product(a, a).block_until_ready()
    seconds.append(time.perf_counter() - began)
  return 2 * side**3 / statistics.median(seconds)


def peak_memory(devices: Sequence[jax.Device]) -> int | None:
  """Returns the most bytes that a device of this process has held so far, None where they do not say."""
  stats = [d.memory_stats() for d in devices if d.process_index == jax.process_index()]
  held = [s['peak_bytes_in_use'] for s in stats if s and 'peak_bytes_in_use' in s]
  return max(held, default=None)

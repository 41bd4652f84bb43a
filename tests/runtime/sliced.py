"""`mimic train` on CPUs as if each process were a slice of its own, the last one first."""

from mimic_jax import main
from mimic_jax.runtime import sharding

if __name__ == '__main__':
  sharding.slice_of = lambda device: -device.process_index
  main.entry()

"""`mimic train` on a disk that tears step 12 once it is written."""

from mimic_jax import main
from mimic_jax.runtime import checkpoint, distributed

wait = checkpoint.Checkpoints.wait


def then_torn(self: checkpoint.Checkpoints) -> None:
  """Waits, and tears; no process goes on before it is done."""
  wait(self)
  state = self.folder / '12' / 'state'
  if distributed.is_main() and state.is_dir():
    largest = max(state.glob('ocdbt.process_0/d/*'), key=lambda p: p.stat().length)
    largest.write_bytes(largest.read_bytes()[:100])
  distributed.gather(0)


if __name__ == '__main__':
  checkpoint.Checkpoints.wait = then_torn
  main.entry()

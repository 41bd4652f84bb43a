"""A trace of a few steps of a stage, for XProf or Perfetto (docs/performance.md)."""

from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from mimic_jax.runtime import distributed

# steps of a start that are not traced: the first compiles, the second begins while it is looked at
BEFORE = 2


class Trace:
  """Traces steps of this start of a stage, in the main process; a stage that is stopped meanwhile keeps what there is."""

  def __init__(self, folder: epath.Path, steps: int, done: int, total: int, say: Callable[[str], None]):
    """Plans it.

    Args:
      folder: to write to.
      steps: how many; 0 = none.
      done: steps before this start.
      total: of the stage.
      say: is told where it is.
    """
    self._folder, self._say, self._running = folder, say, False
    self._first = done + BEFORE + 1
    self._last = min(self._first + steps - 1, total)
    self._wanted = steps > 0 and distributed.is_main()
    if self._wanted and self._first > total:
      say(f'profile: fewer than {BEFORE + 1} steps are left; nothing is traced')

  def before(self, step: int) -> None:
    """Begins when it is this step's turn."""
    if self._wanted and step == self._first and step <= self._last:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # every call of Python: slow, and not what is asked
      jax.profiler.start_trace(str(self._folder), profiler_options=options)
      self._running = True

  def after(self, step: int, measured: Any) -> None:
    """Ends when it was the last one's turn; `measured` is what that step computes, and is waited for."""
    if self._running and step == self._last:
      jax.block_until_ready(measured)
      self.close()

  def close(self) -> None:
    """Ends it where it still runs."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      self._say(
        f'profile: {self._folder}; `xprof --logdir {self._folder}` (pip install xprof) shows it, or its *.trace.json.gz '
        'opened at ui.perfetto.dev'
      )

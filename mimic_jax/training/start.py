"""Where the time goes from a command to the first step of a stage."""

import time

import jax

_COMPILING = ('/jax/core/compile/jaxpr_to_mlir_module_duration', '/jax/core/compile/backend_compile_duration')
_compiled = 0.0  # seconds of this process; a program that was kept counts with the time to read it


def _note(event: str, seconds: float, **_: object) -> None:
  global _compiled
  if event in _COMPILING:
    _compiled += seconds


jax.monitoring.register_event_duration_secs_listener(_note)


class Clock:
  """Tells the parts of a start apart. `parts` holds the seconds of each; they add up to the time since it began."""

  def __init__(self, began: float | None = None):
    """Begins at a time.monotonic(), now without one."""
    self.parts: dict[str, float] = {}
    self._at, self._compiled = time.monotonic() if began is None else began, _compiled

  def lap(self, part: str) -> None:
    """Counts the time since the last lap to a part, but what was compiled meanwhile to 'compile'."""
    now = time.monotonic()
    spent = now - self._at
    compiled = min(_compiled - self._compiled, spent)
    for name, seconds in ((part, spent - compiled), ('compile', compiled)):
      self.parts[name] = self.parts.get(name, 0.0) + seconds
    self._at, self._compiled = now, _compiled

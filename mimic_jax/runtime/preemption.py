"""Told to stop: SIGTERM, SIGUSR1, SIGHUP or Ctrl-C is noted, and the loop stops at the next place that can be saved.

A second Ctrl-C stops at once.

One process keeps a flag of its own. Several must stop at the same place: there JAX's coordination service notes
SIGTERM, whichever process gets it, and names a place that none of them has passed; a Python handler for SIGTERM would
silence it, so there is none.
"""

import os
import signal
from types import FrameType

from jax.experimental import multihost_utils

from mimic_jax.runtime import distributed
from mimic_jax.runtime.errors import Preempted

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


class _Notice:
  """What has been heard so far."""

  def __init__(self) -> None:
    self.several = False
    self.heard = False
    self.places = 0  # at which the processes looked, which is how they name one to each other


_notice = _Notice()


def note() -> None:
  """Notes SIGNALS from here on; called in the main thread, before anything else. What nohup ignores stays ignored."""
  for signum in SIGNALS:
    if signal.getsignal(signum) != signal.SIG_IGN:
      signal.signal(signum, _note)


def listen() -> None:
  """Turns to JAX's way where there are several processes; called in the main thread once that is known.

  JAX took SIGTERM over when they were connected.
  """
  _notice.several = distributed.several()
  if _notice.several:
    for signum in SIGNALS[1:]:
      if signal.getsignal(signum) != signal.SIG_IGN:
        signal.signal(signum, _as_sigterm)
    if _notice.heard:
      _notice.heard = False
      _as_sigterm(signal.SIGUSR1, None)


def _note(signum: int, frame: FrameType | None) -> None:
  del frame
  _once_only(signum)
  _notice.heard = True


def _as_sigterm(signum: int, frame: FrameType | None) -> None:
  del frame
  _once_only(signum)
  os.kill(os.getpid(), signal.SIGTERM)


def _once_only(signum: int) -> None:
  """Lets a second Ctrl-C interrupt, and says so: whoever typed the first one waits."""
  if signum == signal.SIGINT:
    os.write(2, b'\nmimic: stopping at the next step and saving; Ctrl-C once more stops at once\n')
    signal.signal(signum, signal.default_int_handler)


def look() -> None:
  """Stops the run if it was told to; every process of it must call this at the same places, none more often.

  Raises:
    Preempted: from then on, at every call.
  """
  if _notice.several and not _notice.heard:
    _notice.places += 1
    _notice.heard = multihost_utils.reached_preemption_sync_point(_notice.places)
  if _notice.heard:
    raise Preempted('told to stop; the same command goes on')

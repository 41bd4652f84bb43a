"""A machine that is about to be taken away: SIGTERM or SIGUSR1 is noted, and the loop stops at the next place that can be saved.

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


class _Notice:
  """What has been heard so far."""

  def __init__(self) -> None:
    self.several = False
    self.heard = False
    self.places = 0  # at which the processes looked, which is how they name one to each other


_notice = _Notice()


def note() -> None:
  """Notes SIGTERM and SIGUSR1 from here on; called in the main thread, before anything else."""
  for signum in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(signum, _note)


def listen() -> None:
  """Turns to JAX's way where there are several processes; called in the main thread once that is known.

  JAX took SIGTERM over when they were connected.
  """
  _notice.several = distributed.several()
  if _notice.several:
    signal.signal(signal.SIGUSR1, _as_sigterm)
    if _notice.heard:
      _notice.heard = False
      _as_sigterm(signal.SIGUSR1, None)


def _note(signum: int, frame: FrameType | None) -> None:
  del signum, frame
  _notice.heard = True


def _as_sigterm(signum: int, frame: FrameType | None) -> None:
  del signum, frame
  os.kill(os.getpid(), signal.SIGTERM)


def look() -> None:
  """Stops the run if it was told to; every process of it must call this at the same places, none more often.

  Raises:
    Preempted: from then on, at every call.
  """
  if _notice.several and not _notice.heard:
    _notice.places += 1
    _notice.heard = multihost_utils.reached_preemption_sync_point(_notice.places)
  if _notice.heard:
    raise Preempted('told to stop; what was done is saved, the same command goes on')

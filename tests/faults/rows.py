"""What a campaign consists of: faults by name, and the rows of the table that they make."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from tests.faults.harness import Campaign

HEADER = ('fault', 'times', 'outcome', 'steps lost (mean / max)', 'bit-identical')


class Unmet(Exception):  # noqa: N818
  """What was promised did not happen; the message says what did."""


class NotRun(Exception):  # noqa: N818
  """The fault can't be played on this machine; the message says why."""


@dataclasses.dataclass
class Row:
  """A line of the table.

  Attributes:
    fault: what was done to the runs.
    times: how often it was.
    outcome: what happened.
    lost: logged steps that were done again, for each time that some were; None where nothing went on.
    identical: whether the end was the uninterrupted run's, or what else there is to say of it.
    met: whether it was as promised; None = not run.
  """

  fault: str
  times: int
  outcome: str
  lost: Sequence[int] | None = None
  identical: str = '–'
  met: bool | None = True

  def cells(self) -> tuple[str, ...]:
    """Returns the row as text, a cell for each of HEADER."""
    lost = (
      '–' if self.lost is None else f'{sum(self.lost) / max(self.times, 1):.1f} / {max(self.lost, default=0)}'
    )
    outcome = self.outcome if self.met is not False else f'**not met:** {self.outcome}'
    return self.fault, str(self.times), outcome, lost, self.identical


@dataclasses.dataclass(frozen=True)
class Fault:
  """One kind of fault.

  Attributes:
    name: as `--only` takes it.
    play: plays it and returns its rows; raises Unmet or NotRun.
    short: whether the short form has it.
  """

  name: str
  play: Callable[['Campaign'], list[Row]]
  short: bool


FAULTS: dict[str, Fault] = {}


def fault(name: str, *, short: bool = False) -> Callable:
  """Registers a function (campaign) → rows as the fault `name`; `short` = the short form plays it, too."""

  def register(play: Callable[['Campaign'], list[Row]]) -> Callable[['Campaign'], list[Row]]:
    FAULTS[name] = Fault(name, play, short)
    return play

  return register


def played(fault: Fault, campaign: 'Campaign') -> list[Row]:
  """Plays a fault; whatever goes wrong in it is a row that says so."""
  try:
    return fault.play(campaign)
  except NotRun as e:
    return [Row(fault.name, 0, f'not run: {e}', met=None)]
  except Exception as e:  # the other faults are to be played all the same
    what = str(e) if isinstance(e, Unmet) else f'{type(e).__name__}: {e}'
    return [Row(fault.name, 1, ' '.join(what.split())[:600], met=False, identical='no')]


def table(rows: Sequence[Row]) -> str:
  """Returns the rows as a Markdown table."""
  lines = [HEADER, ('---',) * len(HEADER), *(row.cells() for row in rows)]
  return '\n'.join('| ' + ' | '.join(c.replace('|', '\\|') for c in line) + ' |' for line in lines)

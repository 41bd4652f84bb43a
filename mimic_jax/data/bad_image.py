"""Pictures that can't be read: what is wrong with them, and whether it is worth trying again."""

import contextlib
import errno
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from PIL import Image, UnidentifiedImageError

from mimic_jax.runtime.errors import READ_ERRORS, UserError

# Errors of the system that say something of the file itself: reading it again would bring the same.
_LASTING = frozenset(
  getattr(errno, name)
  for name in ('ENOENT', 'ENOTDIR', 'EISDIR', 'ELOOP', 'ENAMETOOLONG', 'EINVAL', 'EOVERFLOW', 'EFBIG')
)
PAUSES = (0.1, 0.5, 2.0, 5.0)  # seconds before a picture is tried again that the system failed to bring
T = TypeVar('T')

POLICIES = ('error', 'skip')  # what a bad picture does to a run


class BadImage(UserError):  # noqa: N818  the plain name is what users of a source write
  """A picture that can't be read: `path` names it, `why` says in a few words what is wrong.

  `transient`: whether the system failed rather than the picture (an I/O error, a file server that is gone), so that it may
  be read another time.
  """

  def __init__(self, path: str, why: str, transient: bool = False) -> None:
    super().__init__(str(path), why, transient)  # all arguments, so that it survives pickling
    self.path = str(path)
    self.why = why
    self.transient = transient

  def __str__(self) -> str:
    return f'{self.path}: {self.why}'


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
  """Turns whatever Pillow or the system raises on a file that can't be read into BadImage."""
  try:
    yield
  except FileNotFoundError:
    raise BadImage(path, 'does not exist') from None
  except UnidentifiedImageError:
    raise BadImage(path, 'is not a picture that Pillow can read') from None
  except Image.DecompressionBombError:
    raise BadImage(path, 'has more pixels than Pillow opens at all (a decompression bomb)') from None
  except READ_ERRORS as e:
    why = (str(e).splitlines() or [''])[0] or type(e).__name__
    if _failed(e):
      raise BadImage(path, f'could not be read ({why})', transient=True) from None
    raise BadImage(path, f'is damaged or of an unknown kind ({why})') from None


def _failed(e: Exception) -> bool:
  """Says whether an error is the system's rather than the file's. Pillow's own OSErrors have no number."""
  if isinstance(e, TimeoutError | ConnectionError):
    return True
  return isinstance(e, OSError) and e.errno is not None and e.errno not in _LASTING


def patiently(read: Callable[[], T]) -> T:
  """Returns read(), tried again after each of PAUSES while the system fails.

  Raises:
    BadImage: as `read`; a transient one says how often it was tried.
  """
  for pause in PAUSES:
    try:
      return read()
    except BadImage as e:
      if not e.transient:
        raise
      time.sleep(pause)
  try:
    return read()
  except BadImage as e:
    if e.transient:
      raise BadImage(e.path, f'{e.why}; tried {1 + len(PAUSES)} times', transient=True) from None
    raise

"""Compiled programs, kept in a folder from one start to the next.

JAX finds them by a hash of the program, its own version, the XLA flags and the devices, and writes in process 0 alone. One
that is damaged or half written is compiled anew, with a warning.
"""

import contextlib
import hashlib
import os
import platform
import time
import zlib
from collections.abc import Callable

import jax
from etils import epath

from mimic_jax.runtime import distributed, files

AUTO = 'auto'  # mimic_jax/compile in the user's cache folder
KEPT_SECONDS = 30 * 86400  # after which a program is compiled anew, so that the folder does not grow for ever


def keep(where: str, run: str, say: Callable[[str], None]) -> None:
  """Keeps what is compiled from now on; every process must call it. A folder that JAX was given already stays.

  Args:
    where: the folder; AUTO = the user's, '' = off.
    run: the run's own folder.
    say: is told in a line when nothing can be kept, and why.
  """
  if not where or any(distributed.gather(bool(jax.config.jax_compilation_cache_dir))):
    return
  opened = distributed.agree(lambda: _opened(where, run))
  folder, why = opened['folder'], opened['why']
  if folder:
    # Processes tune a program for their GPUs together: none may find it where another does not.
    seen = distributed.gather((epath.Path(folder) / opened['probe']).exists())
    if distributed.is_main():
      (epath.Path(folder) / opened['probe']).unlink()
    if not all(seen):
      why = f'process {seen.index(False)} does not see {folder}'
  if why:
    say(f"compiled programs are not kept: {why} (config.log.compile_cache; '' = off)")
    return
  jax.config.update('jax_compilation_cache_dir', folder)
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    # the many small ones are seconds, too
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  if '://' in folder:  # where XLA can not keep how it tuned for a GPU
    jax.config.update('jax_persistent_cache_enable_xla_caches', 'none')


def _opened(where: str, run: str) -> dict[str, str]:
  """Returns the folder, a file just made in it, and why it can't be written, '' when it can."""
  if where == AUTO:
    where = os.path.join(files.cache_folder(), 'compile')
  where = os.path.expanduser(where)
  if where.startswith('~'):
    return {'folder': '', 'why': f'{where} can not be written (there is no home folder)'}
  folder = epath.Path(where) / _machine()
  if distributed.several() and jax.default_backend() == 'gpu':
    # Another run might write a program after one process has looked for it and before the next one does.
    folder /= f'{zlib.crc32(os.path.abspath(run).encode()):08x}'
  probe = f'.{platform.node()}.{os.getpid()}'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / probe).write_text('')
    for file in folder.glob('*-cache'):
      with contextlib.suppress(FileNotFoundError):  # another run that begins now was faster
        if file.stat().mtime < time.time() - KEPT_SECONDS:
          file.unlink()
  except OSError as e:
    return {'folder': '', 'why': f'{folder} can not be written ({e.strerror or e})'}
  return {'folder': str(folder), 'probe': probe, 'why': ''}


def _machine() -> str:
  """Returns a name for what this machine's processor can do: programs are made for it, and a home may be that of many kinds."""
  try:
    with open('/proc/cpuinfo', encoding='utf-8') as f:
      lines = [
        x for x in f.read().split('\n\n')[0].split('\n') if x.startswith(('model name', 'flags', 'Features'))
      ]
  except OSError:
    lines = [platform.processor()]
  return f'{platform.machine()}-{hashlib.sha256("".join(lines).encode()).hexdigest()[:8]}'

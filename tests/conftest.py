"""Test set-up: CPU, 8 fake devices, a compilation cache kept between runs, and no silent broadcasting across ranks.

Programs are compiled without LLVM's optimisations: the arrays are tiny, and compiling is most of what the tests do (a step on
8 devices: 12 instead of 24 seconds of CPU).
"""

import gc
import os
import pathlib
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '')
  + ' --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
  # On a busy machine one of eight devices may come late; XLA would end the process after 40 seconds.
  + ' --xla_cpu_collective_call_terminate_timeout_seconds=600'
).strip()

# In the environment, for the processes that tests start: none is to write to the user's own cache.
os.environ['JAX_COMPILATION_CACHE_DIR'] = os.environ.get('MIMIC_TEST_CACHE') or os.path.join(
  tempfile.gettempdir(), 'mimic_jax_test_cache'
)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.5'
os.environ['XDG_CACHE_HOME'] = os.path.join(os.environ['JAX_COMPILATION_CACHE_DIR'], 'user')

import jax
import numpy as np
import pytest

CACHE = pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture
def rng(request):
  """Fresh random inputs, reproducible by the seed that a failure prints."""
  seed = int(os.environ.get('MIMIC_TEST_SEED', np.random.SeedSequence().entropy % 2**32))
  request.node.user_properties.append(('seed', seed))
  print(f'MIMIC_TEST_SEED={seed}')
  return np.random.default_rng(seed)


@pytest.fixture(autouse=True, scope='module')
def _frozen():
  """Takes what a module's tests leave behind, JAX's programs most of all, out of what every collection looks through."""
  yield
  gc.freeze()


@pytest.fixture(autouse=True)
def _not_told_to_stop(monkeypatch):
  """A run in this process hears no signal that an earlier test's run noted."""
  from mimic_jax.runtime import preemption

  monkeypatch.setattr(preemption, '_notice', preemption._Notice())


@pytest.fixture
def store(tmp_path, monkeypatch):
  """gs:// as a folder (tests/store.py), and an empty cache."""
  from etils.epath import backend
  from fsspec.registry import _registry

  from mimic_jax.runtime import remote
  from tests import store as store_lib

  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(remote, 'PAUSES', ())
  for name in store_lib.Store.protocol:
    monkeypatch.setitem(_registry, name, store_lib.Store)
  yield store_lib.stand_in(tmp_path / 'store', tmp_path / 'log')
  backend.fsspec_backend._get_filesystem.cache_clear()

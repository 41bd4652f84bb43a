"""Several processes as one: whether there are others, which of them writes, and how they agree.

Every process runs the same program. What one of them finds out alone (a bad file, a full disk) must not leave the others waiting
in a collective operation for it, so whatever may fail in one is either done by process 0 and handed on (`agree`), or
looked at by all before any goes on (`together`). Both cost a message and are for the edges of a run, not for its steps.
"""

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from mimic_jax.runtime import cli
from mimic_jax.runtime.errors import AgreedError, Ended, Preempted, UserError

# after which JAX takes a process that says nothing for dead, and ends the others
HEARTBEAT_SECONDS = 60

T = TypeVar('T')

_connecting: list[threading.Thread] = []  # what connects this process to the others

# How gloo, NCCL and JAX's coordination service say that a process they talk to has ended.
_PEER_GONE = re.compile(
  r'[Gg]loo|[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|NCCL|[Cc]oordination ?[Ss]ervice|UNAVAILABLE|'
  'DEADLINE_EXCEEDED|heartbeat'
)

_SLURM = (
  'SLURM_JOB_ID',
  'SLURM_STEP_NODELIST',  # set by srun only: a batch script alone is one process
  'SLURM_NTASKS',
  'SLURM_PROCID',
  'SLURM_LOCALID',
)
_OPEN_MPI = ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_LOCAL_RANK')
_METADATA = 'http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints'
_PORTS = (61440, 4096)  # the first of the ports that a job's number picks one of, and how many


def initialize(
  coordinator_address: str = '',
  num_processes: int = 0,
  process_id: int = -1,
  *,
  connect_seconds: int,
  look: Callable[[], None] = lambda: None,
) -> None:
  """Connects this process to the others of its run where there are any; must come before anything asks for devices.

  Several processes are found by the three values, a Slurm step of several tasks, Open MPI, or a TPU slice of several hosts.

  Args:
    coordinator_address: 'host:port' of process 0; '' = from the cluster.
    num_processes: of the run; 0 = from the cluster, 1 = this one alone, whatever the cluster says.
    process_id: 0 ≤ i < num_processes; −1 = from the cluster.
    connect_seconds: for which the others are waited for.
    look: is called again and again meanwhile; what it raises ends the wait.

  Raises:
    UserError: when the values do not make sense together, or the others can't be reached.
  """
  if jax.distributed.is_initialized():  # by an earlier run of this program
    return
  found = cluster(os.environ, coordinator_address, num_processes, process_id)
  if found is None and num_processes == 0 and _tpu_hosts() > 1:
    found = {}  # JAX knows how the hosts of a slice find each other
  if found is None:
    return
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  failed: list[Exception] = []

  def connect() -> None:
    try:
      # A little longer than we wait: JAX ends the process with SIGABRT and a stack of C++ when its own time is over.
      jax.distributed.initialize(
        **found, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, initialization_timeout=connect_seconds + 60
      )
    except Exception as e:
      failed.append(e)

  # In a thread, since nothing else ends the wait, a signal neither.
  thread = threading.Thread(target=connect, daemon=True)
  _connecting.append(thread)
  thread.start()
  until = time.monotonic() + connect_seconds
  while thread.is_alive() and time.monotonic() < until:
    thread.join(0.2)
    if thread.is_alive():
      look()
  if thread.is_alive() or failed:
    where = found.get('coordinator_address', '')
    why = ' '.join(str(failed[0]).split())[:200] if failed else _why_alone(where)
    raise UserError(
      f'the processes of this run did not find each other at {where or "the first host of the slice"} ({why}); expected '
      f'{found.get("num_processes", "all")} of them to be started within {connect_seconds} seconds (--connect_seconds)'
    ) from (failed[0] if failed else None)


def _why_alone(where: str) -> str:
  """Returns whether it is the coordinator that is missing or other processes."""
  host, _, port = where.rpartition(':')
  try:
    with socket.create_connection((host.strip('[]'), int(port)), timeout=2):
      return 'somebody answers there, but not all have come'
  except (OSError, ValueError) as e:
    return f'nobody answers there: {e}' if where else 'not all have come'


def cluster(
  environ: Mapping[str, str], coordinator_address: str, num_processes: int, process_id: int
) -> dict[str, Any] | None:
  """Returns the arguments of jax.distributed.initialize; None for a process that is alone.

  Args:
    environ: the process's environment.
    coordinator_address, num_processes, process_id: as for `initialize`; what is given goes before what the cluster says.

  Raises:
    UserError: when one is missing that the cluster does not say, or is out of range.
  """
  said: dict[str, Any] = {}
  if all(k in environ for k in _SLURM) and int(environ['SLURM_NTASKS']) > 1:
    said = {
      'coordinator_address': f'{first_host(environ["SLURM_STEP_NODELIST"])}:{_port(environ["SLURM_JOB_ID"])}',
      'num_processes': int(environ['SLURM_NTASKS']),
      'process_id': int(environ['SLURM_PROCID']),
      'local_device_ids': _own_device(
        environ,
        tasks_on(environ.get('SLURM_STEP_TASKS_PER_NODE', '1'), int(environ.get('SLURM_NODEID', 0))),
        environ['SLURM_LOCALID'],
      ),
    }
  elif all(k in environ for k in _OPEN_MPI) and int(environ['OMPI_COMM_WORLD_SIZE']) > 1:
    said = {
      'coordinator_address': _open_mpi_address(environ.get('OMPI_MCA_orte_hnp_uri', '')),
      'num_processes': int(environ['OMPI_COMM_WORLD_SIZE']),
      'process_id': int(environ['OMPI_COMM_WORLD_RANK']),
      'local_device_ids': _own_device(
        environ, int(environ.get('OMPI_COMM_WORLD_LOCAL_SIZE', 1)), environ['OMPI_COMM_WORLD_LOCAL_RANK']
      ),
    }
  if num_processes == 1:
    return None
  given = {
    'coordinator_address': coordinator_address or None,
    'num_processes': num_processes or None,
    'process_id': None if process_id < 0 else process_id,
  }
  if not said and not any(v is not None for v in given.values()):
    return None
  whole = {**said, **{k: v for k, v in given.items() if v is not None}}
  for name in given:
    if whole.get(name) is None:
      raise UserError(
        f'--{name} is missing, and no cluster says it; expected all of --coordinator_address, --num_processes, '
        '--process_id'
      )
  if not re.fullmatch(r'.+:\d+', whole['coordinator_address']):
    raise UserError(f"--coordinator_address is '{whole['coordinator_address']}'; expected HOST:PORT")
  if not 0 <= whole['process_id'] < whole['num_processes']:
    raise UserError(
      f'--process_id is {whole["process_id"]}; expected 0 to {whole["num_processes"] - 1} of --num_processes '
      f'{whole["num_processes"]}'
    )
  # Nothing is left to JAX's own detection, which gives a task that has a node to itself only the first of its GPUs.
  return {'local_device_ids': None, **whole, 'cluster_detection_method': 'deactivate'}


def first_host(nodes: str) -> str:
  """Returns the first host of a Slurm node list: 'n7', 'n7,x', 'n[007-9,12],x' → 'n7', 'n7', 'n007'."""
  match = re.match(r'([^,\[]+)(?:\[([^,\]-]+)[^\]]*\]([^,\[]*))?', nodes)
  return ''.join(filter(None, match.groups())) if match else nodes


def _port(job: str) -> int:
  """Returns a port that all processes of a job come to, and jobs side by side on one machine hardly share."""
  return _PORTS[0] + int(job) % _PORTS[1]


def _open_mpi_address(uri: str) -> str | None:
  """Returns host:port from what mpirun (before version 5) tells its processes; None when it tells nothing."""
  match = re.search(r'tcp://([^,:;]+)|tcp6://(\[[^\],]+)', uri)
  if not match:
    return None
  host = match[1] or f'{match[2]}]'
  return f'{host}:{_port(str(int(uri.split(".")[0]) // _PORTS[1]))}'


def tasks_on(counts: str, node: int) -> int:
  """Returns how many of a Slurm step's tasks are on its node of that number, from '2(x3),1'."""
  each = [int(n) for n, times in re.findall(r'(\d+)(?:\(x(\d+)\))?', counts) for _ in range(int(times or 1))]
  return each[node] if node < len(each) else 1


def _own_device(environ: Mapping[str, str], tasks_here: int, local_rank: str) -> list[int] | None:
  """Returns the one GPU of a task that shares its node with others; None = all that the task sees.

  A task that sees one GPU alone (srun --gpus-per-task=1) keeps that one.
  """
  sees = [x for x in environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if x]
  return None if len(sees) == 1 or tasks_here == 1 else [int(local_rank)]


def _tpu_hosts() -> int:
  """Returns the number of hosts of the TPU slice that this machine belongs to; 1 where there is none."""
  if 'tpu' not in (jax.config.jax_platforms or ''):  # JAX puts it there on import where libtpu and chips are
    return 1
  if int(os.environ.get('MEGASCALE_NUM_SLICES') or 1) > 1:
    return 2
  named = os.environ.get('TPU_PROCESS_ADDRESSES') or os.environ.get('TPU_WORKER_HOSTNAMES')
  if named:
    return len(named.split(','))
  if os.environ.get('TPU_SKIP_MDS_QUERY'):
    return 1
  for attempt in range(3):
    try:
      request = urllib.request.Request(_METADATA, headers={'Metadata-Flavor': 'Google'})
      with urllib.request.urlopen(request, timeout=5) as answer:
        return len(answer.read().decode().split(','))
    except urllib.error.HTTPError:  # a machine of Google's that is part of no slice
      return 1
    except OSError:
      time.sleep(attempt)
  return 1


def several() -> bool:
  """Returns whether this run has more than one process."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
  """Returns whether this process writes logs and reports."""
  return index() == 0


def index() -> int:
  """Returns the number of this process, from 0."""
  return jax.process_index() if several() else 0


def gather(value: Any) -> list[Any]:
  """Returns the JSON-able values of all processes, in their order; all must call it."""
  if not several():
    return [value]
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  lengths = np.ravel(multihost_utils.process_allgather(np.array(len(text), np.int32)))
  room = 1 << max(int(lengths.max()) - 1, 63).bit_length()  # few lengths, since each compiles a program
  rows = multihost_utils.process_allgather(np.pad(text, (0, room - len(text))))
  return [json.loads(bytes(row[:n])) for row, n in zip(np.asarray(rows), lengths, strict=True)]


def agree(make: Callable[[], T]) -> T:
  """Returns what `make` returns on process 0, JSON-able, on every process; its UserError is raised on every process."""
  if not several():
    return make()
  answer: dict[str, Any] = {}
  if is_main():
    try:
      answer = {'value': make()}
    except (UserError, OSError) as e:
      answer = {'error': _words(e)}
  answer = gather(answer)[0]
  if 'error' in answer:
    raise AgreedError(answer['error'])
  return answer['value']


def alike(error: BaseException) -> bool:
  """Returns whether every process of the run raises `error` at the same place."""
  return not several() or isinstance(error, AgreedError | Preempted)


def is_peer_gone(error: BaseException) -> bool:
  """Returns whether an error says that another process of the run has ended."""
  return several() and bool(_PEER_GONE.search(str(error)))


def merged(mappings: Sequence[Mapping[str, str]]) -> dict[str, str]:
  """Returns the union of the mappings of all processes; all must call it."""
  return {k: v for part in gather(list(mappings)) for m in part for k, v in m.items()}


def check_same(values: Mapping[str, Any]) -> None:
  """Raises UserError in every process unless all were given the same; all must call it.

  Args:
    values: JSON-able, by what the message calls them.
  """
  first, *others = gather(dict(values))
  for i, other in enumerate(others, 1):
    for name in sorted({*first, *other}):
      a, b = (x.get(name, 'absent') for x in (first, other))
      if a != b:
        raise AgreedError(
          f'{name} is {b} in process {i} and {a} in process 0; expected the same in every process'
        )


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Runs a block in every process; a UserError in any of them is raised in all.

  The block must hold no collective operation.
  """
  error: Exception | None = None
  try:
    yield
  except (UserError, OSError) as e:
    if not several():
      raise
    error = e
  if several():
    raise_first(error)


def _words(error: Exception) -> str:
  where = f'{error.filename}: ' if isinstance(error, OSError) and error.filename else ''
  return where + str(getattr(error, 'strerror', None) or error)


def raise_first(error: Exception | None) -> None:
  """Raises in every process what any of them has to complain of; all must call it. Nothing when no one has."""
  said = [x for x in gather(None if error is None else _words(error)) if x]
  if said:
    others = len(set(said)) - 1
    raise AgreedError(
      said[0] + (f' (and {others} more of the kind in other processes)' if others else '')
    ) from error


class PeerGone(Ended):
  """Another process of the run has ended; this one can't go on alone."""


@contextlib.contextmanager
def watching_peers() -> Iterator[None]:
  """Turns what JAX raises when another process of the run has ended into PeerGone."""
  try:
    yield
  except (UserError, Ended, OSError):
    raise
  except Exception as e:
    if is_peer_gone(e):
      what = ' '.join(str(e).split())[:120]
      raise PeerGone(
        f'another process of this run is gone ({what}); the same command goes on from the last checkpoint'
      ) from e
    if several():
      traceback.print_exc()
      _leave(1)
    raise


def end(code: int, said: str, error: BaseException) -> NoReturn:
  """Ends a process as cli.end does. One of several says what all know once, and leaves at once if the others don't know.

  They may be waiting for it then, and JAX would have it wait for them.
  """
  if any(thread.is_alive() for thread in _connecting):  # only leaving at once ends it
    print(said, file=sys.stderr)
    _leave(code)
  if not several():
    cli.end(code, said)
  if isinstance(error, AgreedError | Preempted):
    if is_main():
      print(said, file=sys.stderr)
    sys.exit(code)
  print(f'{said} (process {index()})', file=sys.stderr)
  _leave(code)


def _leave(code: int) -> NoReturn:
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)

"""A Slurm cluster of one machine, made for the test: launch/slurm.sh's jobs run, are requeued, and go on to the same result.

Needs Slurm, munge and root (on Debian: apt-get install slurm-wlm munge); the cluster's files and ports are its own.
"""

import collections
import dataclasses
import getpass
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.faults import compare

ROOT = pathlib.Path(__file__).parents[2]
NEEDS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'scontrol', 'scancel')
MISSING = [p for p in NEEDS if not shutil.which(p, path=f'{os.environ["PATH"]}:/usr/sbin')]

pytestmark = [
  pytest.mark.processes,
  pytest.mark.skipif(
    bool(MISSING), reason=f'{", ".join(MISSING)} not installed (apt-get install slurm-wlm munge)'
  ),
  pytest.mark.skipif(os.geteuid() != 0, reason='slurmd needs root'),
]

# Four tasks fit, whatever the machine has: cores are only counted. cred_expire: a requeued job waits that long (120 s by
# default), so that what it left behind can't be taken for its new self.
CONF = """
ClusterName=mimic
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=20
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# Stands for the run where only the job around it is looked at: it takes a moment to stop, as a checkpoint does.
RUN = """
import os, signal, sys, time
def log(what):
  with open(sys.argv[-1], 'a') as f:
    f.write(f'{what} {os.environ["SLURM_PROCID"]} {os.environ["SLURM_NTASKS"]}\\n')
told = []
for s in (signal.SIGTERM, signal.SIGUSR1):
  signal.signal(s, lambda number, frame: told.append(signal.Signals(number).name))
log('began')
while not told:
  time.sleep(0.05)
time.sleep(2)
log(told[0])
sys.exit(75)
"""


@dataclasses.dataclass
class Cluster:
  """A running cluster.

  Attributes:
    folder: of its files, and of its jobs' output.
    env: the environment in which its commands find it.
  """

  folder: pathlib.Path
  env: dict[str, str]

  def call(self, *argv: str | pathlib.Path) -> str:
    """Returns what a command prints."""
    done = subprocess.run(argv, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout

  def submit(self, python: str | pathlib.Path, *run: str, flags: tuple[str, ...] = ('--tasks=2',)) -> str:
    """Submits a job, of two processes unless said otherwise, through launch/slurm.sh and returns its number."""
    said = self.call(ROOT / 'launch' / 'slurm.sh', '--cpu', *flags, f'--python={python}', '--', *run)
    return said.split()[1].rstrip(';')

  def job(self, number: str) -> dict[str, str]:
    """Returns what Slurm says of a job."""
    return dict(
      x.partition('=')[::2] for x in self.call('scontrol', 'show', 'job', number).split() if '=' in x
    )

  def wait(self, number: str, states: str, seconds: float) -> dict[str, str]:
    """Returns what Slurm says of a job as soon as it is in one of the states; fails with its output when it takes too long."""
    deadline = time.monotonic() + seconds
    while (job := self.job(number))['JobState'] not in states.split():
      assert time.monotonic() < deadline, f'{job["JobState"]}\n{self.output(number)}'
      time.sleep(0.3)
    return job

  def output(self, number: str) -> str:
    """Returns what a job has printed."""
    path = self.folder / f'mimic-{number}.log'
    return path.read_text() if path.exists() else ''


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
  folder = tmp_path_factory.mktemp('slurm')
  for name in ('state', 'spool'):
    (folder / name).mkdir()
  (folder / 'munge.key').write_bytes(os.urandom(1024))
  (folder / 'munge.key').chmod(0o600)
  with socket.socket() as a, socket.socket() as b:
    a.bind(('127.0.0.1', 0))
    b.bind(('127.0.0.1', 0))
    ports = [s.getsockname()[1] for s in (a, b)]
  host = socket.gethostname().partition('.')[0]
  (folder / 'slurm.conf').write_text(
    CONF.format(folder=folder, user=getpass.getuser(), ports=ports, host=host)
  )
  # not the tests' own eight fake devices
  env = {
    k: v
    for k, v in os.environ.items()
    if k != 'XLA_FLAGS' and not k.startswith(('SLURM_', 'SBATCH_', 'JAX_'))
  }
  env |= {
    'PATH': f'{os.environ["PATH"]}:/usr/sbin',
    'SLURM_CONF': str(folder / 'slurm.conf'),
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  daemons = []
  munged = ['munged', '--foreground', '--force']
  munged += [
    f'--{k}={folder}/munge.{v}' for k, v in (('key-file', 'key'), ('socket', 'sock'), ('pid-file', 'pid'))
  ]
  munged += [f'--seed-file={folder}/munge.seed', f'--log-file={folder}/munge.log']
  made = Cluster(folder, env)
  try:
    for argv, ready in (
      (munged, lambda: (folder / 'munge.sock').exists()),
      (['slurmctld', '-D', '-c'], lambda: _quiet(made, 'scontrol', 'ping')),
      (['slurmd', '-D', '-N', 'localhost'], lambda: 'idle' in made.call('sinfo', '-h', '-o', '%T')),
    ):
      with open(folder / f'{argv[0]}.out', 'w') as out:
        daemons.append(subprocess.Popen(argv, env=env, stdout=out, stderr=subprocess.STDOUT))
      deadline = time.monotonic() + 30
      while not ready():
        assert daemons[-1].poll() is None, (folder / f'{argv[0]}.out').read_text()
        assert time.monotonic() < deadline, f'{argv[0]} does not answer'
        time.sleep(0.1)
    yield made
    subprocess.run(['scancel', '--signal=KILL', '--full', '--user', getpass.getuser()], env=env, timeout=30)
    time.sleep(1)
  finally:
    for daemon in reversed(daemons):
      daemon.send_signal(signal.SIGTERM)
      try:
        daemon.wait(timeout=20)
      except subprocess.TimeoutExpired:
        daemon.kill()


def _quiet(cluster: Cluster, *argv: str) -> bool:
  done = subprocess.run(argv, env=cluster.env, capture_output=True, text=True, timeout=60)
  return done.returncode == 0 and 'is UP' in done.stdout


@pytest.fixture
def stand_in(cluster, tmp_path):
  """A program in the place of Python, and where its processes log what happened to them."""
  program = tmp_path / 'python'
  program.write_text(f'#!{sys.executable}\n{RUN}')
  program.chmod(0o755)
  return program, tmp_path / 'log'


def logged(path: pathlib.Path) -> collections.Counter:
  return collections.Counter(path.read_text().splitlines() if path.exists() else [])


def until_begun(path: pathlib.Path) -> None:
  deadline = time.monotonic() + 30
  while logged(path) != {'began 0 2': 1, 'began 1 2': 1}:
    assert time.monotonic() < deadline
    time.sleep(0.05)


@pytest.mark.parametrize(
  ('tell', 'got', 'state', 'restarts'),
  [
    (['scontrol', 'requeue'], 'SIGTERM', 'PENDING', '1'),
    (['scancel', '--signal=USR1'], 'SIGUSR1', 'PENDING', '1'),
    (
      ['scancel'],
      'SIGTERM',
      'CANCELLED',
      '0',
    ),  # a job that is put back by its script would come to life again
  ],
)
def test_a_job_may_write_before_it_is_put_back_and_scancel_ends_it(
  cluster, stand_in, tell, got, state, restarts
):
  program, log = stand_in
  number = cluster.submit(program, '--workdir', str(log))
  until_begun(log)
  cluster.call(*tell, number)
  time.sleep(3)
  job = cluster.wait(number, 'PENDING CANCELLED', 30)
  assert (job['JobState'], job['Restarts']) == (state, restarts), cluster.output(number)
  assert logged(log) == {'began 0 2': 1, 'began 1 2': 1, f'{got} 0 2': 1, f'{got} 1 2': 1}
  if state == 'PENDING':
    cluster.call('scancel', number)


def test_of_the_jobs_of_seeds_only_the_one_that_was_pre_empted_is_put_back(cluster, stand_in, tmp_path):
  program, _ = stand_in
  logs = [tmp_path / str(seed) for seed in (0, 3)]
  program.write_text(program.read_text().replace('sys.argv[-1]', 'sys.argv[-2] + sys.argv[-1][-1]'))
  number = cluster.submit(program, '--workdir=x', '--seeds=0,3', f'{tmp_path}/', flags=('--array',))
  deadline = time.monotonic() + 60
  while any(logged(log) != {'began 0 1': 1} for log in logs):
    assert time.monotonic() < deadline
    time.sleep(0.05)
  for seed in (3, 0):  # one of them has the number of them all as its own
    cluster.call('scancel', '--signal=USR1', f'{number}_{seed}')
    job = cluster.wait(f'{number}_{seed}', 'PENDING', 30)
    assert (job['ArrayTaskId'], job['Restarts']) == (str(seed), '1')
    if seed == 3:
      assert cluster.job(f'{number}_0')['JobState'] == 'RUNNING'
  assert [logged(log) for log in logs] == [{'began 0 1': 1, 'SIGUSR1 0 1': 1}] * 2
  cluster.call('scancel', number)


def test_a_requeued_run_of_two_processes_ends_as_one_that_was_left_alone(cluster, tmp_path):
  fields = ['--config.stages=pretrain', '--config.pretrain.steps=64']
  fields += [f'--config.pretrain.{k}.every_epochs=4' for k in ('eval', 'checkpoint')]

  def submit(name: str) -> str:
    return cluster.submit(
      sys.executable, '--config', 'tests/faults/config.py', '--workdir', str(tmp_path / name), *fields
    )

  number, lines = submit('requeued'), tmp_path / 'requeued' / 'pretrain' / 'metrics.jsonl'
  deadline = time.monotonic() + 180
  while not (lines.exists() and lines.read_text().count('\n') > 5):
    assert time.monotonic() < deadline, cluster.output(number)
    time.sleep(0.02)
  cluster.call('scontrol', 'requeue', number)
  alone = submit('alone')  # while the other waits in the queue
  for job, restarts in ((alone, '0'), (number, '1')):
    said = cluster.wait(job, 'COMPLETED FAILED CANCELLED TIMEOUT', 240)
    assert (said['JobState'], said['Restarts']) == ('COMPLETED', restarts), cluster.output(job)
  said = cluster.output(number)
  assert 'CANCELLED' in said
  assert '(resumed)' in said
  assert compare.differences(tmp_path / 'alone', tmp_path / 'requeued') == []

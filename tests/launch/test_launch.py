"""The launch scripts against recorded stand-ins for gcloud, docker, sbatch and srun, which note how they were called.

The stand-in for gcloud plays a slice of two machines: each is a home folder, in which what comes through ssh is run.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
SCRIPTS = ('tpu.sh', 'gpu.sh', 'slurm.sh')
# one argument each that a careless script would split, expand or lose
AWKWARD = [
  '--config',
  "it's a/config.py:b",
  '--config.data.root=/data/two words',
  '--config.note=$HOME * "x"',
]

pytestmark = pytest.mark.skipif(not shutil.which('bash'), reason='needs bash')

RECORD = """
import json, os, pathlib, re, shutil, signal, subprocess, sys
WORLD = pathlib.Path(os.environ['STANDIN_WORLD'])
ARGV = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
def note(**more):
  with open(WORLD / 'calls', 'a') as f:
    f.write(json.dumps({'argv': ARGV, **more}) + '\\n')
def next_of(name, default):  # the next line of a script of answers; the last one stays
  path = WORLD / name
  lines = path.read_text().splitlines() if path.exists() else [default]
  if len(lines) > 1:
    path.write_text('\\n'.join(lines[1:]))
  return lines[0]
"""

# what a run does when it is started: exits with a code, is taken away with its slice, or goes on until it is told to stop
PYTHON = """
import time
note(cwd=os.getcwd())
plan = next_of(f'plan{os.environ.get("WORKER", "")}', '0')
print('a run that does', plan, flush=True)
if plan == 'preempted':
  if os.environ.get('WORKER') == '0':
    (WORLD / 'state').write_text('PREEMPTED')
  sys.exit(1)
if plan != 'wait':
  sys.exit(int(plan))
told = []
for s in (signal.SIGTERM, signal.SIGUSR1):
  signal.signal(s, lambda number, frame: told.append(number))
(WORLD / 'waiting').write_text(str(os.getpid()))
while not told:
  time.sleep(0.02)
(WORLD / 'waiting').unlink()
note(signal=told[0])
sys.exit(75)
"""

GCLOUD = """
verb = ARGV[4]
state = WORLD / 'state'
flags = dict(a.partition('=')[::2] for a in ARGV if a.startswith('--'))
workers = [WORLD / f'worker{i}' for i in (range(2) if flags.get('--worker') == 'all' else [0])]
note(state=state.read_text() if state.exists() else 'ABSENT')
def fail(message):
  print(f'ERROR: (gcloud.compute.tpus) {message}', file=sys.stderr)
  sys.exit(1)
trouble = next_of(f'trouble.{verb}', 'none')
if trouble != 'none':
  fail(trouble)
if verb == 'describe':
  if not state.exists():
    fail("NOT_FOUND: Resource 'projects/p/nodes/n' was not found")
  request = ARGV[3] == 'queued-resources'
  print(next_of('queue', 'ACTIVE') if request else state.read_text())
elif verb == 'create':
  if state.exists():
    fail('ALREADY_EXISTS')
  state.write_text('READY')
  for i in range(2):
    programs = WORLD / f'worker{i}' / 'mimic_jax' / '.venv' / 'bin'
    programs.mkdir(parents=True)
    for name in ('python', 'pip'):
      shutil.copy(WORLD / 'bin' / name, programs / name)
elif verb == 'delete':
  state.unlink()
  for i in range(2):
    shutil.rmtree(WORLD / f'worker{i}', ignore_errors=True)
elif state.read_text() != 'READY':
  sys.exit(255)  # as ssh, when nobody answers
elif verb == 'scp':
  for home in workers:
    shutil.copy(ARGV[5], home / ARGV[6].partition(':')[2])
elif verb == 'ssh':
  codes = []
  for home in workers:
    env = {**os.environ, 'HOME': str(home), 'WORKER': home.name[-1]}
    codes.append(subprocess.run(['bash', '-c', flags['--command']], cwd=home, env=env).returncode)
  sys.exit(max(codes))
"""

PROGRAMS = {
  'python': PYTHON,
  'docker': "\nif ARGV[1] != 'run':\n  note()\n  sys.exit(0)\n" + PYTHON,
  'srun': PYTHON,
  'gcloud': GCLOUD,
  'pip': '\nnote()\n',
  'sbatch': "\nnote(script=sys.stdin.read())\nprint('42;cluster')\n",
  'scontrol': "\nnote()\nprint('JobId=42 JobState=' + next_of('jobstate', 'RUNNING') + ' Reason=None')\n",
}


def _hears_signals() -> None:
  """In a new process: undoes what a shell's & and nohup do, after which a script can't trap these signals."""
  for signum in (signal.SIGINT, signal.SIGHUP):
    signal.signal(signum, signal.SIG_DFL)


class World:
  """A PATH of stand-ins, what they are to answer, and what they were asked."""

  def __init__(self, folder: pathlib.Path) -> None:
    self.folder = folder
    (folder / 'bin').mkdir()
    for name, body in PROGRAMS.items():
      program = folder / 'bin' / name
      program.write_text(f'#!{sys.executable}\n{RECORD}{body}')
      program.chmod(0o755)
    self.env = {k: v for k, v in os.environ.items() if not k.startswith(('MIMIC_', 'SLURM_', 'SBATCH_'))}
    self.env |= {'PATH': f'{folder / "bin"}:{os.environ["PATH"]}', 'STANDIN_WORLD': str(folder)}

  def answers(self, **scripts: list[str]) -> None:
    """Sets what is answered, one after the other; the last answer stays."""
    for name, lines in scripts.items():
      (self.folder / name).write_text('\n'.join(lines))

  def plan(self, *steps: str) -> None:
    """Sets what the runs do, one after the other, on this machine and on both of the slice."""
    self.answers(plan=list(steps), plan0=list(steps), plan1=list(steps))

  def run(self, script: str, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a launch script to its end and checks its exit code."""
    done = subprocess.run(
      [LAUNCH / script, *args], env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    return done

  def begin(self, script: str, *args: str) -> subprocess.Popen[str]:
    """Starts a launch script and returns when the run in it waits to be told to stop."""
    process = subprocess.Popen(
      [LAUNCH / script, *args],
      env=self.env,
      cwd=self.folder,
      stderr=subprocess.PIPE,
      text=True,
      preexec_fn=_hears_signals,
    )
    self.until_waiting()
    return process

  def until_waiting(self) -> int:
    """Returns the process id of a run that waits to be told to stop."""
    deadline = time.monotonic() + 30
    while not (self.folder / 'waiting').exists() or not (self.folder / 'waiting').read_text():
      assert time.monotonic() < deadline
      time.sleep(0.02)
    return int((self.folder / 'waiting').read_text())

  def calls(self) -> list[dict]:
    """Returns how the stand-ins were called, in order."""
    path = self.folder / 'calls'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

  def verbs(self) -> str:
    """Returns what was done to the slice, without the looks at its state."""
    return ' '.join(
      c['argv'][4] for c in self.calls() if c['argv'][0] == 'gcloud' and c['argv'][4] != 'describe'
    )


@pytest.fixture
def world(tmp_path):
  return World(tmp_path)


SLICE = ('--name=n', '--zone=us-east5-b', '--type=v6e-16', '--poll=1')
STUDY = ('study', '--study=table2', '--out=/runs/x')
MAIN = ('python', '-m', 'mimic_jax.main')
RUN = ('--', *MAIN, '--config', 'quickstart', '--workdir', 'gs://b/run')
LOCAL = ('--', *MAIN, '--config', 'quickstart', '--workdir', '/runs/x')


def test_shellcheck_finds_nothing():
  program = shutil.which('shellcheck', path=f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}')
  if not program:
    pytest.skip("shellcheck is not installed (pip install -e '.[test]' brings it)")
  files = [str(p) for p in sorted(LAUNCH.glob('*.sh'))] + [str(ROOT / '.ci' / 'run')]
  done = subprocess.run([program, '-x', *files], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_names_every_flag_that_is_understood(world, script):
  said = world.run(script, '--help').stdout
  source = (LAUNCH / script).read_text()
  flags = set(re.findall(r'--[a-z][a-z-]*', ' '.join(re.findall(r'^    (--[a-z][a-z |-]*)\)', source, re.M))))
  assert len(flags) > 8
  assert not {f for f in flags if f not in said}
  assert 'python -m mimic_jax.main --config' in said
  assert 'set -euo' not in said


@pytest.mark.parametrize('script', SCRIPTS)
@pytest.mark.parametrize(
  ('args', 'says'),
  [
    (('--wrong=1', *LOCAL), "'--wrong' is not understood"),
    (('--name',), '--name has no value'),
    (('--', *MAIN, '--config', 'quickstart'), 'no --workdir'),
  ],
)
def test_a_wrong_command_line_is_one_line_and_calls_nothing(world, script, args, says):
  first = (
    ('run', '--zone=z', '--type=v6e-8') + (('--name=n',) if '--name' not in args else ())
    if script == 'tpu.sh'
    else ()
  )
  done = world.run(script, *first, *args, code=2)
  assert says in done.stderr
  assert done.stderr.count('\n') == 1
  assert world.calls() == []


@pytest.mark.parametrize(
  ('script', 'args', 'says'),
  [
    ('tpu.sh', ('run', '--name=n', '--type=v6e-8', *RUN), '--zone is missing'),
    ('tpu.sh', ('run', '--name=n', '--zone=z', *RUN), '--type is missing'),
    ('tpu.sh', ('create', '--name=n', '--zone=z', '--type=v99-8'), '--version is missing'),
    ('tpu.sh', ('create', 'delete'), "both 'create' and 'delete'"),
    ('tpu.sh', SLICE, 'nothing to do'),
    ('tpu.sh', ('delete', *SLICE, *RUN), "'delete' takes no command"),
    ('slurm.sh', ('--nodes=0', *LOCAL), "--nodes is '0'; expected a whole number from 1"),
    ('slurm.sh', ('--tasks=2', *LOCAL), '--tasks goes with --cpu'),
    ('slurm.sh', ('--array', *LOCAL), 'no --seeds'),
    ('slurm.sh', ('--workers=2', *LOCAL), "--workers goes with 'study'"),
    ('slurm.sh', ('--workers=2', '--nodes=2', '--', *MAIN, *STUDY), 'expected no --nodes'),
    ('slurm.sh', ('--array', '--', *MAIN, *STUDY), 'expected --workers=N for a study'),
    ('gpu.sh', ('--mount=data', *LOCAL), "--mount is 'data'"),
    ('gpu.sh', ('--mount=/no/such/folder', *LOCAL), 'no folder'),
  ],
)
def test_wrong_values_are_named(world, script, args, says):
  done = world.run(script, *args, code=2)
  assert says in done.stderr
  assert done.stderr.count('\n') == 1
  assert world.calls() == []


@pytest.mark.parametrize('script', SCRIPTS)
def test_a_dry_run_prints_the_command_and_calls_nothing(world, script):
  first = ('run', *SLICE) if script == 'tpu.sh' else ()
  said = world.run(script, *first, '--dry-run', *RUN).stdout
  assert '-m mimic_jax.main --config quickstart --workdir gs://b/run' in said
  assert world.calls() == []


def test_a_dry_run_can_be_pasted(world):
  command = world.run('slurm.sh', '--dry-run', '--cpu', '--', *AWKWARD, '--workdir=/runs/x').stdout
  subprocess.run(['bash', '-c', command], env=world.env, check=True, capture_output=True)
  pasted = world.calls()
  world.run('slurm.sh', '--cpu', '--', *AWKWARD, '--workdir=/runs/x')
  assert world.calls() == pasted * 2


# -- Slurm


def submitted(world: World, *args: str) -> tuple[list[str], str]:
  """Returns the flags with which a job was submitted, and its script."""
  said = world.run('slurm.sh', *args).stdout
  assert said.startswith('job 42;')
  call = world.calls()[-1]
  assert call['argv'][:2] == ['sbatch', '--parsable']
  return call['argv'][2:], call['script']


def test_slurm_asks_for_one_process_per_gpu(world):
  flags, script = submitted(
    world, '--nodes=2', '--gpus', '8', '--cpus=12', '--time=1-00:00:00', '--partition=gpu', '--account=lab',
    '--sbatch=--mem=0', '--grace=300', '--python=/env/bin/python', *LOCAL,
  )  # fmt: skip
  assert flags == [
    '--job-name=mimic', '--nodes=2', '--ntasks-per-node=8', '--gpus-per-node=8', '--cpus-per-task=12', '--requeue',
    '--open-mode=append', '--output=mimic-%j.log', '--signal=USR1@300', '--time=1-00:00:00', '--partition=gpu',
    '--account=lab', '--mem=0',
  ]  # fmt: skip
  assert (
    'srun --kill-on-bad-exit=0 --wait=600 --cpus-per-task=12 /env/bin/python -m mimic_jax.main '
    '--config quickstart --workdir /runs/x\n'
  ) in script
  assert 'JAX_PLATFORMS' not in script


def test_slurm_without_gpus(world):
  flags, script = submitted(world, '--cpu', '--tasks=2', *LOCAL)
  assert [f for f in flags if 'gpu' in f or 'tasks' in f] == ['--ntasks-per-node=2']
  assert 'JAX_PLATFORMS=cpu' in script


@pytest.mark.parametrize(
  ('code', 'state', 'requeued'),
  [('75', 'RUNNING', True), ('75', 'COMPLETING', False), ('0', 'RUNNING', False), ('2', 'RUNNING', False)],
)
def test_a_slurm_job_is_put_back_only_when_pre_empted(world, code, state, requeued):
  _, script = submitted(world, '--cpu', '--python=python', '--', *AWKWARD, '--workdir=/runs/x')
  world.plan(code)
  world.answers(jobstate=[state])
  done = subprocess.run(['bash', '-c', script], env={**world.env, 'SLURM_JOB_ID': '42'})
  assert done.returncode == int(code)
  ran = next(c for c in world.calls() if c['argv'][0] == 'srun')
  assert ran['argv'][3:] == [*MAIN, *AWKWARD, '--workdir=/runs/x']
  assert ran['cwd'] == str(ROOT)
  assert (['scontrol', 'requeue', '42'] in [c['argv'] for c in world.calls()]) == requeued


def test_slurm_makes_a_job_of_each_seed_and_puts_back_the_one_that_was_pre_empted(world):
  flags, script = submitted(world, '--cpu', '--array', '--python=python', *LOCAL, '--seeds=0,1,5')
  assert {'--array=0,1,5', '--output=mimic-%A_%a.log'} <= set(flags)
  world.plan('75')
  world.answers(jobstate=['RUNNING'])
  env = {'SLURM_JOB_ID': '42', 'SLURM_ARRAY_JOB_ID': '42', 'SLURM_ARRAY_TASK_ID': '5'}
  subprocess.run(['bash', '-c', script], env={**world.env, **env})
  ran = next(c for c in world.calls() if c['argv'][0] == 'srun')
  assert ran['argv'][-2:] == ['--seeds=0,1,5', '--seeds=5']
  assert ['scontrol', 'requeue', '42_5'] in [c['argv'] for c in world.calls()]
  assert ['scontrol', 'requeue', '42'] not in [c['argv'] for c in world.calls()]


def test_slurm_makes_as_many_jobs_as_share_a_study(world):
  flags, script = submitted(world, '--gpus=4', '--workers=3', '--python=python', '--', *MAIN, *STUDY)
  assert {'--array=0-2', '--output=mimic-%A_%a.log', '--ntasks-per-node=1', '--gpus-per-node=4'} <= set(flags)
  assert f'{" ".join(MAIN[:3])} {" ".join(STUDY)}\n' in script
  assert 'requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' in script


# -- GPU machines


def test_gpu_builds_and_runs_the_container(world, tmp_path):
  data, runs = tmp_path / 'two words', tmp_path / 'runs' / 'x'
  data.mkdir()
  world.run(
    'gpu.sh', f'--mount={data}', '--gpus=2', '--env=WANDB_API_KEY', '--', *AWKWARD, '--workdir', str(runs)
  )
  build, run = (c['argv'] for c in world.calls())
  assert build == [
    'docker', 'build', '--file', str(LAUNCH / 'Dockerfile'), '--build-arg', 'JAX=cuda13', '--tag', 'mimic_jax:cuda13',
    str(ROOT),
  ]  # fmt: skip
  assert run == [
    'docker', 'run', '--rm', '--init', '--name', 'mimic', '--stop-timeout', '120', '--ipc', 'host', '--ulimit',
    'memlock=-1', '--gpus', '2', '--user', f'{os.getuid()}:{os.getgid()}', '--env', 'HOME=/tmp',
    '--volume', f'{data}:{data}:ro', '--volume', f'{runs}:{runs}', '--env', 'WANDB_API_KEY', 'mimic_jax:cuda13',
    *MAIN, *AWKWARD, '--workdir', str(runs),
  ]  # fmt: skip
  assert runs.is_dir()


def test_the_image_installs_what_the_requirements_say():
  lines = (LAUNCH / 'Dockerfile').read_text()
  assert re.search(r'^RUN pip install .*-r requirements.txt "jax\[\$\{JAX\}\]"$', lines, re.M)
  assert '.venv' in (LAUNCH / 'Dockerfile.dockerignore').read_text().split()


@pytest.mark.parametrize('where', [('--no-build',), ('--no-container', '--python=python')])
def test_gpu_starts_a_pre_empted_run_again_and_returns_its_code(world, where, tmp_path):
  world.plan('75', '75', '2')
  done = world.run('gpu.sh', *where, '--', *AWKWARD, '--workdir', str(tmp_path / 'x'), code=2)
  commands = [c['argv'] for c in world.calls()]
  assert len(commands) == 3
  assert commands[0] == commands[1] == commands[2]
  assert commands[0][-len(AWKWARD) - 2 :] == [*AWKWARD, '--workdir', str(tmp_path / 'x')]
  assert done.stderr.count('starting it again') == 2


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize('where', [('--no-build',), ('--no-container', '--python=python')])
def test_gpu_hands_a_stop_to_the_run_and_does_not_start_it_again(world, where, signum, tmp_path):
  world.plan('wait')
  process = world.begin('gpu.sh', *where, '--', '--workdir', str(tmp_path / 'x'))
  process.send_signal(signum)
  process.communicate(timeout=30)
  assert process.returncode == 75
  assert [c['signal'] for c in world.calls() if 'signal' in c] == [signal.SIGTERM]


def test_gpu_starts_a_run_again_that_got_sigusr1(world, tmp_path):
  world.plan('wait', '0')
  process = world.begin('gpu.sh', '--no-container', '--python=python', '--', '--workdir', str(tmp_path / 'x'))
  process.send_signal(signal.SIGUSR1)
  _, said = process.communicate(timeout=30)
  assert process.returncode == 0
  assert said.count('starting it again') == 1
  assert [c['signal'] for c in world.calls() if 'signal' in c] == [signal.SIGUSR1]


# -- TPU slices


@pytest.mark.parametrize(
  ('flags', 'call'),
  [
    (
      ('--type=v6e-16', '--spot'),
      'tpu-vm create n --accelerator-type=v6e-16 --version=v2-alpha-tpuv6e --spot --zone=z --quiet',
    ),
    (
      ('--type=v4-32', '--project=p', '--create=--network=mine'),
      'tpu-vm create n --accelerator-type=v4-32 --version=tpu-ubuntu2204-base --zone=z --quiet --project=p --network=mine',
    ),
    (
      ('--type=v5litepod-8', '--version=mine', '--queued', '--spot'),
      'queued-resources create n --node-id=n --accelerator-type=v5litepod-8 --runtime-version=mine --spot --zone=z --quiet',
    ),
  ],
)
def test_tpu_create_asks_once_and_takes_what_is_there(world, flags, call):
  world.run('tpu.sh', 'create', '--name=n', '--zone=z', '--poll=1', *flags)
  world.run('tpu.sh', 'create', '--name=n', '--zone=z', '--poll=1', *flags)
  assert [c['argv'] for c in world.calls() if 'create' in c['argv']] == [
    ['gcloud', 'compute', 'tpus', *call.split()]
  ]


def test_tpu_takes_its_names_from_the_environment(world):
  world.env |= {f'MIMIC_TPU_{k}': v for k, v in (('NAME', 'e'), ('ZONE', 'z'), ('PROJECT', 'p'))}
  world.answers(state=['READY'])
  world.run('tpu.sh', 'delete')
  assert (
    ' '.join(world.calls()[-1]['argv']) == 'gcloud compute tpus tpu-vm delete e --zone=z --quiet --project=p'
  )


def test_tpu_run_survives_pre_emption_of_the_run_and_of_the_slice(world):
  world.plan('75', 'preempted', '0')
  args = ('run', *SLICE, '--spot', '--delete-when-done', '--', *MAIN, *AWKWARD, '--workdir', 'gs://b/run')
  done = world.run('tpu.sh', *args)
  assert world.verbs() == (
    'create ssh scp ssh ssh ssh ssh '  # made; looked; copied, installed, started, followed, looked: 75
    'ssh ssh ssh '  # started, followed, looked: it answers no more
    'delete create scp ssh ssh ssh ssh delete'  # made anew; copied, installed, started, followed, looked: 0
  )
  runs = [c for c in world.calls() if c['argv'][1:3] == ['-m', 'mimic_jax.main']]
  assert len(runs) == 6  # two machines, three times
  assert all(c['argv'][3:] == [*AWKWARD, '--workdir', 'gs://b/run'] for c in runs)
  assert {c['cwd'] for c in runs} == {str(world.folder / f'worker{i}' / 'mimic_jax') for i in range(2)}
  assert done.stdout.endswith('a run that does 0\n')
  installed = [c['argv'][1:] for c in world.calls() if c['argv'][0] == 'pip']
  assert installed == [['install', '-q', '-r', 'requirements.txt', 'jax[tpu]', 'gcsfs']] * 4


def test_tpu_setup_copies_the_checkout_as_it_is(world):
  world.run('tpu.sh', 'create', *SLICE)
  world.run('tpu.sh', 'setup', *SLICE)
  for i in range(2):
    copied = world.folder / f'worker{i}' / 'mimic_jax'
    assert (copied / 'launch' / 'tpu.sh').read_bytes() == (LAUNCH / 'tpu.sh').read_bytes()
    assert (copied / 'requirements.txt').exists()


def test_no_answer_is_not_taken_for_no_slice(world):
  world.answers(state=['READY'], **{'trouble.describe': ['UNAVAILABLE: no network', 'none']})
  done = world.run('tpu.sh', 'create', *SLICE)
  assert world.verbs() == ''
  assert 'UNAVAILABLE' in done.stderr


def test_tpu_asks_again_while_there_is_no_room_and_only_then(world):
  world.answers(**{'trouble.create': ['There is no more capacity in the zone', 'none']})
  world.run('tpu.sh', 'create', *SLICE)
  assert world.verbs() == 'create create'
  world.run('tpu.sh', 'delete', *SLICE)
  world.answers(**{'trouble.create': ['Quota limit exceeded']})
  done = world.run('tpu.sh', 'create', *SLICE, code=2)
  assert 'Quota limit exceeded' in done.stderr


def test_a_queued_request_is_waited_for_and_made_anew_when_it_failed(world):
  world.answers(state=['READY'], queue=['WAITING_FOR_RESOURCES', 'SUSPENDED', 'ACTIVE'])
  done = world.run('tpu.sh', 'create', *SLICE, '--queued')
  assert world.verbs() == 'delete create'
  delete = next(c['argv'] for c in world.calls() if 'delete' in c['argv'])
  assert delete[3:] == ['queued-resources', 'delete', 'n', '--force', '--zone=us-east5-b', '--quiet']
  assert 'WAITING_FOR_RESOURCES' in done.stderr


def test_tpu_run_goes_back_to_a_run_under_way_and_stop_ends_it(world):
  world.run('tpu.sh', 'create', *SLICE)
  world.plan('wait')
  world.run('tpu.sh', 'start', *SLICE, *RUN)
  world.until_waiting()
  world.run('tpu.sh', 'start', *SLICE, *RUN)
  assert 'run: running' in world.run('tpu.sh', 'status', *SLICE).stdout
  before = world.verbs()
  process = world.begin('tpu.sh', 'run', *SLICE, *RUN)
  deadline = time.monotonic() + 20
  while not world.verbs().startswith(before + ' ssh ssh'):  # it looked, and follows
    assert time.monotonic() < deadline
    time.sleep(0.05)
  world.run('tpu.sh', 'stop', *SLICE)
  _, said = process.communicate(timeout=30)
  assert process.returncode == 75
  assert 'under way already' in said
  assert 'scp' not in world.verbs()
  assert sum(c['argv'][1:3] == ['-m', 'mimic_jax.main'] and 'cwd' in c for c in world.calls()) == 2


@pytest.mark.parametrize(('ends', 'code', 'starts'), [('2', 2, 1), ('1', 1, 2)])
def test_tpu_run_gives_up_on_errors(world, ends, code, starts):
  world.plan(ends)
  world.run('tpu.sh', 'run', *SLICE, '--retries=1', *RUN, code=code)
  assert sum(c['argv'][1:3] == ['-m', 'mimic_jax.main'] for c in world.calls()) == 2 * starts


def test_the_docs_name_flags_that_exist(world):
  text = (ROOT / 'docs' / 'launch.md').read_text()
  for script in SCRIPTS:
    known = world.run(script, '--help').stdout
    for line in re.findall(rf'launch/{re.escape(script)} .*(?:\n +.*)*', textwrap.dedent(text)):
      for flag in re.findall(r'(?<= )--[a-z][a-z-]*', line.split(' -- ')[0]):
        assert flag in known, line

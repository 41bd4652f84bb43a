#!/usr/bin/env bash
# Trains on a Slurm cluster: submits a job of one process per GPU that goes on by itself after pre-emption.
#
#   launch/slurm.sh [flags] -- python -m mimic_jax.main --config CONFIG --workdir FOLDER [...]
#
#   launch/slurm.sh --nodes=2 --gpus=8 --cpus=12 --time=24:00:00 --partition=gpu -- \
#       python -m mimic_jax.main --config pretrain_imagenet1k:vitb16 --config.data.root=/shared/imagenet --workdir /shared/runs/in1k
#
# The folder of the run, the data and this checkout must be where all nodes see them; relative paths are the checkout's.
# Told to stop (pre-empted, requeued, or near its time limit), the run writes a checkpoint and exits with 75, and the job is
# put back into the queue. The same job number goes on until the run is done; scancel ends it.
#   scancel --signal=USR1 JOB   has a running job write a checkpoint and go back into the queue
#
#   --nodes=N           machines (1)
#   --gpus=N            GPUs on each, one process per GPU (1)
#   --cpu               no GPUs; one process per machine unless --tasks says otherwise
#   --tasks=N           processes on each machine, with --cpu
#   --cpus=N            CPU cores per process; the cluster's default otherwise
#   --array             one job for each of the run's --seeds=LIST, side by side, each of which goes on by itself
#   --workers=N         N jobs that share a study: -- python -m mimic_jax.main study --study NAME --out FOLDER …
#   --time=TIME         time limit of one go, as Slurm writes it (D-HH:MM:SS)
#   --partition=NAME, --account=NAME, --name=NAME (mimic)
#   --grace=SECONDS     how long before the time limit the run is told to stop (120)
#   --sbatch=FLAG       any other flag of sbatch, such as --sbatch=--mem=64G; may be repeated
#   --python=PROGRAM    default: .venv/bin/python of this checkout, else python3
#   --dry-run           prints what would be submitted, and submits nothing
#   --help
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

DRY_RUN='' nodes=1 gpus=1 cpu='' tasks='' cpus='' array='' workers='' grace=120 name=mimic python=$(own_python)
extra=()
while [ $# -gt 0 ]; do
  case $1 in
    --) shift; break ;;
    --help | -h) help ;;
    --dry-run) DRY_RUN=1; shift ;;
    --cpu) cpu=1; shift ;;
    --array) array=1; shift ;;
    --*=*) flag=${1%%=*} rest=${1#*=}; shift; set -- "$flag" "$rest" "$@" ;;
    --nodes) value "$@"; number "$1" "$2"; nodes=$2; shift 2 ;;
    --gpus) value "$@"; number "$1" "$2"; gpus=$2; shift 2 ;;
    --tasks) value "$@"; number "$1" "$2"; tasks=$2; shift 2 ;;
    --workers) value "$@"; number "$1" "$2"; workers=$2; shift 2 ;;
    --cpus) value "$@"; number "$1" "$2"; cpus=$2; shift 2 ;;
    --grace) value "$@"; number "$1" "$2"; grace=$2; shift 2 ;;
    --name) value "$@"; name=$2; shift 2 ;;
    --python) value "$@"; python=$2; shift 2 ;;
    --time | --partition | --account) value "$@"; extra+=("$1=$2"); shift 2 ;;
    --sbatch) value "$@"; extra+=("$2"); shift 2 ;;
    *) die "'$1' is not understood; expected flags, then -- and the command (--help)" ;;
  esac
done
take_run "$@"
[ -z "$tasks" ] || [ -n "$cpu" ] || die '--tasks goes with --cpu; with GPUs there is one process for each of --gpus'

flags=(--job-name="$name" --nodes="$nodes")
if [ -n "$workers" ]; then
  flags+=(--ntasks-per-node=1)
  [ -n "$cpu" ] || flags+=(--gpus-per-node="$gpus")
elif [ -n "$cpu" ]; then
  flags+=(--ntasks-per-node="${tasks:-1}")
else
  # Every process of a node sees all its GPUs and takes the one of its number: what JAX's collectives between them need.
  flags+=(--ntasks-per-node="$gpus" --gpus-per-node="$gpus")
fi
[ -z "$cpus" ] || flags+=(--cpus-per-task="$cpus")
own="\$SLURM_JOB_ID" seed='' log=mimic-%j.log
if [ -n "$array" ]; then
  [ "${RUN[0]}" != study ] || die '--array is for the seeds of one run; expected --workers=N for a study'
  [ -n "$SEEDS" ] || die "no --seeds among the flags after '--'; --array makes a job for each of them"
  # The last of several --seeds counts. SLURM_JOB_ID of one of an array's jobs is the number of them all.
  flags+=(--array="$SEEDS") seed=" --seeds=\"\$SLURM_ARRAY_TASK_ID\""
fi
if [ -n "$workers" ]; then
  [ "${RUN[0]}" = study ] || die "--workers goes with 'study' behind 'python -m mimic_jax.main'"
  [ "$nodes${tasks:-1}" = 11 ] || die '--workers is so many jobs of one process each; expected no --nodes and no --tasks'
  flags+=(--array="0-$((workers - 1))")
fi
if [ -n "$array$workers" ]; then
  own="\${SLURM_ARRAY_JOB_ID}_\$SLURM_ARRAY_TASK_ID" log=mimic-%A_%a.log
fi
# Without 'B:' before USR1 it goes to the processes of the run and not to the job's shell.
flags+=(--requeue --open-mode=append --output="$log" --signal="USR1@$grace")
[ ${#extra[@]} = 0 ] || flags+=("${extra[@]}")

# Since Slurm 22.05 srun does not take --cpus-per-task from the job. A process that ends must not have the others killed
# while they write (--kill-on-bad-exit=0), nor be waited for without end when it leaves them hanging (--wait).
srun=(srun --kill-on-bad-exit=0 --wait=600)
[ -z "$cpus" ] || srun+=(--cpus-per-task="$cpus")

job=$(cat <<JOB
#!/usr/bin/env bash
cd $(quoted "$CHECKOUT") || exit 1
export PYTHONUNBUFFERED=1${cpu:+ JAX_PLATFORMS=cpu}
trap : TERM USR1  # Slurm signals this shell as well, which must live to see how the run ended
$(quoted "${srun[@]}" "$python" -m mimic_jax.main "${RUN[@]}")$seed
code=\$?
# Only a job that is still running is put back: one that was requeued is in the queue already, and scancel means to end it.
if [ \$code = $PREEMPTED ]; then
  case \$(scontrol show job "$own") in
    *JobState=RUNNING*) scontrol requeue "$own" ;;
  esac
fi
exit \$code
JOB
)

if [ -n "$DRY_RUN" ]; then
  printf "%s <<'JOB'\n%s\nJOB\n" "$(quoted sbatch --parsable "${flags[@]}")" "$job"
  exit 0
fi
number=$(sbatch --parsable "${flags[@]}" <<<"$job")
number=${number%%;*}  # a cluster's name may follow
echo "job $number; its output: mimic-$number${array:+_SEED}${workers:+_WORKER}.log; to end it: scancel $number"

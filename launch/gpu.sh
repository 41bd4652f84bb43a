#!/usr/bin/env bash
# Trains on this machine's GPUs, in a container or without one, and goes on by itself after pre-emption.
#
#   launch/gpu.sh [flags] -- python -m mimic_jax.main --config CONFIG --workdir FOLDER [...]
#
#   launch/gpu.sh --mount=/data -- python -m mimic_jax.main --config finetune_rafdb:vitb16 \
#       --config.data.root=/data/rafdb --config.init=/data/mae_pretrain_vit_base.safetensors --workdir /runs/rafdb
#
# Builds the image of launch/Dockerfile (quick when nothing changed) and runs the command in it as you; needs Docker and the
# NVIDIA Container Toolkit. The folder of the run is mounted under its own name; relative paths are the checkout's.
# SIGTERM, Ctrl-C and a lost terminal stop the run: it writes a checkpoint, and this script exits with 75. A run that is told to
# stop without this script (SIGUSR1 to either) writes a checkpoint and is started again. 'docker stop' counts as that too.
#
#   --mount=FOLDER      a folder to be read in the container, under its own name; may be repeated
#   --gpus=WHICH        as docker has it: all (the default), 2, or "device=0,1"
#   --cpu               no GPUs
#   --jax=EXTRA         what of JAX goes into the image: cuda13 (the default), cuda12 with an older driver; cpu with --cpu
#   --image=NAME        default mimic_jax:EXTRA
#   --no-build          takes the image as it is
#   --name=NAME         of the container (mimic)
#   --env=NAME[=VALUE]  a variable of the environment in the container; may be repeated
#   --grace=SECONDS     how long 'docker stop' waits for the checkpoint (120)
#   --no-container      runs the command directly, with .venv/bin/python of this checkout, else python3
#   --python=PROGRAM    another interpreter for that
#   --dry-run           prints the commands and runs nothing
#   --help
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

DRY_RUN='' gpus=all cpu='' jax='' image='' build=1 name=mimic grace=120 container=1 python=$(own_python)
mounts=() variables=()
while [ $# -gt 0 ]; do
  case $1 in
    --) shift; break ;;
    --help | -h) help ;;
    --dry-run) DRY_RUN=1; shift ;;
    --cpu) cpu=1; shift ;;
    --no-build) build=''; shift ;;
    --no-container) container=''; shift ;;
    --*=*) flag=${1%%=*} rest=${1#*=}; shift; set -- "$flag" "$rest" "$@" ;;
    --mount)
      value "$@"
      case $2 in /*) ;; *) die "--mount is '$2'; expected a path that begins with /" ;; esac
      [ -d "$2" ] || die "--mount is '$2', which is no folder"
      mounts+=(--volume "$2:$2:ro")
      shift 2
      ;;
    --gpus) value "$@"; gpus=$2; shift 2 ;;
    --jax) value "$@"; jax=$2; shift 2 ;;
    --image) value "$@"; image=$2; shift 2 ;;
    --name) value "$@"; name=$2; shift 2 ;;
    --env) value "$@"; variables+=(--env "$2"); shift 2 ;;
    --grace) value "$@"; number "$1" "$2"; grace=$2; shift 2 ;;
    --python) value "$@"; python=$2; shift 2 ;;
    *) die "'$1' is not understood; expected flags, then -- and the command (--help)" ;;
  esac
done
take_run "$@"
jax=${jax:-$([ -n "$cpu" ] && echo cpu || echo cuda13)}
image=${image:-mimic_jax:$jax}

if [ -n "$container" ]; then
  command=(docker run --rm --init --name "$name" --stop-timeout "$grace" --ipc host --ulimit memlock=-1)
  [ -n "$cpu" ] || command+=(--gpus "$gpus")
  command+=(--user "$(id -u):$(id -g)" --env HOME=/tmp)  # HOME: that user has none in the image
  case $WORKDIR in
    *://*) ;;
    /*) here=$WORKDIR mounts+=(--volume "$WORKDIR:$WORKDIR") ;;
    *) here=$CHECKOUT/$WORKDIR mounts+=(--volume "$CHECKOUT/$WORKDIR:/mimic_jax/$WORKDIR") ;;
  esac
  command+=(${mounts[@]+"${mounts[@]}"} ${variables[@]+"${variables[@]}"} "$image" python -m mimic_jax.main "${RUN[@]}")
  if [ -n "$build" ]; then
    call docker build --file "$CHECKOUT/launch/Dockerfile" --build-arg "JAX=$jax" --tag "$image" "$CHECKOUT"
  fi
  [ -z "${here:-}" ] || call mkdir -p "$here"  # Docker would make it root's
else
  command=("$python" -m mimic_jax.main "${RUN[@]}")
fi
cd "$CHECKOUT"
if [ -n "$DRY_RUN" ]; then
  call "${command[@]}"
  exit 0
fi

stopped='' child=''
# shellcheck disable=SC2329  # the traps call it
forward() {  # forward SIGNAL: to the run, or to docker, which hands it on
  interrupted=1
  [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null || true
}
trap 'stopped=1; forward TERM' TERM INT HUP
trap 'forward USR1' USR1
set -m  # the run gets a process group of its own, so that Ctrl-C reaches it through this script and not besides
while [ -z "$stopped" ]; do
  "${command[@]}" &
  child=$!
  [ -z "$stopped" ] || forward TERM  # came before there was anything to forward it to
  interrupted=1
  while [ -n "$interrupted" ]; do  # a signal ends the waiting early
    interrupted='' code=0
    wait "$child" || code=$?
  done
  child=''
  [ "$code" = "$PREEMPTED" ] || exit "$code"
  [ -n "$stopped" ] || note 'the run was told to stop, and has written a checkpoint; starting it again'
done
exit "$PREEMPTED"

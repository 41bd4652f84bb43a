#!/usr/bin/env bash
# Trains on a Cloud TPU slice: makes it, sets all its machines up, runs the command on all of them, follows it, and goes on
# when the slice is taken away.
#
#   launch/tpu.sh run [flags] -- python -m mimic_jax.main --config CONFIG --workdir gs://BUCKET/FOLDER [...]
#
#   launch/tpu.sh run --name=mimic --zone=us-east5-b --type=v6e-16 --spot -- \
#       python -m mimic_jax.main --config pretrain_imagenet1k:vitb16 --config.data.root=gs://b/tfds --workdir gs://b/in1k
#
# The folder of the run must outlive the slice and be seen by all its machines: gs://…, or a shared disk that they mount.
#
#   run        create, setup and start, then follows until the run is done. Slice pre-empted or failed: deletes it, makes
#              another and goes on. Run exited with 75: goes on. Run under way already: only follows it, so the same
#              command goes back to a run after this machine was switched off. Exits with the run's code
#   create     makes the slice, or waits for the one of that name, until it is ready
#   setup      copies this checkout (uncommitted changes too) to all machines and installs the requirements, jax[tpu] and gcsfs (for gs://)
#   start      starts the command on all machines, where it goes on without a connection; its output: mimic_jax/run.log
#   follow     shows what the first machine prints
#   status     says the state of the slice and of the run
#   stop       tells the run to write a checkpoint and exit with 75
#   delete     deletes the slice; until then it costs money
#
#   --name=NAME, --zone=ZONE, --type=TYPE, --project=PROJECT
#                       else from MIMIC_TPU_NAME, _ZONE, _TYPE, _PROJECT; the last one, else gcloud's own
#   --version=VERSION   software of the machines, else MIMIC_TPU_VERSION, else the usual one for the type
#   --spot              cheaper, and may be taken away at any time
#   --queued            asks through a queued resource, which waits until there is room
#   --create=FLAG       any other flag of gcloud's create, such as --create=--network=mine; may be repeated
#   --ssh=FLAG          any other flag of gcloud's ssh and scp, such as --ssh=--internal-ip; may be repeated
#   --retries=N         how often a run is started again that ended with anything but 0, 2, 75 or 130, within ten minutes (3)
#   --poll=SECONDS      between looks at what changes slowly (30)
#   --delete-when-done  with run: deletes the slice when the run is done (exit code 0)
#   --dry-run           prints the commands for a slice that isn't there yet, and runs nothing
#   --help
set -euo pipefail
# shellcheck source=launch/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

DRY_RUN='' name=${MIMIC_TPU_NAME-} zone=${MIMIC_TPU_ZONE-} type=${MIMIC_TPU_TYPE-} project=${MIMIC_TPU_PROJECT-}
version=${MIMIC_TPU_VERSION-} spot='' queued='' retries=3 poll=30 delete_after='' todo=''
create_flags=() ssh_flags=()
while [ $# -gt 0 ]; do
  case $1 in
    --) shift; break ;;
    --help | -h) help ;;
    --dry-run) DRY_RUN=1; shift ;;
    --spot) spot=1; shift ;;
    --queued) queued=1; shift ;;
    --delete-when-done) delete_after=1; shift ;;
    --*=*) flag=${1%%=*} rest=${1#*=}; shift; set -- "$flag" "$rest" "$@" ;;
    --name) value "$@"; name=$2; shift 2 ;;
    --zone) value "$@"; zone=$2; shift 2 ;;
    --type) value "$@"; type=$2; shift 2 ;;
    --project) value "$@"; project=$2; shift 2 ;;
    --version) value "$@"; version=$2; shift 2 ;;
    --create) value "$@"; create_flags+=("$2"); shift 2 ;;
    --ssh) value "$@"; ssh_flags+=("$2"); shift 2 ;;
    --retries) value "$@"; [ "$2" = 0 ] || number "$1" "$2"; retries=$2; shift 2 ;;
    --poll) value "$@"; number "$1" "$2"; poll=$2; shift 2 ;;
    run | create | setup | start | follow | status | stop | delete)
      [ -z "$todo" ] || die "both '$todo' and '$1'; expected one of them"
      todo=$1
      shift
      ;;
    *) die "'$1' is not understood; expected run, create, setup, start, follow, status, stop or delete, and flags (--help)" ;;
  esac
done
[ -n "$todo" ] || die 'nothing to do; expected run, create, setup, start, follow, status, stop or delete (--help)'
[ -n "$name" ] || die '--name is missing; expected a name for the slice'
[ -n "$zone" ] || die '--zone is missing; expected a zone of Google Cloud, such as us-east5-b'
case $todo in
  run | create)
    [ -n "$type" ] || die '--type is missing; expected a type of slice, such as v6e-16'
    case $type in  # cloud.google.com/tpu/docs/runtimes
      v6e*) usual=v2-alpha-tpuv6e ;;
      v5p*) usual=v2-alpha-tpuv5 ;;
      v5litepod*) usual=v2-alpha-tpuv5-lite ;;
      v[234]-*) usual=tpu-ubuntu2204-base ;;
      *) [ -n "$version" ] || die "--version is missing; there is no usual one for --type $type" ;;
    esac
    version=${version:-$usual}
    ;;
esac
WORKDIR=''
case $todo in
  run | start)
    take_run "$@"
    case $WORKDIR in
      *://*) ;;
      *) note "--workdir $WORKDIR is lost with the slice unless it lies on a disk that all its machines mount; expected gs://…" ;;
    esac
    ;;
  *) [ $# = 0 ] || die "'$todo' takes no command" ;;
esac

vm=(gcloud compute tpus tpu-vm) queue=(gcloud compute tpus queued-resources)
where=(--zone="$zone" --quiet)
[ -z "$project" ] || where+=(--project="$project")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

ask() {  # ask COMMAND…: prints its answer, ABSENT when there is no such thing, UNKNOWN when there was no answer
  if "$@" 2>"$scratch/complaint"; then return; fi
  if grep -qi 'not.found' "$scratch/complaint"; then
    echo ABSENT
  else  # never taken for an absence: the slice may be at work
    tail -n 1 "$scratch/complaint" >&2
    echo UNKNOWN
  fi
}

state() {  # prints what Google Cloud says of the slice
  local request=ACTIVE answer
  [ -z "$queued" ] || request=$(ask "${queue[@]}" describe "$name" "${where[@]}" '--format=value(state.state)')
  if [ "$request" != ACTIVE ]; then
    echo "$request"
    return
  fi
  answer=$(ask "${vm[@]}" describe "$name" "${where[@]}" '--format=value(state)')
  if [ -n "$queued" ] && [ "$answer" = ABSENT ]; then answer=FAILED; fi  # its request is in the way of another
  echo "$answer"
}

make() {  # asks for the slice once
  local what=(--accelerator-type="$type")
  if [ -n "$queued" ]; then
    what=("${queue[@]}" create "$name" --node-id="$name" "${what[@]}" --runtime-version="$version")
  else
    what=("${vm[@]}" create "$name" "${what[@]}" --version="$version")
  fi
  [ -z "$spot" ] || what+=(--spot)
  call "${what[@]}" "${where[@]}" ${create_flags[@]+"${create_flags[@]}"}
}

delete() {
  if [ -n "$queued" ]; then
    call "${queue[@]}" delete "$name" --force "${where[@]}"
  else
    call "${vm[@]}" delete "$name" "${where[@]}"
  fi
}

create() {  # returns when the slice is ready; sets fresh when it was made here
  local now
  fresh=''
  if [ -n "$DRY_RUN" ]; then
    make
    return
  fi
  while :; do
    now=$(state)
    case $now in
      READY) return ;;
      ABSENT)
        note "asking for a $type named $name in $zone"
        fresh=1
        if ! make 2>"$scratch/complaint"; then
          cat "$scratch/complaint" >&2
          grep -qi 'capacity' "$scratch/complaint" || die 'gcloud could not make the slice'
          note "no room in $zone; asking again in $poll s"
          sleep "$poll"
        elif [ -n "$queued" ]; then
          sleep "$poll"
        fi
        ;;
      PREEMPTED | TERMINATED | FAILED | SUSPENDED)
        note "the slice is $now; deleting it to make another"
        fresh=1
        delete || sleep "$poll"
        ;;
      STOPPED | STOPPING) die "the slice is $now; expected it to be started (gcloud compute tpus tpu-vm start) or deleted" ;;
      *)
        note "the slice is $now; looking again in $poll s"
        sleep "$poll"
        ;;
    esac
  done
}

remote() {  # remote WORKERS COMMAND: runs a command on the machines
  # A connection that the slice took with it must end, not hang.
  call "${vm[@]}" ssh "$name" --worker="$1" "${where[@]}" --ssh-flag=-oServerAliveInterval=15 --ssh-flag=-oServerAliveCountMax=4 \
    ${ssh_flags[@]+"${ssh_flags[@]}"} --command="$2"
}

setup() {  # tells by its status whether it went well
  # Ubuntu 22.04 has Python 3.10, so another one may have to be brought; 24.04 would refuse pip without the variable.
  call tar -C "$CHECKOUT" -czf "$scratch/mimic_jax.tgz" --exclude=./.venv --exclude=./runs --exclude=__pycache__ . &&
    call "${vm[@]}" scp "$scratch/mimic_jax.tgz" "$name:mimic_jax.tgz" --worker=all "${where[@]}" ${ssh_flags[@]+"${ssh_flags[@]}"} &&
    remote all "set -e; mkdir -p mimic_jax; cd mimic_jax; tar -xzf ../mimic_jax.tgz
for p in python3.12 python3.11; do
  [ -x .venv/bin/pip ] || { command -v \$p > /dev/null && \$p -m venv .venv; } || rm -rf .venv
done
if [ ! -x .venv/bin/pip ]; then
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q --user uv
  python3 -m uv venv -q --seed --python 3.12 .venv
fi
.venv/bin/pip install -q -r requirements.txt 'jax[tpu]' gcsfs"
}

# What every remote command begins with: whether the run's process is there (a number alone may be another's after a restart).
# shellcheck disable=SC2016  # for the shell over there
alive='mkdir -p mimic_jax; cd mimic_jax; alive() { [ -s run.pid ] && ps -o args= -p "$(cat run.pid)" | grep -q mimic_jax.main; }'

setup_and_start() {
  local tries=0
  until setup; do  # a slice that is ready need not answer ssh yet
    tries=$((tries + 1))
    [ $tries -le "$retries" ] || die "the machines of $name could not be set up"
    note "trying to set up the machines again in $poll s"
    sleep "$poll"
  done
  start
}

start() {
  local run
  # The shell around the run outlives the signals that end it, to write down the exit code.
  run="trap : TERM USR1; $(quoted .venv/bin/python -m mimic_jax.main "${RUN[@]}") >> run.log 2>&1; echo \$? > run.exit"
  remote all "$alive
if ! alive; then
  rm -f run.exit run.stopped; touch run.log
  nohup setsid bash -c $(quoted "$run") < /dev/null > /dev/null 2>&1 &
  echo \$! > run.pid
fi"
}

# shellcheck disable=SC2016
follow() { remote 0 'cd mimic_jax && tail -n 20 -F --pid="$(cat run.pid)" run.log'; }

stop() { remote all "$alive; if alive; then touch run.stopped; kill -TERM -- \"-\$(cat run.pid)\"; fi"; }

look() {  # prints: running, none (never started, or a machine forgot it), stopped (by stop), UNKNOWN, or the run's exit code
  local said codes code
  if ! said=$(remote all "$alive
if alive; then echo mimic-run running
elif [ -e run.stopped ] && grep -qx $PREEMPTED run.exit; then echo mimic-run stopped
else echo mimic-run \$(cat run.exit 2> /dev/null || echo none); fi"); then
    echo UNKNOWN
    return
  fi
  [ -z "$DRY_RUN" ] || { echo "$said"; return; }
  codes=$(printf '%s\n' "$said" | sed -n 's/^mimic-run //p' | sort -u)
  # Where machines differ: as long as one runs, the run does; then whatever says most about why it ended.
  for code in running none 2 130 stopped $PREEMPTED; do
    if printf '%s\n' "$codes" | grep -qx "$code"; then
      echo "$code"
      return
    fi
  done
  printf '%s\n' "${codes:-UNKNOWN}" | sort -n | tail -n 1
}

run() {
  local now='' failures=0 began=$SECONDS
  create
  [ -n "$DRY_RUN" ] || now=$(look)
  if [ "$now" = running ]; then note 'the run is under way already'; else setup_and_start; fi
  while :; do
    follow || true
    [ -z "$DRY_RUN" ] || { look; return; }
    now=$(look)
    case $now in
      running | UNKNOWN)  # a lost connection; it may have gone with the slice
        sleep "$poll"
        create
        [ -z "$fresh" ] || setup_and_start
        ;;
      0)
        note 'the run is done'
        if [ -n "$delete_after" ]; then delete; else note "the slice costs money until: launch/tpu.sh delete --name=$name --zone=$zone"; fi
        return 0
        ;;
      2 | 130) return "$now" ;;
      stopped) return "$PREEMPTED" ;;
      *)
        if [ "$now" != "$PREEMPTED" ]; then
          [ $((SECONDS - began)) -lt 600 ] || failures=0  # it had got going
          failures=$((failures + 1))
          [ $failures -le "$retries" ] || { note "the run ended with $now, and --retries $retries are used up"; return 1; }
        fi
        note "the run ended with $now; starting it again"
        create
        if [ -n "$fresh" ]; then setup_and_start; else start; fi
        began=$SECONDS
        ;;
    esac
  done
}

case $todo in
  status) echo "slice: $(if [ -n "$DRY_RUN" ]; then echo 'not asked'; else state; fi)"; echo "run: $(look)" ;;
  *) "$todo" ;;
esac

# shellcheck shell=bash disable=SC2034  # the scripts that source this read what it sets
# What the launch scripts share; sourced, not run. Bash 3.2 (macOS) will do.

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PREEMPTED=75  # the exit code of a run that was told to stop, wrote a checkpoint and wants to go on

die() {  # says what is wrong in one line; exit code 2
  printf '%s: error: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

note() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

help() {  # prints the comment at the top of the script
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  exit 0
}

quoted() {  # prints its arguments as a shell would need them
  local word out=
  for word; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'" ;;
    esac
    out="$out${out:+ }$word"
  done
  printf '%s' "$out"
}

call() {  # runs a command; with --dry-run prints it
  if [ -n "$DRY_RUN" ]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

value() {  # value FLAG VALUE…: refuses a flag that has none
  { [ $# -ge 2 ] && [ -n "$2" ]; } || die "$1 has no value; --help says what is expected"
}

number() {  # number FLAG VALUE: refuses what is no whole number from 1
  case $2 in
    '' | 0* | *[!0-9]*) die "$1 is '$2'; expected a whole number from 1" ;;
  esac
}

take_run() {  # sets RUN to the flags of mimic_jax.main, given bare or behind 'python -m mimic_jax.main'; of these WORKDIR and SEEDS
  if [ "${2-} ${3-}" = '-m mimic_jax.main' ]; then shift 3; fi
  RUN=("$@") WORKDIR='' SEEDS=''
  while [ $# -gt 0 ]; do
    case $1 in
      --workdir=* | --out=*) WORKDIR=${1#*=} ;;
      --workdir | --out) WORKDIR=${2-} ;;
      --seeds=*) SEEDS=${1#*=} ;;
      --seeds) SEEDS=${2-} ;;
    esac
    shift
  done
  # The run's own default would do, but whoever starts it again must not depend on what it is.
  [ -n "$WORKDIR" ] || die "no --workdir among the flags after '--'; expected 'python -m mimic_jax.main --config CONFIG --workdir FOLDER …' there (--out of a study)"
}

own_python() {  # prints the interpreter of the checkout's .venv, else python3
  if [ -x "$CHECKOUT/.venv/bin/python" ]; then printf %s "$CHECKOUT/.venv/bin/python"; else printf python3; fi
}

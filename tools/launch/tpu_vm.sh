#!/bin/bash
# Trains on a TPU VM slice, from any machine with gcloud and this checkout:
#
#   tools/launch/tpu_vm.sh setup NAME --zone=ZONE
#   tools/launch/tpu_vm.sh run NAME --zone=ZONE -- --config=configs/lm.py:moe=top_p --workdir=...
#
#   setup   copies HEAD to every worker and installs it there; again after each commit
#   start   starts experiments.train on every worker
#   log     prints worker 0's output to the end of the run, and ends with the run's exit code
#   run     start, then log
#   status  one line from each worker
#   stop    SIGTERM to every worker: they save and end
#
# A run does not hang on the ssh connection: every worker starts its process again by itself
# (tpu_worker.sh) when one was lost, and `log` may be called as often as one likes. --dry-run prints
# the gcloud commands. --env=NAME=VALUE sets a variable on the workers: PYTHON, RETRIES,
# LIBTPU_INIT_ARGS, ... Other flags before -- go to gcloud: --zone, --project, --internal-ip, ...
set -euo pipefail
worker="tools/launch/tpu_worker.sh"

die() {
  echo "error: $*" >&2
  exit 2
}

# Quotes words for a shell, here or at the other end.
quoted() {
  printf '%q ' "$@"
}

tpu() {
  local line=(gcloud compute tpus tpu-vm "$@" ${flags[@]+"${flags[@]}"})
  if [[ $dry_run ]]; then
    quoted "${line[@]}" && echo
  else
    "${line[@]}"
  fi
}

# on WORKER ACTION [FLAG...]: tpu_worker.sh there.
on() {
  local line
  line="cd moejax && env $(quoted ${variables[@]+"${variables[@]}"} bash "$worker" "${@:2}")"
  tpu ssh "$name" --worker="$1" --command="$line"
}

setup() {
  local archive
  archive=$(mktemp -d)/moejax.tar.gz
  [[ -z $(git -C "$root" status --porcelain) ]] || echo "note: only what is committed is copied" >&2
  git -C "$root" archive --output="$archive" HEAD
  tpu scp "$archive" "$name:" --worker=all
  rm -r "$(dirname "$archive")"
  # The code of a run that goes on stays as it is.
  tpu ssh "$name" --worker=all --command="{ [ ! -e moejax ] || bash moejax/$worker idle; } \
&& rm -rf moejax && mkdir moejax && tar -xzf moejax.tar.gz -C moejax"
  on all setup
}

follow() {
  local code=0
  on 0 log || code=$?
  [[ $code != 255 ]] || echo "the connection is lost, the run goes on: $0 log $name ..." >&2
  return "$code"
}

action=${1:-} name=${2:-} root=$(dirname "${BASH_SOURCE[0]}")/../..
case $action in
  setup | start | log | run | status | stop) ;;
  *) die "${action:-ACTION}: expected setup, start, log, run, status or stop" ;;
esac
[[ $name && $name != -* ]] || die "NAME of the slice: is missing, e.g. $0 $action my-slice --zone=ZONE"
shift 2
dry_run='' flags=() variables=()
while (($#)) && [[ $1 != -- ]]; do
  case $1 in
    --dry-run) dry_run=1 ;;
    --env=*=*) variables+=("${1#--env=}") ;;
    --env*) die "$1: expected --env=NAME=VALUE" ;;
    --config* | --workdir*) die "$1: flags of experiments.train stand after --" ;;
    --*) flags+=("$1") ;;
    *) die "$1: unexpected; flags are --name=value" ;;
  esac
  shift
done
(($# == 0)) || shift
case $action in
  start | run) (($#)) || die "$action: flags of experiments.train are missing: -- --config=..." ;;
  *) (($# == 0)) || die "$action: takes no flags of experiments.train" ;;
esac

case $action in
  setup) setup ;;
  log) follow ;;
  start) on all start "$@" ;;
  run) on all start "$@" && follow ;;
  *) on all "$action" ;;
esac

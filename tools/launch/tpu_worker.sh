#!/bin/bash
# What one worker of a TPU VM slice does for tpu_vm.sh, which copies this file there and calls it.
#
# Nobody has to tell the workers to start again together: when one process dies the others end too,
# and each waits at the roll call of its next attempt until all are there.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
venv=$HOME/moejax_venv
python=${PYTHON:-$venv/bin/python}
retries=${RETRIES:-10}
# The others notice a death only after --heartbeat_seconds; attempts before that are in vain.
pause=${PAUSE_SECONDS:-30}
log=$HOME/moejax.log pid=$HOME/moejax.pid result=$HOME/moejax.code

running() {
  grep -q tpu_worker "/proc/$(cat "$pid" 2>/dev/null || echo none)/cmdline" 2>/dev/null
}

idle() {
  if running; then
    echo "error: $HOSTNAME: a run goes on here; stop ends it" >&2
    exit 1
  fi
}

setup() {
  if [[ -z ${PYTHON:-} ]]; then
    # The Python of these machines may be older than moejax needs; uv brings its own.
    PATH=$PATH:$HOME/.local/bin
    command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh || exit 1
    uv venv --quiet --allow-existing --python '>=3.11' "$venv" || exit 1
    uv pip install --quiet --python "$python" -r requirements.lock -e '.[tpu,gcs]' || exit 1
  fi
  "$python" -c 'import jax, moejax; print("jax", jax.__version__, "and moejax are installed")'
}

attempts() {
  local attempt code=0 child stopped=''
  trap 'stopped=1; kill -TERM "$child" 2>/dev/null' TERM
  for attempt in $(seq "$retries"); do
    "$python" -m experiments.train "$@" &
    child=$!
    wait "$child"
    code=$?
    # The trap ends `wait`, not the process, which is saving.
    while [[ $stopped ]] && kill -0 "$child" 2>/dev/null; do
      wait "$child"
      code=$?
    done
    case $code in
      0 | 2 | 3) break ;; # done, or wrong use, or a loss that is not finite
      130 | 143) echo "attempt $attempt was stopped with its state saved" && break ;;
    esac
    [[ -z $stopped ]] || break
    echo "attempt $attempt of $retries ended with code $code: starting again"
    sleep "$pause" &
    child=$!
    wait "$child"
    [[ -z $stopped ]] || break
  done
  echo "$code" >"$result"
}

case $1 in
  idle) idle ;;
  setup) setup ;;
  start)
    idle
    rm -f "$result"
    setsid nohup bash tools/launch/tpu_worker.sh attempts "${@:2}" >"$log" 2>&1 </dev/null &
    echo $! >"$pid"
    echo "$HOSTNAME: started"
    ;;
  attempts) attempts "${@:2}" ;;
  log)
    tail -n +1 -f --pid="$(cat "$pid")" "$log"
    exit "$(cat "$result" || echo 1)"
    ;;
  status)
    if running; then now=runs; else now="ended with code $(cat "$result" 2>/dev/null || echo unknown)"; fi
    echo "$HOSTNAME: $now: $(tail -n 1 "$log" 2>/dev/null)"
    ;;
  stop)
    ! running || kill -TERM "$(cat "$pid")"
    while running; do sleep 0.5; done
    echo "$HOSTNAME: no run"
    ;;
esac

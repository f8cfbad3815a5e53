#!/usr/bin/env bash
# Several processes on one machine as one run, as several hosts would be:
#   launch/local.sh 2 pretrain configs/demo.py --workdir runs/demo
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: $0 NUM_PROCESSES COMMAND ...   (the words after \`alm\`)" >&2
  exit 2
fi
num_processes=$1
shift
export JAX_NUM_PROCESSES=$num_processes
export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-127.0.0.1:12355}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

pids=()
# A signal to the launcher is for every process: each saves its part and exits with 75.
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
for ((index = 0; index < num_processes; index++)); do
  JAX_PROCESS_ID=$index alm "$@" &
  pids+=($!)
done

status=0
for pid in "${pids[@]}"; do
  while kill -0 "$pid" 2>/dev/null; do
    # `wait` returns early when a signal arrives, and the process then goes on to save.
    wait "$pid" || status=$?
  done
done
exit "$status"

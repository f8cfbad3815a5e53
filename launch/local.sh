#!/usr/bin/env bash
# Several processes on one machine as one run, as several hosts would be:
#   launch/local.sh 2 pretrain configs/demo.py --workdir runs/demo
# The first process that ends with an error decides the exit code; the others have END_SEC seconds (default 30) to end.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: $0 NUM_PROCESSES COMMAND ...   (the words after \`alm\`)" >&2
  exit 2
fi
num_processes=$1
shift
end_sec=${END_SEC:-30}
free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
export JAX_NUM_PROCESSES=$num_processes
export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-127.0.0.1:$(free_port)}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}

pids=()
# A signal to the launcher is for every process: each saves its part and exits with 75.
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
for ((index = 0; index < num_processes; index++)); do
  JAX_PROCESS_ID=$index alm "$@" &
  pids+=($!)
done

status=0
deadline=0
while :; do
  running=()
  for pid in "${pids[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      running+=("$pid")
    else
      code=0
      wait "$pid" 2>/dev/null || code=$?
      # 127: waited for before.
      if [ "$code" -ne 0 ] && [ "$code" -ne 127 ] && [ "$status" -eq 0 ]; then
        status=$code
        deadline=$((SECONDS + end_sec))
      fi
    fi
  done
  [ "${#running[@]}" -gt 0 ] || break
  pids=("${running[@]}")
  # After a request to stop (75) the others are still saving.
  if [ "$status" -ne 0 ] && [ "$status" -ne 75 ] && [ "$SECONDS" -ge "$deadline" ]; then
    echo "$0: a process ended with code $status; ending the ${#running[@]} others" >&2
    kill -TERM "${pids[@]}" 2>/dev/null || true
    sleep 5
    kill -KILL "${pids[@]}" 2>/dev/null || true
  fi
  sleep 0.2
done
exit "$status"

#!/usr/bin/env bash
# A run on preemptible TPU VMs, asked for anew until it is done:
#   PROJECT=p ZONE=us-central2-b TYPE=v4-32 RUNTIME=tpu-ubuntu2204-base \
#     launch/tpu_vm/queued.sh esc10 pretrain configs/esc10_two_towers_nano.py --workdir /mnt/bucket/runs/esc10
# The VMs' start script must install alm_jax[data,tpu] and mount the bucket that holds the run's folder and the data.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: PROJECT=.. ZONE=.. TYPE=.. RUNTIME=.. $0 NAME COMMAND ...   (the words after \`alm\`)" >&2
  exit 2
fi
: "${PROJECT:?}" "${ZONE:?}" "${TYPE:?}" "${RUNTIME:?}"
name=$1
shift
where=(--project "$PROJECT" --zone "$ZONE")

state() {
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format 'value(state.state)' 2>/dev/null || true
}

while :; do
  gcloud compute tpus queued-resources create "$name" "${where[@]}" --node-id "$name" \
    --accelerator-type "$TYPE" --runtime-version "$RUNTIME" --spot
  while [ "$(state)" != ACTIVE ]; do
    sleep 30
  done
  code=0
  # The same command on every host; JAX finds the others through the metadata of the TPU.
  gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker all \
    --command "alm $(printf '%q ' "$@") --multihost" || code=$?
  gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
  case $code in
    0) exit 0 ;;
    # A mistake or bad data: another attempt would end alike.
    2 | 3) exit "$code" ;;
  esac
  echo "$0: ended with code $code; asking for the machines again" >&2
done

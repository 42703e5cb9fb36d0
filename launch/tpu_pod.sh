#!/usr/bin/env bash
# One run on a Cloud TPU slice of any number of hosts: asks for the slice as a queued resource, installs this
# repository on all its workers, runs, and after a preemption asks again and resumes.
#
#   NAME=turbulence ZONE=us-central1-a BUCKET=my-bucket launch/tpu_pod.sh --config=configs/turbulence.py --workdir=runs/turbulence
#   NAME=turbulence ZONE=us-central1-a launch/tpu_pod.sh --dry-run --config=...        prints every command instead
#
# Start it on a machine that stays up, with gcloud logged in. It may be ended and started again at any time: it finds
# the slice, stops the run there (which saves), and resumes it. What is installed is the commit that is checked
# out. Arguments are those of dydiff_jax.main; runs/ is the directory that all workers share. What the run ends with
# decides:
#   75, 143             saved, or stopped outside training: run again
#   76, 134, 137, 255   stuck, another process lost, killed, connection lost: again, MAX_FAILURES times in a row
#   0                   done
#   anything else       refused or failed: the script ends with it
# Whatever it is, where the slice is gone a new one is asked for.
#
# Variables:
#   NAME            of the queued resource and of the TPU; required
#   ZONE            required
#   PROJECT         that of gcloud
#   ACCELERATOR     v5litepod-16
#   RUNTIME         v2-alpha-tpuv5-lite
#   SPOT            yes: may be preempted at any time; no: on demand
#   BUCKET          Cloud Storage bucket in the region of ZONE, best with hierarchical namespace; mounted at runs/
#   SETUP           a further command for every worker, in the repository, before the run. Without BUCKET it mounts
#                   what is shared: SETUP='mountpoint -q runs || sudo mount -t nfs HOST:/share runs'
#   DELETE          yes: delete the slice when the run is done; no
#   POLL            seconds between two looks at a slice; 60
#   MAX_FAILURES    3

set -euo pipefail

usage() {
  echo "usage: NAME=... ZONE=... [BUCKET=...] $0 [--dry-run] --config=FILE --workdir=runs/NAME [flags of dydiff_jax.main]"
  echo "       the variables are described at the top of $0"
} >&2

dry_run=no
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=yes
  shift
fi
if [[ $# -eq 0 || "$1" == --help || -z "${NAME:-}" || -z "${ZONE:-}" ]]; then
  usage
  exit 64
fi

where=(--zone="$ZONE")
[[ -z "${PROJECT:-}" ]] || where+=(--project="$PROJECT")
tier=()
[[ "${SPOT:-yes}" != yes ]] || tier=(--spot)
poll="${POLL:-60}"
max_failures="${MAX_FAILURES:-3}"
root="$(cd "$(dirname "$0")/.." && pwd)"
archive="$(mktemp --suffix=.tar.gz)"
trap 'rm -f "$archive"' EXIT

# Runs a command, or prints it.
act() {
  if [[ $dry_run == yes ]]; then
    echo "${@@Q}"
  else
    "$@"
  fi
}

say() { echo "$0: $*" >&2; }

# State of the queued resource, empty where there is none.
request_state() {
  gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format='value(state.state)' 2>/dev/null || true
}

node_state() {
  gcloud compute tpus tpu-vm describe "$NAME" "${where[@]}" --format='value(state)' 2>/dev/null || true
}

is_alive() { [[ "$(request_state)" == ACTIVE && "$(node_state)" == READY ]]; }

create() {
  act gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" "${where[@]}" \
    --accelerator-type="${ACCELERATOR:-v5litepod-16}" --runtime-version="${RUNTIME:-v2-alpha-tpuv5-lite}" "${tier[@]}"
}

delete() {
  act gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
}

# Waits for the slice; asks for one where there is none, or where it was preempted.
obtain() {
  local state
  while state="$(request_state)" && [[ "$state" != ACTIVE ]]; do
    case "$state" in
      "") create ;;
      SUSPENDED) delete ;;
      FAILED)
        say "the request for $NAME failed: gcloud compute tpus queued-resources describe $NAME ${where[*]}"
        exit 1
        ;;
      *)
        say "$NAME is $state"
        sleep "$poll"
        ;;
    esac
  done
}

on_all_workers() {
  act gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --batch-size=all --command="$1"
}

install() {
  act git -C "$root" archive --format=tar.gz --output="$archive" HEAD &&
    act gcloud compute tpus tpu-vm scp "$archive" "$NAME:dydiff_jax.tar.gz" "${where[@]}" --worker=all --batch-size=all &&
    on_all_workers "mkdir -p dydiff_jax && cd dydiff_jax && tar -xzf ../dydiff_jax.tar.gz && bash launch/tpu_worker.sh setup ${BUCKET:-}${SETUP:+ && $SETUP}"
}

run() { on_all_workers "cd dydiff_jax && exec bash launch/tpu_worker.sh run $*"; }

flags=("${@@Q}") # the shell of a worker reads them once more
if [[ $dry_run == yes ]]; then
  create
  act gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format='value(state.state)'
  install
  run "${flags[@]}"
  [[ "${DELETE:-no}" != yes ]] || delete
  exit 0
fi

failures=0
installed=no
while true; do
  [[ $installed == yes ]] || obtain
  status=0
  if [[ $installed == yes ]] || install; then
    installed=yes
    run "${flags[@]}" || status=$?
  else
    status=76 # a worker that is not up yet, or a slice that is gone
  fi
  [[ $status -ne 0 ]] || break
  sleep "$poll" # a preemption ends a run before it shows
  if ! is_alive; then
    say "$NAME is gone (status $status): asking for it again"
    [[ -z "$(request_state)" ]] || delete
    installed=no
    failures=0
    continue
  fi
  case $status in
    75 | 143) failures=0 ;;
    76 | 134 | 137 | 255) failures=$((failures + 1)) ;;
    *) failures=$((max_failures + 1)) ;;
  esac
  if ((failures > max_failures)); then
    say "status $status: not run again; $NAME is still there"
    exit "$status"
  fi
  say "status $status: running again"
done
[[ "${DELETE:-no}" != yes ]] || delete

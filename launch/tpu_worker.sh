#!/usr/bin/env bash
# What tpu_pod.sh starts on every worker of a slice, in the repository there.
#
#   tpu_worker.sh setup [BUCKET]     installs the package in .venv; mounts the bucket at runs/
#   tpu_worker.sh run FLAG...        becomes dydiff_jax.main; one that is there already is asked to save first

set -euo pipefail

mount_bucket() {
  if ! command -v gcsfuse >/dev/null && ! sudo apt-get -qq install -y gcsfuse; then
    echo "$0: expected gcsfuse on the workers: add its package source as its documentation says, with SETUP" >&2
    exit 1
  fi
  # Directories of a checkpoint are renamed, which gcsfuse refuses by default on buckets without folders; and no
  # worker may remember that a file of another one is not there.
  mountpoint -q runs ||
    gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
      "$1" runs
}

case "${1:-}" in
  setup)
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --allow-existing --python 3.12
    python3 -m uv pip install --quiet -e '.[tpu]' -c constraints.txt
    mkdir -p runs
    [[ -z "${2:-}" ]] || mount_bucket "$2"
    ;;
  run)
    shift
    if [[ -f run.pid ]] && kill -TERM "$(cat run.pid)" 2>/dev/null; then # left behind by a lost connection
      timeout "${PATIENCE:-300}" tail --pid="$(cat run.pid)" -f /dev/null || kill -KILL "$(cat run.pid)"
    fi
    echo $$ >run.pid
    exec .venv/bin/python -u -m dydiff_jax.main "$@"
    ;;
  *)
    echo "usage: $0 setup [BUCKET] | run FLAG..." >&2
    exit 64
    ;;
esac

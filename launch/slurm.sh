#!/usr/bin/env bash
# One run on the nodes of a SLURM cluster. It saves before the time limit, and its job goes back into the queue.
#
#   sbatch --nodes=4 --gpus-per-node=8 --cpus-per-task=64 launch/slurm.sh --config=configs/turbulence.py --workdir=runs/turbulence
#   launch/slurm.sh --dry-run --config=configs/turbulence.py --workdir=runs/turbulence     prints the command of a step
#
# Submit from the root of the repository, in the environment that the run needs; the work directory and this folder
# are on a file system that all nodes share. Arguments are those of dydiff_jax.main; options of sbatch override the
# lines below.
#
# One task a node, which takes all GPUs of its node. --ntasks-per-node=8 with 8 GPUs, one task a GPU, works as well,
# also with --gpus-per-task=1: dydiff_jax/distributed/cluster.py tells the layouts apart.
#
# SLURM sends SIGTERM to the steps 180 s before the limit, not to this shell. What the run ends with decides:
#   75, 143         saved, or stopped outside training: the job is queued again
#   76, 134, 137    stuck, another process lost, killed: queued again, MAX_FAILURES times in a row
#   0               done
#   anything else   refused or failed: the job ends
# scancel ends this shell too, so a job that is cancelled stays cancelled. SLURM itself requeues what a node takes down.
#
# Variables:
#   PYTHON          interpreter with dydiff_jax, on all nodes; python
#   MAX_FAILURES    3

#SBATCH --job-name=dydiff_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out

set -euo pipefail

usage() {
  echo "usage: sbatch [--nodes=N ...] $0 --config=FILE --workdir=DIR [flags of dydiff_jax.main]"
  echo "       $0 --dry-run --config=FILE --workdir=DIR [flags of dydiff_jax.main]"
} >&2

dry_run=no
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=yes
  shift
fi
if [[ $# -eq 0 || "$1" == --help ]]; then
  usage
  exit 64
fi
if [[ $dry_run == no && -z "${SLURM_JOB_ID:-}" ]]; then
  echo "$0: this is no SLURM job: submit it with sbatch, or look at it with --dry-run" >&2
  exit 64
fi

# srun tells of the highest status among the tasks, and ends the others with SIGTERM, then SIGKILL, when one fails.
# So every task turns its own into a rank: to run again (75), a few times (76), not again (77). It outlives the
# SIGTERM that its run has to answer.
# shellcheck disable=SC2016  # the task expands them
task='trap : TERM; "$@"; case $? in 0) exit 0 ;; 75 | 143) exit 75 ;; 76 | 134 | 137) exit 76 ;; *) exit 77 ;; esac'

cpus=$((${SLURM_CPUS_ON_NODE:-1} / ${SLURM_NTASKS_PER_NODE:-1}))
step=(srun --kill-on-bad-exit=1 --cpus-per-task="$cpus" bash -c "$task" task
  "${PYTHON:-python}" -u -m dydiff_jax.main "$@")
if [[ $dry_run == yes ]]; then
  echo "${step[@]@Q}"
  exit 0
fi

status=0
"${step[@]}" || status=$?

counter="slurm-$SLURM_JOB_ID.failures" # in a row
failures=$(($(cat "$counter" 2>/dev/null || echo 0) + 1))
case $status in
  0) rm -f "$counter" ;;
  75 | 143)
    rm -f "$counter"
    echo "$0: stopped with status $status, queued again"
    scontrol requeue "$SLURM_JOB_ID"
    ;;
  76 | 134 | 137)
    echo "$failures" >"$counter"
    if ((failures > ${MAX_FAILURES:-3})); then
      echo "$0: status $status, $failures times in a row: not queued again" >&2
      exit "$status"
    fi
    echo "$0: status $status, failure $failures of ${MAX_FAILURES:-3} in a row, queued again" >&2
    scontrol requeue "$SLURM_JOB_ID"
    ;;
  *) echo "$0: refused or failed (the message is above): not queued again" >&2 ;;
esac
exit "$status"

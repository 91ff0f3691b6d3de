#!/usr/bin/env bash
# GPUS, GPUS_PER_NODE and CPUS_PER_TASK say how much, SRUN_ARGS what else srun is told.
# A job that may be preempted or run out of time: let SRUN_ARGS have --signal=USR1@120, and two
# minutes before the end the training writes a checkpoint and ends with status 75. In a script for
# sbatch --requeue --open-mode=append, call this with --resume, and the job goes on where it was.
set -euo pipefail
USAGE='usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of train.py]'
: "${4:?$USAGE}"

# SRUN_ARGS is split into words on purpose.
# shellcheck disable=SC2086
exec srun -p "$1" --job-name="$2" --gres=gpu:"${GPUS_PER_NODE:-8}" --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${SRUN_ARGS:-} "${PYTHON:-python}" -u \
    "$(dirname "${BASH_SOURCE[0]}")/train.py" "$3" --work-dir="$4" --launcher=slurm "${@:5}"

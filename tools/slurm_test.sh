#!/usr/bin/env bash
# GPUS, GPUS_PER_NODE and CPUS_PER_TASK say how much, SRUN_ARGS what else srun is told.
set -euo pipefail
USAGE='usage: tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of test.py]'
: "${4:?$USAGE}"

# SRUN_ARGS is split into words on purpose.
# shellcheck disable=SC2086
exec srun -p "$1" --job-name="$2" --gres=gpu:"${GPUS_PER_NODE:-8}" --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 ${SRUN_ARGS:-} "${PYTHON:-python}" -u \
    "$(dirname "${BASH_SOURCE[0]}")/test.py" "$3" "$4" --launcher=slurm "${@:5}"

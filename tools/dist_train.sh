#!/usr/bin/env bash
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT. Without CUDA: GPUS processes on the CPU.
set -euo pipefail
USAGE='usage: tools/dist_train.sh CONFIG GPUS [arguments of train.py]'
: "${2:?$USAGE}"

exec "${PYTHON:-python}" -m groupdetr_mmdet.commands.torchrun --nproc_per_node="$2" \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$(dirname "${BASH_SOURCE[0]}")/train.py" "$1" --launcher pytorch "${@:3}"

#!/usr/bin/env bash
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT. Without CUDA: GPUS processes on the CPU.
set -euo pipefail
USAGE='usage: tools/dist_train.sh CONFIG GPUS [arguments of train.py]'
CONFIG=${1:?$USAGE}
GPUS=${2:?$USAGE}
TOOLS=$(dirname "${BASH_SOURCE[0]}")

exec "${PYTHON:-python}" -m groupdetr_mmdet.commands.torchrun \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$TOOLS/train.py" "$CONFIG" --launcher pytorch "${@:3}"

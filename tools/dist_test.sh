#!/usr/bin/env bash
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT. Without CUDA: GPUS processes on the CPU.
set -euo pipefail
USAGE='usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]'
: "${3:?$USAGE}"

exec "${PYTHON:-python}" -m groupdetr_mmdet.commands.torchrun --nproc_per_node="$3" \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    "$(dirname "${BASH_SOURCE[0]}")/test.py" "$1" "$2" --launcher pytorch "${@:4}"

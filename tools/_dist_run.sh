#!/usr/bin/env bash
# _dist_run.sh SCRIPT CONFIG GPUS [args]: torchrun for the scripts beside it.
set -euo pipefail
script=$1 config=$2 gpus=$3
if ! [[ $gpus =~ ^[1-9][0-9]*$ ]]; then
    echo "error: the number of GPUs must be a positive number, got '$gpus'" >&2
    exit 2
fi
# torchrun would set 1, which starves CPU training.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + gpus - 1) / gpus))}
exec python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$(dirname "$0")/$script" "$config" "${@:4}" --launcher pytorch

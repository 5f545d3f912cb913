#!/usr/bin/env bash
# _dist_run.sh CALLER N SCRIPT ARG_1 ... ARG_N [more]: torchrun for the scripts
# beside it. ARG_N is the number of GPUs, the others go to SCRIPT.
set -euo pipefail
caller=$1 needed=$2 script=$3
shift 3
if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    sed -n '2,/^exec/s/^# \{0,1\}//p' "$caller"
    exit 0
fi
if (($# < needed)); then
    echo "error: $(sed -n '2s/^# //p' "$caller")" >&2
    exit 2
fi
gpus=${!needed}
if ! [[ $gpus =~ ^[1-9][0-9]*$ ]]; then
    echo "error: the number of GPUs must be a positive number, got '$gpus'" >&2
    exit 2
fi
# torchrun would set 1, which starves CPU training.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + gpus - 1) / gpus))}
exec python "$(dirname "$0")/_torchrun.py" \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$(dirname "$0")/$script" "${@:1:needed-1}" "${@:needed+1}" \
    --launcher pytorch

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
nodes=${NNODES:-1} restarts=${MAX_RESTARTS:-0}
# Said: torchrun would compare MASTER_ADDR with what the host's name resolves
# to, which is often another address, and then nobody would listen.
is_host=$((${NODE_RANK:-0} == 0))
torchrun=(
    python "$(dirname "$0")/_torchrun.py"
    --nnodes="$nodes"
    --rdzv-backend=c10d
    --rdzv-endpoint="${MASTER_ADDR:-127.0.0.1}:${PORT:-29500}"
    --rdzv-id=vcmamba_mm
    --rdzv-conf="is_host=$is_host${RDZV_CONF:+,$RDZV_CONF}"
    ${LOCAL_ADDR:+--local-addr="$LOCAL_ADDR"}
    --max-restarts="$restarts"
    --nproc-per-node="$gpus"
    "$(dirname "$0")/$script" "${@:1:needed-1}" "${@:needed+1}"
    --launcher pytorch
)
# Otherwise processes that are started again meet in a store that still has the
# addresses of those before them, and may wait for the dead.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
if [[ $nodes == 1 ]] || ((restarts == 0)); then
    exec "${torchrun[@]}"
fi

# torchrun starts processes again that fail. When another machine is lost it may
# itself fail on the others; then it leaves an error in this file, which it
# does not when its processes failed too often.
export TORCHELASTIC_ERROR_FILE
TORCHELASTIC_ERROR_FILE=$(mktemp)
trap 'rm -f "$TORCHELASTIC_ERROR_FILE"' EXIT
trap 'kill "$child"; wait "$child"; exit 143' INT TERM
for ((attempt = 1; ; attempt++)); do
    "${torchrun[@]}" &
    child=$!
    wait "$child" && exit
    code=$?
    if ! [[ -s $TORCHELASTIC_ERROR_FILE ]] || ((attempt > restarts)); then
        exit "$code"
    fi
    echo "A machine was lost: attempt $attempt of $restarts to go on" >&2
    : >"$TORCHELASTIC_ERROR_FILE"
    sleep 5
done

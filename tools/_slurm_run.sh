#!/usr/bin/env bash
# _slurm_run.sh CALLER N SCRIPT PARTITION JOB_NAME ARG_3 ... ARG_N [more]: srun
# for the scripts beside it, one task for each GPU.
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
gpus=${GPUS:-8}
gpus_per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
# shellcheck disable=SC2086  # SRUN_ARGS is a list of words
exec srun \
    --partition="$1" \
    --job-name="$2" \
    --gres="gpu:$gpus_per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$gpus_per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-12}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    python -u "$(dirname "$0")/$script" "${@:3}" --launcher slurm

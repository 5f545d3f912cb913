#!/usr/bin/env bash
# _slurm_run.sh CALLER N SCRIPT PARTITION JOB_NAME ARG_3 ... ARG_N [more]: srun
# for the scripts beside it, one task for each machine, which runs SCRIPT, a
# dist_*.sh.
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
if ((gpus % gpus_per_node)); then
    echo "error: GPUS ($gpus) must be a multiple of GPUS_PER_NODE ($gpus_per_node)" >&2
    exit 2
fi
export NNODES=$((gpus / gpus_per_node))
# What only slurm knows, and only once the job runs; jobs that share a machine
# get ports of their own.
# shellcheck disable=SC2016  # expanded on the machines
on_each='
export NODE_RANK=$SLURM_NODEID PORT=${PORT:-$((20000 + SLURM_JOB_ID % 10000))}
MASTER_ADDR=$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)
export MASTER_ADDR
exec "$@"'
# shellcheck disable=SC2086  # SRUN_ARGS is a list of words
exec srun \
    --partition="$1" \
    --job-name="$2" \
    --gres="gpu:$gpus_per_node" \
    --nodes="$NNODES" \
    --ntasks-per-node=1 \
    --cpus-per-task=$((${CPUS_PER_TASK:-12} * gpus_per_node)) \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    bash -c "$on_each" bash \
    "$(dirname "$0")/$script" "${@:3:needed-2}" "$gpus_per_node" \
    "${@:needed+1}"

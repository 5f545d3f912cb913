#!/usr/bin/env bash
# Train on a slurm cluster:
# [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=12] [SRUN_ARGS=...] \
#     tools/slurm_train.sh PARTITION JOB_NAME CONFIG [train.py args]
exec "$(dirname "$0")/_slurm_run.sh" train.py "${1:?PARTITION is missing}" \
    "${2:?JOB_NAME is missing}" "${3:?CONFIG is missing}" "${@:4}"

#!/usr/bin/env bash
# Test on a slurm cluster:
# [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=12] [SRUN_ARGS=...] \
#     tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [test.py args]
exec "$(dirname "$0")/_slurm_run.sh" test.py "${1:?PARTITION is missing}" \
    "${2:?JOB_NAME is missing}" "${3:?CONFIG is missing}" \
    "${4:?CHECKPOINT is missing}" "${@:5}"

#!/usr/bin/env bash
# usage: tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of test.py]
#
# Test on a slurm cluster. Set GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (12
# for each GPU) and SRUN_ARGS as needed.
exec "$(dirname "$0")/_slurm_run.sh" "$0" 4 dist_test.sh "$@"

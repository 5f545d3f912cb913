#!/usr/bin/env bash
# usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of train.py]
#
# Train on a slurm cluster. Set GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (12)
# and SRUN_ARGS as needed.
exec "$(dirname "$0")/_slurm_run.sh" "$0" 3 train.py "$@"

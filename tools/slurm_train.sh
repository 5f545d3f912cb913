#!/usr/bin/env bash
# usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of train.py]
#
# Train on a slurm cluster. Set GPUS (8), GPUS_PER_NODE (8), CPUS_PER_TASK (12
# for each GPU) and SRUN_ARGS as needed; MAX_RESTARTS as in dist_train.sh.
exec "$(dirname "$0")/_slurm_run.sh" "$0" 3 dist_train.sh "$@"

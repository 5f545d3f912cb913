#!/usr/bin/env bash
# Train with several processes: tools/dist_train.sh CONFIG GPUS [train.py args]
# Without a GPU the processes run on the CPU. On several machines set NNODES,
# NODE_RANK, MASTER_ADDR and PORT.
exec "$(dirname "$0")/_dist_run.sh" train.py "${1:?CONFIG is missing}" \
    "${2:?the number of GPUs is missing}" "${@:3}"

#!/usr/bin/env bash
# usage: tools/dist_train.sh CONFIG GPUS [arguments of train.py]
#
# Train with several processes. Without a GPU they run on the CPU. On several
# machines set NNODES, NODE_RANK, MASTER_ADDR and PORT.
exec "$(dirname "$0")/_dist_run.sh" "$0" 2 train.py "$@"

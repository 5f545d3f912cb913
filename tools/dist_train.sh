#!/usr/bin/env bash
# usage: tools/dist_train.sh CONFIG GPUS [arguments of train.py]
#
# Train with several processes. Without a GPU they run on the CPU. On several
# machines run it on each, with NNODES, the MASTER_ADDR and PORT of one of
# them, and NODE_RANK=0 there, another number elsewhere. MAX_RESTARTS (0) is
# how often the run is taken up again from its last checkpoint after processes
# or machines were lost; it implies --resume. See docs/training.md.
exec "$(dirname "$0")/_dist_run.sh" "$0" 2 train.py "$@"

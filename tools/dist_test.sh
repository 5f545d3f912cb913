#!/usr/bin/env bash
# usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
#
# Test with several processes. Without a GPU they run on the CPU. On several
# machines run it on each, with NNODES, the MASTER_ADDR and PORT of one of
# them, and NODE_RANK=0 there, another number elsewhere.
exec "$(dirname "$0")/_dist_run.sh" "$0" 3 test.py "$@"

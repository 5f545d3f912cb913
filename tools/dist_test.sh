#!/usr/bin/env bash
# usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]
#
# Test with several processes. Without a GPU they run on the CPU. On several
# machines set NNODES, NODE_RANK, MASTER_ADDR and PORT.
exec "$(dirname "$0")/_dist_run.sh" "$0" 3 test.py "$@"

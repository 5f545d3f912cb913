#!/usr/bin/env bash
# Test with several processes:
# tools/dist_test.sh CONFIG CHECKPOINT GPUS [test.py args]
# See tools/dist_train.sh.
exec "$(dirname "$0")/_dist_run.sh" test.py "${1:?CONFIG is missing}" \
    "${3:?the number of GPUs is missing}" "${2:?CHECKPOINT is missing}" \
    "${@:4}"

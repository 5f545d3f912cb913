"""torchrun that ends with one line, not a traceback, when a process fails."""

import logging
import os
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> None:
    # In the end machines wait for each other. Who misses the end of that, as
    # the first machine has gone, would print a traceback; all is done by then.
    logging.getLogger('torch.distributed.elastic.agent.server.api').addFilter(
        lambda record: 'exit barrier' not in str(record.msg)
    )
    os.environ['VCMAMBA_MM_LAUNCHER'] = str(os.getpid())
    try:
        run.main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        how = (
            f'ended with exit code {code}'
            if code > 0
            else f'was killed by {failure.signal_name()}'
        )
        print(
            f'error: process {rank} (pid {failure.pid}) {how} first, the '
            'others were ended then: its last lines say why. Training goes '
            'on with --resume',
            file=sys.stderr,
        )
        sys.exit(code if code > 0 else 128 - code)


if __name__ == '__main__':
    main()

"""The command line that the tools share: arguments, and errors in one line."""

import os
import signal
import sys
from argparse import ArgumentError, ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import DictAction

from ..checkpoints import CheckpointError
from ..checkpoints.loading import WEIGHTS
from ..data.reading import AnnotationError
from ..data.sampling import SeedError
from ..models.base import InputSizeError
from ..ops.backends import BackendError
from .errors import ProcessError, SettingError, meaning, message
from .hooks import NonFiniteError
from .loops import ResumeError

# What a wrong config, checkpoint or data set raises while a loop runs; see
# SETUP_ERRORS for what comes before.
LOOP_ERRORS = (
    CheckpointError,
    ProcessError,
    InputSizeError,
    AnnotationError,
    BackendError,
    NonFiniteError,
    ResumeError,
    SeedError,
    SettingError,
    OSError,
    ImportError,
)


class Options(DictAction):
    """MMEngine's ``--cfg-options``; wrong ones are said in one line."""

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: list[str],
        option_string: str | None = None,
    ) -> None:
        for value in values:
            try:
                super().__call__(parser, Namespace(), [value], option_string)
            except (ValueError, AssertionError, RecursionError):
                raise ArgumentError(
                    self,
                    f'{value}: is no KEY=VALUE, or the value neither a word, '
                    'a number, nor a list of those; write what is more into a '
                    'config',
                ) from None
        super().__call__(parser, namespace, values, option_string)


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that training and testing have in common."""
    parser.add_argument(
        '--work-dir',
        help='where logs and checkpoints go; by default '
        'work_dirs/<name of the config>',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Options,
        metavar='KEY=VALUE',
        help='override settings of the config, e.g. '
        'train_dataloader.batch_size=64 model.backbone.drop_path_rate=0.1',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes were started',
    )
    # `torch.distributed.launch` passes it; torchrun sets LOCAL_RANK instead.
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        dest='local_rank',
        help='set by torch.distributed.launch',
    )


def add_weights_argument(parser: ArgumentParser) -> None:
    """Add the choice of weights to a tool that reads a checkpoint."""
    parser.add_argument(
        '--weights',
        choices=WEIGHTS,
        help='which weights of a checkpoint that also holds their average: '
        'raw, or ema for the average; by default those that were ranked when '
        'its run validated',
    )


@contextmanager
def one_line_errors(*errors: type[Exception]) -> Iterator[None]:
    """End the program with one line and exit code 2 on one of ``errors``.

    So do those that a wrong setting is known for, of whatever type. With
    ``VCMAMBA_MM_TRACEBACK=1`` in the environment they all pass through.
    """
    try:
        yield
    except Exception as error:
        known = isinstance(error, errors) or meaning(error)
        if not known or os.environ.get('VCMAMBA_MM_TRACEBACK') == '1':
            raise
        print(
            f'error: {message(error)} (VCMAMBA_MM_TRACEBACK=1 shows where)',
            file=sys.stderr,
            flush=True,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)

"""Data workers and other processes that hang or are gone; signals."""

import multiprocessing
import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import ProcessError, message

Handler = Callable | int

_DEAD_WORKER = (
    '{error}: something killed a data worker, often for want of memory; '
    'num_workers of the data loader is their number'
)
# What PyTorch's messages about other processes begin with or hold, and mean.
_MEANINGS = {
    r'DataLoader timed out': '{error}: the storage is too slow or a data '
    'worker hangs; timeout of the data loader is the limit',
    r'DataLoader worker': _DEAD_WORKER,
    r'.*(gloo|NCCL)': '{error}: another process of the run ended first or '
    'hangs; its own last line says why',
}


@contextmanager
def process_errors(remedy: str = '') -> Iterator[None]:
    """Say what it means when PyTorch misses another process.

    Args:
        remedy: What the message ends with.

    Raises:
        ProcessError: In place of PyTorch's error.
    """
    try:
        yield
    except Exception as error:
        # PyTorch's handler would raise another error meanwhile.
        before = set_handlers(dict(SIGCHLD=signal.SIG_DFL))
        # A dead worker is a signal, which may come while anything is done, so
        # that the error is inside of another one.
        cause = error
        while cause is not None:
            meaning = _meaning(cause)
            if meaning:
                _kill_data_workers()
                raise ProcessError(meaning + remedy) from error
            cause = cause.__cause__ or cause.__context__
        set_handlers(before)
        raise


def _meaning(error: Exception) -> str | None:
    """What an error means, if it tells of another process."""
    if isinstance(error, RuntimeError):
        for pattern, meaning in _MEANINGS.items():
            if re.match(pattern, str(error), re.DOTALL):
                return meaning.format(error=str(error).split('. ')[0])
    if isinstance(error, (ConnectionError, EOFError, FileNotFoundError)) and (
        '_try_get_data' in _functions(error)
    ):
        # It died while it handed a batch over, and is not yet counted as dead.
        return _DEAD_WORKER.format(error=f'DataLoader: {message(error)}')
    return None


def _functions(error: Exception) -> list[str]:
    """Names of those that an error came through."""
    frames = traceback.walk_tb(error.__traceback__)
    return [frame.f_code.co_name for frame, _ in frames]


def _kill_data_workers() -> None:
    """One that hangs would keep this process from ending."""
    for worker in multiprocessing.active_children():
        worker.kill()


def set_handlers(handlers: dict[str, Handler]) -> dict[str, Handler]:
    """Set Python's handlers of signals.

    Args:
        handlers: By the names of the signals. Those that the system does not
            have are left out, and in threads, where none runs, all.

    Returns:
        dict: The handlers before, to be set again.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {
        name: signal.signal(getattr(signal, name), handler) or signal.SIG_DFL
        for name, handler in handlers.items()
        if hasattr(signal, name)
    }


@contextmanager
def deferred_signals() -> Iterator[None]:
    """See to an interrupt, or a child process that died, afterwards.

    The handlers of Python and PyTorch raise errors, wherever the program is.
    ``torch.save`` into memory, if left by one, ends the process.
    """
    came = {}
    before = set_handlers(
        dict.fromkeys(('SIGINT', 'SIGCHLD'), came.setdefault)
    )
    try:
        yield
    finally:
        set_handlers(before)
        for number in came:
            signal.raise_signal(number)

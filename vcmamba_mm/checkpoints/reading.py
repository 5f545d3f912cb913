"""Reading checkpoints without running code in them, and writing them."""

import argparse
import codecs
import io
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType

import numpy as np
import torch
from mmengine.fileio import get_local_path
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..files import write_file

StateDict = dict[str, Tensor]


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or does not fit the model."""


# What checkpoints refer to by name besides tensors is not called: these
# stand-ins, which do nothing else, are called in its place.

# Methods of MMEngine's log scalars and of a schedule.
_METHODS = {
    HistoryBuffer: ('min', 'max', 'mean', 'current'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def _getattr(owner: type, name: str) -> Callable:
    if isinstance(owner, type) and name in _METHODS.get(owner, ()):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f'Unsupported getattr of {name!r}')


class _Dtype:
    """In place of ``numpy.dtype``: numbers only."""

    def __init__(self, code: str, *_):
        if not re.fullmatch(r'[biufc]\d+', str(code)):
            raise pickle.UnpicklingError(f'Unsupported class dtype {code!r}')
        self.code = code

    def __setstate__(self, state: tuple) -> None:
        byteorder = state[1] if state[1] in ('<', '>') else ''
        self.code = byteorder + self.code


class _Array:
    """In place of ``numpy.ndarray``; ``value`` is the array."""

    def __init__(self, *args):
        if args:
            raise pickle.UnpicklingError('Unsupported call of ndarray')

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        order = 'F' if is_fortran else 'C'
        flat = np.frombuffer(data, dtype.code)
        self.value = flat.reshape(shape, order=order).copy()


def _reconstruct(*_) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, data: bytes) -> np.generic:
    return np.frombuffer(data, dtype.code)[0]


class _Config:
    """In place of ``yacs.config.CfgNode``, which VMamba's runs save.

    Of dicts PyTorch fills its own kinds alone.
    """

    def __new__(cls) -> OrderedDict:
        return OrderedDict()


def _named(stand_in: Callable, name: str) -> Callable:
    """Give a copy of a function, or a class, the name to be looked up."""
    if not isinstance(stand_in, type):
        stand_in = FunctionType(stand_in.__code__, globals())
    stand_in.__module__, stand_in.__qualname__ = name.rsplit('.', 1)
    stand_in.__name__ = stand_in.__qualname__
    return stand_in


_SAFE_GLOBALS = [
    argparse.Namespace,  # the release's `args`
    *_METHODS,  # this and the rest: MMEngine's
    codecs.encode,  # how older pickles spell bytes
    set,  # in a yacs config
    _named(_Config, 'yacs.config.CfgNode'),
    _named(_getattr, 'builtins.getattr'),
    _named(_Dtype, 'numpy.dtype'),
    _named(_Array, 'numpy.ndarray'),
    # of NumPy 1 and 2
    _named(_reconstruct, 'numpy.core.multiarray._reconstruct'),
    _named(_reconstruct, 'numpy._core.multiarray._reconstruct'),
    _named(_scalar, 'numpy.core.multiarray.scalar'),
    _named(_scalar, 'numpy._core.multiarray.scalar'),
]


@contextmanager
def _safe_globals() -> Iterator[None]:
    """Allow ``_SAFE_GLOBALS`` for one reading."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(_SAFE_GLOBALS)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _without_stand_ins(value: object) -> object:
    """Put the arrays where their stand-ins are, also in log scalars."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, HistoryBuffer):
        value.__dict__.update(_without_stand_ins(value.__dict__))
    elif isinstance(value, dict):
        for key in value:
            value[key] = _without_stand_ins(value[key])
    elif type(value) in (list, tuple):
        return type(value)(map(_without_stand_ins, value))
    return value


# What the unpickler raises when it reads nonsense.
_DAMAGE = (
    RuntimeError,
    EOFError,
    OSError,
    zipfile.BadZipFile,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    struct.error,
    MemoryError,
    OverflowError,
)


def _damaged(path: str | os.PathLike) -> str:
    return (
        f'checkpoint {path} is truncated, damaged, or not a PyTorch '
        'checkpoint: copy or download it again'
    )


def _is_sound(path: str) -> bool:
    """Look at what PyTorch believes: sizes, and the checksums it writes."""
    try:
        if not zipfile.is_zipfile(path):
            return True  # another layout, or cut: the reading shows it
        with zipfile.ZipFile(path) as file:
            items = file.infolist()
            # PyTorch does not compress, and allocates what is claimed.
            stored = all(
                item.compress_type == zipfile.ZIP_STORED
                and item.file_size == item.compress_size
                for item in items
            )
            size = sum(item.file_size for item in items)
            if not stored or size > os.path.getsize(path):
                return False
            has_sums = any(item.CRC for item in items)
            return not has_sums or file.testzip() is None
    except _DAMAGE:
        return False


def _is_plain_pickle(path: str) -> bool:
    """Whether it is a pickle, but not PyTorch's own of before it zipped."""
    magic = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)
    with open(path, 'rb') as file:
        head = file.read(len(magic))
    return head.startswith(pickle.PROTO) and head != magic


def _is_safetensors(path: str) -> bool:
    """It begins with the length of a header in JSON."""
    with open(path, 'rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        return file.read(1) == b'{' and length < os.path.getsize(path)


def read_checkpoint(path: str | os.PathLike) -> dict:
    """Read a checkpoint without running any code it may hold, to the CPU.

    Args:
        path: A file that ``torch.save`` wrote, or in the safetensors format,
            or a URL of one, of any kind that MMEngine reads.

    Returns:
        dict: What was saved.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is truncated or altered, is no
            checkpoint, or would run code.
    """
    with get_local_path(str(path)) as local, _safe_globals():
        if not os.path.isfile(local):
            raise FileNotFoundError(f'checkpoint {path} does not exist')
        if _is_safetensors(local):
            try:
                return load_file(local)
            except SafetensorError as error:
                raise CheckpointError(_damaged(path)) from error
        if not _is_sound(local):
            raise CheckpointError(_damaged(path))
        try:
            checkpoint = _without_stand_ins(
                torch.load(local, map_location='cpu', weights_only=True)
            )
        except pickle.UnpicklingError as error:
            refused = re.search(
                r'Unsupported (?:global|class|getattr|call)[^\n]*|GLOBAL \S+',
                str(error),
            )
            if refused or _is_plain_pickle(local):
                what = refused.group().strip() if refused else 'a pickle'
                raise CheckpointError(
                    f'checkpoint {path} was refused, it could run code when '
                    f'read ({what}): take weights from somebody you trust, '
                    'saved as tensors'
                ) from None
            raise CheckpointError(_damaged(path)) from error
        except _DAMAGE as error:
            raise CheckpointError(_damaged(path)) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f'checkpoint {path} holds a '
            f'{type(checkpoint).__name__}, not a dict'
        )
    return checkpoint


def write_checkpoint(checkpoint: dict, path: str | os.PathLike) -> None:
    """``torch.save`` by ``write_file``."""
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_file(buffer.getbuffer(), path)


def some(names: Iterable[str], limit: int = 8) -> str:
    """The first names, for a message, and how many there are besides."""
    names = sorted(names)
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more

"""Which backends work here, and which one 'auto' is."""

import os
from functools import cache

import torch

from . import mamba_ssm_scan
from .self_check import triton_agrees

VARIABLE = 'VCMAMBA_MM_BACKEND'


class BackendError(RuntimeError):
    """A scan backend that cannot be used here."""


def _why_no_numba() -> str | None:
    try:
        from . import numba_scan  # noqa: F401
    except ImportError as error:
        return f'numba cannot be imported ({error}): pip install numba'
    except RuntimeError as error:  # it finds no folder for what it compiles
        return f'numba: {error}. NUMBA_CACHE_DIR=DIR names one'
    return None


def _why_no_triton() -> str | None:
    try:
        import triton
    except ImportError as error:
        return f'triton cannot be imported ({error}): pip install triton'
    major, minor = map(int, triton.__version__.split('.')[:2])
    if (major, minor) < (3, 3):
        return (
            f'triton {triton.__version__} is too old: take 3.3 or newer, '
            'which comes with PyTorch 2.7'
        )
    if not (torch.cuda.is_available() or _interprets_triton()):
        return 'no CUDA GPU was found (TRITON_INTERPRET=1 simulates one)'
    return None


def _interprets_triton() -> bool:
    return os.environ.get('TRITON_INTERPRET') == '1'


_WHY_NOT = dict(
    reference=lambda: None,
    torch=lambda: None,
    numba=_why_no_numba,
    triton=_why_no_triton,
    mamba_ssm=mamba_ssm_scan.why_not,
)
BACKENDS = tuple(_WHY_NOT)


def available_backends() -> dict[str, str | None]:
    """Which scan backends can be used here.

    Returns:
        dict: For each backend's name None if it can be used, else the reason
        why not.
    """
    return {name: why_not() for name, why_not in _WHY_NOT.items()}


def check_backend(backend: str, device: torch.device) -> None:
    """Look whether there is such a backend, and whether it works.

    Raises:
        ValueError: If there is none of that name.
        BackendError: If it cannot be used here, or not on the device.
    """
    if backend not in BACKENDS:
        raise ValueError(
            f"unknown scan backend {backend!r}: choose 'auto' or one of "
            f'{", ".join(map(repr, BACKENDS))}'
        )
    reason = _WHY_NOT[backend]()
    needs_gpu = backend == 'mamba_ssm' or (
        backend == 'triton' and not _interprets_triton()
    )
    elsewhere = backend == 'numba' and device.type not in ('cpu', 'meta')
    if reason is None and (elsewhere or (needs_gpu and device.type != 'cuda')):
        reason = f'the input is on {device}'
    if reason is not None:
        raise BackendError(
            f'scan backend {backend!r} cannot be used here: {reason}'
        )


@cache  # looking for what is not installed takes its time
def _works(backend: str) -> bool:
    return _WHY_NOT[backend]() is None


def auto_backend(device: torch.device, mamba_ssm: bool = True) -> str:
    """What 'auto' means on a device, here and now.

    The environment variable VCMAMBA_MM_BACKEND says it, if it is set.

    Args:
        device: Where the input is.
        mamba_ssm: Whether mamba-ssm's kernel would do.

    Raises:
        ValueError: If the variable has no backend's name.
        BackendError: If the backend that it names cannot be used here.
    """
    backend = os.environ.get(VARIABLE) or 'auto'
    if backend != 'auto':
        try:
            check_backend(backend, device)
        except (ValueError, BackendError) as error:
            raise type(error)(f'{VARIABLE}: {error}') from None
        return backend
    if device.type == 'cpu' and _works('numba'):
        return 'numba'
    if device.type == 'cuda':
        kernels = _works('triton') and not _interprets_triton()
        if kernels and triton_agrees(device):
            return 'triton'
        if mamba_ssm and _works('mamba_ssm'):
            return 'mamba_ssm'
    return 'torch'

"""Whether a backend computes on a device what the ``torch`` backend does.

'auto' asks this of the Triton kernels before it takes them on a GPU: once in
a process, and once on a machine if they agree. A file remembers that for the
GPU, the versions of PyTorch and Triton, and the source of the kernels.
"""

import hashlib
import json
import logging
import math
import os
import subprocess
import tempfile
import textwrap
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from . import torch_scan
from .scan_inputs import Options, Tensors
from .scan_paths import NUM_DIRECTIONS, PATHS

# The largest error beside the largest value of a tensor.
TOLERANCE = {torch.float32: 1e-5}

# A verdict holds for the kernels and the check as they are.
SOURCES = (Path(__file__), *sorted(Path(__file__).parent.glob('triton_*.py')))

# Gives y and the gradients for tensors, gradient of y and options.
Run = Callable[[Tensors, Tensor, Options], tuple[Tensor, Tensors]]


class Case(NamedTuple):
    """A scan to be tried; see ``path_scan``."""

    options: Options
    own: bool  # each path has its parameters
    states: int
    batch: int = 2
    channels: int = 37


class Verdict(NamedTuple):
    """Whether results agree, and how well or why not."""

    agrees: bool
    reason: str


def _make_cases() -> list[Case]:
    """Any three of order, own, number of states and softplus together.

    In odd sizes; sequences of more than 512 tokens are cut on a GPU.
    """
    cases = []
    for order, own, paths, *sizes in (
        ('raster', False, PATHS, (5, 7), (3, 5)),
        ('raster', True, PATHS[:1:-1], (7, 3), (5, 5)),
        ('path', False, PATHS[:1], (1, 521), (1, 37)),
        ('path', True, PATHS[::2] + PATHS[1::2], (7, 5), (23, 25)),
    ):
        for states, size in zip((16, 1), sizes):
            softplus = (order == 'path') ^ own ^ (states == 1)
            options = Options(*size, paths, not softplus, order, softplus)
            cases.append(Case(options, own, states))
    return cases


CASES = _make_cases()


def _make_inputs(case: Case) -> tuple[Tensors, Tensor]:
    """Tensors and a gradient of y, in float32, the same every time."""
    options, own, states, batch, channels = case
    length = options.height * options.width
    p = len(options.paths) if own else 1
    softplus = options.delta_softplus
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    delta = normal(batch, length, p, channels)
    tensors = Tensors(
        x=normal(batch, length, channels),
        delta=delta if softplus else delta.abs(),
        A=-normal(p, channels, states).abs(),
        B=normal(batch, length, p, states),
        C=normal(batch, length, p, states),
        D=normal(p, channels) if own or states > 1 else None,
        direction_B=None if softplus else normal(NUM_DIRECTIONS, states),
        delta_bias=normal(p, channels) if softplus else None,
    )
    return tensors, normal(batch, length, channels)


def differentiate(scan: Callable[[Tensors, Options], Tensor]) -> Run:
    """Make a ``Run`` of a scan that autograd knows."""

    def run(
        tensors: Tensors, grad_y: Tensor, options: Options
    ) -> tuple[Tensor, Tensors]:
        leaves = Tensors(
            *(t if t is None else t.detach().requires_grad_() for t in tensors)
        )
        y = scan(leaves, options)
        given = [t for t in leaves if t is not None]
        grads = iter(torch.autograd.grad(y, given, grad_y))
        return y.detach(), Tensors(
            *(t if t is None else next(grads) for t in leaves)
        )

    return run


def _run_torch(
    tensors: Tensors, grad_y: Tensor, options: Options
) -> tuple[Tensor, Tensors]:
    y, saved = torch_scan.scan_forward(tensors, options, True)
    return y, torch_scan.scan_backward(grad_y, tensors, saved, options)


def _run_triton(
    tensors: Tensors, grad_y: Tensor, options: Options
) -> tuple[Tensor, Tensors]:
    from . import triton_scan

    y = triton_scan.scan_forward(tensors, options)
    return y, triton_scan.scan_backward(grad_y, tensors, options)


def _failures() -> tuple[type[Exception], ...]:
    """What is raised where a kernel cannot be compiled or launched."""
    failures = (
        RuntimeError,  # of CUDA and MLIR; no memory, no C compiler
        subprocess.SubprocessError,  # of the C compiler, or ptxas
        OSError,  # no folder to compile in
        ImportError,  # of what was compiled
        AssertionError,  # no library of the driver
        # the interface of another Triton
        *(AttributeError, LookupError, TypeError, ValueError),
    )
    try:
        from triton.errors import TritonError
    except ImportError:
        return failures
    return *failures, TritonError


def check(
    run: Run, device: torch.device | str, cases: Sequence[Case] = CASES
) -> Verdict:
    """Compare outputs and all gradients with those of the ``torch`` backend.

    What is checked computes in float32 on the device, ``torch`` in float64 on
    the CPU.
    """
    dtype, errors = torch.float32, []
    names = 'y', *(f'the gradient of {name}' for name in Tensors._fields)
    for case in cases:
        tensors, grad_y = _make_inputs(case)
        y, grads = _run_torch(
            tensors.to(torch.float64), grad_y.double(), case.options
        )
        expected = {k: v for k, v in zip(names, (y, *grads)) if v is not None}
        try:
            y, grads = run(
                tensors.to(device, dtype),
                grad_y.to(device, dtype),
                case.options,
            )
            results = dict(zip(names, (y, *grads)))
            for name, its in expected.items():
                result = results[name].to('cpu', torch.float64)
                error = (result.reshape_as(its) - its).abs().max()
                error = float(error / its.abs().max())
                error = math.inf if math.isnan(error) else error
                errors.append((error, name, case))
        except _failures() as failure:
            text = f'{type(failure).__name__}: {failure}'
            return Verdict(False, textwrap.shorten(text, 500))
    error, name, case = max(errors, key=itemgetter(0))
    agrees = error <= TOLERANCE[dtype]
    where = '' if agrees else f', in {case}'
    return Verdict(agrees, f'largest error {error:.1e}, of {name}{where}')


def _key(gpu: str) -> dict[str, str]:
    """For what a verdict holds."""
    import triton

    digest = hashlib.sha256()
    for file in SOURCES:
        digest.update(file.read_bytes())
    return dict(
        gpu=gpu,
        torch=torch.__version__,
        triton=triton.__version__,
        source=digest.hexdigest(),
    )


def _memory(key: dict[str, str]) -> Path:
    """The file that says that the kernels agree."""
    cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    if not os.path.isabs(cache):
        raise FileNotFoundError('this user has no folder')
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return Path(cache, 'vcmamba_mm', f'triton_{digest[:16]}.json')


def _remembers(key: dict[str, str]) -> bool:
    try:
        return json.loads(_memory(key).read_text()) == key
    except (OSError, ValueError):  # nothing there, or something else
        return False


def _remember(key: dict[str, str], agrees: bool) -> None:
    """Not for long if they disagree: what is to blame may be mended."""
    try:
        file = _memory(key)
        if not agrees:
            return file.unlink(missing_ok=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        # As a whole: the processes of a run do this at the same time.
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            new = Path(folder, file.name)
            new.write_text(json.dumps(key))
            new.replace(file)
    except OSError:
        pass  # then this process alone knows


_lock = threading.Lock()
_verdicts: dict[str, Verdict] = {}  # by the name of the GPU


def _find_verdict(device: torch.device, gpu: str, fresh: bool) -> Verdict:
    key = _key(gpu)
    if not fresh and _remembers(key):
        return Verdict(True, 'agreed before')
    logger = logging.getLogger(__name__)
    logger.warning(
        'The Triton kernels are compiled and checked on %s, once: about half '
        'a minute',
        gpu,
    )
    verdict = check(_run_triton, device)
    _remember(key, verdict.agrees)
    if not verdict.agrees:
        logger.warning(
            "The Triton kernels fail their check on %s, backend='auto' goes "
            'without them: %s. Please report it, with what '
            '`python -m vcmamba_mm.doctor` prints',
            gpu,
            verdict.reason,
        )
    return verdict


def check_triton(device: torch.device, fresh: bool = False) -> Verdict:
    """Check the Triton kernels on a GPU, or remember what was found.

    In a thread of its own, which autocast, inference mode, traces, fake
    tensors and whatever else surrounds the caller do not reach.

    Args:
        device: The GPU.
        fresh: Whether to check in any case.
    """
    gpu = torch.cuda.get_device_name(device)
    with _lock:
        if fresh or gpu not in _verdicts:
            with ThreadPoolExecutor(1) as pool:
                _verdicts[gpu] = pool.submit(
                    _find_verdict, device, gpu, fresh
                ).result()
        return _verdicts[gpu]


def triton_agrees(device: torch.device) -> bool:
    """Whether the Triton kernels can be trusted on a GPU.

    While a CUDA graph is captured nothing can be checked: without a verdict
    from before they are not trusted, for the time being.
    """
    gpu = torch.cuda.get_device_name(device)
    if gpu not in _verdicts and torch.cuda.is_current_stream_capturing():
        return False
    return check_triton(device).agrees

"""The one scan and its faces."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import mamba_ssm_scan, scan_operator
from .backends import BackendError, auto_backend, check_backend
from .reference import reference_scan
from .scan_inputs import (
    Options,
    Tensors,
    check_options,
    check_tensors,
    share,
)
from .scan_paths import NUM_PATHS, PATHS


@torch.compiler.assume_constant_result  # PyTorch 2.4 cannot trace it
def _can_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def _autocasts(device_type: str) -> bool:
    return _can_autocast(device_type) and torch.is_autocast_enabled(
        device_type
    )


# Backends made of operators that autograd knows, outside of ours.
_DIFFERENTIABLE = dict(
    reference=reference_scan, mamba_ssm=mamba_ssm_scan.mamba_ssm_scan
)


def transforms_are_active() -> bool:
    """Whether derivatives are taken that a registered operator has not.

    Forward mode, and what torch.func does.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return (
        forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _run(
    tensors: Tensors, options: Options, backend: str, with_paths: bool
) -> Tensor:
    """Check, choose, compute."""
    x = tensors.x
    traces = torch.jit.is_tracing()  # sizes are tensors then
    check_options(options)
    if not traces:
        check_tensors(tensors, options, with_paths)
    if not with_paths:
        tensors = share(tensors)
    if backend != 'auto':
        check_backend(backend, x.device)
    elif not (traces or torch.compiler.is_compiling()):
        # Neither float64 nor an empty batch is for mamba-ssm's kernel.
        backend = auto_backend(
            x.device, mamba_ssm=x.dtype != torch.float64 and len(x) > 0
        )
    if transforms_are_active():
        backend = 'reference'
    if backend in _DIFFERENTIABLE:
        if traces:
            raise BackendError(
                f'scan backend {backend!r} is a loop: torch.jit.trace would '
                "keep its steps for one size. Choose 'torch', or torch.export"
            )
        with torch.autocast(x.device.type, enabled=False):
            y = _DIFFERENTIABLE[backend](
                tensors.to(scan_operator.compute_dtype(x)), options
            )
    else:
        # What is traced may run with gradients, or without them.
        save_states = traces or (
            torch.is_grad_enabled()
            and any(t is not None and t.requires_grad for t in tensors)
        )
        y = scan_operator.call(tensors, options, backend, save_states)
    # Autocast keeps sums in float32: these may exceed float16's range.
    return y if _autocasts(x.device.type) else y.to(x.dtype)


def path_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    height: int,
    width: int,
    *,
    paths: tuple[str, ...] = PATHS,
    snake: bool = True,
    param_order: str = 'raster',
    direction_B: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    backend: str = 'auto',
) -> Tensor:
    """Scan tokens along paths and sum what each path reads out.

    For a path o with direction d(i) of the step into its position i

        h_i = exp(delta A) h_{i-1} + delta (B + theta_{d(i)}) x_{o(i)}
        y_{o(i)} = C h_i + D x_{o(i)}

    where delta, B and C are those of raster position i (``'raster'``) or of
    the token visited, o(i) (``'path'``). Every path has parameters of its
    own, or all share them: the axis P below is the number of paths, or 1.

    Computed in float32, or float64 if ``x`` is float64, under autocast too.

    Args:
        x: Tokens in raster order, shape (batch, height * width, channels).
        delta: Step sizes, (batch, height * width, P, channels).
        A: Negative decay rates, shape (P, channels, state).
        B: Input projections, shape (batch, height * width, P, state).
        C: Output projections, shape of ``B``.
        D: Skip connection, shape (P, channels), or None; it enters once per
            path.
        height: Rows of the feature map.
        width: Columns of the feature map.
        paths: In whose order the tokens are visited, names from 'row',
            'row_reverse', 'column', 'column_reverse'; see
            ``vcmamba_mm.ops.scan_paths.scan_paths``.
        snake: Whether every second line runs backwards.
        param_order: 'raster' or 'path'.
        direction_B: theta, added to ``B`` by direction, shape (5, state):
            begin, right, left, up, down.
        delta_bias: Added to ``delta``, shape (P, channels).
        delta_softplus: Whether softplus makes the step sizes of ``delta``
            and its bias.
        backend: 'auto' (what VCMAMBA_MM_BACKEND names in the environment,
            else 'numba' on a CPU where it is installed, 'triton' on a GPU
            where its kernels pass their check, else 'torch'), 'reference',
            'torch', 'numba', 'triton' or 'mamba_ssm'; see
            ``available_backends``. Under torch.func's transforms and in
            forward mode it is 'reference'.

    Returns:
        Tensor: Sum over the paths, shape and dtype of ``x``; under
        autocast in the dtype it was computed in.

    Raises:
        ValueError: If a kind, a shape, a device, an option or ``backend``
            does not fit; the message names it.
        BackendError: If the backend asked for cannot be used here.

    Example:
        >>> x, delta = torch.randn(2, 12, 8), torch.rand(2, 12, 1, 8)
        >>> A, D = -torch.rand(1, 8, 16), torch.ones(1, 8)
        >>> B, C = torch.randn(2, 12, 1, 16), torch.randn(2, 12, 1, 16)
        >>> path_scan(x, delta, A, B, C, D, 3, 4).shape
        torch.Size([2, 12, 8])
    """
    return _run(
        Tensors(x, delta, A, B, C, D, direction_B, delta_bias),
        Options(
            height, width, tuple(paths), snake, param_order, delta_softplus
        ),
        backend,
        with_paths=True,
    )


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
    backend: str = 'auto',
) -> Tensor:
    """Scan a sequence: Mamba's selective scan (arXiv 2312.00752), ungated.

    ``path_scan`` along one path, so without the axis P. Mamba's own function
    has channels before tokens.

    Args:
        x: Tokens, shape (batch, length, channels).
        delta: Step sizes, shape of ``x``.
        A: Negative decay rates, shape (channels, state).
        B: Input projections, shape (batch, length, state).
        C: Output projections, shape of ``B``.
        D: Skip connection, shape (channels,), or None.
        delta_bias: Added to ``delta``, shape (channels,).
        delta_softplus: Whether softplus makes the step sizes of ``delta``
            and its bias.
        reverse: Scan from the last token to the first.
        backend: As of ``path_scan``.

    Returns, raises: as ``path_scan``.
    """
    length = x.shape[1] if isinstance(x, Tensor) and x.dim() > 1 else 0
    path = 'row_reverse' if reverse else 'row'
    return _run(
        Tensors(x, delta, A, B, C, D, None, delta_bias),
        # in the order of the path, as each token has its own parameters
        Options(1, length, (path,), False, 'path', delta_softplus),
        backend,
        with_paths=False,
    )


def multi_directional_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    direction_B: Tensor,
    height: int,
    width: int,
    *,
    param_order: str = 'raster',
    num_paths: int = NUM_PATHS,
    snake: bool = True,
    backend: str = 'auto',
) -> Tensor:
    """Scan tokens along up to four paths (arXiv 2509.04669, eq. 4).

    ``path_scan`` as VCMamba needs it: the paths share all parameters, which
    have no axis P; ``'raster'`` is what the released weights need, 'path' the
    paper's equation.

    Args:
        x: Tokens in raster order, shape (batch, height * width, channels).
        delta: Step sizes after softplus, shape of ``x``.
        A: Negative decay rates, shape (channels, state).
        B: Input projections, shape (batch, height * width, state).
        C: Output projections, shape of ``B``.
        D: Skip connection, shape (channels,); it enters once per path.
        direction_B: theta, added to ``B`` by direction, shape (5, state):
            begin, right, left, up, down.
        height: Rows of the feature map.
        width: Columns of the feature map.
        param_order: 'raster' or 'path'.
        num_paths: How many of the four paths, from the first on: 1 is the
            row snake, 2 adds its reverse, 4 the same of the columns.
        snake: False for paths that run through every line in the same
            direction; see ``vcmamba_mm.ops.scan_paths.scan_paths``.
        backend: As of ``path_scan``.

    Returns, raises: as ``path_scan``.

    Example:
        >>> x, delta = torch.randn(2, 12, 8), torch.rand(2, 12, 8)
        >>> A, D = -torch.rand(8, 16), torch.ones(8)
        >>> B, C = torch.randn(2, 12, 16), torch.randn(2, 12, 16)
        >>> theta = torch.zeros(5, 16)
        >>> multi_directional_scan(x, delta, A, B, C, D, theta, 3, 4).shape
        torch.Size([2, 12, 8])
    """
    if num_paths not in range(1, NUM_PATHS + 1):
        raise ValueError(
            f'num_paths must be from 1 to {NUM_PATHS}, got {num_paths}'
        )
    return _run(
        Tensors(x, delta, A, B, C, D, direction_B),
        Options(height, width, PATHS[:num_paths], snake, param_order),
        backend,
        with_paths=False,
    )

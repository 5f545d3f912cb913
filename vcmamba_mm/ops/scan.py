"""The one operator: argument checks, choice of backend, autograd."""

import math
import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, shape_wrapper

from . import mamba_ssm_scan, torch_scan
from .reference import reference_scan
from .scan_paths import NUM_DIRECTIONS, NUM_PATHS

PARAM_ORDERS = ('raster', 'path')


class BackendError(RuntimeError):
    """A scan backend that cannot be used here."""


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


def _choose_backend(backend: str, device: torch.device) -> str:
    if backend == 'auto':
        # The triton kernels have not run on a GPU yet, only in Triton's
        # interpreter: they have to be asked for.
        return 'torch'
    if backend not in BACKENDS:
        raise ValueError(
            f"unknown scan backend {backend!r}: choose 'auto' or one of "
            f'{", ".join(map(repr, BACKENDS))}'
        )
    reason = _WHY_NOT[backend]()
    needs_gpu = backend == 'mamba_ssm' or (
        backend == 'triton' and not _interprets_triton()
    )
    if needs_gpu and reason is None and device.type != 'cuda':
        reason = f'the input is on {device}'
    if reason is not None:
        raise BackendError(
            f'scan backend {backend!r} cannot be used here: {reason}'
        )
    return backend


def _check(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    direction_B: Tensor,
    height: int,
    width: int,
    param_order: str,
    num_paths: int,
) -> None:
    if param_order not in PARAM_ORDERS:
        raise ValueError(
            f'param_order must be one of {PARAM_ORDERS}, got {param_order!r}'
        )
    if num_paths not in range(1, NUM_PATHS + 1):
        raise ValueError(
            f'num_paths must be from 1 to {NUM_PATHS}, got {num_paths}'
        )
    if x.dim() != 3 or x.shape[1] != height * width or x.shape[1] == 0:
        raise ValueError(
            f'x must have shape (batch, height * width, channels) with '
            f'height * width = {height} * {width} > 0, got {tuple(x.shape)}'
        )
    if A.dim() != 2 or A.shape[0] != x.shape[2]:
        raise ValueError(
            f'A must have shape (channels, state) with channels '
            f'= {x.shape[2]}, got {tuple(A.shape)}'
        )
    batch, num_tokens, channels = x.shape
    num_states = A.shape[1]
    expected = dict(
        delta=(delta, (batch, num_tokens, channels)),
        B=(B, (batch, num_tokens, num_states)),
        C=(C, (batch, num_tokens, num_states)),
        D=(D, (channels,)),
        direction_B=(direction_B, (NUM_DIRECTIONS, num_states)),
    )
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(
                f'{name} must have shape {shape}, got {tuple(tensor.shape)}'
            )
        if tensor.device != x.device:
            raise ValueError(f'{name} is on {tensor.device}, x on {x.device}')


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.compiler.assume_constant_result  # PyTorch 2.4 cannot trace it
def _can_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def _autocasts(device_type: str) -> bool:
    return _can_autocast(device_type) and torch.is_autocast_enabled(
        device_type
    )


def _states_shape(
    x: Tensor, A: Tensor, param_order: str, num_paths: int
) -> tuple[int, ...]:
    """Of the states that the PyTorch backend keeps for its backward pass."""
    batch, height, width, channels = x.shape
    chunks = -(-height * width // torch_scan.CHUNK)
    paths = num_paths if param_order == 'raster' else 1
    groups = batch * num_paths // paths
    return chunks, groups, A.shape[1], paths, channels


# The operator takes x as a map, (batch, height, width, channels): of numbers
# beside it torch.jit.trace would keep those of the picture that was traced.


@torch.library.custom_op('vcmamba_mm::scan', mutates_args=())
def _scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    direction_B: Tensor,
    param_order: str,
    num_paths: int,
    snake: bool,
    backend: str,
    save_states: bool,
) -> tuple[Tensor, Tensor]:
    """y in the dtype of the computation, and what the backward pass needs."""
    options = (*x.shape[1:3], param_order, num_paths, snake)
    tensors = (x.flatten(1, 2), delta, A, B, C, D, direction_B)
    if backend == 'triton':
        from . import triton_scan

        y = triton_scan.scan_forward(*tensors, *options)
        return y, x.new_empty(0, dtype=_compute_dtype(x))
    tensors = [t.to(_compute_dtype(x)) for t in tensors]
    # Matrix products would otherwise fall to half precision.
    with torch.autocast(x.device.type, enabled=False):
        y, saved = torch_scan.scan_forward(*tensors, *options, save_states)
    # Flat, as tracing fixes every size that is 1, and there may be one chunk.
    return y.contiguous(), saved.flatten()


@_scan.register_fake
def _(x, delta, A, B, C, D, direction_B, param_order, num_paths, snake,
      backend, save_states):  # fmt: skip
    keeps = backend == 'torch' and save_states
    shape = _states_shape(x, A, param_order, num_paths) if keeps else (0,)
    dtype = _compute_dtype(x)
    y = delta.new_empty(delta.shape, dtype=dtype)
    return y, x.new_empty(math.prod(shape), dtype=dtype)


@torch.library.custom_op('vcmamba_mm::scan_backward', mutates_args=())
def _scan_backward(
    grad_y: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    direction_B: Tensor,
    saved: Tensor,
    param_order: str,
    num_paths: int,
    snake: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    options = (*x.shape[1:3], param_order, num_paths, snake)
    inputs = (x.flatten(1, 2), delta, A, B, C, D, direction_B)
    if backend == 'triton':
        from . import triton_scan

        grads = triton_scan.scan_backward(grad_y, *inputs, *options)
    else:
        tensors = [t.to(_compute_dtype(x)) for t in (grad_y, *inputs)]
        saved = saved.view(_states_shape(x, A, param_order, num_paths))
        with torch.autocast(x.device.type, enabled=False):
            grads = torch_scan.scan_backward(*tensors, saved, *options)
        grads = [g.to(t.dtype).contiguous() for g, t in zip(grads, inputs)]
    grad_x, *others = grads
    return grad_x.view(x.shape), *others


@_scan_backward.register_fake
def _(grad_y, x, delta, A, B, C, D, direction_B, saved, param_order,
      num_paths, snake, backend):  # fmt: skip
    inputs = (x, delta, A, B, C, D, direction_B)
    return tuple(t.new_empty(t.shape) for t in inputs)


def _setup_context(ctx, inputs, output):
    tensors, ctx.options = inputs[:7], inputs[7:-1]  # less save_states
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx, grad_y, _):
    grads = _scan_backward(grad_y, *ctx.saved_tensors, *ctx.options)
    return *grads, *[None] * (len(ctx.options) + 1)


_scan.register_autograd(_backward, setup_context=_setup_context)


def scan_macs(
    batch: int,
    num_tokens: int,
    channels: int,
    num_states: int,
    num_paths: int = NUM_PATHS,
) -> int:
    """Multiply-accumulates of one multi-directional scan.

    Per path, token and channel: 4 for each state (delta A; its product with
    the state; B x; C h) and 2 besides (delta x; D x). Exponentials are not
    counted, sharing of delta A between the paths is not assumed.
    """
    return num_paths * batch * num_tokens * channels * (4 * num_states + 2)


def _flop_formula(operator: object) -> Callable:
    """As ``register_flop_formula``, under the name that is looked up.

    PyTorch 2.4 enters an operator by its overload and never finds it.
    """

    def register(formula: Callable) -> None:
        flop_registry[operator] = shape_wrapper(formula)

    return register


@_flop_formula(torch.ops.vcmamba_mm.scan)
def _(x_shape, delta_shape, A_shape, B_shape, C_shape, D_shape, theta_shape,
      param_order, num_paths, *args, **kwargs):  # fmt: skip
    return 2 * scan_macs(*delta_shape, A_shape[1], num_paths)


@_flop_formula(torch.ops.vcmamba_mm.scan_backward)
def _(grad_shape, x_shape, delta_shape, A_shape, B_shape, C_shape, D_shape,
      theta_shape, saved_shape, param_order, num_paths, *args,
      **kwargs):  # fmt: skip
    return 4 * scan_macs(*delta_shape, A_shape[1], num_paths)


# Backends made of operators that autograd knows, outside of ours.
_DIFFERENTIABLE = dict(
    reference=reference_scan, mamba_ssm=mamba_ssm_scan.mamba_ssm_scan
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
    """Scan tokens along up to four paths and sum what each path reads out.

    For a path o with direction d(i) of the step into its position i
    (arXiv 2509.04669, eq. 4)

        h_i = exp(delta A) h_{i-1} + delta (B + theta_{d(i)}) x_{o(i)}
        y_{o(i)} = C h_i + D x_{o(i)}

    where delta, B and C are those of raster position i (``'raster'``, what
    the released weights need) or of the token visited, o(i) (``'path'``, the
    paper's equation).

    Computed in float32, or float64 if ``x`` is float64, under autocast too.

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
        backend: 'auto' (today 'torch' everywhere), 'reference', 'torch',
            'triton' or 'mamba_ssm'; see ``available_backends``.

    Returns:
        Tensor: Sum over the paths, shape and dtype of ``x``; under
        autocast in the dtype it was computed in.

    Raises:
        ValueError: If a shape, a device, ``param_order``, ``num_paths`` or
            ``backend`` does not fit; the message names it.
        BackendError: If the backend asked for cannot be used here.

    Example:
        >>> x, delta = torch.randn(2, 12, 8), torch.rand(2, 12, 8)
        >>> A, D = -torch.rand(8, 16), torch.ones(8)
        >>> B, C = torch.randn(2, 12, 16), torch.randn(2, 12, 16)
        >>> theta = torch.zeros(5, 16)
        >>> multi_directional_scan(x, delta, A, B, C, D, theta, 3, 4).shape
        torch.Size([2, 12, 8])
    """
    tensors = (x, delta, A, B, C, D, direction_B)
    options = (param_order, num_paths, snake)
    traces = torch.jit.is_tracing()  # sizes are tensors then
    if not traces:
        _check(*tensors, height, width, param_order, num_paths)
    backend = _choose_backend(backend, x.device)
    if backend in _DIFFERENTIABLE:
        if traces:
            raise BackendError(
                f'scan backend {backend!r} is a loop: torch.jit.trace would '
                "keep its steps for one size. Choose 'torch', or torch.export"
            )
        tensors = [t.to(_compute_dtype(x)) for t in tensors]
        with torch.autocast(x.device.type, enabled=False):
            y = _DIFFERENTIABLE[backend](*tensors, height, width, *options)
    else:
        # What is traced may run with gradients, or without them.
        save_states = traces or (
            torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        )
        x_map = x.unflatten(1, (height, width))
        y, _ = _scan(x_map, *tensors[1:], *options, backend, save_states)
    # Autocast keeps sums in float32: these may exceed float16's range.
    return y if _autocasts(x.device.type) else y.to(x.dtype)

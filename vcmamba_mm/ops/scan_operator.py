"""The operator that PyTorch knows: shapes, gradients, costs."""

import math
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, shape_wrapper

from . import torch_scan
from .backends import VARIABLE, BackendError, auto_backend
from .scan_inputs import Options, Tensors
from .scan_paths import NUM_PATHS


def compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def unpack(x_map: Tensor, *others) -> tuple[Tensors, Options]:
    """What the registered operator is given, as it is meant.

    It takes x as a map, (batch, height, width, channels): of numbers beside
    it torch.jit.trace would keep those of the image that was traced.
    """
    *tensors, paths, snake, param_order, delta_softplus = others
    options = Options(
        *x_map.shape[1:3],
        tuple(paths.split()),
        snake,
        param_order,
        delta_softplus,
    )
    return Tensors(x_map.flatten(1, 2), *tensors), options


def _cast(tensors: Tensors, backend: str) -> Tensors:
    """To what is computed in; Triton's kernels read all floating dtypes."""
    if backend == 'triton':
        return tensors
    return tensors.to(compute_dtype(tensors.x))


def _resolve(backend: str, device: torch.device) -> str:
    """Take for 'auto' what is best here and now.

    Not before: traces and exported programs are saved with the name, and run
    on other devices and machines.
    """
    if backend == 'auto':
        backend = auto_backend(device, mamba_ssm=False)
        if backend in ('reference', 'mamba_ssm'):
            raise BackendError(
                f'{VARIABLE}: scan backend {backend!r} cannot be used here: '
                "the scan was traced with 'auto'"
            )
    return backend


def _keeps_states(backend: str, device: torch.device) -> bool:
    """Whether the forward pass hands states to the backward pass.

    'auto' on a GPU does not, whatever it turns out to be there: what traces
    has to know, and must not launch the check of the kernels.
    """
    if device.type != 'cuda':
        backend = _resolve(backend, device)
    return backend not in ('auto', 'triton')


def _module(backend: str) -> ModuleType:
    """Of a backend that computes in the dtype it is given."""
    if backend == 'numba':
        from . import numba_scan

        return numba_scan
    return torch_scan


@torch.library.custom_op('vcmamba_mm::scan', mutates_args=())
def _scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    direction_B: Tensor | None,
    delta_bias: Tensor | None,
    paths: str,
    snake: bool,
    param_order: str,
    delta_softplus: bool,
    backend: str,
    save_states: bool,
) -> tuple[Tensor, Tensor]:
    """y in the dtype of the computation, and what the backward pass needs."""
    tensors, options = unpack(
        *(x, delta, A, B, C, D, direction_B, delta_bias),
        *(paths, snake, param_order, delta_softplus),
    )
    save_states = save_states and _keeps_states(backend, x.device)
    backend = _resolve(backend, x.device)
    # Matrix products would otherwise fall to half precision.
    with torch.autocast(x.device.type, enabled=False):
        tensors = _cast(tensors, backend)
        if backend == 'triton':
            from . import triton_scan

            y = triton_scan.scan_forward(tensors, options)
            return y, y.new_empty(0)
        scan_forward = _module(backend).scan_forward
        y, saved = scan_forward(tensors, options, save_states)
    # Flat, as tracing fixes every size that is 1, and there may be one chunk.
    return y.contiguous(), saved.flatten()


@_scan.register_fake
def _(*args):
    *inputs, backend, save_states = args
    tensors, options = unpack(*inputs)
    device, shape = tensors.x.device, (0,)
    if save_states and _keeps_states(backend, device):
        module = _module(_resolve(backend, device))
        shape = module.states_shape(tensors, options)
    x, dtype = tensors.x, compute_dtype(tensors.x)
    y = x.new_empty(x.shape, dtype=dtype)
    return y, x.new_empty(math.prod(shape), dtype=dtype)


@torch.library.custom_op('vcmamba_mm::scan_backward', mutates_args=())
def _scan_backward(
    grad_y: Tensor,
    saved: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    direction_B: Tensor | None,
    delta_bias: Tensor | None,
    paths: str,
    snake: bool,
    param_order: str,
    delta_softplus: bool,
    backend: str,
) -> tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]:  # of what is no tensor an empty one
    tensors, options = unpack(
        *(x, delta, A, B, C, D, direction_B, delta_bias),
        *(paths, snake, param_order, delta_softplus),
    )
    has_states = _keeps_states(backend, x.device)
    backend = _resolve(backend, x.device)
    with torch.autocast(x.device.type, enabled=False):
        cast = _cast(tensors, backend)
        if backend == 'triton':
            from . import triton_scan

            grads = triton_scan.scan_backward(grad_y, cast, options)
        else:
            module = _module(backend)
            if not has_states:
                _, saved = module.scan_forward(cast, options, True)
            saved = saved.view(module.states_shape(cast, options))
            grads = module.scan_backward(
                grad_y.to(compute_dtype(x)), cast, saved, options
            )
    return tuple(
        x.new_empty(0) if t is None else g.to(t.dtype).reshape(t.shape)
        for g, t in zip(
            (None if g is None else g.contiguous() for g in grads),
            (x, *tensors[1:]),
        )
    )


@_scan_backward.register_fake
def _(grad_y, saved, *args):
    tensors = args[: len(Tensors._fields)]
    return tuple(
        tensors[0].new_empty(0) if t is None else t.new_empty(t.shape)
        for t in tensors
    )


def _setup_context(ctx, inputs, output):
    count = len(Tensors._fields)
    ctx.save_for_backward(output[1], *inputs[:count])
    ctx.options = inputs[count:-1]  # less save_states


def _backward(ctx, grad_y, _):
    saved, *tensors = ctx.saved_tensors
    grads = _scan_backward(grad_y, saved, *tensors, *ctx.options)
    grads = [None if t is None else g for g, t in zip(grads, tensors)]
    return *grads, *[None] * (len(ctx.options) + 1)


_scan.register_autograd(_backward, setup_context=_setup_context)


def _no_second_derivative(ctx, *grads):
    raise BackendError(
        'scan: gradients of gradients are known to backend="reference" alone'
    )


_scan_backward.register_autograd(
    _no_second_derivative, setup_context=lambda ctx, inputs, output: None
)


def scan_macs(
    batch: int,
    num_tokens: int,
    channels: int,
    num_states: int,
    num_paths: int = NUM_PATHS,
    rule: tuple[int, int] = (4, 2),
) -> int:
    """Multiply-accumulates of one scan.

    Per path, token and channel: 4 for each state (delta A; its product with
    the state; B x; C h) and 2 besides (delta x; D x). Exponentials are not
    counted, sharing of delta A between the paths is not assumed. ``rule``
    takes other numbers in place of these.
    """
    per_state, besides = rule
    per_channel = per_state * num_states + besides
    return num_paths * batch * num_tokens * channels * per_channel


def _flop_formula(operator: object) -> Callable:
    """As ``register_flop_formula``, under the name that is looked up.

    PyTorch 2.4 enters an operator by its overload and never finds it.
    """

    def register(formula: Callable) -> None:
        flop_registry[operator] = shape_wrapper(formula)

    return register


def macs_of_shapes(
    x_shape, delta_shape, A_shape, *args, rule: tuple[int, int] = (4, 2)
) -> int:
    """``scan_macs`` of what the operator is given, of tensors the shapes."""
    batch, height, width, channels = x_shape
    paths = next(arg for arg in args if isinstance(arg, str))
    num_paths = len(paths.split())
    return scan_macs(
        batch, height * width, channels, A_shape[2], num_paths, rule
    )


@_flop_formula(torch.ops.vcmamba_mm.scan)
def _(*args, **kwargs):
    return 2 * macs_of_shapes(*args)


@_flop_formula(torch.ops.vcmamba_mm.scan_backward)
def _(grad_shape, saved_shape, *args, **kwargs):
    return 4 * macs_of_shapes(*args)


def call(
    tensors: Tensors, options: Options, backend: str, save_states: bool
) -> Tensor:
    """y in the dtype of the computation.

    Args:
        tensors: With an axis of paths.
        options: Of the scan.
        backend: 'auto', 'torch', 'numba' or 'triton'.
        save_states: Whether gradients will be asked for.
    """
    height, width, paths, *others = options
    y, _ = _scan(
        tensors.x.unflatten(1, (height, width)),
        *tensors[1:],
        ' '.join(paths),
        *others,
        backend,
        save_states,
    )
    return y

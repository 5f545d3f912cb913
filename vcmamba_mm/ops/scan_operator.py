"""The operator that PyTorch knows: shapes, gradients, costs."""

import math
from collections.abc import Callable
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import flop_registry, shape_wrapper

from . import torch_scan
from .scan_inputs import Options, Tensors
from .scan_paths import NUM_PATHS

# Backends whose kernels add the bias of delta and take its softplus.
SOFTPLUS_INSIDE = ('numba', 'triton')


class BackendError(RuntimeError):
    """A scan backend that cannot be used here."""


def compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def unpack(x_map: Tensor, *others) -> tuple[Tensors, Options, str]:
    """What the registered operator is given, as it is meant.

    It takes x as a map, (batch, height, width, channels): of numbers beside
    it torch.jit.trace would keep those of the picture that was traced.
    """
    *tensors, paths, snake, param_order, delta_softplus, backend = others
    options = Options(
        *x_map.shape[1:3],
        tuple(paths.split()),
        snake,
        param_order,
        delta_softplus,
    )
    backend = _resolve(backend, x_map.device)
    return Tensors(x_map.flatten(1, 2), *tensors), options, backend


def _cast(tensors: Tensors, backend: str) -> Tensors:
    """To what is computed in; Triton's kernels read all floating dtypes."""
    if backend == 'triton':
        return tensors
    return tensors.to(compute_dtype(tensors.x))


def _step_sizes(tensors: Tensors, options: Options, backend: str) -> Tensors:
    """Add the bias and take softplus, for backends that do not."""
    if backend in SOFTPLUS_INSIDE:
        return tensors
    delta = tensors.delta
    if tensors.delta_bias is not None:
        delta = delta + tensors.delta_bias
    if options.delta_softplus:
        delta = F.softplus(delta)
    return tensors._replace(delta=delta, delta_bias=None)


def _step_size_grads(
    grads: Tensors, tensors: Tensors, options: Options, backend: str
) -> Tensors:
    """Transpose of ``_step_sizes``."""
    if backend in SOFTPLUS_INSIDE:
        return grads
    grad, bias = grads.delta, tensors.delta_bias
    if options.delta_softplus:
        before = tensors.delta if bias is None else tensors.delta + bias
        grad = torch.ops.aten.softplus_backward(grad, before, 1, 20)
    grad_bias = None if bias is None else grad.sum((0, 1))
    return grads._replace(delta=grad, delta_bias=grad_bias)


def why_no_numba() -> str | None:
    try:
        from . import numba_scan  # noqa: F401
    except ImportError as error:
        return f'numba cannot be imported ({error}): pip install numba'
    except RuntimeError as error:  # it finds no folder for what it compiles
        return f'numba: {error}. NUMBA_CACHE_DIR=DIR names one'
    return None


@cache
def _has_numba() -> bool:
    return why_no_numba() is None


def _resolve(backend: str, device: torch.device) -> str:
    """Take for 'auto' what is best here and now.

    Not before: traces and exported programs are saved with the name, and run
    on other devices and machines. The triton kernels have not run on a GPU
    yet, only in Triton's interpreter: they have to be asked for.
    """
    if backend != 'auto':
        return backend
    return 'numba' if device.type == 'cpu' and _has_numba() else 'torch'


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
    tensors, options, backend = unpack(
        *(x, delta, A, B, C, D, direction_B, delta_bias),
        *(paths, snake, param_order, delta_softplus, backend),
    )
    # Matrix products would otherwise fall to half precision.
    with torch.autocast(x.device.type, enabled=False):
        tensors = _step_sizes(
            _cast(tensors, backend), options, backend
        )
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
    *inputs, save_states = args
    tensors, options, backend = unpack(*inputs)
    keeps = backend != 'triton' and save_states
    shape = (0,)
    if keeps:
        shape = _module(backend).states_shape(tensors, options)
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
    tensors, options, backend = unpack(
        *(x, delta, A, B, C, D, direction_B, delta_bias),
        *(paths, snake, param_order, delta_softplus, backend),
    )
    with torch.autocast(x.device.type, enabled=False):
        given = _cast(tensors, backend)
        ready = _step_sizes(given, options, backend)
        if backend == 'triton':
            from . import triton_scan

            grads = triton_scan.scan_backward(grad_y, ready, options)
        else:
            module = _module(backend)
            saved = saved.view(module.states_shape(ready, options))
            grads = module.scan_backward(
                grad_y.to(compute_dtype(x)), ready, saved, options
            )
        grads = _step_size_grads(grads, given, options, backend)
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
        grad_y.new_empty(0) if t is None else t.new_empty(t.shape)
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
) -> int:
    """Multiply-accumulates of one scan.

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


def _macs_of_shapes(x_shape, delta_shape, A_shape, *args) -> int:
    batch, height, width, channels = x_shape
    paths = next(arg for arg in args if isinstance(arg, str))
    return scan_macs(
        batch, height * width, channels, A_shape[2], len(paths.split())
    )


@_flop_formula(torch.ops.vcmamba_mm.scan)
def _(*args, **kwargs):
    return 2 * _macs_of_shapes(*args)


@_flop_formula(torch.ops.vcmamba_mm.scan_backward)
def _(grad_shape, saved_shape, *args, **kwargs):
    return 4 * _macs_of_shapes(*args)


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

"""The scan in operators that other runtimes know.

A loop over time as PyTorch's own scan operator, which ONNX has, too, and the
paths computed from the size of the map, which may be symbolic. Slower in
PyTorch than the ``torch`` backend; forward only.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .scan_inputs import Options, Tensors
from .scan_paths import make_scan_paths


def import_scan_op() -> Callable:
    """Import PyTorch's scan operator.

    Raises:
        ImportError: If this PyTorch has none that can be exported.
    """
    if torch.__version__ < '2.8':
        raise ImportError(
            'export needs PyTorch >= 2.8, whose scan operator can be '
            f'exported, this is {torch.__version__}'
        )
    from torch._higher_order_ops.scan import scan_op

    return scan_op


def _step(
    state: Tensor,
    delta: Tensor,
    input_B: Tensor,
    step_input: Tensor,
    C: Tensor,
    A: Tensor,
) -> tuple[Tensor, Tensor]:
    """One step of all the paths.

    Args:
        state: (batch, state, paths, channels).
        delta: (batch, 1 or paths, channels).
        input_B: (batch, paths, state).
        step_input: delta x, (batch, paths, channels).
        C: (batch, 1 or paths, state).
        A: (state, 1 or paths, channels).
    """
    decay = torch.exp(delta[:, None] * A)
    input_B, C = (t.transpose(1, 2)[..., None] for t in (input_B, C))
    state = decay * state + input_B * step_input[:, None]
    return state, (C * state).sum(1)


def export_scan(tensors: Tensors, options: Options) -> Tensor:
    """Scan tokens along the paths; height and width may be symbolic.

    Args, returns: as ``vcmamba_mm.ops.path_scan``.

    Raises:
        ImportError: See ``import_scan_op``.
    """
    scan_op = import_scan_op()
    x, delta, A, B, C, D, theta, bias = tensors
    if bias is not None:
        delta = delta + bias
    if options.delta_softplus:
        delta = F.softplus(delta)
    num_tokens, num_paths = x.shape[1], len(options.paths)
    paths = make_scan_paths(
        options.height, options.width, x.device, options.paths, options.snake
    )
    number = torch.arange(num_paths, device=x.device)[:, None]

    def read(tokens: Tensor, places: Tensor) -> Tensor:
        """What is at some places at each step, (steps, batch, paths, n)."""
        visited = tokens.index_select(1, places.flatten())
        visited = visited.unflatten(1, (num_paths, num_tokens))
        return visited.permute(2, 0, 1, 3).contiguous()

    def read_params(params: Tensor) -> Tensor:
        """delta, B or C of each step, for one path or all of them."""
        own = params.shape[2] > 1
        if options.param_order == 'raster':
            return params.transpose(0, 1)
        places = paths.order * num_paths + number if own else paths.order
        return read(params.flatten(1, 2), places)

    A = A.permute(2, 0, 1).contiguous()  # (state, 1 or paths, channels)
    delta, B, C = read_params(delta), read_params(B), read_params(C)
    if theta is not None:
        B = B + theta[paths.direction.t()][:, None]
    B = B.expand(-1, -1, num_paths, -1)
    state = x.new_zeros(x.shape[0], A.shape[0], num_paths, x.shape[2])
    _, readout = scan_op(
        _step,
        [state],
        [delta, B, delta * read(x, paths.order), C],
        (A,),
    )
    visits = (paths.inverse + num_tokens * number).flatten()
    readout = readout.permute(1, 2, 0, 3).flatten(1, 2)
    readout = readout.index_select(1, visits)
    readout = readout.unflatten(1, (num_paths, num_tokens))
    y = readout.sum(1)
    return y if D is None else y + D.sum(0) * (num_paths // len(D)) * x

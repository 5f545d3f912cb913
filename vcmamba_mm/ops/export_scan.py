"""The multi-directional scan in operators that other runtimes know.

A loop over time as PyTorch's own scan operator, which ONNX has, too, and the
paths computed from the size of the map, which may be symbolic. Slower in
PyTorch than the ``torch`` backend; forward only.
"""

from collections.abc import Callable

import torch
from torch import Tensor

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
        A: (state, 1, channels).
    """
    decay = torch.exp(delta[:, None] * A)
    input_B, C = (t.transpose(1, 2)[..., None] for t in (input_B, C))
    state = decay * state + input_B * step_input[:, None]
    return state, (C * state).sum(1)


def export_scan(
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
    snake: bool,
) -> Tensor:
    """Scan tokens along the paths.

    Args, returns: as ``vcmamba_mm.ops.multi_directional_scan``.

    Raises:
        ImportError: See ``import_scan_op``.
    """
    scan_op = import_scan_op()
    num_tokens = x.shape[1]
    paths = make_scan_paths(height, width, x.device, num_paths, snake)

    def read(tokens: Tensor) -> Tensor:
        """What is visited at each step, (steps, batch, paths, n)."""
        visited = tokens.index_select(1, paths.order.flatten())
        visited = visited.unflatten(1, (num_paths, num_tokens))
        return visited.permute(2, 0, 1, 3).contiguous()

    def read_params(tokens: Tensor) -> Tensor:
        """delta, B or C of each step, for one path or all of them."""
        if param_order == 'path':
            return read(tokens)
        return tokens.transpose(0, 1)[:, :, None]

    A = A.t().contiguous()[:, None]
    delta, C = read_params(delta), read_params(C)
    theta = direction_B[paths.direction.t()][:, None]
    state = x.new_zeros(x.shape[0], A.shape[0], num_paths, x.shape[2])
    _, readout = scan_op(
        _step,
        [state],
        [delta, read_params(B) + theta, delta * read(x), C],
        (A,),
    )
    number = torch.arange(num_paths, device=x.device)[:, None]
    visits = (paths.inverse + num_tokens * number).flatten()
    readout = readout.permute(1, 2, 0, 3).flatten(1, 2)
    readout = readout.index_select(1, visits)
    readout = readout.unflatten(1, (num_paths, num_tokens))
    return readout.sum(1) + num_paths * D * x

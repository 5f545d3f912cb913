"""The scan in operators that other runtimes know.

A loop over time as PyTorch's own scan operator, which ONNX has, too, and the
paths computed from the size of the map, which may be symbolic. Slower in
PyTorch than the ``torch`` backend; forward only.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .scan_inputs import Options, Tensors, step_sizes
from .scan_paths import make_scan_paths

CHUNK = 16  # steps


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


def _softplus(x: Tensor) -> Tensor:
    # ONNX Runtime's own takes three times as long.
    return x.relu() + x.abs().neg().exp().log1p()


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


def _step_in_chunks(
    state: Tensor, left: Tensor, decay: Tensor, write: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of all the chunks: states, and what is left of the first."""
    state, left = decay * state + write, decay * left
    return state, left, state.clone(), left.clone()


def _step_over_chunks(
    state: Tensor, left: Tensor, write: Tensor
) -> tuple[Tensor, Tensor]:
    """From the beginning of a chunk to that of the next."""
    return left * state + write, state.clone()


def _scan_one_state(decay: Tensor, write: Tensor) -> Tensor:
    """h_i = decay_i h_{i-1} + write_i for steps (chunks * CHUNK, ...).

    Steps take longer by far than what they compute: here the first ones of
    all chunks are one, and so on; then a step takes a chunk.
    """
    scan_op = import_scan_op()
    decay, write = (
        t.unflatten(0, (-1, CHUNK)).transpose(0, 1).contiguous()
        for t in (decay, write)
    )
    zeros = torch.zeros_like(write[0])
    _, _, states, left = scan_op(
        _step_in_chunks, [zeros, torch.ones_like(zeros)], [decay, write], ()
    )
    _, begin = scan_op(
        _step_over_chunks, [zeros[0]], [left[-1], states[-1]], ()
    )
    return (states + left * begin).transpose(0, 1).flatten(0, 1)


def export_scan(tensors: Tensors, options: Options) -> Tensor:
    """Scan tokens along the paths; height and width may be symbolic.

    Args, returns: as ``vcmamba_mm.ops.path_scan``.

    Raises:
        ImportError: See ``import_scan_op``.
    """
    x, _, A, B, C, D, theta, _ = tensors
    delta = step_sizes(tensors, options, _softplus)
    num_tokens, num_paths = x.shape[1], len(options.paths)
    paths = make_scan_paths(
        options.height, options.width, x.device, options.paths, options.snake
    )
    number = torch.arange(num_paths, device=x.device)[:, None]
    one_state = A.shape[2] == 1
    steps = torch.arange(num_tokens, device=x.device)
    if one_state:
        # Whole chunks, what comes after the last token is not read; and one
        # more, since torch.export takes a single one for a case of its own.
        num_chunks = (num_tokens + CHUNK - 1) // CHUNK + 1
        steps = torch.arange(num_chunks * CHUNK, device=x.device)
        steps = steps.clamp(max=num_tokens - 1)
    order = paths.order.index_select(1, steps)

    def read(tokens: Tensor, places: Tensor) -> Tensor:
        """What is at some places at each step, (steps, batch, paths, n)."""
        visited = tokens.index_select(1, places.flatten())
        visited = visited.unflatten(1, (num_paths, -1))
        return visited.permute(2, 0, 1, 3).contiguous()

    def read_params(params: Tensor) -> Tensor:
        """delta, B or C of each step, for one path or all of them."""
        own = params.shape[2] > 1
        if options.param_order == 'raster':
            return params.index_select(1, steps).transpose(0, 1)
        places = order * num_paths + number if own else order
        return read(params.flatten(1, 2), places)

    A = A.permute(2, 0, 1).contiguous()  # (state, 1 or paths, channels)
    delta, B, C = read_params(delta), read_params(B), read_params(C)
    if theta is not None:
        direction = paths.direction.index_select(1, steps)
        B = B + theta[direction.t()][:, None]
    B = B.expand(-1, -1, num_paths, -1)
    step_input = delta * read(x, order)
    if one_state:
        decay = torch.exp(delta * A).expand_as(step_input)
        readout = C * _scan_one_state(decay, B * step_input)
    else:
        state = x.new_zeros(x.shape[0], A.shape[0], num_paths, x.shape[2])
        scan_op = import_scan_op()
        _, readout = scan_op(_step, [state], [delta, B, step_input, C], (A,))
    visits = (paths.inverse + readout.shape[0] * number).flatten()
    readout = readout.permute(1, 2, 0, 3).flatten(1, 2)
    readout = readout.index_select(1, visits)
    readout = readout.unflatten(1, (num_paths, num_tokens))
    y = readout.sum(1)
    return y if D is None else y + D.sum(0) * (num_paths // len(D)) * x

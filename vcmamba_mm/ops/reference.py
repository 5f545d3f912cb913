"""The multi-directional scan as a plain loop: the specification.

Every other backend is tested against this one in float64. It is slow, keeps
every state for autograd, and runs on any device and floating dtype.
"""

import torch
from torch import Tensor

from .scan_paths import scan_paths


def reference_readouts(
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
    """Scan tokens along the paths, one step at a time.

    With path o, direction d(i) of the step into position i, and q(i) = i for
    ``param_order='raster'`` or q(i) = o(i) for ``'path'``:

        h_i    = exp(delta_q A) h_{i-1} + delta_q (B_q + theta_{d(i)}) x_o(i)
        y_o(i) = C_q h_i + D x_o(i)

    Args: as ``vcmamba_mm.ops.multi_directional_scan``.

    Returns:
        Tensor: What each path reads out at each token in raster order, shape
        (num_paths, batch, tokens, channels).
    """
    batch, num_tokens, channels = x.shape
    paths = scan_paths(height, width, x.device, num_paths, snake)
    y = []
    for order, inverse, direction in zip(*paths):
        state = x.new_zeros(batch, channels, A.shape[1])
        readouts = []
        for i in range(num_tokens):
            token = order[i]
            params_of = i if param_order == 'raster' else token
            step = delta[:, params_of, :, None]  # (batch, channels, 1)
            x_i = x[:, token, :, None]
            B_i = (B[:, params_of] + direction_B[direction[i]])[:, None]
            C_i = C[:, params_of, None]  # (batch, 1, state)
            state = torch.exp(step * A) * state + step * B_i * x_i
            readouts.append((C_i * state).sum(-1) + D * x[:, token])
        y.append(torch.stack(readouts, dim=1)[:, inverse])
    return torch.stack(y)


def reference_scan(*args, **kwargs) -> Tensor:
    """Sum of the paths, (batch, tokens, channels); see above."""
    return reference_readouts(*args, **kwargs).sum(0)

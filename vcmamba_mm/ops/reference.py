"""The scan as a plain loop: the specification.

Every other backend is tested against this one in float64. It is slow, keeps
every state for autograd, and runs on any device and floating dtype.
"""

import torch
from torch import Tensor

from .scan_inputs import Options, Tensors, step_sizes


def reference_readouts(tensors: Tensors, options: Options) -> Tensor:
    """Scan tokens along the paths, one step at a time.

    With o(i) the token that path p visits in step i, d(i) the direction of
    that step, and q(i) = i for ``param_order='raster'`` or o(i) for 'path':

        h_i    = exp(delta_q A) h_{i-1} + delta_q (B_q + theta_{d(i)}) x_o(i)
        y_o(i) = C_q h_i + D x_o(i)

    where delta, A, B, C and D are those of p, or the paths' common ones.

    Returns:
        Tensor: What each path reads out at each token in raster order, shape
        (paths, batch, tokens, channels).
    """
    x, _, A, B, C, D, theta, _ = tensors
    delta = step_sizes(tensors, options)
    y = []
    for p, path in enumerate(zip(*options.tables(x.device))):
        p = p if delta.shape[2] > 1 else 0
        state, readouts = 0, []
        for i, (token, direction) in enumerate(zip(path[0], path[2])):
            params_of = i if options.param_order == 'raster' else token
            step = delta[:, params_of, p, :, None]  # (batch, channels, 1)
            x_i = x[:, token, :, None]
            B_i = B[:, params_of, p, None]  # (batch, 1, state)
            if theta is not None:
                B_i = B_i + theta[direction]
            state = torch.exp(step * A[p]) * state + step * B_i * x_i
            y_i = (C[:, params_of, p, None] * state).sum(-1)
            readouts.append(y_i if D is None else y_i + D[p] * x[:, token])
        y.append(torch.stack(readouts, dim=1)[:, path[1]])
    return torch.stack(y)


def reference_scan(tensors: Tensors, options: Options) -> Tensor:
    """Sum of the paths, (batch, tokens, channels); see above."""
    return reference_readouts(tensors, options).sum(0)

"""The multi-directional scan in plain PyTorch, for every device.

A loop over time updates the states of the four paths together, in place. The
states are laid out (batch, state, path, channels): in raster order the decay
exp(delta A) of a step is the same for the four paths and is computed once.

Nothing of size tokens x channels x state is ever stored. The forward pass
keeps the state before every ``CHUNK``-th step; the backward pass recomputes
the states of one chunk at a time from there.
"""
from typing import NamedTuple

import torch
from torch import Tensor

from .scan_paths import NUM_DIRECTIONS, NUM_PATHS, SnakePaths, snake_paths

CHUNK = 16


class _Chunk(NamedTuple):
    """What the steps start..stop of the four paths read.

    ``paths`` is 4, or 1 where the four paths share a value (raster order).
    """
    order: Tensor  # (steps, 4)
    direction: Tensor  # (steps, 4)
    x: Tensor  # (batch, steps, 4, channels)
    delta: Tensor  # (batch, steps, paths, channels)
    C: Tensor  # (batch, steps, paths, state)
    input_B: Tensor  # B + theta, (batch, steps, 4, state)
    decay: Tensor  # exp(delta A), (batch, steps, state, paths, channels)


def _read_chunk(start: int, stop: int, x: Tensor, delta: Tensor, A: Tensor,
                B: Tensor, C: Tensor, direction_B: Tensor, paths: SnakePaths,
                param_order: str) -> _Chunk:
    order = paths.order[:, start:stop].t()
    direction = paths.direction[:, start:stop].t()

    def params(t: Tensor) -> Tensor:
        if param_order == 'raster':
            return t[:, start:stop, None]
        return t[:, order]

    delta = params(delta)
    return _Chunk(
        order=order,
        direction=direction,
        x=x[:, order],
        delta=delta,
        C=params(C),
        input_B=params(B) + direction_B[direction],
        decay=torch.exp(delta[:, :, None] * A.t()[:, None]))


def _advance(state: Tensor, chunk: _Chunk, t: int, out: Tensor) -> Tensor:
    """One step of all recurrences: ``out`` = decay * state + input."""
    torch.mul(state, chunk.decay[:, t], out=out)
    step_input = chunk.delta[:, t] * chunk.x[:, t]  # (batch, 4, channels)
    input_B = chunk.input_B[:, t].transpose(1, 2)  # (batch, state, 4)
    return out.addcmul_(input_B[..., None], step_input[:, None])


def _sum_to(t: Tensor, like: Tensor) -> Tensor:
    """Sum over dim 2 where ``like`` has one entry for all the paths."""
    return t.sum(2, keepdim=True) if like.shape[2] == 1 else t


def scan_forward(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
                 D: Tensor, direction_B: Tensor, height: int, width: int,
                 param_order: str, save_states: bool) -> tuple[Tensor, Tensor]:
    """Forward pass; all tensors of one floating dtype.

    Returns:
        tuple: ``y`` like ``x``, and the states before the steps 0, CHUNK,
        2 CHUNK, ..., shape (chunks, batch, state, 4, channels); no chunks
        unless ``save_states``.
    """
    batch, num_tokens, channels = x.shape
    num_states = A.shape[1]
    paths = snake_paths(height, width, x.device)
    state = x.new_zeros(batch, num_states, NUM_PATHS, channels)
    num_chunks = -(-num_tokens // CHUNK)
    saved = x.new_empty(num_chunks if save_states else 0, *state.shape)
    readout = x.new_empty(batch, num_tokens, NUM_PATHS, channels)
    for n, start in enumerate(range(0, num_tokens, CHUNK)):
        stop = min(start + CHUNK, num_tokens)
        chunk = _read_chunk(start, stop, x, delta, A, B, C, direction_B,
                            paths, param_order)
        if save_states:
            saved[n] = state
        for t in range(stop - start):
            _advance(state, chunk, t, out=state)
            readout[:, start + t] = _read_out(chunk.C[:, t], state)
    y = (NUM_PATHS * D) * x
    for p in range(NUM_PATHS):
        y += readout[:, paths.inverse[p], p]
    return y, saved


def _read_out(C: Tensor, state: Tensor) -> Tensor:
    """C (batch, 1 or 4, state) times the state -> (batch, 4, channels)."""
    if C.shape[1] == 1:
        return torch.bmm(C, state.flatten(2)).unflatten(2, state.shape[2:])[:, 0]
    return torch.einsum('bpn,bnpc->bpc', C, state)


def scan_backward(grad_y: Tensor, x: Tensor, delta: Tensor, A: Tensor,
                  B: Tensor, C: Tensor, D: Tensor, direction_B: Tensor,
                  saved: Tensor, height: int, width: int,
                  param_order: str) -> tuple[Tensor, ...]:
    """Backward pass: gradients of x, delta, A, B, C, D, direction_B.

    With g_i the gradient of the state h_i, which runs backwards in time,

        g_i = C_i dy_o(i) + exp(delta_{i+1} A) g_{i+1}.
    """
    batch, num_tokens, channels = x.shape
    num_states = A.shape[1]
    paths = snake_paths(height, width, x.device)
    grad_x = (NUM_PATHS * D) * grad_y
    grad_delta, grad_A = torch.zeros_like(delta), torch.zeros_like(A)
    grad_B, grad_C = torch.zeros_like(B), torch.zeros_like(C)
    grad_D = NUM_PATHS * (x * grad_y).sum((0, 1))
    grad_direction_B = torch.zeros_like(direction_B)

    shape = (batch, num_states, NUM_PATHS, channels)
    states = x.new_empty(batch, CHUNK + 1, *shape[1:])
    grads = x.new_empty(batch, CHUNK, *shape[1:])
    carried = x.new_zeros(shape)  # decay_{i+1} g_{i+1}
    for n in reversed(range(len(saved))):
        start = n * CHUNK
        stop = min(start + CHUNK, num_tokens)
        steps = stop - start
        chunk = _read_chunk(start, stop, x, delta, A, B, C, direction_B,
                            paths, param_order)
        h, g = states[:, :steps + 1], grads[:, :steps]
        h[:, 0] = saved[n]
        for t in range(steps):
            _advance(h[:, t], chunk, t, out=h[:, t + 1])
        grad_read = grad_y[:, chunk.order]  # (batch, steps, 4, channels)
        C_t = chunk.C.transpose(2, 3)[..., None]  # (b, steps, state, paths, 1)
        for t in reversed(range(steps)):
            torch.addcmul(carried, C_t[:, t], grad_read[:, t, None],
                          out=g[:, t])
            torch.mul(g[:, t], chunk.decay[:, t], out=carried)

        def scatter(grad: Tensor, piece: Tensor) -> None:
            """Add a chunk's (batch, steps, paths, ...) to its tokens."""
            if piece.shape[2] == 1:
                grad[:, start:stop] += piece[:, :, 0]
                return
            for p in range(NUM_PATHS):
                # Within one path every token occurs once.
                grad[:, chunk.order[:, p]] += piece[:, :, p]

        grad_C_chunk = torch.einsum('btpc,btnpc->btpn', grad_read, h[:, 1:])
        scatter(grad_C, _sum_to(grad_C_chunk, chunk.C))

        step_input = chunk.delta * chunk.x
        grad_input_B = torch.einsum('btnpc,btpc->btpn', g, step_input)
        scatter(grad_B, _sum_to(grad_input_B, chunk.C))
        grad_direction_B.index_add_(0, chunk.direction.flatten(),
                                    grad_input_B.sum(0).flatten(0, 1))

        grad_step = torch.einsum('btnpc,btpn->btpc', g, chunk.input_B)
        scatter(grad_x, grad_step * chunk.delta)

        # d(loss) / d(delta A), (batch, steps, state, paths, channels)
        grad_exponent = g.mul_(h[:, :-1])
        if param_order == 'raster':
            grad_exponent = grad_exponent.sum(3, keepdim=True)
        grad_exponent = grad_exponent * chunk.decay
        grad_A += torch.einsum('btnpc,btpc->cn', grad_exponent, chunk.delta)
        grad_step_delta = _sum_to(grad_step * chunk.x, chunk.delta)
        scatter(grad_delta, grad_step_delta + torch.einsum(
            'btnpc,cn->btpc', grad_exponent, A))
    assert grad_direction_B.shape[0] == NUM_DIRECTIONS
    return (grad_x, grad_delta, grad_A, grad_B, grad_C, grad_D,
            grad_direction_B)

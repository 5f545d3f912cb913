"""The multi-directional scan in plain PyTorch, for every device.

A loop over time updates the states of the four paths together, in place. The
states are laid out (batch, path, state, channels): in raster order the decay
exp(delta A) of a step is the same for the four paths and is computed once,
and every sum over channels or states is one batched matrix product.

Nothing of size tokens x channels x state is ever stored. The forward pass
keeps the state before every ``CHUNK``-th step; the backward pass recomputes
the states of one chunk at a time from there.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .scan_paths import NUM_PATHS, snake_paths

CHUNK = 16


class _Chunk(NamedTuple):
    """What some consecutive steps of the four paths read.

    ``paths`` is 4, or 1 where the paths share a value (raster order).
    """

    steps: slice
    order: Tensor  # raster index of the tokens visited, (steps, 4)
    direction: Tensor  # (steps, 4)
    x: Tensor  # (batch, steps, 4, channels)
    delta: Tensor  # (batch, steps, paths, channels)
    C: Tensor  # (batch, steps, paths, state)
    input_B: Tensor  # B + theta, (batch, steps, 4, state)
    decay: Tensor  # exp(delta A), (batch, steps, paths, state, channels)
    step_input: Tensor  # delta x, (batch, steps, 4, channels)

    def advance(self, state: Tensor, t: int, out: Tensor) -> None:
        """One step of all recurrences: ``out`` = decay * state + input."""
        torch.mul(state, self.decay[:, t], out=out)
        out.addcmul_(
            self.input_B[:, t, :, :, None], self.step_input[:, t, :, None]
        )

    def add_at_params(self, grad: Tensor, piece: Tensor) -> None:
        """Add (batch, steps, 4, n) where delta, B and C were read."""
        if self.delta.shape[2] == 1:
            grad[:, self.steps] += piece.sum(2)
        else:
            self.add_at_tokens(grad, piece)

    def add_at_tokens(self, grad: Tensor, piece: Tensor) -> None:
        """Add (batch, steps, 4, n) where the tokens were read."""
        for p in range(NUM_PATHS):
            # Within one path every token occurs once.
            grad[:, self.order[:, p]] += piece[:, :, p]


def _chunk_memory(x: Tensor, A: Tensor, param_order: str) -> Tensor:
    """Memory for a chunk's decays; large pieces are slow to get anew."""
    paths = 1 if param_order == 'raster' else NUM_PATHS
    return x.new_empty(len(x), CHUNK, paths, *A.shape)


def _read_chunk(
    n: int,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    direction_B: Tensor,
    height: int,
    width: int,
    param_order: str,
    memory: Tensor,
) -> _Chunk:
    """Read the steps from n * CHUNK to (n + 1) * CHUNK.

    ``A`` comes transposed, (state, channels); ``memory`` takes the decays.
    """
    steps = slice(n * CHUNK, min((n + 1) * CHUNK, x.shape[1]))
    paths = snake_paths(height, width, x.device)
    order, direction = paths.order[:, steps].t(), paths.direction[:, steps].t()

    def read_params(t: Tensor) -> Tensor:
        return t[:, steps, None] if param_order == 'raster' else t[:, order]

    x, delta = x[:, order], read_params(delta)
    decay = memory[:, : len(order)]
    torch.mul(delta[:, :, :, None], A, out=decay).exp_()
    return _Chunk(
        steps=steps,
        order=order,
        direction=direction,
        x=x,
        delta=delta,
        C=read_params(C),
        input_B=read_params(B) + direction_B[direction],
        decay=decay,
        step_input=delta * x,
    )


def scan_forward(
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
    save_states: bool,
) -> tuple[Tensor, Tensor]:
    """Forward pass; all tensors of one floating dtype.

    Returns:
        tuple: ``y`` like ``x``, and the states before the steps 0, CHUNK,
        2 CHUNK, ..., shape (chunks, batch, 4, state, channels); no chunks
        unless ``save_states``.
    """
    batch, num_tokens, channels = x.shape
    A = A.t().contiguous()
    num_chunks = -(-num_tokens // CHUNK)
    state = x.new_zeros(batch, NUM_PATHS, A.shape[0], channels)
    saved = x.new_empty(num_chunks if save_states else 0, *state.shape)
    readout = x.new_empty(batch, num_tokens, NUM_PATHS, channels)
    memory = _chunk_memory(x, A, param_order)
    for n in range(num_chunks):
        chunk = _read_chunk(
            n,
            x,
            delta,
            A,
            B,
            C,
            direction_B,
            height,
            width,
            param_order,
            memory,
        )
        if save_states:
            saved[n] = state
        C_t = chunk.C[:, :, :, None]  # (batch, steps, paths, 1, state)
        for t in range(len(chunk.order)):
            chunk.advance(state, t, out=state)
            readout[:, chunk.steps.start + t] = (C_t[:, t] @ state)[:, :, 0]
    y = (NUM_PATHS * D) * x
    inverse = snake_paths(height, width, x.device).inverse
    for p in range(NUM_PATHS):
        y += readout[:, inverse[p], p]
    return y, saved


def scan_backward(
    grad_y: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    direction_B: Tensor,
    saved: Tensor,
    height: int,
    width: int,
    param_order: str,
) -> tuple[Tensor, ...]:
    """Backward pass: gradients of x, delta, A, B, C, D, direction_B.

    With g_i the gradient of the state h_i, which runs backwards in time,

        g_i = C_i dy_o(i) + exp(delta_{i+1} A) g_{i+1}.
    """
    grad_x = (NUM_PATHS * D) * grad_y
    A = A.t().contiguous()
    grad_delta, grad_A = torch.zeros_like(delta), torch.zeros_like(A)
    grad_B, grad_C = torch.zeros_like(B), torch.zeros_like(C)
    grad_D = NUM_PATHS * (x * grad_y).sum((0, 1))
    grad_direction_B = torch.zeros_like(direction_B)

    batch, *state_shape = saved.shape[1:]
    states = x.new_empty(batch, CHUNK + 1, *state_shape)
    grads = x.new_empty(batch, CHUNK, *state_shape)
    memory = _chunk_memory(x, A, param_order)
    product = torch.empty_like(memory)
    carried = x.new_zeros(batch, *state_shape)  # decay_{i+1} g_{i+1}
    for n in reversed(range(len(saved))):
        chunk = _read_chunk(
            n,
            x,
            delta,
            A,
            B,
            C,
            direction_B,
            height,
            width,
            param_order,
            memory,
        )
        steps = len(chunk.order)
        h, g = states[:, : steps + 1], grads[:, :steps]
        h[:, 0] = saved[n]
        for t in range(steps):
            chunk.advance(h[:, t], t, out=h[:, t + 1])
        grad_read = grad_y[:, chunk.order]  # (batch, steps, 4, channels)
        for t in reversed(range(steps)):
            torch.addcmul(
                carried,
                chunk.C[:, t, :, :, None],
                grad_read[:, t, :, None],
                out=g[:, t],
            )
            torch.mul(g[:, t], chunk.decay[:, t], out=carried)

        grad_C_read = (h[:, 1:] @ grad_read[..., None])[..., 0]
        chunk.add_at_params(grad_C, grad_C_read)

        grad_input_B = (g @ chunk.step_input[..., None])[..., 0]
        chunk.add_at_params(grad_B, grad_input_B)
        grad_direction_B.index_add_(
            0, chunk.direction.flatten(), grad_input_B.sum(0).flatten(0, 1)
        )

        grad_step_input = (chunk.input_B[..., None, :] @ g)[..., 0, :]
        chunk.add_at_tokens(grad_x, grad_step_input * chunk.delta)
        chunk.add_at_params(grad_delta, grad_step_input * chunk.x)

        # of the exponent delta A, (batch, steps, paths, state, channels)
        grad_exponent = g.mul_(h[:, :-1])
        if param_order == 'raster':
            grad_exponent = torch.sum(
                grad_exponent, 2, keepdim=True, out=product[:, :steps]
            )
        grad_exponent.mul_(chunk.decay)
        by_A = torch.mul(grad_exponent, A, out=chunk.decay)
        chunk.add_at_params(grad_delta, by_A.sum(3))
        grad_A += grad_exponent.mul_(chunk.delta[:, :, :, None]).sum((0, 1, 2))
    return (
        grad_x,
        grad_delta,
        grad_A.t(),
        grad_B,
        grad_C,
        grad_D,
        grad_direction_B,
    )

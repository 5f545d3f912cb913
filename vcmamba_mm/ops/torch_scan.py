"""The multi-directional scan in plain PyTorch, for every device.

The paths are turned into groups of recurrences that share delta, B and
C, and so the decay exp(delta A), which is then computed once: in raster order
an image is one group of four paths, in path order four groups of one. A loop
over time updates the states of all groups in place; sums over channels or
states are batched matrix products.

Nothing of size tokens x channels x state is ever stored. The forward pass
keeps the states before every ``CHUNK``-th step; the backward pass recomputes
those of one chunk at a time from there.
"""

from functools import lru_cache

import torch
from torch import Tensor

from .scan_paths import ScanPaths, scan_paths

CHUNK = 8


class _Groups:
    """Between tokens, (batch, tokens, n), and the steps of the groups."""

    def __init__(self, paths: ScanPaths, param_order: str):
        order, inverse, self.direction = paths
        self.num_paths, num_tokens = order.shape
        number = torch.arange(self.num_paths, device=order.device)[:, None]
        self.shared = param_order == 'raster'
        if self.shared:  # path is the inner index of (tokens, paths)
            self.visited = order.t().flatten()
            visits = inverse * self.num_paths + number
            self.direction = self.direction.t().contiguous()
        else:  # ... and the outer one of (groups, tokens)
            self.visited = order.flatten()
            visits = inverse + num_tokens * number
        self.visits = visits.t().flatten()
        self.paths = self.num_paths if self.shared else 1

    def read(self, tokens: Tensor) -> Tensor:
        """What is visited at each step, (groups, steps, paths, n)."""
        _, num_tokens, n = tokens.shape
        read = tokens.index_select(1, self.visited)
        return read.view(-1, num_tokens, self.paths, n)

    def sum_at_tokens(self, steps: Tensor) -> Tensor:
        """Transpose of ``read``."""
        _, num_tokens, _, n = steps.shape
        steps = steps.view(-1, self.num_paths * num_tokens, n)
        at_tokens = steps.index_select(1, self.visits)
        return at_tokens.view(-1, num_tokens, self.num_paths, n).sum(2)

    def read_params(self, tokens: Tensor) -> Tensor:
        """delta, B or C of each step, (groups, steps, n)."""
        return tokens if self.shared else self.read(tokens).squeeze(2)

    def sum_params(self, steps: Tensor) -> Tensor:
        """Transpose of ``read_params``."""
        return steps if self.shared else self.sum_at_tokens(steps[:, :, None])

    def read_input_B(self, B: Tensor, direction_B: Tensor) -> Tensor:
        """B + theta of each step, (groups, steps, paths, state)."""
        if self.shared:
            return B[:, :, None] + direction_B[self.direction]
        theta = direction_B[self.direction]  # (num_paths, steps, state)
        B = self.read(B).unflatten(0, (-1, self.num_paths))
        return (B + theta[:, :, None]).flatten(0, 1)

    def sum_theta(self, steps: Tensor, direction_B: Tensor) -> Tensor:
        """Transpose of ``read_input_B`` as to theta."""
        per_image = steps.view(-1, self.direction.numel(), steps.shape[-1])
        return torch.zeros_like(direction_B).index_add_(
            0, self.direction.flatten(), per_image.sum(0)
        )


@lru_cache(maxsize=256)
def _groups(
    height: int,
    width: int,
    device: torch.device,
    param_order: str,
    num_paths: int,
    snake: bool,
) -> _Groups:
    # The cache outlives any inference_mode block the first call may be in.
    with torch.inference_mode(False):
        paths = scan_paths(height, width, device, num_paths, snake)
        return _Groups(paths, param_order)


def _chunks(num_tokens: int) -> list[slice]:
    return [
        slice(start, min(start + CHUNK, num_tokens))
        for start in range(0, num_tokens, CHUNK)
    ]


def _fill_decay(memory: Tensor, delta: Tensor, A: Tensor) -> Tensor:
    """exp(delta A) of the steps, (steps, groups, state, 1, channels).

    Into ``memory``, since large pieces of memory are slow to get anew.
    """
    decay = memory[: delta.shape[1]]
    torch.mul(delta.transpose(0, 1)[:, :, None, None], A, out=decay)
    return decay.exp_()


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
    num_paths: int,
    snake: bool,
    save_states: bool,
) -> tuple[Tensor, Tensor]:
    """Forward pass; all tensors of one floating dtype.

    Returns:
        tuple: ``y`` like ``x``, and the states before the steps 0, CHUNK,
        2 CHUNK, ..., shape (chunks, groups, state, paths, channels); no
        chunks unless ``save_states``.
    """
    groups = _groups(height, width, x.device, param_order, num_paths, snake)
    A = A.t().contiguous()[:, None]  # (state, 1, channels)
    delta, C = groups.read_params(delta), groups.read_params(C)
    step_input = groups.read(x).mul_(delta[:, :, None])
    input_B = groups.read_input_B(B, direction_B).transpose(2, 3)

    num_groups, num_steps, paths, channels = step_input.shape
    state = x.new_zeros(num_groups, len(A), paths, channels)
    chunks = _chunks(num_steps)
    saved = x.new_empty(len(chunks) if save_states else 0, *state.shape)
    memory = x.new_empty(CHUNK, num_groups, *A.shape)
    readout = torch.empty_like(step_input)
    for n, steps in enumerate(chunks):
        if save_states:
            saved[n] = state
        for decay, B_t, input_t, C_t, readout_t in zip(
            _fill_decay(memory, delta[:, steps], A),
            input_B[:, steps, :, :, None].unbind(1),
            step_input[:, steps, None].unbind(1),
            C[:, steps, None].unbind(1),
            readout[:, steps].flatten(2)[:, :, None].unbind(1),
        ):
            state.mul_(decay).addcmul_(B_t, input_t)
            torch.bmm(C_t, state.flatten(2), out=readout_t)
    y = groups.sum_at_tokens(readout)
    return y.addcmul_(D, x, value=num_paths), saved


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
    num_paths: int,
    snake: bool,
) -> tuple[Tensor, ...]:
    """Backward pass: gradients of x, delta, A, B, C, D, direction_B.

    With g_i the gradient of the state h_i, which runs backwards in time,

        g_i = C_i dy_o(i) + exp(delta_{i+1} A) g_{i+1}.
    """
    groups = _groups(height, width, x.device, param_order, num_paths, snake)
    grad_D = num_paths * (x * grad_y).sum((0, 1))
    grad_skip = num_paths * D * grad_y
    A = A.t().contiguous()[:, None]  # (state, 1, channels)
    delta, C = groups.read_params(delta), groups.read_params(C)
    x, grad_readout = groups.read(x), groups.read(grad_y)
    input_B = groups.read_input_B(B, direction_B)
    grad_x, grad_delta = torch.empty_like(x), torch.empty_like(delta)
    grad_A, grad_C = torch.zeros_like(A), torch.empty_like(C)
    grad_input_B = torch.empty_like(input_B)

    memory = x.new_empty(CHUNK, len(delta), *A.shape)
    summed = torch.empty_like(memory)
    states = x.new_empty(CHUNK + 1, *saved.shape[1:])
    grads = x.new_empty(CHUNK, *saved.shape[1:])
    carried = torch.zeros_like(saved[0])  # exp(delta_{i+1} A) g_{i+1}
    for n, steps in reversed(list(enumerate(_chunks(delta.shape[1])))):
        # Of this chunk, with time first as the states have it; products of
        # a row vector and a matrix are much faster than the other way round.
        delta_c, x_c, grad_readout_c, C_c, input_B_c = (
            t[:, steps].transpose(0, 1)
            for t in (delta[:, :, None], x, grad_readout, C, input_B)
        )
        step_input = delta_c * x_c
        decay = _fill_decay(memory, delta[:, steps], A)
        h, g = states[: len(decay) + 1], grads[: len(decay)]
        h[0] = saved[n]
        for before, after, decay_t, B_t, input_t in zip(
            h,
            h[1:],
            decay,
            input_B_c.transpose(2, 3)[..., None],
            step_input[:, :, None],
        ):
            torch.mul(before, decay_t, out=after)
            after.addcmul_(B_t, input_t)
        factors = zip(
            g, decay, C_c[..., None, None], grad_readout_c[:, :, None]
        )
        for g_t, decay_t, C_t, grad_t in reversed(list(factors)):
            torch.addcmul(carried, C_t, grad_t, out=g_t)
            torch.mul(g_t, decay_t, out=carried)

        grad_readout_c = grad_readout_c.flatten(2)[:, :, None]
        grad_C_c = grad_readout_c @ h[1:].flatten(3).transpose(2, 3)
        grad_C[:, steps] = grad_C_c.squeeze(2).transpose(0, 1)
        grad_step_input = torch.empty_like(step_input)
        for p in range(groups.paths):
            g_p = g[..., p, :]  # (steps, groups, state, channels)
            B_p, input_p = input_B_c[:, :, p, None], step_input[:, :, p, None]
            grad_step_input[:, :, p] = (B_p @ g_p).squeeze(2)
            grad_B_p = (input_p @ g_p.transpose(2, 3)).squeeze(2)
            grad_input_B[:, steps, p] = grad_B_p.transpose(0, 1)
        grad_x[:, steps] = (grad_step_input * delta_c).transpose(0, 1)

        # of the exponent delta A, (steps, groups, state, 1, channels)
        g *= h[:-1]
        grad_exponent = torch.sum(g, 3, keepdim=True, out=summed[: len(decay)])
        grad_exponent *= decay
        grad_delta_c = (grad_step_input * x_c).sum(2)
        grad_delta_c += torch.mul(grad_exponent, A, out=decay).sum((2, 3))
        grad_delta[:, steps] = grad_delta_c.transpose(0, 1)
        grad_A += grad_exponent.mul_(delta_c[:, :, None]).sum((0, 1))
    return (
        groups.sum_at_tokens(grad_x).add_(grad_skip),
        groups.sum_params(grad_delta),
        grad_A[:, 0].t(),
        groups.sum_params(grad_input_B.sum(2)),
        groups.sum_params(grad_C),
        grad_D,
        groups.sum_theta(grad_input_B, direction_B),
    )

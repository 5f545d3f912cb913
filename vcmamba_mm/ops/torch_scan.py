"""The scan in plain PyTorch, for every device.

The paths are turned into groups of recurrences that share delta, B and C, and
so the decay exp(delta A), which is then computed once: an image is one group
of all paths where these share their parameters and use them in raster order,
else a group for each path. A loop
over time updates the states of all groups in place; sums over channels or
states are batched matrix products.

Nothing of size tokens x channels x state is ever stored. The forward pass
keeps the states before every ``CHUNK``-th step; the backward pass recomputes
those of one chunk at a time from there.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .scan_inputs import Options, Tensors
from .scan_paths import ScanPaths

CHUNK = 8


class _Groups:
    """Between tokens and the steps of the groups.

    Args:
        paths: The index tables.
        shared: One group of all paths for each image, as they share their
            parameters at every step; else one for each path.
        own: Whether each path has parameters of its own.
        param_order: 'raster' or 'path'.
    """

    def __init__(
        self, paths: ScanPaths, shared: bool, own: bool, param_order: str
    ):
        order, inverse, self.direction = paths
        self.num_paths, num_tokens = order.shape
        number = torch.arange(self.num_paths, device=order.device)[:, None]
        self.shared, self.own = shared, own
        self.follow = param_order == 'path'  # parameters are the token's
        if shared:  # path is the inner index of (tokens, paths)
            self.visited = order.t().flatten()
            visits = inverse * self.num_paths + number
            self.direction = self.direction.t().contiguous()
        else:  # ... and the outer one of (groups, tokens)
            self.visited = order.flatten()
            visits = inverse + num_tokens * number
        self.visits = visits.t().flatten()
        self.own_visited = (order * self.num_paths + number).flatten()
        self.paths = self.num_paths if shared else 1

    def read(self, tokens: Tensor) -> Tensor:
        """What is visited at each step, (groups, steps, paths, n)."""
        _, num_tokens, n = tokens.shape
        read = tokens.index_select(1, self.visited)
        return read.view(-1, num_tokens, self.paths, n)

    def sum_at_tokens(self, steps: Tensor) -> Tensor:
        """Transpose of ``read``."""
        return self._at_tokens(steps).sum(2)

    def _at_tokens(self, steps: Tensor) -> Tensor:
        """Of each path, (batch, tokens, num_paths, n)."""
        num_tokens, n = steps.shape[1], steps.shape[-1]
        steps = steps.reshape(-1, self.num_paths * num_tokens, n)
        at_tokens = steps.index_select(1, self.visits)
        return at_tokens.view(-1, num_tokens, self.num_paths, n)

    def read_params(self, params: Tensor) -> Tensor:
        """delta, B or C of each step, (groups, steps, n)."""
        if not self.own:
            params = params.squeeze(2)
            return self.read(params).squeeze(2) if self.follow else params
        if self.follow:
            params = params.flatten(1, 2).index_select(1, self.own_visited)
            params = params.unflatten(1, (self.num_paths, -1))
        else:
            params = params.transpose(1, 2)
        return params.flatten(0, 1)

    def sum_params(self, steps: Tensor) -> Tensor:
        """Transpose of ``read_params``."""
        if self.own:
            if self.follow:
                return self._at_tokens(steps)
            return steps.unflatten(0, (-1, self.num_paths)).transpose(1, 2)
        if self.follow:
            steps = self.sum_at_tokens(steps)
        return steps[:, :, None]

    def read_input_B(self, B: Tensor, direction_B: Tensor | None) -> Tensor:
        """B + theta of each step, (groups, steps, paths, state)."""
        B = self.read_params(B)[:, :, None]
        if direction_B is None:
            return B.expand(-1, -1, self.paths, -1)
        theta = direction_B[self.direction]
        if self.shared:
            return B + theta
        B = B.unflatten(0, (-1, self.num_paths))
        return (B + theta[:, :, None]).flatten(0, 1)

    def sum_theta(self, steps: Tensor, direction_B: Tensor) -> Tensor:
        """Transpose of ``read_input_B`` as to theta."""
        per_image = steps.reshape(-1, self.direction.numel(), steps.shape[-1])
        return torch.zeros_like(direction_B).index_add_(
            0, self.direction.flatten(), per_image.sum(0)
        )

    def read_A(self, A: Tensor, batch: int) -> Tensor:
        """(groups or 1, state, 1, channels)."""
        A = A.transpose(1, 2)[:, :, None].contiguous()
        return A.repeat(batch, 1, 1, 1) if self.own else A

    def sum_A(self, grad: Tensor) -> Tensor:
        """Transpose of ``read_A``, of (groups, state, 1, channels)."""
        grad = grad[:, :, 0].transpose(1, 2)
        if self.own:
            return grad.unflatten(0, (-1, self.num_paths)).sum(0)
        return grad.sum(0, keepdim=True)


@lru_cache(maxsize=256)
def _groups(options: Options, own: bool, device: torch.device) -> _Groups:
    # The cache outlives any inference_mode block the first call may be in.
    with torch.inference_mode(False):
        shared = not own and options.param_order == 'raster'
        return _Groups(
            options.tables(device), shared, own, options.param_order
        )


def _groups_of(tensors: Tensors, options: Options) -> _Groups:
    own = tensors.delta.shape[2] > 1
    return _groups(options, own, tensors.x.device)


def states_shape(tensors: Tensors, options: Options) -> tuple[int, ...]:
    """Of the states that the forward pass keeps for the backward pass."""
    batch, length, channels = tensors.x.shape
    num_paths = len(options.paths)
    own = tensors.delta.shape[2] > 1
    shared = not own and options.param_order == 'raster'
    paths = num_paths if shared else 1
    groups = batch * num_paths // paths
    return -(-length // CHUNK), groups, tensors.A.shape[2], paths, channels


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


def _step_sizes(tensors: Tensors, options: Options) -> tuple[Tensor, Tensor]:
    """Add the bias, take softplus; and what it was taken of."""
    before = tensors.delta
    if tensors.delta_bias is not None:
        before = before + tensors.delta_bias
    return F.softplus(before) if options.delta_softplus else before, before


def _total_D(D: Tensor, num_paths: int) -> Tensor:
    """Of all paths, (channels,)."""
    return D.sum(0) * (num_paths // len(D))


def scan_forward(
    tensors: Tensors, options: Options, save_states: bool
) -> tuple[Tensor, Tensor]:
    """Forward pass; all tensors of one floating dtype.

    Returns:
        tuple: ``y`` like ``x``, and the states before the steps 0, CHUNK,
        2 CHUNK, ..., shape (chunks, groups, state, paths, channels); no
        chunks unless ``save_states``.
    """
    x, _, A, B, C, D, direction_B, _ = tensors
    delta, _ = _step_sizes(tensors, options)
    groups = _groups_of(tensors, options)
    A = groups.read_A(A, len(x))
    delta, C = groups.read_params(delta), groups.read_params(C)
    step_input = groups.read(x).mul_(delta[:, :, None])
    input_B = groups.read_input_B(B, direction_B).transpose(2, 3)

    num_groups, num_steps, paths, channels = step_input.shape
    state = x.new_zeros(num_groups, A.shape[1], paths, channels)
    chunks = _chunks(num_steps)
    saved = x.new_empty(len(chunks) if save_states else 0, *state.shape)
    memory = x.new_empty(CHUNK, num_groups, *A.shape[1:])
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
    if D is not None:
        y.addcmul_(_total_D(D, groups.num_paths), x)
    return y, saved


def scan_backward(
    grad_y: Tensor, tensors: Tensors, saved: Tensor, options: Options
) -> Tensors:
    """Backward pass.

    With g_i the gradient of the state h_i, which runs backwards in time,

        g_i = C_i dy_o(i) + exp(delta_{i+1} A) g_{i+1}.

    Returns:
        Tensors: The gradients, None where there was no tensor.
    """
    x, _, A, B, C, D, direction_B, bias = tensors
    delta, raw_delta = _step_sizes(tensors, options)
    groups = _groups_of(tensors, options)
    grad_skip = grad_D = None
    if D is not None:
        grad_skip = _total_D(D, groups.num_paths) * grad_y
        grad_D = (x * grad_y).sum((0, 1)).expand_as(D)
        grad_D = grad_D * (groups.num_paths // len(D))
    A = groups.read_A(A, len(x))
    delta, C = groups.read_params(delta), groups.read_params(C)
    x, grad_readout = groups.read(x), groups.read(grad_y)
    input_B = groups.read_input_B(B, direction_B)
    grad_x, grad_delta = torch.empty_like(x), torch.empty_like(delta)
    grad_C = torch.empty_like(C)
    grad_A = A.new_zeros(len(delta), *A.shape[1:])
    grad_input_B = torch.empty_like(
        input_B, memory_format=torch.contiguous_format
    )

    memory = x.new_empty(CHUNK, *grad_A.shape)
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
        grad_A += grad_exponent.mul_(delta_c[:, :, None]).sum(0)
    grad_x = groups.sum_at_tokens(grad_x)
    grad_theta = None
    if direction_B is not None:
        grad_theta = groups.sum_theta(grad_input_B, direction_B)
    grad_delta = groups.sum_params(grad_delta)
    if options.delta_softplus:
        # its steepness, and from where on it is the identity
        grad_delta = torch.ops.aten.softplus_backward(
            grad_delta, raw_delta, 1, 20
        )
    return Tensors(
        grad_x if grad_skip is None else grad_x.add_(grad_skip),
        grad_delta,
        groups.sum_A(grad_A),
        groups.sum_params(grad_input_B.sum(2)),
        groups.sum_params(grad_C),
        grad_D,
        grad_theta,
        None if bias is None else grad_delta.sum((0, 1)),
    )

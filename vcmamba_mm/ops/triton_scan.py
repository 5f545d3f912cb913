"""The scan by Triton kernels: how the work is divided, and launched."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .scan_inputs import Options, Tensors
from .scan_paths import NUM_DIRECTIONS
from .triton_kernels import backward_kernel, walk_kernel

# Sequences at least as long as this may be cut, into segments as long as that.
CUT_FROM, LEAST_STEPS = 512, 64
# Fewer programs than this on a multiprocessor leave it waiting.
FEW = 8


class Sizes(NamedTuple):
    """How a kernel is compiled, and how many of it fill a multiprocessor.

    As measured on an H200.
    """

    constants: dict
    programs: int


def _sizes(states: int, channels: int, programs: int, **others) -> Sizes:
    fitting = 16 * channels // max(16, triton.next_power_of_2(states))
    constants = dict(
        STATES=states,
        BE=max(1, fitting),  # registers hold the states of so many channels
        num_warps=1,
        # Triton 3.10 no longer fuses products and sums by itself.
        enable_fp_fusion=True,
        **others,
    )
    return Sizes(constants, programs)


def forward_sizes(states: int, paths: int, few: bool, cut: bool) -> Sizes:
    """Of the walk; narrow tiles where there are few programs.

    Args:
        states: Of a channel.
        paths: That are walked together.
        few: Whether tiles of 32 channels would leave the GPU waiting.
        cut: Whether the sequence may be cut.
    """
    if states == 1:
        return _sizes(states, 64 if few else 128, 32)
    return _sizes(states, 32 if not few else 16 if cut else 8, 16)


def backward_sizes(states: int, paths: int, few: bool, cut: bool) -> Sizes:
    """As ``forward_sizes``, of the backward kernel."""
    if states == 1:
        return _sizes(states, 64, 8, TOGETHER=1, CHUNK=4)
    together = 2 if few and paths % 2 == 0 else 1
    return _sizes(states, 16 if few else 32, 16, TOGETHER=together, CHUNK=2)


def _multiprocessors(device: torch.device) -> int:
    if device.type != 'cuda':
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@lru_cache(maxsize=256)
def _order(options: Options, device: torch.device) -> Tensor:
    """The tokens that the paths visit, of the type that offsets have."""
    # The cache outlives any inference_mode block the first call may be in.
    with torch.inference_mode(False):
        return options.tables(device).order.int()


def _check_offsets(*tensors: Tensor) -> None:
    """Within an image the kernels compute them in 32 bits.

    Raises:
        ValueError: If an image reaches further.
    """
    for t in tensors:
        steps = zip(t.shape[1:], t.stride()[1:])
        if sum((size - 1) * stride for size, stride in steps) >= 2**31:
            raise ValueError(
                f'an image of a tensor of shape {tuple(t.shape)} reaches over '
                '2^31 numbers, which is too far for the scan backend '
                "'triton': take smaller images, or backend='torch'"
            )


def _sum_slots(t: Tensor) -> Tensor:
    """Of ``_Launch.per_token``."""
    return t[:, 0] if t.shape[1] == 1 or t.stride(1) == 0 else t.sum(1)


class _Launch:
    """What the launches for one scan have in common.

    Paths that share their parameters at every step are walked together, as
    one group.
    """

    def __init__(
        self,
        tensors: Tensors,
        options: Options,
        sizes_of: Callable[[int, int, bool, bool], Sizes],
    ):
        x, delta, A, B, C, D, theta, bias = tensors
        self.batch, self.length, self.channels = x.shape
        self.num_paths, self.own = len(options.paths), len(A)
        is_double = x.dtype == torch.float64
        self.dtype = torch.float64 if is_double else torch.float32
        follow = options.param_order == 'path'
        self.groups = self.num_paths if follow or self.own > 1 else 1

        multiprocessors = _multiprocessors(x.device)
        rows = max(1, self.batch * self.groups)
        few = rows * triton.cdiv(self.channels, 32) < FEW * multiprocessors
        cut = self.length >= CUT_FROM
        paths = self.num_paths // self.groups
        sizes = sizes_of(A.shape[2], paths, few, cut)
        self.tiles = triton.cdiv(self.channels, sizes.constants['BE'])
        segments = 1
        if cut:
            wanted = sizes.programs * multiprocessors // (rows * self.tiles)
            segments = max(1, min(wanted, self.length // LEAST_STEPS))
        self.steps = triton.cdiv(self.length, segments)
        self.segments = triton.cdiv(self.length, self.steps)
        self.grid = self.batch * self.tiles, self.groups, self.segments
        # Programs do not add to the tokens of others.
        self.adds = self.segments == self.groups == 1 < self.num_paths
        self.constants = dict(
            sizes.constants,
            PATHS=paths,
            FOLLOW=follow,
            SOFTPLUS=options.delta_softplus,
            SPLIT=self.segments > 1,
        )

        # Steps follow the paths, or their tokens.
        tables = options.tables(x.device)
        self.direction = tables.direction
        if follow:
            self.direction = self.direction.gather(1, tables.inverse)
        if theta is not None:
            B = B.to(self.dtype) + theta[self.direction.t()]
        self.x = x
        self.delta = delta.expand(-1, -1, self.groups, -1)
        self.A = A.contiguous().expand(self.groups, -1, -1)
        self.B = B.expand(-1, -1, self.num_paths, -1)
        self.C = C.expand(-1, -1, self.groups, -1)
        self.D, self.bias = (
            None if t is None else t.contiguous().expand(self.groups, -1)
            for t in (D, bias)
        )
        # of D and the bias, from path to path
        self.s_D = self.channels if self.own > 1 else 0
        self.order = _order(options, x.device)
        _check_offsets(self.x, self.delta, self.B, self.C)

    def new(self, *shape: int) -> Tensor:
        return self.x.new_empty(shape, dtype=self.dtype)

    def per_token(self, slots: int, adds: bool) -> Tensor:
        """A slot for each path or group, all the same one if these add."""
        memory = self.new(
            self.batch, 1 if adds else slots, self.length, self.channels
        )
        _check_offsets(memory)
        return memory.zero_().expand(-1, slots, -1, -1) if adds else memory

    def ends(self, grad_y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the segments make of zero; see ``walk_kernel``."""
        parts = self.segments if self.segments > 1 else 0
        states = self.A.shape[2]
        shape = parts, self.batch, self.num_paths, self.channels, states
        ends = self.new(*shape)
        sums = self.new(parts, self.batch, self.groups, self.channels)
        if parts and grad_y is None:
            self.walk('ends', self.x, self.B, ends, sums)
        elif parts:
            paths = self.num_paths // self.groups
            C = self.C.repeat_interleave(paths, 2) if paths > 1 else self.C
            self.walk('grad_ends', grad_y, C, ends, sums)
        return ends, sums

    def walk(
        self, what: str, x: Tensor, B: Tensor, ends: Tensor, sums: Tensor,
        y: Tensor | None = None,
    ) -> None:  # fmt: skip
        constants = {
            k: v for k, v in self.constants.items()
            if k not in ('TOGETHER', 'CHUNK')
        }  # fmt: skip
        y = ends if y is None else y
        walk_kernel[self.grid](
            x, self.delta, self.A, B, self.C, self.D, self.bias, self.order,
            ends, sums, y, self.length, self.channels, self.steps,
            x.stride(), self.delta.stride(), self.A.stride(0), B.stride(),
            self.C.stride(), self.s_D, y.stride()[:3],
            WHAT=what, ADD=self.adds, **constants,
        )  # fmt: skip


def scan_forward(tensors: Tensors, options: Options) -> Tensor:
    """Forward pass; inputs of any floating dtypes and strides.

    Returns:
        Tensor: ``y`` in float32, or float64 if ``x`` is.
    """
    scan = _Launch(tensors, options, forward_sizes)
    y = scan.per_token(scan.num_paths, scan.adds)
    if scan.batch:
        with torch.cuda.device_of(y):
            scan.walk('y', scan.x, scan.B, *scan.ends(), y)
    return _sum_slots(y)


def scan_backward(
    grad_y: Tensor, tensors: Tensors, options: Options
) -> Tensors:
    """Gradients, None where there was no tensor."""
    scan = _Launch(tensors, options, backward_sizes)
    _check_offsets(grad_y)
    batch, length, channels = scan.batch, scan.length, scan.channels
    states, own, num_paths = scan.A.shape[2], scan.own, scan.num_paths
    groups, new = scan.groups, scan.new
    sizes = scan.constants
    parts = sizes['PATHS'] // sizes['TOGETHER']
    grad_x = scan.per_token(num_paths, scan.adds)
    grad_delta = scan.per_token(groups, adds=parts > 1)
    grad_A = new(scan.segments, batch, groups, channels, states)
    grad_D = new(scan.segments, batch, groups, channels)
    grad_B = new(scan.tiles, batch, num_paths, length, states)
    grad_C = new(scan.tiles, batch, groups * parts, length, states)
    if batch:
        with torch.cuda.device_of(grad_y):
            ends, sums = scan.ends()
            grad_ends, _ = scan.ends(grad_y)
            chunks = triton.cdiv(scan.steps, sizes['CHUNK'])
            scratch = new(
                scan.segments * batch * scan.tiles * num_paths,
                chunks * sizes['BE'] * triton.next_power_of_2(states),
            )
            backward_kernel[scan.grid](
                grad_y, scan.x, scan.delta, scan.A, scan.B, scan.C, scan.D,
                scan.bias, scan.order, ends, sums, grad_ends, scratch, grad_x,
                grad_delta, grad_A, grad_B, grad_C, grad_D, length, channels,
                scan.steps, grad_y.stride(), scan.x.stride(),
                scan.delta.stride(), scan.A.stride(0), scan.B.stride(),
                scan.C.stride(), scan.s_D, grad_x.stride()[:2],
                length * channels, ADD=scan.adds, **sizes,
            )  # fmt: skip

    def of_groups(grad: Tensor) -> Tensor:
        """Of the parameters of each path, or of all."""
        return grad if own > 1 else grad.sum(0, keepdim=True)

    grad_B, grad_C = grad_B.sum(0), grad_C.sum(0)
    grad_theta = None
    if tensors.direction_B is not None:
        places = torch.arange(NUM_DIRECTIONS, device=grad_y.device)
        here = scan.direction == places[:, None, None]
        steps = grad_B.sum(0).flatten(0, 1)
        grad_theta = here.flatten(1).to(steps) @ steps
    if own == 1:
        grad_delta, grad_B, grad_C = (
            t.sum(1, keepdim=True) for t in (grad_delta, grad_B, grad_C)
        )
    grad_delta = grad_delta.transpose(1, 2)
    return Tensors(
        _sum_slots(grad_x),
        grad_delta,
        of_groups(grad_A.sum((0, 1))),
        grad_B.transpose(1, 2),
        grad_C.transpose(1, 2),
        None if tensors.D is None else of_groups(grad_D.sum((0, 1))),
        grad_theta,
        None if tensors.delta_bias is None else grad_delta.sum((0, 1)),
    )

"""What a scan is given: tensors and options, and what they may be."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .scan_paths import NUM_DIRECTIONS, PATHS, ScanPaths, scan_paths

PARAM_ORDERS = ('raster', 'path')
_OPTIONAL = ('D', 'direction_B', 'delta_bias')


class Tensors(NamedTuple):
    """The tensors of a scan.

    L = height * width tokens in raster order; P is the number of paths, or 1
    where they share a parameter.

    Attributes:
        x: Tokens, (batch, L, channels).
        delta: Step sizes, or what softplus makes them of, (batch, L, P,
            channels).
        A: Negative decay rates, (P, channels, state).
        B: Input projections, (batch, L, P, state).
        C: Output projections, shape of ``B``.
        D: Skip connection, (P, channels); it enters once for each path.
        direction_B: theta, added to ``B`` by the direction of a step, (5,
            state): begin, right, left, up, down.
        delta_bias: Added to ``delta``, before softplus, (P, channels).
    """

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    direction_B: Tensor | None = None
    delta_bias: Tensor | None = None

    def to(self, *args: torch.device | str | torch.dtype) -> 'Tensors':
        return Tensors(*(None if t is None else t.to(*args) for t in self))


class Options(NamedTuple):
    """How a map is scanned; see ``path_scan``."""

    height: int
    width: int
    paths: tuple[str, ...] = PATHS
    snake: bool = True
    param_order: str = 'raster'
    delta_softplus: bool = False

    def tables(self, device: torch.device) -> ScanPaths:
        """The index tables of the paths."""
        return scan_paths(
            self.height, self.width, device, self.paths, self.snake
        )


def from_arguments(arguments: dict) -> tuple[Tensors, Options]:
    """What ``path_scan`` makes of its arguments, less the backend."""
    tensors = {k: v for k, v in arguments.items() if k in Tensors._fields}
    options = {k: v for k, v in arguments.items() if k not in tensors}
    return Tensors(**tensors), Options(**options)


def step_sizes(
    tensors: Tensors,
    options: Options,
    softplus: Callable[[Tensor], Tensor] = F.softplus,
) -> Tensor:
    """Delta with what the options make of it, shape of ``tensors.delta``."""
    delta = tensors.delta
    if tensors.delta_bias is not None:
        delta = delta + tensors.delta_bias
    return softplus(delta) if options.delta_softplus else delta


def share(tensors: Tensors) -> Tensors:
    """Insert the axis of paths into tensors that have none."""
    x, delta, A, B, C, D, direction_B, delta_bias = tensors
    return Tensors(
        x,
        delta[:, :, None],
        A[None],
        B[:, :, None],
        C[:, :, None],
        None if D is None else D[None],
        direction_B,
        None if delta_bias is None else delta_bias[None],
    )


def check_options(options: Options) -> None:
    """Look whether there are such options.

    Raises:
        ValueError: If not.
    """
    if options.param_order not in PARAM_ORDERS:
        raise ValueError(
            f'param_order must be one of {PARAM_ORDERS}, got '
            f'{options.param_order!r}'
        )
    unknown = [path for path in options.paths if path not in PATHS]
    if unknown or not options.paths:
        raise ValueError(
            f'paths must be some of {PATHS}, got {tuple(options.paths)}'
        )


def check_tensors(
    tensors: Tensors, options: Options, with_paths: bool
) -> None:
    """Compare kinds, shapes and devices.

    Args:
        tensors: As they come.
        options: Of the scan.
        with_paths: Whether the parameters have the axis of paths.

    Raises:
        ValueError: If something does not fit; it names the tensor.
    """
    for name, tensor in zip(Tensors._fields, tensors):
        if tensor is None and name in _OPTIONAL:
            continue
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = getattr(tensor, 'dtype', type(tensor).__name__)
            raise ValueError(
                f'{name} must be a tensor of real numbers (float32 or '
                f'another floating dtype), got {kind}'
            )
    x, delta, A = tensors[:3]
    height, width = options[:2]
    if (
        x.dim() != 3
        or x.shape[1] != height * width
        or 0 in (x.shape[1], x.shape[2])
    ):
        raise ValueError(
            f'x must have shape (batch, height * width, channels) with '
            f'height * width = {height} * {width} > 0 and channels > 0, got '
            f'{tuple(x.shape)}'
        )
    batch, length, channels = x.shape
    num_paths, own = len(options.paths), ()
    if with_paths:
        if delta.dim() != 4 or delta.shape[2] not in (1, num_paths):
            raise ValueError(
                f'delta must have shape (batch, height * width, paths, '
                f'channels) with 1 or {num_paths} paths, got '
                f'{tuple(delta.shape)}'
            )
        own = (delta.shape[2],)
    if A.dim() != 2 + with_paths or A.shape[:-1] != (*own, channels):
        raise ValueError(
            f'A must have shape ({"paths, " * with_paths}channels, state) = '
            f'({", ".join(map(str, (*own, channels)))}, state), got '
            f'{tuple(A.shape)}'
        )
    state = A.shape[-1]
    expected = dict(
        delta=(batch, length, *own, channels),
        A=A.shape,
        B=(batch, length, *own, state),
        C=(batch, length, *own, state),
        D=(*own, channels),
        direction_B=(NUM_DIRECTIONS, state),
        delta_bias=(*own, channels),
    )
    for name, shape in expected.items():
        tensor = getattr(tensors, name)
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(
                f'{name} must have shape {tuple(shape)}, got '
                f'{tuple(tensor.shape)}'
            )
        if tensor.device != x.device:
            raise ValueError(f'{name} is on {tensor.device}, x on {x.device}')

"""What the scan of one mixer does: read-outs and decays of the paths."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..models import MultiDirectionalMamba
from ..ops.reference import reference_readouts
from ..ops.scan_inputs import Options, Tensors, share
from ..ops.scan_paths import PATHS


class Scan(NamedTuple):
    """One scan as it happened; see ``vcmamba_mm.ops.path_scan``."""

    tensors: Tensors
    options: Options


def mixers(model: nn.Module) -> list[MultiDirectionalMamba]:
    """The mixers of a model, in the order of the data."""
    return [m for m in model.modules() if isinstance(m, MultiDirectionalMamba)]


@torch.no_grad()
def record_scan(model: nn.Module, inputs: Tensor, layer: int = -1) -> Scan:
    """Run a backbone and keep the inputs of one scan.

    Args:
        model: Backbone, in eval mode.
        inputs: Normalized pictures, (batch, channels, height, width).
        layer: Which of the model's mixers; negative ones count from the end.

    Raises:
        ValueError: If the model has no such mixer.
    """
    found = mixers(model)
    if not -len(found) <= layer < len(found):
        raise ValueError(
            f'the model has {len(found)} mixers, no number {layer}'
        )
    mixer, maps = found[layer], []
    handle = mixer.register_forward_pre_hook(
        lambda _, args: maps.append(args[0])
    )
    try:
        model(inputs)
    finally:
        handle.remove()
    (x,) = maps
    options = Options(
        *x.shape[2:],
        PATHS[: mixer.num_paths],
        mixer.snake,
        mixer.param_order,
    )
    return Scan(share(Tensors(*mixer.scan_inputs(x))), options)


@torch.no_grad()
def direction_activations(scan: Scan) -> Tensor:
    """How strongly each path answers at each token.

    Returns:
        Tensor: Mean over channels of the magnitude of what a path reads out,
        shape (batch, num_paths, height, width). The paths' read-outs, before
        this mean, sum to the output of the scan.
    """
    tensors, options = scan
    readouts = reference_readouts(tensors.to(torch.float64), options)
    maps = readouts.abs().mean(-1).transpose(0, 1)
    return maps.unflatten(2, options[:2])


@torch.no_grad()
def decay_maps(scan: Scan, row: int, column: int) -> Tensor:
    """How much of a token is left when a path reaches the tokens after it.

    What the token at position t of a path writes into the state h has become
    the fraction

        exp(A delta_{t+1}) exp(A delta_{t+2}) ... exp(A delta_j)

    of itself at position j; a path that has not visited the token yet holds
    nothing of it.

    Args:
        scan: Of one picture or several.
        row: Of the token.
        column: Of the token.

    Returns:
        Tensor: Mean of the fraction over channels and states, float64, shape
        (batch, num_paths, height, width): 1 at the token, 0 before it.

    Raises:
        ValueError: If there is no such token.
    """
    tensors, options = scan
    height, width = options[:2]
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(
            f'there is no token ({row}, {column}) on a map of '
            f'{height} x {width}: rows and columns count from 0'
        )
    # paths of a scan that is looked at share their parameters
    delta, A = tensors.delta[:, :, 0].double(), tensors.A[0].double()
    paths = options.tables(delta.device)
    maps = delta.new_zeros(len(delta), len(options.paths), height * width)
    for p, (order, inverse, _) in enumerate(zip(*paths)):
        start = int(inverse[row * width + column])
        steps = delta if options.param_order == 'raster' else delta[:, order]
        passed = torch.zeros_like(steps[:, 0])  # sum of delta since the token
        for i in range(start, len(order)):
            if i > start:
                passed = passed + steps[:, i]
            left = torch.exp(passed[..., None] * A)
            maps[:, p, order[i]] = left.mean((1, 2))
    return maps.unflatten(2, (height, width))


def memory_length(maps: Tensor, share: float = 0.5) -> Tensor:
    """How many tokens of a path still hold ``share`` of the chosen token.

    Args:
        maps: From ``decay_maps``.
        share: From 0 to 1.

    Returns:
        Tensor: Number of tokens by path, the chosen one not counted, shape
        (batch, num_paths).
    """
    return (maps >= share).sum((2, 3)) - 1

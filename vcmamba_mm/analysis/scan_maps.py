"""What the scan of one mixer does: read-outs and decays of the paths."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..models.layers import ScanMixer
from ..ops.reference import reference_readouts
from ..ops.scan_inputs import (
    Options,
    Tensors,
    from_arguments,
    step_sizes,
)
from .tokens import Windows, pick, record


class Scan(NamedTuple):
    """One scan as it happened; see ``vcmamba_mm.ops.path_scan``."""

    tensors: Tensors  # of all windows, if the scan is one of windows
    options: Options  # of one of them
    windows: Windows


def path_names(paths: tuple[str, ...]) -> list[str]:
    """Names of the paths of a scan for figures: numbered, in words."""
    names = []
    for i, path in enumerate(paths):
        line, _, reverse = path.partition('_')
        words = f'along the {line}s'
        if reverse and line in paths[:i]:
            words = f'path {paths.index(line) + 1} reversed'
        elif reverse:
            words += ', reversed'
        names.append(f'{i + 1}: {words}')
    return names


def mixers(model: nn.Module) -> list[ScanMixer]:
    """The mixers of a model that scan, in the order of the data."""
    return [m for m in model.modules() if isinstance(m, ScanMixer)]


@torch.no_grad()
def record_scan(model: nn.Module, inputs: Tensor, layer: int = -1) -> Scan:
    """Run a backbone and keep the inputs of one scan.

    Args:
        model: Backbone, in eval mode.
        inputs: Normalized images, (batch, channels, height, width).
        layer: Which of the model's mixers; negative ones count from the end.

    Raises:
        ValueError: If the model has no such mixer, or it does not run.
    """
    mixer = pick(mixers(model), layer, 'mixers')
    x, windows = record(model, inputs, mixer)
    tensors, options = from_arguments(mixer.scan_inputs(x))
    return Scan(tensors, options, windows or Windows.of(*options[:2]))


@torch.no_grad()
def direction_activations(scan: Scan) -> Tensor:
    """How strongly each path answers at each token.

    Returns:
        Tensor: Mean over channels of the magnitude of what a path reads out,
        shape (batch, num_paths, height, width). The paths' read-outs, before
        this mean, sum to the output of the scan.
    """
    tensors, options, windows = scan
    readouts = reference_readouts(tensors.to(torch.float64), options)
    return windows.on_map(readouts.abs().mean(-1).transpose(0, 1))[0]


@torch.no_grad()
def decay_maps(scan: Scan, row: int, column: int) -> Tensor:
    """How much of a token is left when a path reaches the tokens after it.

    What the token at position t of a path writes into the state h has become
    the fraction

        exp(A delta_{t+1}) exp(A delta_{t+2}) ... exp(A delta_j)

    of itself at position j, with the path's own A and delta where it has
    them; a path that has not visited the token yet holds nothing of it, nor
    does the path of another window.

    Args:
        scan: Of one image or several.
        row: Of the token.
        column: Of the token.

    Returns:
        Tensor: Mean of the fraction over channels and states, float64, shape
        (batch, num_paths, height, width): 1 at the token, 0 before it.

    Raises:
        ValueError: If there is no such token.
    """
    tensors, options, windows = scan
    window, place = windows.find(row, column)
    its = slice(window, None, len(windows.numbers))  # in each picture
    tensors = tensors.to(torch.float64)
    delta, A = step_sizes(tensors, options), tensors.A
    paths = options.tables(delta.device)
    maps = delta.new_zeros(len(delta), len(options.paths), delta.shape[1])
    for p, (order, inverse, _) in enumerate(zip(*paths)):
        start = int(inverse[place])
        own = p if len(A) > 1 else 0
        steps = delta[its, :, own]
        if options.param_order == 'path':
            steps = steps[:, order]
        passed = torch.zeros_like(steps[:, 0])  # sum of delta since the token
        for i in range(start, len(order)):
            if i > start:
                passed = passed + steps[:, i]
            left = torch.exp(passed[..., None] * A[own])
            maps[its, p, order[i]] = left.mean((1, 2))
    return windows.on_map(maps)[0]


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

"""Layers whose maps may have any size in an exported file."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.utils import _pair

from ..models.mambavision.blocks import WindowBlocks


class _Upsample(nn.Module):
    """mmseg's, whose sizes go through floats and so cannot be symbolic."""

    def __init__(self, upsample: nn.Module):
        super().__init__()
        self.factor = int(upsample.scale_factor)
        self.mode = upsample.mode
        self.align_corners = upsample.align_corners

    def forward(self, x: Tensor) -> Tensor:
        size = [self.factor * length for length in x.shape[2:]]
        return F.interpolate(
            x, size, mode=self.mode, align_corners=self.align_corners
        )


class AdaptiveAvgPool2d(nn.Module):
    """PyTorch's, which ONNX has not for maps whose sizes vary."""

    def __init__(self, output_size: tuple[int, int]):
        super().__init__()
        self.output_size = output_size

    @staticmethod
    def _shares(length: int, count: int, x: Tensor) -> Tensor:
        """Of the places of a line in each of its windows, (count, length)."""
        number = torch.arange(count, device=x.device)[:, None]
        begin = number * length // count
        end = ((number + 1) * length + count - 1) // count
        place = torch.arange(length, device=x.device)
        inside = (begin <= place) & (place < end)
        return inside.to(x.dtype) / (end - begin).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (
            self._shares(length, count, x)
            for length, count in zip(x.shape[2:], self.output_size)
        )
        return rows @ x @ columns.mT


class _WindowBlocks(WindowBlocks):
    """Windows whose tokens are gathered one by one.

    A dimension for the rows of windows, or for their columns, would be taken
    for one of several: torch.export treats all sizes but 0 and 1 alike.
    """

    def forward(self, x: Tensor) -> Tensor:
        size, (batch, _, height, width) = self.window_size, x.shape
        rows, columns = (height + size - 1) // size, (width + size - 1) // size
        # Where in the map each token of the windows stands. Remainders by
        # sizes of maps are written out: the export to ONNX knows none.
        token = torch.arange(rows * columns * size**2, device=x.device)
        window = token // size**2
        window_row = window // columns
        window_column = window - columns * window_row
        row = size * window_row + token // size % size
        column = size * window_column + token % size
        # One row and one column of zeros serve for all the padding.
        place = row.clamp(max=height) * (width + 1) + column.clamp(max=width)
        padded = F.pad(x, (0, 1, 0, 1)).flatten(2).mT
        tokens = padded.index_select(1, place).flatten(0, 1)
        tokens = tokens.unflatten(0, (-1, size**2))

        tokens = super(WindowBlocks, self).forward(tokens)

        # Which of the tokens stands at each place of the map.
        place = torch.arange(height * width, device=x.device)
        row = place // width
        column = place - width * row
        window = row // size * columns + column // size
        token = size**2 * window + size * (row % size) + column % size
        tokens = tokens.flatten(0, 1).unflatten(0, (batch, -1))
        return tokens.index_select(1, token).mT.reshape(x.shape)


def free_windows(model: nn.Module) -> None:
    """Let windows not ask for the sizes of maps, in place."""
    for module in model.modules():
        if isinstance(module, WindowBlocks) and module.window_size:
            module.__class__ = _WindowBlocks


def free_heads(segmenter: nn.Module) -> None:
    """Let the code of mmseg's heads not ask for the sizes of maps."""
    from mmseg.models.utils import Upsample

    for parent in list(segmenter.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Upsample) and not child.size:
                setattr(parent, name, _Upsample(child))
            elif isinstance(child, nn.AdaptiveAvgPool2d):
                size = _pair(child.output_size)
                if size != (1, 1):  # of that ONNX has the mean
                    setattr(parent, name, AdaptiveAvgPool2d(size))

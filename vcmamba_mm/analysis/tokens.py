"""What a layer of a backbone is given, and where its tokens are on the map."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..models.mambavision.blocks import WindowBlocks, to_windows

T = TypeVar('T')


class Windows(NamedTuple):
    """The windows of a map; a map that has none is one window.

    Attributes:
        numbers: Of each token of each window, shape (windows, tokens): from
            1, row by row of the map, and 0 where the map is padded.
        height: Of the map.
        width: Of the map.
    """

    numbers: Tensor
    height: int
    width: int

    @classmethod
    def of(cls, height: int, width: int, size: int | None = None) -> 'Windows':
        """Windows of ``size`` x ``size`` tokens, or one that is the map."""
        numbers = torch.arange(1, height * width + 1).view(1, 1, height, width)
        return cls(to_windows(numbers, size)[..., 0], height, width)

    def find(self, row: int, column: int) -> tuple[int, int]:
        """The window of a token, and its place in the window.

        Raises:
            ValueError: If there is no such token.
        """
        if not (0 <= row < self.height and 0 <= column < self.width):
            raise ValueError(
                f'there is no token ({row}, {column}) on a map of '
                f'{self.height} x {self.width}: rows and columns count from 0'
            )
        number = row * self.width + column + 1
        window, place = (self.numbers == number).nonzero()[0].tolist()
        return window, place

    def on_map(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put what the tokens of the windows have to their places.

        Args:
            values: Shape (batch x windows, K, tokens).

        Returns:
            tuple: The maps (batch, K, height, width), and the sum of what is
            on padded places, (batch, K).
        """
        values = values.unflatten(0, (-1, len(self.numbers)))
        values = values.transpose(1, 2).flatten(2)
        places = values.new_zeros(
            *values.shape[:2], 1 + self.height * self.width
        )
        numbers = self.numbers.flatten().to(values.device)
        places.index_add_(2, numbers, values)
        maps = places[..., 1:].unflatten(2, (self.height, self.width))
        return maps, places[..., 0]


def pick(found: Sequence[T], layer: int, what: str) -> T:
    """One of some layers; negative numbers count from the end.

    Raises:
        ValueError: If there is no such layer.
    """
    if not -len(found) <= layer < len(found):
        raise ValueError(
            f'the model has {len(found)} {what}, no number {layer}'
        )
    return found[layer]


@torch.no_grad()
def record(
    model: nn.Module, inputs: Tensor, layer: nn.Module
) -> tuple[Tensor, Windows | None]:
    """Run a backbone and keep what one of its layers is given.

    Args:
        model: Backbone, in eval mode.
        inputs: Normalized images, (batch, channels, height, width).
        layer: Inside the backbone.

    Returns:
        tuple: The input of the layer, and the windows that its tokens are of;
        None where the backbone makes no windows.

    Raises:
        ValueError: If the layer does not run.
    """
    around = [
        blocks
        for blocks in model.modules()
        if isinstance(blocks, WindowBlocks) and layer in set(blocks.modules())
    ]
    given = []
    handles = [
        module.register_forward_pre_hook(lambda _, args: given.append(args[0]))
        for module in (*around, layer)
    ]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not given:
        names = {module: name for name, module in model.named_modules()}
        raise ValueError(
            f'{names[layer]} does not run: it comes after the last of the '
            "backbone's out_indices. Choose another layer, or out_indices "
            'with its stage'
        )
    windows = None
    if around:
        windows = Windows.of(*given[0].shape[2:], around[0].window_size)
    return given[-1], windows

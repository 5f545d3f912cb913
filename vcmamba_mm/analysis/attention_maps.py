"""What one token attends to."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..models.mambavision.mixers import Attention
from .tokens import pick, record


class AttentionMap(NamedTuple):
    """The weights that one token gives to the tokens of its window.

    Attributes:
        maps: By head, shape (batch, heads, height, width), float64; 0 outside
            the window.
        padding: What falls on padded places, (batch, heads): with the sum of
            the maps it makes 1.
        token: Row and column of the token on the map, from 0.
        window: First row and column of the window's part of the map, and
            those after its last.
    """

    maps: Tensor
    padding: Tensor
    token: tuple[int, int]
    window: tuple[int, int, int, int]


def attentions(model: nn.Module) -> list[Attention]:
    """The layers of a model that attend, in the order of the data."""
    return [m for m in model.modules() if isinstance(m, Attention)]


@torch.no_grad()
def attention_map(
    model: nn.Module, inputs: Tensor, pixel: tuple[int, int], layer: int = -1
) -> AttentionMap:
    """softmax(Q K^T / sqrt(d)) of one layer, for the token of a pixel.

    Args:
        model: Backbone, in eval mode.
        inputs: Normalized images, (batch, channels, height, width).
        pixel: Row and column, from 0. Its token is the one at that height
            and width of the map, relative to its size.
        layer: Which of the layers that attend; negative ones count from the
            end.

    Raises:
        ValueError: If there is no such layer or pixel, or the layer does not
            run.
    """
    size = inputs.shape[2:]
    if not all(0 <= place < n for place, n in zip(pixel, size)):
        raise ValueError(
            f'there is no pixel {tuple(pixel)} in an image of {size[0]} x '
            f'{size[1]} pixels: rows and columns count from 0'
        )
    attention = pick(attentions(model), layer, 'attention layers')
    x, windows = record(model, inputs, attention)
    row, column = (
        place * tokens // n
        for place, tokens, n in zip(pixel, windows[1:], size)
    )
    window, place = windows.find(row, column)
    # Of its window alone: all that attend to all may not fit into memory.
    q, k, _ = attention.split_heads(x[window :: len(windows.numbers)])
    q, k = q[:, :, place, None].double(), k.double()
    scores = q @ k.mT / q.shape[-1] ** 0.5
    weights = scores.softmax(-1)[:, :, 0]
    its = windows._replace(numbers=windows.numbers[window, None])
    corners = (its.numbers[its.numbers > 0] - 1).aminmax()
    first, last = (divmod(int(n), windows.width) for n in corners)
    return AttentionMap(
        *its.on_map(weights),
        (row, column),
        (*first, last[0] + 1, last[1] + 1),
    )

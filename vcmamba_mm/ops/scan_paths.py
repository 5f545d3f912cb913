"""The four snake paths along which a feature map is scanned."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

NUM_PATHS = 4
# Direction of the step into a position; a path's first position is BEGIN.
BEGIN, RIGHT, LEFT, UP, DOWN = range(5)
NUM_DIRECTIONS = 5


class SnakePaths(NamedTuple):
    """Index tables of the four paths over ``height * width`` tokens.

    Attributes:
        order: Raster index of the token visited at each step, int64,
            shape (4, height * width).
        inverse: Step at which each raster token is visited, int64,
            shape (4, height * width).
        direction: Direction of the step into each position of the path,
            int64, shape (4, height * width): 0 begin, 1 right, 2 left, 3 up,
            4 down.
    """

    order: Tensor
    inverse: Tensor
    direction: Tensor


def make_snake_paths(
    height: int, width: int, device: torch.device | str = 'cpu'
) -> SnakePaths:
    """``snake_paths`` anew, from sizes that may be symbolic."""
    step = torch.arange(height * width, device=device)

    def divide(place: Tensor, length: int) -> tuple[Tensor, Tensor]:
        line = place // length
        return line, place - line * length  # ONNX export knows no `%` here

    def back_and_forth(line: Tensor, place: Tensor, length: int) -> Tensor:
        return torch.where(line % 2 == 0, place, length - 1 - place)

    row, column = divide(step, width)  # of raster token `step`
    down = row * width + back_and_forth(row, column, width)
    right_inverse = column * height + back_and_forth(column, row, height)
    column, row = divide(step, height)
    right = back_and_forth(column, row, height) * width + column
    order = torch.stack([down, down.flip(0), right, right.flip(0)])
    last = height * width - 1
    inverse = torch.stack(  # the row snake is its own inverse
        [down, last - down, right_inverse, last - right_inverse]
    )

    row_step, column_step = (t.diff() for t in divide(order, width))
    direction = torch.where(
        row_step == 0,
        torch.where(column_step > 0, RIGHT, LEFT),
        torch.where(row_step < 0, UP, DOWN),
    )
    direction = torch.nn.functional.pad(direction, (1, 0), value=BEGIN)
    return SnakePaths(order, inverse, direction)


@lru_cache(maxsize=256)
def snake_paths(
    height: int, width: int, device: torch.device | str = 'cpu'
) -> SnakePaths:
    """Make the four paths of VCMamba (arXiv 2509.04669, fig. 3).

    Path 1 is the row snake from the top left, path 3 the column snake from
    the top left; paths 2 and 4 are these two reversed. The tables are cached
    per (height, width, device) and must not be written to.

    Args:
        height: Rows of the feature map.
        width: Columns of the feature map.
        device: Where the tables live.

    Returns:
        SnakePaths: The index tables.
    """
    # The cache outlives any inference_mode block the first call may be in.
    with torch.inference_mode(False):
        return make_snake_paths(height, width, device)

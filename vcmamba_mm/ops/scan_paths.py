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
        raster = torch.arange(height * width, device=device)
        row_snake = raster.view(height, width).clone()
        row_snake[1::2] = row_snake[1::2].flip(1)
        column_snake = raster.view(height, width).t().clone()
        column_snake[1::2] = column_snake[1::2].flip(1)

        down, right = row_snake.flatten(), column_snake.flatten()
        order = torch.stack([down, down.flip(0), right, right.flip(0)])

        row_step = (order // width).diff()
        column_step = (order % width).diff()
        direction = torch.full_like(order, BEGIN)
        direction[:, 1:] = torch.where(
            row_step == 0,
            torch.where(column_step > 0, RIGHT, LEFT),
            torch.where(row_step < 0, UP, DOWN),
        )
        return SnakePaths(order, order.argsort(dim=1), direction)

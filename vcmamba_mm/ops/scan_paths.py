"""The paths along which a feature map is scanned."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

PATHS = ('row', 'row_reverse', 'column', 'column_reverse')
NUM_PATHS = len(PATHS)
# Direction of the step into a position; a path's first position is BEGIN.
BEGIN, RIGHT, LEFT, UP, DOWN = range(5)
NUM_DIRECTIONS = 5


class ScanPaths(NamedTuple):
    """Index tables of the paths over ``height * width`` tokens.

    Attributes:
        order: Raster index of the token visited at each step, int64,
            shape (paths, height * width).
        inverse: Step at which each raster token is visited, int64, same
            shape.
        direction: Direction of the step into each position of the path,
            int64, same shape: 0 begin, 1 right, 2 left, 3 up, 4 down.
    """

    order: Tensor
    inverse: Tensor
    direction: Tensor


def make_scan_paths(
    height: int,
    width: int,
    device: torch.device | str = 'cpu',
    paths: tuple[str, ...] = PATHS,
    snake: bool = True,
) -> ScanPaths:
    """``scan_paths`` anew, from sizes that may be symbolic."""
    step = torch.arange(height * width, device=device)

    def divide(place: Tensor, length: int) -> tuple[Tensor, Tensor]:
        line = place // length
        return line, place - line * length  # ONNX export knows no `%` here

    def turn(line: Tensor, place: Tensor, length: int) -> Tensor:
        """Place in a line, every second of which a snake runs backwards."""
        if not snake:
            return place
        return torch.where(line % 2 == 0, place, length - 1 - place)

    row, column = divide(step, width)  # of raster token `step`
    down = row * width + turn(row, column, width)
    right_inverse = column * height + turn(column, row, height)
    column, row = divide(step, height)
    right = turn(column, row, height) * width + column
    order = torch.stack([down, down.flip(0), right, right.flip(0)])
    last = height * width - 1
    inverse = torch.stack(  # the path through the rows is its own inverse
        [down, last - down, right_inverse, last - right_inverse]
    )

    row_step, column_step = (t.diff() for t in divide(order, width))
    # From line to line a path steps in the direction of the lines, also where
    # it jumps back to the beginning of the next one.
    sideways = torch.cat([row_step[:2] == 0, column_step[2:] != 0])
    direction = torch.where(
        sideways,
        torch.where(column_step > 0, RIGHT, LEFT),
        torch.where(row_step < 0, UP, DOWN),
    )
    direction = torch.nn.functional.pad(direction, (1, 0), value=BEGIN)
    tables = (order, inverse, direction)
    if paths == PATHS:
        return ScanPaths(*tables)
    numbers = [PATHS.index(path) for path in paths]
    return ScanPaths(*(torch.stack([t[n] for n in numbers]) for t in tables))


@lru_cache(maxsize=256)
def scan_paths(
    height: int,
    width: int,
    device: torch.device | str = 'cpu',
    paths: tuple[str, ...] = PATHS,
    snake: bool = True,
) -> ScanPaths:
    """Make the four paths of VCMamba (arXiv 2509.04669, fig. 3), or others.

    'row' runs through the rows from the top left, 'column' through the
    columns; the others are these two reversed. The tables are cached and must
    not be written to.

    Args:
        height: Rows of the feature map.
        width: Columns of the feature map.
        device: Where the tables live.
        paths: Names from ``PATHS``, in any order.
        snake: False lets every row run from left to right, and every column
            downwards; the jump to the next line has the direction from line
            to line, down or right.

    Returns:
        ScanPaths: The index tables.
    """
    # The cache outlives any inference_mode block the first call may be in.
    with torch.inference_mode(False):
        return make_scan_paths(height, width, device, paths, snake)

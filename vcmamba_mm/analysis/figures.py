"""How the figures of the analysis look and are written."""

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from ..files import write_file

DPI = 150


def new_figure(
    rows: int, columns: int, cell: tuple[float, float] = (3.2, 3.2), **kwargs
) -> tuple[Figure, list[list[Axes]]]:
    """A grid of axes, each ``cell`` inches wide and high."""
    size = (columns * cell[0], rows * cell[1])
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    return figure, axes


def shown_stages(backbone: nn.Module) -> list[int]:
    """The stages that a figure has room for, from 1.

    All of them; of more than four those at the ends of four quarters.
    """
    number = len(backbone.stages)
    return sorted({-(-number * i // 4) for i in (1, 2, 3, 4)})


def write_figure(figure: Figure, path: str | Path) -> None:
    """Write a PNG, all of it or nothing; its folder is made."""
    content = io.BytesIO()
    figure.savefig(content, dpi=DPI, format='png', facecolor='white')
    write_file(content.getvalue(), path)

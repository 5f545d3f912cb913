"""What the figures of architectures are drawn with."""

# ruff: noqa: RUF001  (multiplication signs and Greek letters are meant)
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from PIL import Image

from vcmamba_mm.files import write_file
from vcmamba_mm.ops.scan_paths import scan_paths

# Pixels; y points down.
WIDTH, DPI = 1600, 100
MARGIN, GAP = 36, 20
RIGHT = WIDTH - MARGIN

INK, FAINT, WHITE = '#0f172a', '#64748b', '#ffffff'
# Fill and edge of each kind of thing.
COLOURS = dict(
    conv=('#dbeafe', '#3b82f6'),
    norm=('#f1f5f9', '#94a3b8'),
    act=('#dcfce7', '#22c55e'),
    mamba=('#ffedd5', '#f97316'),
    linear=('#ede9fe', '#8b5cf6'),
    panel=('#f8fafc', '#e2e8f0'),
    stage=('#ffffff', '#94a3b8'),
)
SMALL, NORMAL, LARGE, TITLE = 11.5, 13, 14.5, 16  # points
PATH_COLOURS = LinearSegmentedColormap.from_list(
    'path', ['#2563eb', '#7c3aed', '#db2777', '#ea580c']
)

# Of the families that share a scan: names of its paths, and what it computes.
SNAKE_PATHS = dict(
    row='1: row snake',
    row_reverse='2: path 1 reversed',
    column='3: column snake',
    column_reverse='4: path 3 reversed',
)
SNAKE_SCAN = (
    'Selective scan along four paths',
    '$h_i = e^{Δ A}\\, h_{i-1} + Δ\\,(\\mathbf{B} + θ_{d(i)})\\, x_{o(i)}$',
    '$y_{o(i)} \\leftarrow y_{o(i)} + \\mathbf{C}\\, h_i + D\\, x_{o(i)}$',
    'step $i$ visits token $o(i)$, in direction $d(i)$;\n'
    '$A, D, θ$ are learned',
)


class Canvas:
    """Boxes, arrows and text, in pixels from the top left."""

    def __init__(self, ax: Axes):
        self.ax = ax

    def text(
        self, x: float, y: float, text: str, size: float = NORMAL, **kwargs
    ) -> None:
        kwargs = dict(
            dict(ha='center', va='center', color=INK, linespacing=1.25),
            **kwargs,
        )
        self.ax.text(x, y, text, fontsize=size, **kwargs)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        kind: str,
        text: str = '',
        size: float = NORMAL,
        rotated: bool = False,
        radius: float = 7,
    ) -> None:
        """A rounded box around its vertical centre ``y``, from ``x`` on."""
        fill, edge = COLOURS[kind]
        self.ax.add_patch(
            FancyBboxPatch(
                (x + radius, y - height / 2 + radius),
                width - 2 * radius,
                height - 2 * radius,
                boxstyle=f'round,pad={radius}',
                facecolor=fill,
                edgecolor=edge,
                linewidth=1.5,
            )
        )
        self.text(
            x + width / 2,
            y,
            text,
            size,
            rotation=90 * rotated,
            rotation_mode='anchor',
        )

    def panel(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        title: str,
        note: str = '',
    ) -> None:
        """A box with a title, by its top left corner."""
        self.box(x, y + height / 2, width, height, 'panel', radius=12)
        self.text(
            x + 20,
            y + 34,
            title,
            TITLE,
            ha='left',
            va='baseline',
            weight='bold',
        )
        self.text(
            x + width - 20,
            y + 34,
            note,
            NORMAL,
            ha='right',
            va='baseline',
            color=FAINT,
        )

    def flow(
        self,
        x: float,
        top: float,
        width: float,
        height: float,
        y: float,
        title: str,
        note: str = '',
    ) -> float:
        """A panel, and the $x$ that goes into what it shows.

        Returns:
            float: Where the way of $x$ begins, at the height ``y``.
        """
        self.panel(x, top, width, height, title, note)
        self.text(x + 26, y, '$x$', LARGE)
        return x + 40

    def arrow(self, *points: tuple[float, float], **kwargs) -> None:
        """A line through ``points`` that ends in an arrow head."""
        kwargs = dict(dict(color=INK, linewidth=1.6), **kwargs)
        if len(points) > 2:
            self.ax.plot(
                *zip(*points[:-1]),
                solid_capstyle='round',
                solid_joinstyle='round',
                **kwargs,
            )
        self.ax.add_patch(
            FancyArrowPatch(
                *points[-2:],
                arrowstyle='-|>',
                shrinkA=0,
                shrinkB=0,
                mutation_scale=13,
                joinstyle='miter',
                **kwargs,
            )
        )

    def node(self, x: float, y: float, text: str) -> None:
        """A small circle, for + and for a product."""
        self.ax.add_patch(
            Circle(
                (x, y),
                13,
                facecolor=WHITE,
                edgecolor=INK,
                linewidth=1.5,
                zorder=3,
            )
        )
        self.text(x, y - 1, text, LARGE, va='center_baseline', zorder=4)

    def title(self, name: str, note: str) -> None:
        """The head of the figure."""
        kwargs = dict(va='baseline')
        self.text(MARGIN, 50, name, 22, ha='left', weight='bold', **kwargs)
        self.text(RIGHT, 50, note, NORMAL, ha='right', color=FAINT, **kwargs)

    def image(self, x: float, y: float) -> None:
        """Three channels, from ``x`` on, around the vertical centre ``y``."""
        for i, colour in enumerate(('#bfdbfe', '#bbf7d0', '#fecaca')):
            self.ax.add_patch(
                FancyBboxPatch(
                    (x + 22 - 10 * i, y - 42 + 10 * i),
                    58,
                    58,
                    boxstyle='round,pad=0,rounding_size=4',
                    facecolor=colour,
                    edgecolor=FAINT,
                    linewidth=1.2,
                )
            )
        self.text(x + 44, y + 58, '$H$ × $W$ × 3', SMALL)

    def stem(self, y: float, height: float, text: str) -> None:
        """The image and the stem, left of the first stage."""
        self.image(MARGIN, y)
        self.arrow((MARGIN + 84, y), (150, y))
        self.box(150, y, 112, height, 'conv')
        self.text(206, y - 46, 'Stem', LARGE, va='baseline', weight='bold')
        self.text(206, y + 18, text)

    def downsample(
        self,
        x: float,
        y: float,
        height: float,
        text: str,
        title: str = 'Downsample',
        gap: float = 26,
    ) -> None:
        """A strided convolution, and the arrow to what follows it."""
        self.box(x, y, 62, height, 'conv')
        self.text(x + 20, y, title, rotation=90)
        self.text(x + 43, y, text, SMALL, rotation=90)
        self.arrow((x + 62, y), (x + 62 + gap, y))

    def stage(
        self, number: int, x: float, y: float, width: float, height: float
    ) -> None:
        self.box(x, y, width, height, 'stage')
        self.text(
            x + width / 2,
            y - 46,
            f'Stage {number}',
            LARGE,
            va='baseline',
            weight='bold',
        )

    def classifier(
        self,
        x: float,
        y: float,
        height: float,
        head: str,
        norm: str = 'LayerNorm',
    ) -> None:
        """Right of the last stage."""
        self.arrow((x - 26, y), (x, y))
        self.box(x, y, RIGHT - x, height, 'stage')
        self.text(
            (x + RIGHT) / 2,
            y - 50,
            'Classifier',
            LARGE,
            va='baseline',
            weight='bold',
        )
        parts = ('norm', norm), ('act', 'mean over tokens')
        for i, (kind, text) in enumerate((*parts, ('linear', head))):
            top = y - 23 + 37 * i
            self.box(x + 14, top, RIGHT - x - 28, 31, kind, text, SMALL)

    def fork(self, x: float, y: float, low: float, channels: str) -> float:
        """Half of the channels go on, the other half go on below.

        Returns:
            float: Where both ways end, at the heights ``y`` and ``low``.
        """
        end = x + 60
        self.arrow((x, y), (end, y))
        self.arrow((x + 24, y), (x + 24, low), (end, low))
        for level in (y, low):
            self.text(end - 18, level - 14, channels, SMALL)
        return end

    def chain(self, x: float, y: float, *parts: tuple) -> float:
        """Touching boxes (width, kind, text); narrow ones have rotated text.

        Returns:
            float: Where the last one ends.
        """
        for width, kind, text in parts:
            self.box(x, y, width, 84, kind, text, rotated=width < 50)
            x += width + 4
        return x - 4

    def residual(
        self, x: float, y: float, gap: float, *groups: tuple[tuple, ...]
    ) -> float:
        """Groups of touching boxes, and the way around them to a plus.

        Returns:
            float: Where the plus ends.
        """
        start, way = x + 0.4 * gap, y - 64
        for i, group in enumerate(groups):
            begin = x + (0.6 if i else 1) * gap
            self.arrow((x, y), (begin, y))
            x = self.chain(begin, y, *group)
        plus = x + gap
        self.arrow((x, y), (plus - 13, y))
        self.arrow((start, y), (start, way), (plus, way), (plus, y - 13))
        self.node(plus, y, '+')
        return plus + 13

    def scan(
        self,
        split: float,
        x: float,
        y: float,
        low: float,
        tokens: str,
        linear: str,
        index: str,
        *lines: str,
    ) -> float:
        """The scan, from ``x`` on, and what is made of the tokens before it.

        Args:
            split: Where the tokens go to the scan and to the linear map.
            x: Where the scan begins.
            y: Of the tokens.
            low: Of the linear map.
            tokens: What comes in.
            linear: The map.
            index: Of what the map gives.
            *lines: Title, state, output, and a note of two lines.

        Returns:
            float: Where the scan ends.
        """
        self.arrow((split - 26, y), (x, y))
        self.text((split + x) / 2, y - 14, f'tokens $x$:  {tokens}', SMALL)
        self.arrow((split, y), (split, low), (split + 24, low))
        self.box(split + 24, low, 96, 72, 'linear', linear, SMALL)
        for i, name in enumerate(('Δ', '\\mathbf{B}', '\\mathbf{C}')):
            level = low - 24 + 24 * i
            self.arrow((split + 120, level), (x, level))
            self.text(x - 20, level - 9, f'${name}{index}$', SMALL)
        self.box(
            split + 140,
            low - 24,
            x - split - 190,
            26,
            'linear',
            'linear, softplus',
            SMALL,
        )
        width = 412
        self.box(x, (y + low) / 2, width, 2 * 42 + low - y, 'mamba')
        sizes = LARGE, LARGE, LARGE, SMALL
        for text, down, size in zip(lines, (-18, 20, 57, 101), sizes):
            weight = 'bold' if down < 0 else 'normal'
            self.text(x + width / 2, y + down, text, size, weight=weight)
        return x + width


def draw_variants(
    c: Canvas,
    x: float,
    top: float,
    height: float,
    columns: dict[str, float],
    rows: dict[str, tuple],
) -> None:
    """A table: headings at places from ``x`` on, and rows of variants."""
    c.panel(x, top, RIGHT - x, height, 'Variants')
    pitch = (height - 88) / len(rows) - 2
    for text, column in columns.items():
        c.text(x + column, top + 74, text, va='baseline')
    for i, (name, values) in enumerate(rows.items()):
        y = top + 84 + pitch * (i + 0.67)
        c.ax.plot(
            (x + 20, RIGHT - 20),
            (y - 0.67 * pitch, y - 0.67 * pitch),
            linewidth=1,
            color=COLOURS['panel'][1],
        )
        c.text(x + 20, y, f"'{name}'", ha='left', va='baseline')
        for value, column in zip(values, columns.values()):
            c.text(x + column, y, str(value), va='baseline')


def draw_paths(
    c: Canvas,
    top: float,
    height: float,
    width: float,
    paths: dict[str, str],
    snake: bool,
) -> None:
    """The paths, with titles, from the tables that the scan uses."""
    rows, columns, pitch, radius = 4, 5, 47, 14.5
    tables = scan_paths(rows, columns, 'cpu', tuple(paths), snake)
    order = tables.order.tolist()
    c.panel(
        MARGIN,
        top,
        width,
        height,
        'The four paths',
        f'steps on a map of {rows} × {columns} tokens; the results of '
        'the four scans are summed',
    )
    room = (width - 40) / len(order)
    for k, (path, name) in enumerate(zip(order, paths.values())):
        left = MARGIN + 20 + k * room + (room - columns * pitch) / 2
        c.text(left + columns * pitch / 2, top + 74, name, va='baseline')
        centres = [
            (
                left + (token % columns + 0.5) * pitch,
                top + 90 + (token // columns + 0.5) * pitch,
            )
            for token in path
        ]
        for i, (x, y) in enumerate(centres):
            colour = PATH_COLOURS(i / (len(path) - 1))
            c.ax.add_patch(Circle((x, y), radius, color=colour))
            c.text(
                x,
                y - 0.5,
                str(i + 1),
                10.5,
                color=WHITE,
                weight='bold',
                va='center_baseline',
            )
            if i + 1 < len(path):
                dx, dy = (
                    (b - a) / pitch for a, b in zip((x, y), centres[i + 1])
                )
                if abs(dx) + abs(dy) != 1:  # a jump to the next line
                    continue
                c.arrow(
                    (x + radius * dx, y + radius * dy),
                    (x + (pitch - radius) * dx, y + (pitch - radius) * dy),
                    color=colour,
                    linewidth=2,
                )


def make_figure(height: int, *parts: Callable[[Canvas], None]) -> Figure:
    """A figure of some parts, each of which draws itself."""
    figure = Figure((WIDTH / DPI, height / DPI), dpi=DPI, facecolor=WHITE)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(height, 0))
    ax.axis('off')
    for part in parts:
        part(Canvas(ax))
    return figure


def write_png(figure: Figure, path: Path) -> None:
    """Write with 256 colours: a third of the size, no visible difference."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB')
    content = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(
        content, 'PNG', optimize=True
    )
    write_file(content.getvalue(), path)

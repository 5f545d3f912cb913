"""Draw the picture of the architecture, docs/pictures/architecture.png."""

# ruff: noqa: RUF001  (multiplication signs and Greek letters are meant)
import argparse
from pathlib import Path

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from PIL import Image

from vcmamba_mm.models import VCMamba
from vcmamba_mm.ops.scan_paths import scan_paths
from vcmamba_mm.training.command_line import one_line_errors

# Pixels; y points down.
WIDTH, HEIGHT, DPI = 1600, 1184, 100
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

    def chain(self, x: float, y: float, *parts: tuple) -> float:
        """Touching boxes (width, kind, text); narrow ones have rotated text.

        Returns:
            float: Where the last one ends.
        """
        for width, kind, text in parts:
            self.box(x, y, width, 84, kind, text, rotated=width < 50)
            x += width + 4
        return x - 4


def draw_overview(c: Canvas) -> None:
    """The top row: image, stem, stages, outputs."""
    archs = VCMamba.arch_settings.values()

    def common(values: list[int]) -> str:
        return str(values[0]) if len(set(values)) == 1 else '$n$'

    mid, height = 166, 160
    bottom = mid + height / 2
    c.text(MARGIN, 50, 'VCMamba', 22, ha='left', va='baseline', weight='bold')
    c.text(
        RIGHT,
        50,
        'three convolutional stages, then a fourth whose last '
        'blocks scan the map along four paths',
        NORMAL,
        ha='right',
        va='baseline',
        color=FAINT,
    )

    for i, colour in enumerate(('#bfdbfe', '#bbf7d0', '#fecaca')):
        c.ax.add_patch(
            FancyBboxPatch(
                (MARGIN + 22 - 10 * i, mid - 42 + 10 * i),
                58,
                58,
                boxstyle='round,pad=0,rounding_size=4',
                facecolor=colour,
                edgecolor=FAINT,
                linewidth=1.2,
            )
        )
    c.text(MARGIN + 44, mid + 58, '$H$ × $W$ × 3', SMALL)
    c.arrow((MARGIN + 84, mid), (150, mid))
    c.box(150, mid, 112, height, 'conv')
    c.text(206, mid - 46, 'Stem', LARGE, va='baseline', weight='bold')
    c.text(206, mid + 18, '2 × conv\n3×3, s2\nBN, ReLU')

    x, starts = 288, []
    for i in range(4):
        c.arrow((x - 26, mid), (x, mid))
        if i:
            c.box(x, mid, 62, height, 'conv')
            c.text(x + 20, mid, 'Downsample', rotation=90)
            c.text(x + 43, mid, 'conv 3×3 s2, BN', SMALL, rotation=90)
            c.arrow((x + 62, mid), (x + 88, mid))
            x += 88
        num_mdm = [arch['num_mdm'] * (i == 3) for arch in archs]
        num_ffn = common(
            [arch['depths'][i] - n for arch, n in zip(archs, num_mdm)]
        )
        width = 332 if i == 3 else 126
        starts.append(x)
        c.box(x, mid, width, height, 'stage')
        c.text(
            x + width / 2,
            mid - 46,
            f'Stage {i + 1}',
            LARGE,
            va='baseline',
            weight='bold',
        )
        c.box(x + 14, mid + 18, 98, 92, 'conv', f'FFN\nblock\n× {num_ffn}')
        if i == 3:
            c.arrow((x + 112, mid + 8), (x + 220, mid + 8))
            c.node(x + 166, mid + 8, '+')
            c.text(x + 166, mid + 42, 'position\nembedding', SMALL)
            c.box(
                x + 220,
                mid + 18,
                98,
                92,
                'mamba',
                f'MDM\nblock\n× {common(num_mdm)}',
            )
        x += width + 26

    # outputs and what is built on them
    c.arrow((x - 26, mid), (x, mid))
    c.box(x, mid, RIGHT - x, height, 'stage')
    c.text(
        (x + RIGHT) / 2,
        mid - 50,
        'Classifier',
        LARGE,
        va='baseline',
        weight='bold',
    )
    for i, (kind, text) in enumerate(
        (
            ('norm', 'LayerNorm'),
            ('act', 'mean over tokens'),
            ('linear', 'linear head(s)'),
        )
    ):
        c.box(x + 14, mid - 23 + 37 * i, RIGHT - x - 28, 31, kind, text, SMALL)
    fpn = bottom + 76
    c.box(x, fpn, RIGHT - x, 76, 'linear')
    c.text((x + RIGHT) / 2, fpn - 14, 'Semantic FPN', LARGE, weight='bold')
    c.text((x + RIGHT) / 2, fpn + 14, 'on the four maps', SMALL)
    for i, start in enumerate(starts):
        pill = start + (166 if i == 3 else 63)
        y = fpn + 26 - 17 * i
        c.arrow((pill, bottom), (pill, y), (x, y), color=FAINT)
        c.ax.add_patch(
            FancyBboxPatch(
                (pill - 52, bottom + 19),
                104,
                6,
                boxstyle='round,pad=9',
                facecolor=WHITE,
                edgecolor=FAINT,
                linewidth=1.2,
                zorder=3,
            )
        )
        c.text(
            pill, bottom + 22, f'stride {4 * 2**i},  $C_{i}$', SMALL, zorder=4
        )


def draw_blocks(c: Canvas, top: float) -> None:
    """The FFN block and the MDM block."""
    width, mid, skip = (RIGHT - MARGIN - GAP) / 2, top + 122, top + 58
    bn, gelu = (30, 'norm', 'BN'), (30, 'act', 'GELU')

    x = MARGIN
    c.panel(x, top, width, 186, 'FFN block', '$x + γ \\cdot$ ffn($x$)')
    c.text(x + 26, mid, '$x$', LARGE)
    groups = (
        ((108, 'conv', '1×1 conv\n$C$ → $4C$'), bn, gelu),
        ((108, 'conv', '3×3 conv\ndepthwise'), bn, gelu),
        ((108, 'conv', '1×1 conv\n$4C$ → $C$'), bn),
    )
    end = x + 40
    for group in groups:
        c.arrow((end, mid), (end + 26, mid))
        end = c.chain(end + 26, mid, *group)
    plus = x + width - 62
    c.arrow((end, mid), (x + width - 22, mid))
    c.node((end + plus) / 2, mid, '×')
    c.text((end + plus) / 2, mid + 30, '$γ$', LARGE)
    c.arrow((x + 51, mid), (x + 51, skip), (plus, skip), (plus, mid - 13))
    c.node(plus, mid, '+')

    x += width + GAP
    c.panel(
        x,
        top,
        width,
        186,
        'MDM block',
        '$x +$ mixer(BN($x$)),  then  $x +$ ffn(BN($x$))',
    )
    c.text(x + 26, mid, '$x$', LARGE)
    start = x + 40
    for kind, text in (
        ('mamba', 'Mixer:\nmulti-directional\nMamba'),
        ('conv', 'ffn\nof the FFN block,\nwithout $γ$'),
    ):
        c.arrow((start, mid), (start + 42, mid))
        end = c.chain(start + 42, mid, (30, 'norm', 'BN'))
        c.arrow((end, mid), (end + 26, mid))
        end = c.chain(end + 26, mid, (172, kind, text))
        plus = end + 39
        c.arrow((end, mid), (plus - 13, mid))
        c.arrow(
            (start + 18, mid),
            (start + 18, skip),
            (plus, skip),
            (plus, mid - 13),
        )
        c.node(plus, mid, '+')
        start = plus + 13
    c.arrow((start, mid), (x + width - 22, mid))


def draw_mixer(c: Canvas, top: float) -> None:
    """The mixer of the MDM block."""
    mid, low = top + 104, top + 190
    c.panel(MARGIN, top, RIGHT - MARGIN, 252, 'Mixer')
    x = MARGIN
    c.text(x + 26, mid, '$x$', LARGE)
    end = x + 40
    for group in (
        ((108, 'conv', '1×1 conv\n$C$ → $2C$'), (30, 'norm', 'BN')),
        ((108, 'conv', '7×7 conv\ndepthwise'), (30, 'act', 'SiLU')),
    ):
        c.arrow((end, mid), (end + 26, mid))
        end = c.chain(end + 26, mid, *group)
    split, scan = end + 26, end + 356
    c.arrow((end, mid), (scan, mid))
    c.text(
        (split + scan) / 2, mid - 14, 'tokens $x$:  $H$ · $W$ × $2C$', SMALL
    )
    c.arrow((split, mid), (split, low), (split + 24, low))
    c.box(split + 24, low, 84, 72, 'linear', 'linear')
    for i, name in enumerate(('Δ', '\\mathbf{B}', '\\mathbf{C}')):
        y = low - 24 + 24 * i
        c.arrow((split + 108, y), (scan, y))
        c.text(scan - 22, y - 9, f'${name}$', SMALL)
    c.box(split + 132, low - 24, 134, 26, 'linear', 'linear, softplus', SMALL)

    width = 412
    c.box(scan, (mid + low) / 2, width, 2 * 42 + low - mid, 'mamba')
    middle = scan + width / 2
    c.text(
        middle,
        mid - 18,
        'Selective scan along four paths',
        LARGE,
        weight='bold',
    )
    c.text(
        middle,
        mid + 20,
        '$h_i = e^{Δ A}\\, h_{i-1} + Δ\\,(\\mathbf{B} + '
        'θ_{d(i)})\\, x_{o(i)}$',
        LARGE,
    )
    c.text(
        middle,
        mid + 57,
        '$y_{o(i)} \\leftarrow y_{o(i)} + \\mathbf{C}\\, h_i + D\\, x_{o(i)}$',
        LARGE,
    )
    c.text(
        middle,
        mid + 101,
        'step $i$ visits token $o(i)$, in direction '
        '$d(i)$;\n$A, D, θ$ are learned',
        SMALL,
    )
    end = scan + width
    for group in (
        ((110, 'norm', 'LayerNorm'), (30, 'act', 'ReLU')),
        ((108, 'conv', '1×1 conv\n$2C$ → $C$'), (30, 'norm', 'BN')),
    ):
        c.arrow((end, mid), (end + 26, mid))
        end = c.chain(end + 26, mid, *group)
    c.arrow((end, mid), (RIGHT - 22, mid))
    c.text(
        scan + width + 26,
        low,
        '$Δ$, $\\mathbf{B}$, $\\mathbf{C}$ of step '
        '$i$ are those of raster\nposition $i$ (released weights) or of\n'
        'token $o(i)$ (paper): param_order',
        SMALL,
        ha='left',
        color=FAINT,
    )


def draw_paths(c: Canvas, top: float, height: float, width: float) -> None:
    """The four paths, from the tables that the scan uses."""
    rows, columns, pitch, radius = 4, 5, 47, 14.5
    order = scan_paths(rows, columns).order.tolist()
    c.panel(
        MARGIN,
        top,
        width,
        height,
        'The four paths',
        f'steps on a map of {rows} × {columns} tokens; the results of '
        'the four scans are summed',
    )
    names = (
        '1: row snake',
        '2: path 1 reversed',
        '3: column snake',
        '4: path 3 reversed',
    )
    room = (width - 40) / len(order)
    for k, (path, name) in enumerate(zip(order, names)):
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
                c.arrow(
                    (x + radius * dx, y + radius * dy),
                    (x + (pitch - radius) * dx, y + (pitch - radius) * dy),
                    color=colour,
                    linewidth=2,
                )


def draw_variants(c: Canvas, x: float, top: float, height: float) -> None:
    """Widths and depths of the three variants."""
    archs = VCMamba.arch_settings
    c.panel(x, top, RIGHT - x, height, 'Variants', 'width × blocks')
    columns = [x + 196 + 104 * k for k in range(len(archs))]
    for column, name in zip(columns, archs):
        c.text(
            column, top + 78, name.upper(), LARGE, va='baseline', weight='bold'
        )
    for i, label in enumerate(
        ('Stage 1', 'Stage 2', 'Stage 3', 'Stage 4: FFN', 'Stage 4: MDM')
    ):
        y = top + 116 + 38 * i
        c.ax.plot(
            (x + 20, RIGHT - 20),
            (y - 25, y - 25),
            linewidth=1,
            color=COLOURS['panel'][1],
        )
        c.text(x + 20, y, label, ha='left', va='baseline')
        for column, arch in zip(columns, archs.values()):
            stage, num_mdm = min(i, 3), arch['num_mdm']
            blocks = (
                num_mdm if i == 4 else (arch['depths'][i] - num_mdm * (i == 3))
            )
            c.text(
                column,
                y,
                f'{arch["embed_dims"][stage]} × {blocks}',
                va='baseline',
            )


def draw() -> Figure:
    """Draw everything on one figure."""
    figure = Figure((WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor=WHITE)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    ax.axis('off')
    c = Canvas(ax)
    draw_overview(c)
    draw_blocks(c, 384)
    draw_mixer(c, 590)
    draw_paths(c, 862, 298, 1040)
    draw_variants(c, MARGIN + 1040 + GAP, 862, 298)
    return figure


def write_png(figure: Figure, path: Path) -> None:
    """Write with 256 colours: a third of the size, no visible difference."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB')
    image.quantize(256, dither=Image.Dither.NONE).save(
        path, 'PNG', optimize=True
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out',
        type=Path,
        default=Path(__file__).parents[1] / 'docs/pictures/architecture.png',
        help='PNG file to write',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with one_line_errors(OSError):
        if not args.out.parent.is_dir():
            raise FileNotFoundError(
                f'folder {args.out.parent} does not exist: make it, or name '
                'another with --out'
            )
        with style.context('default'):
            write_png(draw(), args.out)


if __name__ == '__main__':
    main()

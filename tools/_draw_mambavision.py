"""The figure of MambaVision."""

# ruff: noqa: RUF001  (multiplication signs and Greek letters are meant)
from functools import partial

from _canvas import (
    FAINT,
    GAP,
    LARGE,
    MARGIN,
    NORMAL,
    PATH_COLOURS,
    RIGHT,
    SMALL,
    WHITE,
    Canvas,
    draw_variants,
    make_figure,
)
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle

from vcmamba_mm.models import MambaVision

HEIGHT = 1220
LOW_ROW = dict(top=898, height=298)


def draw_overview(c: Canvas) -> None:
    """The top row: image, stem, stages, classifier."""
    mid, height, width = 166, 160, 160
    c.title(
        'MambaVision', 'two convolutional stages, two with scans and attention'
    )
    c.stem(mid, height, '2 × conv\n3×3, s2\nBN, ReLU')
    x = 288
    for i in range(4):
        c.arrow((x - 26, mid), (x, mid))
        if i:
            c.downsample(x, mid, height, 'conv 3×3 s2')
            x += 88
        n = f'n_{i + 1}'
        c.stage(i + 1, x, mid, width, height)
        if i < 2:
            parts = (('conv', f'conv block\n× ${n}$', 92),)
        else:
            parts = (
                ('mamba', f'mixer × $⌈{n}/2⌉$', 44),
                ('linear', f'attention × $⌊{n}/2⌋$', 44),
            )
        points = NORMAL if i < 2 else SMALL
        for k, (kind, text, size) in enumerate(parts):
            y = mid + 18 + (2 * k - 1) * 24 * (i > 1)
            c.box(x + 6, y, width - 12, size, kind, text, points)
        c.text(
            x + width / 2,
            mid + height / 2 + 22,
            f'stride {4 * 2**i},  $C_{i + 1}$',
            SMALL,
        )
        x += width + 26
    c.classifier(x, mid, height, 'linear head', 'BatchNorm')
    c.text(
        (288 + x - 26) / 2,
        mid + height / 2 + 50,
        'segmenters and detectors take the four maps, each with a LayerNorm '
        'of its own',
        color=FAINT,
    )


def draw_blocks(c: Canvas, top: float) -> None:
    """The convolution block and the block of tokens."""
    width, mid = 560, top + 122
    x = MARGIN
    end = c.flow(x, top, width, 186, mid, 'Conv block', 'of a map')
    conv, norm = (108, 'conv', '3×3 conv\n$C$ → $C$'), (30, 'norm', 'BN')
    end = c.residual(
        end, mid, 46, (conv, norm, (30, 'act', 'GELU')), (conv, norm)
    )
    c.arrow((end, mid), (x + width - 22, mid))

    x += width + GAP
    end = c.flow(
        x,
        top,
        RIGHT - x,
        186,
        mid,
        'Mixer block, attention block',
        'of the tokens of a window; large variants have $γ_1, γ_2$',
    )
    for i, parts in enumerate(
        (
            ((116, 'mamba', 'Mixer, or\nattention'),),
            (
                (92, 'linear', 'linear\n$C$ → $4C$'),
                (30, 'act', 'GELU'),
                (92, 'linear', 'linear\n$4C$ → $C$'),
            ),
        )
    ):
        end = c.residual(end, mid, 76, ((30, 'norm', 'LN'),), parts)
        c.node(end - 57, mid, '×')
        c.text(end - 57, mid + 30, f'$γ_{i + 1}$', LARGE)
    c.arrow((end, mid), (RIGHT - 22, mid))


def draw_mixer(c: Canvas, top: float) -> None:
    """The mixer."""
    mid, low, half = top + 104, top + 190, top + 288
    end = c.flow(
        MARGIN,
        top,
        RIGHT - MARGIN,
        352,
        mid,
        'Mixer',
        'of the $T$ tokens of a window',
    )
    c.arrow((end, mid), (end + 26, mid))
    end = c.chain(end + 26, mid, (108, 'linear', 'linear\n$C$ → $C$'))
    conv = (108, 'conv', 'conv of\n3 tokens'), (30, 'act', 'SiLU')
    start = c.fork(end, mid, half, '$C/2$')
    z, end = c.chain(start, half, *conv), c.chain(start, mid, *conv)
    end = c.scan(
        end + 26,
        end + 366,
        mid,
        low,
        '$T$ × $C/2$',
        'linear',
        '',
        'Selective scan, one path',
        '$h_i = e^{Δ A}\\, h_{i-1} + Δ\\, \\mathbf{B}\\, x_i$',
        '$y_i = \\mathbf{C}\\, h_i + D\\, x_i$',
        'token $i$ of the window in raster order, row by row;\n'
        '$A, D$ are learned',
    )
    c.arrow((end, mid), (end + 40, mid))
    c.arrow((z, half), (end + 40, half))
    end += 40
    both = (mid + half) / 2
    c.box(end, both, 36, half - mid + 84, 'norm', 'both halves', rotated=True)
    end += 36
    c.arrow((end, mid), (end + 40, mid))
    end = c.chain(end + 40, mid, (108, 'linear', 'linear\n$C$ → $C$'))
    c.arrow((end, mid), (RIGHT - 22, mid))


def draw_attention(
    c: Canvas, x: float, top: float, width: float, height: float
) -> None:
    """Attention of all tokens of a window."""
    mid = top + 118
    end = c.flow(x, top, width, height, mid, 'Attention')
    for part in (
        (76, 'linear', 'linear\n$C$ → $3C$'),
        (
            186,
            'act',
            'in each head\n'
            'softmax$\\left(\\mathbf{QK}^T/\\sqrt{d}\\right)\\mathbf{V}$',
        ),
        (76, 'linear', 'linear\n$C$ → $C$'),
    ):
        c.arrow((end, mid), (end + 26, mid))
        end = c.chain(end + 26, mid, part)
    c.arrow((end, mid), (x + width - 22, mid))
    c.text(
        x + width / 2,
        top + 226,
        'all $T$ tokens of a window attend to all of them;\n'
        '$\\mathbf{Q}$, $\\mathbf{K}$, $\\mathbf{V}$ of a head: $T$ × $d$,\n'
        '$d = C$ / heads',
    )


def draw_windows(
    c: Canvas, x: float, top: float, width: float, height: float
) -> None:
    """Windows and their padding on a small map."""
    rows, columns, pitch = 5, 7, 25
    c.panel(x, top, width, height, 'Windows', 'of a map of 5 × 7 tokens')
    left = x + 24
    for size, text in ((3, 'window_size = 3'), (None, "window_size = 'map'")):
        high, wide = size or rows, size or columns
        down, across = -(-rows // high), -(-columns // wide)
        middle = left + across * wide * pitch / 2
        c.text(middle, top + 74, text, va='baseline')
        for row in range(down * high):
            for column in range(across * wide):
                step = row % high * wide + column % wide
                real = row < rows and column < columns
                colour = PATH_COLOURS(step / (high * wide - 1))
                c.ax.add_patch(
                    Circle(
                        (
                            left + (column + 0.5) * pitch,
                            top + 92 + (row + 0.5) * pitch,
                        ),
                        9,
                        facecolor=colour if real else WHITE,
                        edgecolor=colour if real else FAINT,
                    )
                )
        for i in range(down):
            for k in range(across):
                c.ax.add_patch(
                    Rectangle(
                        (
                            left + k * wide * pitch,
                            top + 92 + i * high * pitch,
                        ),
                        wide * pitch,
                        high * pitch,
                        fill=False,
                        edgecolor=FAINT,
                        linewidth=1.5,
                    )
                )
        left += across * wide * pitch + 44
    c.text(
        x + width / 2,
        top + 270,
        'colours: order of the scan in a window; hollow: padding',
        SMALL,
    )


def draw() -> Figure:
    """Draw everything on one figure."""
    return make_figure(
        HEIGHT,
        draw_overview,
        partial(draw_blocks, top=320),
        partial(draw_mixer, top=526),
        partial(draw_attention, x=MARGIN, width=520, **LOW_ROW),
        partial(draw_windows, x=MARGIN + 520 + GAP, width=490, **LOW_ROW),
        partial(
            draw_variants,
            x=MARGIN + 1010 + 2 * GAP,
            columns={'$C_1$ … $C_4$': 142, '$n_1$ … $n_4$': 288, 'heads': 412},
            rows={
                name: (
                    f'{arch["embed_dims"][0]} … {arch["embed_dims"][-1]}',
                    ', '.join(map(str, arch['depths'])),
                    ', '.join(map(str, arch['num_heads'])),
                )
                for name, arch in MambaVision.arch_settings.items()
            },
            **LOW_ROW,
        ),
    )

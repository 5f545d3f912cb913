"""The figure of PlainMamba."""

# ruff: noqa: RUF001  (multiplication signs and Greek letters are meant)
from functools import partial

from _canvas import (
    FAINT,
    GAP,
    LARGE,
    MARGIN,
    RIGHT,
    SMALL,
    SNAKE_PATHS,
    SNAKE_SCAN,
    Canvas,
    draw_paths,
    draw_variants,
    make_figure,
)
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vcmamba_mm.models import PlainMamba

HEIGHT = 1220
LOW_ROW = dict(top=898, height=298)


def draw_overview(c: Canvas) -> None:
    """The top row: image, stem, layers, classifier."""
    mid, height = 166, 160
    c.title(
        'PlainMamba',
        'equal layers at one resolution, each scans the map along four paths',
    )
    c.stem(mid, height, 'conv\n7×7, s2;\n3×3, × $k$\nBN, ReLU')
    c.arrow((262, mid), (288, mid))
    c.downsample(288, mid, height, 'conv 8×8 s8', 'Patches', gap=47)
    c.node(410, mid, '+')
    c.text(410, mid + 34, 'position\nembedding', SMALL)
    c.arrow((423, mid), (470, mid))

    start, width = 470, 799
    c.box(start, mid, width, height, 'stage')
    c.text(
        start + width / 2,
        mid - 46,
        '$n$ layers',
        LARGE,
        va='baseline',
        weight='bold',
    )
    x, low, gap = start + 45, mid + 18, 44
    for kind, text, size in (
        ('mamba', 'Layer 1', 120),
        ('conv', "convolution,\nin 'l1' alone", 142),
        ('mamba', 'Layer 2', 120),
        (None, '…', 30),
        ('mamba', 'Layer $n$', 120),
    ):
        if text != 'Layer 1':
            c.arrow((x - gap, low), (x, low))
        if kind:
            c.box(x, low, size, 92, kind, text)
        else:
            c.text(x + size / 2, low, text, LARGE)
        x += size + gap
    middle = start + width / 2
    c.text(middle, mid + height / 2 + 22, 'stride 16,  $C$', SMALL)
    c.classifier(start + width + 26, mid, height, 'linear head')
    c.text(
        middle,
        mid + height / 2 + 50,
        'segmenters take the maps after $n/4$, $n/2$, $3n/4$ and $n$ layers, '
        'each with a LayerNorm of its own',
        color=FAINT,
    )


def draw_layer(c: Canvas, top: float) -> None:
    """A layer, and the convolution after the first one of a variant."""
    mid = top + 122
    end = c.flow(
        MARGIN,
        top,
        RIGHT - MARGIN,
        186,
        mid,
        'Layer',
        '$x +$ mixer(LN($x$)), without an ffn',
    )
    end = c.residual(
        end,
        mid,
        120,
        ((30, 'norm', 'LN'),),
        ((260, 'mamba', 'Mixer'),),
    )
    c.arrow((end, mid), (end + 260, mid))
    end += 260
    last = c.chain(
        end,
        mid,
        (140, 'conv', '3×3 conv\ndepthwise'),
        (30, 'norm', 'BN'),
        (30, 'act', 'GELU'),
    )
    c.ax.add_patch(
        Rectangle(
            (end - 16, mid - 54),
            last - end + 32,
            108,
            fill=False,
            edgecolor=FAINT,
            linestyle='--',
        )
    )
    c.text(
        (end + last) / 2,
        mid - 68,
        "after layer 1 of 'l1' alone, no way around it",
        SMALL,
    )
    c.arrow((last, mid), (RIGHT - 22, mid))


def draw_mixer(c: Canvas, top: float) -> None:
    """The mixer and its gate."""
    mid, low, half = top + 104, top + 190, top + 288
    end = c.flow(
        MARGIN,
        top,
        RIGHT - MARGIN,
        352,
        mid,
        'Mixer',
        'of all tokens of the map; $E = 2C$',
    )
    c.arrow((end, mid), (end + 26, mid))
    end = c.chain(end + 26, mid, (108, 'linear', 'linear\n$C$ → $2E$'))
    start = c.fork(end, mid, half, '$E$')
    gate = c.chain(start, half, (30, 'act', 'SiLU'))
    end = c.chain(
        start, mid, (108, 'conv', '7×7 conv\ndepthwise'), (30, 'act', 'SiLU')
    )
    scan = c.scan(
        end + 26,
        end + 366,
        mid,
        low,
        '$H$ · $W$ × $E$',
        'linear',
        '',
        *SNAKE_SCAN,
    )
    product = scan + 53
    c.arrow((scan, mid), (product - 13, mid))
    c.node(product, mid, '×')
    c.arrow((gate, half), (product, half), (product, mid + 13))
    c.text((gate + scan) / 2, half - 14, 'gate', SMALL)
    c.arrow((product + 13, mid), (product + 53, mid))
    end = c.chain(product + 53, mid, (108, 'linear', 'linear\n$E$ → $C$'))
    c.arrow((end, mid), (RIGHT - 22, mid))
    c.text(
        product + 24,
        low,
        '$Δ$, $\\mathbf{B}$, $\\mathbf{C}$ of step $i$ are those\n'
        'of raster position $i$, whatever\ntoken the step visits',
        SMALL,
        ha='left',
        color=FAINT,
    )


def draw() -> Figure:
    """Draw everything on one figure."""
    return make_figure(
        HEIGHT,
        draw_overview,
        partial(draw_layer, top=320),
        partial(draw_mixer, top=526),
        partial(
            draw_paths, width=1040, paths=SNAKE_PATHS, snake=True, **LOW_ROW
        ),
        partial(
            draw_variants,
            x=MARGIN + 1040 + GAP,
            columns={'$C$': 120, 'layers $n$': 220, '3×3 convs $k$': 360},
            rows={
                name: (arch['embed_dims'], arch['depth'], arch['stem_convs'])
                for name, arch in PlainMamba.arch_settings.items()
            },
            **LOW_ROW,
        ),
    )

"""The figure of VCMamba."""

# ruff: noqa: RUF001  (multiplication signs and Greek letters are meant)
from functools import partial

from _canvas import (
    COLOURS,
    FAINT,
    GAP,
    LARGE,
    MARGIN,
    RIGHT,
    SMALL,
    SNAKE_PATHS,
    SNAKE_SCAN,
    WHITE,
    Canvas,
    draw_paths,
    make_figure,
)
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from vcmamba_mm.models import VCMamba

HEIGHT = 1184


def draw_overview(c: Canvas) -> None:
    """The top row: image, stem, stages, outputs."""
    archs = VCMamba.arch_settings.values()

    def common(values: list[int]) -> str:
        return str(values[0]) if len(set(values)) == 1 else '$n$'

    mid, height = 166, 160
    bottom = mid + height / 2
    c.title(
        'VCMamba',
        'three convolutional stages, then a fourth whose last '
        'blocks scan the map along four paths',
    )
    c.stem(mid, height, '2 × conv\n3×3, s2\nBN, ReLU')
    x, starts = 288, []
    for i in range(4):
        c.arrow((x - 26, mid), (x, mid))
        if i:
            c.downsample(x, mid, height, 'conv 3×3 s2, BN')
            x += 88
        num_mdm = [arch['num_mdm'] * (i == 3) for arch in archs]
        num_ffn = common(
            [arch['depths'][i] - n for arch, n in zip(archs, num_mdm)]
        )
        width = 332 if i == 3 else 126
        starts.append(x)
        c.stage(i + 1, x, mid, width, height)
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
    c.classifier(x, mid, height, 'linear head(s)')
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
    end = c.flow(
        x, top, width, 186, mid, 'FFN block', '$x + γ \\cdot$ ffn($x$)'
    )
    groups = (
        ((108, 'conv', '1×1 conv\n$C$ → $4C$'), bn, gelu),
        ((108, 'conv', '3×3 conv\ndepthwise'), bn, gelu),
        ((108, 'conv', '1×1 conv\n$4C$ → $C$'), bn),
    )
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
    end = c.flow(
        x,
        top,
        width,
        186,
        mid,
        'MDM block',
        '$x +$ mixer(BN($x$)),  then  $x +$ ffn(BN($x$))',
    )
    for kind, text in (
        ('mamba', 'Mixer:\nmulti-directional\nMamba'),
        ('conv', 'ffn\nof the FFN block,\nwithout $γ$'),
    ):
        norm = (30, 'norm', 'BN')
        end = c.residual(end, mid, 41, (norm,), ((172, kind, text),))
    c.arrow((end, mid), (x + width - 22, mid))


def draw_mixer(c: Canvas, top: float) -> None:
    """The mixer of the MDM block."""
    mid, low = top + 104, top + 190
    end = c.flow(MARGIN, top, RIGHT - MARGIN, 252, mid, 'Mixer')
    for group in (
        ((108, 'conv', '1×1 conv\n$C$ → $2C$'), (30, 'norm', 'BN')),
        ((108, 'conv', '7×7 conv\ndepthwise'), (30, 'act', 'SiLU')),
    ):
        c.arrow((end, mid), (end + 26, mid))
        end = c.chain(end + 26, mid, *group)
    end = scan = c.scan(
        end + 26,
        end + 356,
        mid,
        low,
        '$H$ · $W$ × $2C$',
        'linear',
        '',
        *SNAKE_SCAN,
    )
    for group in (
        ((110, 'norm', 'LayerNorm'), (30, 'act', 'ReLU')),
        ((108, 'conv', '1×1 conv\n$2C$ → $C$'), (30, 'norm', 'BN')),
    ):
        c.arrow((end, mid), (end + 26, mid))
        end = c.chain(end + 26, mid, *group)
    c.arrow((end, mid), (RIGHT - 22, mid))
    c.text(
        scan + 26,
        low,
        '$Δ$, $\\mathbf{B}$, $\\mathbf{C}$ of step '
        '$i$ are those of raster\nposition $i$ (released weights) or of\n'
        'token $o(i)$ (paper): param_order',
        SMALL,
        ha='left',
        color=FAINT,
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
    return make_figure(
        HEIGHT,
        draw_overview,
        partial(draw_blocks, top=384),
        partial(draw_mixer, top=590),
        partial(
            draw_paths,
            top=862,
            height=298,
            width=1040,
            paths=SNAKE_PATHS,
            snake=True,
        ),
        partial(draw_variants, x=MARGIN + 1040 + GAP, top=862, height=298),
    )

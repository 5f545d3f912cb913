"""The figure of VMamba."""

# ruff: noqa: RUF001  (multiplication signs and Greek letters are meant)
from functools import partial

from _canvas import (
    FAINT,
    GAP,
    MARGIN,
    RIGHT,
    SMALL,
    Canvas,
    draw_paths,
    draw_variants,
    make_figure,
)
from matplotlib.figure import Figure

from vcmamba_mm.models import VMamba
from vcmamba_mm.models.vmamba.mixer import PATHS

HEIGHT = 1120
TITLES = ('rows', 'columns', 'path 1 reversed', 'path 2 reversed')


def draw_overview(c: Canvas) -> None:
    """The top row: image, stem, stages, classifier."""
    mid, height, width = 166, 160, 160
    c.title('VMamba', 'all stages scan the map along four paths')
    c.stem(mid, height, '2 × conv\n3×3, s2\nLN, GELU')
    x = 288
    for i in range(4):
        c.arrow((x - 26, mid), (x, mid))
        if i:
            c.downsample(x, mid, height, 'conv 3×3 s2, LN')
            x += 88
        c.stage(i + 1, x, mid, width, height)
        c.box(
            x + 20,
            mid + 18,
            width - 40,
            92,
            'mamba',
            f'VSS\nblock\n× $n_{i + 1}$',
        )
        c.text(
            x + width / 2,
            mid + height / 2 + 22,
            f'stride {4 * 2**i},  $C_{i + 1}$',
            SMALL,
        )
        x += width + 26
    c.classifier(x, mid, height, 'linear head')
    c.text(
        (288 + x - 26) / 2,
        mid + height / 2 + 50,
        'segmenters and detectors take the four maps, each with a LayerNorm '
        'of its own',
        color=FAINT,
    )


def draw_block(c: Canvas, top: float) -> None:
    """The two branches of a block."""
    mid = top + 122
    end = c.flow(
        MARGIN,
        top,
        RIGHT - MARGIN,
        186,
        mid,
        'VSS block',
        '$x +$ mixer(LN($x$)),  then  $x +$ mlp(LN($x$))',
    )
    for parts in (
        ((200, 'mamba', 'Mixer: SS2D'),),
        (
            (150, 'linear', 'linear\n$C$ → $4C$'),
            (30, 'act', 'GELU'),
            (150, 'linear', 'linear\n$4C$ → $C$'),
        ),
    ):
        end = c.residual(end, mid, 100, ((30, 'norm', 'LN'),), parts)
    c.arrow((end, mid), (RIGHT - 22, mid))


def draw_mixer(c: Canvas, top: float) -> None:
    """The mixer."""
    mid, low = top + 104, top + 190
    end = c.flow(MARGIN, top, RIGHT - MARGIN, 252, mid, 'Mixer: SS2D')
    for group in (
        ((108, 'linear', 'linear\n$C$ → $E$'),),
        ((108, 'conv', '3×3 conv\ndepthwise'), (30, 'act', 'SiLU')),
    ):
        c.arrow((end, mid), (end + 26, mid))
        end = c.chain(end + 26, mid, *group)
    end = c.scan(
        end + 26,
        end + 386,
        mid,
        low,
        '$H$ · $W$ × $E$',
        'linear,\nfor each\npath',
        '_k',
        'Selective scan along each path $k$',
        '$h_i = e^{Δ_k A_k}\\, h_{i-1} + Δ_k\\, \\mathbf{B}_k\\, x_{o(i)}$',
        '$y_{o(i)} \\leftarrow y_{o(i)} + \\mathbf{C}_k\\, h_i'
        ' + D_k\\, x_{o(i)}$',
        'step $i$ visits token $o(i)$, whose $Δ_k, \\mathbf{B}_k, '
        '\\mathbf{C}_k$ it uses;\n$A_k, D_k$ are learned',
    )
    for group in (
        ((110, 'norm', 'LayerNorm'),),
        ((108, 'linear', 'linear\n$E$ → $C$'),),
    ):
        c.arrow((end, mid), (end + 40, mid))
        end = c.chain(end + 40, mid, *group)
    c.arrow((end, mid), (RIGHT - 22, mid))


def draw() -> Figure:
    """Draw everything on one figure."""
    titles = (f'{i + 1}: {title}' for i, title in enumerate(TITLES))
    return make_figure(
        HEIGHT,
        draw_overview,
        partial(draw_block, top=320),
        partial(draw_mixer, top=526),
        partial(
            draw_paths,
            top=798,
            height=298,
            width=1010,
            paths=dict(zip(PATHS, titles)),
            snake=False,
        ),
        partial(
            draw_variants,
            x=MARGIN + 1010 + GAP,
            top=798,
            height=298,
            columns={'$C_1$ … $C_4$': 170, '$n_1$ … $n_4$': 330, '$E/C$': 450},
            rows={
                name: (
                    f'{arch["embed_dims"][0]} … {arch["embed_dims"][-1]}',
                    ', '.join(map(str, arch['depths'])),
                    arch['expand'],
                )
                for name, arch in VMamba.arch_settings.items()
            },
        ),
    )

"""What the multi-directional scan does on a picture.

paths        the four snake paths over the tokens of a picture
activations  how strongly each path answers at each token
decay        how much of a token is left when each path reaches the others
"""

import argparse

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from torch import Tensor

from vcmamba_mm.analysis.figures import new_figure, write_figure
from vcmamba_mm.analysis.pictures import (
    load_picture,
    model_inputs,
    trained_size,
)
from vcmamba_mm.analysis.scan_maps import (
    Scan,
    decay_maps,
    direction_activations,
    memory_length,
    record_scan,
)
from vcmamba_mm.data.pictures import build_reading, viewable
from vcmamba_mm.data.reading import LoadImageStrict
from vcmamba_mm.inference import get_model
from vcmamba_mm.model_zoo import load_config
from vcmamba_mm.ops.scan_paths import NUM_PATHS, scan_paths
from vcmamba_mm.training.command_line import (
    add_weights_argument,
    one_line_errors,
)
from vcmamba_mm.training.errors import SETUP_ERRORS

NAMES = (
    '1: along the rows',
    '2: path 1 reversed',
    '3: along the columns',
    '4: path 3 reversed',
)
LEAST_DECAY = 1e-4  # end of the colour scale
SHARE = 0.01  # of a token, for the sentence


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest='command', required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('picture')
    common.add_argument(
        '--size',
        type=int,
        help='height and width in pixels that the picture is resized and '
        'cropped to; by default what the model is made for',
    )
    common.add_argument('--out', required=True, help='PNG file to write')
    paths = commands.add_parser('paths', parents=[common])
    paths.add_argument(
        '--stride',
        type=int,
        default=32,
        help='pixels of a token (%(default)s)',
    )
    for name in ('activations', 'decay'):
        command = commands.add_parser(name, parents=[common])
        command.add_argument(
            '--model',
            required=True,
            metavar='NAME_OR_CONFIG',
            help='of a classifier or a segmenter',
        )
        command.add_argument('--checkpoint', help='by default random weights')
        add_weights_argument(command)
        command.add_argument(
            '--layer',
            type=int,
            default=-1,
            help='which mixer, from 0; negative ones count from the end '
            '(%(default)s)',
        )
    command.add_argument(
        '--token',
        type=int,
        nargs=2,
        metavar=('ROW', 'COLUMN'),
        help='chosen token, from 0; by default the one in the middle',
    )
    return parser.parse_args()


def draw_path(
    ax: Axes, order: Tensor, height: int, width: int, size: int, **line
) -> LineCollection:
    """Draw a path through the middles of the tokens, in pixels."""
    rows, columns = np.divmod(order.cpu().numpy(), width)
    x, y = (columns + 0.5) * size / width, (rows + 0.5) * size / height
    points = np.stack([x, y], axis=1)
    lines = LineCollection(np.stack([points[:-1], points[1:]], 1), **line)
    ax.add_collection(lines)
    # Where it begins, and where to.
    colour = line.get('color') or lines.get_cmap()(0.0)
    ax.plot(x[0], y[0], 'o', color=colour, markersize=6)
    end = line.get('color') or lines.get_cmap()(1.0)
    ax.annotate(
        '',
        (x[-1], y[-1]),
        (x[-2:][0], y[-2:][0]),
        arrowprops=dict(arrowstyle='-|>', color=end, linewidth=2),
    )
    return lines


def draw_paths(picture: np.ndarray, stride: int, out: str) -> str:
    size = len(picture)
    tokens = -(-size // stride)
    figure, (axes,) = new_figure(1, NUM_PATHS, cell=(3.4, 3.6))
    for p, (ax, order) in enumerate(
        zip(axes, scan_paths(tokens, tokens).order)
    ):
        ax.imshow(picture, alpha=0.45, extent=(0, size, size, 0))
        steps = np.arange(tokens**2 - 1)
        lines = draw_path(
            ax, order, tokens, tokens, size, array=steps, cmap='plasma', lw=2.5
        )
        ax.set_title(NAMES[p])
        ax.axis('off')
    figure.colorbar(
        lines, ax=axes, label='step', shrink=0.8, pad=0.01, aspect=30
    )
    write_figure(figure, out)
    return (
        f'Every path visits all {tokens} x {tokens} tokens in steps from one '
        'to a neighbour, and each token directly follows each of its '
        'neighbours on one of the four.'
    )


def overlay(
    picture: np.ndarray, maps: np.ndarray, label: str, norm: Normalize
) -> tuple:
    """The picture, and the maps of the paths over it in grey."""
    size = len(picture)
    extent = (0, size, size, 0)
    figure, (axes,) = new_figure(1, len(maps) + 1, cell=(3, 3.2))
    axes[0].imshow(picture, extent=extent)
    axes[0].set_title('picture')
    for p, ax in enumerate(axes[1:]):
        ax.imshow(picture.mean(2), cmap='gray', extent=extent)
        image = ax.imshow(
            maps[p], cmap='inferno', norm=norm, alpha=0.75, extent=extent
        )
        ax.set_title(NAMES[p])
    for ax in axes:
        ax.axis('off')
    figure.colorbar(
        image, ax=axes, label=label, shrink=0.8, pad=0.01, aspect=30
    )
    return figure, axes


def draw_activations(picture: np.ndarray, scan: Scan, out: str) -> str:
    maps = direction_activations(scan)[0].cpu().numpy()
    norm = Normalize(0, maps.max())
    figure, _ = overlay(picture, maps, 'mean |read-out|', norm)
    write_figure(figure, out)
    means = maps.mean((1, 2))
    row, column = np.unravel_index(maps.sum(0).argmax(), maps.shape[1:])
    return (
        f'The paths answer with a mean magnitude of '
        f'{", ".join(f"{m:.3g}" for m in means)}, path {means.argmax() + 1} '
        f'the strongest, and all together most at token ({row}, {column}).'
    )


def draw_decay(
    picture: np.ndarray, scan: Scan, token: list[int] | None, out: str
) -> str:
    height, width = scan.options[:2]
    row, column = token or (height // 2, width // 2)
    maps = decay_maps(scan, row, column)[:1]
    norm = LogNorm(LEAST_DECAY, 1)
    shown = np.clip(maps[0].cpu().numpy(), LEAST_DECAY, 1)
    figure, axes = overlay(picture, shown, 'share of the token left', norm)
    size = len(picture)
    x, y = (column + 0.5) / width, (row + 0.5) / height
    for ax in axes:
        ax.plot(x * size, y * size, '*', color='cyan', markersize=10)
    for ax, order in zip(axes[1:], scan.options.tables('cpu').order):
        draw_path(ax, order, height, width, size, color='white', alpha=0.35)
    write_figure(figure, out)
    lengths = memory_length(maps, SHARE)[0].tolist()
    return (
        f'Of what the token ({row}, {column}) writes into the state, at least '
        f'{SHARE:.0%} is left for the next {", ".join(map(str, lengths))} '
        'tokens of the paths.'
    )


def main() -> None:
    args = parse_args()
    with one_line_errors(*SETUP_ERRORS):
        if args.command == 'paths':
            picture = viewable(
                load_picture(args.picture, args.size or 224, LoadImageStrict())
            )
            sentence = draw_paths(picture, args.stride, args.out)
        else:
            cfg = load_config(args.model)
            model = get_model(cfg, args.checkpoint, weights=args.weights)
            size = args.size or trained_size(model)
            picture = load_picture(args.picture, size, build_reading(cfg))
            inputs = model_inputs(model, [picture])
            picture = viewable(picture)
            scan = record_scan(model.backbone, inputs, args.layer)
            if args.command == 'activations':
                sentence = draw_activations(picture, scan, args.out)
            else:
                sentence = draw_decay(picture, scan, args.token, args.out)
    print(sentence)
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()

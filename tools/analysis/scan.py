"""What the scan of a mixer does on an image.

paths        the paths over the tokens of an image: VCMamba's, or a model's
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
)
from vcmamba_mm.analysis.scan_maps import (
    Scan,
    decay_maps,
    direction_activations,
    memory_length,
    path_names,
    record_scan,
)
from vcmamba_mm.analysis.tokens import Windows
from vcmamba_mm.data.pictures import build_reading, viewable
from vcmamba_mm.data.reading import LoadImageStrict
from vcmamba_mm.inference import get_model
from vcmamba_mm.model_zoo import image_size, load_config
from vcmamba_mm.ops.scan_inputs import Options
from vcmamba_mm.training.command_line import (
    add_weights_argument,
    one_line_errors,
)
from vcmamba_mm.training.errors import SETUP_ERRORS

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
        help='height and width in pixels that the image is resized and '
        'cropped to; by default what the model is made for',
    )
    common.add_argument('--out', required=True, help='PNG file to write')
    for name in ('paths', 'activations', 'decay'):
        command = commands.add_parser(name, parents=[common])
        if name == 'paths':
            command.add_argument(
                '--stride',
                type=int,
                default=32,
                help='pixels of a token, without --model (%(default)s)',
            )
        command.add_argument(
            '--model',
            required=name != 'paths',
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
    ax: Axes,
    order: Tensor,
    windows: Windows,
    window: int,
    size: int,
    **line,
) -> LineCollection:
    """Draw a window's path through the middles of its tokens, in pixels.

    Of a window that reaches beyond the map, padded places are left out.
    """
    numbers = windows.numbers[window][order.cpu()]
    tokens = (numbers[numbers > 0] - 1).numpy()
    rows, columns = np.divmod(tokens, windows.width)
    x = (columns + 0.5) * size / windows.width
    y = (rows + 0.5) * size / windows.height
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


def draw_paths(
    picture: np.ndarray, options: Options, windows: Windows, out: str
) -> str:
    size = len(picture)
    numbers, height, width = windows
    names = path_names(options.paths)
    figure, (axes,) = new_figure(1, len(names), cell=(3.4, 3.6))
    for ax, name, order in zip(axes, names, options.tables('cpu').order):
        ax.imshow(picture, alpha=0.45, extent=(0, size, size, 0))
        for window, its in enumerate(numbers):
            steps = (its[order] > 0).nonzero()[:-1, 0].numpy()
            lines = draw_path(
                ax,
                order,
                windows,
                window,
                size,
                array=steps,
                cmap='plasma',
                norm=Normalize(0, max(1, len(order) - 1)),
                lw=2.5,
            )
        ax.set_title(name)
        ax.axis('off')
    figure.colorbar(
        lines, ax=axes, label='step', shrink=0.8, pad=0.01, aspect=30
    )
    write_figure(figure, out)
    sentence = f'Every path visits all {height} x {width} tokens'
    if numbers.numel() > height * width or len(numbers) > 1:
        sentence += (
            f', in {len(numbers)} windows of {numbers.shape[1]}, with '
            f'{int((numbers == 0).sum())} padded places'
        )
    if not options.snake:
        return (
            f'{sentence}, and from the end of a line it jumps to the '
            'beginning of the next.'
        )
    sentence += ' in steps from one to a neighbour'
    if len(names) == 4:
        sentence += (
            ', and each token directly follows each of its neighbours on one '
            'of the four'
        )
    return f'{sentence}.'


def overlay(
    picture: np.ndarray,
    maps: np.ndarray,
    paths: tuple[str, ...],
    label: str,
    norm: Normalize,
) -> tuple:
    """The image, and the maps of the paths over it in grey."""
    size = len(picture)
    extent = (0, size, size, 0)
    figure, (axes,) = new_figure(1, len(maps) + 1, cell=(3, 3.2))
    axes[0].imshow(picture, extent=extent)
    axes[0].set_title('picture')
    for ax, its, name in zip(axes[1:], maps, path_names(paths)):
        ax.imshow(picture.mean(2), cmap='gray', extent=extent)
        image = ax.imshow(
            its, cmap='inferno', norm=norm, alpha=0.75, extent=extent
        )
        ax.set_title(name)
    for ax in axes:
        ax.axis('off')
    figure.colorbar(
        image, ax=axes, label=label, shrink=0.8, pad=0.01, aspect=30
    )
    return figure, axes


def draw_activations(picture: np.ndarray, scan: Scan, out: str) -> str:
    maps = direction_activations(scan)[0].cpu().numpy()
    norm = Normalize(0, maps.max())
    paths = scan.options.paths
    figure, _ = overlay(picture, maps, paths, 'mean |read-out|', norm)
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
    height, width = scan.windows[1:]
    row, column = token or (height // 2, width // 2)
    maps = decay_maps(scan, row, column)[:1]
    norm = LogNorm(LEAST_DECAY, 1)
    shown = np.clip(maps[0].cpu().numpy(), LEAST_DECAY, 1)
    figure, axes = overlay(
        picture, shown, scan.options.paths, 'share of the token left', norm
    )
    size = len(picture)
    x, y = (column + 0.5) / width, (row + 0.5) / height
    for ax in axes:
        ax.plot(x * size, y * size, '*', color='cyan', markersize=10)
    window, _ = scan.windows.find(row, column)
    for ax, order in zip(axes[1:], scan.options.tables('cpu').order):
        draw_path(
            ax, order, scan.windows, window, size, color='white', alpha=0.35
        )
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
        if not args.model:
            picture = viewable(
                load_picture(args.picture, args.size or 224, LoadImageStrict())
            )
            tokens = -(-len(picture) // args.stride)
            options = Options(tokens, tokens)
            windows = Windows.of(tokens, tokens)
            sentence = draw_paths(picture, options, windows, args.out)
        else:
            cfg = load_config(args.model)
            model = get_model(cfg, args.checkpoint, weights=args.weights)
            size = args.size or image_size(cfg)[0]
            picture = load_picture(args.picture, size, build_reading(cfg))
            inputs = model_inputs(model, [picture])
            picture = viewable(picture)
            scan = record_scan(model.backbone, inputs, args.layer)
            if args.command == 'paths':
                sentence = draw_paths(picture, *scan[1:], args.out)
            elif args.command == 'activations':
                sentence = draw_activations(picture, scan, args.out)
            else:
                sentence = draw_decay(picture, scan, args.token, args.out)
    print(sentence)
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()

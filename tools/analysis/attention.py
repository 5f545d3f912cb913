"""What one token attends to: the weights of an attention layer, by head."""

import argparse

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from vcmamba_mm.analysis.attention_maps import AttentionMap, attention_map
from vcmamba_mm.analysis.figures import new_figure, write_figure
from vcmamba_mm.analysis.pictures import (
    load_picture,
    model_inputs,
)
from vcmamba_mm.data.pictures import build_reading, viewable
from vcmamba_mm.inference import get_model
from vcmamba_mm.model_zoo import image_size, load_config
from vcmamba_mm.training.command_line import (
    add_weights_argument,
    one_line_errors,
)
from vcmamba_mm.training.errors import SETUP_ERRORS

COLUMNS = 6  # of the figure, at most


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('picture')
    parser.add_argument(
        '--model',
        required=True,
        metavar='NAME_OR_CONFIG',
        help='of a classifier or a segmenter that has attention',
    )
    parser.add_argument('--checkpoint', help='by default random weights')
    add_weights_argument(parser)
    parser.add_argument(
        '--layer',
        type=int,
        default=-1,
        help='which attention layer, from 0; negative ones count from the '
        'end (%(default)s)',
    )
    parser.add_argument(
        '--pixel',
        type=int,
        nargs=2,
        metavar=('ROW', 'COLUMN'),
        help='whose token attends, from 0, in the image as it is resized '
        'and cropped; by default the one in the middle',
    )
    parser.add_argument(
        '--size',
        type=int,
        help='height and width in pixels that the image is resized and '
        'cropped to; by default what the model is made for',
    )
    parser.add_argument('--out', required=True, help='PNG file to write')
    return parser.parse_args()


def draw(picture: np.ndarray, found: AttentionMap, out: str) -> str:
    """Image, mean over the heads, each head; returns what is to be seen."""
    maps, padding = found.maps[0].numpy(), found.padding[0].numpy()
    mean = maps.mean(0)
    cells = [('picture', None), ('mean', mean)]
    cells += [(f'head {i}', its) for i, its in enumerate(maps)]
    columns = min(COLUMNS, len(cells))
    figure, axes = new_figure(
        -(-len(cells) // columns), columns, cell=(3, 3.3)
    )
    axes = np.ravel(axes)
    size, (height, width) = len(picture), mean.shape
    extent, norm = (0, size, size, 0), Normalize(0, maps.max())
    y, x = ((n + 0.5) * size / m for n, m in zip(found.token, mean.shape))
    top, left, bottom, right = found.window
    for ax, (title, its) in zip(axes, cells):
        if its is None:
            ax.imshow(picture, extent=extent)
        else:
            ax.imshow(picture.mean(2), cmap='gray', extent=extent)
            image = ax.imshow(
                its, cmap='inferno', norm=norm, alpha=0.75, extent=extent
            )
        ax.add_patch(
            Rectangle(
                (left * size / width, top * size / height),
                (right - left) * size / width,
                (bottom - top) * size / height,
                fill=False,
                edgecolor='cyan',
            )
        )
        ax.plot(x, y, '*', color='cyan', markersize=10)
        ax.set_title(title)
    for ax in axes:
        ax.axis('off')
    figure.colorbar(
        image, ax=axes, label='weight', shrink=0.8, pad=0.01, aspect=30
    )
    write_figure(figure, out)
    place = tuple(map(int, np.unravel_index(mean.argmax(), mean.shape)))
    return (
        f'The token {found.token} attends to rows {top} to {bottom - 1} and '
        f'columns {left} to {right - 1} of a map of {height} x {width}, most '
        f'to {place} in the mean over {len(maps)} heads; '
        f'{padding.mean():.1%} of the weight falls on padded places.'
    )


def main() -> None:
    args = parse_args()
    with one_line_errors(*SETUP_ERRORS):
        cfg = load_config(args.model)
        model = get_model(cfg, args.checkpoint, weights=args.weights)
        size = args.size or image_size(cfg)[0]
        picture = load_picture(args.picture, size, build_reading(cfg))
        inputs = model_inputs(model, [picture])
        pixel = args.pixel or (size // 2, size // 2)
        found = attention_map(model.backbone, inputs, pixel, args.layer)
        sentence = draw(
            viewable(picture),
            found._replace(maps=found.maps.cpu(), padding=found.padding.cpu()),
            args.out,
        )
    print(sentence)
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()

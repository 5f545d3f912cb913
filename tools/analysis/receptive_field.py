"""Effective receptive fields of the stages, before and after training.

Before training are random weights as a training begins with; after it those
of the checkpoint. Of PlainMamba, whose layers are its stages, those at the
ends of four quarters are shown.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import LogNorm
from mmengine.model import BaseModel
from rich.progress import track
from torch import Tensor

from vcmamba_mm.analysis.figures import (
    new_figure,
    shown_stages,
    write_figure,
)
from vcmamba_mm.analysis.pictures import load_picture, model_inputs
from vcmamba_mm.analysis.receptive_field import (
    StageMap,
    effective_receptive_field,
    side_of_share,
)
from vcmamba_mm.data.folders import pictures_below
from vcmamba_mm.data.pictures import build_reading
from vcmamba_mm.inference import get_model
from vcmamba_mm.model_zoo import load_config
from vcmamba_mm.training.command_line import (
    add_weights_argument,
    one_line_errors,
)
from vcmamba_mm.training.errors import SETUP_ERRORS

LEAST = 1e-3  # end of the colour scale
SHARE = 0.5  # of the gradient, for the sentence


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config file, or name of a model')
    parser.add_argument('checkpoint', nargs='?', help='after training')
    add_weights_argument(parser)
    parser.add_argument(
        '--pictures',
        required=True,
        metavar='FOLDER',
        help='with images, at any depth',
    )
    parser.add_argument(
        '--max-pictures', type=int, default=50, help='(%(default)s)'
    )
    parser.add_argument(
        '--size',
        type=int,
        default=512,
        help='height and width in pixels that images are resized and '
        'cropped to (%(default)s)',
    )
    parser.add_argument(
        '--seed', type=int, default=0, help='of the random weights'
    )
    parser.add_argument('--out', required=True, help='PNG file to write')
    return parser.parse_args()


def find_pictures(folder: str, number: int) -> list[Path]:
    found = pictures_below(Path(folder))
    if not found:
        raise FileNotFoundError(f'there are no images in {folder}')
    # From all classes, if the folders are such.
    step = max(1, len(found) // number)
    return found[::step][:number]


def fields(model: BaseModel, pictures: list[np.ndarray]) -> dict[str, Tensor]:
    """Of stages, by name."""
    inputs = [model_inputs(model, [picture]) for picture in pictures]
    maps = {}
    for stage in shown_stages(model.backbone):
        name = f'{model.backbone.stage_name} {stage}'
        model.backbone.out_indices = (stage - 1,)  # later ones need not run
        batches = track(inputs, name)
        own = StageMap(model.backbone, stage - 1).eval()
        maps[name] = effective_receptive_field(own, batches)
    return maps


def draw(rows: dict[str, dict[str, Tensor]], out: str) -> None:
    stages = len(next(iter(rows.values())))
    figure, axes = new_figure(len(rows), stages, cell=(3, 3.1))
    for line, (title, maps) in zip(axes, rows.items()):
        line[0].set_ylabel(title, fontsize='large')
        for ax, (name, field) in zip(line, maps.items()):
            image = ax.imshow(
                field.clamp(min=LEAST).numpy(),
                cmap='viridis',
                norm=LogNorm(LEAST, 1),
                interpolation='antialiased',
            )
            ax.set_title(
                f'{name}: half within {side_of_share(field, SHARE)} px'
            )
            ax.set(xticks=[], yticks=[])
    figure.colorbar(
        image,
        ax=axes,
        label='mean |gradient| of the feature in the middle',
        shrink=0.8,
        pad=0.01,
    )
    write_figure(figure, out)


def main() -> None:
    args = parse_args()
    with one_line_errors(*SETUP_ERRORS):
        paths = find_pictures(args.pictures, args.max_pictures)
        cfg = load_config(args.config)
        read = build_reading(cfg)
        pictures = [load_picture(path, args.size, read) for path in paths]
        torch.manual_seed(args.seed)
        # Their constructors give all layers the weights training begins with.
        rows = {'before training': fields(get_model(cfg), pictures)}
        if args.checkpoint:
            trained = get_model(cfg, args.checkpoint, weights=args.weights)
            rows['after training'] = fields(trained, pictures)
        draw(rows, args.out)
    *_, last = rows['before training']
    sides = [side_of_share(maps[last], SHARE) for maps in rows.values()]
    print(
        f'Over {len(pictures)} images of {args.size} x {args.size} pixels '
        f'{SHARE:.0%} of the gradient of {last} lies within a square '
        f'of {" px before training and of ".join(map(str, sides))} px '
        f'{"after" if args.checkpoint else "before"} training.'
    )
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()

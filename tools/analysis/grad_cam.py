"""Grad-CAM of a classifier's stages or blocks: what speaks for a class."""

import argparse

import numpy as np
import torch
from mmengine.model import BaseModel

from vcmamba_mm.analysis.class_activation import (
    METHODS,
    block_layer,
    class_activation_map,
)
from vcmamba_mm.analysis.figures import (
    new_figure,
    shown_stages,
    write_figure,
)
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


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('pictures', nargs='+')
    parser.add_argument('--model', required=True, metavar='NAME_OR_CONFIG')
    parser.add_argument('--checkpoint', required=True)
    add_weights_argument(parser)
    parser.add_argument(
        '--label',
        type=int,
        help='index of the class; by default the one predicted',
    )
    parser.add_argument(
        '--stage',
        type=int,
        nargs='+',
        help='from 1, of PlainMamba the layers; by default all of them, of '
        'more than four the ends of four quarters',
    )
    parser.add_argument(
        '--block',
        type=int,
        nargs='+',
        help='of these stages, from 1; by default the last, which gives what '
        'the stage returns',
    )
    parser.add_argument(
        '--method', choices=METHODS, default='GradCAM', help='(%(default)s)'
    )
    parser.add_argument(
        '--size',
        type=int,
        help='height and width in pixels that images are resized and '
        'cropped to; by default what the model is made for',
    )
    parser.add_argument('--out', required=True, help='PNG file to write')
    return parser.parse_args()


def half_share(cam: np.ndarray) -> float:
    """Share of the image that holds half of the activation."""
    held = np.sort(cam, axis=None)[::-1].cumsum()
    return float((held < held[-1] / 2).mean())


def layer_name(model: BaseModel, stage: int, block: int | None) -> str:
    """Such as 'stage 3, block 2: Attention', with what mixes the tokens."""
    name = f'{model.backbone.stage_name} {stage}'
    if block is None:
        return name
    layer = block_layer(model, stage, block)
    kind = type(getattr(layer, 'mixer', layer)).__name__
    return f'{name}, block {block}: {kind}'


def main() -> None:
    args = parse_args()
    with one_line_errors(*SETUP_ERRORS):
        cfg = load_config(args.model)
        model = get_model(cfg, args.checkpoint, weights=args.weights)
        size = args.size or image_size(cfg)[0]
        read = build_reading(cfg)
        pictures = [load_picture(path, size, read) for path in args.pictures]
        if not model.with_head:
            raise ValueError(f'{args.model} is not a classifier')
        inputs = model_inputs(model, pictures)
        with torch.no_grad():
            predictions = model(inputs, mode='predict')
            scores = torch.stack([p.pred_score for p in predictions])
        if args.label is None:
            labels = scores.argmax(1).tolist()
        elif 0 <= args.label < scores.shape[1]:
            labels = [args.label] * len(pictures)
        else:
            raise ValueError(
                f'--label must be from 0 to {scores.shape[1] - 1}, got '
                f'{args.label}'
            )
        stages = args.stage or shown_stages(model.backbone)
        cams = {
            layer_name(model, stage, block): class_activation_map(
                model, inputs, labels, stage, args.method, block
            )
            for stage in stages
            for block in args.block or (None,)
        }
        names = model.dataset_meta.get('classes') or range(scores.shape[1])
        titles = [
            f'{str(names[k]).partition(",")[0]} {score[k]:.0%}'
            for k, score in zip(labels, scores)
        ]
        draw([viewable(p) for p in pictures], titles, cams, args.out)
    last, maps = list(cams.items())[-1]
    for path, title, cam in zip(args.pictures, titles, maps):
        row, column = np.unravel_index(cam.argmax(), cam.shape)
        print(
            f'{path}: {title}, for which {last} speaks most at row {row}, '
            f'column {column}, half of it on {half_share(cam):.0%} of the '
            'image.'
        )
    print(f'written: {args.out}')


def draw(
    pictures: list[np.ndarray],
    titles: list[str],
    cams: dict[str, np.ndarray],
    out: str,
) -> None:
    figure, axes = new_figure(len(pictures), 1 + len(cams), cell=(2.8, 3))
    for i, (picture, title, line) in enumerate(zip(pictures, titles, axes)):
        line[0].imshow(picture)
        line[0].set_title(title)
        for ax, (name, maps) in zip(line[1:], cams.items()):
            ax.imshow(picture)
            image = ax.imshow(maps[i], cmap='jet', alpha=0.5, vmin=0, vmax=1)
            ax.set_title(name.replace(': ', '\n'))
        for ax in line:
            ax.axis('off')
    figure.colorbar(
        image, ax=axes, label='activation', shrink=0.8, pad=0.01
    ).solids.set_alpha(1)
    write_figure(figure, out)


if __name__ == '__main__':
    main()

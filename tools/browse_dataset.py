"""Show augmented batches as the model sees them, in one PNG.

A row is a batch that has gone through the pipeline, the loader and the model's
data preprocessor, Mixup and CutMix included. Below an image is the label that
the loss gets; label maps are painted over.
"""

import argparse
import io
from itertools import islice
from pathlib import Path

import numpy as np
from mmcv.image import imresize
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import set_random_seed
from mmengine.structures import BaseDataElement
from PIL import Image, ImageDraw
from torch import Tensor

from vcmamba_mm.data.pictures import viewable
from vcmamba_mm.files import write_file
from vcmamba_mm.training.command_line import (
    LOOP_ERRORS,
    Options,
    one_line_errors,
)
from vcmamba_mm.training.config import check_data, load_config, name_unreadable
from vcmamba_mm.training.errors import SETUP_ERRORS
from vcmamba_mm.training.runner import SafeRunner

SMALLEST = 160  # pixels on a side; smaller pictures are enlarged
LINE = 12  # height of a line of text


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('browse.png'),
        help='PNG file to write, by default %(default)s',
    )
    parser.add_argument(
        '--loop',
        choices=['train', 'val', 'test'],
        default='train',
        help='whose loader; by default %(default)s',
    )
    parser.add_argument('--batches', type=int, default=4, help='%(default)s')
    parser.add_argument(
        '--batch-size', type=int, default=8, help='%(default)s'
    )
    parser.add_argument('--seed', type=int, default=0, help='%(default)s')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Options,
        metavar='KEY=VALUE',
        help='override settings of the config',
    )
    parser.set_defaults(launcher='none', work_dir=None)
    args = parser.parse_args()
    if args.batches < 1 or args.batch_size < 1:
        parser.error('--batches and --batch-size must be positive')
    return args


def to_pixels(
    inputs: Tensor, preprocessor: BaseDataPreprocessor
) -> np.ndarray:
    """Undo the normalization: (n, channels, h, w) to (n, h, w, 3), RGB."""
    inputs = inputs.detach().cpu()
    if getattr(preprocessor, '_enable_normalize', False):
        inputs = inputs * preprocessor.std + preprocessor.mean
    pixels = inputs.round().permute(0, 2, 3, 1).numpy()
    converted = getattr(preprocessor, 'to_rgb', False) or getattr(
        preprocessor, '_channel_conversion', False
    )
    if converted and pixels.shape[3] == 3:
        pixels = pixels[..., ::-1]
    return np.stack([viewable(picture) for picture in pixels])


def describe(sample: BaseDataElement, classes: tuple[str, ...]) -> list[str]:
    """Lines with the classes of a sample, and their parts if it has two."""

    def name(label: int) -> str:
        return classes[label].split(',')[0] if classes else f'class {label}'

    score = sample.get('gt_score')
    if score is not None:
        labels = score.argsort(descending=True)[:2].tolist()
        return [
            f'{score[label]:.2f} {name(label)}'
            for label in labels
            if score[label] > 0
        ]
    label = sample.get('gt_label')
    return [] if label is None else [name(i) for i in label.tolist()]


def paint(
    pixels: np.ndarray, sample: BaseDataElement, palette: np.ndarray
) -> np.ndarray:
    """Mix a label map into an image; what is ignored stays as it is."""
    if sample.get('gt_sem_seg') is None:
        return pixels
    labels = sample.gt_sem_seg.data[0].cpu().numpy()
    if labels.shape != pixels.shape[:2]:
        # In testing it keeps the size of the file.
        labels = imresize(
            labels.astype(np.int32),
            pixels.shape[1::-1],
            interpolation='nearest',
        )
    known = labels < len(palette)
    mixed = (pixels[known].astype(int) + palette[labels[known]]) // 2
    pixels = pixels.copy()
    pixels[known] = mixed
    return pixels


def draw(
    batches: list[tuple[np.ndarray, list[BaseDataElement]]],
    dataset: BaseDataset,
) -> Image.Image:
    """Draw a row for every batch."""
    meta = getattr(dataset, 'metainfo', {})
    classes = meta.get('classes', ())
    palette = np.array(meta.get('palette', ()), int)
    sizes = [pixels.shape[1:3] for pixels, _ in batches]
    enlarge = max(1, -(-SMALLEST // max(max(size) for size in sizes)))
    height, width = (enlarge * max(axis) for axis in zip(*sizes))
    step = height + 2 * LINE + 4
    columns = max(len(samples) for _, samples in batches)
    canvas = Image.new('RGB', (columns * (width + 4), len(batches) * step))
    pen = ImageDraw.Draw(canvas)
    for row, (pictures, samples) in enumerate(batches):
        for column, (pixels, sample) in enumerate(zip(pictures, samples)):
            picture = Image.fromarray(paint(pixels, sample, palette))
            picture = picture.resize(
                [enlarge * side for side in picture.size], Image.NEAREST
            )
            x, y = column * (width + 4), row * step
            canvas.paste(picture, (x, y))
            for i, line in enumerate(describe(sample, classes)):
                pen.text((x, y + height + i * LINE), line[: width // 6])
    return canvas


def load_batches(
    cfg: Config, args: argparse.Namespace
) -> tuple[list, BaseDataset]:
    """Load batches and send them through the model's preprocessor."""
    init_default_scope(cfg.default_scope)
    set_random_seed(args.seed)
    loader = cfg[f'{args.loop}_dataloader']
    loader.update(
        batch_size=args.batch_size,
        num_workers=0,
        persistent_workers=False,
        pin_memory=False,
    )
    loader = SafeRunner.build_dataloader(loader, seed=args.seed)
    if cfg.get('data_preprocessor'):
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    preprocessor = MODELS.build(cfg.model).data_preprocessor
    batches = []
    for batch in islice(loader, args.batches):
        batch = preprocessor(batch, training=args.loop == 'train')
        pixels = to_pixels(batch['inputs'], preprocessor)
        batches.append((pixels, batch['data_samples']))
    return batches, loader.dataset


def main() -> None:
    args = parse_args()
    with one_line_errors(*SETUP_ERRORS, *LOOP_ERRORS):
        cfg = load_config(args)
        check_data(cfg, args.loop)
        name_unreadable(cfg, args.loop)
        canvas = draw(*load_batches(cfg, args))
        content = io.BytesIO()
        canvas.save(content, 'PNG')
        write_file(content.getvalue(), args.out)
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()

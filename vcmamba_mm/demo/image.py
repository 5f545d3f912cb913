"""Paint what a classifier or a segmenter sees in one's own images."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import track

from ..data.folders import pictures_below
from ..data.pictures import build_reading, viewable
from ..data.reading import ImageReadError
from ..inference import get_inferencer
from ..model_zoo import load_config
from ..training.results import paint

if TYPE_CHECKING:
    from mmpretrain.structures import DataSample
    from mmseg.structures import SegDataSample

    from ..classification.inferencer import ClassificationInferencer
    from ..segmentation.inferencer import SegmentationInferencer

OPACITY = 0.6  # of masks
NUM_LISTED = 3  # classes

# Paints a picture (RGB) and what was predicted of it into a file; says it too.
Painter = Callable[[np.ndarray, 'DataSample | SegDataSample', Path], str]


def find_pictures(
    paths: Iterable[str | Path], out: str | Path
) -> list[tuple[Path, Path]]:
    """List images, those in folders too, and where to paint each.

    Args:
        paths: Files and folders.
        out: Folder for what is painted. A file goes there by its name, what
            is below a folder by its path from there. If it lies in one of
            the folders, what was painted before is not an image.

    Returns:
        list: Pairs of source and target. A path that does not exist, and a
        folder without images, is one, for the reading to complain of.

    Raises:
        FileExistsError: If two images would be painted to the same place,
            or one over a source.
    """
    pairs = {}
    for path in map(Path, paths):
        found = pictures_below(path, Path(out))
        for source in found or [path]:
            name = source.relative_to(path) if found else source.name
            target = Path(out) / name
            if pairs.setdefault(target, source) != source:
                raise FileExistsError(
                    f'{pairs[target]} and {source} would both be painted to '
                    f'{target}: give a folder that holds both'
                )
    sources = {source.resolve() for source in pairs.values()}
    for target in pairs:
        if target.resolve() in sources:
            raise FileExistsError(
                f'{target} would be painted over: name another folder with '
                '--out'
            )
    return [(source, target) for target, source in pairs.items()]


def _classes_painter(inferencer: 'ClassificationInferencer') -> Painter:
    from mmpretrain.visualization import UniversalVisualizer

    from ..classification.inferencer import predicted_classes

    visualizer = UniversalVisualizer()
    # Of an ImageNet class the first of its names.
    classes = inferencer.classes and [
        name.partition(',')[0] for name in inferencer.classes
    ]

    def paint_classes(
        image: np.ndarray, sample: 'DataSample', path: Path
    ) -> str:
        paint(visualizer, image, sample, path, classes=classes, draw_gt=False)
        if inferencer.multi_label:
            scores, labels = predicted_classes(sample)
            return _listed(scores, labels, classes) or 'none of the classes'
        scores, labels = sample.pred_score.sort(descending=True)
        return _listed(scores.tolist(), labels.tolist(), classes)

    return paint_classes


def _masks_painter(inferencer: 'SegmentationInferencer') -> Painter:
    visualizer = inferencer.visualizer
    classes = inferencer.model.dataset_meta['classes']
    visualizer.set_dataset_meta(
        classes, inferencer.model.dataset_meta['palette']
    )
    visualizer.alpha = OPACITY

    def paint_masks(
        image: np.ndarray, sample: 'SegDataSample', path: Path
    ) -> str:
        paint(visualizer, image, sample, path, draw_gt=False)
        # One output for two classes becomes 0.0 and 1.0.
        mask = sample.pred_sem_seg.data.long().cpu()
        labels, counts = mask.unique(return_counts=True)
        shares, order = (counts / counts.sum()).sort(descending=True)
        return _listed(shares.tolist(), labels[order].tolist(), classes)

    return paint_masks


def _listed(
    shares: list[float], labels: list[int], classes: Sequence[str] | None
) -> str:
    """The largest shares and whose they are, as text."""
    return ', '.join(
        f'{classes[label] if classes else label} {share:.0%}'
        for share, label in zip(shares[:NUM_LISTED], labels)
    )


def paint_pictures(
    paths: Iterable[str | Path],
    model: str,
    checkpoint: str,
    out: str | Path,
    device: str | None = None,
    weights: str | None = None,
) -> tuple[dict[Path, str], dict[Path, str]]:
    """Paint the class on images, or the masks over them.

    Args:
        paths: Images and folders of images, at any depth.
        model: Name or config file of a classifier or a segmenter.
        checkpoint: Its weights.
        out: Folder to be made; images keep their names there.
        device: By default the GPU if there is one.
        weights: As in ``get_model``.

    Returns:
        tuple: By image, what was seen in it, the classes with the largest
        scores or areas; and what is wrong with those that cannot be read,
        which are passed over.

    Raises:
        FileNotFoundError: If there is no such model or checkpoint.
        FileExistsError: As ``find_pictures``.
        CheckpointError: If the checkpoint is damaged or does not fit.
    """
    pairs = find_pictures(paths, out)
    cfg = load_config(model)
    inferencer = get_inferencer(cfg, checkpoint, device, weights)
    is_segmenter = hasattr(inferencer.model, 'decode_head')
    painter = _masks_painter if is_segmenter else _classes_painter
    paint_one = painter(inferencer)
    read = build_reading(cfg)
    seen, failed = {}, {}
    for source, target in track(
        pairs, 'Painting', console=Console(stderr=True)
    ):
        try:
            image = read(dict(img_path=str(source)))['img']
        except ImageReadError as error:
            failed[source] = str(error)
            continue
        (data,) = inferencer.preprocess([image])
        (sample,) = inferencer.forward(data)
        seen[source] = paint_one(viewable(image), sample, target)
    return seen, failed

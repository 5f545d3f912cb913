"""What was predicted of each image of a test, as files."""

import io
import os
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from unittest import mock

import mmengine.dist.utils
import numpy as np
import torch.nn.functional as F
from mmcv.image import imrescale
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, PixelData
from mmengine.visualization import Visualizer
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..data.folders import parts_of
from ..data.pictures import viewable
from ..files import write_file

SHORT_EDGE = 360  # pixels at least, so that the text on it can be read


def pictures_of(dataset: Dataset) -> dict[str, Dataset]:
    """The paths of a data set's images, and of which part each is.

    Args:
        dataset: MMEngine's, or one that wraps several.
    """
    return {
        path: part
        for part in parts_of(dataset)
        if hasattr(part, 'get_data_info')
        for i in range(len(part))
        if (path := part.get_data_info(i).get('img_path'))
    }


def paint(
    visualizer: Visualizer,
    image: np.ndarray,
    sample: BaseDataElement,
    path: Path,
    **kwargs,
) -> None:
    """Paint over an image what was predicted of it, into a file.

    Args:
        visualizer: Of mmpretrain, mmseg or mmdet.
        image: RGB; a classifier's or segmenter's is enlarged, so that its
            shorter edge has at least ``SHORT_EDGE`` pixels.
        sample: What was predicted, and the truth.
        path: Of the file.
        **kwargs: Further arguments of the visualizer's.
    """
    edge = min(image.shape[:2])
    if hasattr(visualizer, 'visualize_cls'):
        visualizer.visualize_cls(
            image,
            sample,
            resize=max(SHORT_EDGE, edge),
            out_file=str(path),
            **kwargs,
        )
        return
    masks = {  # of mmseg; mmdet's have no data
        key: mask.data
        for key, mask in sample.items()
        if key.endswith('_sem_seg') and 'data' in mask
    }
    if masks and edge < SHORT_EDGE:
        image = imrescale(image, SHORT_EDGE / edge)
        sample = sample.new()  # other hooks want its own masks
        for key, mask in masks.items():
            larger = F.interpolate(mask[None].float(), image.shape[:2])
            sample.set_data({key: PixelData(data=larger[0].long())})
    visualizer.add_datasample(
        path.name, image, sample, out_file=str(path), **kwargs
    )


def _steps(path: str) -> tuple[str, ...]:
    """A path from where all begin, folder by folder."""
    scheme, found, rest = path.partition('://')
    if found:
        return scheme, *PurePosixPath(os.path.normpath(rest)).parts
    return Path(os.path.abspath(path)).parts


def result_names(pictures: dict[str, Dataset]) -> dict[str, str]:
    """A file for each image, no two of the same name.

    Args:
        pictures: From ``pictures_of``.

    Returns:
        dict: By path, the path from the folder of the images (the
        ``data_prefix``; of several, or where images lie elsewhere, the one
        that holds all), with the ending .png. Where that would be the same
        for two, .png follows the other ending; of all, if need be.
    """
    steps = {path: _steps(path) for path in pictures}
    folders = [parents for *parents, _ in steps.values()]
    for part in set(pictures.values()):
        prefixes = getattr(part, 'data_prefix', {})
        prefix = prefixes.get('img_path') or prefixes.get('img')
        if prefix:
            folders.append([*_steps(prefix)])
    levels = takewhile(lambda level: len(set(level)) == 1, zip(*folders))
    start = len(list(levels))
    names = {
        path: PurePosixPath(*(step.strip('/') for step in its[start:]))
        for path, its in steps.items()
    }
    pngs = {path: name.with_suffix('.png') for path, name in names.items()}
    longer = {path: f'{name}.png' for path, name in names.items()}
    counts = Counter(pngs.values())
    mixed = {
        path: str(png) if counts[png] == 1 else longer[path]
        for path, png in pngs.items()
    }
    return mixed if len(set(mixed.values())) == len(mixed) else longer


class _ResultsHook(Hook):
    """Write a file for each image, in every process.

    Args:
        out_dir: Folder for them, whose names are of ``result_names``;
            images that have no path are numbered.
    """

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)

    def before_test_epoch(self, runner: Runner) -> None:
        self._pictures = pictures_of(runner.test_loop.dataloader.dataset)
        self._names = result_names(self._pictures)
        self._count = 0  # in this process

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        rank, world_size = get_dist_info()
        for i, sample in enumerate(outputs):
            number = rank + world_size * self._count
            name = self._names.get(sample.get('img_path'), f'{number:06}.png')
            path = self.out_dir / name
            self.write(path, sample, runner, data_batch['inputs'], i)
            self._count += 1

    def write(
        self,
        path: Path,
        sample: BaseDataElement,
        runner: Runner,
        inputs: Sequence[Tensor],
        i: int,
    ) -> None:
        """Write the file of one image.

        Args:
            path: Of the file.
            sample: What was predicted, and the truth.
            runner: Whose test this is.
            inputs: The images of the batch, as the loader gave them.
            i: Which of them it is.
        """
        raise NotImplementedError


@HOOKS.register_module()
class SaveMasksHook(_ResultsHook):
    """Save what a segmenter says of each image of a test, as a mask.

    As mmseg's ``IoUMetric(output_dir=...)`` the values are those of the
    files: with ``reduce_zero_label`` the classes begin with 1. More than 256
    values make it a file of 16 bits.

    Args:
        out_dir: Folder for the masks. They have the paths of the images
            from the data set's ``data_prefix``, with the ending .png.
    """

    def write(self, path: Path, sample: BaseDataElement, *_) -> None:
        # One output for two classes becomes 0.0 and 1.0.
        mask = sample.pred_sem_seg.data.squeeze(0).long().cpu().numpy()
        if sample.get('reduce_zero_label'):
            mask = mask + 1
        content = io.BytesIO()
        mask = mask.astype(np.min_scalar_type(mask.max()))
        Image.fromarray(mask).save(content, 'PNG')
        write_file(content.getvalue(), path)


@HOOKS.register_module()
class PaintHook(_ResultsHook):
    """Paint what was predicted, and the truth, over each image of a test.

    The visualizer of mmpretrain, mmseg or mmdet paints; the images are read
    by the data set's pipeline.

    Args:
        out_dir: Folder for the PNG files. They have the paths of the images
            from the data set's ``data_prefix``.
    """

    def write(
        self,
        path: Path,
        sample: BaseDataElement,
        runner: Runner,
        inputs: Sequence[Tensor],
        i: int,
    ) -> None:
        source = sample.get('img_path')
        results = dict(img_path=source)
        if source in self._pictures:
            steps = iter(self._pictures[source].pipeline.transforms)
            while 'img' not in results:
                results = next(steps)(results)
        else:
            results['img'] = inputs[i].permute(1, 2, 0).cpu().numpy()
        # It would do nothing in the others than the first process.
        with mock.patch.object(
            mmengine.dist.utils, 'is_main_process', lambda group=None: True
        ):
            paint(runner.visualizer, viewable(results['img']), sample, path)

"""Masks: reading them as they are, and naming those that do not fit."""

import logging
from io import BytesIO

import numpy as np
from mmcv.image import imfrombytes
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS, TRANSFORMS
from mmengine.runner import Runner
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from .datasets.decoding import (
    DECODER_ERRORS,
    DecodeError,
    check_options,
    read_header,
)
from .datasets.endings import name_left_out
from .transforms import AS_STORED, AnnotationError, unreadable

IN_COLOURS = (
    'is a picture in colours: save it with one channel, the number of the '
    'class in each pixel'
)
_UNSIGNED, _SIGNED = 1, 2  # of TIFF's tag SampleFormat
_BITS, _SAMPLE_FORMAT = 258, 339  # TIFF's tags


class MaskError(AnnotationError):
    """A mask that does not fit the classes, or its picture."""


def _named(path: str, values: np.ndarray, classes: str) -> MaskError:
    values = ', '.join(f'{value:.10g}' for value in np.unique(values)[:8])
    return MaskError(f'mask {path} holds {values}, the classes are {classes}')


def read_mask(
    content: bytes, path: str, backend: str = 'pillow'
) -> np.ndarray:
    """Decode a mask; its values stay what they are in the file.

    Args:
        content: The file.
        path: Its name, for errors.
        backend: As of mmcv's ``imfrombytes``. Pillow reads palettes as
            numbers.

    Returns:
        np.ndarray: (height, width), uint8 if the values are 0 to 255, or
        int32.

    Raises:
        DecodeError: If it is damaged.
        MaskError: If it is not one channel of whole numbers; it names the
            file.
    """
    header = read_header(content)
    if header.format == 'JPEG':
        raise MaskError(
            f'mask {path} is a JPEG, which changes the numbers: save it as PNG'
        )
    if header.format == 'PPM' and header.mode in ('1', 'L', 'I'):
        raise MaskError(
            f'mask {path} is a PGM or PBM, whose numbers decoders stretch: '
            'save it as PNG'
        )
    if header.orientation != 1:
        raise MaskError(
            f'mask {path} is to be turned (Exif orientation '
            f'{header.orientation}): save it without an orientation'
        )
    mode, tags = None, {}
    try:
        if backend == 'pillow':
            with Image.open(BytesIO(content)) as picture:
                labels = np.array(picture)
                mode, tags = picture.mode, getattr(picture, 'tag_v2', {})
        else:
            labels = imfrombytes(content, 'unchanged', 'bgr', backend)
    except DECODER_ERRORS as error:
        raise DecodeError(f'it cannot be decoded ({error})') from error
    if labels is None or labels.ndim < 2:
        raise DecodeError('it cannot be decoded')
    if labels.shape[2:] == (1,):
        labels = labels[..., 0]
    if labels.ndim != 2:
        raise MaskError(f'mask {path} {IN_COLOURS}')
    bits = tags.get(_BITS, (8,))[0] if mode == 'L' else 8
    if content[12:16] == b'IHDR' and content[25] == 0:  # a grey PNG
        bits = content[24]
    sample_format = tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] if tags else None
    return _whole_numbers(_as_stored(labels, bits, sample_format), path)


def _as_stored(
    labels: np.ndarray, bits: int, sample_format: int | None
) -> np.ndarray:
    """Undo what decoders do to numbers of some sizes."""
    if labels.dtype == np.uint8 and bits < 8:
        labels = labels // (255 // (2**bits - 1))  # they were stretched
    if labels.dtype == np.uint8 and sample_format == _SIGNED:
        labels = labels.view(np.int8)
    if labels.dtype == np.int32 and sample_format == _UNSIGNED:
        labels = labels.view(np.uint32)
    return labels


def _whole_numbers(labels: np.ndarray, path: str) -> np.ndarray:
    if labels.dtype in (np.uint8, np.bool_):
        return labels.astype(np.uint8, copy=False)
    fits = (labels >= -(2**31)) & (labels < 2**31)  # NaN is neither
    if labels.dtype.kind == 'f':
        fits &= labels == np.rint(labels)
    if not fits.all():
        raise _named(path, labels[~fits], 'whole numbers from 0 on')
    small = labels.size and labels.min() >= 0 and labels.max() <= 255
    return labels.astype(np.uint8 if small else np.int32)


@TRANSFORMS.register_module()
class LoadMaskStrict(BaseTransform):
    """mmseg's ``LoadAnnotations``, which loses no value and names the file.

    A mask is compared with the size of its picture, if that has been loaded
    before. One of another size is scaled to it.

    Args:
        reduce_zero_label: Whether 0 is no class and the classes begin with 1;
            by default as the data set says. 0 and 255 become 255, the others
            one less.
        as_shown: Whether masks are drawn on the pictures as viewers show
            them, turned as their Exif orientation says. Pictures that are
            turned in a way that the sizes do not tell are refused otherwise.
        imdecode_backend: As of mmcv's ``imfrombytes``.
        backend_args: See ``mmengine.fileio.get``.

    Raises:
        ImageReadError: If the mask is missing or cannot be decoded; it names
            the file.
        MaskError: If its values are not whole numbers in one channel, or it
            does not fit its picture; it names the file.
    """

    def __init__(
        self,
        reduce_zero_label: bool | None = None,
        as_shown: bool = False,
        imdecode_backend: str = 'pillow',
        backend_args: dict | None = None,
    ) -> None:
        check_options('unchanged', imdecode_backend)
        self.reduce_zero_label = reduce_zero_label
        self.as_shown = as_shown
        self.imdecode_backend = imdecode_backend
        self.backend_args = backend_args

    def transform(self, results: dict) -> dict:
        path = results['seg_map_path']
        try:
            content = fileio.get(path, backend_args=self.backend_args)
            labels = read_mask(content, path, self.imdecode_backend)
        except (OSError, DecodeError) as error:
            raise unreadable(path, error, 'mask') from error
        if 'ori_shape' in results:
            labels = self._fit(labels, results)
        results['gt_seg_map'] = self._number(labels, results)
        results.setdefault('seg_fields', []).append('gt_seg_map')
        return results

    def _fit(self, labels: np.ndarray, results: dict) -> np.ndarray:
        """Compare with the picture, and scale to its size."""
        size = results['ori_shape'][:2]
        turned = results.get('turned_by', 1)
        mask = f'mask {results["seg_map_path"]}'
        picture = f'picture {results.get("img_path")}'
        other_way = turned > 4 and _alike(labels.shape, size[::-1])
        if not _alike(labels.shape, size):
            message = '{} is {} x {} pixels, {} {} x {}'.format(
                mask, *labels.shape[::-1], picture, *size[::-1]
            )
            if other_way:
                message += (
                    f', turned by its Exif orientation {turned}: if masks are '
                    'drawn on pictures as they are stored, set '
                )
                raise MaskError(message + AS_STORED)
            raise MaskError(f'{message}: they must show the same')
        if (turned in (2, 3, 4) or other_way) and not self.as_shown:
            raise MaskError(
                f'{picture} is turned by its Exif orientation {turned}, and '
                f'the size of {mask} does not tell whether it is, too: if '
                'masks are drawn on pictures as they are shown, set '
                'as_shown=True in LoadMaskStrict, if as they are stored, set '
                + AS_STORED
            )
        if labels.shape == size:
            return labels
        rows, columns = (
            np.arange(wanted) * there // wanted
            for wanted, there in zip(size, labels.shape)
        )
        return labels[rows[:, None], columns]

    def _number(self, labels: np.ndarray, results: dict) -> np.ndarray:
        """Number the classes as the data set wants them."""
        reduce = results.get('reduce_zero_label', self.reduce_zero_label)
        if self.reduce_zero_label not in (None, reduce):
            raise ValueError(
                f'reduce_zero_label is {self.reduce_zero_label} in '
                f'LoadMaskStrict and {reduce} in the data set'
            )
        if reduce:
            if labels.dtype != np.uint8:  # 256 would become 255
                raise _named(
                    results['seg_map_path'],
                    labels[(labels < 0) | (labels > 255)],
                    '1 to 254 at most, and 0 and 255 are ignored',
                )
            labels = labels - np.uint8(1)
            labels[labels == 254] = 255
        label_map = results.get('label_map')
        if label_map is not None:
            old = labels
            labels = labels.copy()
            for old_id, new_id in label_map.items():
                labels[old == old_id] = new_id
        return labels

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(reduce_zero_label='
            f'{self.reduce_zero_label}, as_shown={self.as_shown}, '
            f'imdecode_backend={self.imdecode_backend!r}, '
            f'backend_args={self.backend_args})'
        )


def _alike(shape: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether one is the other scaled, rounded down, to the nearest, or up."""
    pairs = list(zip(shape, size))
    return any(
        max((a - below) / b for a, b in pairs)
        <= min((a + 1 - below) / b for a, b in pairs)
        for below in (0, 0.5, 1)
    )


@HOOKS.register_module()
class CheckMasksHook(Hook):
    """Compare the values of each mask with the classes of a segmenter.

    In training a wrong one would end in an error of the loss that names no
    file, in validation and testing in wrong figures. If the first ``GRACE``
    masks of a loop have no class but 0, one line says so: many masks are 0
    and 255, and 255 is not counted.

    Raises:
        MaskError: If a mask is not a map of numbers below ``num_classes`` and
            ``ignore_index``; it names the file.
    """

    GRACE = 32

    def __init__(self) -> None:
        # Masks so far by loop, None from the first with a class
        self._empty = dict.fromkeys(('train', 'val', 'test'), 0)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        self._check('train', runner, data_batch)

    def before_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        self._check('val', runner, data_batch)

    def before_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        self._check('test', runner, data_batch)

    def _check(self, loop: str, runner: Runner, batch: dict) -> None:
        head = _head(runner.model)
        samples = batch.get('data_samples')
        if head is None or not samples:
            return
        if isinstance(samples[0], (list, tuple)):  # of each augmentation
            samples = samples[0]
        ignored = []
        if loop != 'train':  # a metric may ignore something else
            ignored = [
                metric.ignore_index
                for metric in getattr(runner, f'{loop}_loop').evaluator.metrics
                if hasattr(metric, 'ignore_index')
            ]
        for ignore_index in set(ignored or [head.ignore_index]):
            self._compare(loop, samples, head.num_classes, ignore_index)

    def _compare(
        self, loop: str, samples: list, num_classes: int, ignore_index: int
    ) -> None:
        if ignore_index == 255 < num_classes:
            raise MaskError(
                f'255 is a class of {num_classes}, and ignored: set another '
                'ignore_index in decode_head and evaluators, and another '
                'seg_pad_val in data_preprocessor'
            )
        for sample in samples:
            if 'gt_sem_seg' not in sample:  # a test without masks
                continue
            labels = sample.gt_sem_seg.data
            path = sample.get('seg_map_path')
            if labels.dim() != 3 or len(labels) != 1:
                raise MaskError(f'mask {path} {IN_COLOURS}')
            wrong = (labels >= num_classes) | (labels < 0)
            wrong &= labels != ignore_index
            if wrong.any():
                first, ignored = 0, f'{ignore_index} is'
                if sample.get('reduce_zero_label'):
                    first, ignored = 1, f'0 and {ignore_index} are'
                raise _named(
                    path,
                    labels[wrong].cpu().numpy() + first,
                    f'{first} to {num_classes - 1 + first}, and {ignored} '
                    'ignored: mend the mask, or set num_classes or '
                    'ignore_index in the config',
                )
            self._look_for_a_class(loop, labels, ignore_index)

    def _look_for_a_class(
        self, loop: str, labels: Tensor, ignore_index: int
    ) -> None:
        if self._empty[loop] is None:
            return
        self._empty[loop] += 1
        if ((labels > 0) & (labels != ignore_index)).any():
            self._empty[loop] = None
        elif self._empty[loop] == self.GRACE:
            print_log(
                f'The first {self.GRACE} masks hold nothing but 0 and '
                f'{ignore_index}, which is not counted: are objects '
                f'{ignore_index} in them? Then make them 1',
                'current',
                logging.WARNING,
            )


def _head(model: nn.Module) -> nn.Module | None:
    """The head that tells the classes of a segmenter, if it has one."""
    if is_model_wrapper(model):
        model = model.module
    if isinstance(model, BaseTTAModel):
        model = model.module
    head = getattr(model, 'decode_head', None)
    return head[-1] if isinstance(head, nn.ModuleList) else head  # a cascade


def compare_folders(dataset: Dataset) -> None:
    """Name pictures without masks, masks without pictures, and other files.

    Args:
        dataset: One that finds its files as mmseg's ``BaseSegDataset`` or
            mmpretrain's ``CustomDataset`` does; others are passed over.

    Raises:
        MaskError: If the folder of the masks does not exist, unless the data
            set is in test mode.
    """
    # ClassFolders, which finds them otherwise, has named the others.
    if _has(dataset, '_find_samples', 'mmpretrain.datasets.custom'):
        _compare_class_folders(dataset)
    if _has(dataset, 'load_data_list', 'mmseg.datasets.basesegdataset'):
        _compare_pairs(dataset)


def _has(dataset: Dataset, method: str, module: str) -> bool:
    """Whether a method is the one of a module."""
    return getattr(getattr(dataset, method, None), '__module__', '') == module


def _compare_class_folders(dataset: Dataset) -> None:
    if dataset.ann_file:
        return
    left_out = [
        path
        for path in _files(dataset.img_prefix, None)
        if not dataset.is_valid_file(path)
        or (dataset.with_label and '/' not in path)
    ]
    endings = ' '.join(sorted(dataset.extensions))
    lie = 'lie in folders of their classes, and ' * dataset.with_label
    why = f'pictures {lie}end in {endings}'
    name_left_out(dataset.img_prefix, left_out, why)


def _compare_pairs(dataset: Dataset) -> None:
    images = dataset.data_prefix.get('img_path')
    masks = dataset.data_prefix.get('seg_map_path')
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    suffixes = (dataset.img_suffix, dataset.seg_map_suffix)
    if not dataset.ann_file:
        files = _files(images, dataset.backend_args)
        left_out = [path for path in files if not path.endswith(suffixes[0])]
        if masks == images:
            left_out = [p for p in left_out if not p.endswith(suffixes[1])]
        why = f"pictures end in {suffixes[0]}, the data set's img_suffix"
        name_left_out(images, left_out, why)
    if not masks:
        return
    wanted = {info['seg_map_path']: info['img_path'] for info in infos}
    try:
        files = _files(masks, dataset.backend_args)
    except (FileNotFoundError, NotADirectoryError) as error:
        if dataset.test_mode:
            return
        raise MaskError(
            f'there is no folder of masks {masks}: mend data_prefix.'
            'seg_map_path, or set test_mode=True in a test without masks'
        ) from error
    there = {fileio.join_path(masks, path) for path in files}
    missing = sorted(wanted.keys() - there)
    if missing:
        print_log(
            f'{len(missing)} of {len(infos)} pictures have no mask, for one '
            f'{wanted[missing[0]]}: {missing[0]} is missing',
            'current',
            logging.WARNING,
        )
    chosen = (
        dataset.ann_file or dataset.filter_cfg or dataset._indices is not None
    )
    lonely = [p for p in there - wanted.keys() if p.endswith(suffixes[1])]
    if lonely and not chosen and masks != images:
        print_log(
            f'{len(lonely)} of {len(there)} masks have no picture, for one '
            f'{min(lonely)}',
            'current',
            logging.WARNING,
        )


def _files(folder: str, backend_args: dict | None) -> list[str]:
    files = fileio.list_dir_or_file(
        folder, list_dir=False, recursive=True, backend_args=backend_args
    )
    return list(files)

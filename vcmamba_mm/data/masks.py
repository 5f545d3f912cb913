"""Reading masks: their values stay as they are."""

from io import BytesIO

import numpy as np
from mmcv.image import imfrombytes
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.registry import TRANSFORMS
from PIL import Image

from .decoding import DECODER_ERRORS, DecodeError, check_options, read_header
from .reading import AS_STORED, AnnotationError, unreadable

IN_COLOURS = (
    'is an image in colours: save it with one channel, the number of the '
    'class in each pixel'
)
_UNSIGNED, _SIGNED = 1, 2  # of TIFF's tag SampleFormat
_BITS, _SAMPLE_FORMAT = 258, 339  # TIFF's tags


class MaskError(AnnotationError):
    """A mask that does not fit the classes, or its image."""


def wrong_values(path: str, values: np.ndarray, classes: str) -> MaskError:
    """The error about values of a mask that are none of the classes."""
    values = ', '.join(f'{value:.10g}' for value in np.unique(values)[:8])
    return MaskError(f'mask {path} holds {values}, the classes are {classes}')


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
        raise wrong_values(path, labels[~fits], 'whole numbers from 0 on')
    small = labels.size and labels.min() >= 0 and labels.max() <= 255
    return labels.astype(np.uint8 if small else np.int32)


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


def _alike(shape: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether one is the other scaled, rounded down, to the nearest, or up."""
    pairs = list(zip(shape, size))
    return any(
        max((a - below) / b for a, b in pairs)
        <= min((a + 1 - below) / b for a, b in pairs)
        for below in (0, 0.5, 1)
    )


@TRANSFORMS.register_module()
class LoadMaskStrict(BaseTransform):
    """mmseg's ``LoadAnnotations``, which loses no value and names the file.

    A mask is compared with the size of its image, if that has been loaded
    before. One of another size is scaled to it.

    Args:
        reduce_zero_label: Whether 0 is no class and the classes begin with 1;
            by default as the data set says. 0 and 255 become 255, the others
            one less.
        as_shown: Whether masks are drawn on the images as viewers show
            them, turned as their Exif orientation says. Images that are
            turned in a way that the sizes do not tell are refused otherwise.
        imdecode_backend: As of mmcv's ``imfrombytes``.
        backend_args: See ``mmengine.fileio.get``.

    Raises:
        ImageReadError: If the mask is missing or cannot be decoded; it names
            the file.
        MaskError: If its values are not whole numbers in one channel, or it
            does not fit its image; it names the file.
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
        """Compare with the image, and scale to its size."""
        size = results['ori_shape'][:2]
        turned = results.get('turned_by', 1)
        mask = f'mask {results["seg_map_path"]}'
        picture = f'image {results.get("img_path")}'
        other_way = turned > 4 and _alike(labels.shape, size[::-1])
        if not _alike(labels.shape, size):
            message = '{} is {} x {} pixels, {} {} x {}'.format(
                mask, *labels.shape[::-1], picture, *size[::-1]
            )
            if other_way:
                message += (
                    f', turned by its Exif orientation {turned}: if masks are '
                    'drawn on images as they are stored, set '
                )
                raise MaskError(message + AS_STORED)
            raise MaskError(f'{message}: they must show the same')
        if (turned in (2, 3, 4) or other_way) and not self.as_shown:
            raise MaskError(
                f'{picture} is turned by its Exif orientation {turned}, and '
                f'the size of {mask} does not tell whether it is, too: if '
                'masks are drawn on images as they are shown, set '
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
                raise wrong_values(
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

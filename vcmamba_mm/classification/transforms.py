"""The transforms of mmpretrain's ImageNet training, faster.

Each draws the same random numbers in the same order as the one it stands for,
and makes the same image of them, up to rounding.
"""

import inspect
import math
from collections.abc import Callable
from types import MethodType

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmpretrain.datasets import transforms as stock
from mmpretrain.registry import TRANSFORMS
from torch import Tensor

from ..data.cropping import open_picture
from ..data.decoding import DecodeError
from ..data.reading import unreadable


def _undecorated(transform: type, name: str) -> Callable:
    """A method without mmcv's ``cache_randomness``, if it has that.

    The decorator lets draws be repeated, and takes longer than many of the
    operations here.
    """
    method = inspect.getattr_static(transform, name)
    return getattr(method, 'func', method)


@TRANSFORMS.register_module()
class LoadRandomResizedCrop(stock.RandomResizedCrop):
    """``LoadImageFromFile`` and ``RandomResizedCrop`` in one.

    Of a JPEG only what the crop needs is decoded, at a smaller scale if the
    crop still has at least the target's pixels then (see ``JpegPicture`` in
    ``vcmamba_mm.data.cropping``). The resizing is Pillow's, with
    antialiasing, by PyTorch's vectorized kernel.

    Args:
        scale: Height and width, or one number for both.
        interpolation: 'bicubic' or 'bilinear'.
        backend_args: See ``mmengine.fileio.get``.
        **kwargs: See mmpretrain's ``RandomResizedCrop``.

    Raises:
        ImageReadError: If the image is missing or cannot be decoded; it
            names the file.
    """

    def __init__(
        self,
        scale: int | tuple[int, int],
        interpolation: str = 'bicubic',
        backend_args: dict | None = None,
        **kwargs,
    ) -> None:
        if interpolation not in ('bicubic', 'bilinear'):
            raise ValueError(
                "interpolation must be 'bicubic' or 'bilinear', got "
                f'{interpolation!r}'
            )
        super().__init__(
            scale, interpolation=interpolation, backend='pillow', **kwargs
        )
        self.backend_args = backend_args

    rand_crop_params = _undecorated(
        stock.RandomResizedCrop, 'rand_crop_params'
    )

    def transform(self, results: dict) -> dict:
        path = results['img_path']
        try:
            if self.backend_args or '://' in path:
                content = fileio.get(path, backend_args=self.backend_args)
            else:
                with open(path, 'rb') as file:
                    content = file.read()
            picture = open_picture(content)
            crop = picture.crop(self.rand_crop_params(picture), self.scale)
        except (OSError, DecodeError) as error:
            raise unreadable(path, error) from error
        # (h, w, 3) as (1, 3, h, w) and back, without copying
        image = F.interpolate(
            torch.from_numpy(crop)[None].permute(0, 3, 1, 2),
            self.scale,
            mode=self.interpolation,
            antialias=True,
        ).numpy()
        results['img'] = image[0].transpose(1, 2, 0)
        results['img_shape'] = results['img'].shape
        results['ori_shape'] = picture.shape
        return results


@TRANSFORMS.register_module()
class FastRandomFlip(BaseTransform):
    """mmcv's ``RandomFlip`` of classification; the result is contiguous.

    Args:
        prob: Probability of a horizontal flip.
    """

    def __init__(self, prob: float) -> None:
        self.prob = prob

    def transform(self, results: dict) -> dict:
        results['flip'] = np.random.random_sample() < self.prob
        results['flip_direction'] = 'horizontal' if results['flip'] else None
        if results['flip']:
            results['img'] = cv2.flip(results['img'], 1)
        return results


# ------------------------------------------------------------- RandAugment

# All that a pixel of one colour can be
_VALUES = np.arange(256, dtype=np.uint8)[None]


def value_table(op: stock.BaseAugTransform) -> np.ndarray | None:
    """What an operation that looks at nothing else makes of all values.

    Returns:
        ndarray: Of uint8, (1, 256); None if the image is left alone.
    """
    table = op.transform(dict(img=_VALUES))['img']
    return None if table is _VALUES else table


def _from_table(op: stock.BaseAugTransform, image: np.ndarray) -> np.ndarray:
    table = value_table(op)
    return image if table is None else cv2.LUT(image, table)


def _auto_contrast(op: stock.AutoContrast, image: np.ndarray) -> np.ndarray:
    if op.random_disable():
        return image
    table = np.empty((256, 3), np.uint8)
    for channel, plane in enumerate(cv2.split(image)):
        low, high, *_ = cv2.minMaxLoc(plane)
        values = _VALUES[0]
        if high > low:
            scale = 255 / (high - low)
            values = np.clip(values * scale + -low * scale, 0, 255)
        table[:, channel] = values
    return cv2.LUT(image, table[None])


def _equalize(op: stock.Equalize, image: np.ndarray) -> np.ndarray:
    if op.random_disable():
        return image
    table = np.empty((256, 3), np.uint8)
    for channel in range(3):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256])
        counts = counts.ravel().astype(np.int64)
        # without those of the largest value
        step = (counts.sum() - counts[counts.nonzero()[0][-1]]) // 255
        values = _VALUES[0]
        if step:
            below = np.cumsum(counts) - counts
            values = np.minimum((below + step // 2) // step, 255)
        table[:, channel] = values
    return cv2.LUT(image, table[None])


def _magnitude(op: stock.BaseAugTransform) -> float:
    magnitude = op.magnitude
    if magnitude is None:
        magnitude = op.random_magnitude()
    return op.random_negative(magnitude)


def _contrast(op: stock.Contrast, image: np.ndarray) -> np.ndarray:
    if op.random_disable():
        return image
    factor = 1 + _magnitude(op)
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    mean = round(cv2.sumElems(gray)[0] / gray.size)
    values = _VALUES.astype(np.float32)
    table = cv2.addWeighted(
        values, factor, np.full_like(values, mean), 1 - factor, 0
    )
    return cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8))


def _translate(op: stock.Translate, image: np.ndarray) -> np.ndarray:
    """Interpolate with four pixels where ``warpAffine`` sums up 16."""
    if op.random_disable():
        return image
    axis = 1 if op.direction == 'horizontal' else 0
    size = image.shape[axis]
    shift = -_magnitude(op) * size
    whole = math.floor(shift)
    # A column. OpenCV 4 and 5 disagree on what a vector is.
    kernel = _cubic_weights(np.array([shift - whole]))
    # The pixels needed, [begin, end), some of them outside
    begin, end = whole - 1, whole + size + 2
    inside = slice(min(max(begin, 0), size), max(min(end, size), 0))
    if inside.start >= inside.stop:
        return np.full_like(image, _fill(op))
    outside = (max(-begin, 0), max(end - size, 0))
    if axis:
        source = image[:, inside]
        border = (0, 0, *outside)
        kernel = kernel.T
    else:
        source, border = image[inside], (*outside, 0, 0)
    source = cv2.copyMakeBorder(
        source, *border, cv2.BORDER_CONSTANT, value=_fill(op)
    )
    result = cv2.filter2D(source, -1, kernel, anchor=(0, 0))
    return np.ascontiguousarray(result[: image.shape[0], : image.shape[1]])


def _fill(op: stock.Shear | stock.Translate) -> tuple[int, ...]:
    return op.pad_val if isinstance(op.pad_val, tuple) else (op.pad_val,) * 3


def _cubic_weights(fraction: np.ndarray) -> np.ndarray:
    """Weights of the four neighbours of a place between the middle two.

    Cubic convolution (Keys, 1981) with a = -0.75, as in OpenCV.
    """
    a, f, g = -0.75, fraction, 1 - fraction
    first, last = a * f * g * g, a * g * f * f
    second = ((a + 2) * f - (a + 3)) * f * f + 1
    third = 1 - first - second - last
    return np.stack([first, second, third, last]).astype(np.float32)


def _shear(op: stock.Shear, image: np.ndarray) -> np.ndarray:
    """Interpolate with four pixels where ``warpAffine`` sums up 16."""
    if op.random_disable():
        return image
    height, width = image.shape[:2]
    horizontal = op.direction == 'horizontal'
    # How far each row or column looks along itself for its first pixel
    shifts = -_magnitude(op) * np.arange(height if horizontal else width)
    whole = np.floor(shifts)
    weights = torch.from_numpy(_cubic_weights(shifts - whole))
    whole = whole.astype(np.int16)
    # Where whole pixels come from, (x, y), three more than there are
    source = np.empty(
        (height, width + 3, 2) if horizontal else (height + 3, width, 2),
        np.int16,
    )
    rows, columns = (np.arange(n, dtype=np.int16) for n in source.shape[:2])
    if horizontal:
        source[..., 0] = columns - 1 + whole[:, None]
        source[..., 1] = rows[:, None]
        weights = weights[..., None]
    else:
        source[..., 0] = columns
        source[..., 1] = rows[:, None] - 1 + whole
        weights = weights.repeat_interleave(3, 1)
    pixels = cv2.remap(
        image,
        source,
        None,
        cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=_fill(op),
    )
    pixels = torch.from_numpy(pixels).flatten(1).float()
    total = torch.zeros(height, 3 * width)
    for i, weight in enumerate(weights):
        if horizontal:
            total.addcmul_(pixels[:, 3 * i : 3 * (i + width)], weight)
        else:
            total.addcmul_(pixels[i : i + height], weight)
    # OpenCV rounds and saturates in one pass, but takes absolute values.
    result = cv2.convertScaleAbs(total.clamp_(min=0).numpy())
    return result.reshape(image.shape)


_FASTER: dict[type, Callable] = {
    stock.AutoContrast: _auto_contrast,
    stock.Brightness: _from_table,
    stock.Contrast: _contrast,
    stock.Equalize: _equalize,
    stock.Invert: _from_table,
    stock.Posterize: _from_table,
    stock.Shear: _shear,
    stock.Solarize: _from_table,
    stock.SolarizeAdd: _from_table,
    stock.Translate: _translate,
}


@TRANSFORMS.register_module()
class FastRandAugment(stock.RandAugment):
    """mmpretrain's ``RandAugment`` for images of three colours, uint8.

    What changes each pixel for itself goes through a table; shearing and
    translating interpolate along one axis only. Other operations are
    mmpretrain's own.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for op in self.transforms:
            if isinstance(op, stock.BaseAugTransform):
                for name in ('disable', 'magnitude', 'negative'):
                    draw = _undecorated(type(op), f'random_{name}')
                    setattr(op, f'random_{name}', MethodType(draw, op))

    def random_policy_indices(self) -> list[int]:
        # What np.random.choice does, without its checks
        return np.random.randint(
            len(self.policies), size=self.num_policies
        ).tolist()

    def transform(self, results: dict) -> dict:
        for index in self.random_policy_indices():
            op = self.transforms[index]
            faster = _FASTER.get(type(op))
            if faster and getattr(op, 'interpolation', None) in (
                None,
                'bicubic',
            ):
                results['img'] = faster(op, results['img'])
            else:
                results = op(results)
        return results


@TRANSFORMS.register_module()
class FastRandomErasing(stock.RandomErasing):
    """mmpretrain's ``RandomErasing``; OpenCV draws the normal noise."""

    random_disable = _undecorated(stock.RandomErasing, 'random_disable')
    random_patch = _undecorated(stock.RandomErasing, 'random_patch')

    def _fill_pixels(
        self, img: np.ndarray, top: int, left: int, h: int, w: int
    ) -> np.ndarray:
        if self.mode != 'rand' or self.fill_std is None:
            return super()._fill_pixels(img, top, left, h, w)
        patch = np.empty((h, w, 3), np.uint8)
        cv2.setRNGSeed(np.random.randint(2**31))
        # OpenCV rounds to the nearest, mmpretrain down.
        mean = np.array(self.fill_color) - 0.5
        img[top : top + h, left : left + w] = cv2.randn(
            patch, mean, np.array(self.fill_std)
        )
        return img


@TRANSFORMS.register_module()
class FastPackInputs(stock.PackInputs):
    """mmpretrain's ``PackInputs``; OpenCV takes the colours apart."""

    @staticmethod
    def format_input(input_: np.ndarray) -> Tensor:
        if input_.dtype != np.uint8 or input_.shape[2:] != (3,):
            return stock.PackInputs.format_input(input_)
        planes = np.empty((3, *input_.shape[:2]), np.uint8)
        cv2.split(input_, list(planes))
        return torch.from_numpy(planes)

"""RandAugment and random erasing of batches, on the model's device.

mmpretrain's own classes draw operations, magnitudes, signs and boxes, one
image after the other, from NumPy's generator. PyTorch changes the pixels,
those of all images with the same operation at once, and draws the noise.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmpretrain.datasets import transforms as stock
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.registry import BATCH_AUGMENTS, MODELS
from torch import Tensor

from .transforms import FastRandAugment, FastRandomErasing, value_table


def _on(device: torch.device, values: Sequence) -> Tensor:
    """Small drawn values, copied without waiting for the device."""
    values = torch.from_numpy(np.array(values))
    return values.to(device, non_blocking=True)


def _check(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(
            f'augmentation of batches needs a tensor, got {type(images)}: '
            "use collate_fn=dict(type='default_collate') and images of one "
            'size'
        )
    if images.dtype != torch.uint8 or images.ndim != 4 or images.size(1) != 3:
        raise ValueError(
            'augmentation of batches needs uint8 images (B, 3, H, W), got '
            f'{images.dtype} {tuple(images.shape)}'
        )


# ------------------------------------------------------- tables of 256 values


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Replace values by those of tables (n, 3 or 1, 256)."""
    index = images.flatten(2).long()
    return tables.expand(-1, 3, -1).gather(2, index).view_as(images)


def _from_tables(op: stock.BaseAugTransform, images: Tensor, tables) -> Tensor:
    return _look_up(images, _on(images.device, tables))


def _auto_contrast(op: stock.AutoContrast, images: Tensor, _) -> Tensor:
    planes = images.flatten(2)
    low = planes.amin(2, keepdim=True).double()
    high = planes.amax(2, keepdim=True).double()
    values = torch.arange(256, device=images.device)
    scale = values[-1] / (high - low)  # 255 / x would be 255 * (1 / x)
    tables = (values * scale + -low * scale).clamp(0, 255)
    tables = torch.where(high > low, tables, values)
    return _look_up(images, tables.to(torch.uint8))


def _equalize(op: stock.Equalize, images: Tensor, _) -> Tensor:
    planes = images.flatten(2).long()
    bins = torch.arange(planes[..., 0].numel(), device=images.device) * 256
    index = (planes + bins.view(-1, 3, 1)).flatten()
    # bincount would wait for the device.
    counts = index.new_zeros(bins.numel() * 256)
    counts.scatter_add_(0, index, index.new_ones(()).expand_as(index))
    counts = counts.view(-1, 3, 256)
    last = counts.gather(2, planes.amax(2, keepdim=True))
    step = (planes.size(2) - last) // 255
    below = counts.cumsum(2) - counts
    tables = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    values = torch.arange(256, device=images.device)
    tables = torch.where(step > 0, tables, values)
    return _look_up(images, tables.to(torch.uint8))


# --------------------------------------------------------------------- blends


# OpenCV 4.11 blends float32 in float64. Later ones do it in float32, fused:
# the weights and the second product are rounded, the first is not.
_ONE = np.ones((1, 1), np.float32)
_FUSED = cv2.addWeighted(_ONE, 1.3, _ONE, 1 - 1.3, 0) != 1
_SUMMANDS = torch.float32 if _FUSED else torch.float64


def _blend(
    images: Tensor, others: Tensor, magnitudes, dtype=torch.float32
) -> Tensor:
    """(1 + magnitude) * images - magnitude * others, from 0 to 255."""
    magnitudes = _on(images.device, magnitudes).view(-1, 1, 1, 1)
    blended = images * (1 + magnitudes).to(dtype)
    blended = blended + others * -magnitudes.to(dtype)
    return blended.float().clamp_(0, 255)


def _gray(images: Tensor) -> Tensor:
    """OpenCV's, with its integers, which float32 holds: (n, 1, H, W)."""
    blue, green, red = images.float().split(1, dim=1)
    total = 3735 * blue + 19235 * green + 9798 * red
    return ((total + 2**14) / 2**15).floor()


def _contrast(op: stock.Contrast, images: Tensor, magnitudes) -> Tensor:
    means = _gray(images).double().mean((1, 2, 3), keepdim=True).round()
    values = torch.arange(256, device=images.device, dtype=torch.float64)
    tables = _blend(values, means.to(_SUMMANDS), magnitudes, _SUMMANDS)
    return _look_up(images, tables[:, 0].to(torch.uint8))


def _color(op: stock.ColorTransform, images: Tensor, magnitudes) -> Tensor:
    return _blend(images, _gray(images), magnitudes).round_().to(torch.uint8)


def _sharpness(op: stock.Sharpness, images: Tensor, magnitudes) -> Tensor:
    images = images.float()
    # No convolution, which autocast would do with fewer bits.
    padded = F.pad(images, (1, 1, 1, 1), mode='reflect')
    total = F.avg_pool2d(padded, 3, stride=1, divisor_override=1)
    smooth = ((total + 4 * images) / 13).round_()
    return _blend(images, smooth, magnitudes).to(torch.uint8)


# ------------------------------------------------------------------- geometry


def _rotate(op: stock.Rotate, images: Tensor, angles) -> Tensor:
    height, width = images.shape[2:]
    center = op.center or ((width - 1) / 2, (height - 1) / 2)
    matrices = np.zeros((len(angles), 2, 3))
    for matrix, angle in zip(matrices, angles):
        matrix[:] = cv2.getRotationMatrix2D(center, -angle, op.scale)
    return _warp(op, images, matrices)


def _shear(op: stock.Shear, images: Tensor, magnitudes) -> Tensor:
    matrices = np.tile(np.eye(2, 3), (len(magnitudes), 1, 1))
    row = 0 if op.direction == 'horizontal' else 1
    matrices[:, row, 1 - row] = magnitudes
    return _warp(op, images, matrices)


def _translate(op: stock.Translate, images: Tensor, magnitudes) -> Tensor:
    matrices = np.tile(np.eye(2, 3), (len(magnitudes), 1, 1))
    row = 0 if op.direction == 'horizontal' else 1
    matrices[:, row, 2] = np.array(magnitudes) * images.size(3 - row)
    return _warp(op, images, matrices)


def _warp(op, images: Tensor, matrices: np.ndarray) -> Tensor:
    """OpenCV's ``warpAffine``: matrices (n, 2, 3) from old to new places."""
    device = images.device
    height, width = images.shape[2:]
    matrices = [cv2.invertAffineTransform(matrix) for matrix in matrices]
    # No matrix product, which autocast would do with fewer bits:
    # (n, 2, 1, 1) each
    x, y, shift = _on(device, matrices).float()[:, :, None, None].unbind(-1)
    columns = torch.arange(width, device=device)
    rows = torch.arange(height, device=device)[:, None]
    places = x * columns + y * rows + shift  # (n, 2, H, W)
    size = _on(device, (width, height)).view(2, 1, 1)
    grid = ((2 * places + 1) / size - 1).permute(0, 2, 3, 1)
    border = _on(device, op.pad_val).float().view(-1, 1, 1)
    warped = F.grid_sample(
        images - border, grid, mode=op.interpolation, align_corners=False
    )
    return warped.add_(border).round_().clamp_(0, 255).to(torch.uint8)


# How each operation is done: f(op, images, what _draw returned for each)
_OPERATIONS: dict[type, Callable] = {
    stock.AutoContrast: _auto_contrast,
    stock.Brightness: _from_tables,
    stock.ColorTransform: _color,
    stock.Contrast: _contrast,
    stock.Equalize: _equalize,
    stock.Invert: _from_tables,
    stock.Posterize: _from_tables,
    stock.Rotate: _rotate,
    stock.Sharpness: _sharpness,
    stock.Shear: _shear,
    stock.Solarize: _from_tables,
    stock.SolarizeAdd: _from_tables,
    stock.Translate: _translate,
}


def _draw(op: stock.BaseAugTransform) -> float | np.ndarray | None:
    """Magnitude or table for one image; None if it is left alone."""
    if _OPERATIONS[type(op)] is _from_tables:
        return value_table(op)
    if op.random_disable():
        return None
    if isinstance(op, (stock.AutoContrast, stock.Equalize)):
        return 0.0
    magnitude = op.angle if isinstance(op, stock.Rotate) else op.magnitude
    if magnitude is None:
        magnitude = op.random_magnitude()
    return op.random_negative(magnitude)


@BATCH_AUGMENTS.register_module()
class BatchRandAugment:
    """mmpretrain's ``RandAugment`` of a batch.

    Each image has operations, magnitudes and signs of its own, drawn as
    ``RandAugment`` would if it got the images one after the other.

    Args:
        **kwargs: See mmpretrain's ``RandAugment``.

    Raises:
        ValueError: If an operation is none of 'timm_increasing'.
    """

    def __init__(self, **kwargs) -> None:
        self.policy = FastRandAugment(**kwargs)
        for op in self.policy.transforms:
            if type(op) not in _OPERATIONS:
                names = ', '.join(kind.__name__ for kind in _OPERATIONS)
                raise ValueError(
                    f'{type(op).__name__} cannot be done to a batch; leave it '
                    f'in the pipeline (FastRandAugment) or take of {names}'
                )

    def __call__(self, images: Tensor) -> Tensor:
        """Return augmented copies of uint8 images (B, 3, H, W), BGR."""
        _check(images)
        images = images.clone()
        ops = self.policy.transforms
        # In each round one operation for each picture
        rounds = [defaultdict(list) for _ in range(self.policy.num_policies)]
        for picture in range(len(images)):
            for chosen, i in zip(rounds, self.policy.random_policy_indices()):
                drawn = _draw(ops[i])
                if drawn is not None:
                    chosen[i].append((picture, drawn))
        for chosen in rounds:
            for i, entries in chosen.items():
                pictures, drawn = zip(*entries)
                pictures = _on(images.device, pictures)
                images[pictures] = _OPERATIONS[type(ops[i])](
                    ops[i], images[pictures], drawn
                )
        return images


@BATCH_AUGMENTS.register_module()
class BatchRandomErasing:
    """mmpretrain's ``RandomErasing`` of a batch, with normal noise.

    Each image has a box of its own, or none.

    Args:
        **kwargs: See mmpretrain's ``RandomErasing``.

    Raises:
        ValueError: If ``mode`` is not 'rand', or there is no ``fill_std``.
    """

    def __init__(self, **kwargs) -> None:
        self.erasing = FastRandomErasing(**kwargs)
        if self.erasing.mode != 'rand' or self.erasing.fill_std is None:
            raise ValueError(
                "BatchRandomErasing needs mode='rand' and fill_std: it fills "
                'with normal noise'
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Return erased copies of uint8 images (B, 3, H, W), BGR."""
        _check(images)
        images = images.clone()
        height, width = images.shape[2:]
        boxes = {
            picture: self.erasing.random_patch(height, width)
            for picture in range(len(images))
            if not self.erasing.random_disable()
        }
        if not boxes:
            return images
        device = images.device
        pictures = _on(device, list(boxes))
        edges = _on(device, list(boxes.values())).view(-1, 4, 1, 1, 1)
        top, left, h, w = edges.unbind(1)
        rows = torch.arange(height, device=device)[:, None] - top
        columns = torch.arange(width, device=device) - left
        inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
        color = _on(device, self.erasing.fill_color).float().view(3, 1, 1)
        std = _on(device, self.erasing.fill_std).float().view(3, 1, 1)
        noise = torch.randn(len(boxes), 3, height, width, device=device)
        noise = noise.mul_(std).add_(color).clamp_(0, 255).to(torch.uint8)
        images[pictures] = torch.where(inside, noise, images[pictures])
        return images


@MODELS.register_module()
class AugmentingDataPreprocessor(ClsDataPreprocessor):
    """``ClsDataPreprocessor`` that augments in training, before all else.

    Args:
        *args: As mmpretrain's ``ClsDataPreprocessor``.
        augments: Configs of ``BatchRandAugment`` and the like, in order.
        **kwargs: As mmpretrain's ``ClsDataPreprocessor``.
    """

    def __init__(self, *args, augments: Sequence[dict], **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.augments = [BATCH_AUGMENTS.build(cfg) for cfg in augments]

    def forward(self, data: dict, training: bool = False) -> dict:
        if training:
            images = self.cast_data(data['inputs'])
            for augment in self.augments:
                images = augment(images)
            data = dict(data, inputs=images)
        return super().forward(data, training)

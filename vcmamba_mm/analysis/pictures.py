"""Images for the analysis: as one sees them, and as a model does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mmcv.image import imrescale
from mmengine.model import BaseModel
from torch import Tensor


def load_picture(
    path: str | Path, size: int, read: Callable[[dict], dict]
) -> np.ndarray:
    """Read an image, resized to ``size`` pixels and cropped to a square.

    Args:
        path: Of the image.
        size: Height and width in pixels.
        read: What reads it, see ``vcmamba_mm.data.pictures.build_reading``.

    Returns:
        np.ndarray: (size, size, channels), as it is read, most often BGR;
        ``vcmamba_mm.data.pictures.viewable`` makes it one that can be shown.

    Raises:
        ImageReadError: If it is missing or cannot be decoded.
    """
    image = read(dict(img_path=str(path)))['img']
    height, width = image.shape[:2]
    # The short side becomes ``size``, the long one what it then is.
    longest = max(size, round(size * max(height, width) / min(height, width)))
    image = np.atleast_3d(
        imrescale(image, (longest, size), interpolation='area')
    )
    top, left = ((n - size) // 2 for n in image.shape[:2])
    return image[top : top + size, left : left + size].copy()


def model_inputs(model: BaseModel, pictures: list[np.ndarray]) -> Tensor:
    """Normalize images as the model's preprocessor does.

    Args:
        model: A classifier or a segmenter of mmpretrain or mmseg.
        pictures: From ``load_picture``, all of one size.

    Returns:
        Tensor: On the model's device, (images, channels, size, size).
    """
    images = [torch.from_numpy(p).permute(2, 0, 1) for p in pictures]
    inputs = model.data_preprocessor(dict(inputs=images))['inputs']
    return inputs if isinstance(inputs, Tensor) else torch.stack(inputs)

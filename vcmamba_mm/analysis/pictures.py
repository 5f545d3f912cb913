"""Pictures for the analysis: as one sees them, and as a model does."""

from pathlib import Path

import numpy as np
import torch
from mmcv.image import imrescale
from mmengine.model import BaseModel
from torch import Tensor

from ..transforms import LoadImageStrict


def trained_size(model: BaseModel) -> int:
    """Height in pixels that the model's position embedding is made for."""
    backbone = model.backbone
    if backbone.pos_embed is None:
        return 224
    return backbone.pos_embed.shape[2] * backbone.total_stride


def load_picture(path: str | Path, size: int) -> np.ndarray:
    """Read a picture, resized to ``size`` pixels and cropped to a square.

    Returns:
        np.ndarray: RGB, uint8, shape (size, size, 3).

    Raises:
        ImageReadError: If it is missing or cannot be decoded.
    """
    image = LoadImageStrict().transform(dict(img_path=str(path)))['img']
    height, width = image.shape[:2]
    # The short side becomes ``size``, the long one what it then is.
    longest = max(size, round(size * max(height, width) / min(height, width)))
    image = imrescale(image, (longest, size), interpolation='area')
    top, left = ((n - size) // 2 for n in image.shape[:2])
    return image[top : top + size, left : left + size, ::-1].copy()


def model_inputs(model: BaseModel, pictures: list[np.ndarray]) -> Tensor:
    """Normalize pictures as the model's preprocessor does.

    Args:
        model: A classifier or a segmenter of mmpretrain or mmseg.
        pictures: From ``load_picture``, all of one size.

    Returns:
        Tensor: On the model's device, (pictures, 3, size, size).
    """
    bgr = [
        torch.from_numpy(p[..., ::-1].copy()).permute(2, 0, 1)
        for p in pictures
    ]
    inputs = model.data_preprocessor(dict(inputs=bgr))['inputs']
    return inputs if isinstance(inputs, Tensor) else torch.stack(inputs)

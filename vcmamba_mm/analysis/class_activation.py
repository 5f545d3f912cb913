"""Grad-CAM and its relatives with this backbone's stages as layers.

Selvaraju et al., arXiv 1610.02391; computed by the package ``grad-cam``.
"""

import numpy as np
from mmengine.model import BaseModel
from torch import Tensor, nn

METHODS = ('GradCAM', 'GradCAMPlusPlus', 'XGradCAM', 'LayerCAM', 'HiResCAM')


def stage_layer(model: BaseModel, stage: int) -> nn.Module:
    """The layer to look at: a stage.

    Args:
        model: With the backbone VCMamba.
        stage: From 1.

    Raises:
        ValueError: If there is no such stage.
    """
    stages = model.backbone.stages
    if not 1 <= stage <= len(stages):
        raise ValueError(
            f'the backbone has the stages 1 to {len(stages)}, not {stage}'
        )
    return stages[stage - 1]


def class_activation_map(
    model: BaseModel,
    inputs: Tensor,
    labels: list[int],
    stage: int,
    method: str = 'GradCAM',
) -> np.ndarray:
    """Where the features of a stage speak for a class.

    Args:
        model: A classifier.
        inputs: Normalized pictures, (batch, channels, height, width).
        labels: The class of each picture.
        stage: From 1.
        method: One of ``METHODS``.

    Returns:
        np.ndarray: Shape (batch, height, width), from 0 to 1 in each picture.

    Raises:
        ImportError: If the package ``grad-cam`` is missing.
        ValueError: If there is no such stage or method.
    """
    try:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise ImportError(
            f'class activation maps need the package grad-cam ({error}): '
            'pip install "vcmamba-mmlab[analysis]"'
        ) from error
    if method not in METHODS:
        raise ValueError(f'method must be one of {METHODS}, got {method!r}')
    layer = stage_layer(model, stage)
    with getattr(pytorch_grad_cam, method)(model, [layer]) as cam:
        return cam(inputs, [ClassifierOutputTarget(k) for k in labels])

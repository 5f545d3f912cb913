"""Grad-CAM and its relatives with a backbone's stages or blocks as layers.

Selvaraju et al., arXiv 1610.02391; computed by the package ``grad-cam``.
"""

import numpy as np
from mmengine.model import BaseModel
from torch import Tensor, nn

METHODS = ('GradCAM', 'GradCAMPlusPlus', 'XGradCAM', 'LayerCAM', 'HiResCAM')


def stage_layer(model: BaseModel, stage: int) -> nn.Module:
    """The layer to look at: a stage.

    Args:
        model: With a backbone of this project.
        stage: From 1.

    Raises:
        ValueError: If there is no such stage.
    """
    stages, name = model.backbone.stages, model.backbone.stage_name
    if not 1 <= stage <= len(stages):
        raise ValueError(
            f'the backbone has the {name}s 1 to {len(stages)}, not {stage}'
        )
    return stages[stage - 1]


def block_layer(model: BaseModel, stage: int, block: int) -> nn.Module:
    """A block of a stage, both from 1.

    Raises:
        ValueError: If there is no such stage or block.
    """
    blocks = stage_layer(model, stage).blocks
    if not 1 <= block <= len(blocks):
        raise ValueError(
            f'{model.backbone.stage_name} {stage} has the blocks 1 to '
            f'{len(blocks)}, not {block}'
        )
    return blocks[block - 1]


def class_activation_map(
    model: BaseModel,
    inputs: Tensor,
    labels: list[int],
    stage: int,
    method: str = 'GradCAM',
    block: int | None = None,
) -> np.ndarray:
    """Where the features of a stage, or of a block, speak for a class.

    Args:
        model: A classifier.
        inputs: Normalized images, (batch, channels, height, width).
        labels: The class of each image.
        stage: From 1.
        method: One of ``METHODS``.
        block: Of the stage, from 1; None for what the stage returns. Tokens
            of windows are put to their places on the map, without padding.

    Returns:
        np.ndarray: Shape (batch, height, width), from 0 to 1 in each image.

    Raises:
        ImportError: If the package ``grad-cam`` is missing.
        ValueError: If there is no such stage, block or method.
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
    layer, as_map = stage_layer(model, stage), None
    blocks, came_in = layer.blocks, []
    if block is not None:
        layer = block_layer(model, stage, block)

        def as_map(x: Tensor) -> Tensor:
            return blocks.to_map(x, came_in[-1])

    handle = blocks.register_forward_pre_hook(
        lambda _, args: came_in.append(args[0])
    )
    try:
        with getattr(pytorch_grad_cam, method)(
            model, [layer], reshape_transform=as_map
        ) as cam:
            return cam(inputs, [ClassifierOutputTarget(k) for k in labels])
    finally:
        handle.remove()

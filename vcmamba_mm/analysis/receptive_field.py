"""Effective receptive fields: which pixels a feature depends on, how much."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class StageMap(nn.Module):
    """The map that a stage of a backbone returns, without an output's norm.

    Over the channels of a position, what a LayerNorm returns has the same sum
    whatever it is given, so that this sum has no gradient.

    Args:
        backbone: Of this project.
        stage: Index of the stage, which has to run.
    """

    def __init__(self, backbone: nn.Module, stage: int):
        super().__init__()
        self.backbone, self.stage = backbone, stage

    def forward(self, x: Tensor) -> tuple[Tensor]:
        maps = []
        handle = self.backbone.stages[self.stage].register_forward_hook(
            lambda stage, args, y: maps.append(y)
        )
        try:
            self.backbone(x)
        finally:
            handle.remove()
        return tuple(maps)


def effective_receptive_field(
    backbone: nn.Module, batches: Iterable[Tensor], stage: int = -1
) -> Tensor:
    """Mean magnitude of the gradient of the feature in the middle.

    With f_k the channels of the feature map at its middle (for even sizes the
    one to the lower right) and x_c those of the input, the mean over images
    of sum_c |d (sum_k f_k) / d x_c| at every pixel (Luo et al., arXiv
    1701.04128), divided by its largest value.

    Args:
        backbone: In eval mode, so that images do not depend on each other.
        batches: Normalized images, (batch, channels, height, width), all of
            one size.
        stage: Index into the maps that the backbone returns.

    Returns:
        Tensor: Shape (height, width), float64 on the CPU, largest value 1.

    Raises:
        ValueError: If there are no images, the backbone is in training
            mode, or nothing depends on the input.
    """
    if backbone.training:
        raise ValueError('the backbone is in training mode: call eval()')
    total, pictures = 0, 0
    for batch in batches:
        x = batch.detach().requires_grad_()
        feature_map = backbone(x)[stage]
        height, width = feature_map.shape[2:]
        middle = feature_map[:, :, height // 2, width // 2].sum()
        (grad,) = torch.autograd.grad(middle, x)
        total = total + grad.double().abs().sum((0, 1)).cpu()
        pictures += len(batch)
    if not pictures:
        raise ValueError('no images were given')
    if not total.max() > 0:
        raise ValueError('the feature does not depend on the input')
    return total / total.max()


def side_of_share(field: Tensor, share: float) -> int:
    """Side of the smallest centred square that holds a share of the field.

    Args:
        field: From ``effective_receptive_field``.
        share: Of the sum of the field, from 0 to 1.

    Returns:
        int: Pixels, 2 r + 1, at most the larger side of the field.
    """
    height, width = field.shape
    rows = (torch.arange(height) - height // 2).abs()
    columns = (torch.arange(width) - width // 2).abs()
    radius = torch.maximum(rows[:, None], columns)
    by_radius = torch.zeros(int(radius.max()) + 1, dtype=field.dtype)
    by_radius.index_add_(0, radius.flatten(), field.flatten())
    held = by_radius.cumsum(0) >= share * by_radius.sum() * (1 - 1e-12)
    return min(2 * int(held.int().argmax()) + 1, max(height, width))

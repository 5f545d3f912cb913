"""Neck between the backbone and a classification head."""

import torch.nn as nn
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor

from ..checkpoints import init_from_pretrained


@MODELS.register_module()
class NormGlobalAveragePooling(BaseModule):
    """LayerNorm of every token, then the mean over the tokens.

    Unlike mmpretrain's ``GlobalAveragePooling`` with a norm in the backbone,
    the norm comes before the pooling.

    Args:
        in_channels: Channels of the map.
        eps: Of the LayerNorm.
        init_cfg: Initialization config. ``dict(type='Pretrained',
            checkpoint=...)`` takes a classifier's checkpoint, ours or a
            released one.
    """

    def __init__(
        self, in_channels: int, eps: float = 1e-5, init_cfg: dict | None = None
    ):
        super().__init__(init_cfg)
        self.norm = nn.LayerNorm(in_channels, eps=eps)

    def init_weights(self) -> None:
        if not init_from_pretrained(self, part='neck'):
            super().init_weights()

    def forward(self, feats: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Pool the last of ``feats``, (batch, C, H, W) -> (batch, C)."""
        tokens = feats[-1].flatten(2).transpose(1, 2)
        return (self.norm(tokens).mean(dim=1),)

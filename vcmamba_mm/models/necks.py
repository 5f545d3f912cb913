"""Neck between the backbone and a classification head."""

from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor

from ..checkpoints import init_from_pretrained
from .layers import LayerNorm2d


@MODELS.register_module()
class NormGlobalAveragePooling(BaseModule):
    """A norm at every position of a map, then the mean over the positions.

    Unlike mmpretrain's ``GlobalAveragePooling`` with a norm in the backbone,
    the norm comes before the pooling.

    Args:
        in_channels: Channels of the map.
        eps: Of the norm.
        norm_cfg: Config of a norm of maps, such as ``dict(type='BN')``; by
            default it is a LayerNorm over the channels.
        init_cfg: Initialization config. ``dict(type='Pretrained',
            checkpoint=...)`` takes a classifier's checkpoint, ours or a
            released one.
    """

    def __init__(
        self,
        in_channels: int,
        eps: float = 1e-5,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        if norm_cfg is None:
            self.norm = LayerNorm2d(in_channels, eps=eps)
        else:
            norm_cfg = dict(dict(eps=eps), **norm_cfg)
            self.norm = build_norm_layer(norm_cfg, in_channels)[1]

    def init_weights(self) -> None:
        if not init_from_pretrained(self, part='neck'):
            super().init_weights()

    def forward(self, feats: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Pool the last of ``feats``, (batch, C, H, W) -> (batch, C)."""
        return (self.norm(feats[-1]).mean((2, 3)),)

"""The blocks of VCMamba, in the order of the data.

All feature maps have shape (batch, channels, height, width). Every
convolution has a bias, also before a norm: the released weights do.
"""

import torch
import torch.nn as nn
from mmcv.cnn import build_activation_layer, build_norm_layer
from torch import Tensor

from ..layers import (
    Blocks,
    DropPath,
    PointwiseConv2d,
    Stage,
    resize_pos_embed,
)
from .mixer import MultiDirectionalMamba

torch.fx.wrap('resize_pos_embed')  # it looks at sizes


def _conv_norm(
    in_channels: int, out_channels: int, norm_cfg: dict
) -> list[nn.Module]:
    """A 3x3 convolution that halves the resolution, and its norm."""
    return [
        nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1),
        build_norm_layer(norm_cfg, out_channels)[1],
    ]


class Stem(nn.Sequential):
    """Two strided convolutions with ReLU: H x W -> H/4 x W/4 (rounded up)."""

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: dict):
        super().__init__(
            *_conv_norm(in_channels, out_channels // 2, norm_cfg),
            nn.ReLU(),
            *_conv_norm(out_channels // 2, out_channels, norm_cfg),
            nn.ReLU(),
        )
        for conv in (self[0], self[3]):
            # LeCun normal: variance 1 / fan_in
            nn.init.kaiming_normal_(conv.weight, nonlinearity='linear')
            nn.init.zeros_(conv.bias)


class Downsample(nn.Sequential):
    """Between stages: H x W -> H/2 x W/2 (rounded up), no activation."""

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: dict):
        super().__init__(*_conv_norm(in_channels, out_channels, norm_cfg))


class ConvFFN(nn.Module):
    """1x1 expansion, 3x3 depthwise convolution, 1x1 projection, with norms.

    Args:
        embed_dims: Channels in and out.
        mlp_ratio: Hidden channels over ``embed_dims``.
        drop_rate: Dropout after the second activation and the last norm.
        norm_cfg: Config of the three norms.
        act_cfg: Config of the two activations.
    """

    def __init__(
        self,
        embed_dims: int,
        mlp_ratio: float,
        drop_rate: float,
        norm_cfg: dict,
        act_cfg: dict,
    ):
        super().__init__()
        hidden_dims = int(embed_dims * mlp_ratio)
        self.fc1 = PointwiseConv2d(embed_dims, hidden_dims)
        self.norm1 = build_norm_layer(norm_cfg, hidden_dims)[1]
        self.dwconv = nn.Conv2d(
            hidden_dims, hidden_dims, 3, padding=1, groups=hidden_dims
        )
        self.norm2 = build_norm_layer(norm_cfg, hidden_dims)[1]
        self.act = build_activation_layer(act_cfg)
        self.fc2 = PointwiseConv2d(hidden_dims, embed_dims)
        self.norm3 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.drop = nn.Dropout(drop_rate)
        for conv in (self.fc1, self.fc2):
            nn.init.trunc_normal_(conv.weight, std=0.02)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.fc1(x)))
        x = self.drop(self.act(self.norm2(self.dwconv(x))))
        return self.drop(self.norm3(self.fc2(x)))


class LinearFFN(nn.Module):
    """1x1 expansion, activation and 1x1 projection: no mixing, no norms.

    Args: as ``ConvFFN``'s, but for its norms and depthwise convolution.
    """

    def __init__(
        self,
        embed_dims: int,
        mlp_ratio: float,
        drop_rate: float,
        act_cfg: dict,
    ):
        super().__init__()
        hidden_dims = int(embed_dims * mlp_ratio)
        self.fc1 = PointwiseConv2d(embed_dims, hidden_dims)
        self.act = build_activation_layer(act_cfg)
        self.fc2 = PointwiseConv2d(hidden_dims, embed_dims)
        self.drop = nn.Dropout(drop_rate)
        for conv in (self.fc1, self.fc2):
            nn.init.trunc_normal_(conv.weight, std=0.02)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.fc1(x)))
        return self.drop(self.fc2(x))


class FFNBlock(nn.Module):
    """Convolutional block: ``x + drop_path(gamma * ffn(x))``.

    Args:
        embed_dims: Channels in and out.
        drop_path_rate: Stochastic depth rate of this block.
        layer_scale_init_value: Initial value of gamma, shape (C, 1, 1).
        norm_cfg: Config of the ffn's norms.
        ffn_cfg: The remaining arguments of ``ConvFFN``.
    """

    def __init__(
        self,
        embed_dims: int,
        drop_path_rate: float,
        layer_scale_init_value: float,
        norm_cfg: dict,
        ffn_cfg: dict,
    ):
        super().__init__()
        self.ffn = ConvFFN(embed_dims, norm_cfg=norm_cfg, **ffn_cfg)
        self.gamma = nn.Parameter(
            torch.full((embed_dims, 1, 1), layer_scale_init_value)
        )
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ffn(x)
        if self.gamma is not None:  # None once folded into the ffn
            y = self.gamma * y
        return x + self.drop_path(y)


class MDMBlock(nn.Module):
    """Multi-directional Mamba block: pre-norm mixer, then pre-norm ffn.

    ``x = x + drop_path(mixer(norm1(x)))``
    ``x = x + drop_path(ffn(norm2(x)))``

    Args:
        embed_dims: Channels in and out.
        drop_path_rate: Stochastic depth rate of this block.
        norm_cfg: Config of the two norms, the mixer's and the ffn's.
        ffn_cfg: The remaining arguments of the ffn.
        mixer_cfg: Further arguments of ``MultiDirectionalMamba``.
        ffn: 'conv' for ``ConvFFN``, 'linear' for ``LinearFFN``, or None for
            none: then the block ends after the mixer.

    Raises:
        ValueError: If ``ffn`` is none of these.
    """

    def __init__(
        self,
        embed_dims: int,
        drop_path_rate: float,
        norm_cfg: dict,
        ffn_cfg: dict,
        mixer_cfg: dict,
        ffn: str | None = 'conv',
    ):
        super().__init__()
        self.norm1 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.mixer = MultiDirectionalMamba(
            embed_dims, norm_cfg=norm_cfg, **mixer_cfg
        )
        self.norm2, self.ffn = None, None
        if ffn is not None:
            self.norm2 = build_norm_layer(norm_cfg, embed_dims)[1]
        if ffn == 'conv':
            self.ffn = ConvFFN(embed_dims, norm_cfg=norm_cfg, **ffn_cfg)
        elif ffn == 'linear':
            self.ffn = LinearFFN(embed_dims, **ffn_cfg)
        elif ffn is not None:
            raise ValueError(
                f"mdm_cfg: ffn must be 'conv', 'linear' or None, got {ffn!r}"
            )
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        if self.ffn is None:
            return x
        return x + self.drop_path(self.ffn(self.norm2(x)))


class StageBlocks(Blocks):
    """The blocks of a stage: convolutional ones, then Mamba blocks.

    Args:
        *blocks: In the order of the data.
        first_mdm: Index of the first Mamba block, before which the position
            embedding is added; None if there is none.
    """

    def __init__(self, *blocks: nn.Module, first_mdm: int | None = None):
        super().__init__(*blocks)
        self.first_mdm = first_mdm

    def forward(self, x: Tensor, pos_embed: Tensor | None = None) -> Tensor:
        """``pos_embed``, (1, C, h, w), is resized to the map ``x``."""
        for i, block in enumerate(self):
            if i == self.first_mdm:
                x = x + resize_pos_embed(pos_embed, x.shape[2:])
            x = self.run(block, x)
        return x


class VCMambaStage(Stage):
    """A stage of ``StageBlocks``."""

    def forward(self, x: Tensor, pos_embed: Tensor | None = None) -> Tensor:
        return self.blocks(self.downsample(x), pos_embed)

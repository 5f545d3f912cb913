"""The blocks of MambaVision, in the order of the data."""

import torch
import torch.nn.functional as F
from einops import rearrange
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from ..layers import GELU, MLP, Blocks, DropPath


def _conv_norm(
    in_channels: int, out_channels: int, norm_cfg: dict
) -> list[nn.Module]:
    """A 3x3 convolution that halves the resolution, its norm, and ReLU."""
    return [
        nn.Conv2d(
            in_channels, out_channels, 3, stride=2, padding=1, bias=False
        ),
        build_norm_layer(norm_cfg, out_channels)[1],
        nn.ReLU(),
    ]


class Stem(nn.Sequential):
    """Two strided convolutions: H x W -> H/4 x W/4 (rounded up)."""

    def __init__(
        self, in_channels: int, stem_dims: int, embed_dims: int, norm_cfg: dict
    ):
        norm_cfg = dict(dict(eps=1e-4), **norm_cfg)
        super().__init__(
            *_conv_norm(in_channels, stem_dims, norm_cfg),
            *_conv_norm(stem_dims, embed_dims, norm_cfg),
        )


class ConvBlock(nn.Module):
    """Two convolutions of a map (batch, C, height, width).

    ``x + drop_path(norm2(conv2(gelu(norm1(conv1(x))))))``
    """

    def __init__(self, embed_dims: int, drop_path_rate: float, norm_cfg: dict):
        super().__init__()
        self.conv1 = nn.Conv2d(embed_dims, embed_dims, 3, padding=1)
        self.norm1 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.act = GELU(approximate='tanh')
        self.conv2 = nn.Conv2d(embed_dims, embed_dims, 3, padding=1)
        self.norm2 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm1(self.conv1(x)))
        return x + self.drop_path(self.norm2(self.conv2(y)))


class WindowBlock(nn.Module):
    """Pre-norm mixer, then pre-norm MLP, of tokens (windows, T, C).

    ``x = x + drop_path(gamma1 * mixer(norm1(x)))``
    ``x = x + drop_path(gamma2 * mlp(norm2(x)))``

    Args:
        embed_dims: Channels in and out, C.
        mixer: The token mixer.
        drop_path_rate: Stochastic depth rate of this block.
        mlp_ratio: Hidden channels of the MLP over ``embed_dims``.
        layer_scale: Initial value of the gammas, or None for none.
    """

    def __init__(
        self,
        embed_dims: int,
        mixer: nn.Module,
        drop_path_rate: float,
        mlp_ratio: float,
        layer_scale: float | None,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims)
        self.mixer = mixer
        self.norm2 = nn.LayerNorm(embed_dims)
        self.mlp = MLP(embed_dims, int(mlp_ratio * embed_dims))
        self.drop_path = DropPath(drop_path_rate)
        self.gamma1 = self.gamma2 = None
        if layer_scale is not None:
            self.gamma1, self.gamma2 = (
                nn.Parameter(torch.full((embed_dims,), layer_scale))
                for _ in range(2)
            )
        for module in mixer.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer(self.norm1(x))
        x = x + self.drop_path(y if self.gamma1 is None else self.gamma1 * y)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path(
            y if self.gamma2 is None else self.gamma2 * y
        )


@torch.fx.wrap  # it looks at sizes
def to_windows(x: Tensor, size: int | None) -> Tensor:
    """Tokens of the windows of a map: (batch windows, T, C).

    The map (batch, C, height, width) is padded with zeros, on the right and
    at the bottom, to multiples of the windows. None makes one of the map.
    """
    if size is None:
        return rearrange(x, 'b c h w -> b (h w) c')
    height, width = x.shape[2:]
    x = F.pad(x, (0, -width % size, 0, -height % size))
    return rearrange(
        x,
        'b c (rows h) (columns w) -> (b rows columns) (h w) c',
        h=size,
        w=size,
    )


@torch.fx.wrap  # it looks at sizes
def to_map(tokens: Tensor, like: Tensor, size: int | None) -> Tensor:
    """The inverse of ``to_windows``; ``like`` has the map's size."""
    height, width = like.shape[2:]
    if size is None:
        return rearrange(tokens, 'b (h w) c -> b c h w', h=height)
    x = rearrange(
        tokens,
        '(b rows columns) (h w) c -> b c (rows h) (columns w)',
        rows=-(-height // size),
        columns=-(-width // size),
        h=size,
    )
    return x[:, :, :height, :width]


class WindowBlocks(Blocks):
    """Blocks that work on the windows of a map.

    Args:
        *blocks: In the order of the data.
        window_size: Rows and columns of a window, or None for one window,
            which is the map.
    """

    def __init__(self, *blocks: nn.Module, window_size: int | None):
        super().__init__(*blocks)
        self.window_size = window_size

    def forward(self, x: Tensor) -> Tensor:
        tokens = to_windows(x, self.window_size)
        return self.to_map(super().forward(tokens), x)

    def to_map(self, x: Tensor, like: Tensor) -> Tensor:
        return to_map(x, like, self.window_size)

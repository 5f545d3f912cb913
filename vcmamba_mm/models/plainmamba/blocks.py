"""Stem and layers of PlainMamba, in the order of the data."""

from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from ..layers import GELU, DropPath
from .mixer import PlainMambaMixer

STEM_DIMS = 64


class Stem(nn.Module):
    """Convolutions and patches, H/16 x W/16 (rounded up) with those of 8.

    Patches that go beyond the map of the convolutions are filled with zeros.

    Args:
        in_channels: Channels of the images.
        num_convs: 3x3 convolutions after the strided 7x7 one.
        embed_dims: Channels of the patches.
        norm_cfg: Config of the batch norms.
        patch_size: Height and width of a patch, in pixels of the first
            convolution's map, which has half of the image's.
    """

    def __init__(
        self,
        in_channels: int,
        num_convs: int,
        embed_dims: int,
        norm_cfg: dict,
        patch_size: int = 8,
    ):
        super().__init__()
        self.convs = nn.Sequential()
        for i in range(1 + num_convs):
            size, stride = (3, 1) if i else (7, 2)
            self.convs.extend(
                [
                    nn.Conv2d(
                        STEM_DIMS if i else in_channels,
                        STEM_DIMS,
                        size,
                        stride=stride,
                        padding=size // 2,
                        bias=False,
                    ),
                    build_norm_layer(norm_cfg, STEM_DIMS)[1],
                    nn.ReLU(),
                ]
            )
        # Right and below, at any size: what no patch needs is not read.
        self.pad = nn.ZeroPad2d((0, patch_size - 1) * 2)
        self.proj = nn.Conv2d(
            STEM_DIMS, embed_dims, patch_size, stride=patch_size
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.pad(self.convs(x)))


class PlainMambaLayer(nn.Module):
    """Pre-norm mixer of a map (batch, C, height, width), without an ffn.

    ``x = x + drop_path(mixer(norm(x)))``, and, with a convolution,
    ``x = gelu(bn(dwconv(x)))``

    Args:
        embed_dims: Channels in and out, C.
        drop_path_rate: Stochastic depth rate of this layer.
        with_conv: Whether a depthwise convolution follows, around which there
            is no skip.
        norm_cfg: Config of the convolution's norm.
        mixer_cfg: Further arguments of ``PlainMambaMixer``.
    """

    def __init__(
        self,
        embed_dims: int,
        drop_path_rate: float,
        with_conv: bool,
        norm_cfg: dict,
        mixer_cfg: dict,
    ):
        super().__init__()
        self.norm = nn.LayerNorm(embed_dims)
        self.mixer = PlainMambaMixer(embed_dims, **mixer_cfg)
        self.drop_path = DropPath(drop_path_rate)
        self.dwconv = nn.Identity()
        if with_conv:
            self.dwconv = nn.Sequential(
                nn.Conv2d(
                    embed_dims,
                    embed_dims,
                    3,
                    padding=1,
                    groups=embed_dims,
                    bias=False,
                ),
                build_norm_layer(norm_cfg, embed_dims)[1],
                GELU(),
            )

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)  # channels last
        x = x + self.drop_path(self.mixer(self.norm(x)))
        return self.dwconv(x.movedim(-1, 1))

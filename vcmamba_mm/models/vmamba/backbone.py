"""The VMamba backbone."""

from mmengine.registry import MODELS
from torch import Tensor, nn

from ..base import BaseBackbone, MacRule, check_mixer_cfg
from ..layers import (
    GELU,
    MLP,
    Blocks,
    DropPath,
    LayerNorm2d,
    Stage,
    drop_path_rates,
)
from .mixer import SS2D


def _conv_norm(in_channels: int, out_channels: int) -> list[nn.Module]:
    """A 3x3 convolution that halves the resolution, and its norm."""
    return [
        nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1),
        LayerNorm2d(out_channels),
    ]


class Stem(nn.Sequential):
    """Two strided convolutions: H x W -> H/4 x W/4 (rounded up)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            *_conv_norm(in_channels, out_channels // 2),
            GELU(),
            *_conv_norm(out_channels // 2, out_channels),
        )


class Downsample(nn.Sequential):
    """Between stages: H x W -> H/2 x W/2 (rounded up), no activation."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(*_conv_norm(in_channels, out_channels))


class VSSBlock(nn.Module):
    """Pre-norm mixer, then pre-norm MLP, of a map (batch, C, height, width).

    ``x = x + drop_path(mixer(norm1(x)))``
    ``x = x + drop_path(mlp(norm2(x)))``

    Args:
        embed_dims: Channels in and out.
        drop_path_rate: Stochastic depth rate of this block.
        mlp_ratio: Hidden channels of the MLP over ``embed_dims``.
        mixer_cfg: Further arguments of ``SS2D``.
    """

    def __init__(
        self,
        embed_dims: int,
        drop_path_rate: float,
        mlp_ratio: float,
        mixer_cfg: dict,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims)
        self.mixer = SS2D(embed_dims, **mixer_cfg)
        self.norm2 = nn.LayerNorm(embed_dims)
        self.mlp = MLP(embed_dims, int(mlp_ratio * embed_dims))
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)  # channels last from here on
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.movedim(-1, 1)


@MODELS.register_module()
class VMamba(BaseBackbone):
    """VMamba (arXiv 2401.10166), as its authors released it last.

    Four stages of blocks that scan the feature map along four paths, each
    with parameters of its own.

    Args:
        arch: 't', 's', 'b' (the authors' T s1l8, S s2l15, B s2l15), their
            sisters 't_s2l5', 's_s1l20', 'b_s1l20', or a dict with
            ``embed_dims`` and ``depths`` (a number per stage) and ``expand``
            (inner channels of a mixer over its channels).
        in_channels: Channels of the input.
        out_indices: Indices of the stages to output, from 0; negative ones
            count from the end. Stages after the last of them do not run and
            get no gradient.
        mlp_ratio: Hidden channels of a block's MLP over its channels.
        drop_path_rate: Stochastic depth rate of the last block; it grows
            linearly over all the blocks from 0.
        mixer_cfg: Further arguments of ``SS2D``: ``d_state``, ``conv_size``,
            ``backend``.
        **kwargs: Further arguments of ``BaseBackbone``: ``out_norms`` (which
            the authors' segmenters and detectors have), ``frozen_stages``,
            ``norm_eval``, ``with_cp``, ``channels_last``, ``init_cfg``.

    Raises:
        ValueError: If an argument or an input's size does not fit.
    """

    arch_settings = dict(
        t=dict(embed_dims=(96, 192, 384, 768), depths=(2, 2, 8, 2), expand=1),
        s=dict(embed_dims=(96, 192, 384, 768), depths=(2, 2, 15, 2), expand=2),
        b=dict(
            embed_dims=(128, 256, 512, 1024), depths=(2, 2, 15, 2), expand=2
        ),
        t_s2l5=dict(
            embed_dims=(96, 192, 384, 768), depths=(2, 2, 5, 2), expand=2
        ),
        s_s1l20=dict(
            embed_dims=(96, 192, 384, 768), depths=(2, 2, 20, 2), expand=1
        ),
        b_s1l20=dict(
            embed_dims=(128, 256, 512, 1024), depths=(2, 2, 20, 2), expand=1
        ),
    )

    mac_rule = MacRule(scan=(9, 1), layer_norm=5)

    def __init__(
        self,
        arch: str | dict = 't',
        in_channels: int = 3,
        out_indices: int | tuple[int, ...] = (-1,),
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        mixer_cfg: dict | None = None,
        **kwargs,
    ):
        arch = self.parse_arch(arch)
        dims, depths = arch['embed_dims'], arch['depths']
        super().__init__(dims, in_channels, out_indices, **kwargs)
        self.total_stride = 4 * 2 ** (len(dims) - 1)
        mixer_cfg = check_mixer_cfg(mixer_cfg, expand='arch')
        mixer_cfg['expand'] = arch['expand']

        self.stem = Stem(in_channels, dims[0])
        self.stages = nn.ModuleList()
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            downsample = nn.Identity()
            if i > 0:
                downsample = Downsample(dims[i - 1], dims[i])
            blocks = Blocks(
                *(VSSBlock(dims[i], r, mlp_ratio, mixer_cfg) for r in rates)
            )
            self.stages.append(Stage(downsample, blocks))
        self.finish()

"""The VCMamba backbone."""

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..base import BaseBackbone, check_mixer_cfg
from ..layers import GELU, drop_path_rates, fast_format
from .blocks import (
    Downsample,
    FFNBlock,
    MDMBlock,
    StageBlocks,
    Stem,
    VCMambaStage,
)

torch.fx.wrap('fast_format')  # it looks at a dtype


@MODELS.register_module()
class VCMamba(BaseBackbone):
    """VCMamba (arXiv 2509.04669).

    Three convolutional stages, then a fourth whose last blocks scan the
    feature map along four paths.

    Args:
        arch: 's', 'm', 'b', or a dict with ``embed_dims`` and ``depths`` (a
            number per stage) and ``num_mdm``, how many of the last stage's
            blocks are multi-directional Mamba blocks (0 is possible).
        in_channels: Channels of the input.
        img_size: Size the position embedding is made for, an int or (height,
            width) in pixels. Maps of other sizes get it resized (bicubic).
        out_indices: Indices of the stages to output, from 0; negative ones
            count from the end. Stages after the last of them do not run and
            get no gradient.
        mlp_ratio: Hidden channels of a block's ffn over its channels.
        drop_rate: Dropout rate in the ffns.
        drop_path_rate: Stochastic depth rate of the last block; it grows
            linearly over all the blocks from 0.
        layer_scale_init_value: Initial layer scale of the ffn blocks.
        mixer_cfg: Arguments of ``MultiDirectionalMamba``: ``d_state``,
            ``expand``, ``conv_size``, ``param_order``, ``num_paths``,
            ``snake``, ``dt_bias_scale``, ``proj``, ``gate``, ``with_norm``,
            ``backend``.
        mdm_cfg: Further arguments of the multi-directional Mamba blocks:
            ``ffn`` ('conv', 'linear' or None), ``norm_cfg``.
        norm_cfg: Config of all batch norms.
        act_cfg: Config of the ffns' activations.
        **kwargs: Further arguments of ``BaseBackbone``: ``out_norms``,
            ``frozen_stages``, ``norm_eval``, ``with_cp``, ``channels_last``,
            ``init_cfg``.

    Raises:
        ValueError: If an argument or an input's size does not fit.
    """

    arch_settings = dict(
        s=dict(embed_dims=(32, 64, 144, 288), depths=(4, 4, 12, 8), num_mdm=4),
        m=dict(embed_dims=(48, 96, 224, 448), depths=(4, 4, 12, 6), num_mdm=4),
        b=dict(
            embed_dims=(64, 128, 320, 512), depths=(4, 4, 12, 6), num_mdm=4
        ),
    )

    def __init__(
        self,
        arch: str | dict = 'b',
        in_channels: int = 3,
        img_size: int | tuple[int, int] = 224,
        out_indices: int | tuple[int, ...] = (-1,),
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-5,
        mixer_cfg: dict | None = None,
        mdm_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        **kwargs,
    ):
        arch = self.parse_arch(arch)
        dims, depths = arch['embed_dims'], arch['depths']
        num_stages, num_mdm = len(depths), arch['num_mdm']
        if not 0 <= num_mdm <= depths[-1]:
            raise ValueError(
                f'arch: num_mdm must be from 0 to the {depths[-1]} blocks of '
                f'the last stage, got {num_mdm}'
            )
        unknown = set(mdm_cfg or {}) - {'ffn', 'norm_cfg'}
        if unknown:
            raise ValueError(
                f"mdm_cfg takes 'ffn' and 'norm_cfg', got {sorted(unknown)}"
            )
        super().__init__(dims, in_channels, out_indices, **kwargs)
        self.total_stride = self.smallest = 4 * 2 ** (num_stages - 1)
        norm_cfg = norm_cfg or dict(type='BN')
        ffn_cfg = dict(
            mlp_ratio=mlp_ratio,
            drop_rate=drop_rate,
            act_cfg=act_cfg or dict(type=GELU),
        )
        mdm_cfg = dict(
            dict(norm_cfg=norm_cfg),
            **(mdm_cfg or {}),
            ffn_cfg=ffn_cfg,
            mixer_cfg=check_mixer_cfg(
                mixer_cfg, norm_cfg='norm_cfg or mdm_cfg'
            ),
        )

        self.stem = Stem(in_channels, dims[0], norm_cfg)
        self.stages = nn.ModuleList()
        rates = drop_path_rates(drop_path_rate, depths)
        for i, its_rates in enumerate(rates):
            downsample, num_ffn = nn.Identity(), depths[i]
            if i > 0:
                downsample = Downsample(dims[i - 1], dims[i], norm_cfg)
            if i == num_stages - 1:
                num_ffn -= num_mdm
            ffn_blocks = [
                FFNBlock(
                    dims[i], rate, layer_scale_init_value, norm_cfg, ffn_cfg
                )
                for rate in its_rates[:num_ffn]
            ]
            mdm_blocks = [
                MDMBlock(dims[i], rate, **mdm_cfg)
                for rate in its_rates[num_ffn:]
            ]
            blocks = StageBlocks(
                *ffn_blocks,
                *mdm_blocks,
                first_mdm=num_ffn if mdm_blocks else None,
            )
            self.stages.append(VCMambaStage(downsample, blocks))

        if num_mdm > 0:
            place = num_stages - 1, depths[-1] - num_mdm
            self.make_pos_embed(img_size, place)
        self.finish()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x: Images, shape (batch, in_channels, height, width); height and
                width need not be multiples of anything.

        Returns:
            tuple: A map (batch, C_i, ceil(height / s_i), ceil(width / s_i))
            for each of ``out_indices``, s_i = 4, 8, 16, 32.

        Raises:
            InputSizeError: If the input is smaller than the total stride, or
                has another number of channels.
        """
        x = self.stem(fast_format(self.check_input(x)))
        return self.run_stages(x, self.pos_embed)

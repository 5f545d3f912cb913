"""The PlainMamba backbone."""

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..base import BaseBackbone, MacRule, check_mixer_cfg
from ..layers import (
    Blocks,
    LayerNorm2d,
    Stage,
    drop_path_rates,
    fast_format,
    resize_pos_embed,
)
from .blocks import PlainMambaLayer, Stem

torch.fx.wrap('fast_format')  # it looks at a dtype
torch.fx.wrap('resize_pos_embed')  # it looks at sizes


@MODELS.register_module()
class PlainMamba(BaseBackbone):
    """PlainMamba (arXiv 2403.17695).

    Equal layers at one resolution, each of which scans the feature map along
    four paths. Each is a stage of ``BaseBackbone``, so what that says of
    stages holds for layers.

    Args:
        arch: 'l1', 'l2', 'l3', or a dict with ``embed_dims`` and ``depth``
            (channels and number of the layers), ``stem_convs`` (3x3
            convolutions of the stem) and ``extra_conv`` (whether a depthwise
            convolution follows the first layer).
        in_channels: Channels of the input.
        img_size: Size the position embedding is made for, an int or (height,
            width) in pixels. Maps of other sizes get it resized (bicubic).
        out_indices: Indices of the layers to output, from 0; negative ones
            count from the end. Layers after the last of them do not run and
            get no gradient.
        out_norms: Whether each output has a LayerNorm over its channels, but
            for that of the last layer, which ``final_norm`` is for. Where
            weights without them are loaded, such as a classifier's, they are
            new.
        final_norm: Whether the output of the last layer is normed. A
            classifier's norm is left over where there is none.
        drop_path_rate: Stochastic depth rate of the last layer; it grows
            linearly over all the layers from 0.
        mixer_cfg: Arguments of ``PlainMambaMixer``: ``d_state``, ``expand``,
            ``conv_size``, ``dt_bias_scale``, ``backend``.
        norm_cfg: Config of all batch norms.
        patch_size: Height and width of a token, in pixels of the map of the
            stem's convolutions, which has half of the image's. Small images
            want smaller ones than the published 8.
        **kwargs: Further arguments of ``BaseBackbone``: ``frozen_stages``,
            ``norm_eval``, ``with_cp``, ``channels_last``, ``init_cfg``.

    Raises:
        ValueError: If an argument or an input's size does not fit.
    """

    arch_settings = dict(
        l1=dict(embed_dims=192, depth=24, stem_convs=1, extra_conv=True),
        l2=dict(embed_dims=384, depth=24, stem_convs=2, extra_conv=False),
        l3=dict(embed_dims=448, depth=36, stem_convs=2, extra_conv=False),
    )

    stage_name = 'layer'
    mac_rule = MacRule(scan=(9, 0))
    out_norm_eps = 1e-6

    def __init__(
        self,
        arch: str | dict = 'l1',
        in_channels: int = 3,
        img_size: int | tuple[int, int] = 224,
        out_indices: int | tuple[int, ...] = (-1,),
        out_norms: bool = False,
        final_norm: bool = True,
        drop_path_rate: float = 0.0,
        mixer_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        patch_size: int = 8,
        **kwargs,
    ):
        arch = self.find_arch(arch)
        dims, depth = arch['embed_dims'], arch['depth']
        if not all(isinstance(n, int) and n > 0 for n in (dims, depth)):
            raise ValueError(
                'arch: embed_dims and depth must be numbers, as all layers '
                f'are equal, got {dims} and {depth}'
            )
        norm_cfg = norm_cfg or dict(type='BN')
        mixer_cfg = check_mixer_cfg(mixer_cfg)
        super().__init__(
            (dims,) * depth, in_channels, out_indices, out_norms, **kwargs
        )
        last = str(depth - 1)
        if last in self.out_norms:
            del self.out_norms[last]

        self.total_stride = 2 * patch_size
        self.stem = Stem(
            in_channels, arch['stem_convs'], dims, norm_cfg, patch_size
        )
        self.make_pos_embed(img_size, place=(0, 0))
        self.stages = nn.ModuleList()
        for i, rates in enumerate(
            drop_path_rates(drop_path_rate, (1,) * depth)
        ):
            layer = PlainMambaLayer(
                dims,
                *rates,
                with_conv=arch['extra_conv'] and i == 0,
                norm_cfg=norm_cfg,
                mixer_cfg=mixer_cfg,
            )
            self.stages.append(Stage(nn.Identity(), Blocks(layer)))
        self.final_norm = None
        if final_norm:
            self.final_norm = LayerNorm2d(dims, eps=self.out_norm_eps)
            self.final_norm.requires_grad_(depth - 1 in self.out_indices)
        self.finish()

    def out_norm(self, index: int) -> nn.Module | None:
        if index == len(self.stages) - 1:
            return self.final_norm
        return super().out_norm(index)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x: Images, shape (batch, in_channels, height, width), of any
                size.

        Returns:
            tuple: A map (batch, C, ceil(height / 16), ceil(width / 16)) for
            each of ``out_indices``; with another ``patch_size``, twice that
            in the place of 16.

        Raises:
            InputSizeError: If the input is empty, or has another number of
                channels.
        """
        x = self.stem(fast_format(self.check_input(x)))
        return self.run_stages(
            x + resize_pos_embed(self.pos_embed, x.shape[2:])
        )

"""The MambaVision backbone."""

from collections.abc import Sequence

from mmengine.registry import MODELS
from torch import nn

from ..base import BaseBackbone, MacRule, check_mixer_cfg
from ..layers import Blocks, Stage, drop_path_rates
from .blocks import ConvBlock, Stem, WindowBlock, WindowBlocks
from .mixers import Attention, MambaVisionMixer


@MODELS.register_module()
class MambaVision(BaseBackbone):
    """MambaVision (arXiv 2407.08083).

    Two convolutional stages, then two whose blocks work on windows of the
    map: those of the first half scan, the others attend.

    Args:
        arch: 't', 't2', 's', 'b', 'l', 'l2', 'l3', or a dict with
            ``embed_dims`` and ``depths`` (a number per stage), ``stem_dims``
            (channels inside the stem), ``num_heads`` (a number for each of
            the last stages, which have windows) and ``layer_scale`` (initial
            value, or None for none).
        in_channels: Channels of the input.
        out_indices: Indices of the stages to output, from 0; negative ones
            count from the end. Stages after the last of them do not run and
            get no gradient.
        window_size: Rows and columns of a window, in tokens, for each of the
            last stages, or 'map': one window, which is the map. Released
            weights give the authors' results with their windows only: maps
            are padded with zeros to multiples of them, and nothing masks
            these. (14, 7) is what classifiers of 224 pixels have.
        mlp_ratio: Hidden channels of a block's MLP over its channels.
        drop_path_rate: Stochastic depth rate of the last block; it grows
            linearly over all the blocks from 0. In windows each draws alone.
        mixer_cfg: Arguments of ``MambaVisionMixer``: ``d_state``,
            ``conv_size``, ``dt_bias_scale``, ``backend``.
        norm_cfg: Config of all batch norms.
        **kwargs: Further arguments of ``BaseBackbone``: ``out_norms`` (which
            the authors' segmenters and detectors have), ``frozen_stages``,
            ``norm_eval``, ``with_cp``, ``channels_last``, ``init_cfg``.

    Raises:
        ValueError: If an argument or an input's size does not fit.
    """

    arch_settings = {
        name: dict(
            embed_dims=tuple(dim * 2**i for i in range(4)),
            depths=depths,
            stem_dims=32 if dim == 80 else 64,
            num_heads=(8, 16) if dim <= 128 else (16, 32),
            layer_scale=None if dim <= 96 else 1e-5,
        )
        for name, dim, depths in (
            ('t', 80, (1, 3, 8, 4)),
            ('t2', 80, (1, 3, 11, 4)),
            ('s', 96, (3, 3, 7, 5)),
            ('b', 128, (3, 3, 10, 5)),
            ('l', 196, (3, 3, 10, 5)),
            ('l2', 196, (3, 3, 12, 5)),
            ('l3', 256, (3, 3, 20, 10)),
        )
    }

    mac_rule = MacRule(products=False)

    def __init__(
        self,
        arch: str | dict = 't',
        in_channels: int = 3,
        out_indices: int | tuple[int, ...] = (-1,),
        window_size: tuple[int, ...] | str = (14, 7),
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        mixer_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        **kwargs,
    ):
        arch = self.parse_arch(arch)
        dims, depths = arch['embed_dims'], arch['depths']
        num_heads = tuple(arch['num_heads'])
        if not 0 < len(num_heads) <= len(dims):
            raise ValueError(
                'arch: num_heads must have a number for each of the last '
                f'stages, got {num_heads}'
            )
        if window_size == 'map':
            window_size = (None,) * len(num_heads)
        elif (
            not isinstance(window_size, Sequence)
            or len(window_size) != len(num_heads)
            or not all(isinstance(w, int) and w > 0 for w in window_size)
        ):
            raise ValueError(
                "window_size must be 'map', or a number for each of the last "
                f'{len(num_heads)} stages, got {window_size!r}'
            )
        super().__init__(dims, in_channels, out_indices, **kwargs)
        self.total_stride = 4 * 2 ** (len(dims) - 1)
        norm_cfg = norm_cfg or dict(type='BN')
        mixer_cfg = check_mixer_cfg(mixer_cfg)
        num_convs = len(dims) - len(num_heads)

        self.stem = Stem(in_channels, arch['stem_dims'], dims[0], norm_cfg)
        self.stages = nn.ModuleList()
        for i, rates in enumerate(drop_path_rates(drop_path_rate, depths)):
            downsample = nn.Identity()
            if i > 0:
                downsample = nn.Conv2d(
                    dims[i - 1], dims[i], 3, stride=2, padding=1, bias=False
                )
            if i < num_convs:
                blocks = Blocks(
                    *(ConvBlock(dims[i], rate, norm_cfg) for rate in rates)
                )
            else:
                heads = num_heads[i - num_convs]
                num_mixers = (depths[i] + 1) // 2
                blocks = WindowBlocks(
                    *(
                        WindowBlock(
                            dims[i],
                            MambaVisionMixer(dims[i], **mixer_cfg)
                            if j < num_mixers
                            else Attention(dims[i], heads),
                            rate,
                            mlp_ratio,
                            arch['layer_scale'],
                        )
                        for j, rate in enumerate(rates)
                    ),
                    window_size=window_size[i - num_convs],
                )
            self.stages.append(Stage(downsample, blocks))
        self.finish()

"""The VCMamba backbone."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ...checkpoints import init_from_pretrained
from ..base import InputSizeError
from .blocks import (
    Downsample,
    FFNBlock,
    MDMBlock,
    Stem,
)


class Stage(nn.Module):
    """Downsampling (but for the first stage) and blocks."""

    def __init__(self, downsample: nn.Module, blocks: list[nn.Module]):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)


def _surely_equal(old: int, new: int) -> bool:
    """Compare sizes without fixing one that may vary."""
    equal = old == new
    # Dynamo of old could not trace the other; torch.jit.trace has tensors.
    if torch.__version__ < '2.8' or isinstance(equal, Tensor):
        return equal
    return statically_known_true(equal)


@contextmanager
def _kept_batch_stats(block: nn.Module) -> Iterator[None]:
    """Keep a second forward pass from updating running statistics again."""
    norms = [
        m
        for m in block.modules()
        if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    kept = [(m.momentum, m.num_batches_tracked.clone()) for m in norms]
    for m in norms:
        m.momentum = 0.0
    try:
        yield
    finally:
        for m, (momentum, num_batches_tracked) in zip(norms, kept):
            m.momentum = momentum
            m.num_batches_tracked.copy_(num_batches_tracked)


@MODELS.register_module()
class VCMamba(BaseModule):
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
        frozen_stages: Stem and stages up to and including this index get no
            gradient and stay in eval mode. -1 freezes nothing.
        norm_eval: Keep all batch norms in eval mode.
        with_cp: Recompute the blocks in the backward pass to save memory.
        channels_last: Keep weights and feature maps in channels-last memory,
            which is what tensor cores want and what the scan reads.
        init_cfg: Initialization config. ``dict(type='Pretrained',
            checkpoint=...)`` takes a path or URL of a checkpoint of this
            project (of a classifier, a segmenter, or the backbone alone) or
            of the authors' release; every key must match. Its further keys
            ``weights`` and ``adapt_in_channels``:
            ``vcmamba_mm.checkpoints.init_from_pretrained``.

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
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        channels_last: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        self.embed_dims, depths, num_mdm = self._parse_arch(arch)
        num_stages = len(depths)
        self.out_indices = self._parse_out_indices(out_indices, num_stages)
        if not -1 <= frozen_stages < num_stages:
            raise ValueError(
                f'frozen_stages must be from -1 to '
                f'{num_stages - 1}, got {frozen_stages}'
            )
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        norm_cfg = norm_cfg or dict(type='BN')
        ffn_cfg = dict(
            mlp_ratio=mlp_ratio,
            drop_rate=drop_rate,
            act_cfg=act_cfg or dict(type='GELU'),
        )
        unknown = set(mdm_cfg or {}) - {'ffn', 'norm_cfg'}
        if unknown:
            raise ValueError(
                f"mdm_cfg takes 'ffn' and 'norm_cfg', got {sorted(unknown)}"
            )
        mdm_cfg = dict(
            dict(norm_cfg=norm_cfg),
            **(mdm_cfg or {}),
            ffn_cfg=ffn_cfg,
            mixer_cfg=mixer_cfg or {},
        )

        self.in_channels = in_channels
        self.stem = Stem(in_channels, self.embed_dims[0], norm_cfg)
        self.total_stride = 4 * 2 ** (num_stages - 1)
        drop_path_rates = iter(
            torch.linspace(0, drop_path_rate, sum(depths)).tolist()
        )
        self.stages = nn.ModuleList()
        for i, (dims, depth) in enumerate(zip(self.embed_dims, depths)):
            downsample = (
                nn.Identity()
                if i == 0
                else Downsample(self.embed_dims[i - 1], dims, norm_cfg)
            )
            num_ffn = depth - (num_mdm if i == num_stages - 1 else 0)
            blocks = [
                FFNBlock(
                    dims,
                    next(drop_path_rates),
                    layer_scale_init_value,
                    norm_cfg,
                    ffn_cfg,
                )
                for _ in range(num_ffn)
            ] + [
                MDMBlock(dims, next(drop_path_rates), **mdm_cfg)
                for _ in range(depth - num_ffn)
            ]
            self.stages.append(Stage(downsample, blocks))

        # The position embedding is added once, before the first MDM block.
        self.pos_embed, self.first_mdm = None, None
        if num_mdm > 0:
            self.first_mdm = (num_stages - 1, depths[-1] - num_mdm)
            if isinstance(img_size, int):
                img_size = (img_size, img_size)
            grid = [-(-size // self.total_stride) for size in img_size]
            self.pos_embed = nn.Parameter(
                torch.empty(1, self.embed_dims[-1], *grid)
            )
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for stage in self.stages[max(self.out_indices) + 1 :]:
            stage.requires_grad_(False)
        if self.pos_embed is not None:
            last_runs = max(self.out_indices) == num_stages - 1
            self.pos_embed.requires_grad_(last_runs)
        if channels_last:
            # Convolutions hand the format of their weights on.
            self.to(memory_format=torch.channels_last)
        self._freeze_stages()

    def _parse_arch(self, arch: str | dict) -> tuple[tuple, tuple, int]:
        if isinstance(arch, str):
            if arch.lower() not in self.arch_settings:
                raise ValueError(
                    f'unknown arch {arch!r}: choose one of '
                    f'{tuple(self.arch_settings)} or give a dict with '
                    "'embed_dims', 'depths' and 'num_mdm'"
                )
            arch = self.arch_settings[arch.lower()]
        if set(arch) != {'embed_dims', 'depths', 'num_mdm'}:
            raise ValueError(
                "a custom arch needs the keys 'embed_dims', "
                f"'depths' and 'num_mdm', got {sorted(arch)}"
            )
        dims, depths = tuple(arch['embed_dims']), tuple(arch['depths'])
        if len(dims) != len(depths) or not dims:
            raise ValueError(
                'arch: embed_dims and depths must have the same '
                f'number of stages, got {dims} and {depths}'
            )
        if not 0 <= arch['num_mdm'] <= depths[-1]:
            raise ValueError(
                f'arch: num_mdm must be from 0 to the {depths[-1]} blocks of '
                f'the last stage, got {arch["num_mdm"]}'
            )
        return dims, depths, arch['num_mdm']

    @staticmethod
    def _parse_out_indices(
        out_indices: int | tuple[int, ...], num_stages: int
    ) -> tuple[int, ...]:
        if isinstance(out_indices, int):
            out_indices = (out_indices,)
        for index in out_indices:
            if not -num_stages <= index < num_stages:
                raise ValueError(
                    f'out_indices must be from {-num_stages} to '
                    f'{num_stages - 1} for {num_stages} stages, got {index}'
                )
        return tuple(index % num_stages for index in out_indices)

    def init_weights(self) -> None:
        if not init_from_pretrained(self, part='backbone'):
            super().init_weights()

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Resize a position embedding that comes with another grid."""
        key = prefix + 'pos_embed'
        if self.pos_embed is not None and key in state_dict:
            state_dict[key] = self._resize(
                state_dict[key], self.pos_embed.shape[2:]
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    @staticmethod
    def _resize(pos_embed: Tensor, size: tuple[int, int]) -> Tensor:
        if pos_embed.dim() != 4 or all(
            _surely_equal(old, new)
            for old, new in zip(pos_embed.shape[2:], size)
        ):
            return pos_embed
        # bicubic interpolation exists in float32 on every device
        return F.interpolate(
            pos_embed.float(), size, mode='bicubic', align_corners=False
        ).to(pos_embed.dtype)

    def get_layer_depth(
        self, param_name: str, prefix: str = ''
    ) -> tuple[int, int]:
        """Find a parameter's layer, for layer-wise learning-rate decay.

        The stem is layer 0, the blocks are counted from 1 on through all
        stages. Downsampling belongs to its stage's first block, the position
        embedding to the first MDM block.

        Args:
            param_name: Name of the parameter in the whole model.
            prefix: What the names of the backbone's parameters begin with.

        Returns:
            tuple: The layer, and the number of layers. What comes after the
            backbone is the last one.
        """
        depths = [len(stage.blocks) for stage in self.stages]
        num_layers = sum(depths) + 2
        if not param_name.startswith(prefix):
            return num_layers - 1, num_layers
        words = param_name.removeprefix(prefix).split('.')
        if words[0] == 'stem':
            return 0, num_layers
        if words[0] == 'pos_embed':
            stage, block = self.first_mdm
        else:
            # stages.<i>.downsample..., stages.<i>.blocks.<j>...
            stage = int(words[1])
            block = int(words[3]) if words[2] == 'blocks' else 0
        return 1 + sum(depths[:stage]) + block, num_layers

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
        if x.shape[1] != self.in_channels:
            raise InputSizeError(
                f'input of {x.shape[1]} channels, the backbone is made for '
                f'{self.in_channels}: set its in_channels, or color_type in '
                "what loads pictures ('color' has 3, 'grayscale' 1, "
                "'unchanged' what the file has)"
            )
        if any(size < self.total_stride for size in x.shape[2:]):
            raise InputSizeError(
                f'input of {x.shape[2]} x {x.shape[3]} pixels is smaller than '
                f'the total stride {self.total_stride}: resize or pad it to '
                f'at least {self.total_stride} x {self.total_stride}'
            )
        x = self.stem(x)
        outs = {}
        for i, stage in enumerate(self.stages[: max(self.out_indices) + 1]):
            x = stage.downsample(x)
            for j, block in enumerate(stage.blocks):
                if (i, j) == self.first_mdm:
                    x = x + self._resize(self.pos_embed, x.shape[2:])
                x = self._run(block, x)
            outs[i] = x
        return tuple(outs[i] for i in self.out_indices)

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if not (self.with_cp and torch.is_grad_enabled()):
            return block(x)
        return checkpoint(
            block,
            x,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), _kept_batch_stats(block)),
        )

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [self.stem, *self.stages[: self.frozen_stages + 1]]
        for module in frozen:
            module.eval()
            module.requires_grad_(False)
        if self.pos_embed is not None and len(frozen) > len(self.stages):
            self.pos_embed.requires_grad_(False)

    def train(self, mode: bool = True) -> 'VCMamba':
        """Set the mode; frozen stages and, with ``norm_eval``, norms stay."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for m in self.modules():
                if isinstance(m, _BatchNorm):
                    m.eval()
        return self

"""What every backbone has."""

from typing import NamedTuple

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checkpoints import init_from_pretrained
from .layers import Blocks, LayerNorm2d, fast_format, resize_pos_embed

torch.fx.wrap('fast_format')  # it looks at a dtype


class InputSizeError(ValueError):
    """An input that is too small, or has other channels."""


class MacRule(NamedTuple):
    """What the authors of a family count beside what is convolved or linear.

    Attributes:
        scan: For each path, token and channel of a scan: a number for each of
            its states, and one besides.
        layer_norm: For each element that goes through a LayerNorm.
        products: Whether products of batches of matrices count: those of
            attention, and the linear maps that each path has for itself.
    """

    scan: tuple[int, int] = (0, 0)
    layer_norm: int = 0
    products: bool = True


@torch.fx.wrap
def _check_input(x: Tensor, in_channels: int, smallest: int) -> Tensor:
    if torch.jit.is_tracing():  # nothing can depend on the sizes
        return x
    if x.shape[1] != in_channels:
        raise InputSizeError(
            f'input of {x.shape[1]} channels, the backbone is made for '
            f'{in_channels}: set its in_channels, or color_type in '
            "what loads images ('color' has 3, 'grayscale' 1, "
            "'unchanged' what the file has)"
        )
    if any(size < smallest for size in x.shape[2:]):
        raise InputSizeError(
            f'input of {x.shape[2]} x {x.shape[3]} pixels is too small: '
            f'resize or pad it to at least {smallest} x {smallest}'
        )
    return x


def find_out_indices(
    out_indices: int | tuple[int, ...], count: int, of: str = 'stages'
) -> tuple[int, ...]:
    """Count indices from 0.

    Raises:
        ValueError: If there is none, or one that is not of the ``count`` of
            what ``of`` names.
    """
    if isinstance(out_indices, int):
        out_indices = (out_indices,)
    for index in out_indices or ('none',):
        if index not in range(-count, count):
            raise ValueError(
                f'out_indices must be from {-count} to {count - 1} for '
                f'{count} {of}, got {index}'
            )
    return tuple(index % count for index in out_indices)


def check_mixer_cfg(mixer_cfg: dict | None, **elsewhere: str) -> dict:
    """Return a mixer's further arguments.

    Args:
        mixer_cfg: None for none.
        **elsewhere: Argument of the backbone that says it, by name.

    Raises:
        ValueError: If one of these is in ``mixer_cfg``, too.
    """
    for key, argument in dict(embed_dims='arch', **elsewhere).items():
        if key in (mixer_cfg or {}):
            raise ValueError(
                f'mixer_cfg: {key} is not taken here, it comes from {argument}'
            )
    return dict(mixer_cfg or {})


class BaseBackbone(BaseModule):
    """Base of all backbones: all that is not layers.

    A subclass has ``arch_settings``, and a ``forward`` of its own if it has a
    position embedding. Its constructor calls this one, sets ``total_stride``,
    makes ``stem``, ``stages`` (of ``layers.Stage``) and, where there is one,
    ``pos_embed`` with ``pos_embed_place``, and ends with ``finish``.

    Every module is called by what holds it, and nothing reads a parameter
    past the module that has it: only so hooks, adapters such as LoRA,
    pruning, quantization and tracing find what they look for.

    Args:
        embed_dims: Channels of each stage.
        in_channels: Channels of the input.
        out_indices: Indices of the stages to output, from 0; negative ones
            count from the end. Stages after the last of them do not run and
            get no gradient.
        out_norms: Whether each output has a LayerNorm over its channels.
            Where weights without them are loaded, such as a classifier's,
            they are new.
        frozen_stages: Stem and stages up to and including this index get no
            gradient and stay in eval mode. -1 freezes nothing.
        norm_eval: Keep all batch norms in eval mode.
        with_cp: Recompute the blocks in the backward pass to save memory.
        channels_last: Keep weights and feature maps in channels-last memory,
            which is what tensor cores want and what the scan reads. The maps
            that it returns are contiguous.
        init_cfg: Initialization config. ``dict(type='Pretrained',
            checkpoint=...)`` takes a path or URL of a checkpoint of this
            project (of a classifier, a segmenter, or the backbone alone) or
            of the authors' release; every key must match. Its further keys
            ``weights`` and ``adapt_in_channels``:
            ``vcmamba_mm.checkpoints.init_from_pretrained``.

    Raises:
        ValueError: If an argument does not fit.
    """

    arch_settings: dict[str, dict]
    stage_name = 'stage'  # in messages, tables and figures
    image_readers = ('stem',)  # parts whose first convolution reads images
    smallest = 1  # height and width of an input, in pixels
    total_stride: int  # pixels from token to token, of the coarsest map
    mac_rule: MacRule | None = None  # None: the authors say none
    out_norm_eps = 1e-5
    # The stage, and its block, that the position embedding is added before.
    pos_embed_place: tuple[int, int] | None = None

    def __init__(
        self,
        embed_dims: tuple[int, ...],
        in_channels: int = 3,
        out_indices: int | tuple[int, ...] = (-1,),
        out_norms: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        channels_last: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        num_stages = len(embed_dims)
        if not -1 <= frozen_stages < num_stages:
            raise ValueError(
                f'frozen_stages must be from -1 to '
                f'{num_stages - 1}, got {frozen_stages}'
            )
        self.in_channels = in_channels
        self.embed_dims = embed_dims
        self.out_indices = find_out_indices(
            out_indices, num_stages, f'{self.stage_name}s'
        )
        self.out_norms = nn.ModuleDict()
        if out_norms:
            for i in sorted(set(self.out_indices)):
                self.out_norms[str(i)] = LayerNorm2d(
                    embed_dims[i], eps=self.out_norm_eps
                )
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.channels_last = channels_last
        self.register_parameter('pos_embed', None)  # (1, C, height, width)

    @classmethod
    def find_arch(cls, arch: str | dict) -> dict:
        """Look up an architecture by its name, or look at the keys of one.

        Raises:
            ValueError: If there is no such name, or keys are missing or left
                over.
        """
        *keys, last = next(iter(cls.arch_settings.values()))
        keys = f'{", ".join(map(repr, keys))} and {last!r}'
        if isinstance(arch, str):
            if arch.lower() not in cls.arch_settings:
                raise ValueError(
                    f'unknown arch {arch!r}: choose one of '
                    f'{tuple(cls.arch_settings)} or give a dict with {keys}'
                )
            arch = cls.arch_settings[arch.lower()]
        if set(arch) != set(next(iter(cls.arch_settings.values()))):
            raise ValueError(
                f'a custom arch needs the keys {keys}, got {sorted(arch)}'
            )
        return arch

    @classmethod
    def parse_arch(cls, arch: str | dict) -> dict:
        """``find_arch``, where ``embed_dims`` and ``depths`` are by stage.

        Raises:
            ValueError: As ``find_arch``, or if they differ in length.
        """
        arch = cls.find_arch(arch)
        dims, depths = tuple(arch['embed_dims']), tuple(arch['depths'])
        if len(dims) != len(depths) or not dims:
            raise ValueError(
                'arch: embed_dims and depths must have the same '
                f'number of stages, got {dims} and {depths}'
            )
        return dict(arch, embed_dims=dims, depths=depths)

    def make_pos_embed(
        self, img_size: int | tuple[int, int], place: tuple[int, int]
    ) -> None:
        """Make a position embedding for the maps of the last stage.

        Args:
            img_size: Size of the images, an int or (height, width) in pixels.
            place: ``pos_embed_place``.
        """
        if isinstance(img_size, int):
            img_size = (img_size, img_size)
        grid = [-(-size // self.total_stride) for size in img_size]
        self.pos_embed = nn.Parameter(
            torch.empty(1, self.embed_dims[-1], *grid)
        )
        self.pos_embed_place = place
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def finish(self) -> None:
        """Set what depends on the modules; the constructor's last step."""
        for module in self.modules():
            if isinstance(module, Blocks):
                module.with_cp = self.with_cp
        last = max(self.out_indices)
        for stage in self.stages[last + 1 :]:
            stage.requires_grad_(False)
        if self.pos_embed is not None:
            self.pos_embed.requires_grad_(last >= self.pos_embed_place[0])
        if self.channels_last:
            # Convolutions hand the format of their weights on.
            self.to(memory_format=torch.channels_last)
        self._freeze_stages()

    def init_weights(self) -> None:
        if not init_from_pretrained(self, part='backbone'):
            super().init_weights()

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """Resize a position embedding that comes with another grid."""
        key = prefix + 'pos_embed'
        pos_embed = state_dict.get(key)
        # One of another kind is refused, with its shape, by what is called.
        if self.pos_embed is not None and getattr(pos_embed, 'ndim', 0) == 4:
            state_dict[key] = resize_pos_embed(
                pos_embed, self.pos_embed.shape[2:]
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def get_layer_depth(
        self, param_name: str, prefix: str = ''
    ) -> tuple[int, int]:
        """Find a parameter's layer, for layer-wise learning-rate decay.

        The stem is layer 0, the blocks are counted from 1 on through all
        stages. Downsampling belongs to its stage's first block, the position
        embedding to the block that it is added before. The rest, such as
        norms of the outputs, comes last.

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
        words = [
            word
            for word in param_name.removeprefix(prefix).split('.')
            if not word.startswith('_')  # a wrapper's, such as _orig_mod
        ]
        if words[0] == 'stem':
            return 0, num_layers
        if words[0] == 'pos_embed':
            stage, block = self.pos_embed_place
        elif words[0] == 'stages':
            # stages.<i>.downsample..., stages.<i>.blocks.<j>...
            stage = int(words[1])
            block = int(words[3]) if words[2] == 'blocks' else 0
        else:
            return num_layers - 1, num_layers
        return 1 + sum(depths[:stage]) + block, num_layers

    def check_input(self, x: Tensor) -> Tensor:
        """Return the images if they can be an input.

        Raises:
            InputSizeError: If they are smaller than ``smallest``, or have
                another number of channels.
        """
        return _check_input(x, self.in_channels, self.smallest)

    def out_norm(self, index: int) -> nn.Module | None:
        """The norm of a stage's output, if it has one."""
        return dict(self.out_norms.items()).get(str(index))

    def run_stages(self, x: Tensor, *args) -> tuple[Tensor, ...]:
        """Call the stages up to the last one that is put out.

        Args:
            x: What the stem gives.
            *args: Further arguments of each stage.

        Returns:
            tuple: The maps of ``out_indices``.
        """
        maps = {}
        for i, stage in enumerate(self.stages[: max(self.out_indices) + 1]):
            x = stage(fast_format(x), *args)
            if i not in self.out_indices:
                continue
            norm = self.out_norm(i)
            # What follows may read its memory, as mmcv's RoIAlign does.
            if norm is None:
                x = maps[i] = x.contiguous()
            else:
                maps[i] = norm(x).contiguous()
        return tuple(maps[i] for i in self.out_indices)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x: Images, shape (batch, in_channels, height, width), of
                ``smallest`` height and width at least.

        Returns:
            tuple: A map (batch, C_i, ceil(height / s_i), ceil(width / s_i))
            for each of ``out_indices``, s_i the stride there.

        Raises:
            InputSizeError: As ``check_input``.
        """
        x = self.stem(fast_format(self.check_input(x)))
        return self.run_stages(x)

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        for module in (self.stem, *self.stages[: self.frozen_stages + 1]):
            module.eval()
            module.requires_grad_(False)
        place = self.pos_embed_place
        if place is not None and self.frozen_stages >= place[0]:
            self.pos_embed.requires_grad_(False)

    def train(self, mode: bool = True) -> 'BaseBackbone':
        """Set the mode; frozen stages and, with ``norm_eval``, norms stay."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for m in self.modules():
                if isinstance(m, _BatchNorm):
                    m.eval()
        return self

"""PlainMamba with a ViT-Adapter (arXiv 2205.08534), for detectors."""

from itertools import islice

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..base import find_out_indices
from ..layers import (
    MLP,
    DropPath,
    PointwiseConv2d,
    fast_format,
    resize_pos_embed,
    run_block,
)
from .backbone import PlainMamba
from .deformable_attention import (
    DeformableAttention,
    Sizes,
    to_maps,
    to_tokens,
)

torch.fx.wrap('fast_format')  # it looks at a dtype
torch.fx.wrap('resize_pos_embed')  # it looks at sizes

STRIDES = (4, 8, 16, 32)
NUM_LEVELS = 3  # that layers and adapter exchange: all but the finest
EPS = 1e-6  # of every LayerNorm


class SpatialPrior(nn.Module):
    """Convolutions from images to maps of strides 4, 8, 16 and 32.

    Args:
        in_channels: Channels of the images.
        prior_dims: Channels of the finest map; the others have two, four and
            four times as many, before they are projected.
        embed_dims: Channels that these are projected to, C.
        norm_cfg: Config of the batch norms.
    """

    def __init__(
        self,
        in_channels: int,
        prior_dims: int,
        embed_dims: int,
        norm_cfg: dict,
    ):
        super().__init__()

        def conv(dims: int, out_dims: int, stride: int) -> list[nn.Module]:
            return [
                nn.Conv2d(dims, out_dims, 3, stride, padding=1, bias=False),
                build_norm_layer(norm_cfg, out_dims)[1],
                nn.ReLU(),
            ]

        dims = [prior_dims * factor for factor in (1, 2, 4, 4)]
        self.stem = nn.Sequential(
            *conv(in_channels, prior_dims, 2),
            *conv(prior_dims, prior_dims, 1),
            *conv(prior_dims, prior_dims, 1),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.downsamples, self.projs = nn.ModuleList(), nn.ModuleList()
        for i in range(NUM_LEVELS):
            self.downsamples.append(
                nn.Sequential(*conv(dims[i], dims[i + 1], 2))
            )
            self.projs.append(PointwiseConv2d(dims[i + 1], embed_dims))
        self.level_embed = nn.Parameter(torch.randn(NUM_LEVELS, embed_dims))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Sizes]:
        """Returns the finest map, the others' tokens, and their sizes."""
        finest = x = self.stem(x)
        maps = []
        for i, downsample in enumerate(self.downsamples):
            x = downsample(x)
            maps.append(self.projs[i](x) + self.level_embed[i, :, None, None])
        return finest, to_tokens(maps), [y.shape[2:] for y in maps]


class FinestMap(nn.Module):
    """The map of stride 4, to which what the next one knows is added."""

    def __init__(self, prior_dims: int, embed_dims: int):
        super().__init__()
        self.proj = PointwiseConv2d(prior_dims, embed_dims)
        self.up = nn.ConvTranspose2d(embed_dims, embed_dims, 2, stride=2)

    def forward(self, finest: Tensor, next_map: Tensor) -> Tensor:
        return self.proj(finest) + self.up(next_map)


class Injector(nn.Module):
    """The layers' map looks at the adapter's: ``x + gamma * attention``."""

    def __init__(self, embed_dims: int, num_heads: int, gamma: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((embed_dims,), gamma))
        self.query_norm = nn.LayerNorm(embed_dims, eps=EPS)
        self.value_norm = nn.LayerNorm(embed_dims, eps=EPS)
        self.attention = DeformableAttention(embed_dims, num_heads, NUM_LEVELS)

    def forward(self, x: Tensor, c: Tensor, sizes: Sizes) -> Tensor:
        """From a map (batch, C, H, W) and tokens (batch, L, C), a map."""
        size = x.shape[2:]
        y = self.attention(
            self.query_norm(to_tokens([x])),
            [size],
            self.value_norm(c),
            sizes,
        )
        return x + to_maps(self.gamma * y, [size])[0]


class ConvMLP(MLP):
    """With a depthwise convolution of each level, before the GELU."""

    def __init__(self, channels: int, hidden_channels: int):
        super().__init__(channels, hidden_channels)
        self.dwconv = nn.Conv2d(
            hidden_channels,
            hidden_channels,
            3,
            padding=1,
            groups=hidden_channels,
        )

    def forward(self, x: Tensor, sizes: Sizes) -> Tensor:
        maps = to_maps(self.fc1(x), sizes)
        return self.fc2(self.act(to_tokens([self.dwconv(y) for y in maps])))


class Extractor(nn.Module):
    """The adapter's maps look at the layers'.

    ``c = c + attention``, ``c = c + drop_path(mlp(norm(c)))``
    """

    def __init__(self, embed_dims: int, num_heads: int, drop_path_rate: float):
        super().__init__()
        self.query_norm = nn.LayerNorm(embed_dims, eps=EPS)
        self.value_norm = nn.LayerNorm(embed_dims, eps=EPS)
        self.attention = DeformableAttention(embed_dims, num_heads, 1)
        self.ffn_norm = nn.LayerNorm(embed_dims, eps=EPS)
        self.ffn = ConvMLP(embed_dims, embed_dims // 4)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, c: Tensor, x: Tensor, sizes: Sizes) -> Tensor:
        """From tokens (batch, L, C) and a map (batch, C, H, W), tokens."""
        c = c + self.attention(
            self.query_norm(c),
            sizes,
            self.value_norm(to_tokens([x])),
            [x.shape[2:]],
        )
        return c + self.drop_path(self.ffn(self.ffn_norm(c), sizes))


def _cells(length: int, stride: int) -> int:
    """Rounded up, in a way that can be traced."""
    return (length + stride - 1) // stride


def _init_weights(module: nn.Module) -> None:
    """The initial values of an adapter; for ``nn.Module.apply``."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        kernel = module.weight[0, 0].numel()
        fan_out = module.out_channels // module.groups * kernel
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
    elif isinstance(module, DeformableAttention):  # after its layers
        module.reset_parameters()
        return
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)


@MODELS.register_module()
class PlainMambaAdapter(PlainMamba):
    """PlainMamba with a ViT-Adapter, for detectors (arXiv 2403.17695).

    Convolutions beside the layers give maps of strides 4 to 32. Some layers at
    a time are an interaction: before them what those maps know is injected
    into the layers' map, after them what the layers know is extracted into
    those. All is of ``PlainMamba``, but for the norm after the last layer,
    which is not there, and what is put out. A classifier's weights are taken
    without their norm; the adapter is new then.

    Images whose sides are not multiples of 32 are padded with zeros at the
    right and below, as detectors do, and what belongs to the padding alone is
    cut off the maps.

    Args:
        arch: 'l1', 'l2', 'l3', or a dict as of ``PlainMamba`` with
            ``num_heads`` besides (of the attentions between layers and
            adapter).
        interactions: Number of layers of each interaction; by default four
            have a quarter each.
        prior_dims: Channels of the convolutions' finest map.
        layer_scale_init_value: Initial value of the injectors' gamma.
        out_indices: Indices of the maps to output, from 0; negative ones count
            from the end. What only the others need does not run and gets no
            gradient.
        drop_path_rate: As of ``PlainMamba``; the extractors all have that of
            the last layer.
        norm_cfg: Config of all batch norms.
        **kwargs: Further arguments of ``PlainMamba``: ``in_channels``,
            ``img_size``, ``mixer_cfg``, ``frozen_stages`` (stem and layers;
            the adapter learns), ``norm_eval``, ``with_cp``,
            ``channels_last``, ``init_cfg``.

    Raises:
        ValueError: If an argument or an input does not fit.
    """

    arch_settings = {
        name: dict(PlainMamba.arch_settings[name], num_heads=num_heads)
        for name, num_heads in (('l1', 6), ('l2', 6), ('l3', 8))
    }

    image_readers = ('stem', 'adapter.prior')

    def __init__(
        self,
        arch: str | dict = 'l1',
        interactions: tuple[int, ...] | None = None,
        prior_dims: int = 64,
        layer_scale_init_value: float = 0.0,
        out_indices: int | tuple[int, ...] = (-1,),
        drop_path_rate: float = 0.0,
        norm_cfg: dict | None = None,
        **kwargs,
    ):
        arch = self.find_arch(arch)
        norm_cfg = norm_cfg or dict(type='BN')
        super().__init__(
            arch,
            out_norms=False,
            final_norm=False,
            drop_path_rate=drop_path_rate,
            norm_cfg=norm_cfg,
            **kwargs,
        )
        dims, depth, heads = (
            arch[key] for key in ('embed_dims', 'depth', 'num_heads')
        )
        self.interactions = tuple(interactions or 4 * (depth // 4,))
        if sum(self.interactions) != depth or min(self.interactions) < 1:
            raise ValueError(
                f'interactions must be numbers of layers that make {depth}, '
                f'got {self.interactions}'
            )
        last = len(self.interactions) - 1
        self.adapter = nn.ModuleDict(
            dict(
                prior=SpatialPrior(
                    self.in_channels, prior_dims, dims, norm_cfg
                ),
                injectors=nn.ModuleList(
                    Injector(dims, heads, layer_scale_init_value)
                    for _ in self.interactions
                ),
                extractors=nn.ModuleList(
                    nn.ModuleList(
                        Extractor(dims, heads, drop_path_rate)
                        for _ in range(3 if i == last else 1)
                    )
                    for i in range(last + 1)
                ),
                finest=FinestMap(prior_dims, dims),
                norms=nn.ModuleList(
                    build_norm_layer(norm_cfg, dims)[1] for _ in STRIDES
                ),
            )
        ).apply(_init_weights)
        self.finish()  # once more: what is new
        # From here on of the maps, not of the layers.
        self.total_stride = STRIDES[-1]
        self.out_indices = find_out_indices(out_indices, len(STRIDES), 'maps')
        if 0 not in self.out_indices:
            self.adapter.finest.requires_grad_(False)
        for i, norm in enumerate(self.adapter.norms):
            if i not in self.out_indices:
                norm.requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x: Images, shape (batch, in_channels, height, width), of any
                size.

        Returns:
            tuple: A map (batch, C, ceil(height / s_i), ceil(width / s_i))
            for each of ``out_indices``, s_i = 4, 8, 16, 32.

        Raises:
            InputSizeError: If the input is empty, or has another number of
                channels.
        """
        x = self.check_input(x)
        height, width = x.shape[2:]
        right, bottom = (
            STRIDES[-1] * _cells(length, STRIDES[-1]) - length
            for length in (width, height)
        )
        x = fast_format(F.pad(x, (0, right, 0, bottom)))

        adapter = self.adapter
        finest, c, sizes = adapter.prior(x)
        x = self.stem(x)
        x = x + resize_pos_embed(self.pos_embed, x.shape[2:])
        layers = iter(self.stages)
        for injector, extractors, depth in zip(
            adapter.injectors, adapter.extractors, self.interactions
        ):
            x = run_block(self.with_cp, injector, x, c, sizes)
            for layer in islice(layers, depth):
                x = layer(fast_format(x))
            for extractor in extractors:
                c = run_block(self.with_cp, extractor, c, x, sizes)

        maps = [None, *to_maps(c, sizes)]
        if 0 in self.out_indices:
            maps[0] = adapter.finest(finest, maps[1])
        x, outs = x.contiguous(), []
        for i in self.out_indices:
            y = maps[i].contiguous() + F.interpolate(
                x, maps[i].shape[2:], mode='bilinear', align_corners=False
            )
            y = adapter.norms[i](y)
            # A slice would ask whether it is one, which no trace may.
            right = _cells(width, STRIDES[i]) - y.shape[3]
            bottom = _cells(height, STRIDES[i]) - y.shape[2]
            outs.append(F.pad(y, (0, right, 0, bottom)).contiguous())
        return tuple(outs)

"""Multi-scale deformable attention (arXiv 2010.04159)."""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Sizes = list[tuple[int, int]]  # height and width of each level


def to_maps(tokens: Tensor, sizes: Sizes) -> list[Tensor]:
    """Tokens (batch, L, C) of several levels -> maps (batch, C, H, W)."""
    levels = tokens.split([height * width for height, width in sizes], 1)
    return [levels[i].mT.unflatten(2, size) for i, size in enumerate(sizes)]


def to_tokens(maps: list[Tensor]) -> Tensor:
    """Maps (batch, C, H, W) -> their tokens (batch, L, C), level by level."""
    return torch.cat([its.flatten(2).mT for its in maps], 1)


def _cell_centres(sizes: Sizes, like: Tensor) -> tuple[Tensor, Tensor]:
    """x and y of every cell of every level, from 0 to 1, (L,) each."""
    kind = dict(dtype=like.dtype, device=like.device)
    xs, ys = [], []
    for height, width in sizes:
        x = (torch.arange(width, **kind) + 0.5) / width
        y = (torch.arange(height, **kind) + 0.5) / height
        xs.append(x.expand(height, width).flatten())
        ys.append(y[:, None].expand(height, width).flatten())
    return torch.cat(xs), torch.cat(ys)


def _locations(query_sizes: Sizes, sizes: Sizes, offsets: Tensor) -> Tensor:
    """Where each query looks: its own cell, and so many cells from there."""
    x, y = (its[:, None, None] for its in _cell_centres(query_sizes, offsets))
    levels = []
    for i, (height, width) in enumerate(sizes):
        dx, dy = offsets[:, :, :, i].unbind(-1)
        levels.append(torch.stack((x + dx / width, y + dy / height), -1))
    return torch.stack(levels, 3)


def sample(
    value: Tensor, sizes: Sizes, locations: Tensor, weights: Tensor
) -> Tensor:
    """Weighted sum of what is at some locations of each level.

    Bilinear; zeros are around the maps. mmcv has this, too, but it cannot be
    imported without mmcv's compiled operators.

    Args:
        value: Tokens of the levels, (batch, L, heads, D).
        sizes: Height and width of each level.
        locations: x and y, from 0 to 1 over a map, (batch, queries, heads,
            levels, points, 2).
        weights: The same shape without the last dimension.

    Returns:
        Tensor: (batch, queries, heads * D).
    """
    batch, heads = value.shape[0], value.shape[2]
    grids = (2 * locations - 1).movedim(2, 1).flatten(0, 1)
    weights = weights.movedim(2, 1).flatten(0, 1)[:, None]
    out = 0.0
    for i, level in enumerate(to_maps(value.flatten(2), sizes)):
        points = F.grid_sample(
            level.unflatten(1, (heads, -1)).flatten(0, 1),
            grids[:, :, i],
            align_corners=False,
        )  # (batch * heads, D, queries, points)
        out = out + (points * weights[:, :, :, i]).sum(-1)
    return out.unflatten(0, (batch, heads)).flatten(1, 2).mT


@cache
def _find_operator() -> type[torch.autograd.Function] | None:
    try:
        from mmcv.ops import MultiScaleDeformableAttnFunction
    except ImportError:  # mmcv without compiled operators
        return None
    return MultiScaleDeformableAttnFunction


def _sample_by(
    operator: type[torch.autograd.Function],
    value: Tensor,
    sizes: Sizes,
    locations: Tensor,
    weights: Tensor,
) -> Tensor:
    """``sample`` by mmcv's operator."""
    shapes = torch.tensor([tuple(size) for size in sizes], device=value.device)
    ends = shapes.prod(1).cumsum(0)
    begins = torch.cat((ends.new_zeros(1), ends[:-1]))
    return operator.apply(
        value.contiguous(),
        shapes,
        begins,
        locations.contiguous(),
        weights.contiguous(),
        len(value),
    )


@torch.fx.wrap
def deformable_attention(
    value: Tensor,
    sizes: Sizes,
    query_sizes: Sizes,
    offsets: Tensor,
    weights: Tensor,
) -> Tensor:
    """Look at some places around each query, at least in float32.

    On a GPU mmcv's operator does it where it is compiled, and where nothing is
    traced or has to be deterministic.

    Args:
        value: Tokens of the levels, (batch, L, heads, D).
        sizes: Height and width of each level.
        query_sizes: Those of the maps that the queries are the cells of.
        offsets: x and y, in cells of the level that is looked at, (batch,
            queries, heads, levels, points, 2).
        weights: The same shape without the last dimension.

    Returns:
        Tensor: (batch, queries, heads * D), dtype of ``value``.
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    args = (
        value.to(dtype),
        sizes,
        _locations(query_sizes, sizes, offsets.to(dtype)),
        weights.to(dtype),
    )
    plain = (
        not value.is_cuda
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.are_deterministic_algorithms_enabled()
        or not len(value)  # the operator divides by the batch
    )
    operator = None if plain else _find_operator()
    out = _sample_by(operator, *args) if operator else sample(*args)
    return out.to(value.dtype)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (arXiv 2010.04159).

    Each head of each query looks at some points of each level and adds up what
    it finds there. Where, and with which weights, are linear functions of the
    query.

    Args:
        embed_dims: Channels of queries and values, C.
        num_heads: Heads.
        num_levels: Maps that are looked at.
        num_points: Points of each head in each of them.

    Raises:
        ValueError: If the heads cannot have equal numbers of channels.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        num_levels: int,
        num_points: int = 4,
    ):
        super().__init__()
        if embed_dims % num_heads:
            raise ValueError(
                f'{embed_dims} channels cannot be divided among {num_heads} '
                'heads: num_heads must be a divisor of embed_dims'
            )
        self.shape = (num_heads, num_levels, num_points)
        count = math.prod(self.shape)
        self.sampling_offsets = nn.Linear(embed_dims, 2 * count)
        self.attention_weights = nn.Linear(embed_dims, count)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As Deformable DETR: points on rays, one for each head."""
        num_heads, num_levels, num_points = self.shape
        angle = torch.arange(num_heads) * (2 * math.pi / num_heads)
        ray = torch.stack((angle.cos(), angle.sin()), -1)
        ray = ray / ray.abs().amax(-1, keepdim=True)  # to the edge of a square
        steps = torch.arange(1, num_points + 1)[:, None]
        points = ray[:, None, None] * steps
        self.sampling_offsets.bias.copy_(
            points.expand(-1, num_levels, -1, -1).flatten()
        )
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)

    def forward(
        self, query: Tensor, query_sizes: Sizes, value: Tensor, sizes: Sizes
    ) -> Tensor:
        """Look at maps from the cells of others, or of the same.

        Args:
            query: Tokens of one or several maps, (batch, queries, C).
            query_sizes: Height and width of each of these maps.
            value: Tokens of the maps that are looked at, (batch, L, C).
            sizes: Height and width of each of these.

        Returns:
            Tensor: (batch, queries, C).
        """
        heads, levels, points = self.shape
        offsets = self.sampling_offsets(query)
        weights = self.attention_weights(query).unflatten(-1, (heads, -1))
        return self.output_proj(
            deformable_attention(
                self.value_proj(value).unflatten(-1, (heads, -1)),
                sizes,
                query_sizes,
                offsets.unflatten(-1, (heads, levels, points, 2)),
                weights.softmax(-1).unflatten(-1, (levels, points)),
            )
        )

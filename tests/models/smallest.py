"""The smallest model of every family, for the tests that all of them pass.

A new family adds its own to ``BACKBONES``.
"""

from typing import NamedTuple

import pytest
import torch
from conftest import TINY
from mmengine.registry import MODELS, Registry
from torch import Tensor, nn


class Family(NamedTuple):
    """A backbone of four stages and four maps.

    Attributes:
        cfg: With values at which every branch is seen.
        dims: Channels of each map.
        strides: Pixels from token to token, of each map.
        smallest: Height and width of the smallest picture.
        rounding: Share of the output that 8 bits in one linear layer change.
        of_stages: Whether each map is what one stage returns.
    """

    cfg: dict
    dims: tuple[int, ...]
    strides: tuple[int, ...] = (4, 8, 16, 32)
    smallest: int = 1
    rounding: float = 5e-3
    of_stages: bool = True


BACKBONES = dict(
    VCMamba=Family(
        dict(arch=TINY, img_size=64, layer_scale_init_value=1.0),
        TINY['embed_dims'],
        smallest=32,
    ),
    VMamba=Family(
        dict(
            arch=dict(
                embed_dims=(12, 20, 36, 68), depths=(1, 2, 2, 1), expand=1.5
            )
        ),
        (12, 20, 36, 68),
    ),
    MambaVision=Family(
        dict(
            arch=dict(
                embed_dims=(8, 16, 32, 64),
                depths=(1, 1, 3, 2),
                stem_dims=8,
                num_heads=(2, 4),
                layer_scale=0.5,
            ),
            window_size=(4, 3),
        ),
        (8, 16, 32, 64),
    ),
    PlainMamba=Family(
        dict(
            arch=dict(embed_dims=16, depth=4, stem_convs=1, extra_conv=True),
            img_size=64,
        ),
        (16,) * 4,
        strides=(16,) * 4,
        # No convolution or MLP adds to what its mixers give.
        rounding=1e-2,
    ),
    PlainMambaAdapter=Family(
        dict(
            arch=dict(
                embed_dims=8,
                depth=4,
                stem_convs=1,
                extra_conv=True,
                num_heads=2,
            ),
            img_size=64,
            interactions=(4,),
            prior_dims=4,
            layer_scale_init_value=1.0,
        ),
        (8,) * 4,
        of_stages=False,
    ),
)
ALL = (0, 1, 2, 3)
of_stages = pytest.mark.parametrize(
    'name', [name for name, its in BACKBONES.items() if its.of_stages]
)


def build_smallest(
    name: str, registry: Registry = MODELS, **kwargs
) -> nn.Module:
    """Build a backbone in training mode, always with the same weights."""
    torch.manual_seed(0)
    cfg = dict(BACKBONES[name].cfg, type=name, **kwargs)
    model = registry.build(cfg).train()
    for linear in model.modules():
        if not isinstance(linear, nn.Linear):
            continue
        # Of zeros what is before them gets no gradient.
        if not linear.weight.is_meta and not linear.weight.any():
            nn.init.xavier_normal_(linear.weight)
    return model


def images(batch: int = 2, height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(batch, 3, height, width)


def loss(maps: tuple[Tensor, ...]) -> Tensor:
    """Of the cubes: the mean square of a normed map is always 1."""
    return sum(y.pow(3).mean() for y in maps)

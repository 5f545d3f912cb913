import copy

import pytest
import torch
from conftest import TINY
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vcmamba_mm import NormGlobalAveragePooling, VCMamba
from vcmamba_mm.models.vcmamba.blocks import FFNBlock, MDMBlock

STRIDES = (4, 8, 16, 32)
ALL = (0, 1, 2, 3)


def tiny(**kwargs):
    return VCMamba(**{**dict(arch=TINY, img_size=64), **kwargs})


# The release's parameters without the heads and the neck's norm
@pytest.mark.parametrize(
    'arch, with_both_heads, classes',
    [
        ('s', 10_478_720, 1000),
        ('m', 21_072_176, 1000),
        ('b', 31_450_832, 1000),
    ],
)
def test_parameter_counts(arch, with_both_heads, classes):
    model = VCMamba(arch)
    dims = model.embed_dims[-1]
    heads = 2 * classes * (dims + 1) + 2 * dims
    assert sum(p.numel() for p in model.parameters()) == (
        with_both_heads - heads
    )


def test_arch_is_what_it_says():
    model = VCMamba('S')
    assert [len(stage.blocks) for stage in model.stages] == [4, 4, 12, 8]
    kinds = [type(block) for block in model.stages[3].blocks]
    assert kinds == [FFNBlock] * 4 + [MDMBlock] * 4
    assert model.pos_embed.shape == (1, 288, 7, 7)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(arch='x'), "unknown arch 'x'.*'s', 'm', 'b'"),
        (dict(arch=dict(embed_dims=(8, 16), depths=(1, 1))), "'num_mdm'"),
        (
            dict(arch=dict(embed_dims=(8, 16), depths=(1,), num_mdm=1)),
            'same number of stages',
        ),
        (
            dict(arch=dict(embed_dims=(8, 16), depths=(1, 1), num_mdm=2)),
            'num_mdm must be from 0 to the 1 blocks',
        ),
        (dict(out_indices=(0, 4)), 'out_indices must be from -4 to 3.*got 4'),
        (dict(frozen_stages=4), 'frozen_stages must be from -1 to 3'),
        (dict(mixer_cfg=dict(backend='cuda')), "unknown scan backend 'cuda'"),
        (dict(mixer_cfg=dict(param_order='rows')), 'param_order'),
        (dict(mixer_cfg=dict(conv_size=4)), 'conv_size must be odd'),
        (dict(mixer_cfg=dict(dt_bias_scale=0)), 'dt_bias_scale must not be 0'),
        (
            dict(mixer_cfg=dict(norm_cfg=dict(type='BN'))),
            'norm_cfg is not taken here, it comes from norm_cfg or mdm_cfg',
        ),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny(**kwargs)


def test_arguments_are_not_changed():
    kwargs = dict(
        arch=copy.deepcopy(TINY),
        mixer_cfg=dict(d_state=4),
        norm_cfg=dict(type='BN'),
        act_cfg=dict(type='GELU'),
    )
    before = copy.deepcopy(kwargs)
    VCMamba(**kwargs)
    assert kwargs == before


def test_position_embedding_is_resized_as_channels_first():
    model = tiny(img_size=(96, 160))
    assert model.pos_embed.shape == (1, 64, 3, 5)
    other = tiny(img_size=224)
    other.load_state_dict(model.state_dict())
    expected = nn.functional.interpolate(
        model.pos_embed, (7, 7), mode='bicubic', align_corners=False
    )
    torch.testing.assert_close(other.pos_embed, expected)
    # the map (4, 2) gets the embedding of (4, 2)
    seen = []
    model.stages[3].blocks[2].register_forward_pre_hook(
        lambda block, args: seen.append(args[0])
    )
    model.stages[3].blocks[1].register_forward_hook(
        lambda block, args, out: seen.append(out)
    )
    model.eval()(torch.randn(1, 3, 128, 64))
    torch.testing.assert_close(
        seen[1] - seen[0],
        nn.functional.interpolate(
            model.pos_embed, (4, 2), mode='bicubic', align_corners=False
        ),
        atol=1e-5,
        rtol=1e-4,
    )


def test_custom_arch_without_mdm_blocks_or_with_two_stages():
    conv = VCMamba(
        dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 2), num_mdm=0)
    )
    assert conv.pos_embed is None
    assert conv(torch.randn(2, 3, 64, 64))[0].shape == (2, 32, 2, 2)
    short = VCMamba(
        dict(embed_dims=(8, 16), depths=(1, 1), num_mdm=1),
        img_size=32,
        out_indices=(0, 1),
    )
    assert [tuple(o.shape) for o in short(torch.randn(2, 3, 24, 8))] == [
        (2, 8, 6, 2),
        (2, 16, 3, 1),
    ]


def test_initial_values():
    model = tiny()
    mixer = model.stages[3].blocks[-1].mixer
    torch.testing.assert_close(
        mixer.A_log.exp(), torch.arange(1.0, 17).expand(128, 16)
    )
    assert (mixer.D == 1).all() and (mixer.dt_proj.bias == 0).all()
    for weight in (
        mixer.x_proj.weight,
        mixer.direction_B,
        model.pos_embed,
        model.stages[2].blocks[0].ffn.fc1.weight,
    ):
        assert 0.015 < weight.std() < 0.025
    assert (model.stages[2].blocks[0].gamma == 1e-5).all()
    conv = VCMamba('b').stem[3].weight.detach()  # LeCun: variance 1 / (32 * 9)
    assert conv.std() == pytest.approx((1 / 288) ** 0.5, rel=0.05)


def test_sync_bn_by_norm_cfg():
    model = tiny(norm_cfg=dict(type='SyncBN'))
    kinds = {type(m) for m in model.modules() if isinstance(m, _BatchNorm)}
    assert all(issubclass(kind, nn.SyncBatchNorm) for kind in kinds)


def test_mixer_options_reach_the_mixer():
    model = tiny(
        mixer_cfg=dict(
            d_state=4,
            expand=1,
            conv_size=3,
            param_order='path',
            dt_bias_scale=1.0,
            backend='reference',
        )
    )
    mixer = model.stages[3].blocks[-1].mixer
    assert mixer.A_log.shape == (64, 4)
    assert mixer.dwconv.kernel_size == (3, 3)
    assert mixer.dt_bias_scale == 1 and mixer.backend == 'reference'
    assert model(torch.randn(2, 3, 64, 64))[0].shape == (2, 64, 2, 2)


def test_neck_norms_before_pooling():
    neck = NormGlobalAveragePooling(8)
    x = torch.randn(2, 8, 3, 5) * torch.arange(1.0, 6)
    (pooled,) = neck((x,))
    tokens = x.flatten(2).mT
    normed = (tokens - tokens.mean(-1, keepdim=True)) / (
        tokens.var(-1, unbiased=False, keepdim=True) + 1e-5
    ).sqrt()
    torch.testing.assert_close(pooled, normed.mean(1))


def test_last_stage_is_the_default_output_of_every_arch():
    arch = dict(embed_dims=(8, 16), depths=(1, 1), num_mdm=1)
    (out,) = VCMamba(arch, img_size=32)(torch.randn(2, 3, 32, 32))
    assert out.shape == (2, 16, 4, 4)

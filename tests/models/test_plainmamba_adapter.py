"""The ViT-Adapter of PlainMamba against what its release was recorded to do.

What every backbone does is in test_backbones.py.
"""

import math
import warnings

import pytest
import torch
from conftest import ROOT
from golden import GOLDEN, changed, recorded, released_weights
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from vcmamba_mm import PlainMamba, PlainMambaAdapter
from vcmamba_mm.checkpoints import (
    CheckpointError,
    from_released,
    loading,
    read_checkpoint,
    to_released,
    write_checkpoint,
)

RELEASE = GOLDEN / 'plainmamba/tiny_release.pth'
ALL = (0, 1, 2, 3)
ARCH = dict(embed_dims=40, depth=4, stem_convs=2, extra_conv=True, num_heads=4)
TINY = dict(embed_dims=8, depth=4, stem_convs=1, extra_conv=True, num_heads=2)


@pytest.fixture(scope='module')
def io():
    return recorded('plainmamba', 'tiny_adapter.npz')


@pytest.fixture(scope='module')
def detectors_file(io, tmp_path_factory):
    """The recorded weights in the layout of a released detector."""
    weights = {
        key: value
        for key, value in read_checkpoint(RELEASE)['state_dict'].items()
        if key.startswith('backbone.') and '.ln1.' not in key
    }
    for name, value in io.items():
        key = name.replace('weights.', 'backbone.', 1)
        if key != name:
            weights[key] = value
        if key.endswith('.running_var'):
            count = key.replace('running_var', 'num_batches_tracked')
            weights[count] = torch.ones((), dtype=torch.long)
    weights['neck.lateral_convs.0.conv.weight'] = torch.zeros(2)
    path = tmp_path_factory.mktemp('released') / 'l1_1x.pth'
    write_checkpoint(dict(meta={}, state_dict=weights), path)
    return path


def recorded_adapter(checkpoint=None, adapt_in_channels=False, **kwargs):
    model = PlainMambaAdapter(
        ARCH,
        interactions=(1, 3),
        prior_dims=8,
        img_size=96,
        out_indices=ALL,
        init_cfg=checkpoint
        and dict(
            type='Pretrained',
            checkpoint=str(checkpoint),
            adapt_in_channels=adapt_in_channels,
        ),
        **kwargs,
    )
    model.init_weights()
    return model.eval()


def tiny(**kwargs):
    torch.manual_seed(0)
    kwargs = dict(dict(out_indices=ALL), **kwargs)
    return PlainMambaAdapter(
        TINY, prior_dims=4, img_size=64, layer_scale_init_value=1.0, **kwargs
    )


@pytest.mark.parametrize(
    'dtype, tolerance, names',
    [
        (torch.float32, 1e-5, ('spatial_prior', 'block0')),
        (torch.float32, 3e-5, ('out',)),
        # Without rounding of ours: the recorded maps are off by theirs.
        (torch.float64, 1.6e-5, ('spatial_prior', 'block0', 'out')),
    ],
    ids=str,
)
def test_every_recorded_tensor(detectors_file, io, dtype, tolerance, names):
    model = recorded_adapter(detectors_file).to(dtype)
    adapter, seen = model.adapter, {}
    for name, module in (
        ('spatial_prior', adapter.prior),
        ('block0_injected', adapter.injectors[0]),
        ('block0_x', model.stages[0]),
        ('block0_c', adapter.extractors[0][0]),
    ):
        module.register_forward_hook(
            lambda module, args, y, name=name: seen.update({name: y})
        )
    with torch.no_grad():
        maps = model(io['input'].to(dtype))
    _, seen['spatial_prior'], _ = seen['spatial_prior']
    for name in ('block0_injected', 'block0_x'):
        seen[name] = seen[name].flatten(2).mT
    seen.update({f'out{i}': y for i, y in enumerate(maps)})
    compared = [name for name in seen if name.startswith(names)]
    assert len(compared) == (8 if len(names) == 3 else 4)
    for name in compared:
        torch.testing.assert_close(
            seen[name], io[name], rtol=0, atol=tolerance, check_dtype=False
        )


def test_other_channels(detectors_file):
    """Both convolutions that read the images are adapted, or named."""
    names = ('stem.convs.0.weight', 'adapter.prior.stem.0.weight')
    three = recorded_adapter(detectors_file)
    with pytest.raises(CheckpointError) as error:
        recorded_adapter(detectors_file, in_channels=1)
    for words in (*names, 'adapt_in_channels=True'):
        assert words in str(error.value)
    one = recorded_adapter(
        detectors_file, in_channels=1, adapt_in_channels=True
    )
    for name in names:
        torch.testing.assert_close(
            one.get_parameter(name),
            three.get_parameter(name).sum(1, keepdim=True),
        )
    # The adapter is new where a classifier's weights are loaded.
    assert recorded_adapter(RELEASE, in_channels=1, adapt_in_channels=True)


@pytest.mark.parametrize(
    'arch, parameters',
    [('l1', 9_796_464), ('l2', 31_590_224), ('l3', 58_103_712)],
)
def test_parameter_counts(arch, parameters):
    with torch.device('meta'):
        model = PlainMambaAdapter(arch)
    assert sum(p.numel() for p in model.parameters()) == parameters
    quarter = len(model.stages) // 4
    assert model.interactions == (quarter,) * 4


# -------------------------------------------------------------------- outputs


@torch.no_grad()
@pytest.mark.parametrize('size', [(1, 1), (31, 97), (75, 103), (64, 32)])
def test_sizes_that_are_not_multiples_of_32(size):
    """As if zeros were around the picture; nothing of these is put out."""
    model = tiny().double().eval()
    x = torch.randn(1, 3, *size).double()
    whole = torch.zeros(1, 3, 96, 128).double()[
        :, :, : -(-size[0] // 32) * 32, : -(-size[1] // 32) * 32
    ]
    whole[:, :, : size[0], : size[1]] = x
    maps = zip(model(x), model(whole), (4, 8, 16, 32), strict=True)
    for y, expected, stride in maps:
        rows, columns = (-(-side // stride) for side in size)
        assert y.shape == (1, 8, rows, columns)
        expected = expected[:, :, :rows, :columns]
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


def test_a_trace_of_jit_is_right_at_every_size():
    model = tiny(with_cp=True).double().eval()
    with warnings.catch_warnings():
        warnings.simplefilter('error', torch.jit.TracerWarning)
        traced = torch.jit.trace(model, (torch.randn(1, 3, 64, 96).double(),))
    for height, width in ((96, 64), (97, 130)):
        x = torch.randn(2, 3, height, width).double()
        torch.testing.assert_close(traced(x), model(x), rtol=0, atol=1e-12)


def test_autocast():
    """A layer rounds three times, as in test_torch_features.py."""
    model, x = tiny().eval(), torch.randn(4, 3, 64, 64)
    kinds = nn.Linear | nn.Conv2d | nn.ConvTranspose2d
    layers = sum(isinstance(m, kinds) for m in model.modules())
    expected = model(x)
    with torch.autocast('cpu', torch.bfloat16):
        maps = model(x)
        sum(y.float().pow(3).mean() for y in maps).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    for y, its in zip(maps, expected, strict=True):
        error = (y.float() - its).norm() / its.norm()
        assert error < 2**-8 * layers**0.5


def test_maps_that_are_not_put_out():
    """RetinaNet takes three; DDP fails on parameters without a gradient."""
    model, full = tiny(out_indices=(3, 1)), tiny()
    model.adapter.finest.register_forward_hook(lambda *a: pytest.fail('ran'))
    x = torch.randn(2, 3, 64, 64)
    maps, expected = model(x), full(x)
    for y, i in zip(maps, (3, 1), strict=True):
        torch.testing.assert_close(y, expected[i], rtol=0, atol=0)
    sum(y.pow(3).mean() for y in maps).backward()
    for name, p in model.named_parameters():
        unused = name.startswith(
            ('adapter.finest.', 'adapter.norms.0.', 'adapter.norms.2.')
        )
        assert p.requires_grad != unused, name
        assert (p.grad is None) == unused, name


def test_drop_path():
    """The full rate in every extractor."""
    model = tiny(drop_path_rate=0.3)
    rates = [
        extractor.drop_path.drop_prob
        for extractors in model.adapter.extractors
        for extractor in extractors
    ]
    assert rates == [0.3] * 6
    layers = [stage.blocks[0].drop_path.drop_prob for stage in model.stages]
    assert layers == pytest.approx([0, 0.1, 0.2, 0.3])


def test_frozen_stages_leave_the_adapter():
    model = tiny(frozen_stages=3)
    assert not any(p.requires_grad for p in model.stages.parameters())
    assert all(p.requires_grad for p in model.adapter.parameters())


def test_initial_values():
    """As the release draws them."""
    torch.manual_seed(0)
    model = PlainMambaAdapter('l1')
    adapter = model.adapter
    extractor, injector = adapter.extractors[3][2], adapter.injectors[1]
    for weight, std in (
        (extractor.ffn.fc1.weight, 0.02),
        (extractor.ffn.dwconv.weight, (2 / 9) ** 0.5),
        (adapter.prior.stem[3].weight, (2 / 9 / 64) ** 0.5),
        (adapter.prior.projs[0].weight, (2 / 192) ** 0.5),
        (adapter.finest.up.weight, (2 / 4 / 192) ** 0.5),
        (adapter.prior.level_embed, 1),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.1)
    assert (injector.gamma == 0).all()
    for attention in (injector.attention, extractor.attention):
        bound = (6 / (2 * 192)) ** 0.5  # Xavier
        for linear in (attention.value_proj, attention.output_proj):
            assert 0.99 * bound < linear.weight.abs().max() <= bound
            assert (linear.bias == 0).all()
        for linear in (
            attention.sampling_offsets,
            attention.attention_weights,
        ):
            assert (linear.weight == 0).all()
        assert (attention.attention_weights.bias == 0).all()
        # Deformable DETR: 6 heads look into 6 directions, 1 to 4 cells far.
        points = attention.sampling_offsets.bias.detach().view(6, -1, 4, 2)
        tangent = math.tan(math.pi / 3)
        first = [(1, 0), (1 / tangent, 1), (-1 / tangent, 1)]
        first += [(-x, -y) for x, y in first]
        expected = torch.tensor(first)[:, None] * torch.arange(1, 5)[:, None]
        torch.testing.assert_close(points, expected[:, None].expand_as(points))
    biases = [
        module.bias
        for module in adapter.modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
        and module.bias is not None
    ]
    assert len(biases) == 11 and all((bias == 0).all() for bias in biases)
    # The layers keep theirs.
    assert model.stages[3].blocks[0].mixer.in_proj.bias.abs().max() > 0


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(arch=dict(TINY, num_heads=3)), 'divided among 3 heads'),
        (dict(interactions=(1, 2)), r'that make 4, got \(1, 2\)'),
        (dict(interactions=(4, 0)), r'that make 4, got \(4, 0\)'),
        (dict(arch=dict(TINY, depth=6)), r'that make 6, got \(1, 1, 1, 1\)'),
        (dict(out_indices=4), 'from -4 to 3 for 4 maps, got 4'),
        (dict(frozen_stages=4), 'frozen_stages must be from -1 to 3'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PlainMambaAdapter(**dict(dict(arch=TINY), **kwargs))


# -------------------------------------------------------------------- weights


def test_begins_with_a_classifiers_file(monkeypatch):
    lines = []
    monkeypatch.setattr(loading, 'print_log', lambda s, **kw: lines.append(s))
    model = recorded_adapter(RELEASE)
    assert lines == [
        f'PlainMambaAdapter: all 83 keys loaded from {RELEASE}, and the '
        'adapter is new; its final_norm, head left over'
    ]
    weights = from_released(read_checkpoint(RELEASE)['state_dict'])
    for key, value in model.state_dict().items():
        if not key.startswith('adapter.'):
            assert torch.equal(value, weights[f'backbone.{key}']), key
    assert (model.adapter.injectors[0].gamma == 0).all()


def test_a_file_of_another_variant(tmp_path):
    path = tmp_path / 'other.pth'
    weights = {
        key: torch.zeros(()).expand(weight.shape)
        for key, weight in released_weights('plainmamba', 'L2').items()
    }
    torch.save(dict(state_dict=weights), path)
    with torch.device('meta'):
        model = PlainMambaAdapter(
            'l1', init_cfg=dict(type='Pretrained', checkpoint=str(path))
        )
    with pytest.raises(
        CheckpointError, match=r"It holds weights of PlainMamba\('l2'\)"
    ):
        model.init_weights()


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda w: w.pop('backbone.interactions.1.injector.gamma'),
            'missing: adapter.injectors.1.gamma',
        ),
        (
            lambda w: w.update(
                {'backbone.interactions.2.injector.gamma': torch.ones(40)}
            ),
            'left over: adapter.injectors.2.gamma',
        ),
        (
            lambda w: w.update({'backbone.spm.fc5.bias': torch.ones(1)}),
            'not those of a released PlainMamba: backbone.spm.fc5.bias',
        ),
    ],
)
def test_anything_else_is_an_error(detectors_file, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        recorded_adapter(changed(detectors_file, tmp_path, change))


def test_a_detectors_file_has_too_much_for_layers_alone(detectors_file):
    arch = {key: ARCH[key] for key in ARCH if key != 'num_heads'}
    model = PlainMamba(
        arch,
        img_size=96,
        final_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint=str(detectors_file)),
    )
    with pytest.raises(CheckpointError, match='left over: adapter'):
        model.init_weights()


def test_the_values_come_back(detectors_file):
    weights = read_checkpoint(detectors_file)['state_dict']
    back = to_released(from_released(weights))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


def expand(template):
    """``a{b,c}`` is ab and ac."""
    begin, _, rest = template.partition('{')
    if not rest:
        return [begin]
    words, _, rest = rest.partition('}')
    ends = expand(rest)
    return [begin + word + end for word in words.split(',') for end in ends]


LINEAR = '{weight,bias}'
BN = '{weight,bias,running_mean,running_var,num_batches_tracked}'
LAYERS, BLOCKS, EACH = 'layers.{%s}.', 'interactions.{0,1,2,3}.', '{0,1,2,3}.'
ATTENTION = '{sampling_offsets,attention_weights,value_proj,output_proj}.'
EXTRACTOR = (
    f'{{query_norm,feat_norm,ffn_norm}}.{LINEAR}',
    f'attn.{ATTENTION}{LINEAR}',
    f'ffn.{{fc1,dwconv.dwconv,fc2}}.{LINEAR}',
)
# What the release names the parameters of its detectors.
BACKBONE = (
    '{pos_embed,level_embed}',
    'patch_embed.{stem.0,convs.0,projection}.weight',
    'patch_embed.projection.bias',
    f'patch_embed.{{stem.1,convs.1}}.{BN}',
    f'{LAYERS}norm.{LINEAR}',
    f'{LAYERS}mamba.{{in_proj,conv2d,dt_proj,out_proj}}.{LINEAR}',
    f'{LAYERS}mamba.{{x_proj.weight,A_log,D,direction_Bs}}',
    'spm.stem.{0,3,6}.weight',
    f'spm.stem.{{1,4,7}}.{BN}',
    'spm.conv{2,3,4}.0.weight',
    f'spm.conv{{2,3,4}}.1.{BN}',
    f'spm.fc{{1,2,3,4}}.{LINEAR}',
    f'{BLOCKS}injector.gamma',
    f'{BLOCKS}injector.{{query_norm,feat_norm}}.{LINEAR}',
    f'{BLOCKS}injector.attn.{ATTENTION}{LINEAR}',
    *(f'{BLOCKS}extractor.{its}' for its in EXTRACTOR),
    *(f'interactions.3.extra_extractors.{{0,1}}.{its}' for its in EXTRACTOR),
    f'up.{LINEAR}',
    f'ad_norm{{1,2,3,4}}.{BN}',
)
ONLY_L1 = ('layers.0.dw.0.weight', f'layers.0.dw.1.{BN}')
ONLY_OTHERS = ('patch_embed.convs.3.weight', f'patch_embed.convs.4.{BN}')
HEADS = dict(
    retinanet=(
        'neck.{lateral_convs.0,lateral_convs.1,lateral_convs.2}.conv.weight',
        f'neck.{{lateral_convs.0,lateral_convs.1,lateral_convs.2}}.bn.{BN}',
        'neck.fpn_convs.{0,1,2,3,4}.conv.weight',
        f'neck.fpn_convs.{{0,1,2,3,4}}.bn.{BN}',
        f'bbox_head.{{cls_convs,reg_convs}}.{EACH}conv.{LINEAR}',
        f'bbox_head.{{retina_cls,retina_reg}}.{LINEAR}',
    ),
    **{
        'mask-rcnn': (
            f'neck.{{lateral_convs,fpn_convs}}.{EACH}conv.weight',
            f'neck.{{lateral_convs,fpn_convs}}.{EACH}bn.{BN}',
            f'rpn_head.{{rpn_conv,rpn_cls,rpn_reg}}.{LINEAR}',
            f'roi_head.bbox_head.{{fc_cls,fc_reg,shared_fcs.0}}.{LINEAR}',
            f'roi_head.bbox_head.shared_convs.{EACH}conv.weight',
            f'roi_head.bbox_head.shared_convs.{EACH}bn.{BN}',
            f'roi_head.mask_head.convs.{EACH}conv.{LINEAR}',
            f'roi_head.mask_head.{{upsample,conv_logits}}.{LINEAR}',
        )
    },
)


def released_names(arch):
    layers = ','.join(map(str, range(36 if arch == 'l3' else 24)))
    templates = *BACKBONE, *(ONLY_L1 if arch == 'l1' else ONLY_OTHERS)
    return {
        f'backbone.{key}'
        for its in templates
        for key in expand(its.replace('%s', layers))
    }


@pytest.mark.parametrize(
    'arch, count', [('l1', 596), ('l2', 596), ('l3', 764)]
)
def test_released_names_there_and_back(arch, count):
    with torch.device('meta'):
        model = PlainMambaAdapter(arch)
    ours = {f'backbone.{k}': v for k, v in model.state_dict().items()}
    released = to_released(ours)
    assert released.keys() == released_names(arch)
    assert len(released) == count
    back = from_released(released)
    assert {k: v.shape for k, v in back.items()} == {
        k: v.shape for k, v in ours.items()
    }


@pytest.mark.parametrize(
    'kind, arch, count',
    [
        ('mask-rcnn', 'l1', 692),
        ('mask-rcnn', 'l3', 860),
        ('retinanet', 'l1', 664),
        ('retinanet', 'l3', 832),
    ],
)
def test_released_names_of_detectors(kind, arch, count):
    pytest.importorskip('mmdet', reason='needs mmdet, see docs/detection.md')
    pytest.importorskip('mmcv.ops')
    name = f'plainmamba_{arch}_{kind}_fpn_8xb2_1x_coco'
    cfg = Config.fromfile(ROOT / f'configs/plainmamba/{name}.py')
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    released = to_released(model.state_dict())
    heads = {key for its in HEADS[kind] for key in expand(its)}
    assert released.keys() == released_names(arch) | heads
    assert len(released) == count
    assert from_released(released).keys() == model.state_dict().keys()

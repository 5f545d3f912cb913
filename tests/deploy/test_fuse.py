"""Folded and fused models against the unfolded ones in float64."""

import copy

import pytest
import torch
import torch.nn as nn
from conftest import TINY, randomize_norms, smallest_classifier_cfg
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import prune

from vcmamba_mm import VCMamba
from vcmamba_mm.checkpoints import CheckpointError, check_fit
from vcmamba_mm.deploy import fold_norms, fuse, optimize
from vcmamba_mm.models.mambavision.mixers import MambaVisionMixer
from vcmamba_mm.models.vcmamba.blocks import FFNBlock
from vcmamba_mm.models.vcmamba.mixer import MultiDirectionalMamba

SEGMENTER = 'tests/fixtures/configs/tiny_segmenter.py'


def backbone(**kwargs):
    kwargs = dict(
        dict(arch=TINY, img_size=64, out_indices=(0, 1, 2, 3)), **kwargs
    )
    return randomize_norms(VCMamba(**kwargs)).eval()


def classifier(build_tiny):
    return build_tiny().eval()


def segmenter(build_tiny):
    pytest.importorskip('mmseg')
    init_default_scope('mmseg')
    cfg = Config.fromfile(SEGMENTER).model
    cfg.auxiliary_head = dict(
        cfg.decode_head, type='FCNHead', in_channels=16, in_index=0
    )
    del cfg.auxiliary_head['feature_strides']
    return randomize_norms(MODELS.build(cfg)).eval()


MAKERS = dict(
    backbone=lambda build_tiny: backbone(),
    classifier=classifier,
    segmenter=segmenter,
)


def outputs(model, images):
    """All the outputs as one vector."""
    outs = model(images)
    outs = outs if isinstance(outs, tuple) else (outs,)
    return torch.cat([out.flatten().double() for out in outs])


def error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def norms(model):
    return [m for m in model.modules() if isinstance(m, _BatchNorm)]


@pytest.mark.parametrize('kind', MAKERS)
def test_equals_the_unfolded_model(kind, build_tiny):
    model = MAKERS[kind](build_tiny)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = outputs(copy.deepcopy(model).double(), images.double())
        folded = fold_norms(copy.deepcopy(model).double())
        assert error(outputs(folded, images.double()), expected) < 1e-12
    fused = fuse(copy.deepcopy(model))
    with torch.inference_mode():
        assert error(outputs(fused, images), expected) < 1e-5
    # with gradients, where other kernels run
    assert error(outputs(fused, images).detach(), expected) < 1e-5
    assert norms(model) and not norms(fused)
    for module in fused.modules():
        if isinstance(module, FFNBlock):
            assert module.gamma is None
        if isinstance(module, MultiDirectionalMamba):
            assert module.dt_bias_scale == 1


@pytest.mark.parametrize('images_at_once', [1, 2, 5])
def test_batches_in_parts(images_at_once, monkeypatch):
    model = backbone()
    images = torch.randn(5, 3, 64, 96)
    fused = fuse(copy.deepcopy(model))
    hidden = 4 * fused.embed_dims[0] * (64 // 4) * (96 // 4)
    monkeypatch.setattr(
        type(fused.stages[0].blocks[0].ffn),
        'BYTES_PER_THREAD',
        images_at_once * hidden * torch.float32.itemsize,
    )
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 1)
    sizes = []
    fused.stages[0].blocks[0].ffn.dwconv.register_forward_hook(
        lambda module, inputs, output: sizes.append(len(output))
    )
    with torch.inference_mode():
        assert error(outputs(fused, images), outputs(model, images)) < 1e-5
    assert sizes == {1: [1] * 5, 2: [2, 2, 1], 5: [5]}[images_at_once]


def test_auxiliary_heads_are_folded_too(build_tiny):
    model = segmenter(build_tiny)
    feats = [torch.randn(1, 16, 8, 8)] * 4
    with torch.no_grad():
        expected = model.auxiliary_head(feats)
        assert error(fuse(model).auxiliary_head(feats), expected) < 1e-5


def test_idempotent():
    once = fuse(backbone())
    twice = fuse(copy.deepcopy(once))
    assert str(once) == str(twice)
    for (name, value), (_, again) in zip(
        once.state_dict().items(), twice.state_dict().items(), strict=True
    ):
        assert torch.equal(value, again), name
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(outputs(once, images), outputs(twice, images))


def test_channels_last_inside_only():
    model, formats = fuse(backbone()), []
    for stage in model.stages:
        stage.register_forward_hook(
            lambda stage, args, y: formats.append(
                y.is_contiguous(memory_format=torch.channels_last)
            )
        )
    outs = model(torch.randn(2, 3, 64, 96))
    assert len(formats) == 4 and all(formats)
    assert all(out.is_contiguous() for out in outs)


def test_gradients_of_the_input_and_mixed_precision():
    model = backbone()
    fused = fuse(copy.deepcopy(model))
    images = torch.randn(1, 3, 64, 64, requires_grad=True)
    expected, found = (
        torch.autograd.grad(outputs(m, images).square().sum(), images)[0]
        for m in (model, fused)
    )
    assert error(found, expected) < 1e-4
    with torch.no_grad():
        expected = outputs(model, images)
        with torch.autocast('cpu', torch.bfloat16):
            assert error(outputs(fused, images), expected) < 0.1


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match='VCMamba is in training mode'):
        fuse(backbone().train())
    model = backbone()
    model.stem[1].train()
    with pytest.raises(ValueError, match=r'stem.1 is in training mode'):
        fuse(model)
    assert len(norms(model)) == len(norms(backbone()))


def test_a_folded_model_fits_no_checkpoint():
    model = backbone()
    fused = fuse(copy.deepcopy(model))
    with pytest.raises(CheckpointError, match='missing: .*norm'):
        check_fit(model, fused.state_dict(), 'fused.pth')
    with pytest.raises(CheckpointError, match='left over: .*norm'):
        check_fit(fused, model.state_dict(), 'model.pth')


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(norm_cfg=dict(type='GN', num_groups=4)),
        dict(norm_cfg=dict(type='BN', affine=False)),
        dict(norm_cfg=dict(type='SyncBN')),
        dict(act_cfg=dict(type='GELU', approximate='tanh')),
        dict(act_cfg=dict(type='ReLU', inplace=True)),
        dict(mixer_cfg=dict(dt_bias_scale=1.0, param_order='path')),
    ],
    ids=str,
)
def test_other_settings(kwargs):
    model = backbone(**kwargs)
    fused = fuse(copy.deepcopy(model))
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert error(outputs(fused, images), outputs(model, images)) < 1e-5
    kept = [m for m in fused.modules() if isinstance(m, nn.GroupNorm)]
    assert bool(kept) == ('GN' in str(kwargs))
    assert not norms(fused)


class Shared(nn.Module):
    """Two norms after one convolution, as in some detection heads."""

    def __init__(self):
        super().__init__()
        cfg = dict(kernel_size=3, norm_cfg=dict(type='BN'))
        self.first = ConvModule(4, 4, **cfg)
        self.second = ConvModule(4, 4, **cfg)
        self.second.conv = self.first.conv

    def forward(self, x):
        return self.second(self.first(x))


class TiedWeights(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        )
        self[2].weight = self[0].weight


class PrunedBias(nn.Sequential):
    """Whose bias is computed in every forward pass."""

    def __init__(self):
        super().__init__(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        prune.random_unstructured(self[0], 'bias', amount=2)


class Mixers(nn.Sequential):
    """Two that scan, whose layers of delta ``change`` changes."""

    def __init__(self, change):
        super().__init__(MambaVisionMixer(4), MambaVisionMixer(4))
        change(self)

    def forward(self, x):
        return super().forward(x.flatten(2).mT)


def share_dt_proj(mixers):
    mixers[1].dt_proj = mixers[0].dt_proj


def prune_dt_proj(mixers):
    prune.random_unstructured(mixers[0].dt_proj, 'bias', amount=1)


def wrap_dt_proj(mixers):
    """As LoRA does."""
    mixers[0].dt_proj = nn.Sequential(mixers[0].dt_proj, nn.Identity())


@pytest.mark.parametrize(
    'change, scales',
    [
        (lambda mixers: None, [1, 1]),
        (share_dt_proj, [2, 2]),
        (prune_dt_proj, [2, 1]),
        (wrap_dt_proj, [2, 1]),
    ],
)
def test_the_bias_of_delta_is_folded_where_that_is_exact(change, scales):
    model = randomize_norms(Mixers(change)).double().eval()
    images = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = outputs(model, images)
        assert error(outputs(fold_norms(model), images), expected) < 1e-12
    assert [mixer.dt_bias_scale for mixer in model] == scales


def conv_module(**kwargs):
    kwargs = dict(norm_cfg=dict(type='BN'), padding=1, **kwargs)
    return ConvModule(4, 4, 3, **kwargs)


@pytest.mark.parametrize(
    'make, left',
    [
        (conv_module, 0),
        (lambda: conv_module(bias=True, padding_mode='reflect'), 0),
        (lambda: conv_module(order=('act', 'conv', 'norm')), 0),
        (lambda: conv_module(order=('conv', 'act', 'norm')), 1),
        (lambda: conv_module(order=('norm', 'conv', 'act')), 1),
        (lambda: conv_module(with_spectral_norm=True), 1),
        (lambda: conv_module(conv_cfg=dict(type='ConvWS')), 1),
        (lambda: conv_module(efficient_conv_bn_eval=True), 0),
        (Shared, 2),
        (TiedWeights, 1),
        (PrunedBias, 1),
        (
            lambda: nn.Sequential(
                nn.Conv2d(4, 4, 1),
                nn.BatchNorm2d(4, track_running_stats=False),
            ),
            1,
        ),
    ],
)
def test_only_what_is_exact_is_folded(make, left):
    init_default_scope('mmengine')
    model = randomize_norms(make()).double().eval()
    images = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    with torch.no_grad():
        expected = outputs(model, images)
        folded = fold_norms(model)
        assert error(outputs(folded, images), expected) < 1e-12
    assert len(norms(folded)) == left


def test_optimize():
    """Compiled: of the smallest model, since that takes a compiler long."""
    pytest.importorskip('mmpretrain')
    import vcmamba_mm.classification  # noqa: F401

    init_default_scope('mmpretrain')
    model = randomize_norms(MODELS.build(smallest_classifier_cfg())).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images, mode='tensor')
    found = optimize(model)(images, mode='tensor')
    assert not found.requires_grad
    assert error(found, expected) < 1e-5
    assert not norms(model)
    with pytest.raises(ValueError, match='cuda_graphs needs .* on a GPU'):
        optimize(model, cuda_graphs=True)


@pytest.mark.gpu
@pytest.mark.parametrize('cuda_graphs', [False, True])
def test_optimize_on_a_gpu(cuda_graphs):
    model = backbone().cuda()
    optimized = optimize(copy.deepcopy(model), cuda_graphs=cuda_graphs)
    with torch.no_grad():
        for _ in range(4):  # a graph is recorded in the second
            images = torch.randn(2, 3, 64, 96, device='cuda')
            expected = outputs(model, images)
            assert error(outputs(optimized, images), expected) < 1e-3

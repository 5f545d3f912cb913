"""Every family folded and exported, against the model in float64."""

import copy
from typing import NamedTuple

import pytest
import torch
from conftest import CONFIGS, needs_export, randomize_norms
from exported import error, in_float64, session
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vcmamba_mm.deploy import fold_norms, fuse
from vcmamba_mm.deploy.export import export
from vcmamba_mm.deploy.free_sizes import AdaptiveAvgPool2d, free_windows
from vcmamba_mm.models.layers import SharedScanMixer
from vcmamba_mm.models.mambavision.blocks import WindowBlocks

onnx = pytest.importorskip('onnx')
pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')


class Family(NamedTuple):
    """The smallest backbone of a family, and what its exports must show.

    Attributes:
        backbone: Its config.
        neck: Norm before the pooling of a classifier.
        smallest: Height and width from which programs of torch.export take
            images: one more than the total stride.
        scans: Loops of a mixer in ONNX.
        layer_norms: Of a classifier in ONNX; an output of a segmenter has one
            more.
        batch_norms: Of a folded classifier.
    """

    backbone: dict
    neck: str
    smallest: int
    scans: int
    layer_norms: int
    batch_norms: int


def mambavision(window_size):
    arch = dict(embed_dims=(8, 12), depths=(1, 2), stem_dims=4)
    arch.update(num_heads=(2,), layer_scale=0.5)
    return Family(
        dict(type='MambaVision', arch=arch, window_size=window_size),
        neck='BN',
        smallest=9,
        scans=1,
        layer_norms=4,  # two of each block of tokens
        batch_norms=1,  # before the pooling
    )


FAMILIES = {
    'vmamba': Family(
        dict(
            type='VMamba',
            arch=dict(embed_dims=(12,), depths=(1,), expand=1.5),
        ),
        neck='LN2d',
        smallest=5,
        scans=2,  # within chunks, and over them
        layer_norms=6,  # two of the stem, three of the block, the neck's
        batch_norms=0,
    ),
    'mambavision': mambavision((4,)),
    'mambavision, map': mambavision('map'),
    'plainmamba': Family(
        dict(
            type='PlainMamba',
            arch=dict(embed_dims=12, depth=1, stem_convs=1, extra_conv=True),
            img_size=64,
        ),
        neck='LN2d',
        smallest=17,
        scans=1,
        layer_norms=3,  # of the layer, after it, the neck's
        batch_norms=0,
    ),
}
families = pytest.mark.parametrize('name', FAMILIES)
# Of sizes that the export itself does not try; the smallest one is 1 x 1.
# MambaVision's windows are padded but for the first.
IMAGES = [(1, 64, 96), (2, 1, 1), (3, 90, 77)]


def trained(model):
    """With weights as training could leave them: every branch is seen."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight)
    for name, parameter in model.named_parameters():
        if 'norm' in name or name.endswith(('A_log', '.D', 'dt_bias')):
            nn.init.normal_(parameter, 0.5, 0.3)
    return randomize_norms(model).eval()


def build_classifier(family):
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    cfg = Config.fromfile(CONFIGS / 'tiny_vmamba.py').model
    cfg.backbone = family.backbone
    cfg.neck.norm_cfg = dict(type=family.neck)
    cfg.neck.in_channels = cfg.head.in_channels = 12
    return trained(MODELS.build(cfg))


def build_segmenter(family):
    init_default_scope('mmseg')
    torch.manual_seed(0)
    cfg = Config.fromfile(CONFIGS / 'tiny_vmamba_upernet.py').model
    dims = list(MODELS.build(family.backbone).embed_dims)
    stages = list(range(len(dims)))
    cfg.backbone = dict(family.backbone, out_indices=stages, out_norms=True)
    del cfg.auxiliary_head
    cfg.decode_head.update(in_channels=dims, in_index=stages)
    cfg.decode_head.update(pool_scales=(1, 3), norm_cfg=dict(type='BN'))
    return trained(MODELS.build(cfg))


def logits_of(model, images):
    """A segmenter's are resized to the images, by mmseg."""
    with torch.no_grad():
        if not hasattr(model, 'decode_head'):
            return model(images, mode='tensor')
        size = tuple(images.shape[2:])
        meta = dict(img_shape=size, ori_shape=size, pad_shape=size)
        return model.encode_decode(images, [meta] * len(images))


@needs_export
@pytest.mark.parametrize(
    'name, build',
    [
        ('vmamba', build_classifier),
        ('mambavision', build_segmenter),
        ('mambavision, map', build_classifier),
        ('plainmamba', build_classifier),
    ],
)
def test_onnx(name, build, tmp_path):
    family, path = FAMILIES[name], tmp_path / 'model.onnx'
    model = build(family)
    export(model, path, 'onnx', (48, 64), dynamic=True)
    run, expected_of = session(path), in_float64(model)
    for batch, *size in IMAGES:
        images = torch.randn(batch, 3, *size)
        (found,) = run.run(None, dict(images=images.numpy()))
        assert error(found, logits_of(expected_of, images.double())) < 1e-5
    ops = [node.op_type for node in onnx.load(path).graph.node]
    assert ops.count('Scan') == family.scans
    # no norm is taken apart
    norms = family.layer_norms + len(model.backbone.out_norms)
    assert ops.count('LayerNormalization') == norms
    left = 0 if build is build_segmenter else family.batch_norms
    assert ops.count('BatchNormalization') == left


@needs_export
@pytest.mark.parametrize('name', ['vmamba', 'mambavision, map'])
def test_onnx_in_half_precision(name, tmp_path):
    model, path = build_classifier(FAMILIES[name]), tmp_path / 'model.onnx'
    size = (24, 40)
    export(model, path, 'onnx', size, dtype=torch.float16)
    graph = onnx.load(path).graph
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert {
        weight.data_type
        for weight in graph.initializer
        if weight.name.endswith('.weight')
    } == {half}
    scans = [node for node in graph.node if node.op_type == 'Scan']
    (bodies,) = zip(
        *([a.g for a in n.attribute if a.name == 'body'] for n in scans)
    )
    assert {
        value.type.tensor_type.elem_type
        for body in bodies
        for value in body.input
    } == {single}
    images = torch.randn(1, 3, *size)
    (found,) = session(path).run(None, dict(images=images.numpy()))
    expected = logits_of(in_float64(model), images.double())
    # some twenty maps, each rounded by up to 2^-11
    assert 2**-14 < error(found, expected) < 20 * 2**-11


@needs_export
@pytest.mark.parametrize('name', ['vmamba', 'mambavision', 'plainmamba'])
def test_torch_export(name, tmp_path):
    model, path = build_classifier(FAMILIES[name]), tmp_path / 'model.pt2'
    report = export(model, path, 'torch-export', (48, 64), dynamic=True)
    # maps of one row are a case of their own there
    sides = [side for shape in report.errors for side in shape[2:]]
    assert min(sides) == FAMILIES[name].smallest
    assert max(report.errors.values()) < 1e-5


@pytest.mark.parametrize('window_size', [1, 3, 8])
@pytest.mark.parametrize('size', [(1, 1), (4, 7), (6, 3), (13, 5)])
def test_windows_gathered_token_by_token(size, window_size):
    """The blocks see the same windows, and their maps come back the same."""
    windows = []
    block = nn.Linear(3, 3).double()
    block.register_forward_hook(lambda _, args, y: windows.append(args[0]))
    blocks = WindowBlocks(block, window_size=window_size)
    x = torch.randn(2, 3, *size).double()
    expected = blocks(x)
    free_windows(blocks)
    torch.testing.assert_close(blocks(x), expected)
    torch.testing.assert_close(*windows, rtol=0, atol=0)


@pytest.mark.parametrize('output_size', [(1, 6), (3, 2)])
@pytest.mark.parametrize('size', [(1, 1), (4, 7), (6, 6), (13, 5)])
def test_adaptive_pooling(size, output_size):
    x = torch.randn(2, 3, *size).double()
    torch.testing.assert_close(
        AdaptiveAvgPool2d(output_size)(x),
        nn.functional.adaptive_avg_pool2d(x, output_size),
    )


@families
def test_folded(name):
    images = torch.randn(2, 3, 70, 90)
    for build, left in (
        (build_classifier, FAMILIES[name].batch_norms),
        (build_segmenter, 0),
    ):
        model = build(FAMILIES[name])
        expected = logits_of(in_float64(model), images.double())
        folded = fold_norms(in_float64(model))
        assert error(logits_of(folded, images.double()), expected) < 1e-12
        fused = fuse(copy.deepcopy(model))
        assert error(logits_of(fused, images), expected) < 1e-5
        norms = [m for m in fused.modules() if isinstance(m, _BatchNorm)]
        assert len(norms) == left
        mixers = [m for m in fused.modules() if isinstance(m, SharedScanMixer)]
        assert all(m.dt_bias_scale == 1 for m in mixers)
        for module in fused.backbone.modules():
            if isinstance(module, nn.Conv2d):
                assert module.weight.is_contiguous(
                    memory_format=torch.channels_last
                )
        assert all(m.is_contiguous() for m in fused.backbone(images))


def test_nothing_of_vmamba_is_folded():
    """It has no batch norm: its weights stay, and fit its checkpoints."""
    model = build_classifier(FAMILIES['vmamba'])
    fuse(copy.deepcopy(model)).load_state_dict(model.state_dict())

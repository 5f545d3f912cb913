import pytest
import torch
from conftest import CONFIGS, TINY, tiny_classifier_cfg
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from vcmamba_mm.analysis.complexity import model_complexity
from vcmamba_mm.models import VMamba
from vcmamba_mm.models.base import InputSizeError, MacRule

HEIGHT, WIDTH = 96, 160
TOKENS = [HEIGHT * WIDTH // 4 ** (i + 2) for i in range(4)]
DIMS = TINY['embed_dims']


def conv(tokens, kernel, channels_in, channels_out):
    return tokens * kernel**2 * channels_in * channels_out


def ffn(tokens, dims):
    return 2 * conv(tokens, 1, dims, 4 * dims) + conv(tokens, 3, 1, 4 * dims)


def mixer(tokens, dims):
    """MACs without the scan, and of the scan."""
    inner, rank, state = 2 * dims, -(-dims // 16), 16
    return (
        2 * conv(tokens, 1, dims, inner)
        + conv(tokens, 7, 1, inner)
        + conv(tokens, 1, inner, rank + 2 * state)
        + conv(tokens, 1, rank, inner)
    ), 4 * tokens * inner * (4 * state + 2)


def stage(i):
    return (
        conv(TOKENS[i], 3, DIMS[i - 1], DIMS[i]) * (i > 0)
        + ffn(TOKENS[i], DIMS[i]) * TINY['depths'][i]
    )


def test_parts_of_a_classifier():
    pytest.importorskip('mmpretrain')
    import vcmamba_mm.classification  # noqa: F401

    init_default_scope('mmpretrain')
    model = MODELS.build(tiny_classifier_cfg())
    counts = model_complexity(model, (HEIGHT, WIDTH))
    scan_free, scan = mixer(TOKENS[3], DIMS[3])
    expected = {
        'stem': conv(4 * TOKENS[0], 3, 3, 8) + conv(TOKENS[0], 3, 8, 16),
        **{f'stage {i + 1}': stage(i) for i in range(4)},
        'neck': 0,
        'head': 2 * DIMS[3] * 10,
    }
    expected['stage 4'] += 2 * (scan_free + scan)
    expected['total'] = sum(expected.values())
    assert {part: c.macs for part, c in counts.items()} == expected
    assert counts['stage 4'].scan_macs == counts['total'].scan_macs == 2 * scan
    params = sum(p.numel() for p in model.parameters())
    assert counts['total'].params == params
    assert counts['head'].params == 2 * (DIMS[3] + 1) * 10
    with pytest.raises(InputSizeError, match='32 x 32'):
        model_complexity(model, (16, 64))


def test_parts_of_a_segmenter():
    pytest.importorskip('mmseg')

    init_default_scope('mmseg')
    cfg = Config.fromfile(CONFIGS / 'tiny_segmenter.py')
    counts = model_complexity(MODELS.build(cfg.model), (HEIGHT, WIDTH))
    # lateral 1x1 and output 3x3 convolutions of the FPN, 16 channels
    expected = sum(
        conv(n, 1, dims, 16) + conv(n, 3, 16, 16)
        for n, dims in zip(TOKENS, DIMS)
    )
    assert counts['neck'].macs == expected
    # one 3x3 convolution before each of the upsamplings by two, one without,
    # and the 1x1 convolution to the classes
    expected = conv(TOKENS[0], 3, 16, 16) + conv(TOKENS[0], 1, 16, 150)
    for i in (1, 2, 3):
        expected += sum(conv(TOKENS[j], 3, 16, 16) for j in range(1, i + 1))
    assert counts['head'].macs == expected
    assert counts['head'].authors_macs == 0  # VCMamba's say no rule


def classifier(name, arch, **options):
    """As large ones are counted: without memory."""
    pytest.importorskip('mmpretrain')
    init_default_scope('mmpretrain')
    with torch.device('meta'):
        backbone = MODELS.build(dict(type=name, arch=arch, **options))
        dims = backbone.embed_dims[-1]
        neck = dict(type='NormGlobalAveragePooling', in_channels=dims)
        head = dict(type='LinearClsHead', num_classes=1000, in_channels=dims)
        parts = dict(backbone=backbone, neck=neck, head=head)
        model = MODELS.build(dict(type='ImageClassifier', **parts))
    return model.eval()


@pytest.mark.parametrize(
    'arch, scan_free, scan, authors',
    [
        ('t', 4.8126, 0.0379, 4.906),
        ('s', 8.4990, 0.1012, 8.716),
        ('b', 15.0699, 0.1349, 15.359),
    ],
)
def test_vmamba_as_its_authors_count(arch, scan_free, scan, authors):
    model = classifier('VMamba', arch)
    total = model_complexity(model, (224, 224))['total']
    assert round((total.macs - total.scan_macs) / 1e9, 4) == scan_free
    assert round(total.scan_macs / 1e9, 4) == scan
    assert round(total.authors_macs / 1e9, 3) == authors


@pytest.mark.parametrize(
    'arch, size, windows, authors, with_attention',
    [
        ('t', 224, (14, 7), 4.46, 4.56),
        ('t2', 224, (14, 7), 5.11, 5.24),
        ('s', 224, (14, 7), 7.48, 7.58),
        ('b', 224, (14, 7), 14.96, 15.16),
        ('l', 224, (14, 7), 34.84, 35.16),
        ('l2', 224, (14, 7), 37.50, 37.88),
        ('l2', 512, (32, 16), 195.9, 206.2),
        ('l3', 256, (16, 8), 122.1, 123.5),
        ('l3', 512, (32, 16), 488.5, 511.3),
    ],
)
def test_mambavision_as_its_authors_count(
    arch, size, windows, authors, with_attention
):
    model = classifier('MambaVision', arch, window_size=windows)
    total = model_complexity(model, (size, size))['total']
    digits = 2 if size == 224 else 1
    assert round(total.authors_macs / 1e9, digits) == authors
    scan_free = total.macs - total.scan_macs
    assert round(scan_free / 1e9, digits) == with_attention


@pytest.mark.parametrize(
    'arch, scan_free, with_scan, authors',
    [
        ('l1', 1.965, 2.442, 3.006),
        ('l2', 5.979, 6.933, 8.060),
        ('l3', 10.766, 12.435, 14.408),
    ],
)
def test_plainmamba_as_its_authors_count(arch, scan_free, with_scan, authors):
    model = classifier('PlainMamba', arch)
    counts = model_complexity(model, (224, 224))
    total, (dims, *_) = counts['total'], model.backbone.embed_dims
    assert counts['norms'].params == 2 * dims  # after the last layer
    assert counts['head'].params == (dims + 1) * 1000
    assert round((total.macs - total.scan_macs) / 1e9, 3) == scan_free
    assert round(total.macs / 1e9, 3) == with_scan
    assert round(total.authors_macs / 1e9, 3) == authors


def test_rules_of_authors(monkeypatch):
    """Of those who count no scan, or another, and no attention."""

    def total(rule):
        monkeypatch.setattr(VMamba, 'mac_rule', rule)
        arch = dict(embed_dims=(16, 32), depths=(1, 1), expand=1)
        model = classifier('VMamba', arch)
        return model_complexity(model, (32, 32))['total']

    unknown = total(None)
    scan_free = unknown.macs - unknown.scan_macs
    assert unknown.authors_macs == 0
    assert total(MacRule()).authors_macs == scan_free
    channels = 64 * 16 + 16 * 32  # tokens times channels, of one state
    expected = scan_free + 4 * 9 * channels
    assert total(MacRule(scan=(9, 0))).authors_macs == expected
    # the map of each path from rank 1 to 16 channels, and from 2 to 32
    expected = scan_free - 4 * (64 * 1 * 16 + 16 * 2 * 32)
    assert total(MacRule(products=False)).authors_macs == expected


def test_parts_of_an_adapter():
    """What is sampled bilinearly is not counted, as no resizing is."""
    dims, heads, points = 16, 2, 4
    arch = dict(embed_dims=dims, depth=4, stem_convs=1, extra_conv=False)
    model = classifier('PlainMambaAdapter', dict(arch, num_heads=heads))
    parameters = sum(p.numel() for p in model.backbone.adapter.parameters())
    counts = model_complexity(model, (HEIGHT, WIDTH))
    _, *levels = TOKENS
    prior = conv(4 * TOKENS[0], 3, 3, 64) + 2 * conv(4 * TOKENS[0], 3, 64, 64)
    widths = 64, 128, 256, 256
    for i, tokens in enumerate(levels):
        prior += conv(tokens, 3, widths[i], widths[i + 1])
        prior += conv(tokens, 1, widths[i + 1], dims)

    def attention(queries, *looked_at):
        numbers = 3 * heads * points * len(looked_at)  # x, y and a weight
        values = sum(looked_at)
        return dims * (queries * (numbers + dims) + values * dims)

    tokens = sum(levels)
    mlp = 2 * conv(tokens, 1, dims, dims // 4) + conv(tokens, 3, 1, dims // 4)
    extractor = attention(tokens, TOKENS[2]) + mlp
    expected = prior + 4 * attention(TOKENS[2], *levels) + 6 * extractor
    assert counts['adapter'] == (parameters, expected, 0, expected)
    assert counts['head'].params == 1000 * (dims + 1)
    assert 'norms' not in counts


def test_norms_of_the_outputs():
    pytest.importorskip('mmseg')
    init_default_scope('mmseg')
    cfg = Config.fromfile(CONFIGS / 'tiny_vmamba_upernet.py').model
    model = MODELS.build(cfg).eval()
    dims = cfg.backbone.arch.embed_dims
    counts = model_complexity(model, (HEIGHT, WIDTH))
    elements = sum(n * c for n, c in zip(TOKENS, dims))
    assert counts['norms'] == (2 * sum(dims), 0, 0, 5 * elements)
    heads = (model.decode_head, model.auxiliary_head)
    params = sum(p.numel() for head in heads for p in head.parameters())
    assert counts['head'].params == params

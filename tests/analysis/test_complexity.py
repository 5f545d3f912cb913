import pytest
from conftest import CONFIGS, TINY, tiny_classifier_cfg
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from vcmamba_mm.analysis.complexity import model_complexity
from vcmamba_mm.models.base import InputSizeError

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

"""What the analysis makes of a backbone whose layers work in windows."""

import math

import cv2
import numpy as np
import pytest
import torch
from conftest import CONFIGS, ROOT
from matplotlib.axes import Axes
from PIL import Image
from test_class_activation import grad_cam

from vcmamba_mm import MambaVision, VMamba
from vcmamba_mm.analysis.attention_maps import attention_map
from vcmamba_mm.analysis.class_activation import class_activation_map
from vcmamba_mm.analysis.receptive_field import effective_receptive_field
from vcmamba_mm.analysis.scan_maps import (
    decay_maps,
    direction_activations,
    mixers,
    record_scan,
)
from vcmamba_mm.analysis.tokens import Windows
from vcmamba_mm.models.mambavision.blocks import to_map, to_windows
from vcmamba_mm.ops.reference import reference_readouts

GOLDEN = ROOT / 'tests/fixtures/golden/mambavision'
RELEASE = GOLDEN / 'tiny_release.pth'
CONFIG = CONFIGS / 'tiny_mambavision.py'
ARCH = dict(
    embed_dims=(10, 20, 40, 80),
    depths=(1, 2, 3, 2),
    stem_dims=8,
    num_heads=(4, 8),
    layer_scale=0.5,
)
# Stage 3 of a picture of 96 x 136 pixels: 6 x 9 tokens, which windows of 4 x 4
# cover as 2 x 3. The last of them has two real tokens, (4, 8) and (5, 8), at
# the places 0 and 4 of its 16.
LAST, REAL = 5, {(4, 8): 0, (5, 8): 4}


@pytest.fixture(scope='module')
def io():
    arrays = np.load(GOLDEN / 'tiny_io.npz')
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope='module')
def model():
    model = MambaVision(
        ARCH,
        window_size=(4, 3),
        init_cfg=dict(type='Pretrained', checkpoint=str(RELEASE)),
    )
    model.init_weights()
    return model.eval()


def test_places_of_tokens():
    windows = Windows.of(3, 5, 2)
    # 4 x 6 places, row by row of each window
    assert windows.numbers.tolist() == [
        [1, 2, 6, 7],
        [3, 4, 8, 9],
        [5, 0, 10, 0],
        [11, 12, 0, 0],
        [13, 14, 0, 0],
        [15, 0, 0, 0],
    ]
    assert windows.find(1, 4) == (2, 2)
    values = torch.arange(2 * 6 * 1 * 4.0).view(2 * 6, 1, 4)
    maps, padding = windows.on_map(values)
    assert maps[0, 0].tolist() == [
        [0, 1, 4, 5, 8],
        [2, 3, 6, 7, 10],
        [12, 13, 16, 17, 20],
    ]
    torch.testing.assert_close(maps[1], maps[0] + 24)
    assert padding[0, 0] == 9 + 11 + 14 + 15 + 18 + 19 + 21 + 22 + 23
    with pytest.raises(ValueError, match=r'no token \(0, 5\) on a map of 3'):
        windows.find(0, 5)


@torch.no_grad()
@pytest.mark.parametrize('token', REAL)
def test_attention_by_hand(model, io, token):
    """The same weights give what the release's layer was recorded to do."""
    layer = model.stages[2].blocks[2].mixer
    heads, dims, width = 4, 40, 10
    weight, bias = layer.qkv.weight.double(), layer.qkv.bias.double()
    pixel = token[0] * 16 + 15, 135
    found = attention_map(model, io['input'], pixel, 0)
    assert found.token == token and found.window == (4, 8, 6, 9)
    assert found.maps.shape == (2, heads, 6, 9)
    for picture in range(2):
        window = picture * 6 + LAST
        x = io['attention_in'][window].double()
        q, k, v = (x @ weight.T + bias).split(dims, dim=1)
        mixed = []
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            scores = [
                math.exp(q[REAL[token], own] @ row / math.sqrt(width))
                for row in k[:, own]
            ]
            weights = [score / sum(scores) for score in scores]
            mixed.append(sum(w * row for w, row in zip(weights, v[:, own])))
            expected = torch.zeros(6, 9).double()
            for place, number in REAL.items():
                expected[place] = weights[number]
            its = found.maps[picture, head]
            torch.testing.assert_close(its, expected, rtol=1e-4, atol=1e-6)
            assert found.padding[picture, head] == pytest.approx(
                sum(weights) - weights[0] - weights[4], abs=1e-5
            )
        out = layer.proj(torch.cat(mixed).float())
        recorded = io['attention_out'][window, REAL[token]]
        torch.testing.assert_close(out, recorded, rtol=0, atol=1e-5)


def test_attention_sums_to_one(model, io):
    for pixel in ((0, 0), (95, 135), (50, 70)):
        for layer in (0, 1):
            found = attention_map(model, io['input'], pixel, layer)
            total = found.maps.sum((2, 3)) + found.padding
            torch.testing.assert_close(total, torch.ones_like(total))
            assert (found.maps >= 0).all()
            top, left, bottom, right = found.window
            inside = found.maps[..., top:bottom, left:right]
            assert inside.min() > 0
            torch.testing.assert_close(inside.sum(), found.maps.sum())
    # all tokens of the first window are real
    assert (attention_map(model, io['input'], (0, 0), 0).padding == 0).all()
    whole = MambaVision(ARCH, window_size='map').eval()
    found = attention_map(whole, io['input'], (95, 135), 0)
    assert (found.padding == 0).all() and found.window == (0, 0, 6, 9)
    assert found.maps.min() > 0 and found.token == (5, 8)


def test_what_has_no_attention(model):
    x = torch.zeros(1, 3, 32, 32)
    with pytest.raises(
        ValueError, match='has 2 attention layers, no number 2'
    ):
        attention_map(model, x, (0, 0), 2)
    with pytest.raises(ValueError, match=r'no pixel \(0, 32\) in an image'):
        attention_map(model, x, (0, 32))
    other = VMamba(dict(embed_dims=(4,), depths=(1,), expand=1))
    with pytest.raises(ValueError, match='0 attention layers'):
        attention_map(other, x, (0, 0))


@torch.no_grad()
def test_scan_of_windows(model, io):
    inputs = []
    for layer, mixer in enumerate(mixers(model)):
        handle = mixer.out_proj.register_forward_pre_hook(
            lambda _, args: inputs.append(args[0])
        )
        scan = record_scan(model, io['input'], layer)
        handle.remove()
        readouts = reference_readouts(*scan[:2])
        both = inputs.pop()
        scanned = both[..., : both.shape[-1] // 2]
        torch.testing.assert_close(
            readouts.sum(0), scanned, rtol=1e-4, atol=1e-5
        )
        maps = direction_activations(scan)
        assert maps.shape[:2] == (2, 1)
        if layer < 2:
            for (row, column), place in REAL.items():
                torch.testing.assert_close(
                    maps[:, 0, row, column].float(),
                    readouts[0, LAST::6, place].abs().mean(1),
                )
    assert layer == 2


def test_decay_in_a_window(model, io):
    scan = record_scan(model, io['input'], 0)
    maps = decay_maps(scan, 4, 8)
    delta = torch.nn.functional.softplus(scan.tensors.delta[LAST::6, :, 0])
    A = scan.tensors.A[0]
    expected = torch.zeros(2, 1, 6, 9)
    expected[:, 0, 4, 8] = 1
    left = torch.ones(2, *A.shape)
    for place in (1, 2, 3, 4):  # three of them padded
        left = left * torch.exp(delta[:, place, :, None] * A)
    expected[:, 0, 5, 8] = left.mean((1, 2))
    assert (expected[:, 0, 5, 8] > 0).all()
    torch.testing.assert_close(maps.float(), expected, rtol=1e-4, atol=1e-12)


def test_field_ends_at_the_window():
    """Stage 3 mixes within windows, the convolutions before it a little."""
    arch = dict(ARCH, depths=(1, 1, 2, 1))
    inputs = [torch.randn(1, 3, 96, 96)]
    fields = []
    for window_size in ((3, 3), 'map'):
        model = MambaVision(arch, out_indices=(2,), window_size=window_size)
        fields.append(effective_receptive_field(model.eval(), inputs))
    # The middle of 6 x 6 tokens is in the window from token 3, pixel 48, on.
    # Convolutions: stem 1 + 2, stage 1 2 x 4, then 4, stage 2 2 x 8, then 8.
    first = 48 - (1 + 2 + 2 * 4 + 4 + 2 * 8 + 8)
    own, whole = fields
    assert (own[:first] == 0).all() and (own[:, :first] == 0).all()
    assert own[first].max() > 0 and own[:, first].max() > 0
    assert (whole > 0).float().mean() > 0.9  # but for what ReLU drops


@pytest.fixture
def classifier():
    pytest.importorskip('mmpretrain')
    pytest.importorskip('pytorch_grad_cam')
    from vcmamba_mm.inference import get_model

    return get_model(CONFIG, RELEASE, 'cpu')


@pytest.mark.parametrize('block', [1, 3])
def test_class_activation_of_a_block(classifier, io, block):
    """A mixer's and an attention's, with padded windows, by the formula."""
    inputs, labels = io['input'], [3, 7]
    maps = class_activation_map(classifier, inputs, labels, 3, block=block)
    backbone = classifier.backbone
    x = backbone.stages[1](backbone.stages[0](backbone.stem(inputs)))
    stage = backbone.stages[2]
    like = stage.downsample(x)
    tokens = to_windows(like, 4)
    blocks = list(stage.blocks)
    for its in blocks[:block]:
        tokens = its(tokens)
    chosen = to_map(tokens, like, 4)
    # Padded places have features, too, which go on.
    rest = tokens
    for its in blocks[block:]:
        rest = its(rest)
    last = backbone.stages[3](to_map(rest, like, 4))
    logits = classifier.head(classifier.neck((last,)))
    picked = logits[0, 3] + logits[1, 7]
    (grads,) = torch.autograd.grad(picked, tokens)
    grads = to_map(grads, like, 4)
    for found, f, g in zip(maps, chosen, grads):
        expected = cv2.resize(grad_cam(f, g), (136, 96))
        expected -= expected.min()
        expected /= expected.max()
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_last_block_is_the_stage(classifier, io):
    for stage, block in ((1, 1), (3, 3), (4, 2)):
        given = classifier, io['input'], [3, 7], stage
        found = class_activation_map(*given, block=block)
        expected = class_activation_map(*given)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ValueError, match='stage 3 has the blocks 1 to 3'):
        class_activation_map(*given[:3], 3, block=4)


def test_tools(run_here, classifier, picture_file, tmp_path, monkeypatch):
    titles, set_title = [], Axes.set_title
    monkeypatch.setattr(
        Axes,
        'set_title',
        lambda ax, title: titles.append(title) or set_title(ax, title),
    )
    model = ['--size', 96, '--model', CONFIG, '--checkpoint', RELEASE]

    def draw(tool, *options):
        out = tmp_path / 'out.png'
        tool, *command = tool.split()
        options = [*command, picture_file, *model, '--out', out, *options]
        log = run_here(f'analysis/{tool}.py', *options)
        if out.is_file():
            assert Image.open(out).size[0] > 400
            out.unlink()
        return log

    # Stage 3 has 6 x 6 tokens in four windows, stage 4 3 x 3 in one.
    assert 'visits all 3 x 3 tokens, and' in draw('scan paths')
    log = draw('scan paths', '--layer', 0)
    assert '6 x 6 tokens, in 4 windows of 16, with 28 padded places' in log
    assert 'answer with a mean' in draw('scan activations', '--layer', 0)
    assert 'token (3, 3) writes' in draw('scan decay', '--layer', 0)
    assert 'no token (6, 0)' in draw(
        'scan decay', '--layer', 0, '--token', 6, 0
    )
    log = draw('attention', '--layer', 0, '--pixel', 70, 20)
    assert 'token (4, 1) attends to rows 4 to 5 and columns 0 to 3 of' in log
    assert 'over 4 heads' in log and ' 0.0% of the weight' not in log
    assert titles[-6:] == ['picture', 'mean', *(f'head {i}' for i in range(4))]
    log = draw('attention')
    assert 'a map of 3 x 3' in log and 'over 8 heads; 0.0% of the' in log
    assert 'no number 2' in draw('attention', '--layer', 2)
    log = draw('grad_cam', '--stage', 3, '--block', 1, 3)
    assert 'for which stage 3, block 3: Attention speaks most' in log
    assert titles[-2:] == [
        'stage 3, block 1\nMambaVisionMixer',
        'stage 3, block 3\nAttention',
    ]
    assert 'has the blocks 1 to 3' in draw(
        'grad_cam', '--stage', 3, '--block', 4
    )

import json
import math

import pytest
import torch
from conftest import CONFIGS, GOLDEN, ROOT, TINY
from matplotlib.axes import Axes
from PIL import Image

from vcmamba_mm import VCMamba, VMamba
from vcmamba_mm.analysis.scan_maps import (
    Scan,
    decay_maps,
    direction_activations,
    memory_length,
    mixers,
    path_names,
    record_scan,
)
from vcmamba_mm.analysis.tokens import Windows
from vcmamba_mm.models.vmamba.mixer import PATHS as SS2D_PATHS
from vcmamba_mm.ops import path_scan
from vcmamba_mm.ops.reference import reference_readouts
from vcmamba_mm.ops.scan_inputs import Options, Tensors, share
from vcmamba_mm.ops.scan_paths import PATHS

CONFIG = CONFIGS / 'tiny_classifier.py'
RELEASE = GOLDEN / 'tiny_release.pth'


def random_scan(height, width, param_order, batch=2, channels=3, states=4):
    tokens = height * width
    tensors = (
        torch.randn(batch, tokens, channels).double(),
        torch.rand(batch, tokens, channels).double(),
        -torch.rand(channels, states).double(),
        torch.randn(batch, tokens, states).double(),
        torch.randn(batch, tokens, states).double(),
        torch.randn(channels).double(),
        torch.randn(5, states).double(),
    )
    options = Options(height, width, param_order=param_order)
    windows = Windows.of(height, width)
    return Scan(share(Tensors(*tensors)), options, windows)


def scanned(scan):
    """By the PyTorch backend."""
    tensors, options, _ = scan
    return path_scan(
        *tensors[:6],
        *options[:2],
        paths=options.paths,
        snake=options.snake,
        param_order=options.param_order,
        direction_B=tensors.direction_B,
        delta_bias=tensors.delta_bias,
        delta_softplus=options.delta_softplus,
        backend='torch',
    )


@pytest.mark.parametrize('param_order', ['raster', 'path'])
@pytest.mark.parametrize('size', ['4x6', '7x7', '1x5'])
def test_decay_is_the_product_along_the_recorded_paths(size, param_order):
    recorded = json.loads((GOLDEN / 'scan_orders.json').read_text())[size]
    height, width = map(int, size.split('x'))
    scan = random_scan(height, width, param_order)
    delta, A = scan.tensors.delta[:, :, 0], scan.tensors.A[0]
    row, column = height // 2, width // 3
    expected = torch.zeros(2, 4, height * width).double()
    for p, order in enumerate(recorded['orders']):
        left = None
        for i, token in enumerate(order):
            if left is not None:
                step = i if param_order == 'raster' else token
                left = left * torch.exp(delta[:, step, :, None] * A)
            elif token == row * width + column:
                left = torch.ones(2, *A.shape).double()
            if left is not None:
                expected[:, p, token] = left.mean((1, 2))
    maps = decay_maps(scan, row, column)
    torch.testing.assert_close(
        maps.flatten(2), expected, rtol=1e-10, atol=1e-12
    )
    assert (maps[..., row, column] == 1).all()
    with pytest.raises(ValueError, match=f'no token \\({height}, 0\\)'):
        decay_maps(scan, height, 0)


def test_decay_of_paths_with_parameters_of_their_own():
    """Straight lines, in VMamba's order; a bias and softplus of delta."""
    height, width, channels = 3, 4, 2
    rows = list(range(12))
    columns = [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    orders = [rows, columns, rows[::-1], columns[::-1]]
    delta = torch.randn(2, 12, 4, channels).double()
    bias = torch.randn(4, channels).double()
    A = -torch.rand(4, channels, 3).double()
    none = torch.zeros(2, 12, 4, 3)
    scan = Scan(
        Tensors(
            torch.zeros(2, 12, channels),
            *(delta, A, none, none),
            delta_bias=bias,
        ),
        Options(height, width, SS2D_PATHS, False, 'path', True),
        Windows.of(height, width),
    )
    maps = decay_maps(scan, 1, 2).flatten(2)
    for b in range(2):
        for p, order in enumerate(orders):
            expected, left = dict.fromkeys(order, 0.0), None
            for token in order:
                if left is not None:
                    for c in range(channels):
                        size = math.log1p(
                            math.exp(delta[b, token, p, c] + bias[p, c])
                        )
                        for n in range(3):
                            left[c][n] *= math.exp(size * A[p, c, n])
                elif token == 6:
                    left = [[1.0] * 3 for _ in range(channels)]
                if left is not None:
                    expected[token] = sum(map(sum, left)) / 6
            assert maps[b, p].tolist() == pytest.approx(
                [expected[token] for token in rows], rel=1e-9
            )


def test_names_of_paths():
    assert path_names(PATHS) == [
        '1: along the rows',
        '2: path 1 reversed',
        '3: along the columns',
        '4: path 3 reversed',
    ]
    assert path_names(SS2D_PATHS) == [
        '1: along the rows',
        '2: along the columns',
        '3: path 1 reversed',
        '4: path 2 reversed',
    ]
    assert path_names(('column_reverse',)) == [
        '1: along the columns, reversed'
    ]


def test_memory_length():
    scan = random_scan(1, 8, 'path')
    tensors = scan.tensors._replace(
        delta=torch.ones_like(scan.tensors.delta),
        A=-torch.ones_like(scan.tensors.A),
    )
    maps = decay_maps(scan._replace(tensors=tensors), 0, 2)
    # exp(-k) >= 0.1 for two steps; path 2 has two tokens left, path 1 five
    assert memory_length(maps, 0.1).tolist() == [[2, 2, 2, 2]] * 2
    assert memory_length(maps, 1e-9).tolist() == [[5, 2, 5, 2]] * 2


@pytest.mark.parametrize('param_order', ['raster', 'path'])
def test_directions_sum_to_the_scan(param_order):
    scan = random_scan(5, 8, param_order)
    readouts = reference_readouts(*scan[:2])
    y = scanned(scan)
    torch.testing.assert_close(readouts.sum(0), y)
    maps = direction_activations(scan)
    assert maps.shape == (2, 4, 5, 8)
    torch.testing.assert_close(
        maps[1, 2, 3, 4], readouts[2, 1, 3 * 8 + 4].abs().mean()
    )


OTHERS = dict(num_paths=1, snake=False, with_norm=False)
RECORDED = dict(
    vcmamba=lambda: VCMamba(arch=TINY, img_size=160),
    one_path=lambda: VCMamba(arch=TINY, img_size=160, mixer_cfg=OTHERS),
    vmamba=lambda: VMamba(
        dict(embed_dims=(4, 4, 6, 8), depths=(0, 0, 0, 2), expand=2)
    ),
)


@pytest.mark.parametrize('name', RECORDED)
def test_recorded_scan_is_the_mixers(name):
    torch.manual_seed(0)
    model = RECORDED[name]().eval()
    inputs = torch.randn(2, 3, 96, 160)
    outputs = []
    for layer, mixer in enumerate(mixers(model)):
        handle = mixer.norm.register_forward_pre_hook(
            lambda _, args: outputs.append(args[0])
        )
        scan = record_scan(model, inputs, layer)
        handle.remove()
        torch.testing.assert_close(scanned(scan), outputs[-1])
        num_paths = 1 if name == 'one_path' else 4
        assert direction_activations(scan).shape == (2, num_paths, 3, 5)
        # the first path begins at the first token, and loses none of it
        assert (decay_maps(scan, 0, 0)[:, 0] > 0).all()
    assert len(mixers(model)) == 2
    with pytest.raises(ValueError, match='has 2 mixers, no number 2'):
        record_scan(model, inputs, 2)


def test_a_mixer_that_does_not_run():
    arch = dict(embed_dims=(4, 6), depths=(1, 1), expand=1)
    model = VMamba(arch, out_indices=0).eval()
    with pytest.raises(ValueError, match=r'^stages\.1\..* out_indices'):
        record_scan(model, torch.randn(1, 3, 32, 32))


def test_tool_of_a_vmamba(run_here, picture_file, tmp_path, monkeypatch):
    titles, set_title = [], Axes.set_title
    monkeypatch.setattr(
        Axes,
        'set_title',
        lambda ax, title: titles.append(title) or set_title(ax, title),
    )
    model = ['--model', CONFIGS / 'tiny_vmamba.py', '--size', 64]
    release = ROOT / 'tests/fixtures/golden/vmamba/tiny_release.pth'
    for command, options, sentence in (
        ('paths', [], 'all 2 x 2 tokens, and from the end of a line'),
        ('paths', ['--layer', 0], 'all 16 x 16 tokens'),
        ('activations', ['--checkpoint', release], 'answer with a mean'),
        ('decay', ['--checkpoint', release], 'is left for the next'),
    ):
        out = tmp_path / f'{command}.png'
        options = [*model, *options, '--out', out]
        log = run_here('analysis/scan.py', command, picture_file, *options)
        assert sentence in log
        assert titles[-4:] == path_names(SS2D_PATHS)
        assert Image.open(out).size[0] > 1800


def test_tool(run_here, picture_file, tmp_path):
    out = tmp_path / 'new/out.png'
    common = ['analysis/scan.py', 'paths', picture_file, '--out', out]
    log = run_here(*common)
    assert 'visits all 7 x 7 tokens' in log
    path = Image.open(out)
    assert path.size[0] > 3 * path.size[1]
    model = ['--model', CONFIG, '--checkpoint', RELEASE, '--size', 128]
    for command, sentence in (
        ('activations', 'answer with a mean magnitude'),
        ('decay', 'is left for the next'),
    ):
        out = tmp_path / f'{command}.png'
        common = ['analysis/scan.py', command, picture_file, '--out', out]
        assert sentence in run_here(*common, *model)
        assert Image.open(out).size[0] > 2000
    assert 'no token (9, 0)' in run_here(*common, *model, '--token', 9, 0)
    assert 'no number 5' in run_here(*common, *model, '--layer', 5)
    common[2] = tmp_path / 'none.png'
    assert 'none.png cannot be read' in run_here(*common, *model)

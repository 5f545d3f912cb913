import json

import pytest
import torch
from conftest import CONFIGS, GOLDEN, TINY
from PIL import Image

from vcmamba_mm import VCMamba
from vcmamba_mm.analysis.scan_maps import (
    Scan,
    decay_maps,
    direction_activations,
    memory_length,
    mixers,
    record_scan,
)
from vcmamba_mm.ops import path_scan
from vcmamba_mm.ops.reference import reference_readouts
from vcmamba_mm.ops.scan_inputs import Options, Tensors, share

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
    return Scan(share(Tensors(*tensors)), options)


def scanned(scan):
    """By the PyTorch backend."""
    tensors, options = scan
    return path_scan(
        *tensors[:6],
        *options[:2],
        paths=options.paths,
        snake=options.snake,
        param_order=options.param_order,
        direction_B=tensors.direction_B,
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
    readouts = reference_readouts(*scan)
    y = scanned(scan)
    torch.testing.assert_close(readouts.sum(0), y)
    maps = direction_activations(scan)
    assert maps.shape == (2, 4, 5, 8)
    torch.testing.assert_close(
        maps[1, 2, 3, 4], readouts[2, 1, 3 * 8 + 4].abs().mean()
    )


@pytest.mark.parametrize(
    'options', [{}, dict(num_paths=1, snake=False, with_norm=False)]
)
def test_recorded_scan_is_the_mixers(options):
    torch.manual_seed(0)
    model = VCMamba(arch=TINY, img_size=160, mixer_cfg=options).eval()
    inputs = torch.randn(2, 3, 96, 160)
    outputs = []
    for layer, mixer in enumerate(mixers(model)):
        handle = mixer.norm.register_forward_pre_hook(
            lambda _, args: outputs.append(args[0])
        )
        scan = record_scan(model, inputs, layer)
        handle.remove()
        torch.testing.assert_close(scanned(scan), outputs[-1])
        num_paths = options.get('num_paths', 4)
        assert direction_activations(scan).shape == (2, num_paths, 3, 5)
        # the first path begins at the first token, and loses none of it
        assert (decay_maps(scan, 0, 0)[:, 0] > 0).all()
    assert len(mixers(model)) == 2
    with pytest.raises(ValueError, match='has 2 mixers, no number 2'):
        record_scan(model, inputs, 2)


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

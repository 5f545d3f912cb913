from functools import partial

import pytest
import torch
from conftest import CONFIGS, GOLDEN, TINY
from PIL import Image
from torch import nn

from vcmamba_mm import PlainMamba, VCMamba, VMamba
from vcmamba_mm.analysis.receptive_field import (
    StageMap,
    effective_receptive_field,
    side_of_share,
)

CONFIG = CONFIGS / 'tiny_classifier.py'


class Squared(nn.Module):
    """Two maps: sums of x^2 over 3 x 3, and over strided 4 x 2, pixels."""

    def forward(self, x):
        return (
            9 * nn.functional.avg_pool2d(x**2, 3, 1, 1),
            8 * nn.functional.avg_pool2d(x**2, (4, 2)),
        )


def test_closed_formula():
    batches = [torch.randn(2, 3, 8, 10).double() for _ in range(3)]
    mean = 2 * torch.cat(batches).abs().sum((0, 1))
    model = Squared().eval()
    expected = torch.zeros(8, 10).double()
    expected[3:6, 4:7] = mean[3:6, 4:7]
    field = effective_receptive_field(model, batches, 0)
    torch.testing.assert_close(field, expected / expected.max())
    expected = torch.zeros(8, 10).double()
    expected[4:8, 4:6] = mean[4:8, 4:6]  # the map has 2 x 5 features
    field = effective_receptive_field(model, batches)
    torch.testing.assert_close(field, expected / expected.max())


def test_of_a_vcmamba_by_hand():
    """Finite differences of the middle feature, at some pixels."""
    model = VCMamba(arch=TINY, img_size=64).double().eval()
    x = torch.randn(1, 3, 64, 96).double()
    field = effective_receptive_field(model, [x])
    pixels = [(32, 48), (30, 40), (5, 90)]

    def middle(x):
        with torch.no_grad():
            return model(x)[0][0, :, 1, 1].sum()

    magnitudes = []
    for row, column in pixels:
        total = 0
        for channel in range(3):
            step = torch.zeros_like(x)
            step[0, channel, row, column] = 1e-4
            slope = (middle(x + step) - middle(x - step)) / 2e-4
            total += slope.abs()
        magnitudes.append(total)
    found = torch.stack([field[pixel] for pixel in pixels])
    expected = torch.stack(magnitudes)
    torch.testing.assert_close(
        found / found[0], expected / expected[0], rtol=1e-4, atol=1e-8
    )
    assert (found > 0).all()  # the last stage sees everything
    assert field.max() == 1
    with pytest.raises(ValueError, match='training mode'):
        effective_receptive_field(model.train(), [x])
    with pytest.raises(ValueError, match='no images'):
        effective_receptive_field(model.eval(), [])


@pytest.mark.parametrize(
    'build, norm',
    [
        (
            partial(VMamba, dict(embed_dims=(8, 12), depths=(1, 1), expand=1)),
            'out_norms',
        ),
        (
            partial(
                PlainMamba,
                dict(embed_dims=8, depth=2, stem_convs=1, extra_conv=False),
            ),
            'final_norm',
        ),
    ],
)
def test_before_the_norm_of_an_output(build, norm):
    """After it nothing but rounding would be left of new weights."""
    bare = build(**{norm: False}).eval()
    normed = build(**{norm: True}).eval()
    normed.load_state_dict(bare.state_dict(), strict=False)
    x = torch.randn(1, 3, 48, 48)
    expected = effective_receptive_field(bare, [x])
    found = effective_receptive_field(StageMap(normed, 1).eval(), [x])
    torch.testing.assert_close(found, expected)


def test_side_of_share():
    field = torch.zeros(9, 9).double()
    field[4, 4], field[4, 6], field[0, 0] = 2, 1, 1
    sides = [side_of_share(field, share) for share in (0.5, 0.6, 0.75, 0.76)]
    assert sides == [1, 5, 5, 9]
    assert side_of_share(torch.ones(8, 12).double(), 1.0) == 12


def test_tool(run_here, picture_file, tmp_path):
    out = tmp_path / 'new' / 'erf.png'

    def draw(*weights, pictures=picture_file.parent):
        options = ['--size', 96, '--pictures', pictures, '--out', out]
        tool = 'analysis/receptive_field.py'
        return run_here(tool, CONFIG, *weights, *options)

    before = draw()
    assert 'Over 1 images' in before and 'px before training.' in before
    height = Image.open(out).size[1]
    both = draw(GOLDEN / 'tiny_release.pth')
    assert 'px before training and of' in both
    assert Image.open(out).size[1] > 1.8 * height
    assert 'no images in' in draw(pictures=tmp_path / 'none')

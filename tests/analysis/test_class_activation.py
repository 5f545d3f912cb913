import cv2
import numpy as np
import pytest
import torch
from conftest import CONFIGS, GOLDEN
from PIL import Image

from vcmamba_mm.analysis.class_activation import class_activation_map
from vcmamba_mm.analysis.figures import shown_stages
from vcmamba_mm.models import PlainMamba, VCMamba

pytest.importorskip('mmpretrain')
pytest.importorskip('pytorch_grad_cam')

CONFIG = CONFIGS / 'tiny_classifier.py'
SEGMENTER = CONFIGS / 'tiny_segmenter.py'
RELEASE = GOLDEN / 'tiny_release.pth'


def grad_cam(features, grads):
    """relu(sum_k mean(dy/dA_k) A_k), arXiv 1610.02391, eq. 1 and 2."""
    weights = grads.mean((1, 2), keepdim=True)
    cam = (weights * features).sum(0).clamp(min=0).detach().numpy()
    cam = cam - cam.min()
    return cam / (1e-7 + cam.max())


@pytest.mark.parametrize('stage', [1, 4])
def test_closed_formula(stage, build_tiny):
    model = build_tiny().eval()
    inputs = torch.randn(2, 3, 96, 128)
    labels = [3, 7]
    maps = class_activation_map(model, inputs, labels, stage)
    assert maps.shape == (2, 96, 128)

    model.backbone.out_indices = (stage - 1, 3)
    features, last = model.backbone(inputs)
    logits = model.head(model.neck((last,)))
    picked = logits[0, 3] + logits[1, 7]
    (grads,) = torch.autograd.grad(picked, features)
    for found, f, g in zip(maps, features, grads):
        expected = cv2.resize(grad_cam(f, g), (128, 96))
        expected -= expected.min()
        expected /= expected.max()
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    'build, arch, shown',
    [
        (VCMamba, 'b', [1, 2, 3, 4]),
        (VCMamba, dict(embed_dims=(8, 8), depths=(1, 1), num_mdm=1), [1, 2]),
        (PlainMamba, 'l1', [6, 12, 18, 24]),
        (PlainMamba, 'l3', [9, 18, 27, 36]),  # as their segmenters take
    ],
)
def test_columns_of_a_figure(build, arch, shown):
    with torch.device('meta'):
        assert shown_stages(build(arch)) == shown


def test_errors(build_tiny):
    model, inputs = build_tiny().eval(), torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match='stages 1 to 4, not 5'):
        class_activation_map(model, inputs, [0], 5)
    with pytest.raises(ValueError, match="got 'Cam'"):
        class_activation_map(model, inputs, [0], 4, 'Cam')


def test_tool(run_here, picture_file, tmp_path):
    out = tmp_path / 'new' / 'cam.png'

    def draw(*options, model=CONFIG):
        common = ['--model', model, '--checkpoint', RELEASE, '--out', out]
        common += ['--size', 96, *options]
        return run_here('analysis/grad_cam.py', picture_file, *common)

    assert 'for which stage 4 speaks most at row' in draw()
    width = Image.open(out).size[0]
    assert 'square.png: 7 ' in draw('--label', 7, '--stage', 2, 3)
    assert Image.open(out).size[0] < width
    assert 'from 0 to 9, got 10' in draw('--label', 10)
    assert 'does not fit' in draw(model=SEGMENTER)

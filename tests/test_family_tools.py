"""The tools that take any model of ours, by the path of its config."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import CONFIGS, ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from vcmamba_mm.analysis.class_activation import class_activation_map
from vcmamba_mm.checkpoints import to_released
from vcmamba_mm.demo.__main__ import main
from vcmamba_mm.inference import get_inferencer, get_model

pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')


class Family(NamedTuple):
    """Its tiny models, and what was recorded of the release's backbone.

    Attributes:
        name: In the names of configs.
        input: Of the recorded maps.
        outputs: Names of the recorded maps.
        norm: What the names of a map's recorded norm begin with.
        rounding: How far the recorded maps may be from ours.
        stage_name: As tools call it.
    """

    name: str
    input: str
    outputs: tuple[str, ...]
    norm: str = 'outnorm{}_'
    rounding: float = 1e-5
    stage_name: str = 'stage'

    @property
    def golden(self):
        return ROOT / 'tests/fixtures/golden' / self.name

    @property
    def release(self):
        return self.golden / 'tiny_release.pth'

    @property
    def classifier(self):
        return CONFIGS / f'tiny_{self.name}.py'

    @property
    def segmenter(self):
        return CONFIGS / f'tiny_{self.name}_upernet.py'


FAMILIES = (
    Family('vmamba', 'input_odd', tuple(f'odd_out{i}' for i in (1, 2, 3, 4))),
    Family('mambavision', 'input', tuple(f'out{i}' for i in (1, 2, 3, 4))),
    Family(
        'plainmamba',
        'input',
        tuple(f'out{i}' for i in (0, 1, 2, 3)),
        'seg.norm_layer{}.',
        1.6e-5,
        'layer',
    ),
)


@pytest.fixture(scope='module', params=FAMILIES, ids=lambda its: its.name)
def family(request):
    return request.param


@pytest.fixture(scope='module')
def io(family):
    arrays = np.load(family.golden / 'tiny_io.npz')
    return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope='module')
def segmenter_file(family, io, tmp_path_factory):
    init_default_scope('mmseg')
    cfg = Config.fromfile(family.segmenter).model
    checkpoint = family.golden / 'tiny_downstream.pth'
    if not checkpoint.exists():
        checkpoint = family.release
    cfg.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint))
    model = MODELS.build(cfg)
    model.init_weights()
    if checkpoint == family.release:  # recorded beside it
        for i, norm in model.backbone.out_norms.items():
            norm.weight.data = io[f'{family.norm.format(i)}weight']
            norm.bias.data = io[f'{family.norm.format(i)}bias']
    # class 7 everywhere
    torch.nn.init.zeros_(model.decode_head.conv_seg.weight)
    model.decode_head.conv_seg.bias.data[7] = 1
    path = tmp_path_factory.mktemp('segmenter') / 'iter_1.pth'
    torch.save(model.state_dict(), path)
    return path


@torch.no_grad()
def test_a_classifier_and_its_inferencer(family, io):
    model = get_model(family.classifier, family.release, 'cpu')
    logits = model(io['input'], mode='tensor')
    torch.testing.assert_close(logits, io['logits'], rtol=0, atol=1e-5)
    # of the size that the config's pipeline resizes to; BGR
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    mean = torch.tensor([123.675, 116.28, 103.53])
    std = torch.tensor([58.395, 57.12, 57.375])
    pixels = torch.from_numpy(picture[..., ::-1].copy())
    inputs = ((pixels - mean) / std).permute(2, 0, 1)[None]
    expected = model(inputs, mode='tensor')[0].softmax(0)
    (result,) = get_inferencer(family.classifier, family.release, 'cpu')(
        picture
    )
    scores = torch.from_numpy(result['pred_scores'])
    torch.testing.assert_close(scores, expected)


@torch.no_grad()
def test_a_segmenter_and_its_inferencer(family, io, segmenter_file):
    model = get_model(family.segmenter, segmenter_file, 'cpu')
    maps = model.backbone(io[family.input])
    for found, name in zip(maps, family.outputs, strict=True):
        torch.testing.assert_close(
            found, io[name], rtol=0, atol=family.rounding
        )
    picture = np.zeros((40, 50, 3), np.uint8)
    inferencer = get_inferencer(family.segmenter, segmenter_file, 'cpu')
    mask = inferencer(picture)['predictions']
    assert mask.shape == (40, 50) and (mask == 7).all()


def test_pictures_are_painted(
    family, picture_file, segmenter_file, tmp_path, capsys
):
    for config, checkpoint in (
        (family.classifier, family.release),
        (family.segmenter, segmenter_file),
    ):
        out = tmp_path / config.stem
        options = ['--model', config, '--checkpoint', checkpoint, '--out', out]
        assert main(['image', *map(str, [picture_file, *options])]) == 0
        assert '1 painted' in capsys.readouterr().out
        assert (out / picture_file.name).is_file()


@pytest.mark.parametrize(
    'name',
    [
        'vmamba_t_8xb128_in1k',
        'mambavision_t_32xb128_in1k',
        'plainmamba_l1_8xb256_in1k',
    ],
)
def test_by_name(name, picture_file, tmp_path, capsys):
    """From a file like the authors'."""
    model = get_model(name)
    torch.nn.init.zeros_(model.head.fc.weight)
    model.head.fc.bias.data[7] = 1
    checkpoint = tmp_path / 'released.pth.tar'
    torch.save(dict(model=to_released(model.state_dict())), checkpoint)
    loaded = get_model(name, checkpoint, 'cpu').state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(loaded[key], value), key
    picture = np.zeros((40, 50, 3), np.uint8)
    (result,) = get_inferencer(name, checkpoint, 'cpu')(picture)
    assert result['pred_label'] == 7
    options = ['--model', name, '--checkpoint', checkpoint, '--out', tmp_path]
    assert main(['image', *map(str, [picture_file, *options])]) == 0
    assert '1 painted' in capsys.readouterr().out


def test_grad_cam(family, run_here, picture_file, tmp_path):
    pytest.importorskip('pytorch_grad_cam')
    out = tmp_path / 'cam.png'
    tool = ['analysis/grad_cam.py', picture_file, '--out', out]
    model = ['--model', family.classifier, '--checkpoint', family.release]
    log = run_here(*tool, *model, '--size', 64)
    assert f'{family.stage_name} 4 speaks most' in log
    assert Image.open(out).size[0] > 1500
    model = get_model(family.classifier, family.release, 'cpu')
    inputs = torch.randn(1, 3, 96, 64)
    # By the formula of arXiv 1610.02391, on the map as it is.
    model.backbone.out_indices = (2, 3)
    features, last = model.backbone(inputs)
    logit = model.head(model.neck((last,)))[0, 3]
    (grads,) = torch.autograd.grad(logit, features)
    weights = grads.mean((2, 3), keepdim=True)
    expected = (weights * features).sum((0, 1)).clamp(min=0).detach()
    model.backbone.out_indices = (3,)
    (cam,) = class_activation_map(model, inputs, [3], 3)
    assert cam.shape == (96, 64)
    # The middle of a cell of 16 x 16 pixels, between two of its pixels.
    middles = torch.from_numpy(cam)[7::16, 7::16]
    largest = expected.argmax()
    assert expected.max() > 0 and middles.argmax() == largest


def test_receptive_field(family, run_here, picture_file, tmp_path):
    out = tmp_path / 'erf.png'
    tool = [
        'analysis/receptive_field.py',
        family.classifier,
        family.release,
        '--size',
        64,
    ]
    folder = ['--pictures', picture_file.parent, '--out', out]
    log = run_here(*tool, *folder)
    assert f'of the gradient of {family.stage_name} 4 lies within' in log
    assert 'px before training and of' in log and 'after training' in log
    assert Image.open(out).size[0] > 1500


def test_confusion_matrix(family, run_here, pictures, tmp_path):
    out = tmp_path / 'matrix.png'
    data = f'test_dataloader.dataset.data_root={pictures}'
    tool = [
        'analysis/mmpretrain_tools.py',
        'confusion-matrix',
        family.classifier,
    ]
    log = run_here(*tool, family.release, '--out', out, '--cfg-options', data)
    assert 'of 20 images are classified right' in log and out.is_file()


def test_parts(family, run_here):
    log = run_here('get_flops.py', family.segmenter, '--shape', 64)
    stages = [f'{family.stage_name} {i}' for i in (1, 2, 3, 4)]
    last = ['norms', 'head', 'total', 'scan', "authors'"]
    titles = [line[:9].strip() for line in log.splitlines()]
    assert titles == ['', 'stem', *stages, *last]


def test_time_against_size(family, run_here, tmp_path):
    out = tmp_path / 'times'
    options = ['--size', 32, 64, '--batch-size', 1, '--quick', '--out', out]
    log = run_here('benchmark.py', family.classifier, *options)
    assert '32 x 32' in log and '64 x 64' in log
    assert out.with_suffix('.png').is_file()

"""Inference reads a picture as the test does."""

import shutil

import numpy as np
import pytest
import torch
from conftest import CONFIGS, smallest_classifier_cfg
from mmengine.config import Config
from mmengine.dataset import Compose, ConcatDataset, pseudo_collate
from mmengine.registry import init_default_scope
from PIL import Image

from vcmamba_mm.analysis.pictures import load_picture, model_inputs
from vcmamba_mm.data.pictures import build_reading, viewable
from vcmamba_mm.demo.image import paint_pictures
from vcmamba_mm.inference import get_inferencer, get_model
from vcmamba_mm.models import VCMamba

pytest.importorskip('mmpretrain')
pytest.importorskip('mmseg')
import vcmamba_mm.classification  # noqa: F401

SIZE = 64
SCALING = {n: dict(mean=n * [100.0], std=n * [50.0]) for n in (1, 3, 4)}


def test_what_can_be_shown():
    bgr = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert np.array_equal(viewable(bgr), bgr[..., ::-1])
    bgra = np.concatenate([bgr, bgr[..., :1]], 2)
    assert np.array_equal(viewable(bgra), bgr[..., ::-1])
    for grey in (bgr[..., 0], bgr[..., :1].astype(np.float32)):
        shown = viewable(grey)
        assert shown.dtype == np.uint8
        assert np.array_equal(shown, np.stack([bgr[..., 0]] * 3, 2))
    twelve_bits = np.array([[0, 4095]], np.uint16)
    assert viewable(twelve_bits)[0, :, 0].tolist() == [0, 255]


def classifier(channels, reading):
    model = smallest_classifier_cfg()
    model.pop('train_cfg', None)
    model['backbone']['in_channels'] = channels
    model['data_preprocessor'] = SCALING[channels]
    pipeline = [reading, dict(type='PackInputs')]
    dataset = dict(type='CustomDataset', pipeline=pipeline, with_label=False)
    return Config(
        dict(
            default_scope='mmpretrain',
            model=model,
            test_dataloader=dict(dataset=dataset),
        )
    )


def segmenter(channels, reading):
    cfg = Config.fromfile(CONFIGS / 'tiny_segmenter.py')
    cfg.model.backbone.in_channels = channels
    # MMEngine's preprocessor takes one value or three.
    scaling = SCALING[3 if channels == 3 else 1]
    cfg.model.data_preprocessor.update(scaling, bgr_to_rgb=False)
    masks = dict(type='LoadAnnotations', reduce_zero_label=True)
    cfg.test_dataloader.dataset = dict(
        type='ADE20KDataset',
        pipeline=[reading, masks, dict(type='PackSegInputs')],
    )
    return cfg


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (SIZE, SIZE, 4), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # Orientation: a quarter
    (folder / 'jpeg').mkdir()
    (folder / 'png').mkdir()
    rgb = Image.fromarray(pixels[..., :3])
    rgb.save(folder / 'jpeg' / 'x.jpg', exif=turned)
    Image.fromarray(pixels).save(folder / 'png' / 'x.png')
    return folder


@pytest.fixture
def seen(monkeypatch):
    """What reaches the backbone."""
    forward, seen = VCMamba.forward, []

    def noting(self, x):
        seen.append(x)
        return forward(self, x)

    monkeypatch.setattr(VCMamba, 'forward', noting)
    return seen


@pytest.mark.parametrize('build', [classifier, segmenter])
@pytest.mark.parametrize(
    'channels, kind, reading',
    [
        (3, 'jpeg', dict(color_type='color_ignore_orientation')),
        (3, 'jpeg', dict(imdecode_backend='pillow', to_float32=True)),
        (1, 'jpeg', dict(color_type='grayscale')),
        (4, 'png', dict(color_type='unchanged')),
    ],
    ids=['not_turned', 'pillow', 'grey', 'four'],
)
def test_the_model_sees_what_it_is_tested_on(
    build, channels, kind, reading, folder, seen, tmp_path
):
    reading = dict(type='LoadImageFromFile', **reading)
    cfg = build(channels, reading)
    (path,) = (folder / kind).iterdir()
    model = get_model(cfg, device='cpu')
    weights = tmp_path / 'weights.pth'
    torch.save(model.state_dict(), weights)

    # As MMEngine's data sets and test loop do, but for the masks.
    init_default_scope(cfg.default_scope)
    steps = cfg.test_dataloader.dataset.pipeline
    pipeline = Compose([s for s in steps if s.type != 'LoadAnnotations'])
    with torch.no_grad():
        model.test_step(pseudo_collate([pipeline(dict(img_path=str(path)))]))
    (expected,) = seen
    assert expected.shape == (1, channels, SIZE, SIZE)

    inferencer = get_inferencer(cfg, weights, 'cpu')
    inferencer(str(path))
    inferencer(build_reading(cfg)(dict(img_path=str(path)))['img'])
    paint_pictures([path], cfg, weights, tmp_path / 'out', 'cpu')
    assert len(seen) == 4
    for other in seen[1:]:
        assert torch.equal(other, expected)
    picture = load_picture(path, SIZE, build_reading(cfg))
    assert torch.equal(model_inputs(model, [picture]), expected)
    # A grey or transparent picture shown in colours, not turned otherwise.
    with Image.open(tmp_path / 'out' / path.name) as painted:
        assert painted.mode in ('RGB', 'L')


def test_a_config_that_does_not_say_how():
    cfg = Config(dict(default_scope='mmpretrain'), filename=None)
    with pytest.raises(ValueError, match='the config has no test_dataloader'):
        build_reading(cfg)


@pytest.mark.parametrize(
    'loader, missing',
    [
        (None, 'test_dataloader'),
        (dict(dataset=dict(type='CustomDataset')), 'pipeline'),
        (dict(dataset=dict(type='CustomDataset', pipeline=[])), 'pipeline'),
    ],
)
def test_a_model_needs_no_pictures(loader, missing):
    """But an inferencer needs what says how they are read."""
    cfg = classifier(3, dict(type='LoadImageFromFile'))
    cfg.test_dataloader = loader
    assert get_model(cfg, device='cpu').head.num_classes == 3
    with pytest.raises(ValueError, match=f'has no {missing}'):
        get_inferencer(cfg, device='cpu')


def test_configs_in_other_forms(picture_file):
    """Data sets that wrap others, classes in place of names."""
    from mmcv.transforms import LoadImageFromFile
    from mmpretrain.datasets import CustomDataset, PackInputs

    pipeline = [
        dict(type='SeedSample'),
        dict(type=LoadImageFromFile, color_type='grayscale'),
        dict(type=PackInputs),
    ]
    part = dict(type=CustomDataset, pipeline=pipeline)
    part = dict(type='RepeatDataset', dataset=part)
    cfg = classifier(1, dict(type='LoadImageFromFile'))
    parts = [dict(type='ConcatDataset', datasets=[part])]
    cfg.test_dataloader.dataset = dict(type=ConcatDataset, datasets=parts)
    image = build_reading(cfg)(dict(img_path=str(picture_file)))['img']
    assert image.shape == (90, 120)
    result = get_inferencer(cfg, device='cpu')(str(picture_file))
    assert result[0]['pred_scores'].shape == (3,)


def test_paintings_of_the_same_name(picture_file, tmp_path):
    inferencer = get_inferencer(
        classifier(3, dict(type='LoadImageFromFile')), device='cpu'
    )
    with pytest.raises(FileExistsError, match='square.png: give each call'):
        inferencer([str(picture_file)] * 2, show_dir=tmp_path)
    # The last ending is cut off twice; an array has its place as its name.
    for *names, painted in (
        ('photo.1.png', 'photo.2.png', 'photo.png'),
        (None, '0.png', '0.png'),
    ):
        inputs = [np.zeros((64, 64, 3), np.uint8)] * len(names)
        for i, name in enumerate(names):
            if name:
                shutil.copy(picture_file, tmp_path / name)
                inputs[i] = str(tmp_path / name)
        out = tmp_path / 'painted'
        with pytest.raises(FileExistsError, match=f'painted/{painted}: give'):
            inferencer(inputs, show_dir=out)
        assert not out.exists()
    inferencer = get_inferencer(
        segmenter(3, dict(type='LoadImageFromFile')), device='cpu'
    )
    inferencer([str(picture_file)] * 2, out_dir=str(tmp_path))
    assert len(list((tmp_path / 'vis').iterdir())) == 2


# ----------------------------------------------------- several labels, or none


def several_labels(scores):
    cfg = classifier(3, dict(type='LoadImageFromFile'))
    cfg.model.head = dict(
        type='MultiLabelLinearClsHead', num_classes=4, in_channels=8
    )
    cfg.test_dataloader.dataset.metainfo = dict(classes=['a', 'b', 'c', 'd'])
    model = get_model(cfg, device='cpu')
    torch.nn.init.zeros_(model.head.fc.weight)
    model.head.fc.bias.data = torch.tensor(scores).logit()
    return cfg, model.state_dict()


@pytest.mark.parametrize(
    'scores, labels, text',
    [
        ([0.2, 0.7, 0.9, 0.4], [2, 1], 'c 90%, b 70%'),
        ([0.2, 0.3, 0.1, 0.4], [], 'none of the classes'),
    ],
)
def test_several_labels(scores, labels, text, picture_file, tmp_path):
    """mmpretrain's inferencer would name one, however small its score."""
    cfg, state_dict = several_labels(scores)
    torch.save(state_dict, tmp_path / 'weights.pth')
    inferencer = get_inferencer(cfg, tmp_path / 'weights.pth', 'cpu')
    (result,) = inferencer(str(picture_file))
    np.testing.assert_allclose(result['pred_scores'], scores, atol=1e-6)
    assert result['pred_label'] == labels
    assert result['pred_class'] == ['abcd'[label] for label in labels]
    assert result['pred_score'] == pytest.approx([scores[i] for i in labels])
    seen, _ = paint_pictures(
        [picture_file], cfg, tmp_path / 'weights.pth', tmp_path / 'out', 'cpu'
    )
    assert seen == {picture_file: text}

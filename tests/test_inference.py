"""Names, models and inferencers, in processes of either default scope."""

import re

import numpy as np
import pytest
import torch
from conftest import CONFIGS, GOLDEN, ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

from vcmamba_mm.checkpoints import CheckpointError
from vcmamba_mm.inference import get_inferencer, get_model
from vcmamba_mm.model_zoo import (
    image_size,
    index_root,
    list_models,
    load_config,
)

mmpretrain = pytest.importorskip('mmpretrain')
mmseg_apis = pytest.importorskip('mmseg.apis')
import vcmamba_mm.classification  # noqa: E402, F401

CLASSIFIER = CONFIGS / 'tiny_classifier.py'
SEGMENTER = CONFIGS / 'tiny_segmenter.py'
RELEASE = GOLDEN / 'tiny_release.pth'


@pytest.fixture(scope='module')
def picture():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def segmenter_file(tmp_path_factory):
    """A segmenter's checkpoint, laid out as MMEngine saves it."""
    init_default_scope('mmseg')
    model = MODELS.build(Config.fromfile(SEGMENTER).model)
    meta = dict(
        classes=[f'class {i}' for i in range(150)],
        palette=[[i, i, i] for i in range(150)],
    )
    content = dict(state_dict=model.state_dict(), meta=dict(dataset_meta=meta))
    path = tmp_path_factory.mktemp('segmenter') / 'iter_1.pth'
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    'path',
    [
        *(ROOT / 'configs/camvid').glob('*.py'),
        *(ROOT / 'configs').glob('*/*_demo_*.py'),
    ],
    ids=lambda path: path.stem,
)
def test_small_configs_can_be_used(path, picture, tmp_path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    state_dict = MODELS.build(cfg.model).state_dict()
    torch.save(dict(state_dict=state_dict, meta={}), tmp_path / 'it.pth')
    result = get_inferencer(path, tmp_path / 'it.pth', 'cpu')(picture)
    if cfg.default_scope == 'mmseg':
        assert result['predictions'].shape == picture.shape[:2]
    else:
        assert len(result[0]['pred_scores']) == cfg.model.head.num_classes


def as_tested(picture):
    """Resized to 256, cropped to 224 and normalized by hand, (1, 3, 224, 224).

    ``picture`` is BGR, as mmcv reads it.
    """
    height, width = picture.shape[:2]
    size = (int(256 * width / height), 256)
    image = Image.fromarray(picture[..., ::-1]).resize(size, Image.BICUBIC)
    left, top = (round((n - 224) / 2) for n in size)
    pixels = torch.tensor(np.array(image)[top : top + 224, left : left + 224])
    mean = torch.tensor([123.675, 116.28, 103.53])
    std = torch.tensor([58.395, 57.12, 57.375])
    return ((pixels - mean) / std).permute(2, 0, 1)[None]


def classify(picture, _):
    # mmpretrain's own way to the config, the weights safely
    inferencer = mmpretrain.ImageClassificationInferencer(
        str(CLASSIFIER), pretrained=False, device='cpu'
    )
    assert inferencer(picture)[0]['pred_scores'].shape == (10,)
    inferencer = get_inferencer(CLASSIFIER, RELEASE, 'cpu')
    return torch.tensor(inferencer(picture)[0]['pred_scores'])


def segment(picture, segmenter_file):
    # mmseg's own way to the config and the weights
    inferencer = mmseg_apis.MMSegInferencer(
        str(SEGMENTER), str(segmenter_file), device='cpu'
    )
    theirs = inferencer(picture)['predictions']
    inferencer = get_inferencer(SEGMENTER, segmenter_file, 'cpu')
    ours = inferencer(picture)['predictions']
    assert ours.shape == (70, 90)
    assert (ours == theirs).all()
    return torch.from_numpy(ours)


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmseg'])
@pytest.mark.parametrize(
    'order', [(classify, segment, classify), (segment, classify, segment)]
)
def test_both_inferencers_in_one_process(
    order, scope, picture, segmenter_file, build_tiny
):
    with torch.no_grad():
        expected = build_tiny().eval()(as_tested(picture), mode='predict')[0]
    model = get_model(SEGMENTER, segmenter_file, 'cpu')
    mask = mmseg_apis.inference_model(model, picture).pred_sem_seg.data[0]
    init_default_scope(scope)
    for use in order:
        result = use(picture, segmenter_file)
        if use is classify:
            torch.testing.assert_close(result, expected.pred_score)
        else:
            assert torch.equal(result, mask)


def test_classes_of_data_and_checkpoint(segmenter_file):
    model = get_model(SEGMENTER, segmenter_file, 'cpu')
    assert model.dataset_meta['classes'][149] == 'class 149'
    assert model.dataset_meta['palette'][149] == [149, 149, 149]
    assert not model.training
    model = get_model(SEGMENTER, device='cpu')
    assert model.dataset_meta['classes'][:2] == ('wall', 'building')
    # the released files name no classes: those of the config
    inferencer = get_inferencer(CLASSIFIER, RELEASE, 'cpu')
    assert inferencer.classes == [str(i) for i in range(10)]
    name = 'vcmamba_s_distill_8xb128_in1k'
    assert len(get_inferencer(name).classes) == 1000


@pytest.fixture(scope='module')
def named():
    """All configs that have a name, by it."""
    return {name: load_config(name) for name in list_models()}


def test_names(named):
    names = list_models()
    assert mmpretrain.list_models('*mamba') == sorted(
        name for name in names if name.endswith('_in1k')
    )
    listed = mmpretrain.ImageClassificationInferencer.list_models('vcmamba_b')
    assert listed == list_models('vcmamba_b*_in1k')
    for name in names:
        (path,) = (index_root() / 'configs').rglob(f'{name}.py')
        assert named[name].filename == str(path)
    model = mmpretrain.get_model('vcmamba_s_8xb128_in1k')
    assert sum(p.numel() for p in model.parameters()) == 10_189_720
    model = mmpretrain.get_model('vmamba_t_8xb128_in1k')
    assert sum(p.numel() for p in model.parameters()) == 30_249_064
    model = get_model('vcmamba_s_fpn_8xb4_40k_ade20k_512x512', device='cpu')
    assert sum(p.numel() for p in model.parameters()) == 14_039_814


def test_sizes_are_those_of_the_names(named):
    """224 where there is none in the name."""
    for name, cfg in named.items():
        found = re.search(r'_(\d{3})(x\1|_in21k)', name)
        size = int(found[1]) if found else 224
        assert image_size(cfg) == (size, size), name


def test_names_by_family_and_task(named):
    scopes = dict(
        classification='mmpretrain', segmentation='mmseg', detection='mmdet'
    )
    found = []
    for family in ('VCMamba', 'VMamba', 'MambaVision', 'PlainMamba'):
        for task, scope in scopes.items():
            names = list_models(family=family.lower(), task=task)
            for name in names:
                assert named[name].model.backbone.type.startswith(family)
                assert named[name].default_scope == scope
            found += names
    assert sorted(found) == list_models()
    assert list_models('*_t_*', family='VMamba', task='segmentation') == [
        'vmamba_t_upernet_8xb2_160k_ade20k_512x512'
    ]
    with pytest.raises(
        ValueError,
        match="family 'swin': choose one of mambavision, plainmamba, "
        'vcmamba, vmamba',
    ):
        list_models(family='swin')
    with pytest.raises(
        ValueError, match="task 'depth': choose one of classification, det"
    ):
        list_models(task='depth')


def test_inference_model_of_mmpretrain(picture):
    result = mmpretrain.inference_model(
        'vcmamba_s_8xb128_in1k', picture, pretrained=False, device='cpu'
    )
    assert result['pred_scores'].sum() == pytest.approx(1, abs=1e-5)


def test_errors(segmenter_file):
    with pytest.raises(FileNotFoundError, match='vcmamba_b_8xb128_in1k'):
        get_model('vcmamba_x')
    with pytest.raises(CheckpointError, match='does not fit'):
        get_model(SEGMENTER, RELEASE, 'cpu')
    with pytest.raises(CheckpointError, match='missing: head.fc.bias'):
        get_inferencer(CLASSIFIER, segmenter_file, 'cpu')
    with pytest.raises(ValueError, match="'mmdet'"):
        get_model(Config(dict(default_scope='mmdet')))

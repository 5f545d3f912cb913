import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

CONFIGS = sorted(
    path.relative_to(ROOT)
    for path in (ROOT / 'configs').rglob('*.py')
    if '_base_' not in path.parts
)
# Parameters of classifiers, as counted on the releases.
PARAMETERS = dict(
    vcmamba_s=10_189_720,
    vcmamba_m=20_623_176,
    vcmamba_b=30_937_832,
    vcmamba_s_distill=10_478_720,
    vcmamba_m_distill=21_072_176,
    vcmamba_b_distill=31_450_832,
    vcmamba_b_deviceaug=30_937_832,
    vmamba_t=30_249_064,
    vmamba_s=50_147_752,
    vmamba_b=88_557_800,
    vmamba_t_s2l5=30_705_832,
    vmamba_s_s1l20=49_012_840,
    vmamba_b_s1l20=86_614_504,
    mambavision_t=31_794_248,
    mambavision_t2=35_104_008,
    mambavision_s=50_140_584,
    mambavision_b=97_685_288,
    mambavision_l=227_961_048,
    mambavision_l2=241_554_824,
    mambavision_l2_512=241_554_824,
    mambavision_l3_256=739_570_472,
    mambavision_l3_512=739_570_472,
    plainmamba_l1=7_551_656,
    plainmamba_l2=26_145_832,
    plainmamba_l3=50_956_456,
)

SETTING = re.compile(r'(_\d+xb\d+|_in21k-pre)+_in1k$')


def load(path):
    cfg = Config.fromfile(ROOT / path)
    pytest.importorskip(cfg.default_scope)
    init_default_scope(cfg.default_scope)
    return cfg


@cache
def parameters_and_logits(path):
    """How many parameters, and the logits' shape, without memory for them."""
    model = load(path).model
    with torch.device('meta'), torch.no_grad():
        model = MODELS.build(model).eval()
        logits = model(torch.empty(1, 3, 64, 64), mode='tensor')
    return sum(p.numel() for p in model.parameters()), logits.shape


def test_all_variants_are_there():
    names = {path.stem for path in CONFIGS}
    for arch in 'smb':
        assert {
            f'vcmamba_{arch}_8xb128_in1k',
            f'vcmamba_{arch}_distill_8xb128_in1k',
            f'vcmamba_{arch}_fpn_8xb4_40k_ade20k_512x512',
        } <= names


@pytest.mark.parametrize(
    'path',
    # test_ablation.py and test_detection.py have the others
    [
        path
        for path in CONFIGS
        if path.parent.name != 'ablation' and not path.stem.endswith('_coco')
    ],
    ids=lambda path: path.stem,
)
def test_builds_and_computes(path):
    cfg = load(path)
    parameters, shape = parameters_and_logits(path)
    if path.stem.endswith('_in1k'):
        assert parameters == PARAMETERS[SETTING.sub('', path.stem)]
    head = cfg.model.get('head') or cfg.model.decode_head
    assert shape[:2] == (1, head.num_classes)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_leaves_are_short(path):
    if path.parent.name not in ('ablation', 'camvid', 'demo'):
        assert len((ROOT / path).read_text().splitlines()) < 25


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_seeds_are_given_and_taken(path):
    loader = load(path).train_dataloader
    given = loader.sampler.type == 'SeededSampler'
    taken = loader.dataset.pipeline[0].type == 'SeedSample'
    assert given == taken


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_pipelines_build(path):
    cfg = load(path)
    transforms = import_module(f'{cfg.default_scope}.registry').TRANSFORMS
    loaders = [cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader]
    pipelines = [loader.dataset.pipeline for loader in loaders]
    for pipeline in [*pipelines, cfg.get('tta_pipeline', [])]:
        for transform in pipeline:
            assert transforms.build(transform) is not None
    assert all(
        not loader.dataset.data_root.startswith('/') for loader in loaders
    )


@pytest.mark.parametrize(
    'name', ['vcmamba_b_8xb128_in1k', 'vcmamba_b_distill_8xb128_in1k']
)
def test_classification_recipe(name):
    """The values of the release."""
    cfg = load(f'configs/{name}.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer == dict(
        type='AdamW', lr=2e-3, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)
    )
    assert 'clip_grad' not in cfg.optim_wrapper
    assert cfg.optim_wrapper.get('type', 'OptimWrapper') == 'OptimWrapper'
    warmup, cosine = cfg.param_scheduler
    assert optimizer.lr * warmup.start_factor == pytest.approx(1e-6)
    assert (warmup.end, cosine.begin, cosine.end) == (5, 5, 300)
    assert cosine.eta_min == 1e-5
    assert cfg.train_cfg.max_epochs == 300
    assert cfg.train_dataloader.batch_size * 8 == 1024
    assert cfg.auto_scale_lr.base_batch_size == 1024
    assert cfg.train_dataloader.sampler.sampler.type == 'RepeatAugSampler'
    assert [a.alpha for a in cfg.model.train_cfg.augments] == [0.8, 1.0]
    assert cfg.model.head.loss.label_smooth_val == 0.1
    assert cfg.model.backbone.drop_path_rate == 0.2
    assert cfg.model.backbone.norm_cfg.type == 'SyncBN'
    (ema,) = cfg.custom_hooks
    assert ema.momentum == pytest.approx(1 - 0.99996)
    assert ema.type == 'RawAndEMAHook' and ema.update_buffers
    steps = {t.type: t for t in cfg.train_dataloader.dataset.pipeline}
    assert steps['FastRandomErasing'].erase_prob == 0.25
    assert steps['FastRandAugment'].magnitude_level == 9
    steps = {t.type: t for t in cfg.test_dataloader.dataset.pipeline}
    assert steps['mmpretrain.ResizeEdge'].scale == 256
    assert steps['mmpretrain.CenterCrop'].crop_size == 224
    if 'distill' in name:
        timm = pytest.importorskip('timm')
        name = cfg.model.teacher.model_name
        assert timm.get_pretrained_cfg(name).tag == 'deit_in1k'
        assert name.startswith('regnety_160.')
        assert (cfg.model.distillation, cfg.model.alpha, cfg.model.tau) == (
            'soft',
            0.5,
            1.0,
        )


def test_segmentation_recipe():
    cfg = load('configs/vcmamba_b_fpn_8xb4_40k_ade20k_512x512.py')
    assert cfg.optim_wrapper.optimizer == dict(
        type='AdamW', lr=2e-4, weight_decay=1e-4
    )
    assert 'paramwise_cfg' not in cfg.optim_wrapper
    (schedule,) = cfg.param_scheduler
    assert (schedule.power, schedule.eta_min, schedule.end) == (0.9, 0, 40000)
    assert cfg.train_cfg.max_iters == 40000
    assert cfg.train_dataloader.batch_size == 4
    assert cfg.model.neck.in_channels == [64, 128, 320, 512]
    assert 'norm_cfg' not in cfg.model.neck
    assert cfg.model.decode_head.num_classes == 150
    assert cfg.model.test_cfg.stride == (341, 341)


def test_model_index_names_configs_that_exist():
    """Detectors are built where mmdet is: tests/configs/test_detection.py."""
    load_index = pytest.importorskip('modelindex.load_model_index').load
    index = load_index(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert {model.name for model in index.models} == {
        path.stem
        for path in CONFIGS
        if path.stem.endswith(('_in1k', '_512x512', '_640x640', '_coco'))
        and path.parent.name != 'ablation'
        and 'deviceaug' not in path.stem
    }
    for model in index.models:
        if not model.name.endswith('_coco'):
            found, _ = parameters_and_logits(Path(model.config))
            assert found == model.metadata.parameters

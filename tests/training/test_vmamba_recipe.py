"""VMamba's recipes against the authors', by the names they gave.

What decays is told by released names and shapes.
"""

import numpy as np
import pytest
from conftest import ROOT
from mmengine.config import Config
from recipe_configs import by_released_name, learning_rates, load

CLASSIFIERS = [
    f'vmamba/vmamba_{arch}_8xb128_in1k'
    for arch in ('t', 's', 'b', 't_s2l5', 's_s1l20', 'b_s1l20')
]
SEGMENTERS = [
    f'vmamba/vmamba_{arch}_upernet_8xb2_160k_ade20k_512x512' for arch in 'tsb'
]
DETECTORS = [
    f'vmamba/vmamba_{name}_coco'
    for name in (
        *(f'{arch}_mask-rcnn_fpn_8xb2_1x' for arch in 'tsb'),
        *(f'{arch}_mask-rcnn_fpn_8xb2_3x' for arch in 'ts'),
    )
]
DROP_PATH = dict(t=0.2, s=0.3, b=0.6, t_s2l5=0.2, s_s1l20=0.3, b_s1l20=0.5)


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_what_decays_in_classifiers(name):
    """All but one-dimensional parameters and names that end in .bias."""
    found = by_released_name(name)
    for key, (decay, ndim) in found.items():
        skipped = ndim == 1 or key.endswith('.bias')
        assert decay == pytest.approx(0 if skipped else 0.05), key
    op = 'layers.2.blocks.1.op.'
    for its in ('A_logs', 'x_proj_weight', 'dt_projs_weight', 'dt_projs_bias'):
        assert found[op + its][0] > 0
    assert found[op + 'Ds'][0] == 0


@pytest.mark.parametrize('name', SEGMENTERS + DETECTORS)
def test_what_decays_downstream(name):
    """All but what has norm in its name."""
    if name in DETECTORS:
        pytest.importorskip('mmdet')
        pytest.importorskip('mmcv.ops')
    found = by_released_name(name)
    rate = 0.05 if name in DETECTORS else 0.01
    for key, (decay, _) in found.items():
        assert decay == pytest.approx(0 if 'norm' in key else rate), key
    without = {key for key, (decay, _) in found.items() if decay == 0}
    # norms of 2 + 2 + 8 + 2 blocks or 2 + 2 + 15 + 2, and of the outputs
    blocks = 14 if '_t_' in name else 21
    assert len(without) == 2 * (3 * blocks + 4)
    assert {f'backbone.outnorm{i}.weight' for i in range(4)} <= without
    for key in ('patch_embed.2.weight', 'layers.0.downsample.3.weight'):
        assert f'backbone.{key}' not in without


def test_learning_rate_of_classifiers(tmp_path):
    """The formula of the sheet, at another length of an epoch."""
    length, start, peak, end = 50, 1e-6, 1e-3, 1e-5
    rates, found = learning_rates(
        CLASSIFIERS[0], tmp_path, length * 32 + 31, 32
    )
    assert found == length  # the incomplete batch is dropped
    i = np.arange(300 * length)
    warm_up = 20 * length
    linear = start + (peak - start) * i / warm_up
    cosine = end + (peak - end) / 2 * (
        1 + np.cos(np.pi * (i - warm_up) / (300 * length - warm_up))
    )
    expected = np.where(i < warm_up, linear, cosine)
    # At most a step of the warm-up apart
    assert np.abs(rates - expected).max() <= 1.01 * peak / warm_up
    assert rates[0] == pytest.approx(start)
    assert rates[-1] == pytest.approx(end, rel=1e-3)


def test_learning_rate_of_segmenters(tmp_path):
    """Linear over 1500 iterations, then linear to 0 at 160 000."""
    rates, _ = learning_rates(SEGMENTERS[0], tmp_path, 20210, 16)
    i = np.arange(160000)
    up = 6e-5 * (1e-6 + (1 - 1e-6) * i / 1500)
    down = 6e-5 * (160000 - i) / (160000 - 1500)
    expected = np.where(i < 1500, up, down)
    assert np.abs(rates - expected).max() <= 1.01 * 6e-5 / 1500


@pytest.mark.parametrize(
    'name, epochs, drops', [('1x', 12, (8, 11)), ('3x', 36, (27, 33))]
)
def test_learning_rate_of_detectors(name, epochs, drops):
    file = f'configs/vmamba/vmamba_t_mask-rcnn_fpn_8xb2_{name}_coco.py'
    cfg = Config.fromfile(ROOT / file)
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.type, warm_up.start_factor) == ('LinearLR', 1e-3)
    assert (warm_up.by_epoch, warm_up.end) == (False, 1000)
    assert (steps.type, steps.gamma, steps.by_epoch) == (
        'MultiStepLR',
        0.1,
        True,
    )
    assert tuple(steps.milestones) == drops
    assert steps.end == cfg.train_cfg.max_epochs == epochs
    assert cfg.optim_wrapper.optimizer.lr == 1e-4
    assert cfg.optim_wrapper.optimizer.weight_decay == 0.05
    assert 'clip_grad' not in cfg.optim_wrapper


def check_data_of_segmenters(cfg):
    """Tests see pictures that are not padded, sized after the original."""
    _, _, resize, crop, *_ = cfg.train_dataloader.dataset.pipeline
    assert (resize.scale, resize.ratio_range) == ((2048, 512), (0.5, 2.0))
    assert (crop.crop_size, crop.cat_max_ratio) == ((512, 512), 0.75)
    _, resize, *others = cfg.test_dataloader.dataset.pipeline
    assert resize.scale == (2048, 512) and resize.keep_ratio
    assert [step.type for step in others] == [
        'LoadAnnotations',
        'PackSegInputs',
    ]
    sizes, flips, *_ = cfg.tta_pipeline[1].transforms
    assert [resize.scale_factor for resize in sizes] == [
        *(0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    ]
    assert all(resize.keep_ratio for resize in sizes) and len(flips) == 2
    head, auxiliary = cfg.model.decode_head, cfg.model.auxiliary_head
    assert head.type == 'UPerHead' and head.channels == 512
    assert auxiliary.in_channels == head.in_channels[2]
    assert auxiliary.loss_decode.loss_weight == 0.4


@pytest.mark.parametrize('name', DETECTORS)
def test_data_of_detectors(name):
    """Pictures of 3x: many sizes, half of them of crops."""
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    backbone = cfg.model.backbone
    assert backbone.drop_path_rate == DROP_PATH[backbone.arch]
    wide = backbone.arch == 'b'
    channels = [(128 if wide else 96) * 2**i for i in range(4)]
    assert cfg.model.neck.in_channels == channels
    assert cfg.train_dataloader.batch_size == 2
    steps = cfg.train_dataloader.dataset.pipeline[3:-1]
    if '1x' in name:
        resize, flip = steps
        assert resize.scale == (1333, 800) and flip.prob == 0.5
        return
    flip, choice = steps
    assert flip.prob == 0.5
    (plain,), (small, crop, again) = choice.transforms
    assert plain == again and plain.keep_ratio
    assert plain.scales == [
        (short, 1333)
        for short in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    ]
    assert small.scales == [(400, 1333), (500, 1333), (600, 1333)]
    assert crop.crop_type == 'absolute_range'
    assert crop.crop_size == (384, 600) and crop.allow_negative_crop


@pytest.mark.parametrize('name', CLASSIFIERS + SEGMENTERS)
def test_what_configs_say(name):
    cfg = load(name)
    wrapper, optimizer = cfg.optim_wrapper, cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.betas) == ('AdamW', (0.9, 0.999))
    arch = cfg.model.backbone.arch
    assert cfg.model.backbone.drop_path_rate == DROP_PATH[arch]
    images = cfg.train_dataloader.batch_size
    if name in SEGMENTERS:
        assert (wrapper.type, images) == ('OptimWrapper', 2)
        assert 'clip_grad' not in wrapper
        assert cfg.default_hooks.checkpoint.interval == 16000
        check_data_of_segmenters(cfg)
        return
    assert (wrapper.type, wrapper.dtype) == ('AmpOptimWrapper', 'float16')
    assert (wrapper.clip_grad, images) == (dict(max_norm=5.0), 128)
    (average,) = cfg.custom_hooks
    assert average.momentum == pytest.approx(1 - 0.9999)
    # the authors' files are the average
    assert cfg.default_hooks.checkpoint.save_best == 'accuracy/top1_ema'
    loader = cfg.train_dataloader
    assert loader.drop_last
    assert loader.sampler.sampler == dict(type='DefaultSampler', shuffle=True)
    # else as VCMamba's, whose augmentation has tests of its own
    other = load('vcmamba_b_8xb128_in1k')
    assert loader.dataset == other.train_dataloader.dataset
    assert cfg.test_dataloader == other.test_dataloader
    assert cfg.model.train_cfg == other.model.train_cfg
    assert cfg.model.head.loss == other.model.head.loss

"""MambaVision's recipes against the authors', by the names they gave."""

import numpy as np
import pytest
from recipe_configs import by_released_name, learning_rates, load

# The release: weight of MESA, its first epoch, warm-up, decay, drop path,
# edge of the test picture.
VARIANTS = dict(
    t=(25.0, 78, 20, 0.05, 0.2, 224),
    t2=(37.5, 78, 20, 0.05, 0.2, 228),
    s=(50.0, 78, 20, 0.05, 0.2, 240),
    b=(50.0, 94, 35, 0.075, 0.3, 224),
    l=(300.0, 78, 20, 0.12, 0.3, 224),
    l2=(300.0, 78, 20, 0.12, 0.3, 224),
)
# rate, decay, images of a GPU, windows, half precision
SEGMENTERS = {
    't_upernet_16xb1_160k_ade20k_512x512': (5e-5, 0.01, 1, (64, 32), True),
    's_upernet_8xb2_160k_ade20k_512x512': (6e-5, 0.01, 2, (160, 56), True),
    'b_upernet_16xb1_160k_ade20k_512x512': (5e-5, 0.01, 1, (64, 32), True),
    'l3_in21k-pre_upernet_16xb1_160k_ade20k_640x640': (
        *(8e-5, 0.05, 1, (64, 32), False),
    ),
}
DETECTORS = dict(t=1e-4, s=1e-4, b=2e-4)


def classifier(arch):
    return f'mambavision/mambavision_{arch}_32xb128_in1k'


@pytest.mark.parametrize('arch', VARIANTS)
def test_what_decays_in_classifiers(arch):
    """All but one-dimensional parameters and biases; A_log does."""
    found = by_released_name(classifier(arch))
    rate = VARIANTS[arch][3]
    for key, (decay, ndim) in found.items():
        skipped = ndim == 1 or key.endswith('.bias')
        assert decay == pytest.approx(0 if skipped else rate), key
    mixer = 'levels.2.blocks.0.mixer.'
    assert found[mixer + 'A_log'][0] > 0 and found[mixer + 'D'][0] == 0
    assert found[mixer + 'conv1d_x.weight'][0] > 0
    assert ('levels.2.blocks.0.gamma_1' in found) == (arch in 'bl2')


@pytest.mark.parametrize('name', [*SEGMENTERS, *DETECTORS])
def test_what_decays_downstream(name):
    """All but what has norm in its name."""
    if name in SEGMENTERS:
        rate = SEGMENTERS[name][1]
    else:
        pytest.importorskip('mmdet')
        pytest.importorskip('mmcv.ops')
        name, rate = f'{name}_cascade-mask-rcnn_fpn_8xb2_3x_coco', 0.05
    found = by_released_name(f'mambavision/mambavision_{name}')
    for key, (decay, _) in found.items():
        assert decay == pytest.approx(0 if 'norm' in key else rate), key
    stem_norm = found['backbone.patch_embed.conv_down.1.weight']
    assert stem_norm[0] > 0 and found['backbone.outnorm3.bias'][0] == 0


@pytest.mark.parametrize('arch, too_low', [('t', 0.0101), ('b', 0.0311)])
def test_learning_rate_of_classifiers(tmp_path, arch, too_low):
    """A cosine from iteration 0 on, whose beginning the warm-up replaces."""
    length, peak, end = 40, 5e-3, 5e-6
    rates, found = learning_rates(
        classifier(arch), tmp_path, length * 32 + 31, 32
    )
    assert found == length  # the incomplete batch is dropped
    i = np.arange(320 * length)
    warm_up = VARIANTS[arch][2] * length
    linear = 1e-6 + (peak - 1e-6) * i / warm_up
    cosine = end + (peak - end) / 2 * (
        1 + np.cos(np.pi * np.minimum(i / (310 * length), 1))
    )
    expected = np.where(i < warm_up, linear, cosine)
    # At most 1.0 % too low before the end of the warm-up (B: 3.1 %), beside
    # a step of it, and within 0.05 % after it
    error = np.abs(rates - expected)
    step = peak / warm_up
    assert (error[:warm_up] <= too_low * expected[:warm_up] + step).all()
    assert (error[warm_up + 1 :] <= 5e-4 * peak).all()
    assert rates[-1] == pytest.approx(end, rel=1e-4)
    assert rates[311 * length] == pytest.approx(end, rel=1e-4)


@pytest.mark.parametrize('arch', VARIANTS)
def test_what_classifiers_say(arch):
    weight, begin, warm_up, decay, drop_path, edge = VARIANTS[arch]
    cfg = load(classifier(arch))
    model, wrapper = cfg.model, cfg.optim_wrapper
    assert (model.type, model.mesa_weight) == ('MESAImageClassifier', weight)
    assert model.backbone.drop_path_rate == drop_path
    assert model.neck.norm_cfg.type == 'BN'
    average, buffers, mesa = cfg.custom_hooks
    assert (buffers.type, mesa.type) == ('AverageBuffersHook', 'MESAHook')
    assert mesa.begin == begin and average.update_buffers
    assert average.momentum == pytest.approx(1 - 0.9998)
    assert cfg.default_hooks.checkpoint.save_best == 'accuracy/top1_ema'
    assert (wrapper.type, wrapper.dtype) == ('AmpOptimWrapper', 'float16')
    assert wrapper.optimizer == dict(
        type='Lamb',
        lr=5e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=decay,
    )
    assert cfg.param_scheduler[0].end == warm_up
    assert cfg.train_cfg.max_epochs == 320
    for loop in ('val', 'test'):
        _, resize, crop, _ = cfg[f'{loop}_dataloader'].dataset.pipeline
        assert (resize.scale, resize.edge) == (edge, 'short')
        assert crop.crop_size == 224


@pytest.mark.parametrize('arch', VARIANTS)
def test_data_of_classifiers(arch):
    """VCMamba's augmentation, which has tests of its own."""
    cfg, other = load(classifier(arch)), load('vcmamba_b_8xb128_in1k')
    loader = cfg.train_dataloader
    assert (loader.batch_size, loader.drop_last) == (128, True)
    assert cfg.auto_scale_lr.base_batch_size == 32 * 128
    assert loader.sampler.sampler == dict(type='DefaultSampler', shuffle=True)
    assert loader.dataset == other.train_dataloader.dataset
    assert cfg.data_preprocessor == other.data_preprocessor
    assert cfg.model.train_cfg == other.model.train_cfg
    assert cfg.model.head.loss == other.model.head.loss


@pytest.mark.parametrize(
    'name, windows, size, resize',
    [
        ('b', None, 224, dict(scale=224)),
        ('l', None, 224, dict(scale=224)),
        ('l2_512', (32, 16), 512, dict(scale=550)),  # both sides
        ('l3_256', (16, 8), 256, dict(scale=256)),
        ('l3_512', (32, 16), 512, dict(scale=550)),
    ],
)
def test_what_is_tested_of_21k(name, windows, size, resize):
    cfg = load(f'mambavision/mambavision_{name}_in21k-pre_in1k')
    assert cfg.model.backbone.get('window_size') == windows
    _, first, crop, _ = cfg.test_dataloader.dataset.pipeline
    assert crop.crop_size == size and first.scale == resize['scale']
    assert first.type == (
        'mmpretrain.Resize' if size == 512 else 'mmpretrain.ResizeEdge'
    )


@pytest.mark.parametrize('name', SEGMENTERS)
def test_what_segmenters_say(name):
    rate, decay, images, windows, half = SEGMENTERS[name]
    cfg = load(f'mambavision/mambavision_{name}')
    backbone, wrapper = cfg.model.backbone, cfg.optim_wrapper
    assert (wrapper.optimizer.lr, wrapper.optimizer.weight_decay) == (
        rate,
        decay,
    )
    assert (wrapper.type == 'AmpOptimWrapper') == half
    assert cfg.train_dataloader.batch_size == images
    assert tuple(backbone.window_size) == windows
    assert backbone.out_norms and backbone.drop_path_rate == 0.2
    size = 640 if '640' in name else 512
    crop = cfg.train_dataloader.dataset.pipeline[3]
    assert crop.crop_size == (size, size)
    assert cfg.model.data_preprocessor.size == (size, size)
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (4 * size, size)


@pytest.mark.parametrize('arch', DETECTORS)
def test_what_detectors_say(arch):
    cfg = load(
        f'mambavision/mambavision_{arch}_cascade-mask-rcnn_fpn_8xb2_3x_coco'
    )
    assert cfg.optim_wrapper.optimizer.lr == DETECTORS[arch]
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.model.backbone.window_size == (112, 56)
    assert cfg.model.backbone.drop_path_rate == 0.2
    heads = cfg.model.roi_head.bbox_head
    stds = [tuple(head.bbox_coder.target_stds) for head in heads]
    assert stds == [
        (0.1, 0.1, 0.2, 0.2),
        (0.05, 0.05, 0.1, 0.1),
        (0.033, 0.033, 0.067, 0.067),
    ]

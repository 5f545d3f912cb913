"""PlainMamba's recipes against the authors', by the names they gave."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recipe_configs import (
    build_model,
    by_released_name,
    learning_rates,
    load,
)

# The release: GPUs, rate, epochs of warm-up, clipping, drop path, of
# classifiers and of segmenters, outputs, channels.
VARIANTS = dict(
    l1=(8, 2e-3, 15, 5.0, 0.2, 0.1, (5, 11, 17, 23), 192),
    l2=(8, 2e-3, 20, 1.0, 0.2, 0.2, (5, 11, 17, 23), 384),
    l3=(4, 1e-3, 20, 1.0, 0.4, 0.3, (8, 17, 26, 35), 448),
)
NORM = re.compile(
    r'[.](norm|ln1|patch_embed[.](stem[.]1|convs[.][14])|dw.1)[.]'
)


def classifier(arch):
    gpus = VARIANTS[arch][0]
    return f'plainmamba/plainmamba_{arch}_{gpus}xb256_in1k'


def segmenter(arch):
    return f'plainmamba/plainmamba_{arch}_upernet_8xb2_160k_ade20k_512x512'


@pytest.mark.parametrize('arch', VARIANTS)
def test_what_decays_in_classifiers(arch):
    """No norms, no biases but those of the depthwise convolutions."""
    found = by_released_name(classifier(arch))
    kept = ('.pos_embed', '.A_log', '.D', '.direction_Bs', '.bias')
    for key, (decay, _) in found.items():
        skipped = NORM.search(key) or key.endswith(kept)
        if key.endswith('.mamba.conv2d.bias'):
            skipped = False
        assert decay == pytest.approx(0 if skipped else 0.05), key
    counts = len(found), sum(decay == 0 for decay, _ in found.values())
    # 24 layers, or 36
    assert counts == ((520, 299) if arch == 'l3' else (352, 203))


@pytest.mark.parametrize('arch', VARIANTS)
def test_what_decays_in_segmenters(arch):
    """All but what these are in the name of; biases, the last norm, too."""
    found = by_released_name(segmenter(arch))
    *_, (_, output, *_), _ = VARIANTS[arch]
    kept = ('norm', '.pos_embed', '.A_log', '.D', '.direction_Bs')
    for key, (decay, _) in found.items():
        skipped = any(word in key for word in kept)
        assert decay == pytest.approx(0 if skipped else 0.01), key
    for key in (
        *('backbone.ln1.weight', 'backbone.patch_embed.stem.1.bias'),
        *('backbone.layers.0.mamba.in_proj.bias', 'decode_head.conv_seg.bias'),
        'decode_head.bottleneck.bn.bias',
        *['backbone.layers.0.dw.1.weight'] * (arch == 'l1'),
    ):
        assert found[key][0] > 0
    for key in (f'norm_layer{output}.weight', 'layers.3.norm.bias'):
        assert found[f'backbone.{key}'][0] == 0


def test_learning_rate_of_classifiers(tmp_path):
    """A cosine from iteration 0 on, which the warm-up multiplies."""
    _, peak, warm_up, *_ = VARIANTS['l1']
    pictures = -(-1_281_167 // 8)  # of a GPU
    rates, length = learning_rates(classifier('l1'), tmp_path, pictures, 256)
    assert length == 626  # with the incomplete batch
    i = np.arange(300 * length)
    cosine = (0.01 + 0.99 / 2 * (1 + np.cos(np.pi * i / len(i)))) * peak
    left = np.maximum(1 - i / (warm_up * length), 0)
    expected = cosine * (1 - left * (1 - 1e-3))
    # Within 0.02 %, as MMEngine chains schedulers
    np.testing.assert_allclose(rates, expected, rtol=2e-4)
    assert rates[0] == pytest.approx(1e-3 * peak)


def test_learning_rate_of_segmenters(tmp_path):
    rates, _ = learning_rates(segmenter('l2'), tmp_path, 20210, 16)
    i = np.arange(160000)
    up = 1 - np.maximum(1 - i / 1500, 0) * (1 - 1e-6)
    np.testing.assert_allclose(rates, 6e-5 * (1 - i / 160000) * up, rtol=1e-6)


@pytest.mark.parametrize('arch', VARIANTS)
def test_what_classifiers_say(arch):
    gpus, rate, warm_up, clip, drop_path, *_, channels = VARIANTS[arch]
    cfg = load(classifier(arch))
    wrapper, loader = cfg.optim_wrapper, cfg.train_dataloader
    assert wrapper.optimizer == dict(
        type='AdamW',
        lr=rate,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.05,
    )
    assert rate == 5e-4 * gpus * 256 / 512
    assert wrapper.clip_grad == dict(max_norm=clip)
    half = wrapper.get('type') == 'AmpOptimWrapper'
    assert half == (arch == 'l1')
    assert (loader.batch_size, loader.drop_last) == (256, False)
    assert cfg.auto_scale_lr.base_batch_size == gpus * 256
    assert cfg.param_scheduler[0].end == warm_up
    assert cfg.train_cfg.max_epochs == 300 and cfg.train_cfg.val_interval == 5
    *average, buffers = cfg.custom_hooks
    assert buffers.type == 'AverageBuffersHook'
    if arch == 'l1':
        assert not average
        assert cfg.default_hooks.checkpoint.save_best == 'auto'
    else:
        assert average == [dict(type='RawAndEMAHook', momentum=1e-4)]
        best = cfg.default_hooks.checkpoint.save_best
        assert best == 'accuracy/top1_ema'
    model = cfg.model
    assert model.backbone.drop_path_rate == drop_path
    assert model.head.in_channels == channels
    assert model.head.loss.label_smooth_val == 0.1
    assert loader.sampler.sampler == dict(type='DefaultSampler', shuffle=True)
    # else as VCMamba's, whose augmentation has tests of its own
    other = load('vcmamba_b_8xb128_in1k')
    assert loader.dataset == other.train_dataloader.dataset
    assert cfg.test_dataloader.dataset == other.test_dataloader.dataset
    assert model.train_cfg == other.model.train_cfg


@pytest.mark.parametrize('arch', VARIANTS)
def test_what_segmenters_say(arch):
    *_, drop_path, outs, channels = VARIANTS[arch]
    cfg = load(segmenter(arch))
    backbone, wrapper = cfg.model.backbone, cfg.optim_wrapper
    assert (backbone.out_indices, backbone.out_norms) == (outs, True)
    assert backbone.drop_path_rate == drop_path
    assert backbone.norm_cfg.type == 'SyncBN'
    assert cfg.model.decode_head.in_channels == [channels] * 4
    auxiliary = cfg.model.auxiliary_head
    assert (auxiliary.in_channels, auxiliary.in_index) == (channels, 3)
    assert wrapper.optimizer == dict(
        type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01
    )
    assert wrapper.type == 'OptimWrapper' and 'clip_grad' not in wrapper
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.train_cfg.val_interval == 8000
    assert cfg.default_hooks.checkpoint.interval == 8000
    resize, multiple = cfg.test_dataloader.dataset.pipeline[1:3]
    assert resize.scale == (2048, 512) and multiple.size_divisor == 32


def test_initial_values():
    """A classifier overwrites those of its backbone, and no other."""
    torch.manual_seed(0)
    model = build_model(classifier('l1'))
    model.init_weights()
    mixer = model.backbone.stages[0].blocks[0].mixer
    for linear in (mixer.in_proj, mixer.x_proj, mixer.out_proj):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert mixer.dt_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    for linear in (mixer.in_proj, mixer.dt_proj, mixer.out_proj):
        assert (linear.bias == 0).all()
    assert model.head.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert (model.head.fc.bias == 0).all() and (mixer.D == 1).all()
    model = build_model(segmenter('l1'))
    model.init_weights()
    mixer = model.backbone.stages[0].blocks[0].mixer
    assert F.softplus(mixer.dt_proj.bias).max() < 0.11
    assert mixer.in_proj.weight.abs().max() <= 192**-0.5

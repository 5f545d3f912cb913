"""PlainMamba's detectors against the authors' recipe."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS
from recipe_configs import by_released_name

# The release: drop path, channels.
VARIANTS = dict(l1=(0.1, 192), l2=(0.2, 384), l3=(0.3, 448))
KINDS = ('retinanet', 'mask-rcnn')
detectors = pytest.mark.parametrize(
    'kind, arch', [(kind, arch) for kind in KINDS for arch in VARIANTS]
)
KEPT = ('level_embed', 'pos_embed', 'norm', 'bias')
KEPT += ('.A_log', '.D', '.direction_Bs')


def name_of(kind, arch):
    return f'plainmamba/plainmamba_{arch}_{kind}_fpn_8xb2_1x_coco'


def read(kind, arch):
    return Config.fromfile(ROOT / f'configs/{name_of(kind, arch)}.py')


@pytest.mark.parametrize('kind', KINDS)
def test_what_decays(kind):
    """All but what these are in the released name of."""
    pytest.importorskip('mmdet', reason='needs mmdet, see docs/detection.md')
    pytest.importorskip('mmcv.ops')
    found = by_released_name(name_of(kind, 'l1'))
    # RetinaNet asks for no map of stride 4: what makes it does not learn.
    for key in ('spm.fc1.weight', 'up.bias', 'ad_norm1.weight'):
        assert (f'backbone.{key}' in found) == (kind == 'mask-rcnn')
    for key, (decay, _) in found.items():
        skipped = any(word in key for word in KEPT)
        assert decay == pytest.approx(0 if skipped else 0.05), key
    for key in (
        *('patch_embed.stem.1.weight', 'layers.0.dw.1.weight'),
        *('spm.stem.4.weight', 'spm.conv3.1.weight'),
        *('interactions.2.injector.gamma', 'layers.3.mamba.dt_proj.weight'),
    ):
        assert found[f'backbone.{key}'][0] > 0
    for key in (
        *('layers.3.norm.weight', 'ad_norm4.weight'),
        'interactions.3.extra_extractors.1.ffn_norm.weight',
    ):
        assert found[f'backbone.{key}'][0] == 0
    assert found['neck.fpn_convs.0.bn.weight'][0] > 0
    if kind == 'mask-rcnn':
        assert found['roi_head.bbox_head.shared_convs.3.bn.weight'][0] > 0


@pytest.mark.parametrize('kind', KINDS)
def test_learning_rate(kind):
    """As MMEngine's hook steps: after an iteration, after an epoch."""
    cfg, length = read(kind, 'l2'), 60
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(its, optimizer=optimizer))
        for its in cfg.param_scheduler
    ]
    rates = []
    for i in range(cfg.train_cfg.max_epochs * length):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or (i + 1) % length == 0:
                scheduler.step()
    i = np.arange(12 * length)
    epoch = i // length
    steps = 1e-4 * np.where(epoch < 8, 1, np.where(epoch < 11, 0.1, 0.01))
    up = 1 - np.maximum(1 - i / 500, 0) * (1 - 1e-3)
    np.testing.assert_allclose(rates, steps * up, rtol=1e-6)


@detectors
def test_what_configs_say(kind, arch):
    drop_path, channels = VARIANTS[arch]
    cfg = read(kind, arch)
    model, wrapper = cfg.model, cfg.optim_wrapper
    backbone, neck = model.backbone, model.neck
    assert (backbone.type, backbone.arch) == ('PlainMambaAdapter', arch)
    assert backbone.drop_path_rate == drop_path
    assert {'frozen_stages', 'norm_eval'}.isdisjoint(backbone)
    assert wrapper.optimizer == dict(type='AdamW', lr=1e-4, weight_decay=0.05)
    assert wrapper.type == 'OptimWrapper'
    assert cfg.train_cfg.max_epochs == 12 and cfg.train_cfg.val_interval == 1
    assert cfg.default_hooks.checkpoint.max_keep_ckpts == 3
    assert backbone.norm_cfg.type == neck.norm_cfg.type == 'SyncBN'
    assert (neck.out_channels, neck.num_outs) == (256, 5)
    loader = cfg.train_dataloader
    assert loader.batch_size == 2
    empty_dropped = loader.dataset.filter_cfg.filter_empty_gt
    assert loader.dataset.filter_cfg.min_size == 32
    resize, flip = loader.dataset.pipeline[3:5]
    assert resize.scale == (1333, 800) and resize.keep_ratio
    assert flip.prob == 0.5
    assert model.data_preprocessor.pad_size_divisor == 32
    if kind == 'retinanet':
        assert backbone.out_indices == (1, 2, 3) and empty_dropped
        assert neck.in_channels == 3 * [channels]
        assert neck.add_extra_convs == 'on_output'
        assert wrapper.clip_grad == dict(max_norm=35.0)
        return
    assert backbone.out_indices == (0, 1, 2, 3) and not empty_dropped
    assert neck.in_channels == 4 * [channels]
    assert 'clip_grad' not in wrapper and 'add_extra_convs' not in neck
    head = model.roi_head.bbox_head
    assert head.type == 'Shared4Conv1FCBBoxHead'
    assert (head.conv_out_channels, head.fc_out_channels) == (256, 1024)
    assert head.norm_cfg.type == 'SyncBN' and not head.reg_class_agnostic
    assert 'norm_cfg' not in model.roi_head.mask_head

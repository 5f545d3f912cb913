"""What the fine-tuning configs promise."""

import re

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from vcmamba_mm import VCMamba

# Blocks of VCMamba-S before each stage, and before the first MDM block.
BEFORE, FIRST_MDM, BLOCKS = (0, 4, 8, 20), 24, 28


def load(name):
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    pytest.importorskip(cfg.default_scope)
    init_default_scope(cfg.default_scope)
    return cfg


def build(cfg):
    """The model without its pre-trained weights, which are not here."""
    model = MODELS.build(cfg.model)
    return model, build_optim_wrapper(model, cfg.optim_wrapper).optimizer


def settings(optimizer, key):
    return {
        parameter: group[key]
        for group in optimizer.param_groups
        for parameter in group['params']
    }


def layer(name):
    """The parameter's layer, written down a second time."""
    if name.startswith('backbone.stem'):
        return 0
    if name == 'backbone.pos_embed':
        return FIRST_MDM + 1
    if match := re.match(r'backbone\.stages\.(\d)\.downsample', name):
        return BEFORE[int(match[1])] + 1
    if match := re.match(r'backbone\.stages\.(\d)\.blocks\.(\d+)\.', name):
        return BEFORE[int(match[1])] + int(match[2]) + 1
    return BLOCKS + 1


def test_layer_decay_of_a_classifier():
    cfg = load('vcmamba_s_finetune_layerdecay_b64_30e_image_folder')
    model, optimizer = build(cfg)
    rates = settings(optimizer, 'lr')
    assert len(rates) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        expected = 1e-4 * 0.9 ** (BLOCKS + 1 - layer(name))
        assert rates[parameter] == pytest.approx(expected), name

    # mmpretrain's, which is for classifiers, gives the same
    cfg.optim_wrapper.constructor = 'LearningRateDecayOptimWrapperConstructor'
    other = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    for key in ('lr', 'weight_decay'):
        assert settings(optimizer, key) == settings(other, key)


def test_layer_decay_of_a_segmenter():
    cfg = load('vcmamba_s_fpn_finetune_b8_4k_masks')
    cfg.optim_wrapper.constructor = 'LayerDecayOptimWrapperConstructor'
    cfg.optim_wrapper.paramwise_cfg.layer_decay_rate = 0.5
    model, optimizer = build(cfg)
    rates = settings(optimizer, 'lr')
    for name, parameter in model.named_parameters():
        expected = 2e-4 * 0.5 ** (BLOCKS + 1 - layer(name))
        assert rates[parameter] == pytest.approx(expected), name


@pytest.mark.parametrize(
    'family, arch',
    [
        ('vmamba', dict(expand=1)),
        (
            'mambavision',
            dict(stem_dims=8, num_heads=(2, 2), layer_scale=1e-5),
        ),
    ],
)
def test_layer_decay_of_other_families(family, arch):
    """Norms of the outputs are at the end, however early the stage."""
    cfg = load(f'{family}/{family}_t_upernet_finetune_b8_4k_masks')
    dims, depths = [8, 8, 16, 16], (1, 2, 3, 1)
    arch = dict(arch, embed_dims=dims, depths=depths)
    cfg.model.backbone.arch = arch
    cfg.model.decode_head.update(in_channels=dims, channels=8)
    cfg.model.auxiliary_head.update(in_channels=16, channels=8)
    cfg.optim_wrapper.constructor = 'LayerDecayOptimWrapperConstructor'
    cfg.optim_wrapper.paramwise_cfg.layer_decay_rate = 0.5
    model, optimizer = build(cfg)
    rates = settings(optimizer, 'lr')
    expected = {'stem': 0, 'out_norms': 8}
    for stage, before in enumerate((0, 1, 3, 6)):
        expected[f'stages.{stage}.downsample'] = before + 1
        for block in range(depths[stage]):
            expected[f'stages.{stage}.blocks.{block}'] = before + block + 1
    for name, parameter in model.named_parameters():
        layers = [
            layer
            for place, layer in expected.items()
            if name.startswith(f'backbone.{place}.')
        ] or [8]
        assert [rates[parameter]] == [2e-4 * 0.5 ** (8 - n) for n in layers]


@pytest.mark.parametrize('rate', [None, 0.0, 1.5])
def test_wrong_layer_decay(rate):
    cfg = load('vcmamba_s_finetune_layerdecay_b64_30e_image_folder')
    cfg.optim_wrapper.paramwise_cfg.layer_decay_rate = rate
    with pytest.raises(ValueError, match='layer_decay_rate must be above 0'):
        build_optim_wrapper(torch.nn.Linear(1, 1), cfg.optim_wrapper)


def test_frozen_stages():
    model, optimizer = build(
        load('vcmamba_s_finetune_frozen_b64_30e_image_folder')
    )
    trained = settings(optimizer, 'lr')
    for name, parameter in model.named_parameters():
        frozen = re.match(r'backbone\.(stem|stages\.[012])\.', name)
        assert (parameter not in trained) == bool(frozen), name


def test_checkpoint_of_224_loads_at_384(tmp_path):
    cfg = load('vcmamba_s_finetune_b16_30e_image_folder_384')
    small = VCMamba('s')
    torch.save(small.state_dict(), tmp_path / '224.pth')
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / '224.pth')
    backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    own = backbone.state_dict()
    for name, value in small.state_dict().items():
        if name == 'pos_embed':
            assert value.shape[2:] == (7, 7)
            value = F.interpolate(value, (12, 12), mode='bicubic')
        assert torch.equal(own[name], value), name

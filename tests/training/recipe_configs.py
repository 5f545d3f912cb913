"""The configs that follow the recipe."""

import pytest
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

pytest.importorskip('mmpretrain')

CLASSIFIERS = [
    f'vcmamba_{arch}_{kind}8xb128_in1k'
    for arch in 'smb'
    for kind in ('', 'distill_')
]
SEGMENTERS = [f'vcmamba_{a}_fpn_8xb4_40k_ade20k_512x512' for a in 'smb']


def load(name: str) -> Config:
    cfg = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    pytest.importorskip(cfg.default_scope)
    init_default_scope(cfg.default_scope)
    return cfg


def build_model(name: str) -> nn.Module:
    cfg = load(name)
    if 'fpn' in name:
        cfg.model.backbone.init_cfg = None
    return MODELS.build(cfg.model)

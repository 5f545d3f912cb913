"""The configs that follow a recipe, and what comes of what they say."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from vcmamba_mm.checkpoints import to_released
from vcmamba_mm.training.runner import SafeRunner

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
    cfg.model.backbone.init_cfg = None
    return MODELS.build(cfg.model)


@MODELS.register_module()
class OneParameter(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1))

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.weight.sum())


@DATASETS.register_module()
class ManyPictures(BaseDataset):
    """As long as a data set, and nothing in it."""

    def __init__(self, length):
        super().__init__(lazy_init=True)
        self.length = length

    def full_init(self):
        pass

    def __len__(self):
        return self.length


def _without_amp(wrapper: dict) -> None:
    """MMEngine's mixed precision refuses CPUs."""
    wrapper.pop('dtype', None)
    wrapper['type'] = 'OptimWrapper'


def learning_rates(name, tmp_path, pictures, batch_size, **options):
    """What the runner sets at every iteration, and how many an epoch has."""
    cfg = load(name)
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = f'rates_{pictures}_{batch_size}_{name}'
    cfg.log_level = 'ERROR'
    cfg.model = dict(type='OneParameter')
    cfg.data_preprocessor = None
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    loader = cfg.train_dataloader
    loader.pop('dataset')
    loader.dataset = dict(type='ManyPictures', length=pictures)
    loader.batch_size = batch_size
    loader.num_workers = 0
    loader.persistent_workers = False
    _without_amp(cfg.optim_wrapper)
    cfg.merge_from_dict(options)
    runner = SafeRunner.from_cfg(cfg)
    optimizer = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.optim_wrapper = optimizer
    runner.scale_lr(optimizer, runner.auto_scale_lr)
    max_iters = runner.train_loop.max_iters
    runner.param_schedulers = runner.build_param_scheduler(
        runner.param_schedulers
    )
    (hook,) = [h for h in runner.hooks if 'ParamScheduler' in str(type(h))]
    group = optimizer.param_groups[0]
    rates = np.empty(max_iters)
    for i in range(max_iters):
        rates[i] = group['lr']
        hook.after_train_iter(runner, i)
    return rates, len(runner.train_dataloader)


def decays(name):
    """A model without memory; weight decay of all that learns, by name."""
    with torch.device('meta'):
        model = build_model(name)
    cfg = load(name)
    _without_amp(cfg.optim_wrapper)
    groups = build_optim_wrapper(
        model, cfg.optim_wrapper
    ).optimizer.param_groups
    of = {id(p): g['weight_decay'] for g in groups for p in g['params']}
    # each once
    assert len(of) == sum(len(g['params']) for g in groups)
    learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return model, {n: of[id(p)] for n, p in learning.items()}


def by_released_name(name):
    """Weight decay and number of dimensions of all that learn."""
    model, found = decays(name)
    learning = {k: p for k, p in model.named_parameters() if k in found}
    weights = to_released(learning)
    numbers = to_released(
        {
            k: torch.tensor(found[k]).expand(p.shape)
            for k, p in learning.items()
        }
    )
    assert numbers.keys() == weights.keys() and len(numbers) == len(found)
    return {
        key: (value[(0,) * value.ndim].item(), weights[key].ndim)
        for key, value in numbers.items()
    }

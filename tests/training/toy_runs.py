"""Trainings that take no time: a model of one layer, what befalls it, and what
is left.
"""

import itertools
import os
import random
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import (
    DATASETS,
    HOOKS,
    METRICS,
    MODELS,
    init_default_scope,
)
from torch import nn

from vcmamba_mm.checkpoints import read_checkpoint
from vcmamba_mm.training.runner import SafeRunner

SAMPLES, BATCH, EPOCHS = 10, 4, 3
LENGTH = -(-SAMPLES // BATCH)  # iterations of an epoch


class Killed(BaseException):
    """In place of SIGKILL: nothing handles it."""


@MODELS.register_module()
class ToyModel(BaseModel):
    """Draws from all three generators, and has running statistics."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs, mode='tensor'):
        x = torch.stack(inputs)
        if mode == 'predict':
            return [self.norm(self.layer(x))]
        x = x * np.random.beta(0.8, 0.8) + random.random()
        return dict(loss=self.dropout(self.norm(self.layer(x))).square().sum())


@DATASETS.register_module()
class ToyData(BaseDataset):
    """Remembers what was read of it; ``fault`` happens at sample 3."""

    def __init__(self, fault=None):
        super().__init__(serialize_data=False)
        self.read = []
        self.fault = fault

    def load_data_list(self):
        generator = torch.Generator().manual_seed(1)
        data = torch.randn(SAMPLES, 3, generator=generator)
        return [dict(inputs=row) for row in data]

    def __getitem__(self, index):
        self.read.append(index)
        if index == 3 and self.fault == 'hang':
            time.sleep(60)
        elif index == 3 and self.fault == 'die':
            os.kill(os.getpid(), signal.SIGKILL)
        return dict(inputs=self.data_list[index]['inputs'])


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Goes up and down, so that there is a best one in the middle."""

    def process(self, data_batch, data_samples):
        self.results.append(float(data_samples[0].sum()))

    def compute_metrics(self, results):
        return dict(acc=sum(results) % 1, top=-sum(results) % 1)


@HOOKS.register_module()
class DieHook(Hook):
    """Be killed when ``iter`` is ``at``, where a hook is called so."""

    priority = 'LOWEST'

    def __init__(self, at, where='after_train_iter'):
        self.at = at
        setattr(self, where, self.die)

    def die(self, runner, *args, **kwargs):
        if runner.iter == self.at:
            raise Killed


@HOOKS.register_module()
class NoteHook(Hook):
    """Remembers the numbers of the batches."""

    def __init__(self):
        self.numbers = []

    def after_train_iter(self, runner, batch_idx, *args, **kwargs):
        self.numbers.append(batch_idx)


@HOOKS.register_module()
class PoisonHook(Hook):
    """Not a number in the data of some iterations."""

    def __init__(self, at):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter in self.at:
            data_batch['inputs'] = [x * np.nan for x in data_batch['inputs']]


@HOOKS.register_module()
class FullDiskHook(Hook):
    """No file may grow beyond ``size`` bytes from iteration ``at`` on."""

    def __init__(self, at, size):
        self.at = at
        self.size = size

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.at:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, hard))


names = itertools.count()


def config(work_dir, **kwargs):
    loader = dict(
        batch_size=BATCH, num_workers=0, dataset=dict(type='ToyData')
    )
    cfg = Config(
        dict(
            model=dict(type='ToyModel'),
            work_dir=str(work_dir),
            train_dataloader=dict(
                **loader, sampler=dict(type='DefaultSampler', shuffle=True)
            ),
            val_dataloader=dict(
                **loader, sampler=dict(type='DefaultSampler', shuffle=False)
            ),
            train_cfg=dict(type='ResumableEpochLoop', max_epochs=EPOCHS),
            val_cfg=dict(),
            val_evaluator=dict(type='ToyMetric'),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
            param_scheduler=dict(
                type='CosineAnnealingLR',
                T_max=EPOCHS,
                convert_to_iter_based=True,
            ),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1),
                checkpoint=dict(
                    type='AtomicCheckpointHook',
                    by_epoch=False,
                    interval=1,
                    save_best='acc',
                ),
                iter_seed=dict(type='IterSeedHook'),
                check_finite=dict(type='CheckFiniteHook'),
            ),
            custom_hooks=[
                dict(type='EMAHook', momentum=0.1, update_buffers=True)
            ],
            default_scope='mmengine',
            log_level='ERROR',
            experiment_name=f'run_{next(names)}',
        )
    )
    cfg.merge_from_dict(kwargs)
    return cfg


def by_iterations(**kwargs):
    """Settings of a run without epochs, of the same length."""
    return {
        'train_cfg': dict(
            _delete_=True,
            type='IterBasedTrainLoop',
            max_iters=EPOCHS * LENGTH,
            val_interval=LENGTH,
        ),
        'train_dataloader.sampler.type': 'InfiniteSampler',
        'param_scheduler.T_max': EPOCHS * LENGTH,
        'param_scheduler.by_epoch': False,
        'param_scheduler.convert_to_iter_based': False,
        **kwargs,
    }


def train(work_dir, *hooks, error=None, runner=SafeRunner, **kwargs):
    """Train, with more hooks, up to an error if one is expected."""
    init_default_scope('mmengine')
    cfg = config(work_dir, **kwargs)
    cfg.custom_hooks.extend(hooks)
    runner = runner.from_cfg(cfg)
    if error is None:
        runner.train()
    else:
        with pytest.raises(error) as caught:
            runner.train()
        runner.error = str(caught.value)
    return runner


def die(at, where='after_train_iter'):
    return dict(type='DieHook', at=at, where=where)


def differences(left, right, name=''):
    """Where nested dicts and lists of tensors and numbers are not the same."""
    if isinstance(left, dict) and isinstance(right, dict):
        yield from (f'{name}/{key}' for key in left.keys() ^ right.keys())
        for key in left.keys() & right.keys():
            yield from differences(left[key], right[key], f'{name}/{key}')
    elif isinstance(left, (list, tuple)) and len(left) == len(right):
        for i, pair in enumerate(zip(left, right)):
            yield from differences(*pair, f'{name}/{i}')
    elif isinstance(left, torch.Tensor):
        if not torch.equal(left, right):
            yield name
    elif left != right:
        yield f'{name}: {left} != {right}'


def what_is_left(work_dir):
    """All that has to be equal at the end of two runs."""
    names = sorted(path.name for path in Path(work_dir).glob('*.pth'))
    left = {name: read_checkpoint(Path(work_dir) / name) for name in names}
    for content in left.values():
        history = content.pop('message_hub')['log_scalars']['train/loss']
        content['losses'] = history.data[0].tolist()
        del content['meta']
    left['last'] = Path((Path(work_dir) / 'last_checkpoint').read_text()).name
    return left

"""The recipe, piece by piece, against its closed formulas.

What the configs say is in test_configs.py; here is what comes of it. The
table in docs/recipe.md names the test that holds each item.
"""

import ast
import math
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from mmengine.registry import HOOKS, MODELS
from recipe_configs import (
    CLASSIFIERS,
    SEGMENTERS,
    build_model,
    decays,
    learning_rates,
    load,
)
from torch import nn

pytest.importorskip('mmpretrain')

# ------------------------------------------------------------- learning rate


def cosine_with_warm_up(lr, length, *, warm_up=5, epochs=300, start=1e-6):
    """Linear to lr, then half a cosine to 1e-5; ``length`` iterations each."""
    first, last = warm_up * length, epochs * length
    i = np.arange(last)
    linear = start + (lr - start) * i / (first - 1)
    cosine = 1e-5 + (lr - 1e-5) * 0.5 * (
        1 + np.cos(np.pi * (i - first) / (last - first))
    )
    return np.where(i < first, linear, cosine)


def test_learning_rate_of_300_epochs(tmp_path):
    """At each of the 375 600 iterations on ImageNet, at 1024 in a batch."""
    rates, length = learning_rates(CLASSIFIERS[-1], tmp_path, 1281167, 1024)
    assert length == math.ceil(1281167 / 1024)
    expected = cosine_with_warm_up(2e-3, length)
    np.testing.assert_allclose(rates, expected, rtol=1e-10)
    assert rates[0] == pytest.approx(1e-6)
    assert rates.max() == pytest.approx(2e-3)
    assert rates[-1] == pytest.approx(1e-5, rel=1e-6)


def test_learning_rate_of_another_batch_size(tmp_path):
    """In proportion, but for the end; the warm-up begins in proportion too."""
    options = {'auto_scale_lr.enable': True}
    rates, length = learning_rates(
        CLASSIFIERS[0], tmp_path, 1000, 64, **options
    )
    expected = cosine_with_warm_up(2e-3 / 16, length, start=1e-6 / 16)
    np.testing.assert_allclose(rates, expected, rtol=1e-10)


def test_learning_rate_of_segmentation(tmp_path):
    """(1 - i / last)^0.9, from 2e-4 to 0, in 40 000 iterations."""
    rates, _ = learning_rates(SEGMENTERS[0], tmp_path, 20210, 32)
    i = np.arange(40000)
    expected = 2e-4 * (1 - i / 39999) ** 0.9
    np.testing.assert_allclose(rates, expected, rtol=1e-10)


# -------------------------------------------------------------- weight decay


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_what_decays_in_classifiers(name):
    """All but biases and one-dimensional parameters, in every part."""
    model, found = decays(name)
    for parameter_name, parameter in model.named_parameters():
        flat = parameter_name.endswith('bias') or parameter.ndim == 1
        assert found[parameter_name] == (0 if flat else 0.05), parameter_name
    mixers = [n.removesuffix('A_log') for n in found if n.endswith('A_log')]
    assert len(mixers) == 4
    for mixer in mixers:
        assert found[mixer + 'A_log'] == found[mixer + 'direction_B'] == 0.05
        assert found[mixer + 'D'] == found[mixer + 'dt_proj.bias'] == 0
    assert found['backbone.pos_embed'] == 0.05
    assert found['backbone.stages.0.blocks.0.gamma'] == 0.05
    heads = [n for n in found if n.startswith('head.')]
    assert len(heads) == (4 if 'distill' in name else 2)
    assert not any('teacher' in n for n in found)


@pytest.mark.parametrize('name', SEGMENTERS)
def test_everything_decays_in_segmenters(name):
    _, found = decays(name)
    assert set(found.values()) == {1e-4}
    assert {n.split('.')[0] for n in found} == {
        'backbone',
        'neck',
        'decode_head',
    }


# ------------------------------------------------------------ weight average


def average_hook():
    (cfg,) = load(CLASSIFIERS[0]).custom_hooks
    cfg.pop('priority')  # as the runner does
    return HOOKS.build(cfg)


def test_average():
    """e_1 = w_1, then e_t = 0.99996 e_{t-1} + 0.00004 w_t, buffers too."""
    hook = average_hook()
    model = nn.BatchNorm1d(3).double()
    average = MODELS.build(hook.ema_cfg, default_args=dict(model=model))
    values = torch.randn(50, 4, 3, dtype=torch.float64)
    names = ('weight', 'bias', 'running_mean', 'running_var')
    expected = values[0]
    for t, value in enumerate(values):
        for name, v in zip(names, value):
            getattr(model, name).data.copy_(v)
        average.update_parameters(model)
        if t:
            expected = 0.99996 * expected + 0.00004 * value
    for name, e in zip(names, expected):
        torch.testing.assert_close(
            getattr(average.module, name).data, e, rtol=1e-12, atol=0
        )


def test_raw_weights_are_validated():
    """The average is kept beside; the raw weights are ranked."""
    hook = average_hook()
    model = nn.Linear(2, 2)
    runner = type('Runner', (), dict(model=model))
    hook.before_run(runner)
    average = hook.ema_model.module.weight
    average.data.zero_()
    raw = model.weight.clone()
    # tests/training/test_monitor.py has the validation of the average after it
    for before in (hook.before_val_epoch, hook.before_test_epoch):
        before(runner)
        assert torch.equal(model.weight, raw) and not average.any()


# ---------------------------------------------------------------------- SyncBN


@pytest.mark.parametrize('name', [*CLASSIFIERS[:2], SEGMENTERS[0]])
def test_every_norm_is_sync_bn(name):
    """All batch norms; they do not compute on a CPU, tools replace them."""
    norms = [
        m
        for m in build_model(name).modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ]
    assert len(norms) > 80
    assert all(isinstance(m, nn.SyncBatchNorm) for m in norms)
    assert all(m.eps == 1e-5 for m in norms)


# Two processes on one GPU, over gloo, each with half of a batch.
SYNC = """
import sys

import torch
import torch.distributed as dist

dist.init_process_group('gloo')
rank = dist.get_rank()
torch.manual_seed(0)
x = torch.randn(8, 5, 6, 6, device='cuda', dtype=torch.float64)
alone = torch.nn.BatchNorm2d(5).to(x)
whole = x.clone().requires_grad_()
(alone(whole) * x.cos()).sum().backward()
norm = torch.nn.SyncBatchNorm(5).to(x)
half = x.chunk(2)[rank].clone().requires_grad_()
out = norm(half)
(out * x.chunk(2)[rank].cos()).sum().backward()
close = torch.testing.assert_close
close(norm.running_mean, alone.running_mean)
close(norm.running_var, alone.running_var)
close(half.grad, whole.grad.chunk(2)[rank])
"""


@pytest.mark.gpu
def test_sync_bn_over_processes(run, tmp_path):
    """Statistics and gradients are those of the whole batch."""
    script = tmp_path / 'sync.py'
    script.write_text(SYNC)
    run(
        'python',
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc_per_node=2',
        script,
        CUDA_VISIBLE_DEVICES='0',
    )


# ------------------------------------------------------------------- the docs


@pytest.mark.parametrize('page', ['recipe', 'faults'])
def test_tables_name_tests_that_exist(page):
    text = (ROOT / f'docs/{page}.md').read_text()
    rows = [
        line
        for line in text.splitlines()
        if line.startswith('|') and not re.match(r'\|[- |]+\|$', line)
    ]
    heads = [row for row in rows if row.endswith('| test |')]
    assert heads and len(rows) > len(heads) + 8
    for row in rows:
        if row not in heads:
            assert re.search(r'`tests/\S+::test_\w+`|the same \|$', row), row
    for path, test in re.findall(r'`(tests/\S+\.py)::(\w+)`', text):
        tree = ast.parse((ROOT / path).read_text())
        assert test in {
            node.name for node in tree.body if hasattr(node, 'name')
        }, f'{path}::{test}'

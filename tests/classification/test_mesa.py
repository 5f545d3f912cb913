"""MESA against what the release of MambaVision was recorded to do."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CONFIGS, ROOT
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import init_default_scope
from mmengine.runner import IterBasedTrainLoop

from vcmamba_mm.checkpoints import extract_state_dict, read_checkpoint

pytest.importorskip('mmpretrain')
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from vcmamba_mm.classification.distillation import Teacher
from vcmamba_mm.classification.mesa import MESAHook, mesa_divergence

GOLDEN = ROOT / 'tests/fixtures/golden/mambavision'
RELEASE = GOLDEN / 'tiny_release.pth'


@pytest.fixture(scope='module')
def io():
    found = {}
    for name in ('tiny_io.npz', 'tiny_io2.npz'):
        arrays = np.load(GOLDEN / name)
        found.update({k: torch.from_numpy(arrays[k]) for k in arrays.files})
    return found


def build(**kwargs):
    cfg = Config.fromfile(CONFIGS / 'tiny_mambavision.py').model
    cfg.update(type='MESAImageClassifier', mesa_weight=25.0)
    cfg.update(kwargs)
    cfg.head.loss = dict(type='CrossEntropyLoss', use_soft=True)
    init_default_scope('mmpretrain')
    return MODELS.build(cfg)


def load(model, weights):
    model.load_state_dict(
        extract_state_dict(read_checkpoint(RELEASE), RELEASE, weights)
    )
    return model


def test_divergence_and_gradient(io):
    logits = io['mesa_student_logits'].clone().requires_grad_()
    for prefix, teacher in (
        ('mesa_kl', 'mesa_teacher_logits'),  # nearly one-hot
        ('mesa_given_kl', 'mesa_given_teacher_logits'),
    ):
        kl = mesa_divergence(logits, io[teacher], 3.0)
        assert kl.item() == pytest.approx(io[prefix].item(), rel=1e-5)
    loss = F.cross_entropy(logits, io['mesa_target']) + 25 * kl
    assert loss.item() == pytest.approx(io['mesa_given_loss'].item(), rel=1e-5)
    loss.backward()
    torch.testing.assert_close(
        logits.grad, io['mesa_given_grad_logits'], rtol=1e-4, atol=1e-5
    )


def runner_of(model, *hooks):
    runner = SimpleNamespace(
        model=model, hooks=list(hooks), epoch=0, train_loop=None
    )
    for hook in hooks:
        if isinstance(hook, EMAHook):
            hook.before_run(runner)
    return runner


def test_losses_of_a_step(io):
    """The average is that of an EMAHook, in eval mode, from an epoch on."""
    model = load(build(), 'raw')
    ema, hook = EMAHook(), MESAHook(begin=1)
    runner = runner_of(model, ema, hook)
    average = load(ema.ema_model.module, 'ema')
    hook.before_train(runner)
    samples = [DataSample().set_gt_score(t) for t in io['mesa_target']]

    hook.before_train_epoch(runner)
    assert model.train().loss(io['input'], samples).keys() == {'loss'}

    runner.epoch = 1
    hook.before_train_epoch(runner)
    losses = model.train().loss(io['input'], samples)
    assert losses['loss_cls'].item() == pytest.approx(
        io['mesa_ce'].item(), rel=1e-5
    )
    assert losses['loss_mesa'].item() == pytest.approx(
        25 * io['mesa_kl'].item(), rel=1e-4
    )
    total, logged = model.parse_losses(losses)
    assert logged['loss'] == total == sum(losses.values())
    total.backward()
    torch.testing.assert_close(
        model.head.fc.bias.grad,
        io['mesa_grad_head_bias'],
        rtol=1e-4,
        atol=1e-5,
    )
    assert not average.training
    assert all(p.grad is None for p in average.parameters())
    assert not any('average' in key for key in model.state_dict())
    # It goes on being averaged: what the model takes is the same module.
    assert model.average.model is average


def test_the_losses_are_the_heads_own():
    """Of a head with two classifiers two, with and without the average."""
    cfg = Config.fromfile(CONFIGS / 'tiny_mambavision.py').model.head
    model = build(
        head=dict(
            type='VCMambaClsHead',
            num_classes=cfg.num_classes,
            in_channels=cfg.in_channels,
            distillation=True,
        )
    ).eval()
    images = torch.randn(2, 3, 64, 64)
    samples = [
        DataSample().set_gt_score(torch.rand(cfg.num_classes)) for _ in images
    ]
    feats = model.extract_feat(images)
    expected = model.head.loss(feats, samples)
    assert expected.keys() == {'loss_cls', 'loss_dist'}
    assert model.loss(images, samples) == expected
    average = copy.deepcopy(model)
    torch.nn.init.normal_(average.head.fc_dist.bias)
    model.average = Teacher(average)
    losses = model.loss(images, samples)
    assert losses.pop('loss_mesa') == 25 * mesa_divergence(
        model.head(feats), average.head(feats), 3.0
    )
    assert losses == expected


def test_errors():
    model = build()
    with pytest.raises(ValueError, match='add an EMAHook'):
        MESAHook().before_train(runner_of(model))
    ema = EMAHook()
    runner = runner_of(model, ema)
    runner.model = model.backbone
    with pytest.raises(ValueError, match='the model is a MambaVision'):
        MESAHook().before_train(runner)
    runner.model = model
    runner.train_loop = IterBasedTrainLoop.__new__(IterBasedTrainLoop)
    MESAHook().before_train(runner)
    with pytest.raises(ValueError, match=r'begin=1\) counts epochs'):
        MESAHook(begin=1).before_train(runner)
    with pytest.raises(ValueError, match='tau above 0'):
        build(tau=0)
    with pytest.raises(ValueError, match='mesa_weight must be at least 0'):
        build(mesa_weight=-1)

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_classifier_cfg

pytest.importorskip('mmpretrain')
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from vcmamba_mm.checkpoints import CheckpointError
from vcmamba_mm.classification.distillation import distillation_loss

TEACHER = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=18),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=512),
)


def build(**kwargs):
    init_default_scope('mmpretrain')
    return MODELS.build(
        tiny_classifier_cfg(
            type='DistilledImageClassifier',
            **{**dict(teacher=TEACHER), **kwargs},
        )
    )


def batch():
    return torch.randn(2, 3, 64, 64), [
        DataSample().set_gt_label(i) for i in (3, 7)
    ]


def test_soft_and_hard_loss():
    student, teacher = torch.randn(4, 10), torch.randn(4, 10)
    p_t = (teacher / 2).softmax(1)
    expected = 4 * (p_t * (p_t.log() - (student / 2).softmax(1).log())).mean()
    torch.testing.assert_close(
        distillation_loss(student, teacher, 'soft', 2.0), expected
    )
    torch.testing.assert_close(
        distillation_loss(student, teacher, 'hard', 2.0),
        F.cross_entropy(student, teacher.argmax(1)),
    )


@pytest.mark.parametrize('mode', ['soft', 'hard'])
def test_heads_learn_from_label_and_teacher(mode):
    model = build(distillation=mode, alpha=0.25).eval()
    inputs, data_samples = batch()
    losses = model.loss(inputs, data_samples)
    logits, dist_logits = model.head.logits(model.extract_feat(inputs))
    teacher_logits = model.teacher.model(inputs)
    torch.testing.assert_close(
        losses['loss_cls'],
        0.75 * F.cross_entropy(logits, torch.tensor([3, 7])),
    )
    torch.testing.assert_close(
        losses['loss_kd'],
        0.25 * distillation_loss(dist_logits, teacher_logits, mode, 1.0),
    )


def test_teacher_stays_outside():
    """In eval mode, without gradients, not saved, not averaged, not copied."""
    model = build()
    names = set(model.state_dict())
    model.init_weights()
    teacher = model.teacher.model
    assert set(model.state_dict()) == names
    model.train()
    assert not any(m.training for m in teacher.modules())
    before = copy.deepcopy(teacher.state_dict())
    sum(model.loss(*batch()).values()).backward()
    assert all(p.grad is None for p in teacher.parameters())
    for key, value in teacher.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    assert all(p.grad is not None for p in model.parameters())
    average = ExponentialMovingAverage(model, update_buffers=True)
    assert set(average.module.state_dict()) == names
    assert average.module.teacher is model.teacher


def test_testing_needs_no_teacher():
    model = build(teacher=dict(type='NoSuchClassifier')).eval()
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 10)
    with pytest.raises(KeyError, match='NoSuchClassifier'):
        model.init_weights()


def test_all_of_a_teacher_is_loaded_or_nothing(tmp_path):
    weights = MODELS.build(TEACHER).state_dict()
    path = tmp_path / 'teacher.pth'
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    torch.save(dict(state_dict=weights), path)
    loaded = build(teacher=dict(TEACHER, init_cfg=init_cfg)).teacher.model
    for key, value in loaded.state_dict().items():
        torch.testing.assert_close(value, weights[key])
    weights.pop('head.fc.bias')
    torch.save(dict(state_dict=weights), path)
    with pytest.raises(CheckpointError, match='head.fc.bias'):
        _ = build(teacher=dict(TEACHER, init_cfg=init_cfg)).teacher


def test_teacher_from_timm():
    pytest.importorskip('timm')
    model = build(
        teacher=dict(
            type='TimmClassifier',
            model_name='resnet10t',
            pretrained=False,
            num_classes=10,
        )
    )
    losses = model.loss(*batch())
    assert set(losses) == {'loss_cls', 'loss_kd'}
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(distillation='warm'), "'soft' or 'hard', got 'warm'"),
        (dict(alpha=1.5), 'alpha must be from 0 to 1'),
        (
            dict(
                head=dict(
                    type='VCMambaClsHead', num_classes=10, in_channels=64
                )
            ),
            'distillation=True',
        ),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)

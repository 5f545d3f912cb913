import pytest
import torch

pytest.importorskip('mmpretrain')
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import vcmamba_mm.classification  # noqa: F401


def build(**kwargs):
    init_default_scope('mmpretrain')
    return MODELS.build(
        dict(type='VCMambaClsHead', num_classes=5, in_channels=8, **kwargs)
    )


FEATS = (torch.randn(3, 16), torch.randn(3, 8))


def samples(scores=False):
    if scores:
        return [DataSample().set_gt_score(torch.full((5,), 0.2))] * 3
    return [DataSample().set_gt_label(i) for i in range(3)]


def test_one_head():
    head = build()
    expected = torch.nn.functional.cross_entropy(
        head.fc(FEATS[-1]), torch.arange(3)
    )
    losses = head.loss(FEATS, samples())
    assert list(losses) == ['loss']
    torch.testing.assert_close(losses['loss'], expected)
    torch.testing.assert_close(head(FEATS), head.fc(FEATS[-1]))


def test_two_heads_are_averaged():
    head = build(distillation=True)
    torch.testing.assert_close(
        head(FEATS), (head.fc(FEATS[-1]) + head.fc_dist(FEATS[-1])) / 2
    )
    scores = torch.stack([s.pred_score for s in head.predict(FEATS)])
    torch.testing.assert_close(scores, head(FEATS).softmax(1))
    losses = head.loss(FEATS, samples())
    for name, fc in (('loss_cls', head.fc), ('loss_dist', head.fc_dist)):
        torch.testing.assert_close(
            losses[name],
            0.5
            * torch.nn.functional.cross_entropy(
                fc(FEATS[-1]), torch.arange(3)
            ),
        )


def test_soft_labels_and_label_smoothing():
    head = build(
        loss=dict(
            type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'
        )
    )
    loss = head.loss(FEATS, samples(scores=True))['loss']
    expected = -head.fc(FEATS[-1]).log_softmax(1).mean(1).mean()
    torch.testing.assert_close(loss, expected)


def test_initial_values():
    head = build(distillation=True)
    for fc in (head.fc, head.fc_dist):
        assert (fc.bias == 0).all() and 0.01 < fc.weight.std() < 0.03

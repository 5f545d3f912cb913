import pytest
import torch

pytest.importorskip('mmpretrain')
from mmpretrain.models.heads import MultiLabelClsHead
from mmpretrain.structures import DataSample

from vcmamba_mm.classification import LabelledClsScoreTTA, VCMambaClsHead

# Of two views of a picture. Their mean is (0.4, 0.35, 0.75).
SCORES = torch.tensor([[0.7, 0.1, 0.6], [0.1, 0.6, 0.9]])


class Model(torch.nn.Module):
    test_step = None  # called by nothing here

    def __init__(self, head):
        super().__init__()
        self.head = head


def merged(head, first_label):
    views = [
        DataSample().set_pred_score(score).set_pred_label(first_label)
        for score in SCORES
    ]
    wrapper = LabelledClsScoreTTA(module=Model(head))
    (sample,) = wrapper.merge_preds([views])
    torch.testing.assert_close(
        sample.pred_score, torch.tensor([0.4, 0.35, 0.75])
    )
    return sample.pred_label.tolist()


def test_the_label_is_that_of_the_averaged_scores():
    assert merged(VCMambaClsHead(num_classes=3, in_channels=8), 0) == [2]


def test_several_labels():
    assert merged(MultiLabelClsHead(thr=0.38), [0]) == [0, 2]
    assert merged(MultiLabelClsHead(thr=0.9), [0]) == []
    assert merged(MultiLabelClsHead(topk=2), [1]) == [2, 0]

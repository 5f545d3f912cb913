"""Predictions for an image, flipped and resized, become one."""

import torch
from mmpretrain.models import AverageClsScoreTTA
from mmpretrain.models.heads import MultiLabelClsHead
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample


@MODELS.register_module()
class LabelledClsScoreTTA(AverageClsScoreTTA):
    """mmpretrain's, with the label of the averaged scores.

    mmpretrain's own keeps the label of the first view.
    """

    def _merge_single_sample(
        self, data_samples: tuple[DataSample, ...]
    ) -> DataSample:
        merged = super()._merge_single_sample(data_samples)
        head, score = self.module.head, merged.pred_score
        if not isinstance(head, MultiLabelClsHead):
            label = score.argmax(keepdim=True)
        elif head.thr is not None:
            label = torch.where(score >= head.thr)[0]
        else:
            label = score.topk(head.topk).indices
        return merged.set_pred_label(label)

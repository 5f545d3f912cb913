"""Segmentations of an image, enlarged and flipped, become one."""

import torch
from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement, PixelData


@MODELS.register_module()
class AverageSegScoreTTA(BaseTTAModel):
    """Average the probabilities of a segmenter of mmseg.

    mmseg's ``SegTTAModel`` takes the sigmoid twice where a head has one output
    for two classes: each pixel is above the threshold then. Where there are
    more outputs this is the same.
    """

    def merge_preds(
        self, data_samples_list: list[tuple[BaseDataElement, ...]]
    ) -> list[BaseDataElement]:
        """Give the first sample of each image what all say together."""
        merged = []
        for samples in data_samples_list:
            # (classes, H, W), or probabilities (1, H, W)
            scores = [sample.seg_logits.data for sample in samples]
            if len(scores[0]) == 1:
                score = torch.stack(scores).mean(0)
                labels = score > self.module.decode_head.threshold
            else:
                score = sum(s.softmax(0) for s in scores) / len(scores)
                labels = score.argmax(0, keepdim=True)
            first = samples[0]
            first.set_data(dict(pred_sem_seg=PixelData(data=labels.long())))
            merged.append(first)
        return merged

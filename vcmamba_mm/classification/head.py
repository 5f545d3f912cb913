"""Classification head with one or two linear layers."""

import torch
import torch.nn as nn
from mmpretrain.models.heads import ClsHead
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor


@MODELS.register_module()
class VCMambaClsHead(ClsHead):
    """A linear classifier, or two that are trained apart and averaged.

    With ``distillation`` the second classifier learns from a teacher (see
    ``DistilledImageClassifier``); without a teacher both learn from the
    labels. At test time the mean of their logits counts.

    Args:
        num_classes: Number of categories.
        in_channels: Channels of the pooled features.
        distillation: Whether there is a second classifier.
        **kwargs: ``loss``, ``topk``, ``cal_acc``, ``init_cfg`` of mmpretrain's
            ``ClsHead``.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        distillation: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.fc = nn.Linear(in_channels, num_classes)
        self.fc_dist = (
            nn.Linear(in_channels, num_classes) if distillation else None
        )
        for fc in filter(None, (self.fc, self.fc_dist)):
            nn.init.trunc_normal_(fc.weight, std=0.02)
            nn.init.zeros_(fc.bias)

    def logits(self, feats: tuple[Tensor]) -> tuple[Tensor, ...]:
        """Logits of each classifier, one or two of (batch, num_classes)."""
        x = self.pre_logits(feats)
        if self.fc_dist is None:
            return (self.fc(x),)
        return self.fc(x), self.fc_dist(x)

    def forward(self, feats: tuple[Tensor]) -> Tensor:
        """Logits averaged over the classifiers, (batch, num_classes)."""
        return torch.stack(self.logits(feats)).mean(0)

    def loss(
        self, feats: tuple[Tensor], data_samples: list[DataSample], **kwargs
    ) -> dict[str, Tensor]:
        """Mean of the classifiers' losses on the labels.

        Returns:
            dict: ``loss`` with one classifier, ``loss_cls`` and ``loss_dist``
            (each with its share) with two, and the accuracies if ``cal_acc``.
        """
        logits = self.logits(feats)
        losses = self._get_loss(logits[0], data_samples, **kwargs)
        if len(logits) == 1:
            return losses
        dist = self._get_loss(logits[1], data_samples, **kwargs)['loss']
        losses['loss_cls'] = 0.5 * losses.pop('loss')
        losses['loss_dist'] = 0.5 * dist
        return losses

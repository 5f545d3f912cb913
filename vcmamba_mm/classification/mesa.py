"""Training a classifier from its own average: MESA."""

import torch.nn as nn
import torch.nn.functional as F
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from .distillation import Teacher


def mesa_divergence(
    logits: Tensor, average_logits: Tensor, tau: float
) -> Tensor:
    """Mean over the batch of KL(p || q), both (B, K).

    p = softmax(average_logits / tau), q = softmax(logits / tau).
    """
    return F.kl_div(
        F.log_softmax(logits / tau, dim=1),
        F.log_softmax(average_logits / tau, dim=1),
        reduction='batchmean',
        log_target=True,
    )


@MODELS.register_module()
class MESAImageClassifier(ImageClassifier):
    """Image classifier that learns from its own average, too.

        loss = head's loss + weight * KL(average's logits || logits)

    at temperature ``tau`` (MESA; arXiv 2205.14083 for the idea, MambaVision's
    configuration files for this form). The average is that of an ``EMAHook``
    before the step. It sees the same augmented batch, in eval mode, and gets
    no gradient. ``MESAHook`` brings it; until then there is no second term.

    Args:
        *args: As mmpretrain's ``ImageClassifier``.
        mesa_weight: Weight of the divergence.
        tau: Temperature of both softmaxes.
        **kwargs: As mmpretrain's ``ImageClassifier``.

    Raises:
        ValueError: If the weight is negative, or ``tau`` not positive.
    """

    def __init__(self, *args, mesa_weight: float, tau: float = 3.0, **kwargs):
        super().__init__(*args, **kwargs)
        if mesa_weight < 0 or tau <= 0:
            raise ValueError(
                'mesa_weight must be at least 0 and tau above 0, got '
                f'{mesa_weight} and {tau}'
            )
        self.mesa_weight = mesa_weight
        self.tau = tau
        self.average: Teacher | None = None

    def loss(
        self, inputs: Tensor, data_samples: list[DataSample]
    ) -> dict[str, Tensor]:
        """Losses of a batch (batch, 3, height, width).

        Returns:
            dict: The head's; with the average also ``loss_mesa``, with its
            weight, and what the head calls ``loss`` is ``loss_cls`` then.
        """
        feats = self.extract_feat(inputs)
        losses = self.head.loss(feats, data_samples)
        if self.average is not None:
            divergence = mesa_divergence(
                self.head(feats), self.average.logits(inputs), self.tau
            )
            if 'loss' in losses:  # what MMEngine logs the sum as
                losses['loss_cls'] = losses.pop('loss')
            losses['loss_mesa'] = self.mesa_weight * divergence
        return losses


@HOOKS.register_module()
class MESAHook(Hook):
    """Give a ``MESAImageClassifier`` its average, from an epoch on.

    Args:
        begin: The first epoch with the average, from 0.

    Raises:
        ValueError: When training begins, if there is no ``EMAHook``, the
            model is another one, or epochs are not counted and ``begin`` is
            not 0.
    """

    def __init__(self, begin: int = 0):
        self.begin = begin

    def before_train(self, runner: Runner) -> None:
        averages = [h for h in runner.hooks if isinstance(h, EMAHook)]
        if not averages:
            raise ValueError(
                'MESAHook needs an average to learn from: add an EMAHook, '
                'such as RawAndEMAHook, to custom_hooks'
            )
        self.average: nn.Module = averages[0].ema_model.module
        self.model = runner.model
        if is_model_wrapper(self.model):
            self.model = self.model.module
        if not isinstance(self.model, MESAImageClassifier):
            raise ValueError(
                'MESAHook is for a MESAImageClassifier, the model is a '
                f'{type(self.model).__name__}'
            )
        if self.begin and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError(
                f'MESAHook(begin={self.begin}) counts epochs, which '
                'iteration-based runs do not: set begin=0'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        begins = runner.epoch >= self.begin
        self.model.average = Teacher(self.average) if begins else None

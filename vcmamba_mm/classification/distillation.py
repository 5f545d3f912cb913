"""Training a classifier from a teacher's logits."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmpretrain.models.classifiers import ImageClassifier, TimmClassifier
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from ..checkpoints import CheckpointError, extract_state_dict, read_checkpoint


def distillation_loss(
    logits: Tensor, teacher_logits: Tensor, mode: str, tau: float
) -> Tensor:
    """Loss of the student's logits against the teacher's, both (B, K).

    'soft': tau^2 * sum_{b,k} p_t (log p_t - log p_s) / (B K), with
    p = softmax(logits / tau), as the release has it; 'hard': cross entropy
    with the teacher's class (DeiT, arXiv 2012.12877, eq. 2 and 3).
    """
    if mode == 'hard':
        return F.cross_entropy(logits, teacher_logits.argmax(dim=1))
    divergence = F.kl_div(
        F.log_softmax(logits / tau, dim=1),
        F.log_softmax(teacher_logits / tau, dim=1),
        reduction='sum',
        log_target=True,
    )
    return divergence * tau**2 / logits.numel()


class Teacher:
    """Hides a module from ``nn.Module``'s bookkeeping.

    What is behind it is not in the student's parameters, modes, checkpoint,
    and not in copies either, so that an averaged model shares the teacher.
    """

    def __init__(self, model: nn.Module):
        self.model = model.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict) -> Teacher:
        return self

    @torch.no_grad()
    def logits(self, inputs: Tensor) -> Tensor:
        self.model.to(inputs.device)
        return self.model(inputs, mode='tensor').float()


def _load_pretrained(model: ImageClassifier) -> None:
    """Load what ``init_cfg`` names, all of it; MMEngine loads what fits."""
    init_cfg = model.init_cfg
    if not init_cfg or init_cfg['type'] != 'Pretrained':
        model.init_weights()
        return
    path = init_cfg['checkpoint']
    state_dict = extract_state_dict(
        read_checkpoint(path), path, init_cfg.get('weights')
    )
    try:
        # Models may resize what depends on the size of the pictures.
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        raise CheckpointError(
            f'checkpoint {path} does not fit the teacher: {error}'
        ) from error


@MODELS.register_module()
class DistilledImageClassifier(ImageClassifier):
    """Image classifier whose second linear head learns from a teacher.

        loss = (1 - alpha) * loss(head, label)
               + alpha * distillation(dist_head, teacher)

    The teacher sees the same augmented batch. It is built when training
    begins (``init_weights``), so that testing needs none; it is in eval mode,
    gets no gradient, and is neither in the checkpoint nor in the average
    (EMA) of the model.

    Args:
        *args: As mmpretrain's ``ImageClassifier``.
        teacher: Config of any mmpretrain classifier. For timm's models
            ``dict(type='TimmClassifier', model_name='regnety_160.deit_in1k',
            pretrained=True)``; for others name the weights with
            ``init_cfg=dict(type='Pretrained', checkpoint=...)``, of which
            every key has to fit.
        distillation: 'soft' or 'hard'.
        alpha: Weight of the distillation loss, from 0 to 1.
        tau: Temperature of the soft distillation.
        **kwargs: As mmpretrain's ``ImageClassifier``.

    Raises:
        ValueError: If ``distillation`` is unknown, ``alpha`` or ``tau`` is
            out of range, or the head has no ``distillation`` classifier.
    """

    def __init__(
        self,
        *args,
        teacher: dict,
        distillation: str = 'soft',
        alpha: float = 0.5,
        tau: float = 1.0,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if distillation not in ('soft', 'hard'):
            raise ValueError(
                f"distillation must be 'soft' or 'hard', got {distillation!r}"
            )
        if not 0 <= alpha <= 1 or tau <= 0:
            raise ValueError(
                'alpha must be from 0 to 1 and tau above 0, got '
                f'{alpha} and {tau}'
            )
        if getattr(self.head, 'fc_dist', None) is None:
            raise ValueError(
                'distillation needs a head of type '
                'VCMambaClsHead with distillation=True'
            )
        self.teacher_cfg = teacher
        self.distillation = distillation
        self.alpha = alpha
        self.tau = tau
        self._teacher: Teacher | None = None

    def init_weights(self) -> None:
        super().init_weights()
        _ = self.teacher  # fail now, not in the first iteration

    @property
    def teacher(self) -> Teacher:
        """The teacher, built on first use."""
        if self._teacher is None:
            model = MODELS.build(self.teacher_cfg)
            # timm has initialized or loaded its models when it made them.
            if not isinstance(model, TimmClassifier):
                _load_pretrained(model)
            self._teacher = Teacher(model)
        return self._teacher

    def loss(
        self, inputs: Tensor, data_samples: list[DataSample]
    ) -> dict[str, Tensor]:
        """Losses of a batch (batch, 3, height, width).

        Returns:
            dict: ``loss_cls`` and ``loss_kd``, each with its weight.
        """
        logits, dist_logits = self.head.logits(self.extract_feat(inputs))
        teacher_logits = self.teacher.logits(inputs)
        if teacher_logits.shape != dist_logits.shape:
            raise ValueError(
                f'the teacher has {teacher_logits.shape[1]} classes, the '
                f'student {dist_logits.shape[1]}'
            )
        losses = self.head._get_loss(logits, data_samples)
        losses['loss_cls'] = (1 - self.alpha) * losses.pop('loss')
        losses['loss_kd'] = self.alpha * distillation_loss(
            dist_logits,
            teacher_logits,
            self.distillation,
            self.tau,
        )
        return losses

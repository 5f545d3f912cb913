"""What needs mmpretrain: head, distillation, data set, fast transforms."""

from .datasets import WebDataset
from .distillation import DistilledImageClassifier
from .head import VCMambaClsHead
from .transforms import (
    FastPackInputs,
    FastRandAugment,
    FastRandomErasing,
    FastRandomFlip,
    LoadRandomResizedCrop,
)

__all__ = [
    'DistilledImageClassifier',
    'FastPackInputs',
    'FastRandAugment',
    'FastRandomErasing',
    'FastRandomFlip',
    'LoadRandomResizedCrop',
    'VCMambaClsHead',
    'WebDataset',
]

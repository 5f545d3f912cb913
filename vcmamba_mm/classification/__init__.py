"""What needs mmpretrain: the head and the distilling classifier."""

from .distillation import DistilledImageClassifier
from .head import VCMambaClsHead

__all__ = ['DistilledImageClassifier', 'VCMambaClsHead']

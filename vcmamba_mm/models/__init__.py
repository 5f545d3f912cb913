from .mixer import MultiDirectionalMamba
from .necks import NormGlobalAveragePooling
from .tta import AverageSegScoreTTA
from .vcmamba import VCMamba

__all__ = [
    'AverageSegScoreTTA',
    'MultiDirectionalMamba',
    'NormGlobalAveragePooling',
    'VCMamba',
]

from .mixer import MultiDirectionalMamba
from .necks import NormGlobalAveragePooling
from .vcmamba import VCMamba

__all__ = ['MultiDirectionalMamba', 'NormGlobalAveragePooling', 'VCMamba']

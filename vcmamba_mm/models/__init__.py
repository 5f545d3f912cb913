"""Backbones, one folder for each family, and what they share."""

from .necks import NormGlobalAveragePooling
from .vcmamba import MultiDirectionalMamba, VCMamba

__all__ = ['MultiDirectionalMamba', 'NormGlobalAveragePooling', 'VCMamba']

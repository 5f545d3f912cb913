"""Backbones, one folder for each family, and what they share."""

from .mambavision import MambaVision, MambaVisionMixer
from .necks import NormGlobalAveragePooling
from .plainmamba import PlainMamba, PlainMambaAdapter, PlainMambaMixer
from .vcmamba import MultiDirectionalMamba, VCMamba
from .vmamba import SS2D, VMamba

__all__ = [
    'SS2D',
    'MambaVision',
    'MambaVisionMixer',
    'MultiDirectionalMamba',
    'NormGlobalAveragePooling',
    'PlainMamba',
    'PlainMambaAdapter',
    'PlainMambaMixer',
    'VCMamba',
    'VMamba',
]

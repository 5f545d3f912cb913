"""MambaVision (arXiv 2407.08083)."""

from . import released  # noqa: F401 - registers the names
from .backbone import MambaVision
from .mixers import MambaVisionMixer

__all__ = ['MambaVision', 'MambaVisionMixer']

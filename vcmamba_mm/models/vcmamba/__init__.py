"""VCMamba (arXiv 2509.04669)."""

from . import released  # noqa: F401 - registers the names
from .backbone import VCMamba
from .mixer import MultiDirectionalMamba

__all__ = ['MultiDirectionalMamba', 'VCMamba']

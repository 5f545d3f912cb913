"""VMamba (arXiv 2401.10166)."""

from . import released  # noqa: F401 - registers the names
from .backbone import VMamba
from .mixer import SS2D

__all__ = ['SS2D', 'VMamba']

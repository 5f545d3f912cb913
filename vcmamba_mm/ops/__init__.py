"""The scan: one operator, its backends and their specification."""

from .backends import available_backends
from .path_scan import multi_directional_scan, path_scan, selective_scan

__all__ = [
    'available_backends',
    'multi_directional_scan',
    'path_scan',
    'selective_scan',
]

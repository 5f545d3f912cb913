"""The scan: tensors in, tensors out; it knows no model."""

from .scan import available_backends, multi_directional_scan

__all__ = ['available_backends', 'multi_directional_scan']

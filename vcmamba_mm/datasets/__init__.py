"""Data sets: archives, samplers, decoding."""

from .archives import LmdbPathBackend, TarBackend
from .sampling import SampleIndex, SeededSampler

__all__ = ['LmdbPathBackend', 'SampleIndex', 'SeededSampler', 'TarBackend']

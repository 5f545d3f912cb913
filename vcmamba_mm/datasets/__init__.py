"""Data sets: archives, samplers, decoding."""

from .archives import LmdbPathBackend, TarBackend
from .sampling import SeededSampler, SeedSample

__all__ = ['LmdbPathBackend', 'SeedSample', 'SeededSampler', 'TarBackend']

"""Images, masks and archives: reading, decoding, sampling."""

from .archives import LmdbPathBackend, TarBackend
from .sampling import SeededSampler, SeedSample

__all__ = ['LmdbPathBackend', 'SeedSample', 'SeededSampler', 'TarBackend']

"""VCMamba (arXiv 2509.04669) for the OpenMMLab ecosystem.

Importing this package registers the backbone ``VCMamba``, the neck
``NormGlobalAveragePooling``, the transform ``LoadImageStrict``, and the hooks
and the loop of runs that survive, in MMEngine's root registries. What needs
mmpretrain is in :mod:`vcmamba_mm.classification`.
"""

try:
    import mmcv  # noqa: F401
    import mmengine  # noqa: F401
except ImportError as error:
    raise ImportError(
        f'vcmamba_mm needs {error.name}: install one of the two stacks, '
        '`pip install "vcmamba-mmlab[onedl]"` (current PyTorch) or '
        '`pip install "vcmamba-mmlab[openmmlab]"` (PyTorch <= 2.4, compiled '
        'mmcv)'
    ) from error

from .hooks import AtomicCheckpointHook, CheckFiniteHook, IterSeedHook
from .loops import ResumableEpochLoop
from .models import NormGlobalAveragePooling, VCMamba
from .transforms import LoadImageStrict
from .version import __version__

__all__ = [
    'AtomicCheckpointHook',
    'CheckFiniteHook',
    'IterSeedHook',
    'LoadImageStrict',
    'NormGlobalAveragePooling',
    'ResumableEpochLoop',
    'VCMamba',
    '__version__',
]

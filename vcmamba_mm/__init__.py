"""VCMamba (arXiv 2509.04669) for the OpenMMLab ecosystem.

Importing this package registers the backbone ``VCMamba``, the neck
``NormGlobalAveragePooling``, the transform ``LoadImageStrict``, hooks, and an
optimizer constructor in MMEngine's root registries. What needs mmpretrain is
in :mod:`vcmamba_mm.classification`.
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

from .labels import CheckMasksHook
from .models import NormGlobalAveragePooling, VCMamba
from .monitor import GradNormHook, RawAndEMAHook, ThroughputHook
from .optim import LayerDecayOptimWrapperConstructor
from .transforms import LoadImageStrict
from .version import __version__

__all__ = [
    'CheckMasksHook',
    'GradNormHook',
    'LayerDecayOptimWrapperConstructor',
    'LoadImageStrict',
    'NormGlobalAveragePooling',
    'RawAndEMAHook',
    'ThroughputHook',
    'VCMamba',
    '__version__',
]

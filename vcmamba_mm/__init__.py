"""Vision Mamba backbones for the OpenMMLab ecosystem.

Importing this package registers the backbones ``VCMamba`` (arXiv 2509.04669),
``VMamba`` (arXiv 2401.10166), ``MambaVision`` (arXiv 2407.08083) and
``PlainMamba`` (arXiv 2403.17695; for detectors ``PlainMambaAdapter``), the
neck ``NormGlobalAveragePooling``, the sampler ``SeededSampler``, transforms
that read images, hooks, a loop over epochs, and an optimizer constructor in
MMEngine's root registries, and lets MMEngine read ``tar://`` and ``lmdb://``.
What needs mmpretrain is in ``vcmamba_mm.classification``.
"""

import torch

# NVIDIA's builds before the release are named 2.4.0a0.
if torch.__version__ < '2.4.0a0':
    raise ImportError(
        'vcmamba_mm needs PyTorch >= 2.4 (torch.library.custom_op, '
        f'torch.serialization.add_safe_globals), this is {torch.__version__}: '
        'make a new environment with the extra onedl or openmmlab-lite, as '
        'docs/index.md says'
    )

try:
    import mmcv  # noqa: F401
    import mmengine  # noqa: F401
except ImportError as error:
    raise ImportError(
        f'vcmamba_mm needs {error.name}: install one of the two stacks, '
        '`pip install "vcmamba-mmlab[onedl]"` (current PyTorch) or '
        '`pip install "vcmamba-mmlab[openmmlab-lite]"` (PyTorch 2.4)'
    ) from error

from .data import SeededSampler, SeedSample
from .data.masks import LoadMaskStrict
from .data.reading import LoadImageStrict, ReplaceUnreadable
from .models import (
    MambaVision,
    NormGlobalAveragePooling,
    PlainMamba,
    PlainMambaAdapter,
    VCMamba,
    VMamba,
)
from .segmentation.tta import AverageSegScoreTTA
from .training.check_masks import CheckMasksHook
from .training.hooks import (
    AtomicCheckpointHook,
    AverageBuffersHook,
    CheckFiniteHook,
    IterSeedHook,
)
from .training.loops import ResumableEpochLoop
from .training.monitor import RawAndEMAHook, ThroughputHook
from .training.optim import LayerDecayOptimWrapperConstructor
from .training.results import PaintHook, SaveMasksHook
from .version import __version__

__all__ = [
    'AtomicCheckpointHook',
    'AverageBuffersHook',
    'AverageSegScoreTTA',
    'CheckFiniteHook',
    'CheckMasksHook',
    'IterSeedHook',
    'LayerDecayOptimWrapperConstructor',
    'LoadImageStrict',
    'LoadMaskStrict',
    'MambaVision',
    'NormGlobalAveragePooling',
    'PaintHook',
    'PlainMamba',
    'PlainMambaAdapter',
    'RawAndEMAHook',
    'ReplaceUnreadable',
    'ResumableEpochLoop',
    'SaveMasksHook',
    'SeedSample',
    'SeededSampler',
    'ThroughputHook',
    'VCMamba',
    'VMamba',
    '__version__',
]

"""What needs mmpretrain: heads, data, fast transforms, model names.

Importing it also makes ``vcmamba_b_8xb128_in1k`` and the like known to
mmpretrain's ``get_model`` and ``list_models``.
"""

from mmpretrain.apis import ModelHub

from ..model_zoo import index_root, metafiles
from .batch_augment import (
    AugmentingDataPreprocessor,
    BatchRandAugment,
    BatchRandomErasing,
)
from .datasets import ClassFolders, WebDataset
from .distillation import DistilledImageClassifier
from .head import VCMambaClsHead
from .mesa import MESAHook, MESAImageClassifier
from .transforms import (
    FastPackInputs,
    FastRandAugment,
    FastRandomErasing,
    FastRandomFlip,
    LoadRandomResizedCrop,
)
from .tta import LabelledClsScoreTTA

__all__ = [
    'AugmentingDataPreprocessor',
    'BatchRandAugment',
    'BatchRandomErasing',
    'ClassFolders',
    'DistilledImageClassifier',
    'FastPackInputs',
    'FastRandAugment',
    'FastRandomErasing',
    'FastRandomFlip',
    'LabelledClsScoreTTA',
    'LoadRandomResizedCrop',
    'MESAHook',
    'MESAImageClassifier',
    'VCMambaClsHead',
    'WebDataset',
]

for _metafile in metafiles():
    if _metafile.stem == 'metafile':  # the others are not of classifiers
        ModelHub.register_model_index(_metafile, config_prefix=index_root())

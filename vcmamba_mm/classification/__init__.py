"""What needs mmpretrain: heads, data, fast transforms, model names.

Importing it also makes ``vcmamba_b_8xb128_in1k`` and the like known to
mmpretrain's ``get_model`` and ``list_models``.
"""

from mmpretrain.apis import ModelHub

from ..model_zoo import index_root
from .batch_augment import (
    AugmentingDataPreprocessor,
    BatchRandAugment,
    BatchRandomErasing,
)
from .datasets import ClassFolders, WebDataset
from .distillation import DistilledImageClassifier
from .head import VCMambaClsHead
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
    'VCMambaClsHead',
    'WebDataset',
]

ModelHub.register_model_index(
    index_root() / 'configs/metafile.yml', config_prefix=index_root()
)

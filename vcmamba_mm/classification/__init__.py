"""What needs mmpretrain: the head, the distilling classifier, model names.

Importing it also makes ``vcmamba_b_8xb128_in1k`` and the like known to
mmpretrain's ``get_model`` and ``list_models``.
"""

from mmpretrain.apis import ModelHub

from ..model_zoo import index_root
from .distillation import DistilledImageClassifier
from .head import VCMambaClsHead

__all__ = ['DistilledImageClassifier', 'VCMambaClsHead']

ModelHub.register_model_index(
    index_root() / 'configs/metafile.yml', config_prefix=index_root()
)

"""Models and inferencers from names and checkpoints.

The models are mmpretrain's and mmseg's, and so are the inferencers, but that
they read images as the test does; here they get their config by name and
their weights safely, wholly or not at all, also from the authors' released
files.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import BaseModel
from mmengine.registry import DATASETS

from .checkpoints import check_fit, extract_state_dict, read_checkpoint
from .data.pictures import tested_datasets
from .model_zoo import load_config

if TYPE_CHECKING:
    from .classification.inferencer import ClassificationInferencer
    from .segmentation.inferencer import SegmentationInferencer

SCOPES = ('mmpretrain', 'mmseg')


def _scope(cfg: Config) -> str:
    scope = cfg.get('default_scope')
    if scope not in SCOPES:
        raise ValueError(
            f'{cfg.filename or "the config"} has default_scope {scope!r}: '
            f'this works for classifiers and segmenters, {SCOPES}'
        )
    return scope


def _config_meta(cfg: Config) -> dict:
    """Classes and palette of the config's test data, without reading it."""
    if not cfg.get('test_dataloader'):
        return {}
    dataset = tested_datasets(cfg)[0]
    cls = dataset.type
    if isinstance(cls, str):
        cls = DATASETS.get(f'{_scope(cfg)}.{cls}')
    return {**cls.METAINFO, **dataset.get('metainfo', {})}


def _load(
    model: BaseModel,
    cfg: Config,
    checkpoint: str | Path | None,
    weights: str | None,
) -> None:
    """Give a model its weights and the names of its classes."""
    meta = _config_meta(cfg)
    if checkpoint is not None:
        content = read_checkpoint(checkpoint)
        state_dict = extract_state_dict(content, checkpoint, weights)
        check_fit(model, state_dict, checkpoint)
        model.load_state_dict(state_dict)
        meta.update(content.get('meta', {}).get('dataset_meta') or {})
    # mmseg's name and mmpretrain's
    model.dataset_meta = model._dataset_meta = meta


def get_model(
    model: str | Path | Config,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    weights: str | None = None,
) -> BaseModel:
    """Build a classifier or a segmenter, in eval mode.

    Args:
        model: Name, path of a config file, or a config, see
            ``vcmamba_mm.model_zoo.load_config``.
        checkpoint: Of this project or, for a classifier, a released file;
            without one the weights are random.
        device: By default the GPU if there is one.
        weights: 'raw' or 'ema', of a checkpoint that holds both; by default
            those that its run ranked, see ``checkpoints.take_weights``.

    Returns:
        BaseModel: mmpretrain's or mmseg's; ``inference_model`` of either
        takes it.

    Raises:
        FileNotFoundError: If there is no such name or file.
        ValueError: If the config is of something else.
        CheckpointError: If the checkpoint is damaged or does not fit.
    """
    cfg = load_config(model)
    device = device or get_device()
    if _scope(cfg) == 'mmseg':
        from mmseg.apis import init_model

        built = init_model(cfg, device=device)
    else:
        from mmpretrain import get_model as get_classifier

        # It would look into the test data for what _load reads from them.
        without = cfg.copy()
        without.pop('test_dataloader', None)
        built = get_classifier(without, device=device)
        built._config.test_dataloader = cfg.get('test_dataloader')
    _load(built, cfg, checkpoint, weights)
    return built


def get_inferencer(
    model: str | Path | Config,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    weights: str | None = None,
) -> 'ClassificationInferencer | SegmentationInferencer':
    """Build mmpretrain's or mmseg's inferencer, with the test's pipeline.

    Args and errors: as ``get_model``.

    Examples:
        >>> inferencer = get_inferencer(
        ...     'vcmamba_b_distill_8xb128_in1k', 'VCMamba-B.pth')
        >>> inferencer('cat.jpg')[0]['pred_class']
    """
    cfg = load_config(model)
    device = device or get_device()
    if _scope(cfg) == 'mmpretrain':
        from .classification.inferencer import ClassificationInferencer

        return ClassificationInferencer(
            get_model(cfg, checkpoint, device, weights)
        )
    from .segmentation.inferencer import SegmentationInferencer

    with warnings.catch_warnings():
        # that it has no weights, and takes the classes of Cityscapes
        warnings.filterwarnings('ignore', '.*(not loaded|weights is None)')
        inferencer = SegmentationInferencer(cfg, device=device)
    _load(inferencer.model, cfg, checkpoint, weights)
    return inferencer

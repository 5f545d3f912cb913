"""Images as a model is tested with them, and as they can be shown."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mmcv.transforms import Compose
from mmengine.config import Config, ConfigDict
from mmengine.registry import TRANSFORMS, DefaultScope


def viewable(image: np.ndarray) -> np.ndarray:
    """What can be shown of an image that a transform has read.

    Args:
        image: Shape (height, width) or (height, width, channels). Of more
            than three channels the first three, BGR, are shown, of fewer the
            first one, in grey. Larger values than 255 are scaled to it.

    Returns:
        np.ndarray: RGB, uint8, (height, width, 3).
    """
    image = np.atleast_3d(image)
    image = image[..., [2, 1, 0] if image.shape[2] > 2 else [0, 0, 0]]
    if image.dtype != np.uint8:
        image = image * (255 / max(255, image.max()))
        image = image.clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(image)


def type_name(cfg: dict) -> str:
    """What a config's type is called, with its module if it is a class."""
    kind = cfg.get('type')
    if isinstance(kind, type):  # of a config in pure Python
        return f'{kind.__module__}.{kind.__name__}'
    return str(kind)


def _name(step: dict) -> str:
    """Of a transform, without its scope or module."""
    return type_name(step).rpartition('.')[2]


def _parts(dataset: ConfigDict) -> list[ConfigDict]:
    """Those that a data set wraps, at any depth, or itself."""
    inner = dataset.get('datasets') or [dataset.get('dataset')]
    if 'pipeline' in dataset or inner == [None]:
        return [dataset]
    return [part for each in inner for part in _parts(each)]


def tested_datasets(cfg: Config) -> list[ConfigDict]:
    """The configs of the data sets of the test, without what wraps them.

    Raises:
        ValueError: If the config has no ``test_dataloader``.
    """
    if not cfg.get('test_dataloader'):
        raise ValueError(
            f'{cfg.filename or "the config"} has no test_dataloader, whose '
            'pipeline says how images are read'
        )
    return _parts(cfg.test_dataloader.dataset)


def _steps(cfg: Config) -> tuple[dict, list[dict]]:
    """What reads images in testing, and what follows but for annotations."""
    pipeline = tested_datasets(cfg)[0].get('pipeline')
    if not pipeline:
        raise ValueError(
            f'{cfg.filename or "the config"}: the data set of test_dataloader '
            'has no pipeline, which says how images are read'
        )
    annotations = re.compile('Load.*(Annotation|Mask)')
    steps = [s for s in pipeline if not annotations.match(_name(s))]
    loading = [step for step in steps if _name(step).startswith('Load')][:1]
    rest = [step for step in steps if step not in loading]
    read = dict(loading[0]) if loading else {}
    if not loading or _name(read) == 'LoadImageFromFile':
        read['type'] = 'LoadImageStrict'
    return read, rest


def _build(cfg: Config, step: dict) -> Callable:
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        return TRANSFORMS.build(step)


def build_reading(cfg: Config) -> Callable[[dict], dict]:
    """Build the step of the test pipeline that reads an image.

    Args:
        cfg: Config of a model and of how it is tested.

    Returns:
        Callable: Takes ``dict(img_path=...)``, returns it with ``img``. It is
        ``LoadImageStrict`` where the config says ``LoadImageFromFile``, or
        nothing.

    Raises:
        ValueError: If the config has no ``test_dataloader``, or that no
            pipeline.
    """
    return _build(cfg, _steps(cfg)[0])


def build_test_pipeline(
    cfg: Config,
) -> Callable[[str | Path | np.ndarray], dict]:
    """Build the test pipeline for images without annotations.

    Args and errors: as ``build_reading``.

    Returns:
        Callable: Takes the path of an image, or an image as an array, which
        is taken as it is: as the first step of the pipeline would read it.
    """
    read = build_reading(cfg)

    def take(picture: str | Path | np.ndarray) -> dict:
        if isinstance(picture, np.ndarray):
            shape = picture.shape[:2]
            return dict(img=picture, img_shape=shape, ori_shape=shape)
        return read(dict(img_path=str(picture)))

    return Compose([take, *(_build(cfg, step) for step in _steps(cfg)[1])])

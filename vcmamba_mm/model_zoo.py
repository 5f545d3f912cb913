"""Names for the configs: what ``model-index.yml`` lists."""

import fnmatch
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from mmengine.fileio import load


def index_root() -> Path:
    """Folder of ``model-index.yml``: the clone, or ``.mim`` of a wheel."""
    package = Path(__file__).resolve().parent
    mim = package / '.mim'
    return mim if (mim / 'model-index.yml').is_file() else package.parent


def metafiles() -> list[Path]:
    """The files that ``model-index.yml`` names."""
    root = index_root()
    return [root / path for path in load(root / 'model-index.yml')['Import']]


class _Entry(NamedTuple):
    """What a metafile says of a model."""

    config: Path
    family: str
    task: str


def _entries() -> dict[str, _Entry]:
    """Models by name."""
    return {
        model['Name']: _Entry(
            index_root() / model['Config'],
            # such as 'VMamba UperNet' and 'Semantic Segmentation'
            model['In Collection'].split()[0].lower(),
            model['Results'][0]['Task'].split()[-1].lower(),
        )
        for metafile in metafiles()
        for model in load(metafile)['Models']
    }


def list_models(
    pattern: str = '*', family: str | None = None, task: str | None = None
) -> list[str]:
    """Names of this project's models.

    Args:
        pattern: With ``*`` and ``?`` as in a shell.
        family: Only models with this backbone, such as 'vmamba'.
        task: Only models for 'classification', 'segmentation' or
            'detection'.

    Raises:
        ValueError: If there is no such family or task.
    """
    entries = _entries()
    names = fnmatch.filter(entries, pattern)
    for kind, wanted in (('family', family), ('task', task)):
        if wanted is None:
            continue
        known = {getattr(entry, kind) for entry in entries.values()}
        if wanted.lower() not in known:
            raise ValueError(
                f'unknown {kind} {wanted!r}: choose one of '
                f'{", ".join(sorted(known))}'
            )
        names = [
            name
            for name in names
            if getattr(entries[name], kind) == wanted.lower()
        ]
    return sorted(names)


def load_config(model: str | Path | Config) -> Config:
    """Read a config that is given by name or by path.

    Args:
        model: A name (see ``list_models``), a path of a config file, or
            a config, which is returned as it is.

    Raises:
        FileNotFoundError: If there is neither such a name nor such a file.
    """
    if isinstance(model, Config):
        return model
    entry = _entries().get(str(model))
    path = entry.config if entry else Path(model)
    if not path.is_file():
        raise FileNotFoundError(
            f'{model} is neither a config file nor a name of a model. '
            f'The names are: {", ".join(list_models())}'
        )
    return Config.fromfile(path)


def image_size(cfg: Config) -> tuple[int, int]:
    """Height and width that a config is made for, in pixels.

    The ``crop_size`` of segmenters, else that of the position embedding, else
    what a classifier's test crops to, or 224.
    """
    size = cfg.get('crop_size') or cfg.model.backbone.get('img_size')
    if size is None:
        data = cfg.get('test_dataloader') or {}
        pipeline = data.get('dataset', {}).get('pipeline', [])
        crops = [t['crop_size'] for t in pipeline if 'crop_size' in t]
        size = crops[-1] if crops else 224
    return (size, size) if isinstance(size, int) else tuple(size)

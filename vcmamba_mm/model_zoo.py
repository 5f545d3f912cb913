"""Names for the configs: what ``model-index.yml`` lists."""

import fnmatch
from pathlib import Path

from mmengine.config import Config
from mmengine.fileio import load


def index_root() -> Path:
    """Folder of ``model-index.yml``: the clone, or ``.mim`` of a wheel."""
    package = Path(__file__).resolve().parent
    mim = package / '.mim'
    return mim if (mim / 'model-index.yml').is_file() else package.parent


def _config_paths() -> dict[str, Path]:
    root = index_root()
    return {
        model['Name']: root / model['Config']
        for metafile in load(root / 'model-index.yml')['Import']
        for model in load(root / metafile)['Models']
    }


def list_models(pattern: str = '*') -> list[str]:
    """Names of this project's models.

    Args:
        pattern: With ``*`` and ``?`` as in a shell.
    """
    return sorted(fnmatch.filter(_config_paths(), pattern))


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
    path = _config_paths().get(str(model), Path(model))
    if not path.is_file():
        raise FileNotFoundError(
            f'{model} is neither a config file nor a name of a model. '
            f'The names are: {", ".join(list_models())}'
        )
    return Config.fromfile(path)

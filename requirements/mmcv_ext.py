"""Stand-in for mmcv's compiled operators, to be copied to mmcv/_ext.py.

mmsegmentation 1.2 asks for them when it is imported, whatever the model; with
this it can be imported beside mmcv-lite. Operators fail when they are used.
"""

from collections.abc import Callable


def __getattr__(name: str) -> Callable:
    if name.startswith('__'):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise NotImplementedError(
            f'{name} is a compiled operator of mmcv, and mmcv-lite has none: '
            'build mmcv from source, as docs/index.md of vcmamba_mm says'
        )

    return missing

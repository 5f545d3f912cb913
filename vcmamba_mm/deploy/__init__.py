"""From a trained model to one that is used: folding, compiling, exporting."""

from .fuse import fold_norms, fuse, optimize

__all__ = ['fold_norms', 'fuse', 'optimize']

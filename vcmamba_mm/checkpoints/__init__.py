"""Checkpoints: reading safely, loading wholly or not at all, resuming."""

from .loading import (
    check_fit,
    extract_state_dict,
    init_from_pretrained,
    take_weights,
)
from .reading import CheckpointError, read_checkpoint, write_checkpoint
from .released import from_released, is_released, to_released
from .resuming import check_resumable, find_resumable

__all__ = [
    'CheckpointError',
    'check_fit',
    'check_resumable',
    'extract_state_dict',
    'find_resumable',
    'from_released',
    'init_from_pretrained',
    'is_released',
    'read_checkpoint',
    'take_weights',
    'to_released',
    'write_checkpoint',
]

"""The names and shapes of the released weights of VMamba, and ours."""

from torch import Tensor

from ...checkpoints.released import (
    NameTables,
    ReleasedNames,
    Weight,
    in_other_models,
    register,
)
from .mixer import PATHS

# Prefixes (ours, released); inside one table the first match wins.
_TABLES = NameTables(
    model=(
        ('backbone.stem.0.', 'patch_embed.0.'),
        ('backbone.stem.1.', 'patch_embed.2.'),
        ('backbone.stem.3.', 'patch_embed.5.'),
        ('backbone.stem.4.', 'patch_embed.7.'),
        ('neck.norm.', 'classifier.norm.'),
        ('head.fc.', 'classifier.head.'),
    ),
    block=(
        ('norm1.', 'norm.'),
        ('norm2.', 'norm2.'),
        ('mlp.fc1.', 'mlp.fc1.'),
        ('mlp.fc2.', 'mlp.fc2.'),
        ('mixer.in_proj.', 'op.in_proj.'),
        ('mixer.dwconv.', 'op.conv2d.'),
        ('mixer.x_proj.weight', 'op.x_proj_weight'),
        ('mixer.dt_proj.weight', 'op.dt_projs_weight'),
        ('mixer.dt_bias', 'op.dt_projs_bias'),
        ('mixer.A_log', 'op.A_logs'),
        ('mixer.D', 'op.Ds'),
        ('mixer.norm.', 'op.out_norm.'),
        ('mixer.out_proj.', 'op.out_proj.'),
    ),
    block_place='layers.{stage}.blocks.{block}.',
    downsample=(('0.', '1.'), ('1.', '3.')),
    downsample_place='layers.{stage}.downsample.',
)
# Linear layers that the release also keeps as 1x1 convolutions.
_LINEAR = ('in_proj.weight', 'out_proj.weight', 'fc1.weight', 'fc2.weight')


def _to_ours(key: str, value: Tensor) -> Weight:
    key = _TABLES.to_ours(key)
    if key.endswith('.x_proj.weight'):
        _check(value, 3)
        value = value.flatten(0, 1)
    elif key.endswith('.A_log'):
        _check(value, 2)
        value = value.unflatten(0, (len(PATHS), -1))
    elif key.endswith(_LINEAR) and value.dim() == 4:
        value = value.flatten(1)
    return key, value


def _to_released(key: str, value: Tensor) -> Weight:
    key = _TABLES.to_released(key)
    if key.endswith('.x_proj_weight'):
        _check(value, 2)
        value = value.unflatten(0, (len(PATHS), -1))
    elif key.endswith('.A_logs'):
        _check(value, 3)
        value = value.flatten(0, 1)
    return key, value


def _check(value: Tensor, num_dims: int) -> None:
    """Refuse what cannot be divided among the paths."""
    if value.dim() != num_dims or len(value) % len(PATHS):
        raise ValueError(f'shape {tuple(value.shape)}')


_NAMES = ReleasedNames(
    'VMamba',
    ('layers.0.blocks.0.op.',),
    _to_ours,
    _to_released,
    {
        'layers.0.blocks.0.self_attention.': "VMamba's first version "
        '("vanilla": 16 states, a gate, no MLP)'
    },
)
register(_NAMES)
register(in_other_models(_NAMES))

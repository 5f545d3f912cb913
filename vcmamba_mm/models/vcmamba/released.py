"""The names of the released weights of VCMamba, and ours."""

import re

from ...checkpoints.released import (
    ReleasedNames,
    register,
    replace_prefix,
)

# Prefixes (ours, released); inside one table the first match wins.
_MODEL_NAMES = (
    ('backbone.pos_embed', 'pos_embed'),
    ('backbone.stem.', 'patch_embed.'),
    ('neck.norm.', 'norm.'),
    ('head.fc.', 'head.'),
    ('head.fc_dist.', 'dist_head.'),
)
_DOWNSAMPLE_NAMES = (('0.', 'proj.'), ('1.', 'norm.'))
_BLOCK_NAMES = (
    ('gamma', 'layer_scale_2'),
    ('norm1.', 'norm.'),
    ('norm2.', 'norm2.'),
    ('ffn.fc1.', 'mlp.fc1.'),
    ('ffn.norm1.', 'mlp.norm1.'),
    ('ffn.dwconv.', 'mlp.mid.'),
    ('ffn.norm2.', 'mlp.mid_norm.'),
    ('ffn.fc2.', 'mlp.fc2.'),
    ('ffn.norm3.', 'mlp.norm2.'),
    ('mixer.in_proj.', 'mamba.in_conv.0.'),
    ('mixer.in_norm.', 'mamba.in_conv.1.'),
    ('mixer.dwconv.', 'mamba.conv2d.'),
    ('mixer.x_proj.', 'mamba.x_proj.'),
    ('mixer.dt_proj.', 'mamba.dt_proj.'),
    ('mixer.A_log', 'mamba.A_log'),
    ('mixer.D', 'mamba.D'),
    ('mixer.direction_B', 'mamba.direction_Bs'),
    ('mixer.norm.', 'mamba.norm.'),
    ('mixer.out_proj.', 'mamba.out_conv.1.'),
    ('mixer.out_norm.', 'mamba.out_conv.2.'),
)


def _key_to_ours(key: str) -> str:
    match = re.match(r'network\.(\d+)\.(.*)', key)
    if match is None:
        return replace_prefix(key, _MODEL_NAMES, to=0)
    # network: stage 0, downsampling, stage 1, downsampling, ...
    stage, is_downsample = divmod(int(match[1]), 2)
    if is_downsample:
        rest = replace_prefix(match[2], _DOWNSAMPLE_NAMES, to=0)
        return f'backbone.stages.{stage + 1}.downsample.{rest}'
    block, rest = match[2].split('.', 1)
    rest = replace_prefix(rest, _BLOCK_NAMES, to=0)
    return f'backbone.stages.{stage}.blocks.{block}.{rest}'


def _key_to_released(key: str) -> str:
    match = re.match(
        r'backbone\.stages\.(\d+)\.(?:downsample|blocks\.(\d+))\.(.*)', key
    )
    if match is None:
        return replace_prefix(key, _MODEL_NAMES, to=1)
    stage, block, rest = int(match[1]), match[2], match[3]
    if block is None:
        rest = replace_prefix(rest, _DOWNSAMPLE_NAMES, to=1)
        return f'network.{2 * stage - 1}.{rest}'
    rest = replace_prefix(rest, _BLOCK_NAMES, to=1)
    return f'network.{2 * stage}.{block}.{rest}'


register(
    ReleasedNames(
        'VCMamba',
        ('network.',),
        _key_to_ours,
        _key_to_released,
    )
)

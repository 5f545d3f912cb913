"""The names and shapes of the released weights of PlainMamba, and ours."""

from math import isqrt

from torch import Tensor

from ...checkpoints.released import (
    OTHER_PARTS,
    NameTables,
    ReleasedNames,
    Weight,
    in_other_models,
    register,
)

_ATTENTION = (
    ('attention.sampling_offsets.', 'attn.sampling_offsets.'),
    ('attention.attention_weights.', 'attn.attention_weights.'),
    ('attention.value_proj.', 'attn.value_proj.'),
    ('attention.output_proj.', 'attn.output_proj.'),
    ('query_norm.', 'query_norm.'),
    ('value_norm.', 'feat_norm.'),
)
_EXTRACTOR = (
    *_ATTENTION,
    ('ffn.fc1.', 'ffn.fc1.'),
    ('ffn.dwconv.', 'ffn.dwconv.dwconv.'),
    ('ffn.fc2.', 'ffn.fc2.'),
    ('ffn_norm.', 'ffn_norm.'),
)
# Prefixes (ours, released); inside one table the first match wins.
_TABLES = NameTables(
    model=(
        ('backbone.pos_embed', 'pos_embed'),
        *(
            (f'backbone.stem.convs.{3 * i + j}.', f'patch_embed.{name}.')
            for i, names in enumerate(
                (
                    ('stem.0', 'stem.1'),
                    ('convs.0', 'convs.1'),
                    ('convs.3', 'convs.4'),
                )
            )
            for j, name in enumerate(names)
        ),
        ('backbone.stem.proj.', 'patch_embed.projection.'),
        ('backbone.final_norm.', 'ln1.'),
        ('backbone.adapter.prior.level_embed', 'level_embed'),
        ('backbone.adapter.prior.stem.', 'spm.stem.'),
        *(
            (f'backbone.adapter.prior.{ours}.{i}.', f'spm.{name}{i + 2}.')
            for i in range(3)
            for ours, name in (('downsamples', 'conv'), ('projs', 'fc'))
        ),
        ('backbone.adapter.finest.proj.', 'spm.fc1.'),
        ('backbone.adapter.finest.up.', 'up.'),
        *(
            (f'backbone.adapter.norms.{i}.', f'ad_norm{i + 1}.')
            for i in range(4)
        ),
    ),
    block=(
        ('norm.', 'norm.'),
        ('dwconv.', 'dw.'),
        ('mixer.in_proj.', 'mamba.in_proj.'),
        ('mixer.dwconv.', 'mamba.conv2d.'),
        ('mixer.x_proj.', 'mamba.x_proj.'),
        ('mixer.dt_proj.', 'mamba.dt_proj.'),
        ('mixer.A_log', 'mamba.A_log'),
        ('mixer.D', 'mamba.D'),
        ('mixer.direction_B', 'mamba.direction_Bs'),
        ('mixer.out_proj.', 'mamba.out_proj.'),
    ),
    block_place='layers.{stage}.',
    others=(
        (
            (*_ATTENTION, ('gamma', 'gamma')),
            'backbone.adapter.injectors.{stage}.',
            'interactions.{stage}.injector.',
        ),
        *(
            (
                _EXTRACTOR,
                f'backbone.adapter.extractors.{{stage}}.{i}.',
                f'interactions.{{stage}}.{name}.',
            )
            for i, name in enumerate(
                ('extractor', 'extra_extractors.0', 'extra_extractors.1')
            )
        ),
    ),
)


def _to_ours(key: str, value: Tensor) -> Weight:
    key = _TABLES.to_ours(key)
    if key.endswith('pos_embed'):  # (1, L, C) -> (1, C, height, width)
        if value.dim() != 3 or isqrt(value.shape[1]) ** 2 != value.shape[1]:
            raise ValueError(f'shape {tuple(value.shape)}')
        value = value.mT.unflatten(2, 2 * (isqrt(value.shape[1]),))
    return key, value


def _to_released(key: str, value: Tensor) -> Weight:
    key = _TABLES.to_released(key)
    if key == 'pos_embed':  # (1, C, height, width) -> (1, L, C)
        # Released ones are square: nothing else tells height from width.
        if value.dim() != 4 or value.shape[2] != value.shape[3]:
            raise ValueError(f'shape {tuple(value.shape)}')
        value = value.flatten(2).mT
    return key, value


# The authors write ``backbone.`` in the files of classifiers, too.
register(
    in_other_models(
        ReleasedNames(
            'PlainMamba', ('layers.0.mamba.',), _to_ours, _to_released
        ),
        'norm_layer',
        (*OTHER_PARTS, 'head.'),
    )
)

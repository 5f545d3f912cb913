"""The names of the released weights of MambaVision, and ours."""

from ...checkpoints.released import (
    NameTables,
    ReleasedNames,
    in_other_models,
    register,
)

# Prefixes (ours, released); inside one table the first match wins.
_TABLES = NameTables(
    model=(
        ('backbone.stem.', 'patch_embed.conv_down.'),
        ('neck.norm.', 'norm.'),
        ('head.fc.', 'head.'),
    ),
    block=(
        ('gamma1', 'gamma_1'),
        ('gamma2', 'gamma_2'),
        ('mixer.conv_x.', 'mixer.conv1d_x.'),
        ('mixer.conv_z.', 'mixer.conv1d_z.'),
        *(
            (name, name)
            for name in (
                *('conv1.', 'conv2.', 'norm1.', 'norm2.', 'mlp.'),
                *('mixer.A_log', 'mixer.D', 'mixer.in_proj.'),
                *('mixer.x_proj.', 'mixer.dt_proj.', 'mixer.out_proj.'),
                *('mixer.qkv.', 'mixer.proj.'),
            )
        ),
    ),
    block_place='levels.{stage}.blocks.{block}.',
    downsample=(('weight', '0.weight'),),
    downsample_place='levels.{stage}.downsample.reduction.',
)

_NAMES = ReleasedNames(
    'MambaVision',
    ('patch_embed.conv_down.', 'model.patch_embed.conv_down.'),
    # Hugging Face's files have a prefix.
    lambda key, value: (_TABLES.to_ours(key.removeprefix('model.')), value),
    lambda key, value: (_TABLES.to_released(key), value),
)
register(_NAMES)
register(in_other_models(_NAMES))

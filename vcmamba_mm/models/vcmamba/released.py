"""The names of the released weights of VCMamba, and ours."""

from ...checkpoints.released import NameTables, ReleasedNames, register

# Prefixes (ours, released); inside one table the first match wins.
_NAMES = NameTables(
    model=(
        ('backbone.pos_embed', 'pos_embed'),
        ('backbone.stem.', 'patch_embed.'),
        ('neck.norm.', 'norm.'),
        ('head.fc.', 'head.'),
        ('head.fc_dist.', 'dist_head.'),
    ),
    block=(
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
    ),
    # network: stage 0, downsampling, stage 1, downsampling, ...
    block_place='network.{stage}.{block}.',
    downsample=(('0.', 'proj.'), ('1.', 'norm.')),
    downsample_place='network.{stage}.',
    period=2,
)
register(
    ReleasedNames(
        'VCMamba',
        ('network.',),
        lambda key, value: (_NAMES.to_ours(key), value),
        lambda key, value: (_NAMES.to_released(key), value),
    )
)

# A small classifier on the built-in data set of
# `make demo BACKBONE=mambavision`.
_base_ = '../demo/vcmamba_demo_digits.py'
work_dir = 'work_dirs/demo_mambavision/classifier'
model = dict(
    backbone=dict(
        _delete_=True,
        type='MambaVision',
        arch=dict(
            embed_dims=(16, 32, 64, 96),
            depths=(1, 1, 3, 2),
            stem_dims=16,
            num_heads=(4, 6),
            layer_scale=None,
        ),
        window_size='map',
    ),
    neck=dict(norm_cfg=dict(type='BN')),
    head=dict(type='LinearClsHead'),
)

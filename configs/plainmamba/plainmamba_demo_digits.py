# A small classifier on the built-in data set of
# `make demo BACKBONE=plainmamba`.
_base_ = '../demo/vcmamba_demo_digits.py'
work_dir = 'work_dirs/demo_plainmamba/classifier'
arch = dict(embed_dims=64, depth=6, stem_convs=1, extra_conv=True)
model = dict(
    backbone=dict(_delete_=True, type='PlainMamba', arch=arch, img_size=64),
    neck=dict(_delete_=True, type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', in_channels=64),
)

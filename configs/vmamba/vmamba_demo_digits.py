# A small classifier on the built-in data set of
# `make demo BACKBONE=vmamba`.
_base_ = '../demo/vcmamba_demo_digits.py'
work_dir = 'work_dirs/demo_vmamba/classifier'
arch = dict(embed_dims=(16, 32, 64, 96), depths=(1, 1, 2, 1), expand=2)
model = dict(
    backbone=dict(_delete_=True, type='VMamba', arch=arch),
    head=dict(type='LinearClsHead'),
)

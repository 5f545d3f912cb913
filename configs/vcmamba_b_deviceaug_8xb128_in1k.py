_base_ = [
    '_base_/models/vcmamba_cls.py',
    '_base_/datasets/imagenet_bs128_224_device.py',
    '_base_/schedules/imagenet_bs1024_adamw_300e.py',
    '_base_/default_runtime/classification.py',
]
model = dict(
    backbone=dict(arch='b'),
    neck=dict(in_channels=512),
    head=dict(in_channels=512),
)

_base_ = [
    '../_base_/models/mambavision_cls.py',
    '../_base_/datasets/imagenet_bs128_224_once.py',
    '../_base_/schedules/mambavision_imagenet_bs4096_320e.py',
    '../_base_/default_runtime/classification.py',
]
model = dict(
    mesa_weight=300.0,
    backbone=dict(arch='l', drop_path_rate=0.3),
    neck=dict(in_channels=1568),
    head=dict(in_channels=1568),
)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 224
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(weight_decay=0.12))
default_hooks = dict(checkpoint=dict(save_best='accuracy/top1_ema'))

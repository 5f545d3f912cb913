_base_ = [
    '../_base_/models/mambavision_cls.py',
    '../_base_/datasets/imagenet_bs128_224_once.py',
    '../_base_/schedules/mambavision_imagenet_bs4096_320e.py',
    '../_base_/default_runtime/classification.py',
]
model = dict(
    mesa_weight=50.0,
    backbone=dict(arch='b', drop_path_rate=0.3),
    neck=dict(in_channels=1024),
    head=dict(in_channels=1024),
)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 224
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(weight_decay=0.075))
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 35
custom_hooks = _base_.custom_hooks
custom_hooks[2].begin = 94
default_hooks = dict(checkpoint=dict(save_best='accuracy/top1_ema'))

_base_ = [
    '../_base_/models/mambavision_cls.py',
    '../_base_/datasets/imagenet_bs128_224_once.py',
    '../_base_/schedules/mambavision_imagenet_bs4096_320e.py',
    '../_base_/default_runtime/classification.py',
]
model = dict(
    mesa_weight=37.5,
    backbone=dict(arch='t2', drop_path_rate=0.2),
)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 228
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
default_hooks = dict(checkpoint=dict(save_best='accuracy/top1_ema'))

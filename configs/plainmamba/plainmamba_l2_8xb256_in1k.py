_base_ = [
    '../_base_/models/plainmamba_cls.py',
    '../_base_/datasets/imagenet_bs256_224_once.py',
    '../_base_/schedules/plainmamba_imagenet_bs2048_300e.py',
    '../_base_/default_runtime/classification.py',
]
model = dict(backbone=dict(arch='l2'), head=dict(in_channels=384))
default_hooks = dict(checkpoint=dict(save_best='accuracy/top1_ema'))

_base_ = [
    '../_base_/models/vmamba_cls.py',
    '../_base_/datasets/imagenet_bs128_224_once.py',
    '../_base_/schedules/vmamba_imagenet_bs1024_300e.py',
    '../_base_/default_runtime/classification.py',
]
model = dict(backbone=dict(arch='s_s1l20', drop_path_rate=0.3))
default_hooks = dict(checkpoint=dict(save_best='accuracy/top1_ema'))

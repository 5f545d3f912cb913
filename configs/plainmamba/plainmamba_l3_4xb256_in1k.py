_base_ = [
    '../_base_/models/plainmamba_cls.py',
    '../_base_/datasets/imagenet_bs256_224_once.py',
    '../_base_/schedules/plainmamba_imagenet_bs2048_300e.py',
    '../_base_/default_runtime/classification.py',
]
model = dict(
    backbone=dict(arch='l3', drop_path_rate=0.4), head=dict(in_channels=448)
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
default_hooks = dict(checkpoint=dict(save_best='accuracy/top1_ema'))
auto_scale_lr = dict(base_batch_size=1024)

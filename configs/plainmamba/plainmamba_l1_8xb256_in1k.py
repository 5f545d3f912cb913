_base_ = [
    '../_base_/models/plainmamba_cls.py',
    '../_base_/datasets/imagenet_bs256_224_once.py',
    '../_base_/schedules/plainmamba_imagenet_bs2048_300e.py',
    '../_base_/default_runtime/classification.py',
]
optim_wrapper = dict(
    type='AmpOptimWrapper', dtype='float16', clip_grad=dict(max_norm=5.0)
)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 15
custom_hooks = _base_.custom_hooks[1:]  # no average

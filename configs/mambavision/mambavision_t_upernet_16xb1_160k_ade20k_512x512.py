_base_ = [
    '../_base_/models/mambavision_upernet.py',
    '../_base_/datasets/ade20k_512x512_unpadded.py',
    '../_base_/schedules/swin_ade20k_bs16_160k.py',
    '../_base_/default_runtime/segmentation.py',
]
# Weights under CC-BY-NC-SA-4.0: not for commercial use.
checkpoint = 'checkpoints/mambavision_tiny_1k.pth.tar'
model = dict(
    backbone=dict(
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
)
optim_wrapper = dict(
    type='AmpOptimWrapper', dtype='float16', optimizer=dict(lr=5e-05)
)
train_dataloader = dict(batch_size=1)
train_cfg = dict(val_interval=10000)
default_hooks = dict(checkpoint=dict(interval=10000))

_base_ = [
    '../_base_/models/plainmamba_upernet.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/plainmamba_ade20k_bs16_160k.py',
    '../_base_/default_runtime/segmentation.py',
]
# A classifier's checkpoint: the released one, or one that was trained here.
checkpoint = 'checkpoints/l1.pth'
model = dict(
    backbone=dict(
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
)
train_dataloader = dict(batch_size=2)
default_hooks = dict(checkpoint=dict(interval=8000))

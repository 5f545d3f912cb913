_base_ = [
    '../_base_/models/plainmamba_upernet.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/plainmamba_ade20k_bs16_160k.py',
    '../_base_/default_runtime/segmentation.py',
]
# A classifier's checkpoint: the released one, or one that was trained here.
checkpoint = 'checkpoints/l2.pth'
model = dict(
    backbone=dict(
        arch='l2',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384),
)
train_dataloader = dict(batch_size=2)
default_hooks = dict(checkpoint=dict(interval=8000))

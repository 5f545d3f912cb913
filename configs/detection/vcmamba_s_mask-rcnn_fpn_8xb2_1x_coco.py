_base_ = [
    '../_base_/models/vcmamba_mask_rcnn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_bs16_adamw_12e.py',
    '../_base_/default_runtime/detection.py',
]
# A classifier's checkpoint: the released one, or one that was trained here.
checkpoint = 'checkpoints/VCMamba-S.pth'
model = dict(
    backbone=dict(
        arch='s', init_cfg=dict(type='Pretrained', checkpoint=checkpoint)
    ),
    neck=dict(in_channels=[32, 64, 144, 288]),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))

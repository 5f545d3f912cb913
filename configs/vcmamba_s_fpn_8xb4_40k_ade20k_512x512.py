_base_ = [
    '_base_/models/vcmamba_fpn.py',
    '_base_/datasets/ade20k_512x512.py',
    '_base_/schedules/ade20k_bs32_adamw_40k.py',
    '_base_/default_runtime/segmentation.py',
]
# A classifier's checkpoint: the released one, or one that was trained here.
checkpoint = 'checkpoints/VCMamba-S.pth'
model = dict(
    backbone=dict(
        arch='s', init_cfg=dict(type='Pretrained', checkpoint=checkpoint)
    ),
    neck=dict(in_channels=[32, 64, 144, 288]),
)

_base_ = [
    '../_base_/models/vmamba_upernet.py',
    '../_base_/datasets/ade20k_512x512_unpadded.py',
    '../_base_/schedules/swin_ade20k_bs16_160k.py',
    '../_base_/default_runtime/segmentation.py',
]
# A classifier's checkpoint: the released one, or one that was trained here.
checkpoint = 'checkpoints/vssm_base_0229_ckpt_epoch_237.pth'
model = dict(
    backbone=dict(
        arch='b',
        drop_path_rate=0.6,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
default_hooks = dict(checkpoint=dict(interval=16000))

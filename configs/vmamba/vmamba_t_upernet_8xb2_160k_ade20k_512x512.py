_base_ = [
    '../_base_/models/vmamba_upernet.py',
    '../_base_/datasets/ade20k_512x512_unpadded.py',
    '../_base_/schedules/swin_ade20k_bs16_160k.py',
    '../_base_/default_runtime/segmentation.py',
]
# A classifier's checkpoint: the released one, or one that was trained here.
checkpoint = 'checkpoints/vssm1_tiny_0230s_ckpt_epoch_264.pth'
model = dict(
    backbone=dict(
        arch='t',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
)
default_hooks = dict(checkpoint=dict(interval=16000))

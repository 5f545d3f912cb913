_base_ = [
    '../_base_/models/vmamba_upernet.py',
    '../_base_/datasets/ade20k_512x512_unpadded.py',
    '../_base_/schedules/swin_ade20k_bs16_160k.py',
    '../_base_/default_runtime/segmentation.py',
]
# A classifier's checkpoint: the released one, or one that was trained here.
checkpoint = 'checkpoints/vssm_small_0229_ckpt_epoch_222.pth'
model = dict(
    backbone=dict(
        arch='s',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
)
default_hooks = dict(checkpoint=dict(interval=16000))

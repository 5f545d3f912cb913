_base_ = [
    '../_base_/models/vmamba_mask_rcnn.py',
    '../_base_/datasets/coco_instance_multi-scale.py',
    '../_base_/schedules/swin_coco_bs16_36e.py',
    '../_base_/default_runtime/detection.py',
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

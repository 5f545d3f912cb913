_base_ = [
    '../_base_/models/plainmamba_retinanet.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/plainmamba_coco_bs16_12e.py',
    '../_base_/default_runtime/detection.py',
]
# A classifier's checkpoint: the released one, or one that was trained here.
checkpoint = 'checkpoints/l2.pth'
model = dict(
    backbone=dict(
        arch='l2',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[384, 384, 384]),
)
optim_wrapper = dict(clip_grad=dict(max_norm=35.0))

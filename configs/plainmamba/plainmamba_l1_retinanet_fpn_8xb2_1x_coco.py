_base_ = [
    '../_base_/models/plainmamba_retinanet.py',
    '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/plainmamba_coco_bs16_12e.py',
    '../_base_/default_runtime/detection.py',
]
# A classifier's checkpoint: the released one, or one that was trained here.
checkpoint = 'checkpoints/l1.pth'
model = dict(
    backbone=dict(
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
)
optim_wrapper = dict(clip_grad=dict(max_norm=35.0))

_base_ = [
    '../_base_/models/plainmamba_mask_rcnn.py',
    '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/plainmamba_coco_bs16_12e.py',
    '../_base_/default_runtime/detection.py',
]
# A classifier's checkpoint: the released one, or one that was trained here.
checkpoint = 'checkpoints/l3.pth'
model = dict(
    backbone=dict(
        arch='l3',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[448, 448, 448, 448]),
)
# Pictures without objects are kept.
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False)))

_base_ = [
    '../_base_/models/plainmamba_mask_rcnn.py',
    '../_base_/datasets/coco_instance.py',
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
# Pictures without objects are kept.
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False)))

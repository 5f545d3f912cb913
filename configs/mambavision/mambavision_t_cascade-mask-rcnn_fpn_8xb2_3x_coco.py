_base_ = [
    '../_base_/models/mambavision_cascade_mask_rcnn.py',
    '../_base_/datasets/coco_instance_multi-scale.py',
    '../_base_/schedules/swin_coco_bs16_36e.py',
    '../_base_/default_runtime/detection.py',
]
# Weights under CC-BY-NC-SA-4.0: not for commercial use.
checkpoint = 'checkpoints/mambavision_tiny_1k.pth.tar'
model = dict(
    backbone=dict(
        arch='t', init_cfg=dict(type='Pretrained', checkpoint=checkpoint)
    ),
)
optim_wrapper = dict(type='AmpOptimWrapper', dtype='float16')

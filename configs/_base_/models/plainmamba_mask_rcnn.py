# Mask R-CNN; the leaf configs set arch, drop path and in_channels.
_base_ = 'mask_rcnn.py'
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(
        type='PlainMambaAdapter',
        arch='l1',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.1,
        norm_cfg=norm_cfg,
    ),
    neck=dict(in_channels=[192, 192, 192, 192], norm_cfg=norm_cfg),
    roi_head=dict(
        bbox_head=dict(
            type='Shared4Conv1FCBBoxHead',
            conv_out_channels=256,
            norm_cfg=norm_cfg,
        ),
    ),
)
